"""Rotary position embedding: pairs of columns turned by an angle that grows with the position.

A row at position p has its pair k, the columns (a, b), turned by the angle p f_k:

    a' = a cos(p f_k) - b sin(p f_k),   b' = b cos(p f_k) + a sin(p f_k)

so that the product of two rows depends on the distance of their positions. The cosines and sines
come in tables. Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding,
2021.
"""

from __future__ import annotations

import math
import operator

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.call import CPU
from gpunn.primitives.indices import CHECK_EVERYWHERE, check_range
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    FLOAT32,
    FLOAT64,
    FLOATING,
    INTEGERS,
    Accumulator,
    Sample,
    accumulator_dtype,
)

# ---- specification -------------------------------------------------------------------------------


@primitive(family="rotary", cuda="rotary.cu", numba="rotary.py")
def rotary_forward(
    call,
    x,
    cos,
    sin,
    positions=None,
    *,
    axis: int = -2,
    offset: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
    out=None,
):
    """Turn pairs of columns by the angle of the row's position: ``a cos - b sin, b cos + a sin``.

    Computed in float32 (float64 for float64) and rounded once. Its gradient is the same with
    ``inverse=True``.

    Parameters
    ----------
    x : array (..., D) of two dimensions or more; float16, bfloat16, float32 or float64
    cos, sin : tables (P, R / 2), float32 (float64 for float64): the row is the position, the column
        the pair. R <= D columns are turned and the others copied.
    positions : int32 or int64 array (T,) of the positions along `axis`, or (B, T) with one row for
        each entry of the first axis of `x`; None for 0, 1, 2 …
    axis : the axis of time, of length T: -2 for (B, H, T, D), 1 for (B, T, H, D)
    offset : is added to every position: the tokens that came before, whose keys are in a cache
    interleaved : pairs are the columns (2 k, 2 k + 1), else (k, R / 2 + k)
    inverse : turn back
    out : array like `x` to write; may be `x` itself

    Raises
    ------
    TypeError, ValueError : a dtype or shape that does not suit, a position outside the tables (on a
        GPU, where looking would mean waiting, given positions are not looked at, and such a row
        becomes NaN)
    """
    x = call.array("x", x, dtypes=FLOATING, min_ndim=2)
    wide = (accumulator_dtype(x.dtype),)
    cos = call.array("cos", cos, dtypes=wide, ndim=2)
    sin = call.array("sin", sin, dtypes=wide, shape=cos.shape)
    known, half = cos.shape
    call.require(
        2 * half <= x.shape[-1], "cos", f"has {half} columns, for {2 * half} columns of x",
        f"but x has {x.shape[-1]}",
    )  # fmt: skip
    time_axis = operator.index(axis)
    call.require(
        -x.ndim <= time_axis < x.ndim and time_axis % x.ndim != x.ndim - 1, "axis", f"is {axis}",
        f"expected the axis of time of an x of shape {x.shape}, not the last one",
    )  # fmt: skip
    time_axis %= x.ndim
    time, offset = x.shape[time_axis], operator.index(offset)
    groups = 1
    if positions is not None:
        positions = call.array("positions", positions, dtypes=INTEGERS)
        shapes = ((time,), (x.shape[0], time)) if time_axis else ((time,),)
        if positions.shape not in shapes:
            call.refuse("positions", positions, " or ".join(f"shape {shape}" for shape in shapes))
        groups = x.shape[0] if positions.ndim == 2 else 1
        _check_positions(call, positions, offset, known)
    else:
        call.require(
            0 <= offset and (offset + time <= known or x.size == 0), "offset",
            f"is {offset}, for positions {offset} to {offset + time - 1}",
            f"the tables cos and sin end at position {known - 1}",
        )  # fmt: skip
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    outer = math.prod(x.shape[:time_axis]) // max(groups, 1)
    inner = math.prod(x.shape[time_axis + 1 : -1])
    shape = (groups, outer, time, inner, x.shape[-1])
    options = (offset, bool(interleaved), bool(inverse))
    call.run(x.reshape(shape), cos, sin, positions, *options, out.reshape(shape))
    return out


