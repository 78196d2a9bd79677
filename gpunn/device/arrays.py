"""Arrays on devices: recognise, allocate, move.

NumPy on the CPU, CuPy on a GPU, `EmulatorArray` on the emulator.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gpunn.device import tracing
from gpunn.device.device import Device, _made, as_device
from gpunn.device.emulated import EmulatorArray, emulator_empty, emulator_numpy
from gpunn.device.probe import import_cupy
from gpunn.errors import OutOfMemoryError

CPU = Device("cpu")


def is_cupy(value: Any) -> bool:
    """Whether `value` is a CuPy array, asked without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def is_native(value: Any) -> bool:
    """Whether `value` is an array of just the types that our launchers take; the quick question."""
    kind = type(value)
    return kind is np.ndarray or kind is EmulatorArray or is_cupy(value)


def is_array(value: Any) -> bool:
    """Whether `value` is an array of any library that we can use without a copy."""
    return (
        isinstance(value, np.ndarray)
        or hasattr(value, "__dlpack__")  # asked first: the other raises for some PyTorch tensors
        or hasattr(value, "__cuda_array_interface__")
    )


def as_array(value: Any):
    """`value` as a NumPy or CuPy array, without a copy where its library allows it.

    NumPy and CuPy arrays pass through, and so does what a Tensor on the emulator holds. Arrays on a
    GPU (PyTorch, Numba, JAX …) come in through ``__cuda_array_interface__`` or DLPack; CPU arrays
    of others through DLPack; the rest through `numpy.asarray`.
    """
    if isinstance(value, np.ndarray) or is_cupy(value):
        return value
    if hasattr(value, "__dlpack_device__"):
        if hasattr(value, "__emulator_array__"):
            return value.__emulator_array__
        kind, _ = value.__dlpack_device__()
        if kind in (2, 13):  # kDLCUDA, kDLCUDAManaged
            source = value.detach() if hasattr(value, "detach") else value
            return import_cupy().from_dlpack(source)
        if hasattr(value, "detach"):
            value = value.detach()
    elif hasattr(value, "__cuda_array_interface__"):
        return import_cupy().asarray(value)
    return np.asarray(value)


def device_of(array: Any) -> Device:
    """The device that holds a NumPy or CuPy array."""
    if type(array) is np.ndarray:
        return CPU
    if isinstance(array, EmulatorArray):
        return _made.get(("emulator", 0)) or Device("emulator")
    if isinstance(array, np.ndarray):  # memory maps and other kinds
        return CPU
    index = array.device.id
    return _made.get(("cuda", index)) or Device("cuda", index)


def array_module(device: Device | str):
    """numpy for the CPU, cupy for a GPU; for the emulator NumPy's functions, but staying there."""
    kind = Device(device).type
    if kind == "cpu":
        return np
    return emulator_numpy if kind == "emulator" else import_cupy()


def empty(shape, dtype, device: Device | str | None = None):
    """An uninitialised C-contiguous array. Raises OutOfMemoryError with the sizes."""
    device = as_device(device)
    if device.type == "cpu":
        return np.empty(shape, dtype)
    if device.type == "emulator":
        return emulator_empty(shape, dtype)
    cupy = import_cupy()
    try:
        with device.activate():
            return cupy.empty(shape, dtype)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise out_of_memory(device, shape, dtype) from error


def _as_tuple(shape) -> tuple[int, ...]:
    return (int(shape),) if np.ndim(shape) == 0 else tuple(map(int, shape))


def out_of_memory(device: Device, shape, dtype) -> OutOfMemoryError:
    """The error for an allocation that did not fit."""
    wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with device.activate():
        free, total = import_cupy().cuda.runtime.memGetInfo()
    return OutOfMemoryError(
        f"{device} has no room for an array of shape {_as_tuple(shape)} "
        f"{np.dtype(dtype).name} ({wanted / 2**20:,.1f} MiB): {free / 2**20:,.0f} MiB of "
        f"{total / 2**20:,.0f} MiB are free. Use a smaller batch or model, or free other arrays."
    )


def to_device(array: Any, device: Device | str):
    """`array` on `device`; the same array if it is there already."""
    device, array = Device(device), as_array(array)
    if device_of(array) == device:
        return array
    if device.type == "cpu":
        tracing.host_read("a copy to the CPU")
        return array.get()
    if tracing.state.trace is not None and device_of(array).type == "cpu":
        if not tracing.state.once:
            tracing.host_write(f"to_device() of an array of shape {array.shape}")
    if device.type == "emulator":  # always a copy, as to a GPU
        return emulator_numpy.array(array.get() if is_cupy(array) else array)
    if isinstance(array, EmulatorArray):
        array = array.get()
    cupy = import_cupy()
    try:
        with device.activate():
            return cupy.asarray(array)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise out_of_memory(device, array.shape, array.dtype) from error


def to_numpy(array: Any) -> np.ndarray:
    """`array` as a NumPy array in the memory of the host."""
    return to_device(array, CPU)


def pointer(array: Any) -> int:
    """The address of the array's first element."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return array.data.ptr


def synchronize(device: Device | str | None = None) -> None:
    """Wait until all work queued on `device` is done."""
    device = as_device(device)
    if device.type == "emulator" and tracing.state.capture is not None:
        tracing.waits("synchronize()", "call it after the step")
    if device.type == "cuda":
        with device.activate():
            import_cupy().cuda.runtime.deviceSynchronize()
