"""Padding: values put around a tensor, or cut off, in any of its dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from gpunn.autograd.function import Function
from gpunn.autograd.functions.layout import is_channels_last
from gpunn.autograd.functions.shape import clone
from gpunn.autograd.tensor import Tensor
from gpunn.primitives.pad import MODES, pad_backward, pad_forward

_AT_ONCE = 3  # dimensions that the kernels pad in one go


def _passes(pairs):
    """(first dimension, pairs of neighbouring ones): what the kernels pad one after the other."""
    padded = [dim for dim, pair in enumerate(pairs) if any(pair)]
    found = []
    while padded:
        first = padded[0]
        last = max(dim for dim in padded if dim < first + _AT_ONCE)
        found.append((first, tuple(pairs[first : last + 1])))
        padded = [dim for dim in padded if dim > last]
    return found


def _as_images(array, first: int, count: int):
    """The array as (N, *dims, C) with `count` dimensions from `first` on in the middle."""
    shape = array.shape
    before, after = math.prod(shape[:first]), math.prod(shape[first + count :])
    return array.reshape(before, *shape[first : first + count], after)


class Pad(Function):
    """A pair (before, after) of each dimension; corners as of one dimension after the other"""

    def forward(self, x, pairs, mode, value):
        self.mode = mode
        # A view on memory with the channels innermost stays one.
        self.order = range(x.ndim)
        if not x.flags.c_contiguous and x.ndim > 2 and is_channels_last(x):
            self.order = (0, *range(2, x.ndim), 1)
        self.passes = _passes([pairs[dim] for dim in self.order])
        y = x.transpose(self.order)
        for first, inner in self.passes:
            shape = y.shape
            images = _as_images(y, first, len(inner))
            images = pad_forward(images, padding=inner, mode=mode, value=value)
            y = images.reshape(*shape[:first], *images.shape[1:-1], *shape[first + len(inner) :])
        return y.transpose(_inverse(self.order))

    def backward(self, grad):
        grad = grad.transpose(self.order)
        for first, inner in reversed(self.passes):
            shape = grad.shape
            images = _as_images(grad, first, len(inner))
            images = pad_backward(images, padding=inner, mode=self.mode)
            grad = images.reshape(*shape[:first], *images.shape[1:-1], *shape[first + len(inner) :])
        return grad.transpose(_inverse(self.order))


def _inverse(order):
    return sorted(range(len(order)), key=order.__getitem__)


# ---- public functions ----------------------------------------------------------------------------


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Pad `input` with a number, or with copies of what it holds.

    Parameters
    ----------
    pad : (before, after) of the last dimension, then of the one before it, and so on, as in
        PyTorch; negative numbers cut off (not with "circular")
    mode : "constant"; or "reflect", "replicate", "circular" for the last 1 to 3 dimensions, with
        one or two dimensions in front of them
    value : what "constant" puts in; None for 0

    Raises ValueError for an odd number of sizes, more pairs than dimensions, sizes below 0, and
    more padding than the mode has values for ("reflect": size - 1, "circular": size).
    """
    if mode not in MODES:
        raise ValueError(f"pad: mode {mode!r} is not known; use one of {', '.join(MODES)}")
    try:
        sizes = tuple(map(operator.index, pad))
    except TypeError:
        raise TypeError(f"pad: pad is {pad!r}; expected a tuple of ints") from None
    given, ndim = len(sizes) // 2, input.ndim
    if len(sizes) % 2 or given > ndim:
        raise ValueError(
            f"pad: pad has {len(sizes)} numbers for {ndim} dimensions; expected a pair (before, "
            f"after) for each padded dimension, the last one first: at most {2 * ndim} numbers"
        )
    if mode != "constant":
        if value:
            raise ValueError(f"pad: value {value} is given, but mode {mode!r} takes none")
        if given not in (1, 2, 3) or ndim - given not in (1, 2):
            raise ValueError(
                f"pad: mode {mode!r} with {len(sizes)} numbers and an input of shape "
                f"{input.shape}; it pads the last 1, 2 or 3 dimensions of (C, *sizes) or "
                "(N, C, *sizes)"
            )
    pairs: list[tuple[int, ...]] = [(0, 0)] * (ndim - given)
    pairs += [sizes[2 * k : 2 * k + 2] for k in reversed(range(given))]
    return pad_dimensions(input, pairs, mode, 0.0 if value is None else value)


def pad_dimensions(input: Tensor, pairs, mode: str = "constant", value: float = 0.0) -> Tensor:
    """Pad by a pair (before, after) for each dimension of `input`, the first one first."""
    if not any(map(any, pairs)):
        return clone(input)
    return Pad.apply(input, tuple(map(tuple, pairs)), mode, value)
