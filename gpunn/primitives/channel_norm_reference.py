"""Batch, group and instance norm in NumPy: the reference, and what runs on the CPU.

The arrays are gone through in pieces that stay in the cache, each with the coefficients of its
channels laid out to match. Sums go into float64 totals, so that they do not lose their end. What is
large and has its channels last goes through compiled loops instead, if they are there.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import norm_compiled
from gpunn.primitives.activation import _DERIVATIVE, _VALUE
from gpunn.primitives.samples import accumulator_dtype

_CHUNK = 1 << 15  # elements of a piece
_WIDE = 512  # NumPy is slow along short rows: a few rows of channels count as one


class _Piece:
    """A piece of every array, and how sums over it come to their channels."""

    def __init__(self, outer, channels, place, columns):
        self.outer, self.channels = outer, channels  # slices of the totals
        self.place = place  # from an array's view to the piece
        self.columns = columns  # (rows, several times the channels), (samples, length, channels), …

    def of(self, array, dtype):
        """The piece of an array, in `dtype`."""
        return None if array is None else self.place(array).astype(dtype, copy=False)

    def spread(self, coefficient):
        """A coefficient (1 or outer, channels) so that it broadcasts with the piece."""
        if self.columns == "rows":
            return np.broadcast_to(coefficient, self.channels).reshape(-1, 1)[self.outer]
        own = coefficient if len(coefficient) == 1 else coefficient[self.outer]
        if self.columns == "samples":
            return own[:, None]
        return own if self.columns == 1 else np.tile(own, self.columns)

    def add(self, totals, values):
        """totals[o, c] += the sum of `values` over each channel of the piece."""
        if self.columns == "rows":
            flat = totals.reshape(-1)
            flat[self.outer] += values @ _ones(values.shape[1], values.dtype)
        elif self.columns == "samples":
            totals[self.outer] += np.add.reduce(values, axis=1)
        else:
            sums = _ones(len(values), values.dtype) @ values
            totals[self.outer] += sums.reshape(self.columns, -1).sum(0)


def _ones(count, dtype):
    return np.ones(count, dtype)


def _pieces(problem):
    outer, channels, length = problem.outer, problem.channels, problem.length
    if not problem.columns:
        rows, shape = outer * channels, (outer, channels)
        step, across = max(1, _CHUNK // length), max(1, min(length, 4 * _CHUNK))
        for start in range(0, rows, step):
            some = slice(start, start + step)
            for column in range(0, length, across):
                part = slice(column, column + across)
                yield _Piece(
                    some, shape, lambda a, s=some, p=part: a.reshape(rows, length)[s, p], "rows"
                )
    elif outer > 1 and length * channels < _CHUNK:
        step = max(1, _CHUNK // max(1, length * channels))
        for start in range(0, outer, step):
            some = slice(start, start + step)
            yield _Piece(some, None, lambda a, s=some: a[s], "samples")
    else:
        times = max(1, min(_WIDE // channels, length))
        whole = length // times * times
        step = max(1, _CHUNK // (times * channels))
        for o in range(outer):
            one = slice(o, o + 1)
            for start in range(0, whole // times, step):
                some = slice(start, start + step)
                yield _Piece(
                    one, None,
                    lambda a, o=o, s=some: a[o, :whole].reshape(-1, times * channels)[s], times,
                )  # fmt: skip
            if whole < length:
                yield _Piece(one, None, lambda a, o=o: a[o, whole:], 1)


def _over_sets(problem, totals):
    """The sums of (outer, channels) totals over each set, in one dimension."""
    if not problem.groups:
        return totals.sum(0)
    return totals.reshape(problem.outer, problem.groups, -1).sum(-1).reshape(-1)


def _of_channels(problem, values):
    """What each set has, for each channel: (1 or outer, channels)."""
    if not problem.groups:
        return values.reshape(1, -1)
    return np.repeat(values.reshape(problem.outer, problem.groups), problem.group, axis=1)


def _statistics(problem, x, dtype):
    """(mean, variance) of each set in float64; NaN and inf make both NaN."""
    totals = np.zeros((problem.outer, problem.channels))
    for piece in _pieces(problem):
        piece.add(totals, piece.of(x, dtype))
    mean = _over_sets(problem, totals) / problem.count
    middle = _of_channels(problem, mean.astype(dtype))
    squares, rest = np.zeros((2, problem.outer, problem.channels))
    for piece in _pieces(problem):
        difference = piece.of(x, dtype) - piece.spread(middle)
        piece.add(rest, difference)  # what the sum of large numbers lost of the mean
        difference *= difference
        piece.add(squares, difference)
    rest = _over_sets(problem, rest) / problem.count
    variance = np.maximum(_over_sets(problem, squares) / problem.count - rest * rest, 0)
    return np.where(np.isnan(variance), np.nan, mean.astype(dtype) + rest), variance


def _update_running(problem, mean, variance, running, batches):
    count, factor = problem.count, problem.momentum
    unbiased = variance * (count / (count - 1))
    if problem.groups:
        mean, unbiased = (a.reshape(problem.outer, -1).mean(0) for a in (mean, unbiased))
    if factor is None:
        factor = 1 / (int(batches) + 1)
    for kept, new in zip(running, (mean, unbiased), strict=True):
        kept[...] = (1 - factor) * kept.astype(np.float64) + factor * new


def _coefficients(problem, weight, bias, mean, spread, dtype):
    """(mean, reciprocal, reciprocal times weight, bias) as (1 or outer, channels)."""
    mean, reciprocal = mean.astype(dtype, copy=False), spread.astype(dtype, copy=False)
    if not problem.computed:
        reciprocal = 1 / np.sqrt(reciprocal + dtype.type(problem.eps))
    mean, reciprocal = _of_channels(problem, mean), _of_channels(problem, reciprocal)
    scale = reciprocal if weight is None else reciprocal * weight.astype(dtype, copy=False)
    shift = None if bias is None else bias.astype(dtype, copy=False).reshape(1, -1)
    return mean, reciprocal, scale, shift


def forward_reference(x, residual, weight, bias, out, mean, spread, running, batches, problem):
    dtype = accumulator_dtype(x.dtype)
    x, residual, out = (problem.view(array) for array in (x, residual, out))
    columns = norm_compiled.columns(problem, x)
    with quiet():
        if problem.computed and x.size:
            middle, variance = columns.statistics(x) if columns else _statistics(problem, x, dtype)
            mean.reshape(-1)[...] = middle
            spread.reshape(-1)[...] = 1 / np.sqrt(variance + problem.eps)
            if running[0] is not None:
                _update_running(problem, middle, variance, running, batches)
        if batches is not None:
            batches[...] += 1
        middle, _, scale, shift = _coefficients(problem, weight, bias, mean, spread, dtype)
        if columns:
            columns.apply(x, residual, middle, scale, shift, out)
            return
        for piece in _pieces(problem):
            target = piece.place(out)
            work = target if out.dtype == dtype else np.empty(target.shape, dtype)
            np.subtract(piece.of(x, dtype), piece.spread(middle), out=work)
            work *= piece.spread(scale)
            if shift is not None:
                work += piece.spread(shift)
            if residual is not None:
                work += piece.of(residual, dtype)
            if problem.activation == "relu":
                np.maximum(work, 0, out=work)
            elif problem.activation != "identity":
                work = _VALUE[problem.activation](work, problem.alpha)
            if work is not target:
                target[...] = work


def _through_activation(problem, piece, grad, difference, residual, scale, shift, dtype):
    """The gradient of what goes into the activation."""
    if problem.activation == "identity":
        return grad
    z = difference * piece.spread(scale)
    if shift is not None:
        z += piece.spread(shift)
    if residual is not None:
        z += piece.of(residual, dtype)
    if problem.activation == "relu":
        return np.multiply(grad, np.logical_not(z <= 0, out=z), out=z)
    return grad * _DERIVATIVE[problem.activation](z, problem.alpha)


def backward_reference(
    grad, x, residual, weight, bias, mean, spread, grad_z, out, dweight, dbias, problem
):
    dtype = accumulator_dtype(x.dtype)
    grad, x, residual, grad_z, out = (
        problem.view(array) for array in (grad, x, residual, grad_z, out)
    )
    first, second = np.zeros((2, problem.outer, problem.channels))
    plain = problem.activation in ("identity", "relu")
    columns = norm_compiled.columns(problem, x) if plain else None
    with quiet():
        known = _coefficients(problem, weight, bias, mean, spread, dtype)
        middle, reciprocal, scale, shift = known
        if columns:
            made = columns.backward_sums(grad, x, residual, middle, scale, shift, grad_z)
            first, second = made
        for piece in () if columns else _pieces(problem):
            difference = piece.of(x, dtype) - piece.spread(middle)
            d = _through_activation(
                problem, piece, piece.of(grad, dtype), difference, residual, scale, shift, dtype
            )
            piece.add(first, d)
            difference *= d
            piece.add(second, difference)
            if grad_z is not None:
                piece.place(grad_z)[...] = d
        second *= reciprocal
        for target, total in ((dweight, second), (dbias, first)):
            if target is not None:
                target[...] = total.sum(0)
        if grad_z is not None:
            grad, problem = grad_z, problem._replace(activation="identity")
        _apply_backward(problem, columns, grad, x, out, weight, first, second, known, dtype)


def _apply_backward(problem, columns, grad, x, out, weight, first, second, known, dtype):
    middle, reciprocal, scale, shift = known
    slope = constant = None
    if problem.computed and x.size:
        w = 1 if weight is None else weight.astype(np.float64)
        constant, slope = (
            _of_channels(problem, _over_sets(problem, sums * w) / problem.count)
            for sums in (first, second)
        )
        constant = (constant * reciprocal).astype(dtype)
        slope = (slope * reciprocal * reciprocal).astype(dtype)
    if columns:
        relu = problem.activation == "relu"
        columns.backward_apply(grad, x, middle, scale, shift, relu, slope, constant, out)
        return
    for piece in _pieces(problem):
        difference = None
        if problem.computed or problem.activation != "identity":
            difference = piece.of(x, dtype) - piece.spread(middle)
        d = _through_activation(
            problem, piece, piece.of(grad, dtype), difference, None, scale, shift, dtype
        )
        target = piece.place(out)
        work = target if out.dtype == dtype else None
        work = np.multiply(d, piece.spread(scale), out=work)
        if problem.computed:
            difference *= piece.spread(slope)
            work -= difference
            work -= piece.spread(constant)
        if work is not target:
            target[...] = work
