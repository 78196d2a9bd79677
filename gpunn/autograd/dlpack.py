"""DLPack: arrays to and from other libraries without a copy, bfloat16 included.

NumPy and CuPy speak the protocol (https://dmlc.github.io/dlpack/latest/) themselves: strides,
flags, streams and versions are theirs. NumPy does not know bfloat16 in it, so such arrays pass as
uint16, and the dtype is put right in the capsule that holds their description.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import bfloat16, is_float
from gpunn.device import Device, array_module, as_array, device_of, to_device
from gpunn.device.arrays import is_native

_UINT, _BFLOAT = 1, 4  # kDLUInt, kDLBfloat
_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_HOST = (1, 3)  # kDLCPU, kDLCUDAHost


class _Type(ctypes.Structure):
    """DLDataType"""

    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Array(ctypes.Structure):
    """The beginning of DLTensor"""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
    ]


class _Versioned(ctypes.Structure):
    """The beginning of DLManagedTensorVersioned; DLManagedTensor begins with its DLTensor"""

    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("array", _Array),
    ]


_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p


def _type_in(capsule: Any) -> _Type:
    """The dtype in a capsule, to be read and changed; it lives as long as the capsule."""
    if _is_valid(capsule, b"dltensor_versioned"):
        return _Versioned.from_address(_pointer(capsule, b"dltensor_versioned")).array.dtype
    if not _is_valid(capsule, b"dltensor"):
        raise BufferError(
            f"from_dlpack: __dlpack__ gave {capsule!r}, not a capsule that nobody took before"
        )
    return _Array.from_address(_pointer(capsule, b"dltensor")).dtype


def export(array: Any, **options: Any) -> Any:
    """The capsule of an array; `options` of ``__dlpack__``, those that are None left out."""
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0 and size > 1 and array.size:
            raise BufferError(
                f"__dlpack__: this tensor runs backwards in memory (strides {array.strides} in "
                "bytes), over which PyTorch ends the process. Use .contiguous(), or .numpy()."
            )
    given = {name: value for name, value in options.items() if value is not None}
    if array.dtype != bfloat16:
        return array.__dlpack__(**given)
    capsule = array.view(np.uint16).__dlpack__(**given)
    _type_in(capsule).code = _BFLOAT
    return capsule


class _Source:
    """Another library's array, which gives out bfloat16 as uint16."""

    def __init__(self, array: Any):
        self._array = array
        self.was_bfloat16 = False
        self.dtype: tuple[int, int] | None = None  # the code and the bits that came

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._array.__dlpack__(**options)
        found = _type_in(capsule)
        self.dtype = found.code, found.bits
        if self.dtype == (_BFLOAT, 16):
            self.was_bfloat16, found.code = True, _UINT
        return capsule


def import_array(value: Any, device: Any = None, copy: bool | None = None) -> Any:
    """The array of another library as NumPy's or CuPy's, on its memory unless that cannot be.

    Arguments and errors as of `gpunn.from_dlpack`.
    """
    if is_native(value) or hasattr(value, "__emulator_array__"):
        array = as_array(value)
    elif hasattr(value, "__dlpack__"):
        array = _imported(value)
    elif hasattr(value, "__cuda_array_interface__"):
        array = as_array(value)
    else:
        raise TypeError(
            f"from_dlpack: expected an array with __dlpack__, got {type(value).__name__}; "
            "gpunn.tensor takes numbers and lists"
        )
    if not is_known(array.dtype):
        raise BufferError(
            f"from_dlpack: the {type(value).__name__} has dtype {array.dtype.str}, which gpunn "
            "does not have; convert it first"
        )
    moved = array if device is None else to_device(array, device)
    if copy is False and moved is not array:
        raise BufferError(
            f"from_dlpack: copy=False, but from {device_of(array)} to {Device(device)} it must be "
            "copied"
        )
    return moved.copy() if copy and moved is array else moved


def _imported(value: Any) -> Any:
    kind = int(value.__dlpack_device__()[0])
    if kind not in (*_CUDA, *_HOST):
        raise BufferError(
            f"from_dlpack: the {type(value).__name__} lies on a device of DLPack's type {kind}; "
            "gpunn takes arrays on the CPU (1) and on NVIDIA GPUs (2)"
        )
    source, module = _Source(value), array_module("cuda" if kind in _CUDA else "cpu")
    try:
        array = module.from_dlpack(source)
        known = is_known(array.dtype)
    except (BufferError, RuntimeError):  # NumPy raises either
        if source.dtype is None:  # the other library refused, in its own words
            raise
        known = False
    if not known:
        code, bits = source.dtype or (0, 0)
        raise BufferError(
            f"from_dlpack: the {type(value).__name__} has dtype {getattr(value, 'dtype', '?')} "
            f"(DLPack's code {code}, {bits} bits), which gpunn does not have; convert it first"
        )
    return array.view(bfloat16) if source.was_bfloat16 else array


def is_known(dtype: np.dtype) -> bool:
    """Whether it is a dtype of numbers that gpunn has, in this machine's byte order."""
    return dtype.isnative and (dtype.kind in "iub" or is_float(dtype))


def foreign_array(value: Any) -> Any:
    """`as_array`, which a tensor of bfloat16 on the CPU passes, too; other byte orders turned."""
    if not is_native(value) and str(getattr(value, "dtype", "")).endswith("bfloat16"):
        if hasattr(value, "__dlpack__") and not hasattr(value, "__emulator_array__"):
            return _imported(value.detach() if hasattr(value, "detach") else value)
    array = as_array(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
