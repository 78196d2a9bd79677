"""An array times a number: what a gradient that is there already needs on its way.

A loss that makes its gradient in the forward pass has it multiplied afterwards by what comes back;
a sum over chunks takes in one 16-bit product after the other.
"""

from __future__ import annotations

import functools

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import BLOCK, elementwise_grid
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    BFLOAT16,
    ELEMENTWISE_SHAPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOATING,
    Accumulator,
    Sample,
    accumulator_dtype,
)

_LOW = (FLOAT16, BFLOAT16)

# ---- specification -------------------------------------------------------------------------------


@primitive(family="scale", cuda="scale.cu", numba="scale.py")
def scale(call, x, factor=None, *, out=None):
    """An array times one number that lies on the device: ``out = factor * x``.

    Multiplied in float32 (float64 for float64) and rounded once. NaN and inf travel.

    Parameters
    ----------
    x : array of any shape, float16, bfloat16, float32 or float64
    factor : array of shape (), float32 (float64 for float64), read where it is, so that nothing
        waits for it; None for 1: the values go into `out` as they are
    out : array of the shape of `x` to write, of its dtype, or of a 16-bit one where `x` is float32.
        It may be `x` itself; else they share no memory.

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, a factor that is no scalar or of another
        dtype, an `out` that does not fit
    """
    x = call.array("x", x, dtypes=FLOATING)
    if factor is not None:
        factor = call.array("factor", factor, dtypes=(accumulator_dtype(x.dtype),), shape=())
        factor = factor.reshape(1)
    if out is None:
        out = call.empty(x.shape, x.dtype)
    else:
        dtypes = (x.dtype, *_LOW) if x.dtype == FLOAT32 else (x.dtype,)
        out = call.inplace("out", out, dtypes=dtypes, shape=x.shape)
    call.run(x.reshape(-1), factor, out.reshape(-1))
    return out


def _parts_of(total) -> tuple:
    """The dtypes that go into a sum in the dtype `total`."""
    return (FLOAT64,) if total == FLOAT64 else (FLOAT32, *_LOW)


@primitive(family="scale", cuda="scale.cu", numba="scale.py")
def accumulate(call, total, part, *, scale: float = 1.0, add: bool = True):
    """Take an array into a wider sum, in place: ``total += scale * part``.

    Computed in the dtype of `total`. NaN and inf travel.

    Parameters
    ----------
    total : float32 (or float64) array of any shape, changed in place
    part : array of its shape, float16, bfloat16 or float32 (float64 for a float64 total), which
        shares no memory with it
    scale : a number; as the inverse of a power of two that `part` was made with it is exact
    add : False for ``total = scale * part``, whatever was there before: the first part of a sum

    Raises
    ------
    TypeError, ValueError : a dtype that does not suit the other, shapes that differ
    """
    total = call.inplace("total", total, dtypes=(FLOAT32, FLOAT64))
    part = call.array("part", part, dtypes=_parts_of(total.dtype), shape=total.shape)
    scale = call.number("scale", scale)
    call.run(total.reshape(-1), part.reshape(-1), scale, bool(add))
    return total


@primitive(family="scale", cuda="scale.cu", numba="scale.py")
def accumulate_parts(call, total, part, parts, *, add: bool = True):
    """Take parts of an array into those of a wider one, in place: ``total[a:b] += part[a:b]``.

    One launch for up to 64 parts, which one `accumulate` each would leave waiting for each other:
    so the gradients of a network that came in 16 bits get to their places between those that did
    not. What lies outside the parts is not touched. Computed in the dtype of `total`.

    Parameters
    ----------
    total : float32 (or float64) array (N,), changed in place
    part : array (N,), float16, bfloat16 or float32 (float64 for a float64 total), which shares no
        memory with it
    parts : pairs (a, b) of whole numbers, 0 <= a <= b <= N, each beginning where the one before
        ends or later
    add : False for ``total[a:b] = part[a:b]``, whatever was there before

    Raises
    ------
    TypeError, ValueError : a dtype that does not suit the other, shapes that differ, parts that
        overlap, are out of order or reach outside the array
    """
    total = call.inplace("total", total, dtypes=(FLOAT32, FLOAT64))
    call.require(total.ndim == 1, "total", f"has shape {total.shape}", "give a flat array")
    part = call.array("part", part, dtypes=_parts_of(total.dtype), shape=total.shape)
    parts = tuple((int(start), int(stop)) for start, stop in parts)
    last = 0
    for start, stop in parts:
        good = last <= start <= stop <= total.size
        call.require(
            good, "parts", f"has ({start}, {stop}) behind {last} in an array of {total.size}",
            "give pairs in their order, which do not overlap and end with the array",
        )  # fmt: skip
        last = stop
    call.run(total, part, tuple(pair for pair in parts if pair[0] < pair[1]), bool(add))
    return total


