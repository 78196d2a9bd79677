"""The norms through the loops of ``compiled/norm.py``: what of the arrays is worked on at a time.

All pieces are cut by the shapes alone, and their sums are joined in order: the number of threads
changes nothing. Arrays are float32 or float64, and C-contiguous as calls make them.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import _VALUE
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import for_each

_PIECE = 1 << 15  # elements at the least
_PARTS = 256  # pieces of one sum at the most
_ACROSS = 512  # columns that the loops are to run along: a few rows of fewer channels count as one

# ---- layer norm, RMS norm ------------------------------------------------------------------------


def _runs(rows: int, cols: int, parts: int) -> list[slice]:
    step = max(1, _PIECE // cols, -(-rows // parts))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _vector(array, cols, value, dtype):
    return np.full(cols, value, dtype) if array is None else array


def rows_forward(x, residual, weight, bias, out, summed, mean, reciprocal, eps, centred) -> bool:
    """The whole of it, of arrays (rows, columns); False where NumPy is to do it."""
    loop = loops("norm", out.dtype, x.size)
    if loop is None or x.size == 0:
        return False
    (rows, cols), dtype = x.shape, out.dtype
    weight, bias = _vector(weight, cols, 1, dtype), _vector(bias, cols, 0, dtype)
    mean, reciprocal = (np.empty(rows, dtype) if a is None else a for a in (mean, reciprocal))

    def work(some: slice) -> None:
        value = x[some]
        if residual is not None:
            value = np.add(value, residual[some], out=summed[some])
        statistics = mean[some], reciprocal[some]
        loop.row_forward(value, weight, bias, dtype.type(eps), centred, out[some], *statistics)

    for_each(work, _runs(rows, cols, rows))
    return True


def rows_backward(grad, x, mean, reciprocal, weight, extra, out, dweight, dbias) -> bool:
    loop = loops("norm", x.dtype, x.size)
    if loop is None or x.size == 0:
        return False
    (rows, cols), dtype = x.shape, x.dtype
    weight, centred, added = _vector(weight, cols, 1, dtype), mean is not None, extra is not None
    mean, extra = mean if centred else np.zeros(rows, dtype), extra if added else x
    wanted = dweight is not None or dbias is not None
    runs = _runs(rows, cols, max(1, min(_PARTS, rows // 32)))
    sums = np.zeros((len(runs) if wanted else 1, 2, cols))

    def work(item) -> None:
        number, some = item
        inputs = grad[some], x[some], mean[some], reciprocal[some], weight
        total = sums[number if wanted else 0]
        loop.row_backward(*inputs, centred, extra[some], added, out[some], wanted, total)

    for_each(work, list(enumerate(runs)))
    for target, total in ((dweight, sums[:, 0]), (dbias, sums[:, 1])):
        if target is not None:
            target[...] = total.sum(0)
    return True


# ---- batch, group and instance norm --------------------------------------------------------------


def columns(problem, x) -> Columns | None:
    """How to go through arrays whose channels lie last; None where NumPy is to do it."""
    if not problem.columns or x.size == 0:
        return None
    loop = loops("norm", x.dtype, x.size)
    return None if loop is None else Columns(loop, problem)


class Columns:
    """Arrays as (O, L, C): of a batch norm O is 1, and C may be several times the channels."""

    def __init__(self, loop, problem):
        self.loop, self.problem = loop, problem
        outer, length, channels = problem.outer, problem.length, problem.channels
        if not problem.groups:
            outer, length = 1, outer * length
        most = min(length, max(1, _ACROSS // channels))
        self.times = max(t for t in range(1, most + 1) if length % t == 0)
        self.shape = outer, length // self.times, self.times * channels
        self.parts = _runs(*self.shape[1:], _PARTS)
        each = max(1, _PIECE // (length * channels)) if len(self.parts) == 1 else 1
        self.items = [
            (slice(o, min(o + each, outer)), part, some)
            for o in range(0, outer, each)
            for part, some in enumerate(self.parts)
        ]

    def _of(self, array):
        return None if array is None else array.reshape(self.shape)

    def _coefficient(self, values):
        """Values (1 or outer, channels), or None for 0, of every column: (O, C)."""
        if values is None:
            return np.zeros(self.shape[::2], np.float32)
        values = np.tile(values, self.times)
        return np.ascontiguousarray(np.broadcast_to(values, self.shape[::2]))

    def _coefficients(self, dtype, *values):
        return [self._coefficient(each).astype(dtype, copy=False) for each in values]

    def _by_channel(self, sums):
        """(O, parts, times, channels) of (O, parts, C)."""
        return sums.reshape(*sums.shape[:2], self.times, -1)

    def statistics(self, x):
        """(mean, variance) of each set in float64; NaN and inf make both NaN."""
        x, problem = self._of(x), self.problem
        means, squares = np.empty((2, len(x), len(self.parts), x.shape[2]))

        def work(item) -> None:
            o, part, some = item
            self.loop.column_moments(x[o, some], means[o, part], squares[o, part])

        for_each(work, self.items)
        means, squares = self._by_channel(means), self._by_channel(squares)
        groups = problem.groups or problem.channels
        shape = (*means.shape[:3], groups, problem.group)
        means, squares = means.reshape(shape), squares.reshape(shape)
        counts = np.array([some.stop - some.start for some in self.parts], np.float64)
        counts, over = counts.reshape(-1, 1, 1, 1), (1, 2, 4)
        with quiet():
            mean = (means * counts).sum(over, keepdims=True) / problem.count
            means -= mean
            means *= means
            means *= counts
            means += squares
            variance = (means.sum(over) / problem.count).reshape(-1)
            return np.where(np.isnan(variance), np.nan, mean.reshape(-1)), variance

    def apply(self, x, residual, middle, scale, shift, out) -> None:
        problem, dtype = self.problem, x.dtype
        x, residual, out = self._of(x), self._of(residual), self._of(out)
        known = self._coefficients(dtype, middle, scale, shift)
        added, relu = residual is not None, problem.activation == "relu"
        residual = residual if added else x

        def work(item) -> None:
            o, _, some = item
            target = out[o, some]
            own = (each[o] for each in known)
            more = residual[o, some]
            self.loop.column_apply(x[o, some], *own, more, added, relu, target)
            if problem.activation not in ("identity", "relu"):
                target[...] = _VALUE[problem.activation](target, problem.alpha)

        for_each(work, self.items)

    def backward_sums(self, grad, x, residual, middle, scale, shift, grad_z):
        """Two sums (1 or outer, channels): of the gradient, and of it times x - middle."""
        dtype, relu = x.dtype, self.problem.activation == "relu"
        grad, x, residual, grad_z = map(self._of, (grad, x, residual, grad_z))
        known = self._coefficients(dtype, middle, scale, shift)
        added, kept = residual is not None, grad_z is not None
        residual, grad_z = residual if added else x, grad_z if kept else grad
        first, second = np.zeros((2, len(x), len(self.parts), x.shape[2]))

        def work(item) -> None:
            o, part, some = item
            own = (each[o] for each in known)
            more, to = residual[o, some], grad_z[o, some]
            sums = first[o, part], second[o, part]
            inputs = grad[o, some], x[o, some]
            self.loop.column_backward_sums(*inputs, *own, more, added, relu, to, kept, *sums)

        for_each(work, self.items)
        return (self._by_channel(sums).sum((1, 2)) for sums in (first, second))

    def backward_apply(self, grad, x, middle, scale, shift, relu, slope, constant, out) -> None:
        """Slope and constant are None where the statistics are not those of x."""
        dtype, computed = x.dtype, slope is not None
        grad, x, out = map(self._of, (grad, x, out))
        known = self._coefficients(dtype, middle, scale, shift)
        rest = self._coefficients(dtype, slope, constant)

        def work(item) -> None:
            o, _, some = item
            own, others = (each[o] for each in known), (each[o] for each in rest)
            inputs = grad[o, some], x[o, some]
            self.loop.column_backward(*inputs, *own, relu, *others, computed, out[o, some])

        for_each(work, self.items)
