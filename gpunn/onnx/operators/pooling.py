"""Pooling: the largest, the mean or a norm of windows of images."""

from __future__ import annotations

import math

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd.functions import arithmetic, elementwise
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.common import Tables, as_dtype, floating, ints
from gpunn.onnx.operators.convolution import Window, dimensions_of, pad_spatial
from gpunn.onnx.operators.registry import Node, operator

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _counts(spatial, kernel, strides, dilations, pairs, ceil: bool) -> list[int]:
    """How many windows there are along each dimension.

    With `ceil` a last one that is partly outside counts, unless it starts behind the image.
    """
    found = []
    for n, k, s, d, (before, after) in zip(spatial, kernel, strides, dilations, pairs, strict=True):
        room = n + before + after - d * (k - 1) - 1
        count = room // s + 1
        if ceil and room % s and count * s < n + before:
            count += 1
        found.append(count)
    return found


def _filled(x: Tensor, window: Window, numbers, ceil: bool, value: float):
    """Images padded so that all windows lie inside, and what was put around them."""
    strides, dilations, pairs = numbers
    counts = _counts(x.shape[2:], window.kernel, strides, dilations, pairs, ceil)
    around = []
    for n, k, s, d, (before, _), count in zip(
        x.shape[2:], window.kernel, strides, dilations, pairs, counts, strict=True
    ):
        around.append((before, (count - 1) * s + d * (k - 1) + 1 - n - before))
    return pad_spatial(x, around, value), around, counts


def _fits(window: Window, numbers, ceil: bool) -> bool:
    """Whether gpunn's pools take the padding as it is."""
    _, _, pairs = numbers
    return not ceil and all(
        before == after and 2 * before <= k
        for (before, after), k in zip(pairs, window.kernel, strict=True)
    )


# ---- the largest ---------------------------------------------------------------------------------


@operator("MaxPool")
def max_pool(node: Node):
    window, ceil = Window(node), node.flag("ceil_mode")
    by_columns = node.flag("storage_order")
    wanted = node.wants(1)

    def run(x):
        pool = _MAX[dimensions_of(node, x)]
        dtype, images = x.dtype, x if floating(x) else as_dtype(x, np.float32)
        numbers = window.numbers(x.shape[2:], window.kernel)
        strides, dilations, pairs = numbers
        if _fits(window, numbers, ceil):
            padding, around = tuple(before for before, _ in pairs), None
        else:
            images, around, _ = _filled(images, window, numbers, ceil, -math.inf)
            padding = 0
        found = pool(images, window.kernel, strides, padding, dilations, False, wanted)
        if not wanted:
            return found if found.dtype == dtype else as_dtype(found, dtype)
        values, index = found
        places = _places(index, x.shape, around, by_columns)
        return values if values.dtype == dtype else as_dtype(values, dtype), places

    return run


def _places(index: Tensor, shape, around, by_columns: bool) -> Tensor:
    """Numbers of pixels in an image as numbers of elements in the whole tensor."""
    xp, array = index._xp, index._array
    spatial = shape[2:]
    padded = spatial if around is None else [
        n + before + after for n, (before, after) in zip(spatial, around, strict=True)
    ]  # fmt: skip
    if around is not None or by_columns:
        coordinates, rest = [], array
        for size in reversed(padded):
            coordinates.append(rest % size)
            rest = rest // size
        coordinates.reverse()
        if around is not None:
            coordinates = [c - before for c, (before, _) in zip(coordinates, around, strict=True)]
        axes = range(len(spatial))
        array = 0
        for axis in reversed(axes) if by_columns else axes:
            array = array * spatial[axis] + coordinates[axis]
    images = xp.arange(shape[0] * shape[1]).reshape(*shape[:2], *(1,) * len(spatial))
    return wrap((array + images * math.prod(spatial)).astype(np.int64))