# ---- reference -----------------------------------------------------------------------------------

_CHUNK = 1 << 16  # elements at a time: what is computed in between stays in the cache


def _pieces(size: int):
    return (slice(start, start + _CHUNK) for start in range(0, size, _CHUNK))


@scale.reference
def _(x, factor, out):
    with quiet():
        if factor is None:
            out[...] = x
        elif x.dtype == factor.dtype == out.dtype:
            np.multiply(x, factor, out=out)
        else:
            for some in _pieces(x.size):
                out[some] = x[some].astype(factor.dtype) * factor


@accumulate.reference
def _(total, part, scale, add):
    number = total.dtype.type(scale)
    with quiet():
        for some in _pieces(part.size):
            value = part[some].astype(total.dtype, copy=False) * number
            if add:
                total[some] += value
            else:
                total[some] = value


@accumulate_parts.reference
def _(total, part, parts, add):
    with quiet():
        for start, stop in parts:
            if not add:
                total[start:stop] = part[start:stop]
                continue
            for at in range(start, stop, _CHUNK):
                some = slice(at, min(at + _CHUNK, stop))
                total[some] += part[some].astype(total.dtype, copy=False)


# ---- launch --------------------------------------------------------------------------------------


def _launch(launch, x, factor, constant: float, out, add: bool, vector: bool) -> None:
    if x.size == 0:
        return
    accumulator = accumulator_dtype(x.dtype).type
    types = f"{launch.ctype(x.dtype)}, {launch.ctype(out.dtype)}"
    launch(
        f"scaled<{types}, {str(add).lower()}, {str(vector).lower()}>",
        grid=elementwise_grid(x.size, max(x.itemsize, out.itemsize), vector),
        block=(BLOCK,),
        args=(x, factor, accumulator(constant), out, launch.int64(x.size)),
    )


@scale.cuda
def _(launch, x, factor, out):
    same = x.dtype == out.dtype
    vector = launch.alike(16, x, out) if same else launch.aligned(16, x, out)
    _launch(launch, x, factor, 1.0, out, False, vector)


@accumulate.cuda
def _(launch, total, part, scale, add):
    _launch(launch, part, None, scale, total, add, launch.aligned(16, part, total))


_PARTS, _TILE = 64, 4096  # as in scale.cu: parts of a launch, elements of a block
_TABLE = np.dtype(
    [("start", np.int64, _PARTS), ("stop", np.int64, _PARTS), ("tile", np.int32, _PARTS)]
)


