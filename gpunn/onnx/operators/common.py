"""What the families of operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import FLOATS, is_float, wide
from gpunn.autograd.functions.common import array_xp, cast
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import to_device, tracing
from gpunn.device.quiet import quiet


def floating(x: Tensor) -> bool:
    """Whether a Tensor holds floats, through which gradients flow."""
    return x.dtype in FLOATS


def plain(compute: Callable, *tensors: Tensor, dtype: Any = None) -> Tensor:
    """``compute(xp, *arrays)`` without a gradient, in `dtype` (None: that of the first)."""
    arrays = [wide(tensor._array) for tensor in tensors]
    xp = array_xp(arrays[0])
    with quiet():
        out = xp.asarray(compute(xp, *arrays))
        wanted = tensors[0].dtype if dtype is None else dtype
        return wrap(out if out.dtype == wanted else out.astype(wanted))


def like(array: Any, other: Tensor) -> Tensor:
    """A NumPy array as Tensor on the device of another."""
    return wrap(to_device(np.asarray(array), other.device))


class Tables:
    """Arrays that a node makes from sizes alone, kept on the devices where they were wanted."""

    _MOST = 32

    def __init__(self) -> None:
        self._made: dict[tuple, Tensor] = {}

    def get(self, key: tuple, other: Tensor, make: Callable[[], Any]) -> Tensor:
        """What ``make()`` gives for `key`, as Tensor on the device of another."""
        key = (*key, str(other.device))
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= self._MOST:
                self._made.clear()
            with tracing.made_once():
                found = self._made[key] = like(make(), other)
        return found


def axis_of(axis: int, ndim: int) -> int:
    """An axis counted from the front."""
    if not -ndim <= axis < max(ndim, 1):
        raise ValueError(f"axis {axis} is out of range for {ndim} dimensions")
    return axis + ndim if axis < 0 else axis


def along(axis: int, part: Any) -> tuple:
    """The index of `part` along an axis."""
    return (slice(None),) * axis + (part,)


def scalar(array: Any, default: Any = None) -> Any:
    """The one value of a host array as a Python number; `default` for None."""
    if array is None:
        return default
    found = np.asarray(array)
    if found.size != 1:
        raise ValueError(f"expected one number, got an array of shape {found.shape}")
    value = found.reshape(()).astype(np.float64) if is_float(found.dtype) else found
    return value.item()


def ints(array: Any) -> tuple[int, ...] | None:
    """A host array as a tuple of Python integers; None stays."""
    return None if array is None else tuple(int(value) for value in np.asarray(array).reshape(-1))


def channel_shape(vector: Tensor, ndim: int, axis: int = 1) -> Tensor:
    """A vector of channels in a shape that broadcasts along an axis of `ndim` dimensions."""
    return reshape(vector, *(-1 if at == axis else 1 for at in range(ndim)))


def as_dtype(x: Tensor, dtype: Any) -> Tensor:
    """A Tensor in another dtype, gradients flowing where both are floats."""
    dtype = np.dtype(dtype)
    with quiet():
        if x.dtype in FLOATS and dtype in FLOATS:
            return cast(x, dtype)
        return x if x.dtype == dtype else wrap(x._array.astype(dtype))


def pair_lists(pads: tuple[int, ...], dimensions: int) -> list[tuple[int, int]]:
    """ONNX's pads (all beginnings, then all ends) as a pair for each dimension."""
    return [(pads[at], pads[at + dimensions]) for at in range(dimensions)]
