"""Pooling: parity samples and benchmark inputs."""

from __future__ import annotations

import functools

import numpy as np

from gpunn.primitives.call import Call
from gpunn.primitives.images import volumes
from gpunn.primitives.pooling_reference import max_forward
from gpunn.primitives.pooling_windows import windows_of
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Fixed, Sample

# Packs and single elements. Of the 16-bit types, whose kernels are the same lines, the forward
# takes bfloat16 and the backward float16.
_ONE, _PACKS, _ELEMENTS = (FLOAT32,), (BFLOAT16, FLOAT32), (FLOAT32, FLOAT64)
_PLACES = ("kernel_size", "stride", "padding", "ceil_mode", "output_size")


def _windows():
    """(name, shape, options without dilation, dtypes): for max and mean."""
    yield "2x2", (2, 4, 6, 8), {"kernel_size": 2}, _PACKS
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    yield "3x3, odd channels", (1, 5, 4, 3), options, _ELEMENTS
    yield "a row, no overlap", (2, 11, 1), {"kernel_size": 3, "stride": 4}, _ONE
    yield "same size", (1, 3, 4, 4), {"kernel_size": 3, "stride": 1, "padding": 1}, _ONE
    options = {"kernel_size": (2, 3, 2), "stride": (2, 1, 1), "padding": (1, 1, 0)}
    yield "volumes", (1, 3, 4, 3, 4), options, _ONE
    options = {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True}
    yield "ceil mode", (1, 6, 7, 2), options, _ONE
    yield "one pixel", (1, 1, 1, 1), {"kernel_size": 1}, _ONE
    yield "no images", (0, 4, 4, 2), {"kernel_size": 2}, _ONE
    yield "adaptive", (2, 7, 5, 4), {"output_size": (3, 4)}, _ONE
    yield "adaptive, larger than the image", (1, 3, 2, 3), {"output_size": (5, 3)}, _ONE
    yield "adaptive to one", (2, 9, 13, 2), {"output_size": 1}, _ONE  # a window for many threads


def _max_windows():
    yield from _windows()
    options = {"kernel_size": (3, 2), "stride": 1, "padding": (2, 1), "dilation": (2, 3)}
    yield "dilated", (1, 6, 7, 4), options, _ONE


def _at_the_edge(rng):
    """Ties, NaN, both infinities, -0 and nothing but -inf."""
    x = rng.integers(-2, 3, (1, 8, 8, 2)).astype(float)
    x[0, :2, :2] = np.nan, -np.inf
    x[0, 2:4, :2] = -np.inf
    x[0, 5, 1:4, 0] = np.nan
    x[0, 4:6, 6:8] = np.array([[[np.inf, 0.0], [1, -0.0]], [[np.inf, -0.0], [2, 0.0]]])
    return x


def max_forward_samples(rng):
    """Windows of every kind, values at the edge, and views."""
    for name, shape, options, dtypes in _max_windows():
        yield Sample(name, (rng.normal(size=shape),), options, dtypes)
    yield Sample("at the edge", (_at_the_edge(rng),), {"kernel_size": 2}, _ELEMENTS)
    large = np.round(rng.normal(size=(1, 12, 17, 1)))
    for name, value in (("ties, large", 0.0), ("NaN, large", np.nan)):
        x = np.where(large > 1, value, large)
        yield Sample(name, (x,), {"output_size": 1})
    x = rng.normal(size=(2, 5, 5, 8))
    yield Sample("unaligned, no indices", (x,), {"kernel_size": 2, "return_indices": False},
                 unaligned=True)  # fmt: skip
    yield Sample("strided", (rng.normal(size=(1, 4, 4, 8))[..., ::2],), {"kernel_size": 2})


def _indices(made, x, *, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False,
             output_size=None) -> np.ndarray:  # fmt: skip
    """The indices of max pooling without a call of it, which might be made note of."""
    spatial = x.shape[1:-1]
    windows = windows_of(
        Call(made), "x", spatial, kernel_size, stride, padding, dilation, ceil_mode, output_size
    )
    x = volumes(x)
    shape = (len(x), *windows.counts, x.shape[-1])
    indices = np.empty(shape, np.int32)
    max_forward(x, np.empty(shape, x.dtype), indices, windows)
    return indices.reshape(len(x), *windows.counts[3 - len(spatial) :], shape[-1])


def _backward(dtypes: tuple) -> tuple:
    return tuple(FLOAT16 if dtype is BFLOAT16 else dtype for dtype in dtypes)


