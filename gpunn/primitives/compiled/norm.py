"""Loops of the norms: rows of layer and RMS norm, columns of batch, group and instance norm.

A sum along a row is kept in 64 parts, and one down the columns runs along a row of totals: the
inner loops go by element, so a compiler may use vectors of any width and the bits stay the same.
"""

from __future__ import annotations

import numba
import numpy as np

from gpunn.primitives.cpu_compiled import compiled

_inlined = numba.njit(inline="always")  # a call would count references to each row

_RUN = 32  # rows that are added up in their own type, before the sum goes to float64
_SHORT = 256  # columns


@_inlined
def _joined(lanes):
    """The sum of 64, which are overwritten."""
    a = lanes
    for k in range(32):
        a[k] += a[k + 32]
    for k in range(8):
        a[k] = (a[k] + a[k + 8]) + (a[k + 16] + a[k + 24])
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))


@_inlined
def _short_sum(row):
    """The same of a row for which 64 parts are too many; these stay in registers."""
    n = row.size
    t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = row.dtype.type(0)
    for i in range(n // 8):
        p = row[8 * i :]
        t0, t1, t2, t3 = t0 + p[0], t1 + p[1], t2 + p[2], t3 + p[3]
        t4, t5, t6, t7 = t4 + p[4], t5 + p[5], t6 + p[6], t7 + p[7]
    for i in range(n // 8 * 8, n):
        t0 += row[i]
    return ((t0 + t1) + (t2 + t3)) + ((t4 + t5) + (t6 + t7))


@_inlined
def _short_squares(row, m):
    n = row.size
    t0 = t1 = t2 = t3 = row.dtype.type(0)
    for i in range(n // 4):
        p = row[4 * i :]
        a, b, c, d = p[0] - m, p[1] - m, p[2] - m, p[3] - m
        t0, t1, t2, t3 = t0 + a * a, t1 + b * b, t2 + c * c, t3 + d * d
    for i in range(n // 4 * 4, n):
        t0 += (row[i] - m) * (row[i] - m)
    return (t0 + t1) + (t2 + t3)


@_inlined
def _sum(row, lanes):
    n = row.size
    wide, whole = n // 256, n // 64
    for k in range(64):
        lanes[k] = 0
    for i in range(wide):
        p = row[256 * i :]
        for k in range(64):
            lanes[k] += (p[k] + p[k + 64]) + (p[k + 128] + p[k + 192])
    for i in range(4 * wide, whole):
        p = row[64 * i :]
        for k in range(64):
            lanes[k] += p[k]
    p = row[64 * whole :]
    for k in range(n - 64 * whole):
        lanes[k] += p[k]
    return _joined(lanes)


@_inlined
def _squares(row, m, lanes):
    """The sum of the squares of the differences from m."""
    n = row.size
    wide, whole = n // 256, n // 64
    for k in range(64):
        lanes[k] = 0
    for i in range(wide):
        p = row[256 * i :]
        for k in range(64):
            a, b, c, d = p[k] - m, p[k + 64] - m, p[k + 128] - m, p[k + 192] - m
            lanes[k] += (a * a + b * b) + (c * c + d * d)
    for i in range(4 * wide, whole):
        p = row[64 * i :]
        for k in range(64):
            lanes[k] += (p[k] - m) * (p[k] - m)
    p = row[64 * whole :]
    for k in range(n - 64 * whole):
        lanes[k] += (p[k] - m) * (p[k] - m)
    return _joined(lanes)


@_inlined
def _row_apply(row, middle, scale, weight, bias, to):
    for c in range(row.size):
        to[c] = (row[c] - middle) * scale * weight[c] + bias[c]


@compiled
def row_forward(x, weight, bias, eps, centred, out, mean, reciprocal):
    """Layer norm of (rows, columns), or RMS norm; `out` may be `x`."""
    n, one, middle = x.dtype.type(x.shape[1]), x.dtype.type(1), x.dtype.type(0)
    lanes = np.empty(64, x.dtype)
    for r in range(x.shape[0]):
        row = x[r]
        if row.size < _SHORT:
            if centred:
                middle = _short_sum(row) / n
            total = _short_squares(row, middle)
        else:
            if centred:
                middle = _sum(row, lanes) / n
            total = _squares(row, middle, lanes)
        scale = one / np.sqrt(total / n + eps)
        _row_apply(row, middle, scale, weight, bias, out[r])
        mean[r] = middle
        reciprocal[r] = scale


@_inlined
def _row_products(g, row, m, s, weight, first, second):
    for c in range(row.size):
        t = g[c] * weight[c]
        first[c] = t
        second[c] = t * ((row[c] - m) * s)


@_inlined
def _add_columns(g, row, m, s, dweight, dbias):
    for c in range(row.size):
        dweight[c] += g[c] * ((row[c] - m) * s)
        dbias[c] += g[c]


@_inlined
def _row_gradient(first, row, m, s, a, b, to):
    for c in range(row.size):
        to[c] = ((first[c] - a) - (row[c] - m) * s * b) * s


@compiled
def row_backward(grad, x, mean, reciprocal, weight, centred, extra, added, out, wanted, sums):
    """The gradient of both; `extra` is added if `added`. `out` may be `grad`, `x` or `extra`.

    If `wanted`, `sums` (2, columns) in float64 receives those for the weight and for the bias.
    """
    cols, rows = x.shape[1], x.shape[0]
    n = x.dtype.type(cols)
    lanes, first, second = np.empty(64, x.dtype), np.empty(cols, x.dtype), np.empty(cols, x.dtype)
    dweight, dbias = np.zeros(cols, x.dtype), np.zeros(cols, x.dtype)
    to_weight, to_bias = sums[0], sums[1]
    for r in range(rows):
        g, row, to = grad[r], x[r], out[r]
        m, s = mean[r], reciprocal[r]
        _row_products(g, row, m, s, weight, first, second)
        if wanted:
            _add_columns(g, row, m, s, dweight, dbias)
            if r % _RUN == _RUN - 1 or r == rows - 1:
                for c in range(cols):
                    to_weight[c] += dweight[c]
                    to_bias[c] += dbias[c]
                dweight[:] = 0
                dbias[:] = 0
        if cols < _SHORT:
            b, a = _short_sum(second) / n, _short_sum(first) / n
        else:
            b, a = _sum(second, lanes) / n, _sum(first, lanes) / n
        if not centred:
            a = x.dtype.type(0)
        if added:
            _row_gradient(first, row, m, s, a, b, second)
            more = extra[r]
            for c in range(cols):
                to[c] = second[c] + more[c]
        else:
            _row_gradient(first, row, m, s, a, b, to)


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
