"""Images in another size: Resize, or Gather where runtimes would round a size or place."""

from __future__ import annotations

import math

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.export_convolution import channels_back, channels_first
from gpunn.onnx.table import converts
from gpunn.primitives.resize_reference import Grid, line_of


@converts("Resize")
def _resize(graph, call):
    x, size, options, last = call.arguments
    ndim, mode = len(x.shape), options["mode"]
    edge = channels_first(graph, graph.edge(x), ndim, last)
    spatial = x.shape[1:-1] if last else x.shape[2:]
    factors = options["scale_factor"]
    fixed = not any(isinstance(n, Varying) for n in (*spatial, *size))
    if mode != "linear" and fixed:
        edge = _nearest(graph, edge, spatial, size, factors, mode)
        return channels_back(graph, edge, ndim, last)
    if not fixed and factors is None:
        graph.refuse(
            "the new size, or the old one, varies with the dynamic axes. Give scale_factor, or "
            "keep the spatial axes fixed"
        )
    if factors is not None and not all(map(_means_the_same, spatial, size, factors, [mode] * ndim)):
        edge = _by_places(graph, edge, (spatial, size, factors), options, x.dtype)
        return channels_back(graph, edge, ndim, last)
    attributes = _attributes(mode, options["align_corners"])
    alone = mode == "linear" and len(spatial) == 1
    if alone:  # runtimes interpolate in two dimensions and more
        edge = graph.op("Unsqueeze", edge, graph.ints(2))
    axes = range(4 - 1, 4) if alone else range(2, ndim)
    if factors is None:
        edge = graph.op("Resize", edge, None, None, graph.ints(*size), axes=list(axes),
                        **attributes)  # fmt: skip
    else:
        scales = graph.constant(np.array(factors, np.float32))
        edge = graph.op("Resize", edge, None, scales, axes=list(axes), **attributes)
    edge = graph.op("Squeeze", edge, graph.ints(2)) if alone else edge
    return channels_back(graph, edge, ndim, last)


def _means_the_same(n, m, factor: float, mode: str) -> bool:
    """Whether a Resize by a factor gives as many pixels, and those.

    Runtimes work the size out in float32 or float64, and copy what keeps its size.
    """
    scale = np.float32(factor)
    if not isinstance(n, Varying):
        return m != n and math.floor(scale * np.float32(n)) == math.floor(float(scale) * n) == m
    if mode == "linear":
        return (factor * 256).is_integer() and not 1 < factor < 1.5
    return factor.is_integer() or math.frexp(factor)[0] == 0.5


def _by_places(graph, edge, sizes, options, dtype) -> str:
    """One axis after the other by its pixels, and between two of them by weights."""
    for axis, (n, m, factor) in enumerate(zip(*sizes, strict=True), 2):
        first, second, weight = _line(graph, n, m, factor, options)
        low = graph.op("Gather", edge, first, axis=axis)
        if second is None:
            edge = low
            continue
        high = graph.op("Gather", edge, second, axis=axis)
        behind = range(1, 1 + len(sizes[0]) + 1 - axis)
        weight = graph.cast(weight, dtype)
        weight = graph.op("Unsqueeze", weight, graph.ints(*behind)) if behind else weight
        share = graph.op("Mul", graph.op("Sub", high, low), weight)
        edge = graph.op("Add", low, share)
    return edge


def _line(graph, n, m, factor: float, options):
    """Edges of the pixel of each output, the next one and the weight of that; see `line_of`."""
    mode, corners = options["mode"], options["align_corners"]
    if not isinstance(n, Varying):
        step = 1 / factor if not corners else (n - 1) / (m - 1) if m > 1 else 0.0
        found = line_of(Grid((n,), (m,), (step,), mode, corners), 0)
        first, second, weight = map(graph.constant, found)
        return (first, second, weight) if mode == "linear" else (first, None, None)
    kind = np.float64 if mode == "linear" else np.float32

    def number(value) -> str:
        return graph.constant(value, kind)

    size, one = graph.scalar(graph.size(n)), graph.constant(np.int64(1))
    count = graph.op("Mul", graph.cast(size, np.float64), graph.constant(factor, np.float64))
    count = graph.cast(graph.op("Floor", count), np.int64)
    last = graph.op("Sub", size, one)
    place = graph.op("Range", graph.constant(np.int64(0)), count, one)
    place = graph.cast(place, kind)
    if corners:
        steps = graph.op("Max", graph.op("Sub", count, one), one)
        step = graph.op("Div", graph.cast(last, kind), graph.cast(steps, kind))
        place = graph.op("Mul", place, step)
    else:
        half = 0.0 if mode == "nearest" else 0.5
        place = graph.op("Mul", graph.op("Add", place, number(half)), number(1 / factor))
    if mode == "linear" and not corners:
        place = graph.op("Max", graph.op("Sub", place, number(0.5)), number(0))
    first = graph.op("Min", graph.cast(graph.op("Floor", place), np.int64), last)
    if mode != "linear":
        return first, None, None
    weight = graph.op("Sub", place, graph.cast(first, kind))
    second = graph.op("Min", graph.op("Add", first, one), last)
    return first, second, graph.op("Clip", weight, number(0), number(1))


def _attributes(mode: str, align_corners: bool) -> dict:
    if mode == "nearest":
        return {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor"}  # fmt: skip
    if mode == "nearest-exact":
        return {"mode": "nearest", "coordinate_transformation_mode": "half_pixel",
                "nearest_mode": "round_prefer_ceil"}  # fmt: skip
    place = "align_corners" if align_corners else "half_pixel"
    return {"mode": "linear", "coordinate_transformation_mode": place}


def _nearest(graph, edge, spatial, size, factors, mode) -> str:
    """Resize, if by ONNX's formula the same pixels are taken; else Gather along each axis."""
    lines = []
    for axis, (n, m) in enumerate(zip(spatial, size, strict=True)):
        step = n / m if factors is None else 1 / factors[axis]
        half = 0.5 if mode == "nearest-exact" else 0.0
        place = (np.arange(m, dtype=np.float32) + np.float32(half)) * np.float32(step)
        lines.append(np.minimum(np.floor(place).astype(np.int64), n - 1))
    scales = [np.float32(m / n) for n, m in zip(spatial, size, strict=True)]
    if all(map(_agrees, lines, scales, spatial, [mode] * len(lines))):
        axes = list(range(2, 2 + len(size)))
        return graph.op("Resize", edge, None, None, graph.ints(*size), axes=axes,
                        **_attributes(mode, False))  # fmt: skip
    for axis, line in enumerate(lines, 2):
        edge = graph.op("Gather", edge, graph.constant(line), axis=axis)
    return edge


def _agrees(line, scale, n, mode) -> bool:
    """Whether ONNX's formula takes these pixels, however a runtime rounds."""
    out = np.arange(len(line))
    place = (out + 0.5 * (mode == "nearest-exact")) / float(scale)
    close = np.abs(place - np.rint(place)) < 1e-3
    close[0] &= mode == "nearest-exact"  # 0 is exact
    if close.any() and not float(scale).is_integer():
        return False
    return bool((np.floor(place).clip(0, n - 1) == line).all())
