"""The model zoo: shapes, parameter counts of the papers, and that each learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.device import probe


def images(*shape):
    return gpunn.tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def labels(count, classes):
    return gpunn.tensor(np.arange(count) % classes)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def losses(model, loss, steps=30, lr=1e-2):
    """The first and the last loss of some steps on one batch."""
    optimizer, found = optim.AdamW(model.parameters(), lr=lr), []
    for _ in range(steps):
        value = loss()
        found.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return found[0], found[-1]


# ---- images --------------------------------------------------------------------------------------


def test_mlp():
    model = models.MLP(784, (256, 128), 10, dropout=0.1)
    assert count(model) == 784 * 256 + 256 + 256 * 128 + 128 + 1290
    assert model(images(3, 784)).shape == (3, 10)


def test_lenet():
    model = models.LeNet()
    assert count(model) == 61706  # as of the well-known copies of the paper's network
    assert model(images(2, 1, 28, 28)).shape == (2, 10)
    assert models.LeNet(7, 3, 32)(images(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="image_size is 12"):
        models.LeNet(image_size=12)
    with pytest.raises(ValueError, match=r"expected \(B, 1, 28, 28\)"):
        model(images(2, 1, 32, 32))


def test_resnet18_has_torchvisions_parameters():
    model = models.ResNet18()
    assert count(model) == 11_689_512
    names = list(model.state_dict())
    for name in ("conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.running_var"):
        assert name in names
    small = models.ResNet18(10, small_images=True).eval()
    assert small(images(1, 3, 8, 8)).shape == (1, 10)


def test_resnet9():
    gpunn.manual_seed(0)
    model = models.ResNet9(4, 3, width=4)
    x, y = images(8, 3, 8, 8), labels(8, 4)
    first, last = losses(model, lambda: F.cross_entropy(model(x), y))
    assert last < 0.1 * first
    assert model.eval()(images(2, 3, 16, 24)).shape == (2, 4)


def test_unet():
    gpunn.manual_seed(0)
    model = models.UNet(1, 2, width=4, depth=2)
    x = images(2, 1, 8, 12)
    assert model(x).shape == (2, 2, 8, 12)
    y = gpunn.tensor((x.numpy()[:, 0] > 0).astype(np.int64))  # every pixel by its own sign
    first, last = losses(model, lambda: F.cross_entropy(model(x), y))
    assert last < 0.5 * first
    with pytest.raises(ValueError, match="multiples of 4"):
        model(images(2, 1, 8, 10))


def test_vit():
    gpunn.manual_seed(0)
    model = models.ViT(3, image_size=8, patch_size=4, dim=12, depth=2, heads=2)
    x, y = images(6, 3, 8, 8), labels(6, 3)
    first, last = losses(model, lambda: F.cross_entropy(model(x), y))
    assert last < 0.1 * first
    with pytest.raises(ValueError, match="32 is not a multiple of patch_size 5"):
        models.ViT(patch_size=5)
    with pytest.raises(ValueError, match=r"images have shape \(6, 3, 8, 8\); .* \(B, 3, 32, 32\)"):
        models.ViT(depth=1)(x)


# ---- sequences -----------------------------------------------------------------------------------


def test_lstm_classifier():
    gpunn.manual_seed(0)
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 7, 12)
    tokens = np.zeros((12, 6), np.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = rng.integers(1, 5, length)
    y = gpunn.tensor(tokens[:, 0] % 2)  # by the first token, which must be remembered
    model = models.LSTMClassifier(8, 2, 16, bidirectional=True, vocabulary=5, padding_idx=0)
    x, n = gpunn.tensor(tokens), gpunn.tensor(lengths)
    first, last = losses(model, lambda: F.cross_entropy(model(x, n), y))
    assert last < 0.2 * first
    vectors = models.LSTMClassifier(3, 4, 8, num_layers=2)
    assert vectors(images(2, 5, 3)).shape == (2, 4)


def test_lstm_language_model_learns_a_period():
    gpunn.manual_seed(0)
    model = models.LSTMLanguageModel(5, 16, 16, num_layers=1)
    assert model.head.weight is model.embedding.weight
    text = gpunn.tensor(np.arange(24)[None] % 5)
    first, last = losses(
        model, lambda: F.cross_entropy(model(text[:, :-1])[0][0], text[0, 1:]), 60
    )
    assert last < 0.1 * first
    out = model.generate(text[:, :3], 6, temperature=0).numpy()
    np.testing.assert_array_equal(out, np.arange(9)[None] % 5)
    with pytest.raises(ValueError, match="8 and hidden_size 16"):
        models.LSTMLanguageModel(5, 8, 16)


def test_seq2seq_learns_to_turn_sequences_round():
    gpunn.manual_seed(0)
    source = np.array([[3, 4, 5], [5, 3, 0], [4, 5, 3], [4, 0, 0]])
    lengths = np.array([3, 2, 3, 1])
    target = np.array([[1, 5, 4, 3], [1, 3, 5, 2], [1, 3, 5, 4], [1, 4, 2, 2]])  # 1 starts, 2 ends
    wanted = np.array([[5, 4, 3, 2], [3, 5, 2, -1], [3, 5, 4, 2], [4, 2, -1, -1]])
    model = models.Seq2Seq(6, 6, 8, 16)
    x, n, t = gpunn.tensor(source), gpunn.tensor(lengths), gpunn.tensor(target)
    y = gpunn.tensor(wanted.reshape(-1))

    def loss():
        return F.cross_entropy(model(x, t, n).reshape(-1, 6), y, ignore_index=-1)

    first, last = losses(model, loss, 60)
    assert last < 0.05 * first
    found = model.eval().translate(x, start=1, end=2, max_length=6, lengths=n).numpy()
    np.testing.assert_array_equal(found, np.where(wanted < 0, 2, wanted))
    with pytest.raises(ValueError, match="hidden_size is 258; .* from 2 to 256"):
        models.Seq2Seq(6, 6, 8, 258)


# ---- GPT -----------------------------------------------------------------------------------------

TINY = models.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=12)


def test_gpt2_has_124_million_parameters():
    config = models.GPTConfig()
    n = config.n_embd
    block = 12 * n * n + 13 * n
    tiny, m = models.GPT(TINY), TINY.n_embd
    assert count(tiny) == 11 * m + 8 * m + 2 * (12 * m * m + 13 * m) + 2 * m
    assert config.vocab_size * n + 1024 * n + 12 * block + 2 * n == 124_439_808


def test_gpt_learns_and_generates_with_its_cache():
    gpunn.manual_seed(0)
    model = models.GPT(TINY)
    text = gpunn.tensor((np.arange(9) + np.arange(4)[:, None]) % 4)  # from each of its phases
    first, last = losses(model, lambda: model.loss(text[:, :-1], text[:, 1:]), 40)
    assert last < 0.1 * first
    # Longer than block_size, so that the cache is begun anew on the way.
    out = model.eval().generate(text[:1, :3], 12, temperature=0).numpy()
    np.testing.assert_array_equal(out[0], np.arange(15) % 4)
    drawn = model.generate(text[:1, :3], 4, temperature=2.0, top_k=2)
    assert drawn.shape == (1, 7) and drawn.numpy().max() < 11


def test_gpt_with_a_cache_is_gpt():
    gpunn.manual_seed(1)
    model = models.GPT(TINY).eval()
    tokens = gpunn.tensor(np.random.default_rng(2).integers(0, 11, (2, 8)))
    whole = model(tokens).detach().numpy()
    caches = model.caches(2)
    parts = [model(tokens[:, a:b], caches).detach().numpy() for a, b in ((0, 4), (4, 5), (5, 8))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-6)
    with pytest.raises(ValueError, match="9 positions, but block_size is 8"):
        model(tokens[:, :1], caches)
    with pytest.raises(ValueError, match=r"shape \(1, 0\); expected \(B, T\) with T >= 1"):
        model.generate(tokens[:1, :0], 2)
    with pytest.raises(ValueError, match="top_k is 0"):
        model.generate(tokens, 2, top_k=0)


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
def test_gpt_trains_on_a_device_as_on_the_cpu():
    tokens = gpunn.tensor(np.random.default_rng(2).integers(0, 11, (2, 9)))
    found = []
    for device in ("cpu", "emulator"):
        gpunn.manual_seed(0)
        config = dataclasses.replace(TINY, n_layer=1, dropout=0.1)
        model, text = models.GPT(config).to(device), tokens.to(device)
        gpunn.manual_seed(5)
        loss = model.loss(text[:, :-1], text[:, 1:])
        loss.backward()
        out = model.eval().generate(text[:1, :6], 4, temperature=0)
        grads = [parameter.grad.cpu().numpy() for parameter in model.parameters()]
        found.append((loss.item(), out.cpu().numpy(), *grads))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_gpt_loads_the_published_layout():
    model, other = models.GPT(TINY), models.GPT(TINY)
    state = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name.removeprefix("transformer.")] = array.T.copy() if turned else array
    del state["lm_head.weight"]
    state["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
    other.load_gpt2(state)
    tokens = gpunn.tensor([[1, 2, 3]])
    np.testing.assert_array_equal(model(tokens).detach().numpy(), other(tokens).detach().numpy())
    assert other.lm_head.weight is other.transformer["wte"].weight
    del state["wpe.weight"]
    with pytest.raises(RuntimeError, match="missing: transformer.wpe.weight"):
        other.load_gpt2(state)


def test_every_model_can_be_printed():
    assert "Conv2d(1, 6" in repr(models.LeNet())
    assert isinstance(models.GPT(TINY).transformer["h"], nn.ModuleList)
