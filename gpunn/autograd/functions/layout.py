"""Where channels lie: images are (N, C, *spatial) to users and (N, *spatial, C) to the kernels.

The kernels of images (convolution, pooling, resizing) take channels-last arrays alone. A user's
tensor keeps its shape (N, C, *spatial), but what comes out of such a kernel is a *view*: that shape
on memory where the channels are innermost. The next layer finds it so and copies nothing. Layers
with ``channels_last=True`` have the channels last in the shape, too.
"""

from __future__ import annotations

import enum
from typing import Any

from gpunn.device import Device, device_of, to_device


class MemoryFormat(enum.Enum):
    """Orders of the axes in memory, for `Tensor.contiguous` and `to`; the names are PyTorch's."""

    contiguous_format = enum.auto()  # as in the shape
    channels_last = enum.auto()  # (N, C, *spatial) with C innermost
    preserve_format = enum.auto()  # as it is

    def __repr__(self) -> str:
        return f"gpunn.{self.name}"


def lies(array: Any, memory_format: MemoryFormat) -> bool:
    """Whether an array has a memory format; ValueError where it can have none."""
    if not isinstance(memory_format, MemoryFormat):
        raise TypeError(
            f"memory_format is {memory_format!r}; expected gpunn.channels_last, "
            "gpunn.contiguous_format or gpunn.preserve_format"
        )
    if memory_format is not MemoryFormat.channels_last:
        return memory_format is MemoryFormat.preserve_format or array.flags.c_contiguous
    if array.ndim < 3:
        raise ValueError(
            f"channels_last: a tensor of shape {array.shape} has no channels; expected "
            "(N, C, *sizes) with 1 to 3 sizes"
        )
    return is_channels_last(array)


def channels_last_view(array: Any) -> Any:
    """(N, C, *spatial) seen as (N, *spatial, C); the same memory."""
    return array.transpose(0, *range(2, array.ndim), 1)


def channels_first_view(array: Any) -> Any:
    """(N, *spatial, C) seen as (N, C, *spatial); the same memory."""
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def is_channels_last(array: Any) -> bool:
    """Whether an (N, C, *spatial) array has its channels innermost in memory, without gaps."""
    return channels_last_view(array).flags.c_contiguous


def memory_order(array: Any) -> tuple[int, ...] | None:
    """The axes from the outermost to the innermost in memory, if that is not their own order.

    None for a C-contiguous array, and for one with gaps or overlaps, which no order makes whole.
    What is done element by element can then be done to ``array.transpose(order)``, which is
    C-contiguous, and `in_axes` gives the result the array's shape and layout.
    """
    if array.flags.c_contiguous:
        return None
    strides = array.strides
    order = tuple(sorted(range(array.ndim), key=lambda axis: -strides[axis]))
    return order if array.transpose(order).flags.c_contiguous else None


def in_axes(array: Any, order: tuple[int, ...]) -> Any:
    """An array whose axes were transposed by `order`, with its axes where they were; a view."""
    back = [0] * len(order)
    for place, axis in enumerate(order):
        back[axis] = place
    return array.transpose(back)


def moved(array: Any, device: Device | str) -> Any:
    """`to_device`, with the same order of the axes in memory there."""
    order = memory_order(array)
    if order is None or device_of(array) == Device(device):
        return to_device(array, device)
    return in_axes(to_device(array.transpose(order), device), order)