@operator("MaxUnpool", 9, arguments=(2,))
def max_unpool(node: Node):
    window = Window(node, dilations=False)
    unpool = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}

    def run(x, index, shape=None):
        count = dimensions_of(node, x)
        strides, _, pairs = window.numbers(x.shape[2:], window.kernel)
        sizes = [
            (n - 1) * s - before - after + k
            for n, s, k, (before, after) in zip(
                x.shape[2:], strides, window.kernel, pairs, strict=True
            )
        ]
        pixels = wrap(index._array % math.prod(sizes))
        out = unpool[count](
            x, pixels, window.kernel, strides, tuple(p[0] for p in pairs), output_size=sizes
        )
        if shape is None:
            return out
        more = zip(ints(shape)[2:], sizes, strict=True)
        return pad_spatial(out, [(0, wanted - have) for wanted, have in more])

    return run


# ---- means and norms -----------------------------------------------------------------------------


def _window_sums(x: Tensor, window: Window, numbers, ceil: bool):
    """The sums of all windows; what is outside of the image counts as 0."""
    strides, dilations, pairs = numbers
    count = len(strides)
    if all(d == 1 for d in dilations):
        if _fits(window, numbers, ceil):
            padding = tuple(before for before, _ in pairs)
        else:
            (x, _, _), padding = _filled(x, window, numbers, ceil, 0.0), 0
        return _AVERAGE[count](
            x, window.kernel, strides, padding, divisor_override=1, count_include_pad=True
        )
    x, _, counts = _filled(x, window, numbers, ceil, 0.0)
    total = None
    for offsets in np.ndindex(*window.kernel):
        part = x[(slice(None), slice(None)) + tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, s, n in zip(offsets, dilations, strides, counts, strict=True)
        )]  # fmt: skip
        total = part if total is None else total + part
    return total


def _window_sizes(spatial, window: Window, numbers, ceil: bool, with_padding: bool) -> np.ndarray:
    """How many pixels each window has, those of the padding included or not."""
    strides, dilations, pairs = numbers
    counts = _counts(spatial, window.kernel, strides, dilations, pairs, ceil)
    sizes = np.ones((1, 1))
    for n, k, s, d, (before, after), count in zip(
        spatial, window.kernel, strides, dilations, pairs, counts, strict=True
    ):
        places = np.arange(count)[:, None] * s + np.arange(k) * d - before
        low, high = (-before, n + after) if with_padding else (0, n)
        inside = ((places >= low) & (places < high)).sum(1)
        sizes = sizes[..., None] * inside
    return sizes


@operator("AveragePool")
def average_pool(node: Node):
    window, ceil = Window(node), node.flag("ceil_mode")
    with_padding, tables = node.flag("count_include_pad"), Tables()

    def run(x):
        count = dimensions_of(node, x)
        numbers = window.numbers(x.shape[2:], window.kernel)
        strides, dilations, pairs = numbers
        if _fits(window, numbers, ceil) and all(d == 1 for d in dilations):
            padding = tuple(before for before, _ in pairs)
            return _AVERAGE[count](x, window.kernel, strides, padding, False, with_padding)
        spatial, dtype = x.shape[2:], x.dtype
        sizes = tables.get((spatial, dtype), x, lambda: _window_sizes(
            spatial, window, numbers, ceil, with_padding
        ).astype(dtype))  # fmt: skip
        return _window_sums(x, window, numbers, ceil) / sizes

    return run


@operator("LpPool")
def lp_pool(node: Node):
    window, ceil = Window(node), node.flag("ceil_mode")
    p = node.int("p", 2) if node.version >= 2 else node.float("p", 2.0)

    def run(x):
        dimensions_of(node, x)
        numbers = window.numbers(x.shape[2:], window.kernel)
        powers = elementwise.square(x) if p == 2 else elementwise.abs(x) ** float(p)
        return _root(_window_sums(powers, window, numbers, ceil), p)

    return run


def _root(x: Tensor, p: float) -> Tensor:
    return elementwise.sqrt(x) if p == 2 else arithmetic.pow(x, 1.0 / p)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(node: Node):
    kinds = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}
    return lambda x: kinds[x.ndim](x, 1) if x.ndim in kinds else gpunn.mean(x, _spatial(x), True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node):
    return lambda x: gpunn.amax(x, _spatial(x), True)


@operator("GlobalLpPool")
def global_lp_pool(node: Node):
    p = node.int("p", 2) if node.version >= 2 else node.float("p", 2.0)
    return lambda x: gpunn.norm(x, p, _spatial(x), True)
