"""Reductions over one or more axes: sum, mean, max and argmax.

=============  ===========================  ==============================  ======================
name           result                       dtype of the result             of nothing
=============  ===========================  ==============================  ======================
reduce_sum     sum of x                     of x; int64 for integers, bool  0
reduce_mean    sum of x / count             of x (floating only)            NaN, without a warning
reduce_max     largest x; NaN if one is     of x                            ValueError
reduce_argmax  index of the first largest   int64                           ValueError
               x; NaN counts as largest
=============  ===========================  ==============================  ======================

16-bit and float32 sums are kept in float32 and rounded once. NumPy and CUDA sum in blocks and
trees, mostly with an error of a few roundings; its bound, 2^-24 times the sum of |x| times the
longest chain of additions, grows on the GPU with n / 4096 and not with n (see
``kernels/cuda/reduce.cu``). The order of additions is fixed: the same input gives the same bits on
the same device.
"""

from __future__ import annotations

import operator

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.reduce_plan import Reduction, passes, reduced_shape, run_numba
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOAT16, FLOAT32, FLOATING, Sample, accumulator_dtype

INT64 = np.dtype(np.int64)
REDUCIBLE = (*FLOATING, *map(np.dtype, (np.bool_, np.uint8, np.int32)), INT64)

# ---- specification -------------------------------------------------------------------------------


def _index(call, axis) -> int:
    try:
        return operator.index(axis)
    except TypeError:
        raise TypeError(
            f"{call.primitive.name}: axis is {axis!r}; expected an int, a tuple of ints or None."
        ) from None


def _axes(call, axis, ndim: int) -> tuple[int, ...]:
    """The axes to reduce, from 0 up and in order."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    found = []
    for value in given:
        value = _index(call, value)
        call.require(
            -ndim <= value < ndim, "axis", f"is {axis} but x has {ndim} dimensions",
            f"give {-ndim} to {ndim - 1}" if ndim else "leave axis out",
        )  # fmt: skip
        found.append(value % ndim)
    call.require(
        len(set(found)) == len(found), "axis", f"is {axis}, which names one twice", "name it once"
    )
    return tuple(sorted(found))


def _require_elements(call, x, axes) -> None:
    call.require(
        all(x.shape[axis] for axis in axes), "x",
        f"has shape {x.shape} and no element along axis {axes if len(axes) != 1 else axes[0]}",
        "nothing has no largest element: give one or more",
    )  # fmt: skip


@primitive(family="reduce", cuda="reduce.cu", numba="reduce.py")
def reduce_sum(call, x, *, axis=None, keepdims: bool = False, out=None):
    """The sum over axes.

    Parameters
    ----------
    x : array of any shape; float16, bfloat16, float32, float64, bool, uint8, int32 or int64
    axis : int, tuple of ints or None for all; () for none
    keepdims : keep reduced axes with size 1
    out : array to write, of the result's shape and dtype (int64 for integers and bool)

    Raises
    ------
    TypeError, ValueError : another dtype, an axis that `x` does not have or that is named twice, an
        `out` that does not fit
    """
    x = call.array("x", x, dtypes=REDUCIBLE)
    axes = _axes(call, axis, x.ndim)
    dtype = x.dtype if x.dtype in FLOATING else INT64
    out = call.output("out", out, shape=reduced_shape(x.shape, axes, keepdims), dtype=dtype)
    call.run(x, out, axes)
    return out


@primitive(family="reduce", cuda="reduce.cu", numba="reduce.py")
def reduce_mean(call, x, *, axis=None, keepdims: bool = False, out=None):
    """The mean over axes: the sum divided by the number of elements; NaN for none.

    Arguments and errors are those of `reduce_sum`; `x` is floating.
    """
    x = call.array("x", x, dtypes=FLOATING)
    axes = _axes(call, axis, x.ndim)
    out = call.output("out", out, shape=reduced_shape(x.shape, axes, keepdims), dtype=x.dtype)
    call.run(x, out, axes)
    return out


@primitive(family="reduce", cuda="reduce.cu", numba="reduce.py")
def reduce_max(call, x, *, axis=None, keepdims: bool = False, out=None):
    """The largest element over axes; NaN if there is one.

    Arguments and errors are those of `reduce_sum`; the result has the dtype of `x`, and axes with
    no elements are an error.
    """
    x = call.array("x", x, dtypes=REDUCIBLE)
    axes = _axes(call, axis, x.ndim)
    _require_elements(call, x, axes)
    out = call.output("out", out, shape=reduced_shape(x.shape, axes, keepdims), dtype=x.dtype)
    call.run(x, out, axes)
    return out


@primitive(family="reduce", cuda="reduce.cu", numba="reduce.py")
def reduce_argmax(call, x, *, axis: int | None = None, keepdims: bool = False, out=None):
    """The int64 index of the first largest element along `axis`; NaN counts as the largest.

    Without `axis`, the index in the flattened array. Otherwise as `reduce_max`.
    """
    x = call.array("x", x, dtypes=REDUCIBLE)
    axes = _axes(call, None if axis is None else _index(call, axis), x.ndim)
    _require_elements(call, x, axes)
    out = call.output("out", out, shape=reduced_shape(x.shape, axes, keepdims), dtype=INT64)
    call.run(x, out, axes)
    return out


# ---- reference -----------------------------------------------------------------------------------

# NumPy adds along any but the last axis one by one; blocks of so many keep the error small.
_BLOCK = 128

# NumPy is slow at short rows: of shorter ones than this, several are taken for one row.
_ROW = 512


def _sum_middle(x):
    """The sum over axis 1 of an (outer, n, inner) array."""
    outer, n, inner = x.shape
    if inner == 1:
        return np.add.reduce(x[:, :, 0], axis=1)  # pairwise
    fold = _ROW // max(1, inner)
    if fold > 1 and n >= 4 * fold:
        whole = n // fold * fold
        parts = _sum_middle(x[:, :whole].reshape(outer, n // fold, fold * inner))
        total = np.add.reduce(parts.reshape(outer, fold, inner), axis=1)
        return total + np.add.reduce(x[:, whole:], axis=1) if whole < n else total
    if n <= _BLOCK:
        return np.add.reduce(x, axis=1)
    whole = n // _BLOCK * _BLOCK
    blocks = x[:, :whole].reshape(outer, n // _BLOCK, _BLOCK, inner)
    total = _sum_middle(np.add.reduce(blocks, axis=2))
    return total + np.add.reduce(x[:, whole:], axis=1) if whole < n else total


def _sum(x, axes):
    """The sum in the accumulator's dtype."""
    if x.dtype in FLOATING:
        x = x.astype(accumulator_dtype(x.dtype), copy=False)
        for outer, n, inner in passes(x.shape, axes):
            x = _sum_middle(x.reshape(outer, n, inner))
        return x
    return np.add.reduce(x, axis=axes, dtype=INT64)


