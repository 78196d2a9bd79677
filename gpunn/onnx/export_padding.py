"""Padding: Pad, whose mode "wrap" came with opset 19; before, slices and Concat."""

from __future__ import annotations

import numpy as np

from gpunn.onnx.table import converts

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_FAR = np.iinfo(np.int64).max


@converts("Pad")
def _pad(graph, call):
    x, pairs, mode, value = call.arguments
    edge = graph.edge(x)
    grown = [(max(before, 0), max(after, 0)) for before, after in pairs]
    cut = [(max(-before, 0), max(-after, 0)) for before, after in pairs]
    if any(map(any, grown)):
        edge = _grown(graph, edge, x.dtype, grown, mode, value)
    axes = [axis for axis, pair in enumerate(cut) if any(pair)]
    if not axes:
        return edge
    starts = [cut[axis][0] for axis in axes]
    ends = [-cut[axis][1] if cut[axis][1] else _FAR for axis in axes]
    return graph.op("Slice", edge, graph.ints(*starts), graph.ints(*ends), graph.ints(*axes))


def _grown(graph, edge, dtype, pairs, mode, value) -> str:
    """Padded by a pair for every axis: naming some of them misleads onnxruntime's optimizer."""
    if mode == "circular" and graph.opset < 19:
        for axis, (before, after) in enumerate(pairs):
            edge = _wrapped(graph, edge, axis, before, after)
        return edge
    pads = graph.ints(*(before for before, _ in pairs), *(after for _, after in pairs))
    fill = graph.constant(value, dtype) if mode == "constant" else None
    return graph.op("Pad", edge, pads, fill, mode=_MODES[mode])


def _wrapped(graph, edge, axis, before, after) -> str:
    """The end in front, the beginning behind."""
    if not before and not after:
        return edge
    parts = [edge]
    if before:
        parts.insert(
            0, graph.op("Slice", edge, graph.ints(-before), graph.ints(_FAR), graph.ints(axis))
        )
    if after:
        parts.append(graph.op("Slice", edge, graph.ints(0), graph.ints(after), graph.ints(axis)))
    return graph.op("Concat", *parts, axis=axis)
