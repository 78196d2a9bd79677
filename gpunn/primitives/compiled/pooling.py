"""Loops of max pooling that know where the largest pixels are."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


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
                    fresh = True
                    for d in range(d_first[od], d_end[od], d_step):
                        for h in range(h_first[oh], h_end[oh], h_step):
                            for w in range(w_first[ow], w_end[ow], w_step):
                                number = np.int32((d * height + h) * width + w)
                                row = x[n, d, h, w]
                                if fresh:
                                    fresh = False
                                    for c in range(channels):
                                        best[c] = row[c]
                                        place[c] = number
                                    continue
                                for c in range(channels):
                                    value, before = row[c], best[c]
                                    better = value > before or value != value
                                    best[c] = value if better else before
                                    place[c] = number if better else place[c]
                    if fresh:
                        best[:] = -np.inf
                        place[:] = -1


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