def max_backward_samples(made, rng):
    """What comes back through the same windows; ties put several gradients on one pixel."""
    for name, shape, options, dtypes in _max_windows():
        indices = _indices(made, np.round(rng.normal(size=shape)), **options)
        args = (rng.normal(size=indices.shape), Fixed(indices))
        yield Sample(name, args, {"spatial": shape[1:-1], **options}, _backward(dtypes))
    indices = _indices(made, rng.normal(size=(1, 4, 4, 8)), kernel_size=2)
    grad = rng.normal(size=indices.shape)
    grad[0, 0, 0, :2] = np.nan, np.inf
    options = {"spatial": (4, 4), "kernel_size": 2}
    yield Sample("NaN, unaligned", (grad, indices), options, unaligned=True)


def _average_options():
    for name, shape, options, dtypes in _windows():
        yield name, shape, options, dtypes
        if name == "3x3, odd channels":
            yield f"{name}, pixels only", shape, {**options, "count_include_pad": False}, _ONE
        if name == "ceil mode":
            yield f"{name}, pixels only", shape, {**options, "count_include_pad": False}, _ONE
            yield f"{name}, over 3", shape, {**options, "divisor_override": 3}, _ONE


def average_forward_samples(rng):
    """As for max, and the choices of the divisor."""
    for name, shape, options, dtypes in _average_options():
        yield Sample(name, (rng.normal(size=shape),), options, dtypes)
    x = rng.normal(size=(1, 4, 6, 8))
    x[0, :2, :2, 0] = [[np.nan, 1], [2, 3]]
    x[0, 2:, 2:4, 1] = [[np.inf, 1], [2, 3]]
    x[0, 2:, 4:, 2] = [[np.inf, -np.inf], [2, 3]]
    yield Sample("NaN and inf, unaligned", (x,), {"kernel_size": 2}, unaligned=True)


def average_backward_samples(made, rng):
    """What comes back through the same windows."""
    for name, shape, options, dtypes in _average_options():
        kept = {name: options[name] for name in options if name in _PLACES}
        grad = rng.normal(size=_indices(made, np.zeros(shape), **kept).shape)
        yield Sample(name, (grad,), {"spatial": shape[1:-1], **options}, _backward(dtypes))
    grad = rng.normal(size=(1, 2, 2, 8))
    grad[0, 0, 0, :2] = np.nan, np.inf
    yield Sample("NaN, unaligned", (grad,), {"spatial": (4, 4), "kernel_size": 2}, unaligned=True)


# ---- benchmark inputs: 3x3 windows with stride 2, as in front of a residual network --------------

OPTIONS = {"kernel_size": 3, "stride": 2, "padding": 1}
BENCH_SHAPES = (
    (64, 28, 28, 64), (1, 28, 28, 64), (64, 112, 112, 64), (256, 32, 32, 64), (128, 24, 24, 64),
    (128, 14, 14, 256), (256, 7, 7, 512), (16, 112, 112, 3),
)  # fmt: skip


def _image(rng, shape):
    return rng.standard_normal(shape, dtype=np.float32)


def forward_inputs(rng, shape):
    """Images of `shape`."""
    return (_image(rng, shape),), dict(OPTIONS)


def max_backward_inputs(made, rng, shape):
    """Gradients for images of `shape`, and the indices of their maxima."""
    indices = _indices(made, _image(rng, shape), **OPTIONS)
    return (_image(rng, indices.shape), indices), {"spatial": shape[1:-1], **OPTIONS}


def average_backward_inputs(rng, shape):
    """Gradients for images of `shape`."""
    n, *spatial, c = shape
    outputs = ((size - 1) // 2 + 1 for size in spatial)
    return (_image(rng, (n, *outputs, c)),), {"spatial": tuple(spatial), **OPTIONS}


def register(rows: dict) -> None:
    """Give the four primitives their samples and benchmark inputs."""
    for row in rows.values():
        row.bench_shapes = BENCH_SHAPES
    rows["max_pool_forward"].samples(max_forward_samples)
    rows["max_pool_forward"].inputs(forward_inputs)
    rows["avg_pool_forward"].samples(average_forward_samples)
    rows["avg_pool_forward"].inputs(forward_inputs)
    made = rows["max_pool_backward"]
    made.samples(functools.partial(max_backward_samples, made))
    made.inputs(functools.partial(max_backward_inputs, made))
    made = rows["avg_pool_backward"]
    made.samples(functools.partial(average_backward_samples, made))
    made.inputs(average_backward_inputs)
