"""Rows of tables by their numbers, bags of them, and rotary position embedding."""

from __future__ import annotations

import math

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.onnx.recording import Value
from gpunn.onnx.table import converts


def _table(graph, weight, max_norm, norm_type) -> str:
    """The table; with `max_norm` one in which every row is scaled as it would be when it is read"""
    if max_norm is None:
        return graph.edge(weight)

    def scaled(array):
        rows = wide(array)
        norms = np.linalg.norm(rows, norm_type, axis=1, keepdims=True)
        rows = np.where(norms > max_norm, rows * (max_norm / (norms + 1e-7)), rows)
        return rows.astype(array.dtype)

    found = graph.folded(weight, "renormalized", scaled)
    if found is None:
        graph.refuse("max_norm of a table that depends on the inputs is not known here")
    return found


def _indices(graph, value) -> str:
    fits = value.dtype in (np.int32, np.int64)
    return graph.edge(value) if fits else graph.cast(graph.edge(value), np.int64)


@converts("embedding")
def _embedding(graph, call):
    input, weight, _, max_norm, norm_type, *_ = call.arguments
    table = _table(graph, weight, max_norm, norm_type)
    return graph.op("Gather", table, _indices(graph, input), axis=0)


@converts("Embedding")
def _embedding_function(graph, call):
    weight, indices, *_ = call.arguments
    return graph.op("Gather", graph.edge(weight), _indices(graph, indices), axis=0)


@converts("embedding_bag")
def _embedding_bag(graph, call):
    (input, weight, offsets, max_norm, norm_type, _, mode, _, factors, include_last,
     padding_idx) = call.arguments  # fmt: skip
    rows = graph.op("Gather", _table(graph, weight, max_norm, norm_type), _indices(graph, input),
                    axis=0)  # fmt: skip
    kept = None
    if padding_idx is not None:
        padding = graph.constant(padding_idx % weight.shape[0], input.dtype)
        kept = graph.op("Not", graph.op("Equal", graph.edge(input), padding))
    if factors is not None:
        edge = graph.op("Unsqueeze", graph.operand(factors, weight.dtype), graph.ints(-1))
        rows = graph.op("Mul", rows, edge)
    if offsets is not None:
        member = _members(graph, input, offsets, include_last)
        rows = graph.op("Unsqueeze", rows, graph.ints(0))
        kept = member if kept is None else graph.op("And", member, kept)
    return _reduced(graph, rows, kept, mode, weight.dtype)


def _members(graph, input, offsets, include_last) -> str:
    """(bags, entries): whether an entry lies in a bag."""
    starts = graph.operand(offsets, np.int64)
    ends = graph.op("Slice", starts, graph.ints(1), graph.ints(np.iinfo(np.int64).max),
                    graph.ints(0))  # fmt: skip
    if include_last:
        starts = graph.op("Slice", starts, graph.ints(0), graph.ints(-1), graph.ints(0))
    else:
        ends = graph.op("Concat", ends, graph.op("Shape", graph.edge(input)), axis=0)
    places = graph.range(input.shape[0])
    begun = graph.op("GreaterOrEqual", places, graph.op("Unsqueeze", starts, graph.ints(1)))
    return graph.op("And", begun, graph.op("Less", places, graph.op("Unsqueeze", ends,
                                                                     graph.ints(1))))  # fmt: skip


def _reduced(graph, rows, kept, mode, dtype) -> str:
    """Rows (B, L, D) over their second axis, those that are kept; of none, 0."""
    zero, axis = graph.constant(0, dtype), graph.ints(1)
    if kept is None:
        name = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}[mode]
        return graph.op(name, rows, axis, keepdims=0)
    mask = graph.op("Unsqueeze", kept, graph.ints(2))
    if mode == "max":
        lowest = graph.constant(-math.inf, dtype)
        most = graph.op("ReduceMax", graph.op("Where", mask, rows, lowest), axis, keepdims=0)
        some = graph.op("ReduceMax", graph.cast(mask, np.int32), axis, keepdims=0)
        return graph.op("Where", graph.cast(some, np.bool_), most, zero)
    total = graph.op("ReduceSum", graph.op("Where", mask, rows, zero), axis, keepdims=0)
    if mode == "sum":
        return total
    count = graph.op("ReduceSum", graph.cast(mask, dtype), axis, keepdims=0)
    return graph.op("Div", total, graph.op("Max", count, graph.constant(1, dtype)))


