"""Padding layers. The padding is an int for all sides, or pairs, the last dimension first."""

from __future__ import annotations

from typing import Any

from gpunn.autograd.functions.padding import pad_dimensions
from gpunn.autograd.functions.pooling import check_images
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module

__all__ = [
    f"{kind}Pad{n}d"
    for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero")
    for n in (1, 2, 3)
]


class _Pad(Module):
    """Pixels put around images: (left, right), (top, bottom), (front, back), or one number for all

    Negative numbers cut off (not with circular). With `channels_last` the channels are the last
    dimension.
    """

    dimensions = 0
    mode = "constant"
    value = 0.0

    def __init__(self, padding: Any, *, channels_last: bool = False):
        super().__init__()
        count = 2 * self.dimensions
        self.padding = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * count
        if len(self.padding) != count:
            raise ValueError(
                f"{type(self).__name__}: padding is {padding!r}; expected an int, or {count} ints: "
                "a pair (before, after) for each dimension, the last one first"
            )
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        check_images(type(self).__name__, input, self.dimensions, self.channels_last)
        pairs = [self.padding[k : k + 2] for k in range(0, len(self.padding), 2)][::-1]
        pairs += [(0, 0)] * self.channels_last
        pairs = [(0, 0)] * (input.ndim - len(pairs)) + pairs
        return pad_dimensions(input, pairs, self.mode, self.value)

    def extra_repr(self) -> str:
        return f"{self.padding}" + ", channels_last=True" * self.channels_last


class ZeroPad1d(_Pad):
    """Zeros around (N, C, L)"""

    dimensions = 1


class ZeroPad2d(_Pad):
    """Zeros around (N, C, H, W)"""

    dimensions = 2


class ZeroPad3d(_Pad):
    """Zeros around (N, C, D, H, W)"""

    dimensions = 3


class _ConstantPad(_Pad):
    """One number all around"""

    def __init__(self, padding: Any, value: float, *, channels_last: bool = False):
        super().__init__(padding, channels_last=channels_last)
        self.value = value

    def extra_repr(self) -> str:
        last = ", channels_last=True" * self.channels_last
        return f"padding={self.padding}, value={self.value}{last}"


class ConstantPad1d(_ConstantPad):
    """`value` around (N, C, L)"""

    dimensions = 1


class ConstantPad2d(_ConstantPad):
    """`value` around (N, C, H, W)"""

    dimensions = 2


class ConstantPad3d(_ConstantPad):
    """`value` around (N, C, D, H, W)"""

    dimensions = 3


class ReflectionPad1d(_Pad):
    """(N, C, L) mirrored at its first and last value"""

    dimensions, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """(N, C, H, W) mirrored at its outermost pixels"""

    dimensions, mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """(N, C, D, H, W) mirrored at its outermost pixels"""

    dimensions, mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """(N, C, L) with its first and last value repeated"""

    dimensions, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """(N, C, H, W) with its outermost pixels repeated"""

    dimensions, mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """(N, C, D, H, W) with its outermost pixels repeated"""

    dimensions, mode = 3, "replicate"


class CircularPad1d(_Pad):
    """(N, C, L) followed by its beginning and preceded by its end"""

    dimensions, mode = 1, "circular"


class CircularPad2d(_Pad):
    """(N, C, H, W) with its other side beyond each side"""

    dimensions, mode = 2, "circular"


class CircularPad3d(_Pad):
    """(N, C, D, H, W) with its other side beyond each side"""

    dimensions, mode = 3, "circular"
