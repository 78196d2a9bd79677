"""Layer norm and RMS norm: parity samples and benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.samples import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOATING,
    Accumulator,
    Sample,
)

_ONE = (FLOAT32,)
_LOW = (FLOAT16, BFLOAT16)


def _cases(rng, centred):
    """(name, x, {"weight": …, "residual": …}, further arguments of Sample)."""

    def vector(cols):
        return 1 + 0.5 * rng.normal(size=cols)

    x, residual = rng.normal(size=(2, 1, 1))
    yield "one element", x, {"weight": vector(1), "residual": residual}, {}
    yield "no rows", np.zeros((0, 4)), {"weight": vector(4)}, {}
    yield "a row without a batch axis", rng.normal(size=7), {}, {}
    x = rng.normal(size=(9, 24))
    yield "9x24", x, {"weight": vector(24)}, {"dtypes": FLOATING, "numba": False}
    x, residual = rng.normal(size=(2, 2, 3, 24))
    more = {"weight": Accumulator(vector(24)), "residual": residual}
    yield "2x3x24, wide weights, a residual", x, more, {"dtypes": FLOATING}
    x = rng.normal(size=(5, 22))[:, ::2]
    yield "strided view", x, {"weight": vector(11)}, {}
    # Odd lengths: packs that begin outside the row. All groups of a block, several rounds.
    x, residual = rng.normal(size=(2, 3, 261))
    more = {"weight": vector(261), "residual": residual}
    yield "odd 3x261", x, more, {"dtypes": FLOATING, "numba": False}
    x = rng.normal(size=(4, 40))
    yield "unaligned", x, {"weight": vector(40)}, {"unaligned": True, "numba": False}
    x = rng.normal(size=(3, 2, 1040))
    more = {"weight": Accumulator(vector(1040)), "residual": x[1:]}
    yield "2x1040", x[0], {**more, "residual": x[1]}, {"dtypes": FLOATING, "numba": False}
    # Longer than registers: a block where rows are many, else clusters of 2, 4 and 8. The kernels
    # of RMS norm are the same: one length shows them without a mean.
    long = (67, 2101, (FLOAT64,)), (2, 17001, FLOATING), (1, 72000, (BFLOAT16, FLOAT32))
    for rows, cols, dtypes in long if centred else ((2, 17001, (FLOAT16, FLOAT32)),):
        x = 0.5 + rng.normal(size=(rows, cols))
        more = {"weight": vector(cols)}
        yield f"{rows}x{cols}", x, more, {"dtypes": dtypes, "numba": False}
    x, residual = rng.normal(size=(2, 1, 20011))
    more = {"weight": Accumulator(vector(20011)), "residual": residual}
    yield "1x20011 with a residual", x, more, {"dtypes": _LOW[:1], "numba": False}


def _statistics(x, eps, centred):
    """(mean, reciprocal) of rows in float64."""
    mean = x.mean(-1) if centred else np.zeros(x.shape[:-1])
    with np.errstate(all="ignore"):
        reciprocal = 1 / np.sqrt(((x - mean[..., None]) ** 2).mean(-1) + eps)
    return np.asarray(mean), np.asarray(reciprocal)


def forward_samples(centred: bool):
    """Rows for every kernel, and rows at the edge."""

    def samples(rng):
        for name, x, more, options in _cases(rng, centred):
            weight, residual = more.get("weight"), more.get("residual")
            kwargs = {"eps": 1e-5, "residual": residual, "weight": weight}
            if centred and weight is not None:
                wide = isinstance(weight, Accumulator)
                bias = rng.normal(size=x.shape[-1])
                kwargs["bias"] = Accumulator(bias) if wide else bias
            yield Sample(name, (x,), kwargs, **options)
        for shape in ((5, 24), (3, 261), (2, 1040)):  # a float32 residual
            x, residual = rng.normal(size=(2, *shape))
            kwargs = {"residual": Accumulator(residual), "weight": Accumulator(residual[0])}
            yield Sample(f"{shape} into a wide stream", (x,), kwargs, _LOW, numba=False)
        x = rng.normal(size=(4, 24))
        yield Sample("no statistics", (x,), {"keep_statistics": False, "out": np.zeros((4, 24))})
        x[0] = 3.0  # no variance at all
        x[1] *= 1e-20
        x[2, 5] = np.nan
        yield Sample("rows at the edge", (x,), {"eps": 1e-5}, FLOATING)
        far = {FLOAT32: 1e-3}  # as much as the float32 nearest to the mean is away from it
        for name, shape in (("far off", (3, 64)), ("far off, long", (1, 9000))):
            x = 1e4 + rng.normal(size=shape)
            yield Sample(name, (x,), {}, _ONE, tolerance=far, numba=shape[-1] < 100)

    return samples


def backward_samples(centred: bool):
    """The same rows with a gradient and the statistics of a forward call."""

    def samples(rng):
        for name, x, more, options in _cases(rng, centred):
            mean, reciprocal = _statistics(x, 1e-5, centred)
            statistics = [Accumulator(reciprocal)]
            if centred:
                statistics.insert(0, Accumulator(mean))
            args = (rng.normal(size=x.shape), x, *statistics, more.get("weight"))
            kwargs = {"grad_residual": more.get("residual")}
            yield Sample(name, args, kwargs, **options)
        x = rng.normal(size=(300, 16))  # more rows than one round of a block holds
        mean, reciprocal = map(Accumulator, _statistics(x, 1e-5, centred))
        statistics = (mean, reciprocal) if centred else (reciprocal,)
        args = (rng.normal(size=x.shape), x, *statistics, 1 + rng.normal(size=16))
        yield Sample("many rows", args, dtypes=FLOATING, numba=False)
        kwargs = {"weight_gradient": False}
        if centred:
            yield Sample("bias alone", args, kwargs, numba=False)
            kwargs = {**kwargs, "bias_gradient": False}
        yield Sample("no sums", args, kwargs, numba=False)
        broken = rng.normal(size=(2, 9))
        broken[0, 1] = np.nan
        x = rng.normal(size=(2, 9))
        mean, reciprocal = map(Accumulator, _statistics(x, 1e-5, centred))
        statistics = (mean, reciprocal) if centred else (reciprocal,)
        yield Sample("not a number", (broken, x, *statistics), dtypes=FLOATING, numba=False)

    return samples


def forward_inputs(centred: bool):
    """Benchmark inputs of the forward kernels."""

    def inputs(rng, shape):
        x = rng.standard_normal(shape, dtype=np.float32)
        vectors = rng.standard_normal((2 if centred else 1, shape[-1]), dtype=np.float32)
        return (x, *vectors), {}

    return inputs


def backward_inputs(centred: bool):
    """Benchmark inputs of the backward kernels."""

    def inputs(rng, shape):
        grad, x = rng.standard_normal((2, *shape), dtype=np.float32)
        weight = rng.standard_normal(shape[-1], dtype=np.float32)
        mean, reciprocal = _statistics(x, 1e-5, centred)
        statistics = (mean, reciprocal) if centred else (reciprocal,)
        return (grad, x, *(s.astype(np.float32) for s in statistics), weight), {}

    return inputs


# The usual widths of transformers, and rows from 8 to 10^6 long.
BENCH_SHAPES = (
    (8192, 768), (1 << 20, 8), (1 << 18, 128), (16384, 1024), (8192, 4096), (4096, 8192),
    (1024, 65536), (64, 1_000_000),
)  # fmt: skip
