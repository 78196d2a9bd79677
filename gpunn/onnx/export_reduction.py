"""Sums, means, extremes over axes; elements picked by index; running sums."""

from __future__ import annotations

import math

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.table import converts


def reduce(graph, name: str, edge: str, axes, keepdims: bool) -> str:
    """One of ONNX's reductions over axes; over none nothing is done."""
    if not axes:
        return edge
    return graph.op(name, edge, graph.ints(*axes), keepdims=int(keepdims))


@converts("Sum")
def _sum(graph, call):
    x, axes, keepdims = call.arguments
    edge = graph.cast(graph.edge(x), call.outputs[0].dtype, x.dtype)
    return reduce(graph, "ReduceSum", edge, axes, keepdims)


@converts("Mean", "Prod", "EuclideanNorm")
def _plain(graph, call):
    x, axes, keepdims = call.arguments
    name = {"Mean": "ReduceMean", "Prod": "ReduceProd", "EuclideanNorm": "ReduceL2"}[call.kind]
    if not axes and call.kind == "EuclideanNorm":
        return graph.op("Abs", graph.edge(x))
    return reduce(graph, name, graph.edge(x), axes, keepdims)


@converts("Extremum")
def _extremum(graph, call):
    x, axes, keepdims, largest = call.arguments
    edge, inner = graph.edge(x), x.dtype
    if x.dtype == np.bool_:
        edge, inner = graph.cast(edge, np.int32), np.dtype(np.int32)
    edge = reduce(graph, "ReduceMax" if largest else "ReduceMin", edge, axes, keepdims)
    return graph.cast(edge, x.dtype, inner)


@converts("Variance")
def _variance(graph, call):
    x, axes, correction, keepdims = call.arguments
    edge, dtype = graph.wide(x)
    centred = graph.op("Sub", edge, reduce(graph, "ReduceMean", edge, axes, True))
    total = reduce(graph, "ReduceSum", graph.op("Mul", centred, centred), axes, keepdims)
    sizes = [x.shape[axis] for axis in axes]
    if any(isinstance(size, Varying) for size in sizes):
        count = None
        for size in sizes:
            part = graph.size(size)
            count = part if count is None else graph.op("Mul", count, part)
        freedom = graph.op("Sub", graph.scalar(count), graph.constant(np.int64(correction)))
        freedom = graph.op("Max", freedom, graph.constant(np.int64(0)))
        total = graph.op("Div", total, graph.cast(freedom, dtype))
    else:
        freedom = max(math.prod(sizes) - correction, 0)
        total = graph.op("Div", total, graph.constant(freedom, dtype))
    return graph.cast(total, x.dtype, dtype)


@converts("Pick", "Gather")
def _pick(graph, call):
    x, index, axis = call.arguments
    return graph.op("GatherElements", graph.edge(x), graph.edge(index), axis=axis)


@converts("Cumsum")
def _cumsum(graph, call):
    x, axis = call.arguments
    edge = graph.cast(graph.edge(x), call.outputs[0].dtype, x.dtype)
    return graph.op("CumSum", edge, graph.constant(np.int64(axis)))


@converts("numpy.cumsum")
def _numpy_cumsum(graph, call):
    x, *arguments, options = call.arguments
    axis = arguments[0] if arguments else options.get("axis")
    edge = graph.cast(graph.edge(x), call.outputs[0].dtype, x.dtype)
    if axis is None:
        edge, axis = graph.reshape(edge, [-1]), 0
    return graph.op("CumSum", edge, graph.constant(np.int64(axis)))
