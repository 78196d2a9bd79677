"""Making tensors: from data, filled, counted; of random numbers: `sampling.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike, Size
from gpunn.autograd.dlpack import import_array, is_known
from gpunn.autograd.dtypes import as_dtype, float32
from gpunn.autograd.functions.common import sizes
from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.device import (
    array_module,
    as_device,
    to_device,
)
from gpunn.device import (
    empty as empty_array,
)


def finished(array: Any, requires_grad: bool) -> Tensor:
    """A Tensor around a new array, as a leaf."""
    tensor = wrap(array)
    if requires_grad:
        tensor.requires_grad = True
    return tensor


def tensor(
    data: Any, dtype: DTypeLike = None, device: DeviceLike = None, requires_grad: bool = False
) -> Tensor:
    """A new Tensor with a copy of `data`: numbers, nested lists, arrays of any library, Tensors.

    Python floats become float32, ints int64, bools bool; arrays keep their dtype. `device` None is
    the default device.

    Raises ValueError for ragged lists, TypeError for what holds no numbers.
    """
    array = _of_numbers(raw_array(data, None if dtype is None else as_dtype(dtype)), "tensor")
    moved = to_device(array, as_device(device))
    if isinstance(data, (np.ndarray, Tensor)) or hasattr(data, "__dlpack_device__"):
        if moved is array:
            moved = moved.copy(order="C")
    return finished(moved, requires_grad)


def as_tensor(data: Any, dtype: DTypeLike = None, device: DeviceLike = None) -> Tensor:
    """`data` as a Tensor, without a copy where none is needed; a Tensor that fits is itself."""
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype)
    if device is None and not (hasattr(data, "__dlpack_device__") or isinstance(data, np.ndarray)):
        device = as_device(None)
    return wrap(raw_array(data, None if dtype is None else as_dtype(dtype), device))


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A Tensor on the memory of a NumPy array; copied to the default device if that is a GPU.

    TypeError for what holds no numbers, or has another machine's byte order: `tensor` copies that.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(ndarray).__name__}")
    return wrap(to_device(_of_numbers(ndarray, "from_numpy"), as_device(None)))


def _of_numbers(array: Any, who: str) -> Any:
    if not is_known(array.dtype):
        raise TypeError(f"{who}: gpunn has no dtype {array.dtype.str}; convert the array first")
    return array


def from_dlpack(source: Any, *, device: DeviceLike = None, copy: bool | None = None) -> Tensor:
    """A Tensor on the memory of another library's array, on the CPU or a GPU.

    Parameters
    ----------
    source : an array with ``__dlpack__`` (PyTorch, JAX, CuPy, NumPy …) or
        ``__cuda_array_interface__`` (Numba); what is written on one side is read on the other.
        Where the other library says that it must not be written to, a write raises ValueError
    device : where the Tensor shall be; None leaves the memory where it is
    copy : True always copies, False never does, None only to another device

    Raises
    ------
    TypeError for what is no such array; BufferError for a dtype or device that gpunn does not have,
    for copy=False where a copy is needed, and from the other library, as from PyTorch for a tensor
    that requires a gradient.
    """
    return wrap(import_array(source, device, copy))


def empty(
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """An uninitialised tensor of `size`."""
    array = empty_array(sizes(size), as_dtype(dtype or float32), as_device(device))
    return finished(array, requires_grad)


def full(
    size: Size,
    fill_value: float,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of `size` filled with one value, whose Python type gives the dtype by default."""
    if dtype is None:
        kind = type(fill_value)
        dtype = np.bool_ if kind is bool else np.int64 if kind is int else float32
    size = (size,) if isinstance(size, int) else size
    made = empty(*size, dtype=dtype, device=device)
    made._array[...] = fill_value
    return made.requires_grad_() if requires_grad else made


def zeros(
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of zeros, float32 unless told otherwise."""
    return full(sizes(size), 0, dtype=dtype or float32, device=device, requires_grad=requires_grad)


def ones(
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ones, float32 unless told otherwise."""
    return full(sizes(size), 1, dtype=dtype or float32, device=device, requires_grad=requires_grad)


def like(input: Tensor, dtype: DTypeLike, device: DeviceLike) -> dict[str, Any]:
    """dtype and device, those of `input` unless given."""
    return {"dtype": dtype or input.dtype, "device": device or input.device}


def empty_like(
    input: Tensor,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """An uninitialised tensor with the shape, dtype and device of `input`."""
    return empty(*input.shape, requires_grad=requires_grad, **like(input, dtype, device))


def zeros_like(
    input: Tensor,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Zeros with the shape, dtype and device of `input`."""
    return zeros(*input.shape, requires_grad=requires_grad, **like(input, dtype, device))


def ones_like(
    input: Tensor,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones with the shape, dtype and device of `input`."""
    return ones(*input.shape, requires_grad=requires_grad, **like(input, dtype, device))


def full_like(
    input: Tensor,
    fill_value: float,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """One value in the shape, dtype and device of `input`."""
    options = like(input, dtype, device)
    return full(input.shape, fill_value, requires_grad=requires_grad, **options)


def new_tensor(
    input: Tensor,
    data: Any,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of `data` with the dtype and device of `input`."""
    return tensor(data, requires_grad=requires_grad, **like(input, dtype, device))


def new_empty(
    input: Tensor,
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """An uninitialised tensor of `size` with the dtype and device of `input`."""
    return empty(*size, requires_grad=requires_grad, **like(input, dtype, device))


def new_full(
    input: Tensor,
    size: Size,
    fill_value: float,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """One value in `size` with the dtype and device of `input`."""
    return full(size, fill_value, requires_grad=requires_grad, **like(input, dtype, device))


def new_zeros(
    input: Tensor,
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Zeros of `size` with the dtype and device of `input`."""
    return zeros(*size, requires_grad=requires_grad, **like(input, dtype, device))


def new_ones(
    input: Tensor,
    *size: int | Sequence[int],
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones of `size` with the dtype and device of `input`."""
    return ones(*size, requires_grad=requires_grad, **like(input, dtype, device))


def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … below end; int64 if all are ints, else float32."""
    if end is None:
        start, end = 0, start
    if dtype is None:
        whole = all(isinstance(value, (int, np.integer)) for value in (start, end, step))
        dtype = np.int64 if whole else float32
    if as_dtype(dtype).kind in "iu":  # where the values are exact they are made on the device
        made = array_module(as_device(device)).arange(start, end, step, as_dtype(dtype))
        return finished(made, requires_grad)
    return finished(placed(np.arange(start, end, step), dtype, device), requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` values from start to end, both included."""
    return finished(placed(np.linspace(start, end, steps), dtype or float32, device), requires_grad)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: DTypeLike = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """The identity matrix, (n, m) with ones on the diagonal."""
    return finished(placed(np.eye(n, m), dtype or float32, device), requires_grad)


def placed(array: np.ndarray, dtype: DTypeLike, device: DeviceLike) -> Any:
    """An array of the host in a dtype on a device."""
    return to_device(array.astype(as_dtype(dtype), copy=False), as_device(device))