@reduce_sum.reference
def _(x, out, axes):
    with quiet():
        out[...] = _sum(x, axes).reshape(out.shape)


@reduce_mean.reference
def _(x, out, axes):
    with quiet():
        total = _sum(x, axes)
        out[...] = (total / total.dtype.type(_count(x, out))).reshape(out.shape)


def _count(x, out) -> int:
    """Elements that go into one element of the result."""
    return x.size // out.size if x.size else 0


def _widened(x):
    """16-bit types in float32, exactly: NumPy compares those faster."""
    return x.astype(np.float32) if x.itemsize == 2 else x


@reduce_max.reference
def _(x, out, axes):
    with quiet():
        out[...] = np.maximum.reduce(_widened(x), axis=axes).reshape(out.shape)


@reduce_argmax.reference
def _(x, out, axes):
    if out.size:
        (outer, n, inner), *_ = passes(x.shape, axes)
        index = _widened(x).reshape(outer, n, inner).argmax(axis=1)
        out[...] = index.reshape(out.shape)


# ---- launch --------------------------------------------------------------------------------------


@reduce_sum.cuda
def _(launch, x, out, axes):
    Reduction(launch, "SumOf", x, out).run(axes)


@reduce_mean.cuda
def _(launch, x, out, axes):
    if out.size:
        Reduction(launch, "SumOf", x, out, divisor=_count(x, out)).run(axes)


@reduce_max.cuda
def _(launch, x, out, axes):
    Reduction(launch, "LargestOf", x, out).run(axes)


@reduce_argmax.cuda
def _(launch, x, out, axes):
    Reduction(launch, "ArgmaxOf", x, out).run(axes)


@reduce_sum.numba
def _(launch, x, out, axes):
    run_numba(launch, "reduce_sum", x, out, axes, out.dtype.type(1))


@reduce_mean.numba
def _(launch, x, out, axes):
    if out.size:
        run_numba(launch, "reduce_sum", x, out, axes, out.dtype.type(_count(x, out)))


@reduce_max.numba
def _(launch, x, out, axes):
    run_numba(launch, "reduce_max", x, out, axes)


@reduce_argmax.numba
def _(launch, x, out, axes):
    run_numba(launch, "reduce_argmax", x, out, axes)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@reduce_sum.cost
@reduce_mean.cost
@reduce_max.cost
@reduce_argmax.cost
def _(x, out, axes):
    return Cost(flops=x.size, read=x.nbytes, written=out.nbytes)


