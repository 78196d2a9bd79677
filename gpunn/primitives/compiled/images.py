"""Loops of pooling and resizing.

Most go along one axis: arrays are (outer, places along the axis, inner), and a loop over `inner`
is what the compiler makes vectors of. The order of sums is that of the NumPy implementations.
"""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


@compiled
def window_sums(x, first, end, out):
    """``out[:, o] = sum of x[:, first[o]:end[o]]``."""
    for outer in range(x.shape[0]):
        for o in range(out.shape[1]):
            total = out[outer, o]
            total[:] = 0
            for i in range(first[o], end[o]):
                row = x[outer, i]
                for c in range(x.shape[2]):
                    total[c] += row[c]


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
def largest(x, firsts, ends, steps, out, indices):
    """The largest of each window of (N, D, H, W, C), and the number of its pixel in the image.

    The windows of a dimension are `firsts`, `ends` and `steps`. Of equal ones the first counts, of
    several NaN the last; a window without pixels has -inf and -1.
    """
    d_first, h_first, w_first = firsts
    d_end, h_end, w_end = ends
    d_step, h_step, w_step = steps
    height, width, channels = x.shape[2:]
    for n in range(x.shape[0]):
        for od in range(out.shape[1]):
            for oh in range(out.shape[2]):
                for ow in range(out.shape[3]):
                    best, place = out[n, od, oh, ow], indices[n, od, oh, ow]
                    best[:] = -np.inf
                    place[:] = -1
                    fresh = True
                    for d in range(d_first[od], d_end[od], d_step):
                        for h in range(h_first[oh], h_end[oh], h_step):
                            for w in range(w_first[ow], w_end[ow], w_step):
                                number = np.int32((d * height + h) * width + w)
                                row = x[n, d, h, w]
                                if fresh:
                                    best[:] = row
                                    place[:] = number
                                    fresh = False
                                    continue
                                for c in range(channels):
                                    value, before = row[c], best[c]
                                    better = value > before or value != value
                                    best[c] = value if better else before
                                    place[c] = number if better else place[c]


@compiled
def spread_to_places(grad, indices, out):
    """``out[n, i, c] = sum of grad[n, o, c]`` over the o with ``indices[n, o, c] = i``.

    All are (N, pixels, C). The last o comes first. Indices outside of the image count nowhere.
    """
    pixels = out.shape[1]
    for n in range(grad.shape[0]):
        out[n] = 0
        for o in range(grad.shape[1] - 1, -1, -1):
            row, place = grad[n, o], indices[n, o]
            for c in range(grad.shape[2]):
                i = place[c]
                if 0 <= i < pixels:
                    out[n, i, c] += row[c]


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
