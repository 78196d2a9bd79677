"""Batch norm by the values of several ranks: parity samples and benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.channel_norm_samples import (
    _FAR,
    _ONE,
    BATCH_SHAPES,
    _affine,
    _image,
    _running,
)
from gpunn.primitives.samples import FLOATING, Accumulator, Fixed, Sample

__all__ = ["BATCH_SHAPES"]

# ---- parity samples ------------------------------------------------------------------------------


def _axis(x, more):
    return 1 if more.get("channels_last") is False else x.ndim - 1


def _moments(x, axis):
    """(C, 3)"""
    axes = tuple(i for i in range(x.ndim) if i != axis)
    mean = x.mean(axes, keepdims=True)
    squares = ((x - mean) ** 2).sum(axes)
    count = np.full(x.shape[axis], x.size / x.shape[axis])
    return np.stack([count, mean.reshape(-1), squares], -1)


def _ranks(x, axis):
    """(4, C, 3): of x, of nothing, of a single value, and of some that lie elsewhere."""
    own = _moments(x, axis)
    channels = np.arange(len(own))
    nothing = np.zeros_like(own)
    one = np.stack([np.ones(len(own)), 0.5 + channels % 3, np.zeros(len(own))], -1)
    more = np.stack([own[:, 0] + 7, 1.0 + channels % 2, 4.0 + channels % 5], -1)
    return np.stack([own, nothing, one, more])


def _statistics(moments):
    """(mean, variance, count) of all ranks."""
    counts, means, squares = np.moveaxis(moments, -1, 0)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return mean, (squares + counts * (means - mean) ** 2).sum(0) / count, count


def _cases(rng):
    """(name, x, more arguments, whether weights are wide, further arguments of Sample).

    What batch norm has samples of is not done again: all ways to cut up x, once in each dtype.
    """
    every, one = {"dtypes": FLOATING}, {"numba": False}
    first, relu = {"channels_last": False}, {"activation": "relu"}
    for name, shape, more, wide, options in (
        ("9x24", (9, 24), relu, False, {**every, "numba": False}),
        ("odd 2x2x3x5", (2, 2, 3, 5), {"activation": "hard_swish"}, True, every),
        ("2x3x17 first", (2, 3, 17), {**first, "activation": "silu"}, True, every),
        ("9x3x7 first", (9, 3, 7), first, False, {}),
        ("unaligned", (33, 8), {"activation": "leaky_relu"}, False, {**one, "unaligned": True}),
        # Several parts of few channels, several tiles of many, several parts of long rows.
        ("1100x8", (1100, 8), relu, True, one),
        ("6x264", (6, 264), {}, False, one),
        ("2x1x5001 first", (2, 1, 5001), {**first, **relu}, False, one),
        ("nothing", (0, 5), relu, False, every),
        ("nothing, first", (0, 5, 3), first, False, {}),
    ):
        x = rng.normal(size=shape)
        residual = None if wide else rng.normal(size=shape)
        yield name, x, {**more, "residual": residual}, wide, options


def moments_samples(rng):
    """All layouts and lengths, values far from 0, values that are not finite."""
    for name, x, more, _, options in _cases(rng):
        more = {name: value for name, value in more.items() if name == "channels_last"}
        yield Sample(name, (x,), more, **options)
    x = 1e4 + rng.normal(size=(900, 4))
    yield Sample("far off", (x,), {}, _ONE, tolerance=_FAR, numba=False)
    x = rng.normal(size=(6, 4))
    x[2, 1], x[3, 2], x[3, 3], x[:, 0] = np.nan, np.inf, -np.inf, 3.0
    for name, value in (("at the edge", x), ("a single value each", x[:1])):
        yield Sample(name, (value,), {}, _ONE)


def forward_samples(rng):
    """Four ranks, one, and a hundred; with and without running statistics and residuals."""
    for name, x, more, wide, options in _cases(rng):
        axis = _axis(x, more)
        channels = x.shape[axis]
        moments = _ranks(x, axis) if x.size else _ranks(np.ones((3, channels)), 1)
        running = {**_running(rng, channels, wide), "num_batches_tracked": Fixed(np.array(3))}
        arguments = (x, Accumulator(moments), *_affine(rng, channels, wide))
        yield Sample(name, arguments, {**more, **running}, **options)
    x = rng.normal(size=(6, 4))
    alone, many = Accumulator(_ranks(x, 1)[:1]), 1 + rng.random((100, 4, 3))
    more = {**_running(rng, 4), "num_batches_tracked": Fixed(np.array(4)), "momentum": None}
    yield Sample("one rank, average of all batches", (x, alone), more)
    yield Sample("a hundred ranks", (x, Accumulator(many), None, np.arange(4.0)), {"eps": 1e-3})
    one = np.array([[[1.0, 0.5, 0.0]] * 4])
    yield Sample("a single value in all", (x[:1], Accumulator(one)), _running(rng, 4))
    many[3, 1, 2] = np.nan
    yield Sample("at the edge", (x, Accumulator(many)), _running(rng, 4), (FLOATING[3],))


def _backward_cases(rng):
    """(name, gradient, x, (mean, variance, count), weights, more, options)"""
    for name, x, more, wide, options in _cases(rng):
        axis = _axis(x, more)
        channels = x.shape[axis]
        moments = _ranks(x, axis) if x.size else _ranks(np.ones((3, channels)), 1)
        statistics = [Accumulator(array) for array in _statistics(moments)]
        grad = 1 + x + rng.normal(size=x.shape)  # so that no sum is near 0
        yield name, grad, x, statistics, _affine(rng, channels, wide), more, options


def sums_samples(rng):
    """The same arrays with a gradient; sums that are not wanted."""
    for name, grad, x, statistics, affine, more, options in _backward_cases(rng):
        yield Sample(name, (grad, x, *statistics, *affine), more, **options)
    x, grad = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    statistics = [Accumulator(array) for array in _statistics(_ranks(x, 1))]
    for name, sums in (("no sums", (False, False)), ("bias alone", (False, True))):
        more = dict(zip(("weight_gradient", "bias_gradient"), sums, strict=True))
        yield Sample(name, (grad, x, *statistics), more, numba=False)
    grad[1, 1], grad[2, 2] = np.nan, np.inf
    yield Sample("not finite", (grad, x, *statistics), {}, FLOATING[:3], numba=False)


def backward_samples(rng):
    """The same arrays with the sums of all ranks."""
    for name, grad, x, (mean, variance, _), affine, more, options in _backward_cases(rng):
        means = Accumulator(rng.normal(size=(len(mean.array), 2)))
        more = {key: value for key, value in more.items() if key != "residual"}
        yield Sample(name, (grad, x, mean, variance, means, *affine), more, **options)


# ---- benchmark inputs ----------------------------------------------------------------------------


def _wide(*arrays):
    return [array.astype(np.float32) for array in arrays]


def moments_inputs(rng, shape):
    """Benchmark inputs of sync_batch_norm_moments."""
    return _image(rng, shape, 1)[:1], {}


def forward_inputs(rng, shape):
    """Benchmark inputs of sync_batch_norm_forward: of eight ranks that have the same, a ReLU."""
    x, weight, bias = _image(rng, shape, 1)
    moments = np.repeat(_moments(x, 2)[None], 8, 0)
    running = {"running_mean": np.zeros_like(weight), "running_var": np.ones_like(weight)}
    return (x, *_wide(moments), weight, bias), {**running, "activation": "relu"}


def sums_inputs(rng, shape):
    """Benchmark inputs of sync_batch_norm_sums."""
    grad, x, weight, bias = _image(rng, shape, 2)
    statistics = _wide(*_statistics(_moments(x, 2)[None]))
    return (grad, x, *statistics, weight, bias), {"activation": "relu"}


def backward_inputs(rng, shape):
    """Benchmark inputs of sync_batch_norm_backward."""
    grad, x, weight, bias = _image(rng, shape, 2)
    mean, variance, _ = _wide(*_statistics(_moments(x, 2)[None]))
    means = rng.standard_normal((shape[-1], 2), dtype=np.float32) / 8
    return (grad, x, mean, variance, means, weight, bias), {"activation": "relu"}
