"""Arrays that differ between the runs of a model, as nodes that make them from sizes.

Zeros for a first state, positions 0 … T - 1, a mask of what lies behind: where their form is
recognised they are made for every size of the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.onnx.aligning import Varying


def write(graph: Any, arrays: tuple[np.ndarray, ...], shape: tuple) -> str | None:
    """The edge of nodes that make the array of shape `shape`; None if it has no known pattern."""
    if any(array.size == 0 for array in arrays):
        return None
    for pattern in (_filled, _repeated, _counted, _triangle):
        edge = pattern(graph, arrays, shape)
        if edge is not None:
            return edge
    return None


def _filled(graph, arrays, shape):
    """One number everywhere."""
    first = arrays[0].reshape(-1)[:1]
    if not all((array == first).all() for array in arrays):
        return None
    return graph.expand(graph.constant(first.reshape(())), shape)


def _repeated(graph, arrays, shape):
    """The same along every axis whose size varies."""
    axes = [axis for axis, size in enumerate(shape) if isinstance(size, Varying)]
    if not axes:
        return None
    key = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(len(shape)))
    rows = arrays[0][key]
    if not all((array == rows).all() for array in arrays):
        return None
    return graph.expand(graph.constant(rows), shape)


def _counted(graph, arrays, shape):
    """Whole numbers that rise by one step along each axis, from one start."""
    if arrays[0].dtype.kind not in "iu":
        return None
    largest = max(arrays, key=np.size).astype(np.int64)
    start = int(largest.flat[0])
    steps = [
        int(largest[(0,) * axis + (1,) + (0,) * (largest.ndim - axis - 1)]) - start
        if largest.shape[axis] > 1 else 0
        for axis in range(largest.ndim)
    ]  # fmt: skip
    for array in arrays:
        places = np.indices(array.shape, sparse=True)
        made = start + sum(step * place for step, place in zip(steps, places, strict=True))
        if not (array == made).all():
            return None
    total = graph.constant(np.int64(start))
    for axis, (step, size) in enumerate(zip(steps, shape, strict=True)):
        if size == 1:
            continue
        line = graph.op("Mul", graph.range(size), graph.constant(np.int64(step)))
        others = [other for other in range(len(shape)) if other != axis]
        line = graph.op("Unsqueeze", line, graph.ints(*others)) if others else line
        total = graph.op("Add", total, line)
    return graph.cast(total, arrays[0].dtype, np.int64)


def _triangle(graph, arrays, shape):
    """One number on and below a diagonal of the last two axes, another above it."""
    if len(shape) < 2 or any(size != 1 for size in shape[:-2]):
        return None
    matrices = [array.reshape(array.shape[-2:]) for array in arrays]
    for diagonal in _diagonals(matrices[0]):
        masks = [np.tri(*matrix.shape, diagonal, dtype=np.bool_) for matrix in matrices]
        if not masks[0].any() or masks[0].all():
            continue
        below, above = matrices[0][masks[0]][0], matrices[0][~masks[0]][0]
        pairs = zip(matrices, masks, strict=True)
        if all((matrix == np.where(mask, below, above)).all() for matrix, mask in pairs):
            break
    else:
        return None
    rows, columns = (graph.scalar(graph.size(size)) for size in shape[-2:])
    zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
    row = graph.op("Unsqueeze", graph.op("Range", zero, rows, one), graph.ints(1))
    column = graph.op("Unsqueeze", graph.op("Range", zero, columns, one), graph.ints(0))
    limit = graph.op("Add", row, graph.constant(np.int64(diagonal)))
    mask = graph.op("LessOrEqual", column, limit)
    dtype = arrays[0].dtype
    if dtype == np.bool_:
        mask = mask if below else graph.op("Not", mask)
    else:
        mask = graph.op("Where", mask, graph.constant(below), graph.constant(above))
    lead = len(shape) - 2
    return graph.op("Unsqueeze", mask, graph.ints(*range(lead))) if lead else mask


def _diagonals(matrix):
    """Where the first row may change: the diagonals to try."""
    row = matrix[0]
    changes = np.flatnonzero(row[1:] != row[0])
    return (int(changes[0]), -1) if changes.size else (-1, 0)