def _check_positions(call, positions, offset: int, known: int) -> None:
    """Where they are looked at, each must be in the tables."""
    if call.device is CPU or CHECK_EVERYWHERE:
        moved = positions + positions.dtype.type(offset) if offset else positions
        plus = f", with the offset {offset}" if offset else ""
        check_range(call, "positions", moved, known, f"for the {known} rows of cos and sin{plus}")


# ---- reference -----------------------------------------------------------------------------------


_CHUNK = 1 << 16  # elements at a time: what is computed in between stays in the cache


@rotary_forward.reference
def _(x, cos, sin, positions, offset, interleaved, inverse, out):
    if x.size == 0:
        return
    groups, outer, time, inner, columns = x.shape
    half = cos.shape[1]
    at = slice(offset, offset + time) if positions is None else positions + offset
    own = groups if positions is not None and positions.ndim == 2 else 1
    c, s = (table[at].reshape(own, 1, time, 1, half) for table in (cos, sin))
    s = -s if inverse else s
    times = max(1, min(time, _CHUNK // (groups * inner * columns)))
    outers = max(1, _CHUNK // (groups * inner * columns * times))
    with quiet():
        for start in range(0, time, times):
            some = slice(start, start + times)
            for first in range(0, outer, outers):
                part = (slice(None), slice(first, first + outers), some)
                _turn(x[part], c[:, :, some], s[:, :, some], interleaved, out[part])


def _turn(x, c, s, interleaved: bool, out) -> None:
    half = c.shape[-1]
    ends = slice(0, half), slice(half, 2 * half)
    if interleaved:
        ends = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    a, b = (x[..., end].astype(c.dtype, copy=False) for end in ends)
    first, second = a * c, b * c
    first -= b * s
    second += a * s
    out[..., ends[0]], out[..., ends[1]] = first, second
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]


# ---- launch --------------------------------------------------------------------------------------

_BLOCK, _AHEAD = 256, 4  # as in rotary.cu

_SHAPE = np.dtype([(name, np.int64) for name in ("time", "inner", "outer", "in_", "up")])


@rotary_forward.cuda
def _(launch, x, cos, sin, positions, offset, interleaved, inverse, out):
    if x.size == 0:
        return
    groups, outer, time, inner, columns = x.shape
    half, size = cos.shape[1], x.itemsize
    width = 16 // size
    vector = half % width == 0 and (columns - 2 * half) % (2 * width) == 0
    width = width if vector and launch.aligned(16, x, cos, sin, out) else 1
    # Along the heads of a step if there are enough, else along the batch.
    ahead = (_AHEAD, 1) if inner >= outer else (1, _AHEAD)
    inner_shares, outer_shares = -(-inner // ahead[0]), -(-outer // ahead[1])
    places = half // width + -(-(columns - 2 * half) // (2 * width))
    threads = places * inner_shares * time * groups * outer_shares
    shape = np.array((time, inner, outer, inner_shares, outer_shares), _SHAPE)[()]
    launch(
        f"rotary_turn<{launch.ctype(x.dtype)}, {width}>",
        grid=(-(-threads // _BLOCK),),
        block=(_BLOCK,),
        args=(
            x, cos, sin, positions, np.bool_(positions is not None and positions.itemsize == 8),
            out, shape, launch.int64(offset), launch.int64(len(cos)), launch.int32(columns),
            launch.int32(half), np.bool_(interleaved), np.bool_(inverse), launch.int64(threads),
        ),
    )  # fmt: skip


@rotary_forward.numba
def _(launch, x, cos, sin, positions, offset, interleaved, inverse, out):
    if x.size == 0:
        return
    columns, half = x.shape[-1], cos.shape[1]
    if positions is None:
        positions = launch.empty((0, 0), np.int64)
    else:
        positions = positions.reshape(-1, x.shape[2])
    step, between = (2, 1) if interleaved else (1, half)
    work = x.size // columns * (columns - half)
    launch(
        "rotary_turn",
        (min(-(-work // 128), 65535),),
        (128,),
        (x, cos, sin, positions, np.int64(offset), step, between, inverse, out),
    )


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@rotary_forward.cost
def _(x, cos, sin, positions, offset, interleaved, inverse, out):
    groups, outer, time, inner, _ = x.shape
    turned = groups * outer * time * inner * cos.shape[1]
    tables = 2 * time * cos.shape[1] * cos.itemsize * (groups if positions is not None else 1)
    read = x.nbytes + tables + (0 if positions is None else positions.nbytes)
    return Cost(6 * turned, read, out.nbytes)


def tables(length: int, pairs: int, dtype=np.float64, base: float = 10000.0, scaling: float = 1.0):
    """(cos, sin) of shape (length, pairs): position p and pair k have the angle
    p / scaling * base^(-k / pairs).

    The angles are made in float64: a float32 angle near 100,000 is off by up to 4e-3.
    """
    frequencies = base ** (-np.arange(pairs) / max(pairs, 1))
    angles = (np.arange(length) / scaling)[:, None] * frequencies
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


@rotary_forward.samples
def _(rng):
    def sample(name, shape, length, pairs, positions=None, dtypes=(FLOAT32,), numba=True, **more):
        cos, sin = map(Accumulator, tables(length, pairs))
        args = (rng.normal(size=shape), cos, sin, positions)
        return Sample(name, args, more, dtypes, numba=numba)

    one = (FLOAT32, FLOAT64)
    yield sample("odd columns", (2, 3, 5), 3, 1, dtypes=FLOATING)
    yield sample("odd columns, interleaved", (2, 3, 7), 3, 2, dtypes=FLOATING, interleaved=True)
    heads = {"axis": 1, "offset": 3}
    yield sample("heads inside", (2, 4, 6, 16), 8, 8, dtypes=FLOATING, **heads)
    heads |= {"interleaved": True, "inverse": True}
    yield sample("heads inside, interleaved, back", (2, 4, 5, 16), 7, 8, dtypes=FLOATING, **heads)
    yield sample("a part of the columns", (3, 5, 4, 48), 4, 8, dtypes=FLOATING, numba=False)
    each = rng.integers(0, 9, (3, 4)).astype(np.int32)
    yield sample("positions of each sequence", (3, 2, 4, 6), 9, 3, each, one)
    alike = rng.integers(0, 5, 4) - 2
    yield sample("positions of all", (5, 4, 3, 8), 5, 4, alike, one, axis=1, offset=2)
    yield sample("no steps", (2, 0, 4), 3, 2)
    yield sample("time first", (4, 3, 2), 4, 1, axis=0, dtypes=one)
    cos, sin = map(Accumulator, tables(5, 8))
    x = rng.normal(size=(3, 5, 34))
    yield Sample("strided", (x[..., ::2][..., :16], cos, sin))
    args = (rng.normal(size=(3, 5, 16)), cos, sin)
    yield Sample("unaligned", args, {}, FLOATING, unaligned=True)
    edge = rng.normal(size=(1, 2, 16))
    edge[0, 1, [2, 5, 9]] = np.nan, np.inf, -np.inf
    yield Sample("at the edge", (edge, cos, sin), {}, FLOATING)


@rotary_forward.inputs
def _(rng, shape):
    batch, heads, time, columns = shape
    cos, sin = tables(time, columns // 2, np.float32)
    return (rng.standard_normal(shape, dtype=np.float32), cos, sin), {}


# (batch, heads, time, columns)
rotary_forward.bench_shapes = (
    (4, 12, 1024, 64), (1, 4, 128, 64), (64, 16, 1, 128), (2, 16, 2048, 128), (1, 32, 8192, 128),
    (16, 12, 512, 64), (4, 32, 4096, 128), (8, 8, 1024, 256),
)  # fmt: skip