@converts("SegmentSum")
def _segment_sum(graph, call):
    rows, groups, number = call.arguments
    size = graph.op("Add", graph.size(number), graph.ints(1))
    shape = graph.op("Concat", size, graph.sizes(rows.shape[1:]), axis=0)
    empty = graph.op("Expand", graph.constant(0, rows.dtype), shape)
    places = graph.op("Unsqueeze", graph.operand(groups, np.int64), graph.ints(-1))
    total = graph.op("ScatterND", empty, places, graph.edge(rows), reduction="add")
    return graph.op("Slice", total, graph.ints(0), graph.size(number), graph.ints(0))


@converts("Rotary")
def _rotary(graph, call):
    x, cos, sin, positions, options = call.arguments
    ndim, axis = len(x.shape), options["axis"] % len(x.shape)
    edge, dtype = graph.wide(x)
    tables = [_rows(graph, table, positions, options["offset"], x.shape[axis], dtype)
              for table in (cos, sin)]  # fmt: skip
    batched = isinstance(positions, Value) and len(positions.shape) == 2
    given = {0, axis, ndim - 1} if batched else {axis, ndim - 1}
    missing = [a for a in range(ndim) if a not in given]
    if missing:
        tables = [graph.op("Unsqueeze", table, graph.ints(*missing)) for table in tables]
    turned = 2 * cos.shape[1]
    first, second = _pairs(graph, edge, turned, options["interleaved"])
    cos_edge, sin_edge = tables
    if options["inverse"]:
        sin_edge = graph.op("Neg", sin_edge)
    a = graph.op("Sub", graph.op("Mul", first, cos_edge), graph.op("Mul", second, sin_edge))
    b = graph.op("Add", graph.op("Mul", second, cos_edge), graph.op("Mul", first, sin_edge))
    if options["interleaved"]:
        last = graph.ints(-1)
        pairs = [graph.op("Unsqueeze", part, last) for part in (a, b)]
        pairs = graph.op("Concat", *pairs, axis=-1)
        lead = graph.op("Shape", edge, start=0, end=-1)
        out = graph.op("Reshape", pairs, graph.op("Concat", lead, graph.ints(turned), axis=0))
    else:
        out = graph.op("Concat", a, b, axis=-1)
    if turned < x.shape[-1]:
        rest = _columns(graph, edge, turned, x.shape[-1], 1)
        out = graph.op("Concat", out, rest, axis=-1)
    return graph.cast(out, x.dtype, dtype)


def _rows(graph, table, positions, offset, steps, dtype) -> str:
    """The table's rows for each position."""
    edge = graph.cast(graph.edge(table), dtype, table.dtype)
    if positions is not None:
        places = graph.operand(positions, np.int64)
        if offset:
            places = graph.op("Add", places, graph.constant(np.int64(offset)))
        return graph.op("Gather", edge, places, axis=0)
    start = graph.size(offset)
    end = graph.op("Add", graph.size(steps), start)
    return graph.op("Slice", edge, start, end, graph.ints(0))


def _columns(graph, edge, start, stop, step) -> str:
    return graph.op("Slice", edge, graph.ints(start), graph.ints(stop), graph.ints(-1),
                    graph.ints(step))  # fmt: skip


def _pairs(graph, edge, turned, interleaved):
    if interleaved:
        return _columns(graph, edge, 0, turned, 2), _columns(graph, edge, 1, turned, 2)
    half = turned // 2
    return _columns(graph, edge, 0, half, 1), _columns(graph, edge, half, turned, 1)
