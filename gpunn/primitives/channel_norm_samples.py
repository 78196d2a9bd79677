"""Batch, group and instance norm: parity samples and benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.samples import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOATING,
    Accumulator,
    Fixed,
    Sample,
)

_ONE, _LOW = (FLOAT32,), (FLOAT16, BFLOAT16)
_FAR = {FLOAT32: 1e-3}  # as much as the float32 nearest to a mean of 10^4 is away from it


def _affine(rng, channels, wide=False):
    kind = Accumulator if wide else np.asarray
    return kind(1 + 0.5 * rng.normal(size=channels)), kind(0.5 * rng.normal(size=channels))


def _running(rng, channels, wide=False):
    kind = Accumulator if wide else np.asarray
    mean, variance = rng.normal(size=channels), 0.5 + rng.random(channels)
    return {"running_mean": kind(mean), "running_var": kind(variance)}


def _batch_cases(rng):
    """(name, x, more arguments, whether weights are wide, further arguments of Sample)."""
    small, large = {"dtypes": FLOATING}, {"dtypes": FLOATING, "numba": False}
    first = {"channels_last": False}
    yield "9x24", rng.normal(size=(9, 24)), {}, False, large
    yield "odd 2x2x3x5", rng.normal(size=(2, 2, 3, 5)), {"activation": "hard_swish"}, True, small
    yield "2x3x17 first", rng.normal(size=(2, 3, 17)), {**first, "activation": "silu"}, True, small
    yield "6x5 first", rng.normal(size=(6, 5)), first, False, {"numba": False}
    yield (
        "one channel",
        rng.normal(size=(40, 1)),
        {"activation": "leaky_relu"},
        False,
        {"numba": False},
    )
    x = rng.normal(size=(5, 8, 6)).transpose(0, 2, 1)
    yield "transposed view", x, {"activation": "hard_swish"}, False, {"numba": False}
    yield "unaligned", rng.normal(size=(33, 8)), {}, False, {"unaligned": True, "numba": False}
    # Several parts of few channels, several tiles of many, several rows and parts of long rows.
    yield "3000x8", rng.normal(size=(3000, 8)), {"activation": "relu"}, True, large
    yield "40x264", rng.normal(size=(40, 264)), {}, False, large
    yield "3x2x9001 first", 1 + rng.normal(size=(3, 2, 9001)), first, True, large
    more = {**first, "activation": "relu"}
    yield "50x3x49 first", rng.normal(size=(50, 3, 49)), more, False, large


def batch_forward_samples(rng):
    """Training with and without running statistics, evaluation, residuals, values at the edge."""
    for name, x, more, wide, options in _batch_cases(rng):
        channels = x.shape[1 if more.get("channels_last") is False else -1]
        arguments = (x, *_affine(rng, channels, wide))
        statistics = _running(rng, channels, wide)
        count = Fixed(np.array(3))
        more = {**more, **statistics, "num_batches_tracked": count}
        residual = None if wide else rng.normal(size=x.shape)
        yield Sample(name, arguments, {**more, "residual": residual}, **options)
        more = {**more, "training": False, "eps": 1e-3, "residual": x if wide else None}
        if x.size < 1000 or "first" in name:
            options = {**options, "dtypes": options.get("dtypes", _ONE)[1:3] or _ONE}
            options["numba"] = name.startswith("odd")
            yield Sample(f"{name}, evaluation", arguments, more, **options)
    x = rng.normal(size=(6, 4))
    more = {**_running(rng, 4), "num_batches_tracked": Fixed(np.array(4)), "momentum": None}
    yield Sample("average of all batches", (x,), more)
    yield Sample("no weight", (x, None, np.arange(4.0)), {"momentum": 1.0}, numba=False)
    # No variance, and what is not finite: there, running statistics become NaN.
    x[:, 0], x[2, 1], x[3, 2], x[3, 3] = 3.0, np.nan, np.inf, -np.inf
    yield Sample("at the edge", (x, *_affine(rng, 4)), _running(rng, 4), FLOATING, numba=False)
    first = {"channels_last": False}
    for name, shape, more in (("", (3000, 4), {}), (", first", (2, 2, 9000), first)):
        x = 1e4 + rng.normal(size=shape)
        yield Sample(f"far off{name}", (x,), more, _ONE, tolerance=_FAR, numba=False)
    x = rng.normal(size=(3000, 4))
    x[0] = 1e4  # a first value that is no good as a shift
    yield Sample("an outlier first", (x,), {}, _ONE, numba=False)


def _statistics(x, axes, eps=1e-5):
    mean = x.mean(axes, keepdims=True)
    reciprocal = 1 / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + eps)
    return mean, reciprocal


def batch_backward_samples(rng):
    """The same arrays with a gradient, in training and in evaluation."""
    for name, x, more, wide, options in _batch_cases(rng):
        axis = 1 if more.get("channels_last") is False else x.ndim - 1
        axes, channels = tuple(i for i in range(x.ndim) if i != axis), x.shape[axis]
        statistics = [Accumulator(a.reshape(channels)) for a in _statistics(x, axes)]
        affine = _affine(rng, channels, wide)
        grad = 1 + x + rng.normal(size=x.shape)  # so that no sum is near 0
        residual = None if wide else rng.normal(size=x.shape)
        more = {**more, "residual": residual}
        yield Sample(name, (grad, x, *statistics, *affine), more, **options)
        if x.size < 1000 or "first" in name:
            running = _running(rng, channels, wide).values()
            more = {**more, "training": False, "residual": None}
            options = {**options, "dtypes": options.get("dtypes", _ONE)[1:3] or _ONE}
            options["numba"] = name.startswith("odd")
            yield Sample(f"{name}, evaluation", (grad, x, *running, *affine), more, **options)
    x = rng.normal(size=(9, 4))
    statistics = [Accumulator(a.reshape(4)) for a in _statistics(x, (0,))]
    grad = rng.normal(size=(9, 4))
    for name, sums in (("no sums", (False, False)), ("bias alone", (False, True))):
        more = dict(zip(("weight_gradient", "bias_gradient"), sums, strict=True))
        yield Sample(name, (grad, x, *statistics), more, numba=False)
    grad[1, 1], grad[2, 2] = np.nan, np.inf
    yield Sample("not finite", (grad, x, *statistics), {}, FLOATING, numba=False)
    x[0, 0] = np.inf  # nothing to the gradient of what is evaluated
    running, more = _running(rng, 4).values(), {"training": False}
    yield Sample("infinite, evaluation", (grad, x, *running), more, numba=False)
    more = {**more, "channels_last": False}
    first = (grad.T[None], x.T[None], *running)
    yield Sample("infinite, evaluation, first", first, more, numba=False)
    arguments = (np.zeros((0, 4)), np.zeros((0, 4)), *_running(rng, 4).values(), *_affine(rng, 4))
    yield Sample("nothing", arguments, {"training": False})


def _group_cases(rng):
    """(name, x, groups, more arguments, whether weights are wide, further arguments of Sample)."""
    small, large = {"dtypes": FLOATING}, {"dtypes": FLOATING, "numba": False}
    first = {"channels_last": False}
    yield "2x3x6", rng.normal(size=(2, 3, 6)), 3, {"activation": "silu"}, True, small
    yield "2x3x24", rng.normal(size=(2, 3, 24)), 3, {"activation": "silu"}, False, large
    more = {**first, "activation": "relu"}
    yield "2x4x5 first", rng.normal(size=(2, 4, 5)), 2, more, False, small
    yield "instances 2x7x6", rng.normal(size=(2, 7, 6)), 6, {}, False, {"numba": False}
    yield "one group 4x6", rng.normal(size=(4, 6)), 1, first, False, {"numba": False}
    x = 1 + rng.normal(size=(2, 2000, 8))
    yield "2x2000x8", x, 2, {"activation": "hard_swish"}, True, large
    yield "1x4x9001 first", 1 + rng.normal(size=(1, 4, 9001)), 2, first, True, large


def group_forward_samples(rng):
    """Groups of several channels and of one, with running statistics, both layouts."""
    for name, x, groups, more, wide, options in _group_cases(rng):
        channels = x.shape[1 if more.get("channels_last") is False else -1]
        residual = None if wide else rng.normal(size=x.shape)
        arguments = (x, groups, *_affine(rng, channels, wide))
        yield Sample(name, arguments, {**more, "residual": residual}, **options)
    first = {"momentum": None, "channels_last": False}
    for name, x, more in (
        ("running", rng.normal(size=(3, 9, 4)), {"momentum": 0.3}),
        ("running, average, first", rng.normal(size=(3, 4, 4)), first),
    ):
        more = {**more, **_running(rng, 4, True), "num_batches_tracked": Fixed(np.array(2))}
        yield Sample(name, (x, 4), more, FLOATING, numba="first" in name)
    x = 1e4 + rng.normal(size=(2, 300, 4))
    yield Sample("far off", (x, 2), {}, _ONE, tolerance=_FAR, numba=False)
    x = rng.normal(size=(3, 4, 4))
    x[0], x[1, 1, 1] = 2.0, np.inf
    yield Sample("at the edge", (x, 2), {}, FLOATING, numba=False)
    yield Sample("nothing", (np.zeros((0, 3, 4)), 2))


def group_backward_samples(rng):
    """The same arrays with a gradient."""
    for name, x, groups, more, wide, options in _group_cases(rng):
        last = more.get("channels_last") is not False
        channels = x.shape[-1 if last else 1]
        sets = (x.swapaxes(1, -1) if last else x).reshape(len(x), groups, -1)
        statistics = [Accumulator(a.reshape(len(x), groups)) for a in _statistics(sets, (2,))]
        grad = 1 + x + rng.normal(size=x.shape)  # so that no sum is near 0
        residual = None if wide else rng.normal(size=x.shape)
        arguments = (grad, x, *statistics, groups, *_affine(rng, channels, wide))
        yield Sample(name, arguments, {**more, "residual": residual}, **options)
    x, grad = rng.normal(size=(2, 3, 2, 4))
    statistics = [Accumulator(a.reshape(3, 2)) for a in _statistics(x.reshape(3, 2, 4), (2,))]
    statistics = [Accumulator(a.array[:, :1]) for a in statistics]
    more = {"weight_gradient": False, "bias_gradient": False}
    yield Sample("no sums", (grad, x, *statistics, 1), more, numba=False)
    nothing = np.zeros((0, 3, 4))
    statistics = [Accumulator(np.zeros((0, 2)))] * 2
    yield Sample("nothing", (nothing, nothing, *statistics, 2))


# ---- benchmark inputs ----------------------------------------------------------------------------


def _image(rng, shape, count):
    """Arrays (N, places, C) and the vectors of C channels."""
    arrays = rng.standard_normal((count, *shape), dtype=np.float32)
    return (*arrays, *(rng.standard_normal((2, shape[-1]), dtype=np.float32)))


def batch_forward_inputs(rng, shape):
    """Benchmark inputs of batch_norm_forward: training, with a ReLU."""
    x, weight, bias = _image(rng, shape, 1)
    running = {"running_mean": np.zeros_like(weight), "running_var": np.ones_like(weight)}
    return (x, weight, bias), {**running, "activation": "relu"}


def batch_backward_inputs(rng, shape):
    """Benchmark inputs of batch_norm_backward."""
    grad, x, weight, bias = _image(rng, shape, 2)
    statistics = _statistics(x.reshape(-1, shape[-1]), (0,))
    statistics = (a.reshape(-1).astype(np.float32) for a in statistics)
    return (grad, x, *statistics, weight, bias), {"activation": "relu"}


def groups_of(shape) -> int:
    """32 groups if they divide the channels, else one."""
    return 32 if shape[-1] % 32 == 0 else 1


def group_forward_inputs(rng, shape):
    """Benchmark inputs of group_norm_forward."""
    x, weight, bias = _image(rng, shape, 1)
    return (x, groups_of(shape), weight, bias), {"activation": "silu"}


def group_backward_inputs(rng, shape):
    """Benchmark inputs of group_norm_backward."""
    grad, x, weight, bias = _image(rng, shape, 2)
    groups = groups_of(shape)
    sets = x.reshape(shape[0], -1, groups, shape[-1] // groups)
    mean, reciprocal = (a.reshape(-1, groups) for a in _statistics(sets, (1, 3)))
    statistics = (mean.astype(np.float32), reciprocal.astype(np.float32))
    return (grad, x, *statistics, groups, weight, bias), {"activation": "silu"}


# (samples, places, channels): the layers of a ResNet-50, of a small network, rows without places.
BATCH_SHAPES = (
    (64, 56 * 56, 256), (64, 112 * 112, 64), (64, 28 * 28, 512), (64, 14 * 14, 1024),
    (64, 7 * 7, 2048), (512, 32 * 32, 64), (8192, 1, 1024), (8, 512 * 512, 8),
)  # fmt: skip

# Those of a diffusion U-Net, and of a small network.
GROUP_SHAPES = (
    (16, 64 * 64, 320), (16, 32 * 32, 640), (16, 16 * 16, 1280), (16, 8 * 8, 1280),
    (4, 256 * 256, 128), (1, 512 * 512, 128), (512, 16 * 16, 128), (64, 7 * 7, 512),
)  # fmt: skip
