"""Moving and converting: `to`, `cpu`, `cuda`, `float`, `half` …; gradients go the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.autograd import dtypes
from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.dtypes import as_dtype
from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import cast
from gpunn.autograd.functions.layout import MemoryFormat, moved
from gpunn.autograd.functions.shape import clone, contiguous
from gpunn.autograd.tensor import Tensor
from gpunn.device import Device, device_of
from gpunn.device.device import KINDS


class Move(Function):
    """The same values on another device"""

    def forward(self, x, device):
        self.device = device_of(x)
        return moved(x, device)

    def backward(self, grad):
        return moved(grad, self.device)


def parse_to(
    args: tuple[Any, ...], device: DeviceLike = None, dtype: DTypeLike = None
) -> tuple[Device | None, np.dtype[Any] | None]:
    """(device, dtype) from the arguments of `to`: a device, a dtype, both, or another Tensor."""
    for value in args:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, Device) or (
            isinstance(value, str) and value.strip().lower().partition(":")[0] in KINDS
        ):
            device = value
        elif isinstance(value, int) and not isinstance(value, bool):
            device = f"cuda:{value}"
        elif value is not None and not isinstance(value, bool):
            dtype = value
    try:
        dtype = None if dtype is None else as_dtype(dtype)
    except TypeError:
        raise TypeError(
            f"to: {dtype!r} is neither a device ('cpu', 'cuda', 'cuda:1', 'emulator') nor a dtype "
            "(float32 …)"
        ) from None
    return None if device is None else Device(device), dtype


def to(
    input: Tensor,
    *args: Any,
    device: DeviceLike = None,
    dtype: DTypeLike = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: MemoryFormat = MemoryFormat.preserve_format,
) -> Tensor:
    """``x.to("cuda")``, ``x.to(gpunn.float16)``, ``x.to("cpu", gpunn.float64)``, ``x.to(other)``,
    ``x.to(memory_format=gpunn.channels_last)``.

    Returns itself if nothing changes, unless `copy`. `non_blocking` is accepted and ignored.
    """
    device, dtype = parse_to(args, device, dtype)
    result = input
    if device is not None and device != input.device:
        result = Move.apply(result, device)
    if dtype is not None:
        result = cast(result, dtype)
    result = contiguous(result, memory_format)
    return clone(result) if copy and result is input else result


def cpu(input: Tensor) -> Tensor:
    """The tensor in the memory of the host."""
    return to(input, device="cpu")


def cuda(input: Tensor, device: DeviceLike = None) -> Tensor:
    """The tensor on a GPU, the first one unless told otherwise."""
    return to(input, "cuda" if device is None else device)


def _conversion(name: str, dtype: np.dtype[Any]) -> Callable[[Tensor], Tensor]:
    def convert(input: Tensor) -> Tensor:
        return cast(input, dtype)

    convert.__name__ = convert.__qualname__ = name
    convert.__doc__ = f"The values as {dtype.name}."
    return convert


CONVERSIONS = {
    name: _conversion(name, dtype)
    for name, dtype in {
        "half": dtypes.float16,
        "bfloat16": dtypes.bfloat16,
        "float": dtypes.float32,
        "double": dtypes.float64,
        "int": dtypes.int32,
        "long": dtypes.int64,
        "bool": dtypes.bool_,
    }.items()
}  # a table, since some of the names are Python's own


def as_type(input: Tensor, dtype: DTypeLike) -> Tensor:
    """The values as `dtype`."""
    return cast(input, as_dtype(dtype))


def type_as(input: Tensor, other: Tensor) -> Tensor:
    """The values in the dtype and on the device of `other`."""
    return to(input, other)
