"""Layers that pool, resize and pad: gradients, layouts, devices, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
from gpunn import nn
from gpunn.autograd.gradcheck import gradcheck
from gpunn.device import probe
from gpunn.nn import functional as F

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def tensor(*shape, seed=0, **options):
    """Numbers that are far enough apart for finite differences of a maximum."""
    values = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape) / 7
    return gpunn.tensor(values, requires_grad=True, **options)


LAYERS = [
    nn.MaxPool1d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool3d(2, 1),
    nn.AvgPool2d((2, 3), 2, (1, 0), count_include_pad=False),
    nn.AdaptiveAvgPool2d((3, None)),
    nn.AdaptiveMaxPool2d(2),
    nn.GlobalAvgPool2d(),
    nn.GlobalMaxPool1d(),
    nn.Upsample(scale_factor=2),
    nn.Upsample((3, 7), mode="bilinear"),
    nn.UpsamplingBilinear2d(scale_factor=1.5),
    nn.UpsamplingNearest2d(3),
    nn.Upsample(4, mode="area"),
    nn.ZeroPad2d((1, -1, 0, 2)),
    nn.ConstantPad1d(1, 0.5),
    nn.ReflectionPad2d(2),
    nn.ReplicationPad3d(1),
    nn.CircularPad2d((2, 0, 1, 3)),
]


def shape_for(layer) -> tuple[int, ...]:
    spatial = {"1": (5,), "2": (4, 5), "3": (3, 2, 3)}
    return (2, 2, *spatial.get(type(layer).__name__[-2], (4, 5)))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_gradients_and_both_layouts(layer):
    """Differences agree; channels last in memory, or in the shape, give the same numbers."""
    x = tensor(*shape_for(layer))
    assert gradcheck(layer, x)
    y = layer(x)
    last = np.moveaxis(x.array, 1, -1).copy()
    out = layer(gpunn.tensor(last).permute(0, x.ndim - 1, *range(1, x.ndim - 1)))
    np.testing.assert_array_equal(out.array, y.detach().array)
    assert np.moveaxis(out.array, 1, -1).flags.c_contiguous  # what the next layer wants
    layer.channels_last = True
    try:
        out = layer(gpunn.tensor(last))
        assert "channels_last=True" in repr(layer)
    finally:
        layer.channels_last = False
    np.testing.assert_array_equal(np.moveaxis(out.array, -1, 1), y.detach().array)


def test_one_image_without_a_batch():
    x = tensor(2, 4, 6)
    y, places = F.max_pool2d(x, 2, return_indices=True)
    batch, indices = F.max_pool2d(x[None], 2, return_indices=True)
    assert y.shape == places.shape == (2, 2, 3) and places.dtype == np.int64
    np.testing.assert_array_equal(y.detach().array, batch.detach().array[0])
    np.testing.assert_array_equal(places.array, indices.array[0])
    assert F.adaptive_avg_pool2d(x, 1).shape == (2, 1, 1)
    assert nn.ReflectionPad2d(1)(x).shape == (2, 6, 8)
    back = F.max_unpool2d(y, places, 2)
    back.sum().backward()
    assert back.shape == x.shape and x.grad.array.sum() == 12


def test_no_indices_where_no_gradient_will_be_wanted(monkeypatch):
    """They would be made and written for nothing."""
    from gpunn.autograd.functions import pooling

    asked = []
    real = pooling.primitives.max_pool_forward

    def noted(x, *, return_indices, **options):
        asked.append(return_indices)
        return real(x, return_indices=return_indices, **options)

    monkeypatch.setattr(pooling.primitives, "max_pool_forward", noted)
    F.max_pool2d(tensor(1, 1, 4, 4).detach(), 2)
    with gpunn.no_grad():
        F.max_pool2d(tensor(1, 1, 4, 4), 2)
    F.max_pool2d(tensor(1, 1, 4, 4), 2)
    assert asked == [False, False, True]


def test_padding_any_dimension():
    x = tensor(2, 3, 2, 2, 3)
    sizes = (1, 0, 0, 2, 1, 1, 0, 1, 2, 0)
    y = F.pad(x, sizes, value=7.0)
    pairs = [sizes[k : k + 2] for k in range(8, -1, -2)]
    np.testing.assert_array_equal(
        y.detach().array, np.pad(x.detach().array, pairs, constant_values=7)
    )
    y.sum().backward()
    assert (x.grad.array == 1).all()
    whole = F.pad(gpunn.tensor(np.array([1, 2])), (1, 1), value=5)
    assert whole.array.tolist() == [5, 1, 2, 5] and whole.dtype.kind == "i"
    assert F.pad(x, ()) is not x


@emulated
def test_on_the_emulator():
    """A small network there and on the CPU: the same loss, the same gradient."""
    values = []
    for device in ("cpu", "emulator"):
        x = gpunn.tensor(
            np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32), device=device,
            requires_grad=True,
        )  # fmt: skip
        y = nn.ReflectionPad2d(1)(x)
        y, places = F.max_pool2d(y, 2, return_indices=True)
        y = F.max_unpool2d(y, places, 2)
        y = nn.Upsample(scale_factor=1.5, mode="bilinear")(y)
        y = nn.AvgPool2d(3, 2, 1)(y)
        loss = (nn.GlobalAvgPool2d()(y * y)).sum()
        loss.backward()
        values.append((loss.detach().cpu().array, x.grad.cpu().array))
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
    np.testing.assert_allclose(values[0][1], values[1][1], rtol=1e-5, atol=1e-7)


X = tensor(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: F.max_pool2d(X[0, 0], 2), ValueError, r"max_pool2d: .*\(4, 4\).*\(N, C, H, W\)"),
        (lambda: F.max_pool1d(X, 2), ValueError, r"max_pool1d: .*\(N, C, L\)"),
        (lambda: F.avg_pool3d(X[0], 2), ValueError, r"avg_pool3d: .*\(N, C, D, H, W\)"),
        (lambda: F.avg_pool2d(X, 5), ValueError, "kernel_size is 5 .* there are 4"),
        (lambda: F.adaptive_avg_pool2d(X, (1, 2, 3)), ValueError, "expected one size, or 2"),
        (lambda: F.adaptive_max_pool2d(X, 0), ValueError, "output_size is"),
        (lambda: F.max_unpool2d(X, X, 2), ValueError, "indices has shape .* float64"),
        (
            lambda: F.max_unpool2d(X, gpunn.tensor(np.full(X.shape, 64)), 2),
            ValueError, "indices go from 64 to 64; expected 0 to 63",
        ),
        (
            lambda: F.max_unpool2d(X, gpunn.tensor(np.zeros(X.shape, int)), 2, output_size=(5, 8)),
            ValueError, r"output_size \(5, 8\) is none",
        ),
        (lambda: F.pad(X, (1,)), ValueError, "pad has 1 numbers for 4 dimensions"),
        (lambda: F.pad(X, (4, 0), "reflect"), ValueError, "mode 'reflect' with 2 numbers"),
        (lambda: F.pad(X, (0, 0, 4, 0), "reflect"), ValueError, "by 3 at most"),
        (lambda: F.pad(X, (1, 1), "mirror"), ValueError, "mode 'mirror' is not known"),
        (lambda: F.pad(X, (1, 1, 1, 1), "circular", 2.0), ValueError, "takes none"),
        (lambda: nn.ZeroPad2d((1, 2)), ValueError, "expected an int, or 4 ints"),
        (lambda: nn.ZeroPad1d(1)(X), ValueError, r"ZeroPad1d: .*\(N, C, L\)"),
        (lambda: F.interpolate(X, 3, mode="linear"), ValueError, "this by 'bilinear'"),
        (lambda: F.interpolate(X, 3, mode="bicubic"), ValueError, "'bicubic' is not known"),
        (lambda: F.interpolate(X), ValueError, "give one of them"),
        (lambda: F.interpolate(X, 3, align_corners=True), ValueError, "takes none"),
        (lambda: F.interpolate(X, scale_factor=0.1), ValueError, r"makes \(0, 0\)"),
        (lambda: F.interpolate(X, (1, 2, 3)), ValueError, "or 2, one for each"),
        (lambda: F.interpolate(X, 2, antialias=True), NotImplementedError, "mode='area'"),
        (lambda: nn.Upsample(), ValueError, "Upsample: .*give one of them"),
    ],
)  # fmt: skip
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()
