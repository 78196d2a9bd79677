"""Element types: their names, and which type comes out where two of them meet (PyTorch's rules)."""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np

float16 = half = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
float64 = double = np.dtype(np.float64)
int8 = np.dtype(np.int8)
int16 = short = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = long = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
uint32 = np.dtype(np.uint32)
bool_ = np.dtype(np.bool_)

FLOATS = (float16, bfloat16, float32, float64)
_PYTHON_TYPES = {"float": float32, "int": int64, "bool": bool_}


def as_dtype(value: Any) -> np.dtype:
    """A NumPy dtype from a dtype, its name or a Python type (``float`` means float32)."""
    if type(value) is np.dtype:
        return value
    if isinstance(value, type) and value.__module__ == "builtins":
        value = _PYTHON_TYPES.get(value.__name__, value)
    if isinstance(value, str) and value == "bfloat16":
        return bfloat16
    return np.dtype(value)


def is_float(dtype: np.dtype) -> bool:
    """Whether `dtype` is one of float16, bfloat16, float32 and float64."""
    return (dtype.kind == "f" and dtype.itemsize <= 8) or dtype == bfloat16


def is_low(dtype: np.dtype) -> bool:
    """Whether `dtype` has 16 bits and a fraction: computed in float32, rounded once."""
    return dtype.itemsize == 2 and dtype.kind not in "iu"


def wide(array: Any) -> Any:
    """`array` in float32 if it is float16 or bfloat16, else itself."""
    return array.astype(np.float32) if is_low(array.dtype) else array


@functools.cache
def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The type for a result of `a` and `b`: a float beats an integer, then the wider wins."""
    if a == b:
        return a
    if is_float(a) != is_float(b):
        return a if is_float(a) else b
    if is_float(a):
        if a.itemsize == b.itemsize:  # float16 with bfloat16
            return float32
        return a if a.itemsize > b.itemsize else b
    return np.promote_types(a, b)


def result_type(a: Any, b: Any) -> np.dtype:
    """The type in which arrays `a` and `b` are combined.

    An array without dimensions raises the other's type only to another kind (bool < int < float),
    so that a float64 scalar does not turn a float32 matrix into float64.
    """
    if (a.ndim == 0) != (b.ndim == 0) and _kind(a.dtype) == _kind(b.dtype):
        return b.dtype if a.ndim == 0 else a.dtype
    if a.ndim == 0 and b.ndim and _kind(a.dtype) < _kind(b.dtype):
        return b.dtype
    if b.ndim == 0 and a.ndim and _kind(b.dtype) < _kind(a.dtype):
        return a.dtype
    return promote(a.dtype, b.dtype)


@functools.cache
def _kind(dtype: np.dtype) -> Any:
    if is_float(dtype):
        return 2
    return 0 if dtype == bool_ else 1
