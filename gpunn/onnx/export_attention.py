"""Scaled dot-product attention, written out: two products with a softmax between them."""

from __future__ import annotations

import math

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.recording import Value
from gpunn.onnx.table import converts


@converts("Attention")
def _attention(graph, call):
    query, key, value, options = call.arguments
    q, k, v = map(graph.edge, (query, key, value))
    (_, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    if heads != kv_heads:
        k, v = (_repeated(graph, edge, heads, kv_heads, size) for edge in (k, v))
    return attend(graph, (q, k, v), (queries, keys, size), query.dtype, options)


@converts("PackedAttention")
def _packed(graph, call):
    packed, options = call.arguments
    steps, size = packed.shape[1], packed.shape[4]
    edge = graph.transpose(graph.edge(packed), (2, 0, 3, 1, 4))
    parts = [
        graph.op("Gather", edge, graph.constant(np.int64(number)), axis=0) for number in range(3)
    ]
    out = attend(graph, parts, (steps, steps, size), packed.dtype, options)
    return graph.transpose(out, (0, 2, 1, 3))


def _repeated(graph, edge, heads, kv_heads, size) -> str:
    """Each head of (B, Hkv, T, D) so many times in a row that there are `heads`."""
    wide = graph.op("Unsqueeze", edge, graph.ints(2))
    wide = graph.op("Expand", wide, graph.ints(1, 1, heads // kv_heads, 1, 1))
    return graph.reshape(wide, (0, heads, -1, size))


def attend(graph, parts, sizes, dtype, options) -> str:
    """(B, H, Tq, D) of q, k and v in this form."""
    q, k, v = parts
    queries, keys, size = sizes
    if options["dropout_p"]:
        graph.refuse("attention draws random numbers for its dropout; pass dropout_p=0")
    scale = 1 / math.sqrt(size) if options["scale"] is None else options["scale"]
    q = graph.op("Mul", q, graph.constant(scale, dtype))
    scores = graph.op("MatMul", q, graph.transpose(k, (0, 1, 3, 2)))
    lowest = graph.constant(-math.inf, dtype)
    rules, hides = _rules(graph, queries, keys, options)
    for rule in rules:
        scores = graph.op("Where", rule, scores, lowest)
    mask = options["mask"]
    if mask is not None:
        hides = True
        if mask.dtype == np.bool_:
            scores = graph.op("Where", graph.edge(mask), scores, lowest)
        else:
            scores = graph.op("Add", scores, graph.operand(mask, dtype))
    if not hides:
        weights = graph.op("Softmax", scores, axis=-1)
    else:  # a query that sees no key gives 0, not NaN
        zero = graph.constant(0, dtype)
        most = graph.op("ReduceMax", scores, graph.ints(-1), keepdims=1)
        nowhere = graph.op("Equal", most, lowest)
        weights = graph.op("Softmax", graph.op("Where", nowhere, zero, scores), axis=-1)
        weights = graph.op("Where", nowhere, zero, weights)
    out = graph.op("MatMul", weights, v)
    if options["q_lengths"] is not None:
        seen = _within(graph, queries, options["q_lengths"], (1, 3))
        out = graph.op("Where", seen, out, graph.constant(0, dtype))
    return out


def _within(graph, size, lengths, axes) -> str:
    """Whether a position lies before the sequence's end: (B, 1, 1, T) or (B, 1, T, 1)."""
    column = graph.op("Unsqueeze", graph.operand(lengths, np.int64), graph.ints(1))
    mask = graph.op("Less", graph.range(size), column)
    return graph.op("Unsqueeze", mask, graph.ints(*axes))


def _rules(graph, queries, keys, options):
    """(masks of the keys that may be seen, whether a query may be left without any)"""
    rules, hides = [], False
    if options["causal"]:
        rule, hides = _causal(graph, queries, keys, options["causal_offset"], options["window"])
        rules.append(rule)
    if options["kv_lengths"] is not None:
        rules.append(_within(graph, keys, options["kv_lengths"], (1, 2)))
        hides = True
    return rules, hides


def _causal(graph, queries, keys, offset, window):
    """Key j is seen by query i if i + offset - window < j <= i + offset."""
    fixed = not any(isinstance(number, (Varying, Value)) for number in (queries, keys, offset))
    if fixed:
        i, j = np.arange(queries)[:, None] + offset, np.arange(keys)[None, :]
        mask = j <= i
        if window is not None:
            mask &= j > i - window
        return graph.constant(mask), not mask.any(1).all()
    column = graph.range(keys)
    row = graph.op("Unsqueeze", graph.range(queries), graph.ints(1))
    if isinstance(offset, Value) and offset.shape:
        edge = graph.op("Unsqueeze", graph.operand(offset, np.int64), graph.ints(1, 2, 3))
        row = graph.op("Add", row, edge)
    elif isinstance(offset, (Varying, Value)) or offset:
        row = graph.op("Add", row, graph.operand(offset, np.int64))
    rule = graph.op("LessOrEqual", column, row)
    if window is not None:
        first = graph.op("Sub", row, graph.constant(np.int64(window)))
        rule = graph.op("And", rule, graph.op("Greater", column, first))
    return rule, not (offset == 0 and window is None)
