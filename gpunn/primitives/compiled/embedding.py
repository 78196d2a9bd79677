"""The gradient of an embedding's table."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.cpu_compiled import compiled


@compiled
def add_rows(grad, indices, padding, block, begin, end, out):
    """``out[indices[r]] += grad[r]`` in columns `begin` to `end`, except where padding is named.

    The rows of a number are added in their order; of one that stands there more than `block` times,
    sums of so many rows are, so that float32 stays exact to its last digits.
    """
    left = np.zeros(out.shape[0], np.int64)
    for r in range(indices.shape[0]):
        left[indices[r]] += 1
    slots = np.full(out.shape[0], -1, np.int64)
    many = 0
    for number in range(out.shape[0]):
        if left[number] > block:
            slots[number] = many
            many += 1
    sums, seen = np.zeros((many, end - begin), out.dtype), np.zeros(many, np.int64)
    for r in range(indices.shape[0]):
        number = indices[r]
        if number == padding:
            continue
        row, target, slot = grad[r, begin:end], out[number, begin:end], slots[number]
        if slot < 0:
            for c in range(end - begin):
                target[c] += row[c]
            continue
        total = sums[slot]
        for c in range(end - begin):
            total[c] += row[c]
        seen[slot] += 1
        left[number] -= 1
        if seen[slot] == block or left[number] == 0:
            seen[slot] = 0
            for c in range(end - begin):
                target[c] += total[c]
                total[c] = 0
