"""Conversions between element types, the small ones of eight bits and fewer included."""

from __future__ import annotations

import numpy as np

from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.tensor import wrap
from gpunn.device import to_numpy
from gpunn.onnx.operators.common import as_dtype, like
from gpunn.onnx.operators.registry import Node, operator

_SATURATING = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def convert(x, dtype: np.dtype, saturate: bool = True, round_mode: str = "up"):
    """A Tensor in another element type, by ONNX's rules for the small ones."""
    if x.dtype == dtype:
        return x
    if dtype.kind in "OUST" or isinstance(x, np.ndarray):
        raise TypeError("Cast: texts are not converted to numbers, nor numbers to texts")
    if dtype.name == "float8_e8m0fnu":
        from onnx.numpy_helper import to_float8e8m0

        array = np.asarray(to_numpy(x._array), np.float32)
        return like(to_float8e8m0(array, saturate, round_mode).astype(dtype), x)
    if saturate and dtype.name in _SATURATING:
        from onnx.numpy_helper import saturate_cast

        return like(saturate_cast(to_numpy(x._array), dtype), x)
    return as_dtype(x, dtype)


@operator("Cast", 1, 5)
def cast_by_name(node: Node):
    dtype = np.dtype(node.text("to").lower())
    return lambda x: convert(x, dtype)


@operator("Cast", 6)
def cast(node: Node):
    dtype, saturate = node.dtype("to"), node.flag("saturate", True)
    round_mode = node.text("round_mode", "up")
    if dtype.kind in "OUST":
        raise node.refuse("numbers are not converted to texts")
    return lambda x: convert(x, dtype, saturate, round_mode)


@operator("CastLike", 15)
def cast_like(node: Node):
    saturate, round_mode = node.flag("saturate", True), node.text("round_mode", "up")
    return lambda x, other: convert(x, other.dtype, saturate, round_mode)


@operator("BitCast", 26)
def bit_cast(node: Node):
    dtype = node.dtype("to")

    def run(x):
        array = array_xp(x._array).ascontiguousarray(x._array)
        return wrap(array.view(dtype).reshape(x.shape))

    return run
