"""Convolution layers: arguments, initial values, padding modes, fusing, where the weight lies."""

import copy

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.autograd.functions.layout import is_channels_last
from gpunn.optim.clip import clip_grad_norm_

rng = np.random.default_rng(8)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")
    gpunn.manual_seed(1)


def values(*shape):
    return gpunn.tensor(rng.normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_shapes_and_initial_values(dimensions):
    size = (9, 8, 7)[:dimensions]
    layer = getattr(nn, f"Conv{dimensions}d")(6, 4, 3, stride=2, padding=1, groups=2)
    assert layer(values(2, 6, *size)).shape == (2, 4, *((n + 1) // 2 for n in size))
    assert layer.weight.shape == (4, 3, *(3,) * dimensions) and layer.bias.shape == (4,)
    transposed = getattr(nn, f"ConvTranspose{dimensions}d")(6, 4, 3, 2, 1, 1, 2, bias=False)
    assert transposed.weight.shape == (6, 2, *(3,) * dimensions) and transposed.bias is None
    assert transposed(values(2, 6, *size)).shape == (2, 4, *(2 * n for n in size))
    for made, channels in ((layer, 3), (transposed, 2)):
        bound = (channels * 3**dimensions) ** -0.5
        weight = np.abs(made.weight.detach().numpy())
        assert 0.8 * bound < weight.max() <= bound
        assert list(made.state_dict()) == ["weight", "bias"][: 1 + (made.bias is not None)]


def test_channels_last():
    layer = nn.Conv2d(3, 5, (3, 2), padding="same", dilation=(1, 2))
    other = nn.Conv2d(3, 5, (3, 2), padding="same", dilation=(1, 2), channels_last=True)
    other.load_state_dict(layer.state_dict())
    x = values(2, 3, 6, 7)
    expected = layer(x).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_array_equal(other(x.permute(0, 2, 3, 1)).detach().numpy(), expected)
    assert other(x.permute(0, 2, 3, 1)).is_contiguous()


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_padding_modes(mode, channels_last):
    layer = nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode=mode, channels_last=channels_last)
    x = values(2, 2, 6, 5)
    numpy_mode = {"replicate": "edge", "circular": "wrap"}.get(mode, mode)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (1, 1)), numpy_mode)
    expected = F.conv2d(gpunn.tensor(padded), layer.weight, layer.bias).detach().numpy()
    found = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if channels_last else layer(x)
    np.testing.assert_allclose(found.detach().numpy(), expected, 1e-5, 1e-6)
    if not channels_last:
        np.testing.assert_array_equal(layer(x[0]).detach().numpy(), layer(x).detach().numpy()[0])
    same = nn.Conv2d(2, 3, 4, padding="same", padding_mode=mode)
    assert same(x).shape == (2, 3, 6, 5)


def test_sequential_fuses_the_activation():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), nn.ConvTranspose2d(4, 3, 3, stride=2), nn.SiLU(),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.LeakyReLU(0.2),
    )  # fmt: skip
    x, results = values(2, 2, 7, 6), []
    for fuse in (True, False):
        model.fuse = fuse
        model.zero_grad()
        out = model(x)
        (out * out).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
        depth, node = 0, out.grad_fn
        while isinstance(node, gpunn.autograd.function.Function):
            depth, node = depth + 1, node.edges[0]
        assert depth == (4 if fuse else 7)  # three layers and the padding; three activations
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused.numpy(), plain.numpy(), 2e-5, 1e-5)
    model.fuse = True
    calls = []
    model[1].register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    model(x)
    assert calls == [(2, 4, 5, 4)]


def test_the_weight_stays_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 2))
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    plain = copy.deepcopy(model)
    plain[0].weight.data = np.ascontiguousarray(plain[0].weight.detach().numpy())
    assert is_channels_last(copy.deepcopy(model)[0].weight.array)
    assert is_channels_last(model.double().float()[0].weight.array)
    x, optimizers = values(5, 3, 4, 4), []
    for one in (model, plain):
        optimizers.append(optim.AdamW(one.parameters(), lr=0.1, weight_decay=0.1))
        for _ in range(3):
            optimizers[-1].zero_grad()
            (one(x) ** 2).sum().backward()
            assert one[0].weight.grad.array is one[0].weight._grad_slot
            clip_grad_norm_(one.parameters(), 2.0)
            optimizers[-1].step()
    assert is_channels_last(model[0].weight.array) and plain[0].weight.is_contiguous()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), other.detach().numpy(), 1e-5, 1e-6)
    # The state of one order is taken over by the other.
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for mine, other in zip(*(o.state_dict()["state"].values() for o in optimizers), strict=True):
        for name, value in mine.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other[name]))


def test_layout_on_another_device():
    layer = nn.Conv2d(3, 4, 3).to("emulator")
    assert is_channels_last(layer.weight.array) and str(layer.weight.device) == "emulator"
    x = F.conv2d(values(2, 3, 5, 5), values(4, 3, 2, 2)).requires_grad_()
    moved = x.to("emulator")
    out = F.gelu(moved) * 2
    assert is_channels_last(moved.array) and is_channels_last(out.array)
    np.testing.assert_allclose(out.detach().cpu().numpy(), 2 * F.gelu(x).detach().numpy(), 1e-5)
    out.sum().backward()
    expected = x.detach().requires_grad_()
    (F.gelu(expected) * 2).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), expected.grad.numpy(), 1e-5, 1e-6)


def test_output_size_of_a_transposed_layer():
    layer = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)
    x = values(1, 3, 4, 5)
    assert layer(x).shape == (1, 2, 7, 9)
    assert layer(x, output_size=(8, 9)).shape == (1, 2, 8, 9)
    assert layer(x, output_size=[1, 2, 7, 10]).shape == (1, 2, 7, 10)
    last = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, channels_last=True)
    assert last(x.permute(0, 2, 3, 1), output_size=(8, 9)).shape == (1, 8, 9, 2)
    with pytest.raises(ValueError, match=r"output_size is \(9, 9\).*\(7, 9\) to \(8, 10\)"):
        layer(x, output_size=(9, 9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups is 2.*in_channels, 3"),
        (lambda: nn.Conv2d(0, 4, 3), "in_channels is 0"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), r"kernel_size is \(3, 3, 3\).*2 of them"),
        (lambda: nn.Conv1d(3, 4, 3, padding="some"), "padding is 'some'"),
        (lambda: nn.Conv1d(3, 4, 3, stride=2, padding="same"), "'same' with stride"),
        (lambda: nn.Conv1d(3, 4, 3, padding_mode="mirror"), "padding_mode is 'mirror'"),
        (lambda: nn.ConvTranspose1d(3, 4, 3, padding_mode="reflect"), "expected 'zeros'"),
        (lambda: nn.ConvTranspose1d(3, 4, 3, padding="same"), "padding is 'same'"),
    ],
)
def test_errors_of_layers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_repr():
    shown = repr(nn.Conv2d(3, 8, 3, (2, 1), 1, groups=1, bias=False, padding_mode="circular"))
    assert shown == (
        "Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 1), padding=(1, 1), bias=False, "
        "padding_mode=circular)"
    )
    shown = repr(nn.ConvTranspose1d(4, 8, 3, 2, output_padding=1, groups=2, dilation=3))
    assert shown == (
        "ConvTranspose1d(4, 8, kernel_size=(3,), stride=(2,), output_padding=(1,), dilation=(3,), "
        "groups=2)"
    )
