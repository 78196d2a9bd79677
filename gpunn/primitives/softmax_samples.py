"""Softmax and log-softmax: parity samples and benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.samples import FLOAT32, FLOAT64, FLOATING, Sample
from gpunn.primitives.softmax_implementation import compute_log_softmax, compute_softmax


def _masked(rng, shape, share: float):
    """Normal numbers, a share of them -inf; column 0 of every row is not."""
    x = rng.normal(size=shape)
    x[..., 1:][rng.random(x[..., 1:].shape) < share] = -np.inf
    return x


def _rows(rng):
    """(name, x, dtypes, numba): rows for every kernel, and values at the edge."""
    one = (FLOAT32,)
    yield "one element", rng.normal(size=(1, 1)), FLOATING, True
    yield "no rows", np.zeros((0, 4)), one, True
    yield "a single row without a batch axis", rng.normal(size=(7,)), one, True
    yield "8x10", 3 * rng.normal(size=(8, 10)), FLOATING, True
    yield "2x3x64", rng.normal(size=(2, 3, 64)), one, True
    yield "odd 3x257", 3 * rng.normal(size=(3, 257)), FLOATING, True
    yield "strided view", rng.normal(size=(5, 22))[:, ::2], one, True
    yield "transposed view", rng.normal(size=(9, 6)).T, one, True
    yield "masked", _masked(rng, (4, 40), 0.5), FLOATING, True
    yield "masked 2x1500", _masked(rng, (2, 1500), 0.9), FLOATING, False
    yield "large", np.array([[6e4, 5.9e4, -6e4, 0.0], [-6e4, -6e4, -6e4, -5.99e4]]), FLOATING, True
    # Longer than the registers of a block. A block, or a cluster of 2, 4 or 8, of an H200 holds the
    # row; a chip without clusters makes parts of those that are few.
    first_half = rng.normal(size=(3, 17001))
    first_half[:, :9000] = -np.inf
    yield "3x17001, the first half masked", first_half, FLOATING, False
    yield "3x9000", 3 * rng.normal(size=(3, 9000)), FLOATING, False
    yield "3x4500", 3 * rng.normal(size=(3, 4500)), FLOATING, False
    yield "1x36000", 3 * rng.normal(size=(1, 36000)), FLOATING, False
    yield "1x72000", 3 * rng.normal(size=(1, 72000)), FLOATING, False
    # So many rows that a block is enough for each.
    yield "67x8200", rng.normal(size=(67, 8200)), one, False
    yield "67x4200", rng.normal(size=(67, 4200)), one, False
    yield "67x2101", rng.normal(size=(67, 2101)), (FLOAT64,), False
    # More than a cluster holds.
    yield "1x470000", 3 * rng.normal(size=(1, 470_000)), (FLOAT32, FLOAT64), False
    yield "1x930000", 3 * rng.normal(size=(1, 930_000)), tuple(FLOATING[:2]), False


def forward_samples(rng):
    """Rows for every kernel, rows at the edge, and rows that become NaN."""
    for name, x, dtypes, numba in _rows(rng):
        yield Sample(name, (x,), dtypes=dtypes, numba=numba)
    edge = np.full((5, 6), 0.5)
    edge[0] = -np.inf  # NaN
    edge[1, 2], edge[2, 3], edge[3, 4] = np.inf, np.nan, -np.inf
    yield Sample("rows that become NaN", (edge,), dtypes=FLOATING)


def backward_samples(log: bool):
    """The same rows as outputs of softmax or log-softmax, with a gradient."""

    def samples(rng):
        for name, x, dtypes, numba in _rows(rng):
            grad = rng.normal(size=x.shape)
            y = np.empty(x.shape)
            (compute_log_softmax if log else compute_softmax)(x, y, -1)
            if not x.flags.c_contiguous:  # keep what the sample is about
                y = _laid_out_as(y, x)
            yield Sample(name, (grad, y), dtypes=dtypes, numba=numba)
        broken = np.array([[0.5, np.nan, 1.0], [0.5, 1.0, -2.0]])
        y = np.full((2, 3), -1.0 if log else 1 / 3)
        yield Sample("not a number", (broken, y), dtypes=FLOATING)

    return samples


def _laid_out_as(y, x):
    view = np.empty_like(x, subok=False) if x.T.flags.c_contiguous else np.zeros((5, 22))[:, ::2]
    view[...] = y
    return view


def forward_inputs(rng, shape):
    """Benchmark inputs of the forward kernels."""
    return (rng.standard_normal(shape, dtype=np.float32),), {}


def softmax_backward_inputs(rng, shape):
    """Benchmark inputs of softmax_backward."""
    y = rng.random(shape, dtype=np.float32)
    y /= y.sum(axis=-1, keepdims=True)
    return (rng.standard_normal(shape, dtype=np.float32), y), {}


def log_softmax_backward_inputs(rng, shape):
    """Benchmark inputs of log_softmax_backward."""
    y = rng.standard_normal(shape, dtype=np.float32)
    compute_log_softmax(y, y, -1)
    return (rng.standard_normal(shape, dtype=np.float32), y), {}


# The usual size, and rows from 1 to 10^6 long: a thread, a part of a warp, a block, a cluster.
BENCH_SHAPES = (
    (65536, 1024), (1 << 24, 1), (1 << 21, 10), (1 << 18, 128), (16384, 4096), (4096, 16384),
    (512, 131072), (64, 1_000_000),
)  # fmt: skip
