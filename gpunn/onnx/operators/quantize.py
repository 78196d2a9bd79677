"""Numbers in eight bits and fewer: to them, back, and products of them."""

from __future__ import annotations

import numpy as np

from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.quiet import quiet
from gpunn.onnx.operators.common import as_dtype, plain
from gpunn.onnx.operators.convolution import Window, convolve
from gpunn.onnx.operators.registry import Node, operator
from gpunn.onnx.operators.types import convert

_RANGES = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767),
    "uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1),
}  # fmt: skip


def _spread(values, shape, axis: int, block: int):
    """Scales or zero points in a shape that broadcasts to the tensor's."""
    if values.ndim == 0 or values.size == 1:
        return values.reshape(())
    axis %= len(shape)
    if block:
        repeated = values.repeat(block, axis)
        return repeated[(slice(None),) * axis + (slice(0, shape[axis]),)]
    if values.ndim == 1:
        return values.reshape([-1 if at == axis else 1 for at in range(len(shape))])
    return values


def _as(array, dtype):
    """An array in a type that NumPy computes in."""
    return array if array.dtype == dtype else array.astype(dtype)


@operator("QuantizeLinear", 10, frozen=(1, 2))
def quantize_linear(node: Node):
    axis, block = node.int("axis", 1), node.int("block_size", 0)
    saturate, output = node.flag("saturate", True), node.dtype("output_dtype")
    precision = node.dtype("precision")

    def run(x, scale, zero=None):
        dtype = output or (np.dtype(np.uint8) if zero is None else zero.dtype)
        computed = precision or (np.dtype(np.float32) if x.dtype.itemsize < 4 else x.dtype)
        with quiet():
            ratio = _as(x._array, computed) / _as(
                _spread(scale._array, x.shape, axis, block), computed
            )
        if precision is not None:
            ratio = ratio.astype(np.float32)
        if dtype.name not in _RANGES:
            return convert(wrap(ratio.astype(np.float32)), dtype, saturate)
        return _rounded(ratio, zero, x.shape, axis, block, dtype)

    return run


def _rounded(ratio, zero, shape, axis: int, block: int, dtype) -> Tensor:
    xp = array_xp(ratio)
    found = xp.rint(ratio)
    if zero is not None:
        found = found + _as(_spread(zero._array, shape, axis, block), np.int32)
    low, high = _RANGES[dtype.name]
    return wrap(xp.asarray(xp.clip(found, low, high).astype(np.int32).astype(dtype)))


@operator("DequantizeLinear", 10, frozen=(1, 2))
def dequantize_linear(node: Node):
    axis, block = node.int("axis", 1), node.int("block_size", 0)
    output = node.dtype("output_dtype")

    def run(x, scale, zero=None):
        values = x._array.astype(np.float32)
        if zero is not None and zero.dtype.name in (*_RANGES, "int32"):
            values = values - _as(_spread(zero._array, x.shape, axis, block), np.float32)
        factor = _as(_spread(scale._array, x.shape, axis, block), np.float32)
        return as_dtype(wrap(values * factor), output or scale.dtype)

    return run


@operator("DynamicQuantizeLinear", 11)
def dynamic_quantize_linear(node: Node):
    def run(x):
        xp, array = x._xp, x._array
        low = xp.minimum(array.min(), np.float32(0))
        high = xp.maximum(array.max(), np.float32(0))
        scale = xp.asarray((high - low) / np.float32(255), np.float32)
        zero = xp.asarray(xp.clip(xp.rint(-low / scale), 0, 255), np.uint8)
        values = xp.clip(xp.rint(array / scale) + zero, 0, 255).astype(np.uint8)
        return wrap(values), wrap(scale), wrap(zero)

    return run


def _centred(x: Tensor, zero, axis: int | None = None):
    """x - zero point in int32; a zero point for each row or column broadcasts."""
    values = x._array.astype(np.int32)
    if zero is None:
        return values
    point = zero._array.astype(np.int32)
    if point.ndim == 1 and point.size > 1 and axis is not None:
        point = point.reshape([-1 if at == axis % x.ndim else 1 for at in range(x.ndim)])
    return values - (point.reshape(()) if point.size == 1 else point)


@operator("MatMulInteger", 10, frozen=(2, 3))
def matmul_integer(node: Node):
    def run(a, b, a_zero=None, b_zero=None):
        return plain(
            lambda xp, x, y: xp.matmul(x, y),
            wrap(_centred(a, a_zero, -2)), wrap(_centred(b, b_zero, -1)), dtype=np.int32,
        )  # fmt: skip

    return run


@operator("QLinearMatMul", 10, frozen=(1, 2, 4, 5, 6, 7))
def quantized_matmul(node: Node):
    def run(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
        xp = a._xp
        exact = xp.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
        factors = (_as(t._array, np.float32) for t in (a_scale, b_scale, y_scale))
        first, second, third = factors
        ratio = exact.astype(np.float32) * (first * second / third)
        return _rounded(ratio, y_zero, exact.shape, -1, 0, y_zero.dtype)

    return run


def _exact_convolution(x, w, window: Window, groups: int, xp):
    """A convolution of small integers: exact in float64."""
    images, kernel = wrap(x.astype(np.float64)), wrap(w.astype(np.float64))
    numbers = window.numbers(images.shape[2:], kernel.shape[2:])
    return xp.rint(convolve(images, kernel, None, *numbers, groups)._array).astype(np.int32)


@operator("ConvInteger", 10, frozen=(2, 3))
def convolution_integer(node: Node):
    window, groups = Window(node), node.int("group", 1)
    return lambda x, w, x_zero=None, w_zero=None: wrap(
        _exact_convolution(_centred(x, x_zero), _centred(w, w_zero, 0), window, groups, x._xp)
    )


@operator("QLinearConv", 10, frozen=(1, 2, 4, 5, 6, 7, 8))
def quantized_convolution(node: Node):
    window, groups = Window(node), node.int("group", 1)

    def run(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias=None):
        exact = _exact_convolution(
            _centred(x, x_zero), _centred(w, w_zero, 0), window, groups, x._xp
        )
        ndim = exact.ndim
        if bias is not None:
            exact = exact + bias._array.reshape([-1 if at == 1 else 1 for at in range(ndim)])
        scale = _spread(w_scale._array, exact.shape, 1, 0)
        ratio = exact.astype(np.float32) * (x_scale._array * scale / y_scale._array)
        return _rounded(ratio, y_zero, exact.shape, 1, 0, y_zero.dtype)

    return run