@functools.lru_cache(64)
def _tables(parts: tuple) -> list[tuple]:
    """(table, how many parts, how many tiles, whether packs fit) for each launch."""
    found = []
    for first in range(0, len(parts), _PARTS):
        some, table, tiles = parts[first : first + _PARTS], np.zeros(1, _TABLE), 0
        for place, (start, stop) in enumerate(some):
            table["start"][0, place], table["stop"][0, place] = start, stop
            table["tile"][0, place] = tiles
            tiles += -(-(stop - start) // _TILE)
        found.append((table, len(some), tiles, all(start % 4 == 0 for start, _ in some)))
    return found


@accumulate_parts.cuda
def _(launch, total, part, parts, add):
    pack = 16 // total.itemsize * part.itemsize  # of it: as many elements as 16 bytes of total
    aligned = launch.aligned(16, total) and launch.aligned(pack, part)
    for table, count, tiles, whole in _tables(parts):
        launch(
            f"scaled_parts<{launch.ctype(part.dtype)}>",
            grid=(tiles,),
            block=(BLOCK,),
            args=(part, total, table, np.int32(count), np.bool_(add), np.bool_(aligned and whole)),
        )


_THREADS = 128  # of a block of the Numba kernels


def _numba_grid(size: int) -> tuple[int]:
    return (min(-(-size // _THREADS), 65535),)


@scale.numba
def _(launch, x, factor, out):
    if factor is None:
        accumulate._numba(launch, out, x, 1.0, False)
    elif x.size:
        launch("scale", _numba_grid(x.size), (_THREADS,), (x, factor, out))


@accumulate.numba
def _(launch, total, part, scale, add):
    if part.size:
        args = (total, part, total.dtype.type(scale), np.bool_(add))
        launch("accumulate", _numba_grid(part.size), (_THREADS,), args)


@accumulate_parts.numba
def _(launch, total, part, parts, add):
    for start, stop in parts:
        accumulate._numba(launch, total[start:stop], part[start:stop], 1.0, add)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@scale.cost
def _(x, factor, out):
    read = x.nbytes + (0 if factor is None else factor.nbytes)
    return Cost(flops=x.size, read=read, written=out.nbytes)


@accumulate.cost
def _(total, part, scale, add):
    read = part.nbytes + (total.nbytes if add else 0)
    return Cost(flops=(2 if add else 1) * part.size, read=read, written=total.nbytes)


@accumulate_parts.cost
def _(total, part, parts, add):
    size = sum(stop - start for start, stop in parts)
    read = (part.itemsize + (total.itemsize if add else 0)) * size
    return Cost(flops=size if add else 0, read=read, written=total.itemsize * size)


def _arrays(rng):
    """(name, values, further arguments of Sample): ordinary lengths, odd ones, views, edges."""
    yield "1", rng.normal(size=1), {"dtypes": FLOATING}
    yield "nothing", np.zeros((0, 3)), {}
    yield "7x13", rng.normal(size=(7, 13)), {"dtypes": FLOATING}
    yield "5001", rng.normal(size=5001), {"dtypes": FLOATING, "numba": False}
    yield "1003 unaligned", rng.normal(size=1003), {"dtypes": FLOATING, "unaligned": True}
    yield "strided view", rng.normal(size=(9, 22))[:, ::2], {"dtypes": FLOATING}
    edges = np.array([1.0, np.nan, -np.inf, 0.0, -0.0, 6e4, 1e-7])
    yield "at the edge", edges, {"dtypes": FLOATING}


@scale.samples
def _(rng):
    for name, x, more in _arrays(rng):
        yield Sample(name, (x, Accumulator(np.array(-0.3))), **more)
    for size in (2, 1003):  # both arrays start one element past a multiple of 16 bytes
        args, out = (rng.normal(size=size), Accumulator(np.array(0.7))), np.zeros(size)
        yield Sample(f"alike {size}", args, {"out": out}, FLOATING, unaligned=True)
    for factor in (0.0, np.inf, np.nan):
        args = (np.array([2.0, 0.0, np.inf, -1.0]), Accumulator(np.array(factor)))
        yield Sample(f"times {factor}", args, dtypes=FLOATING)
    # From float32 to 16 bits; also values that only float32 holds.
    x = rng.normal(size=3001)
    x[:4] = (1e5, -3e-9, np.nan, np.inf)
    for name, factor in (("into 16 bits", Accumulator(np.array(0.3))), ("as it is", None)):
        for more in ({}, {"unaligned": True}):
            args, out = (Accumulator(x), factor), np.zeros(x.shape)
            label = f"{name}, unaligned" if more else name
            yield Sample(label, args, {"out": out}, (*_LOW, FLOAT32), numba=not more, **more)
    yield Sample("float64 as it is", (x, None), {"out": np.zeros(x.shape)}, (FLOAT64,))


@accumulate.samples
def _(rng):
    for name, part, more in _arrays(rng):
        total = Accumulator(rng.normal(size=part.shape))
        yield Sample(name, (total, part), **more)
        yield Sample(f"{name}, times 16", (total, part), {"scale": 16.0}, **more)
        yield Sample(f"{name}, the first", (total, part), {"scale": 0.3, "add": False}, **more)
    nothing = Accumulator(np.full(5, np.nan))  # what is not added to is not looked at
    yield Sample("over NaN", (nothing, rng.normal(size=5)), {"add": False}, FLOATING)


@accumulate_parts.samples
def _(rng):
    more = {"dtypes": FLOATING}
    total, part = Accumulator(rng.normal(size=61)), rng.normal(size=61)
    part[[3, 60]] = np.nan, np.inf
    parts = ((0, 5), (5, 5), (8, 24), (25, 31), (60, 61))
    for add in (True, False):
        yield Sample(f"five parts, {add}", (total, part, parts), {"add": add}, **more)
    yield Sample("no parts", (total, part, ()), **more)
    # Several tiles of a part, more parts than a launch takes, with gaps and without packs.
    more["numba"] = False
    total, part = Accumulator(rng.normal(size=13000)), rng.normal(size=13000)
    short = ((start, start + 3) for start in range(12304, 12640, 4))
    parts = ((0, 4099), (4100, 12304), *short, (12980, 13000))
    for name, options in (("many parts", {}), ("many parts unaligned", {"unaligned": True})):
        yield Sample(name, (total, part, parts), **options, **more)
    parts = ((1, 4098), (4099, 12999))
    yield Sample("odd parts", (total, part, parts), {"add": False}, **more)


@scale.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32), np.float32(0.5).reshape(())), {}


@accumulate.inputs
def _(rng, shape):
    return tuple(rng.standard_normal((2, *shape), dtype=np.float32)), {"scale": 0.5}


@accumulate_parts.inputs
def _(rng, shape):
    size = shape[0]
    parts = tuple((k * size // 8, (2 * k + 1) * size // 16) for k in range(8))
    return (*rng.standard_normal((2, size), dtype=np.float32), parts), {}


scale.bench_shapes = accumulate.bench_shapes = accumulate_parts.bench_shapes = ELEMENTWISE_SHAPES