def _cases(rng):
    """(name, x, axis, dtypes, numba): rows, columns, both, many and few, odd sizes."""
    one = (FLOAT32,)
    yield "all of one element", rng.random((1,)), None, FLOATING, True
    yield "0-d", np.array(rng.random()), None, one, True
    yield "rows 5x10", rng.random((5, 10)), 1, FLOATING, True
    yield "rows, odd 3x257", rng.random((3, 257)), -1, one, True
    yield "rows 4x2000", rng.random((4, 2000)), 1, FLOATING, False
    yield "one long row", rng.random((200_001,)), None, one, False
    yield "long row of every type", rng.random((2, 40_000)), 1, FLOATING, False
    yield "columns 6x10", rng.random((6, 10)), 0, FLOATING, True
    yield "columns, odd 37x5", rng.random((37, 5)), 0, one, False
    yield "columns 300x64", rng.random((300, 64)), 0, FLOATING, False
    yield "two long columns", rng.random((50_001, 2)), 0, one, False
    yield "long columns of every type", rng.random((2500, 40)), 0, FLOATING, False
    yield "middle 2x9x3", rng.random((2, 9, 3)), 1, one, True
    yield "middle, many 200x3x3", rng.random((200, 3, 3)), 1, one, False
    yield "strided view", rng.random((6, 14))[:, ::2], 0, one, True
    yield "transposed view", rng.random((9, 4)).T, 1, one, True
    yield "no rows", np.zeros((0, 4)), 1, one, True
    yield "infinite", np.array([[-np.inf, 1.0, 2.0], [np.inf, 1.0, np.inf]]), 1, FLOATING, True
    broken = np.array([[1.0, np.nan, 2.0, np.nan], [1.0, 2.0, 3.0, 4.0]])
    yield "not a number", broken, 1, FLOATING, True
    yield "not a number, columns", np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 1.0]]), 0, one, True


def _several_axes(rng):
    one = (FLOAT32,)
    yield "axes 0 and 2 of 3x2x5", rng.random((3, 2, 5)), (0, 2), FLOATING, True
    yield "axes 0, 2 of 60x5x70", rng.random((60, 5, 70)), (0, 2), one, False
    yield "axes 0, 2, 4", rng.random((3, 2, 4, 2, 5)), (0, -3, 4), one, False
    yield "axes 0 and 2, many of the first", rng.random((3000, 2, 3)), (0, 2), one, False
    yield "axes 1 and 2 of 2x3x4", rng.random((2, 3, 4)), (1, 2), one, True
    yield "no axes", rng.random((2, 3)), (), one, True


def _integers(rng):
    yield "int32", rng.integers(-(2**31), 2**31 - 1, (7, 33), np.int32)
    yield "int64", rng.integers(-(2**61), 2**61, (7, 33), np.int64)
    yield "uint8", rng.integers(0, 255, (7, 33), np.uint8)
    yield "bool", rng.random((7, 33)) < 0.1


def _samples(several: bool, integers: bool, empty: bool):
    def samples(rng):
        cases = [*_cases(rng), *(_several_axes(rng) if several else ())]
        if empty:
            cases.append(("an empty axis", np.zeros((3, 0, 2)), 1, (FLOAT32,), True))
        for name, x, axis, dtypes, numba in cases:
            yield Sample(name, (x,), {"axis": axis}, dtypes, numba=numba)
        for name, x in _integers(rng) if integers else ():
            yield Sample(f"{name}, rows", (x,), {"axis": 1})
            yield Sample(f"{name}, columns", (x[:, :3],), {"axis": 0, "keepdims": True})
            yield Sample(f"{name}, odd columns", (x,), {"axis": 0}, numba=False)
            yield Sample(f"{name}, long", (np.tile(x[:2], (1, 1200)),), {"axis": 1}, numba=False)

    return samples


reduce_sum.samples(_samples(several=True, integers=True, empty=True))
reduce_mean.samples(_samples(several=True, integers=False, empty=True))
reduce_max.samples(_samples(several=True, integers=True, empty=False))


@reduce_argmax.samples
def _(rng):
    yield from _samples(several=False, integers=True, empty=False)(rng)
    tied = rng.integers(0, 3, (4, 300)).astype(np.float64)
    yield Sample("ties, rows", (tied,), {"axis": 1}, FLOATING, numba=False)
    yield Sample("ties, columns", (tied,), {"axis": 0}, FLOATING, numba=False)
    yield Sample("ties, all", (tied,), {"axis": None}, numba=False)
    # Rows that start at every place in a pack of 16 bytes, of nothing but the smallest value.
    lowest = np.full((9, 11), -np.inf)
    yield Sample("all -inf, rows", (lowest,), {"axis": 1}, (FLOAT16, FLOAT32))
    yield Sample("all -inf, columns", (lowest,), {"axis": 0}, (FLOAT16, FLOAT32))
    yield Sample("all -inf, long", (np.full((3, 30_001), -np.inf),), {"axis": 1}, numba=False)
    columns = np.full((30_001, 3), -np.inf)
    yield Sample("all -inf, long columns", (columns,), {"axis": 0}, numba=False)


@reduce_sum.inputs
@reduce_mean.inputs
@reduce_max.inputs
@reduce_argmax.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32),), {"axis": -1}


for _made in (reduce_sum, reduce_mean, reduce_max, reduce_argmax):
    _made.bench_shapes = (
        (65536, 1024), (128, 256), (1024, 1024), (1 << 20, 64), (65536, 4096), (4096, 16384),
        (256, 262144), (1, 1 << 26),
    )  # fmt: skip
