"""Pooling: MaxPool, AveragePool, the global ones; adaptive windows by products and gathering."""

from __future__ import annotations

import itertools
import math

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.export_convolution import channels_back, channels_first
from gpunn.onnx.recording import FILLED
from gpunn.onnx.table import converts


class _Images:
    """The input of a pooling as (N, C, *spatial), and the way back."""

    def __init__(self, graph, x, single: bool, last: bool):
        self.graph, self.single, self.last, self.dtype = graph, single, last, x.dtype
        shape = x.shape if not single else (1, *x.shape)
        self.ndim = len(shape)
        self.shape = (shape[0], shape[-1], *shape[1:-1]) if last else shape
        self.spatial = self.shape[2:]
        self.edge = self.first(graph.edge(x))

    @property
    def fixed(self) -> bool:
        """Whether the spatial sizes are known."""
        return not any(isinstance(size, Varying) for size in self.spatial)

    def first(self, edge: str) -> str:
        """An edge in the tensor's layout as (N, C, *spatial)."""
        if self.single:
            edge = self.graph.op("Unsqueeze", edge, self.graph.ints(0))
        return channels_first(self.graph, edge, self.ndim, self.last)

    def back(self, edge: str | None) -> str | None:
        """(N, C, *outputs) in the tensor's layout."""
        if edge is None:
            return None
        edge = channels_back(self.graph, edge, self.ndim, self.last)
        return self.graph.op("Squeeze", edge, self.graph.ints(0)) if self.single else edge


def _each(value, dimensions: int) -> list[int]:
    found = list(value) if isinstance(value, (tuple, list)) else [value]
    return found * dimensions if len(found) == 1 else found


def _windows(images, options) -> dict:
    """Attributes of ONNX's pooling."""
    n = len(images.spatial)
    kernel = _each(options["kernel_size"], n)
    stride = options.get("stride")
    stride = kernel if stride is None or stride == () else _each(stride, n)
    padding = _each(options.get("padding", 0), n)
    found = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
    if "dilation" in options:
        found["dilations"] = _each(options["dilation"], n)
    return found


def _outputs(call, images) -> list:
    shape = call.outputs[0].shape
    shape = shape if images.single else shape[1:]
    return list(shape[:-1] if images.last else shape[1:])


def _reach(images, windows, outputs) -> list[int]:
    """How far behind the image the last window ends, in each dimension."""
    n = len(outputs)
    dilations = windows.get("dilations", [1] * n)
    return [
        (count - 1) * stride + (kernel - 1) * dilation + 1 - size - before
        for count, stride, kernel, dilation, size, before in zip(
            outputs, windows["strides"], windows["kernel_shape"], dilations, images.spatial,
            windows["pads"][:n], strict=True,
        )
    ]  # fmt: skip


# ---- the largest ---------------------------------------------------------------------------------


@converts("MaxPool")
def _max_pool(graph, call):
    x, options, single, last, found = call.arguments
    images, wanted = _Images(graph, x, single, last), found is FILLED
    size = options.get("output_size")
    if size is not None:
        made = _adaptive_max(graph, images, tuple(size), wanted)
    else:
        windows = _windows(images, options)
        if options.get("ceil_mode"):
            if images.fixed:
                behind = _reach(images, windows, _outputs(call, images))
                before = windows["pads"][: len(behind)]
                pairs = zip(before, behind, strict=True)
                windows["pads"] = before + [max(p, end) for p, end in pairs]
            else:
                windows["ceil_mode"] = 1
        made = _largest(graph, images, windows, wanted)
    return tuple(map(images.back, made))


def _largest(graph, images, windows, wanted: bool):
    """(values, indices within an image or None)"""
    if not wanted:
        return graph.op("MaxPool", images.edge, **windows), None
    values, indices = graph.op("MaxPool", images.edge, outputs=2, **windows)
    return values, graph.op("Mod", indices, _area(graph, images.spatial))


def _area(graph, spatial) -> str:
    """The number of pixels."""
    if not any(isinstance(size, Varying) for size in spatial):
        return graph.constant(np.int64(math.prod(spatial)))
    total = None
    for size in spatial:
        edge = graph.size(size)
        total = edge if total is None else graph.op("Mul", total, edge)
    return graph.scalar(total)


