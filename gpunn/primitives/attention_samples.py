"""Attention: parity samples and benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.registry import intercepting, using
from gpunn.primitives.samples import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Accumulator,
    Fixed,
    Sample,
)

_WIDE = (FLOAT32, FLOAT64)

# Sums of float32 exponentials and of products of up to 256 terms, weighted again.
_TOLERANCE = {FLOAT32: 3e-6, FLOAT64: 1e-12, FLOAT16: 1.5e-3, BFLOAT16: 8e-3}


def _qkv(rng, batch, queries, keys, heads, kv_heads, dim):
    return (
        rng.normal(size=(batch, queries, heads, dim)),
        rng.normal(size=(batch, keys, kv_heads, dim)),
        rng.normal(size=(batch, keys, kv_heads, dim)),
    )


def _cases(rng):
    """(name, (B, Tq, Tk, H, Hkv, D), options, further arguments of Sample)

    Of the sizes of a head on tensor cores float16 has only the first and bfloat16 the others, so
    that fewer kernels are compiled; what differs by size and by type is reached all the same.
    """
    lengths = {
        "q_lengths": Fixed(np.array([3, 0, 2], np.int32)),
        "kv_lengths": Fixed(np.array([5, 2, 0], np.int32)),
    }
    hidden = rng.random((2, 1, 3, 5)) < 0.6
    hidden[0, 0, 2] = False  # a query that sees nothing
    added = np.where(rng.random((2, 3, 6)) < 0.2, -np.inf, rng.normal(size=(2, 3, 6)))
    drop = {"dropout_p": 0.3, "seed": (7 << 40) + 3, "offset": 5}
    # The seed and most of the offset in device memory.
    counter = Fixed(np.array([(7 << 40) + 3, (1 << 40) + 2], np.uint64))
    counted = {"dropout_p": 0.3, "offset": 3, "counter": counter}
    causal, every = {"causal": True}, {"dtypes": (FLOAT16, *_WIDE)}
    some = {"dtypes": (FLOAT16, FLOAT32), "numba": False}
    shifts = {"causal": True, "causal_offset": Fixed(np.array([2, 7], np.int32)), "window": 6}
    at_once = {"mask": rng.random((2, 1, 3, 5)) < 0.8, **shifts, **counted}
    at_once["kv_lengths"] = Fixed(np.array([5, 4], np.int32))
    yield "one", (1, 1, 1, 1, 1, 1), {}, every
    yield "no batch", (0, 3, 4, 2, 2, 8), {}, {}
    yield "no keys", (2, 3, 0, 2, 1, 8), {}, {"dtypes": (FLOAT16, FLOAT32)}
    yield "no queries", (1, 0, 3, 2, 1, 8), {}, {"dtypes": (FLOAT16, FLOAT32)}
    yield "odd", (1, 4, 5, 2, 1, 5), causal, every
    yield "lengths", (3, 3, 5, 2, 1, 8), lengths, some
    yield "mask", (2, 3, 5, 2, 1, 8), {"mask": hidden}, some
    yield "added mask", (1, 3, 6, 2, 2, 8), {"mask": added, "scale": 0.7}, {**some, "numba": True}
    yield "dropout", (2, 3, 6, 1, 1, 8), {**drop, **causal}, {**every, "numba": False}
    yield "all dropped", (1, 2, 3, 1, 1, 8), {"dropout_p": 1.0}, {}
    yield "at once", (2, 3, 5, 2, 1, 3), at_once, {"dtypes": (FLOAT16, FLOAT32)}
    # Several tiles, heads that fill the registers, and what is skipped.
    big = {"numba": False}
    yield "tiles", (1, 130, 131, 2, 1, 64), causal, {**big, **every}
    window = {"causal": True, "causal_offset": 70, "window": 40}
    yield "window", (1, 70, 150, 1, 1, 33), window, {**big, "dtypes": (FLOAT32, FLOAT16)}
    low = {**big, "dtypes": (BFLOAT16, FLOAT32)}
    # A shift beyond the keys: a window that begins within them, and one that lies behind them.
    shifts = {"causal": True, "causal_offset": Fixed(np.array([-3, 95, 300], np.int32))}
    yield "shifts", (3, 40, 90, 1, 1, 96), {**shifts, "window": 70}, low
    yield "large heads", (1, 40, 70, 1, 1, 256), {}, {**big, "dtypes": (BFLOAT16, *_WIDE)}
    drop = {**counted, "kv_lengths": Fixed(np.array([61], np.int32))}
    yield "dropout in tiles", (1, 33, 70, 4, 2, 72), drop, low
    few = {**big, "dtypes": (BFLOAT16,)}
    yield "hidden in tiles", (1, 20, 40, 2, 1, 72), {"mask": rng.random((20, 40)) < 0.6}, few


def _decoding():
    """Few queries and many keys: the keys in parts."""
    sizes = (1, 1, 600, 4, 1)
    yield "decoding", (*sizes, 64), {}, {"numba": False, "dtypes": (FLOAT16, *_WIDE)}
    yield "decoding, 16 bits", (*sizes, 128), {}, {"numba": False, "dtypes": (BFLOAT16,)}


def forward_samples(rng):
    """Shapes, masks and options, sizes of several tiles, and a score that is not a number."""
    for name, sizes, options, more in (*_cases(rng), *_decoding()):
        yield Sample(name, _qkv(rng, *sizes), options, tolerance=_TOLERANCE, **more)
    yield Sample("not kept", _qkv(rng, 1, 3, 4, 1, 1, 8), {"keep": False}, tolerance=_TOLERANCE)
    q, k, v = _qkv(rng, 1, 4, 6, 1, 1, 8)
    q[0, 1, 0, 2], q[0, 2, 0, 0] = np.nan, np.inf
    yield Sample("not a number", (q, k, v), dtypes=(FLOAT16, *_WIDE), tolerance=_TOLERANCE)
    q, k, v = _qkv(rng, 1, 5, 6, 1, 1, 8)
    yield Sample("large scores", (30 * q, 30 * k, v), dtypes=_WIDE, tolerance=_TOLERANCE)
    lengths = {
        "q_lengths": Fixed(np.array([69], np.int32)), "kv_lengths": Fixed(np.array([133], np.int32))
    }  # fmt: skip
    yield Sample(
        "lengths in tiles", _qkv(rng, 1, 70, 140, 1, 1, 120),
        {"causal": True, "causal_offset": 75, **lengths},
        dtypes=(BFLOAT16,), numba=False, tolerance=_TOLERANCE,
    )  # fmt: skip


def _backward_arguments(rng, sizes, options):
    from gpunn.primitives.attention import attention_forward  # which imports this file

    q, k, v = _qkv(rng, *sizes)
    given = {name: value.array if isinstance(value, Fixed) else value
             for name, value in options.items()}  # fmt: skip
    with intercepting(None), using("numpy"):  # whoever asks for samples may be taking notes
        out, log_sum_exp = attention_forward(q, k, v, **given)
    grad_out = rng.normal(size=q.shape)
    return grad_out, q, k, v, out, Accumulator(log_sum_exp)


def backward_samples(rng):
    """The same shapes and options."""
    for name, sizes, options, more in _cases(rng):
        args = _backward_arguments(rng, sizes, options)
        yield Sample(name, args, options, tolerance=_TOLERANCE, **more)


# ---- benchmark inputs ----------------------------------------------------------------------------

# (B, Tq, Tk, H, Hkv, D): GPT-2, a small one, a tiny one, a long one, wide heads, shared keys, cross
# attention, and decoding with a cache.
BENCH_SHAPES = (
    (8, 1024, 1024, 12, 12, 64), (8, 256, 256, 8, 8, 64), (64, 64, 64, 4, 4, 32),
    (2, 4096, 4096, 8, 8, 64), (2, 2048, 2048, 16, 16, 128), (2, 2048, 2048, 32, 8, 128),
    (8, 128, 2048, 16, 16, 64), (16, 1, 8192, 32, 8, 128),
)  # fmt: skip


def forward_inputs(rng, shape):
    """Benchmark inputs of the forward: causal, the queries the last of the keys."""
    batch, queries, keys, heads, kv_heads, dim = shape

    def draw(*sizes):  # what bfloat16 holds exactly: inputs are the same in every dtype
        values = rng.standard_normal(sizes, dtype=np.float32)
        return values.astype(BFLOAT16).astype(np.float32)

    q = draw(batch, queries, heads, dim)
    k, v = draw(batch, keys, kv_heads, dim), draw(batch, keys, kv_heads, dim)
    return (q, k, v), {"causal": True, "causal_offset": keys - queries}


def backward_inputs(rng, shape):
    """Benchmark inputs of the backward: what a forward took and returned."""
    from gpunn.primitives.attention import attention_forward  # which imports this file

    (q, k, v), options = forward_inputs(rng, shape)
    with intercepting(None), using("numpy"):
        out, log_sum_exp = attention_forward(q, k, v, **options)
    grad_out = rng.standard_normal(q.shape, dtype=np.float32)
    return (grad_out, q, k, v, out, log_sum_exp), options
