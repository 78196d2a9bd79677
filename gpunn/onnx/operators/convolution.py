"""Convolutions, and the rules by which ONNX pads their images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd.functions.padding import pad_dimensions
from gpunn.autograd.functions.shape import permute, reshape
from gpunn.autograd.tensor import Tensor
from gpunn.onnx.operators.common import channel_shape, pair_lists
from gpunn.onnx.operators.registry import Node, operator

AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


class Window:
    """How a window moves over images: what the attributes of convolutions and pools say."""

    def __init__(self, node: Node, dilations: bool = True):
        self.node = node
        self.kernel = node.ints("kernel_shape")
        self._strides, self._pads = node.ints("strides"), node.ints("pads")
        self._dilations = node.ints("dilations") if dilations else None
        self.auto = node.choice("auto_pad", "NOTSET", AUTO)

    def numbers(self, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """(strides, dilations, pairs of padding) for images of a size."""
        count = len(spatial)
        strides = self._strides or (1,) * count
        dilations = self._dilations or (1,) * count
        if self.auto in ("NOTSET", "VALID"):
            pads = self._pads if self._pads and self.auto == "NOTSET" else (0,) * (2 * count)
            return strides, dilations, pair_lists(pads, count)
        pairs = []
        for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            pairs.append((small, large) if self.auto == "SAME_UPPER" else (large, small))
        return strides, dilations, pairs


def dimensions_of(node: Node, x: Tensor, most: int = 3) -> int:
    """The number of spatial dimensions; an error above `most`."""
    count = x.ndim - 2
    if not 1 <= count <= most:
        raise ValueError(
            f"{node.op}: an input of shape {x.shape} has {count} spatial dimensions; gpunn has "
            f"kernels for 1 to {most}"
        )
    return count


def pad_spatial(x: Tensor, pairs: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Images with values put around them."""
    return pad_dimensions(x, [(0, 0), (0, 0), *pairs], "constant", value)


def convolve(x: Tensor, weight: Tensor, bias, strides, dilations, pairs, groups: int) -> Tensor:
    """A convolution with a pair of padding for each dimension."""
    count = x.ndim - 2
    if any(before != after for before, after in pairs):
        x, pairs = pad_spatial(x, pairs), [(0, 0)] * count
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[count]
    padding = tuple(before for before, _ in pairs)
    return function(x, weight, bias, strides, padding, dilations, groups)


@operator("Conv")
def conv(node: Node):
    window, groups = Window(node), node.int("group", 1)

    def run(x, weight, bias=None):
        dimensions_of(node, x)
        numbers = window.numbers(x.shape[2:], weight.shape[2:])
        return convolve(x, weight, bias, *numbers, groups)

    return run


@operator("ConvTranspose")
def conv_transpose(node: Node):
    window, groups = Window(node), node.int("group", 1)
    output_padding, output_shape = node.ints("output_padding"), node.ints("output_shape")

    def run(x, weight, bias=None):
        count = dimensions_of(node, x)
        strides, dilations, pairs = window.numbers(x.shape[2:], weight.shape[2:])
        more = output_padding or (0,) * count
        full = [
            (n - 1) * s + (k - 1) * d + 1
            for n, k, s, d in zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
        ]
        sizes = _sizes(window, x.shape[2:], strides, more, full, pairs, output_shape)
        function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[count]
        same = all(before == after >= 0 for before, after in sizes)
        if same and all(extra < s for extra, s in zip(more, strides, strict=True)):
            padding = tuple(before for before, _ in sizes)
            return function(x, weight, bias, strides, padding, more, groups, dilations)
        # All of it first; then what the padding takes is cut off, and zeros come where it lacks.
        out = function(x, weight, None, strides, 0, 0, groups, dilations)
        pairs = zip(sizes, more, strict=True)
        out = pad_spatial(out, [(-before, extra - after) for (before, after), extra in pairs])
        return out if bias is None else out + channel_shape(bias, out.ndim)

    return run


def _sizes(window, spatial, strides, more, full, pairs, output_shape):
    """The pairs of padding of a transposed convolution, which may follow from the wanted shape."""
    if output_shape:
        wanted = output_shape[-len(spatial) :]
    elif window.auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    else:
        return pairs
    found = []
    for size, extra, target in zip(full, more, wanted, strict=True):
        total = size + extra - target
        small, large = total // 2, total - total // 2
        found.append((small, large) if window.auto == "SAME_UPPER" else (large, small))
    return found


@operator("CausalConvWithState", 27)
def causal_conv(node: Node):
    activation = node.choice("activation", "none", ("none", "silu", "swish"))

    def run(x, weight, bias=None, state=None):
        reach = weight.shape[-1] - 1
        if state is None:
            x = pad_spatial(x, [(reach, 0)])
        else:
            x = gpunn.cat([state, x], 2)
        how = "identity" if activation == "none" else "silu"
        out = F.conv1d(x, weight, bias, groups=weight.shape[0], activation=how)
        return out, x[:, :, x.shape[2] - reach :]

    return run


@operator("Col2Im", 18, arguments=(1, 2))
def col2im(node: Node):
    dilations, pads, strides = node.ints("dilations"), node.ints("pads"), node.ints("strides")

    def run(columns, image, block):
        image, block = [tuple(int(n) for n in given) for given in (image, block)]
        count = len(image)
        steps, jumps = strides or (1,) * count, dilations or (1,) * count
        pairs = pair_lists(pads or (0,) * (2 * count), count)
        places = math.prod(block)
        n, channels = columns.shape[0], columns.shape[1] // places
        windows = [
            (size + sum(pair) - d * (k - 1) - 1) // s + 1
            for size, pair, k, s, d in zip(image, pairs, block, steps, jumps, strict=True)
        ]
        parts = reshape(columns, n, channels, places, *windows)
        shape = [size + sum(pair) for size, pair in zip(image, pairs, strict=True)]
        out = None
        for place, offsets in enumerate(np.ndindex(*block)):
            part = spread(parts[:, :, place], steps)
            around = [
                (o * d, size - o * d - have)
                for o, d, size, have in zip(offsets, jumps, shape, part.shape[2:], strict=True)
            ]
            part = pad_spatial(part, around)
            out = part if out is None else out + part
        return pad_spatial(out, [(-before, -after) for before, after in pairs])

    return run


def spread(x: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Images with ``step - 1`` zeros between neighbours, in each spatial dimension."""
    for axis, step in enumerate(steps, 2):
        if step > 1:
            size = x.shape[axis]
            last = x.ndim
            x = pad_dimensions(reshape(x, *x.shape, 1), [(0, 0)] * last + [(0, step - 1)])
            order = [*range(axis + 1), last, *range(axis + 1, last)]
            x = permute(x, *order)
            x = reshape(x, *x.shape[:axis], size * step, *x.shape[axis + 2 :])
            x = x[(slice(None),) * axis + (slice(0, (size - 1) * step + 1),)]
    return x
