"""Embedding layers, tied weights, positions."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn.autograd as g
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.autograd import gradcheck


def cpu(data, **options):
    return g.tensor(data, device="cpu", **options)


def test_a_layer_starts_as_pytorch_does_and_its_padding_stays():
    g.manual_seed(0)
    layer = nn.Embedding(300, 50, padding_idx=-1, device="cpu")
    values = layer.weight.detach().numpy()
    assert values[:-1].std() == pytest.approx(1, rel=0.02) and not values[-1].any()
    assert list(layer.state_dict()) == ["weight"] and layer.padding_idx == 299
    assert repr(layer) == "Embedding(300, 50, padding_idx=299)"
    layer(cpu([[1, 299], [1, 2]])).sum().backward()
    grad = layer.weight.grad.numpy()[:, 0]
    assert (grad[1], grad[2], grad[299], grad.sum()) == (2, 1, 0, 3)
    frozen = nn.Embedding.from_pretrained(layer.weight.detach(), padding_idx=0)
    assert not frozen.weight.requires_grad and frozen.padding_idx == 0
    assert np.shares_memory(frozen.weight.array, layer.weight.array)


def test_gradients_by_differences():
    rng = np.random.default_rng(0)
    weight = cpu(rng.normal(size=(4, 3)), requires_grad=True)
    indices = cpu(rng.integers(0, 4, (2, 5)))
    assert gradcheck(lambda w: F.embedding(indices, w), weight)
    factors = cpu(rng.normal(size=(2, 5)), requires_grad=True)
    for mode in ("sum", "mean", "max"):
        assert gradcheck(lambda w, mode=mode: F.embedding_bag(indices, w, mode=mode), weight)
    bag = lambda w, f: F.embedding_bag(indices, w, mode="sum", per_sample_weights=f)  # noqa: E731
    assert gradcheck(bag, (weight, factors))
    cos, sin = (table for table in nn.RotaryEmbedding(4).tables(5, weight))
    x = cpu(rng.normal(size=(2, 5, 6)), requires_grad=True)
    for options in ({}, {"offset": 2, "interleaved": True}, {"inverse": True}):
        assert gradcheck(lambda x, o=options: F.rotary_embedding(x, cos, sin, **o), x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, device="cpu", dtype=np.float64)
        self.head = nn.Linear(4, 7, bias=False, device="cpu", dtype=np.float64)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_tied_weights_collect_both_gradients_and_are_one_parameter():
    g.manual_seed(0)
    tied, tokens = Tied(), cpu([[1, 2, 2], [6, 0, 1]])
    weight = tied.embedding.weight
    assert [name for name, _ in tied.named_parameters()] == ["embedding.weight"]
    assert list(tied.state_dict()) == ["embedding.weight", "head.weight"]
    loss = lambda w: F.cross_entropy(  # noqa: E731
        F.linear(F.embedding(tokens, w), w).reshape(6, 7), cpu([0, 1, 2, 3, 4, 5])
    )
    assert gradcheck(loss, weight)
    weight.grad = None
    optimizer = optim.SGD(tied.parameters(), lr=0.5)
    before = weight.detach().numpy().copy()
    for _ in range(2):  # with a place in the optimizer's arena, twice
        optimizer.zero_grad()
        loss(weight).backward()
        assert weight.grad.array is weight._grad_slot
        grad = weight.grad.numpy().copy()
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), before - 0.5 * grad, rtol=1e-12)
        before = weight.detach().numpy().copy()
    assert tied.head.weight is weight
    tied.load_state_dict({name: 0 * value for name, value in tied.state_dict().items()})
    assert not tied.head.weight.detach().numpy().any()


def test_a_second_backward_adds_only_the_rows_that_were_read():
    weight = cpu(np.ones((5, 2)), requires_grad=True)
    F.embedding(cpu([1, 1]), weight).sum().backward()
    grad, array = weight.grad, weight.grad.array
    (F.embedding(cpu([3]), weight) * 2.0 + F.embedding(cpu([1]), weight)).sum().backward()
    assert weight.grad is grad and grad.array is array
    np.testing.assert_array_equal(grad.numpy()[:, 0], [0, 3, 0, 2, 0])


def test_rows_that_are_too_long_are_scaled_in_place():
    layer = nn.Embedding(
        3, 2, max_norm=1.0, device="cpu", _weight=cpu([[3.0, 4], [9, 9], [0, 0.5]])
    )
    out = layer(cpu([0, 2, 0]))
    np.testing.assert_allclose(out.detach().numpy(), [[0.6, 0.8], [0, 0.5], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(layer.weight.detach().numpy()[1], [9, 9])


def test_bags():
    weight = cpu(np.arange(8.0).reshape(4, 2))
    bag = nn.EmbeddingBag(4, 2, mode="sum", _weight=weight)
    assert bag(cpu([[0, 1], [3, 3]])).tolist() == [[2, 4], [12, 14]]
    assert bag(cpu([0, 1, 3]), cpu([0, 2, 2])).tolist() == [[2, 4], [0, 0], [6, 7]]
    bag = nn.EmbeddingBag.from_pretrained(weight, mode="mean", padding_idx=1)
    assert bag(cpu([[0, 1], [3, 3], [1, 1]])).tolist() == [[0, 1], [6, 7], [0, 0]]
    bag.include_last_offset = True
    assert bag(cpu([0, 2, 3]), cpu([0, 2, 3])).tolist() == [[2, 3], [6, 7]]
    assert bag(cpu([0, 2, 3]), cpu([0, 2, 2])).tolist() == [[2, 3], [0, 0]]  # 3 is in no bag
    low = nn.EmbeddingBag.from_pretrained(cpu(np.full((2, 1), 100.0), dtype=g.float16), False)
    mean = low(g.zeros(1, 1000, dtype=np.int64, device="cpu"))  # whose sum is no float16
    mean.backward()
    assert mean.dtype == low.weight.dtype and mean.item() == 100 == 100 * low.weight.grad[0].item()


def test_positions_are_added_from_an_offset_on():
    x = g.zeros(2, 3, 5, device="cpu")
    waves = nn.SinusoidalPositionalEncoding(5, 10, device="cpu")
    assert not list(waves.state_dict()) and not list(waves.parameters())
    found = waves(x, offset=4)
    angles = np.arange(4, 7)[:, None] * 10000.0 ** (-np.array([0, 2, 4]) / 5)
    np.testing.assert_allclose(found[1, :, ::2].numpy(), np.sin(angles), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0, :, 1::2].numpy(), np.cos(angles)[:, :2], rtol=1e-5)
    learned = nn.LearnedPositionalEncoding(5, 10, batch_first=False, device="cpu")
    learned(x, offset=1).sum().backward()  # 2 steps of 3 sequences
    np.testing.assert_array_equal(learned.weight.grad.numpy()[:, 0], [0, 3, 3, *[0] * 7])
    with pytest.raises(ValueError, match="positions 8 to 10 are asked for; there are 0 to 9"):
        waves(x, offset=8)


def test_rotary_layer_with_a_cache_and_other_positions():
    g.manual_seed(0)
    layer, x = nn.RotaryEmbedding(6, scaling=2.0), g.randn(2, 3, 8, 7, device="cpu")
    whole = layer(x).numpy()
    parts = [layer(x[:, :, a : a + 4], offset=a).numpy() for a in (0, 4)]
    np.testing.assert_array_equal(np.concatenate(parts, 2), whole)
    np.testing.assert_array_equal(layer(x, positions=g.arange(8, device="cpu")).numpy(), whole)
    np.testing.assert_array_equal(whole[..., 6], x.numpy()[..., 6])
    half = nn.RotaryEmbedding(6)(x[:, :, ::2]).numpy()  # positions 0, 1, 2 … of the stretched ones
    np.testing.assert_allclose(layer(x[:, :, ::2], positions=2 * g.arange(4, device="cpu")).numpy(),
                               half, rtol=1e-5, atol=1e-6)  # fmt: skip
    beyond = layer(x, offset=1000).numpy()  # the table grows
    assert beyond.shape == x.shape and np.isfinite(beyond).all()
    low = layer.to(g.bfloat16)(x.bfloat16())  # the angles stay exact
    np.testing.assert_allclose(low.float().numpy(), whole, atol=0.05)
    places = g.arange(8, device="cpu")
    turned = layer(x.requires_grad_(), positions=places)
    places += 1
    with pytest.raises(RuntimeError, match="Rotary.* modified in place"):
        turned.sum().backward()


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: nn.Embedding(3, 2, sparse=True), NotImplementedError, "sparse=True is not"),
        (lambda: nn.Embedding(0, 2), ValueError, "num_embeddings is 0"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), ValueError, "padding_idx is 3; expected -3 to"),
        (lambda: nn.Embedding(3, 2, _weight=g.zeros(2, 2)), ValueError, r"expected \(3, 2\)"),
        (lambda: nn.Embedding(3, 2, device="cpu")(cpu([3])), ValueError, "holds 3 at position 0"),
        (lambda: nn.Embedding(3, 2, device="cpu")(cpu([1.0])), TypeError, "expected integers"),
        (lambda: nn.EmbeddingBag(3, 2, mode="min"), ValueError, "mode is 'min'"),
        (lambda: F.embedding_bag(cpu([1]), g.zeros(2, 2, device="cpu")), ValueError, "offsets"),
        (lambda: F.embedding_bag(cpu([1]), g.zeros(2, 2, device="cpu"), cpu([1])), ValueError,
         "do not fall"),
        (lambda: nn.RotaryEmbedding(5), ValueError, "dim is 5"),
        (lambda: nn.LearnedPositionalEncoding(4)(g.zeros(2, 3)), ValueError, r"\(..., T, 4\)"),
    ],
)  # fmt: skip
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()
