"""Augmented images, a row at a time: see `gpunn.primitives.augment_implementation`."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


@compiled
def augment(
    images, indices, tops, lefts, flips, cuts_y, cuts_x, factors, terms, fills, reflect, cut, out
):  # fmt: skip
    """Make ``out`` (N, h, w, C), float32, of the choices for each of its images."""
    height, width = images.shape[1], images.shape[2]
    h, w, channels = out.shape[1], out.shape[2], out.shape[3]
    line = w * channels
    factor, term, fill = np.empty((3, line), np.float32)
    columns = np.empty(w, np.int64)
    for i in range(out.shape[0]):
        sample, flip, cut_y, cut_x = indices[i], flips[i], cuts_y[i], cuts_x[i]
        for j in range(line):
            c = j % channels
            factor[j], term[j], fill[j] = factors[i, c], terms[i, c], fills[i, c]
        for x in range(w):
            columns[x] = _pixel((w - 1 - x if flip else x) + lefts[i], width, reflect)
        for y in range(h):
            target, row = out[i, y], _pixel(y + tops[i], height, reflect)
            if row < 0:
                for x in range(w):
                    for c in range(channels):
                        target[x, c] = fill[c]
                continue
            source = images[sample, row]
            for x in range(w):
                column = max(columns[x], 0)
                for c in range(channels):
                    target[x, c] = source[column, c]
            flat = target.reshape(line)
            for j in range(line):
                flat[j] = flat[j] * factor[j] + term[j]
            for x in range(w):
                if columns[x] < 0:
                    for c in range(channels):
                        target[x, c] = fill[c]
        for y in range(max(0, cut_y), min(h, cut_y + cut)):
            for x in range(max(0, cut_x), min(w, cut_x + cut)):
                for c in range(channels):
                    out[i, y, x, c] = fill[c]


@compiled
def _pixel(i, n, reflect):
    """Pixel i of an image of n that is mirrored at its ends; -1 for none."""
    if 0 <= i < n:
        return i
    if not reflect:
        return -1
    return -i if i < 0 else 2 * (n - 1) - i
