"""Loops along one axis, for pooling, resizing and reductions.

Arrays are (outer, places along the axis, inner); a loop over `inner` is what the compiler makes
vectors of. The order of sums is that of the NumPy implementations.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


@compiled
def window_sums(x, first, end, out):
    """``out[:, o] = sum of x[:, first[o]:end[o]]``."""
    for outer in range(x.shape[0]):
        for o in range(out.shape[1]):
            total, i = out[outer, o], first[o]
            if end[o] - i < 2:
                total[:] = 0
            else:
                one, two = x[outer, i], x[outer, i + 1]
                for c in range(x.shape[2]):
                    total[c] = one[c] + two[c]
                i += 2
            while i + 1 < end[o]:  # two at once: the sum is read and written half as often
                one, two = x[outer, i], x[outer, i + 1]
                for c in range(x.shape[2]):
                    total[c] = (total[c] + one[c]) + two[c]
                i += 2
            if i < end[o]:
                one = x[outer, i]
                for c in range(x.shape[2]):
                    total[c] += one[c]


@compiled
def spread_sums(grad, first, end, out):
    """``out[:, i] = sum of grad[:, o]`` over the windows o that hold i, the last one first."""
    for outer in range(grad.shape[0]):
        out[outer] = 0
        for o in range(grad.shape[1] - 1, -1, -1):
            row = grad[outer, o]
            for i in range(first[o], end[o]):
                total = out[outer, i]
                for c in range(grad.shape[2]):
                    total[c] += row[c]


@compiled
def window_maxima(x, first, end, step, out):
    """``out[:, o] = largest of x[:, first[o]:end[o]:step]``, NaN if there is one, -inf of none."""
    for outer in range(x.shape[0]):
        for o in range(out.shape[1]):
            best = out[outer, o]
            best[:] = -np.inf
            for i in range(first[o], end[o], step):
                row = x[outer, i]
                for c in range(x.shape[2]):
                    value, before = row[c], best[c]
                    best[c] = value if value > before or value != value else before


@compiled
def interpolate(x, places, weights, out):
    """``out[:, o] = weights[0, o] x[:, places[0, o]] + weights[1, o] x[:, places[1, o]]``."""
    for outer in range(x.shape[0]):
        for o in range(out.shape[1]):
            one, two, to = x[outer, places[0, o]], x[outer, places[1, o]], out[outer, o]
            first, second = weights[0, o], weights[1, o]
            for c in range(x.shape[2]):
                to[c] = one[c] * first + two[c] * second


@compiled
def spread_weighted(grad, places, weights, out):
    """``out[:, places[k, o]] += weights[k, o] grad[:, o]`` for all o, and all k in turn; from 0."""
    for outer in range(grad.shape[0]):
        out[outer] = 0
        for k in range(places.shape[0]):
            for o in range(grad.shape[1]):
                row, total, weight = grad[outer, o], out[outer, places[k, o]], weights[k, o]
                for c in range(grad.shape[2]):
                    total[c] += row[c] * weight
