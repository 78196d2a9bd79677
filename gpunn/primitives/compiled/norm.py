"""Loops of the norms: rows of layer and RMS norm, columns of batch, group and instance norm.

A sum along a row is folded, half onto half, and one down the columns runs along rows of totals: the
inner loops go by element, so a compiler may use vectors of any width and the bits stay the same.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled

_RUN = 32  # rows that are added up in their own type, before the sum goes to float64


@compiled
def _folded(values, n):
    """The sum of the first `n` of `values`, which is overwritten."""
    while n > 8:
        half = (n + 1) // 2
        low, high = values[: n - half], values[half:n]
        for c in range(n - half):
            low[c] += high[c]
        n = half
    total = values[0]
    for c in range(1, n):
        total += values[c]
    return total


@compiled
def row_forward(x, weight, bias, eps, centred, out, mean, reciprocal):
    """Layer norm of (rows, columns), or RMS norm; `out` may be `x`."""
    cols, one = x.shape[1], x.dtype.type(1)
    n, part = x.dtype.type(cols), (cols + 3) // 4
    last = cols - 3 * part  # of the four parts of a row the last may be shorter, down to nothing
    if last < 0:
        part, last = cols, 0
    sums = np.empty(part, x.dtype)
    for r in range(x.shape[0]):
        row, to = x[r], out[r]
        middle = x.dtype.type(0)
        if part == cols:
            if centred:
                for c in range(cols):
                    sums[c] = row[c]
                middle = _folded(sums, cols) / n
            for c in range(cols):
                sums[c] = (row[c] - middle) * (row[c] - middle)
        else:
            a, b, d, e = row[:part], row[part : 2 * part], row[2 * part : 3 * part], row[3 * part :]
            if centred:
                for c in range(part):
                    sums[c] = (a[c] + b[c]) + d[c]
                for c in range(last):
                    sums[c] += e[c]
                middle = _folded(sums, part) / n
            for c in range(part):
                p, q, s = a[c] - middle, b[c] - middle, d[c] - middle
                sums[c] = (p * p + q * q) + s * s
            for c in range(last):
                sums[c] += (e[c] - middle) * (e[c] - middle)
        scale = one / np.sqrt(_folded(sums, part) / n + eps)
        for c in range(cols):
            to[c] = (row[c] - middle) * scale * weight[c] + bias[c]
        mean[r] = middle
        reciprocal[r] = scale


@compiled
def row_backward(grad, x, mean, reciprocal, weight, centred, extra, added, out, wanted, sums):
    """The gradient of both; `extra` is added if `added`. `out` may be `grad`, `x` or `extra`.

    If `wanted`, `sums` (2, columns) in float64 receives those for the weight and for the bias.
    """
    cols = x.shape[1]
    n = x.dtype.type(cols)
    first, second = np.empty(cols, x.dtype), np.empty(cols, x.dtype)
    dweight, dbias = np.zeros(cols, x.dtype), np.zeros(cols, x.dtype)
    to_weight, to_bias = sums[0], sums[1]
    for r in range(x.shape[0]):
        g, row, to, more = grad[r], x[r], out[r], extra[r]
        m, s = mean[r], reciprocal[r]
        for c in range(cols):
            t = g[c] * weight[c]
            first[c] = t
            second[c] = t * ((row[c] - m) * s)
        if wanted:
            for c in range(cols):
                dweight[c] += g[c] * ((row[c] - m) * s)
                dbias[c] += g[c]
            if r % _RUN == _RUN - 1 or r == x.shape[0] - 1:
                for c in range(cols):
                    to_weight[c] += dweight[c]
                    to_bias[c] += dbias[c]
                    dweight[c] = 0
                    dbias[c] = 0
        b = _folded(second, cols) / n
        a = _folded(first, cols) / n if centred else x.dtype.type(0)
        if added:
            for c in range(cols):
                to[c] = ((g[c] * weight[c] - a) - (row[c] - m) * s * b) * s + more[c]
        else:
            for c in range(cols):
                to[c] = ((g[c] * weight[c] - a) - (row[c] - m) * s * b) * s


@compiled
def column_moments(x, mean, squares):
    """The mean of each column of (O, L, C), and the sum of the squares of differences from it."""
    length, cols = x.shape[1:]
    middle = np.empty(cols, x.dtype)
    first, second = np.empty(cols, x.dtype), np.empty(cols, x.dtype)
    for o in range(x.shape[0]):
        total, rest, square = mean[o], np.zeros(cols), squares[o]
        total[:] = 0
        square[:] = 0
        for start in range(0, length, _RUN):
            first[:] = 0
            for r in range(start, min(start + _RUN, length)):
                row = x[o, r]
                for c in range(cols):
                    first[c] += row[c]
            for c in range(cols):
                total[c] += first[c]
        for c in range(cols):
            total[c] /= length
            middle[c] = total[c]
        for start in range(0, length, _RUN):
            first[:] = 0
            second[:] = 0
            for r in range(start, min(start + _RUN, length)):
                row = x[o, r]
                for c in range(cols):
                    d = row[c] - middle[c]
                    first[c] += d
                    second[c] += d * d
            for c in range(cols):
                rest[c] += first[c]
                square[c] += second[c]
        for c in range(cols):  # what the sum of large numbers lost of the mean
            shift = rest[c] / length
            total[c] = middle[c] + shift
            square[c] = max(square[c] - rest[c] * shift, 0.0) if square[c] == square[c] else np.nan


@compiled
def column_apply(x, middle, scale, shift, residual, added, relu, out):
    """``(x - middle) * scale + shift``, the residual if `added`, and relu."""
    cols, zero = x.shape[2], x.dtype.type(0)
    for o in range(x.shape[0]):
        m, s, b = middle[o], scale[o], shift[o]
        for r in range(x.shape[1]):
            row, to, more = x[o, r], out[o, r], residual[o, r]
            if added:
                for c in range(cols):
                    v = (row[c] - m[c]) * s[c] + b[c] + more[c]
                    to[c] = zero if relu and v <= zero else v
            elif relu:
                for c in range(cols):
                    v = (row[c] - m[c]) * s[c] + b[c]
                    to[c] = zero if v <= zero else v
            else:
                for c in range(cols):
                    to[c] = (row[c] - m[c]) * s[c] + b[c]


@compiled
def column_backward_sums(
    grad, x, middle, scale, shift, residual, added, relu, grad_z, kept, by_bias, by_weight
):
    """Down the columns the sums of d and of d (x - middle); d is the gradient before relu.

    d goes to `grad_z` if it is `kept`.
    """
    length, cols = x.shape[1:]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    first, second = np.empty(cols, x.dtype), np.empty(cols, x.dtype)
    through = np.empty(cols, x.dtype)
    for o in range(x.shape[0]):
        m, s, b, to_bias, to_weight = middle[o], scale[o], shift[o], by_bias[o], by_weight[o]
        for start in range(0, length, _RUN):
            first[:] = 0
            second[:] = 0
            for r in range(start, min(start + _RUN, length)):
                row, d, more, to = x[o, r], grad[o, r], residual[o, r], grad_z[o, r]
                if relu:
                    if added:
                        for c in range(cols):
                            z = (row[c] - m[c]) * s[c] + b[c] + more[c]
                            through[c] = d[c] * (zero if z <= zero else one)
                    else:
                        for c in range(cols):
                            z = (row[c] - m[c]) * s[c] + b[c]
                            through[c] = d[c] * (zero if z <= zero else one)
                    d = through
                for c in range(cols):
                    first[c] += d[c]
                    second[c] += d[c] * (row[c] - m[c])
                if kept:
                    for c in range(cols):
                        to[c] = d[c]
            for c in range(cols):
                to_bias[c] += first[c]
                to_weight[c] += second[c]


@compiled
def column_backward(grad, x, middle, scale, shift, relu, slope, constant, computed, out):
    """``d scale - (x - middle) slope - constant``, or the first term alone; d as for the sums."""
    cols = x.shape[2]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for o in range(x.shape[0]):
        m, s, b, k, t = middle[o], scale[o], shift[o], slope[o], constant[o]
        for r in range(x.shape[1]):
            row, g, to = x[o, r], grad[o, r], out[o, r]
            if relu and computed:
                for c in range(cols):
                    d = row[c] - m[c]
                    v = g[c] * (zero if d * s[c] + b[c] <= zero else one)
                    to[c] = v * s[c] - d * k[c] - t[c]
            elif computed:
                for c in range(cols):
                    to[c] = g[c] * s[c] - (row[c] - m[c]) * k[c] - t[c]
            elif relu:
                for c in range(cols):
                    v = g[c] * (zero if (row[c] - m[c]) * s[c] + b[c] <= zero else one)
                    to[c] = v * s[c]
            else:
                for c in range(cols):
                    to[c] = g[c] * s[c]
