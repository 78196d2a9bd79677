"""Images in another size: Resize, or Gather where runtimes would round a place differently."""

from __future__ import annotations

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.export_convolution import channels_back, channels_first
from gpunn.onnx.table import converts


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