def _even(graph, images, size) -> list[int] | None:
    """The kernel with which windows that cut an image into `size` parts are all alike."""
    if not images.fixed:
        graph.refuse(
            f"adaptive pooling to {size} with spatial sizes that vary has windows that vary; only "
            "an output size of 1 can be written. Keep the spatial axes fixed"
        )
    if any(n % m for n, m in zip(images.spatial, size, strict=True)):
        return None
    return [n // m for n, m in zip(images.spatial, size, strict=True)]


def _adaptive_max(graph, images, size, wanted):
    if not wanted and set(size) == {1}:
        return graph.op("GlobalMaxPool", images.edge), None
    kernel = _even(graph, images, size)
    if kernel is not None:
        windows = {"kernel_shape": kernel, "strides": kernel}
        return _largest(graph, images, windows, wanted)
    table = _window_table(images.spatial, size)
    n, c = images.shape[:2]
    rows = graph.reshape(images.edge, (0, 0, -1))
    picked = graph.op("Gather", rows, graph.constant(table), axis=2)
    values = graph.op("ReduceMax", picked, graph.ints(3), keepdims=0)
    values = graph.reshape(values, (0, 0, *size))
    if not wanted:
        return values, None
    place = graph.op("ArgMax", picked, axis=3, keepdims=0)
    start = graph.constant(np.arange(len(table), dtype=np.int64) * table.shape[1])
    place = graph.op("Add", place, start)
    indices = graph.op("Gather", graph.constant(table.reshape(-1)), place)
    return values, graph.reshape(indices, (0, 0, *size))


def _bounds(n: int, m: int) -> list[tuple[int, int]]:
    return [(o * n // m, -(-(o + 1) * n // m)) for o in range(m)]


def _window_table(spatial, size) -> np.ndarray:
    """(windows, most pixels): the pixels of each, the last one repeated in shorter ones."""
    numbers = np.arange(math.prod(spatial), dtype=np.int64).reshape(spatial)
    lines = [_bounds(n, m) for n, m in zip(spatial, size, strict=True)]
    found = [
        numbers[tuple(slice(*pair) for pair in window)].reshape(-1)
        for window in itertools.product(*lines)
    ]
    longest = max(map(len, found))
    return np.stack([np.pad(row, (0, longest - len(row)), "edge") for row in found])


# ---- the mean ------------------------------------------------------------------------------------


@converts("AvgPool")
def _avg_pool(graph, call):
    x, options, single, last = call.arguments
    images = _Images(graph, x, single, last)
    size = options.get("output_size")
    if size is not None:
        return images.back(_adaptive_mean(graph, images, tuple(size)))
    windows, divisor = _windows(images, options), options.get("divisor_override")
    inside = int(bool(options.get("count_include_pad", True)))
    if not options.get("ceil_mode") and not divisor:
        return images.back(
            graph.op("AveragePool", images.edge, count_include_pad=inside, **windows)
        )
    if not images.fixed:
        if divisor:
            graph.refuse("divisor_override with spatial sizes that vary is not known here")
        return images.back(
            graph.op("AveragePool", images.edge, count_include_pad=inside, ceil_mode=1, **windows)
        )
    return images.back(_sum_by(graph, call, images, windows, inside, divisor))


def _sum_by(graph, call, images, windows, inside, divisor) -> str:
    """Sums of windows, of which the last may end behind the image, by how much they hold."""
    outputs = _outputs(call, images)
    behind = _reach(images, windows, outputs)
    before = windows["pads"][: len(outputs)]
    pads = list(before), [max(0, end) for end in behind]
    edge = images.edge
    if any(map(any, pads)):
        lead = [0, 0]
        edge = graph.op("Pad", edge, graph.ints(*lead, *pads[0], *lead, *pads[1]))
    shape = {"kernel_shape": windows["kernel_shape"], "strides": windows["strides"]}
    edge = graph.op("AveragePool", edge, **shape)
    taps = math.prod(windows["kernel_shape"])
    if divisor:
        return graph.op("Mul", edge, graph.constant(taps / divisor, images.dtype))
    counts = np.ones(1)
    for n, count, k, s, p in zip(
        images.spatial, outputs, windows["kernel_shape"], windows["strides"], before, strict=True
    ):
        start = np.arange(count) * s - p
        low, high = (-p, n + p) if inside else (0, n)
        held = np.minimum(start + k, high) - np.maximum(start, low)
        counts = np.multiply.outer(counts, np.maximum(held, 1))
    return graph.op("Mul", edge, graph.constant(taps / counts, images.dtype))


def _adaptive_mean(graph, images, size) -> str:
    if set(size) == {1}:
        return graph.op("GlobalAveragePool", images.edge)
    kernel = _even(graph, images, size)
    if kernel is not None:
        return graph.op("AveragePool", images.edge, kernel_shape=kernel, strides=kernel)
    edge = images.edge
    for axis, (n, m) in enumerate(zip(images.spatial, size, strict=True), 2):
        means = np.zeros((n, m))
        for column, (low, high) in enumerate(_bounds(n, m)):
            means[low:high, column] = 1 / (high - low)
        order = [*(a for a in range(images.ndim) if a != axis), axis]
        edge = graph.op("MatMul", graph.transpose(edge, order), graph.constant(means, images.dtype))
        edge = graph.transpose(edge, np.argsort(order).tolist())
    return edge


# ---- back ----------------------------------------------------------------------------------------


@converts("MaxUnpool")
def _max_unpool(graph, call):
    x, indices, spatial, single, last = call.arguments
    images = _Images(graph, x, single, last)
    n, c = images.shape[:2]
    zero = graph.constant(np.zeros((), x.dtype))
    area = _area(graph, spatial)
    area = graph.op("Unsqueeze", area, graph.ints(0))
    shape = graph.op("Concat", graph.sizes((n, c)), area, axis=0)
    rows = graph.reshape(images.edge, (0, 0, -1))
    places = graph.reshape(images.first(graph.edge(indices)), (0, 0, -1))
    out = graph.op("ScatterElements", graph.op("Expand", zero, shape), places, rows, axis=2)
    return images.back(graph.reshape(out, (n, c, *spatial)))
