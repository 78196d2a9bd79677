"""Shapes: the same elements elsewhere. Sizes that vary become -1 or 0, or are worked out."""

from __future__ import annotations

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.table import converts


def _same_size(a, b) -> bool:
    if isinstance(a, Varying) and isinstance(b, Varying):
        return a.values == b.values
    return not isinstance(a, Varying) and not isinstance(b, Varying) and a == b


def reshaped(graph, edge: str, before: tuple, shape: tuple) -> str:
    """`edge` of shape `before` in `shape`."""
    if len(before) == len(shape) and all(map(_same_size, before, shape)):
        return edge
    varying = [axis for axis, size in enumerate(shape) if isinstance(size, Varying)]
    copied = [
        axis for axis in varying if axis < len(before) and _same_size(before[axis], shape[axis])
    ]
    left = [axis for axis in varying if axis not in copied]
    if len(left) > 1:
        return graph.reshape(edge, shape)
    sizes = [0 if axis in copied else -1 if axis in left else n for axis, n in enumerate(shape)]
    if 0 in [n for n in shape if not isinstance(n, Varying)]:
        return graph.op("Reshape", edge, graph.sizes(shape), allowzero=1)
    return graph.reshape(edge, sizes)


@converts("Reshape")
def _reshape(graph, call):
    x, shape = call.arguments
    return reshaped(graph, graph.edge(x), x.shape, tuple(shape))


@converts("numpy.reshape", "numpy.ravel", "numpy.squeeze", "numpy.expand_dims")
def _numpy_reshape(graph, call):
    x = call.arguments[0]
    return reshaped(graph, graph.edge(x), x.shape, call.outputs[0].shape)


@converts("Permute")
def _permute(graph, call):
    x, order = call.arguments
    return graph.transpose(graph.edge(x), order)


@converts("numpy.transpose", "numpy.swapaxes", "numpy.moveaxis")
def _numpy_transpose(graph, call):
    x, *arguments, options = call.arguments
    # What NumPy does with the axes shows in the strides of an array that has one for each.
    ndim = len(x.shape)
    template = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.int8), (1,) * ndim, tuple(range(1, ndim + 1))
    )
    function = getattr(np, call.kind.partition(".")[2])
    order = [stride - 1 for stride in function(template, *arguments, **options).strides]
    return graph.transpose(graph.edge(x), order)


@converts("Expand")
def _expand(graph, call):
    x, shape = call.arguments
    return graph.expand(graph.edge(x), tuple(shape))


@converts("numpy.broadcast_to")
def _broadcast_to(graph, call):
    return graph.expand(graph.edge(call.arguments[0]), call.outputs[0].shape)


@converts("Flip")
def _flip(graph, call):
    x, axes = call.arguments
    return flip(graph, graph.edge(x), axes)


def flip(graph, edge: str, axes) -> str:
    """The reverse order along axes."""
    if not axes:
        return edge
    count = len(axes)
    starts, ends, steps = ([value] * count for value in (-1, np.iinfo(np.int64).min + 1, -1))
    return graph.op(
        "Slice", edge, graph.ints(*starts), graph.ints(*ends), graph.ints(*axes), graph.ints(*steps)
    )


@converts("numpy.flip")
def _numpy_flip(graph, call):
    x, *arguments, options = call.arguments
    axis = arguments[0] if arguments else options.get("axis")
    axes = range(len(x.shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return flip(graph, graph.edge(x), tuple(axes))


@converts("Cat")
def _cat(graph, call):
    axis, *parts = call.arguments
    return graph.op("Concat", *map(graph.edge, parts), axis=axis)


@converts("numpy.concatenate")
def _concatenate(graph, call):
    parts, *arguments, options = call.arguments
    axis = arguments[0] if arguments else options.get("axis", 0)
    dtype = call.outputs[0].dtype
    return graph.op("Concat", *(graph.operand(part, dtype) for part in parts), axis=axis)


@converts("numpy.stack")
def _stack(graph, call):
    parts, *arguments, options = call.arguments
    axis, dtype = arguments[0] if arguments else options.get("axis", 0), call.outputs[0].dtype
    edges = [graph.op("Unsqueeze", graph.operand(p, dtype), graph.ints(axis)) for p in parts]
    return graph.op("Concat", *edges, axis=axis)


@converts("Triangle")
def _triangle(graph, call):
    x, diagonal, lower = call.arguments
    return triangle(graph, x, diagonal, lower)


def triangle(graph, x, diagonal: int, lower: bool) -> str:
    """What lies on and below (or above) a diagonal."""
    place = graph.constant(np.int64(diagonal))
    return graph.op("Trilu", graph.edge(x), place, upper=int(not lower))


@converts("numpy.tril", "numpy.triu")
def _numpy_triangle(graph, call):
    x, *arguments, options = call.arguments
    diagonal = arguments[0] if arguments else options.get("k", 0)
    return triangle(graph, x, diagonal, call.kind == "numpy.tril")
