"""Convolutions against PyTorch in float64: outputs and all gradients, over many configurations."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpunn.autograd as g  # noqa: E402
import gpunn.nn.functional as F  # noqa: E402
from gpunn import nn  # noqa: E402
from gpunn.primitives import convolution_cpu, convolution_patches  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GPUNN_DEVICE", "cpu")


@pytest.fixture(params=["whole", "cut"])
def tiles(request, monkeypatch):
    """Tiles as they are, and so small that these small arrays are cut into many."""
    if request.param == "cut":
        for module in (convolution_cpu, convolution_patches):
            monkeypatch.setattr(module, "TILE", 300)
            monkeypatch.setattr(module, "LARGE", 200)
        monkeypatch.setattr(convolution_cpu, "_BLOCK", 4)
        monkeypatch.setattr(convolution_patches, "_WORTH", 500)
        monkeypatch.setattr(convolution_patches, "_ROWS", 16)
        monkeypatch.setattr(convolution_patches, "_SHORT", 3)


def ints(rng, low, high, count):
    return tuple(map(int, rng.integers(low, high, count)))


def configuration(rng):
    """A random convolution: dimensions, shapes and options that PyTorch takes, too."""
    d = int(rng.integers(1, 4))
    groups = int(rng.choice([1, 1, 2, 3]))
    inside, outside = (1, 1) if rng.integers(3) == 0 else ints(rng, 1, 9, 2)
    if rng.integers(6) == 0:
        outside *= 18  # many more outputs than channels, and blocks of channels
    kernel, dilation, padding = ints(rng, 1, 4, d), ints(rng, 1, 3, d), ints(rng, 0, 3, d)
    stride = ints(rng, 1, 4, d) if rng.integers(2) else (1,) * d
    size = tuple(
        max(n, (k - 1) * e + 1 - 2 * p)
        for n, k, e, p in zip(
            ints(rng, 1, 11 if d < 3 else 6, d), kernel, dilation, padding, strict=True
        )
    )
    x = rng.normal(size=(int(rng.integers(1, 4)), groups * inside, *size))
    weight = rng.normal(size=(groups * outside, inside, *kernel))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return d, x, weight, options


def compare(ours, theirs, arrays, case, **layout):
    """One function of both libraries on the same arrays: its value and all gradients."""
    a = [g.tensor(array, requires_grad=True) for array in arrays]
    b = [torch.tensor(array, requires_grad=True) for array in arrays]
    first = a[0].permute(0, *range(2, a[0].ndim), 1) if layout.get("channels_last") else a[0]
    out, expected = ours(first, *a[1:], **layout), theirs(*b)
    if layout.get("channels_last"):
        out = out.permute(0, -1, *range(1, out.ndim - 1))
    assert out.shape == tuple(expected.shape), case
    np.testing.assert_allclose(
        out.detach().numpy(), expected.detach().numpy(), 1e-10, 1e-11, err_msg=str(case)
    )
    grad = np.random.default_rng(3).normal(size=out.shape)
    out.backward(g.tensor(grad))
    expected.backward(torch.tensor(grad))
    for mine, other in zip(a, b, strict=True):
        np.testing.assert_allclose(
            mine.grad.numpy(), other.grad.numpy(), 1e-10, 1e-11, err_msg=str(case)
        )


def test_convolution_like_pytorch(tiles):
    rng = np.random.default_rng(5)
    for number in range(40):
        d, x, weight, options = configuration(rng)
        bias = rng.normal(size=len(weight))
        name, case = f"conv{d}d", (number, x.shape, weight.shape, options)

        def ours(x, w, b, name=name, options=options, **layout):
            return getattr(F, name)(x, w, b, **options, **layout)

        def theirs(x, w, b, name=name, options=options):
            return getattr(torch.nn.functional, name)(x, w, b, **options)

        compare(ours, theirs, (x, weight, bias), case, channels_last=bool(number % 3 == 0))


def test_transposed_convolution_like_pytorch(tiles):
    rng = np.random.default_rng(6)
    for number in range(40):
        d, x, weight, options = configuration(rng)
        groups = options["groups"]
        # (in, out / groups, *kernel): the channels of x are the weight's first dimension
        weight = rng.normal(size=(x.shape[1], max(1, len(weight) // groups), *weight.shape[2:]))
        size, kernel = x.shape[2:], weight.shape[2:]
        padding, stride, dilation = (options[key] for key in ("padding", "stride", "dilation"))
        options["padding"] = tuple(
            min(p, ((n - 1) * s + e * (k - 1)) // 2)
            for p, n, s, e, k in zip(padding, size, stride, dilation, kernel, strict=True)
        )
        options["output_padding"] = tuple(int(rng.integers(0, s)) for s in stride)
        bias = rng.normal(size=weight.shape[1] * groups)
        name, case = f"conv_transpose{d}d", (number, x.shape, weight.shape, options)

        def ours(x, w, b, name=name, options=options, **layout):
            return getattr(F, name)(x, w, b, **options, **layout)

        def theirs(x, w, b, name=name, options=options):
            return getattr(torch.nn.functional, name)(x, w, b, **options)

        compare(ours, theirs, (x, weight, bias), case, channels_last=bool(number % 3 == 0))


def network(nn):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, stride=2), nn.GELU(),
        nn.ConvTranspose2d(6, 4, 3, 2, output_padding=1), nn.Tanh(),
        nn.Conv2d(4, 3, 1, bias=False), nn.Flatten(), nn.Linear(3 * 8 * 6, 4),
    )  # fmt: skip


def test_networks_share_weights_both_ways():
    theirs, mine = network(torch.nn).double(), network(nn).double()
    assert repr(mine).split("Flatten")[0] == repr(theirs).split("Flatten")[0]
    mine.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    back = network(torch.nn).double()
    back.load_state_dict(
        {name: torch.from_numpy(value.numpy()) for name, value in mine.state_dict().items()}
    )
    x = np.random.default_rng(1).normal(size=(3, 2, 8, 6))
    expected = theirs(torch.from_numpy(x))
    np.testing.assert_allclose(back(torch.from_numpy(x)).detach(), expected.detach(), rtol=1e-12)
    out = mine(g.tensor(x))
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), 1e-10, 1e-12)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    for ours, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(ours.grad.numpy(), other.grad.numpy(), 1e-9, 1e-11)
