"""Arithmetic, comparisons, logic and functions of one operand, element by element.

Floats go through gpunn's differentiable functions, integers and booleans through NumPy's or CuPy's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import is_float
from gpunn.autograd.functions import arithmetic, elementwise
from gpunn.autograd.functions.activation import sigmoid, tanh
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.functions.elementwise import Unary
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.arrays import is_cupy
from gpunn.onnx.operators.common import as_dtype, floating, plain, scalar
from gpunn.onnx.operators.registry import Node, operator

# ---- one operand ---------------------------------------------------------------------------------


def _erf(xp, x):
    """The error function: CuPy's, or 1 - erfc by the series that the reference of GELU has."""
    if is_cupy(x):
        from cupyx.scipy.special import erf

        return erf(x)
    from gpunn.primitives.activation import _ERFC_SERIES

    wide = x.astype(np.float64)
    z = xp.abs(wide)
    t = 2 / (2 + z)
    first = second = 0.0
    # Clenshaw's sum, by numbers, so that it runs where x is; 14 terms are beyond float32.
    for term in reversed(_ERFC_SERIES[1:] if x.dtype == np.float64 else _ERFC_SERIES[1:14]):
        first, second = term + 2 * (2 * t - 1) * first - second, first
    upper = t * xp.exp(_ERFC_SERIES[0] + (2 * t - 1) * first - second - z * z)
    # 1 - erfc(x) loses digits near 0; there the series of erf is exact.
    near = z * _TWO_BY_ROOT_PI * (1 - z * z / 3 + z**4 / 10)
    return (xp.sign(wide) * xp.where(z < 1e-3, near, 1 - upper)).astype(x.dtype)


_TWO_BY_ROOT_PI = 2 / math.sqrt(math.pi)

# ONNX's name -> (value, slope) of functions that Tensors do not have
_MORE = {
    "Acos": (lambda xp, x: xp.arccos(x), lambda xp, x, y: -1 / xp.sqrt(1 - x * x)),
    "Asin": (lambda xp, x: xp.arcsin(x), lambda xp, x, y: 1 / xp.sqrt(1 - x * x)),
    "Acosh": (lambda xp, x: xp.arccosh(x), lambda xp, x, y: 1 / xp.sqrt(x * x - 1)),
    "Asinh": (lambda xp, x: xp.arcsinh(x), lambda xp, x, y: 1 / xp.sqrt(x * x + 1)),
    "Atanh": (lambda xp, x: xp.arctanh(x), lambda xp, x, y: 1 / (1 - x * x)),
    "Sinh": (lambda xp, x: xp.sinh(x), lambda xp, x, y: xp.cosh(x)),
    "Cosh": (lambda xp, x: xp.cosh(x), lambda xp, x, y: xp.sinh(x)),
    "Erf": (_erf, lambda xp, x, y: _TWO_BY_ROOT_PI * xp.exp(-x * x)),
}
_FUNCTIONS = {
    "Atan": elementwise.atan,
    "Cos": elementwise.cos,
    "Exp": elementwise.exp,
    "Log": elementwise.log,
    "Reciprocal": elementwise.reciprocal,
    "Sigmoid": sigmoid,
    "Sin": elementwise.sin,
    "Sqrt": elementwise.sqrt,
    "Tan": elementwise.tan,
    "Tanh": tanh,
}
# ONNX's name -> (the function of floats, NumPy's name of it for everything else)
_ANY = {
    "Abs": (elementwise.abs, "absolute"),
    "Ceil": (elementwise.ceil, "ceil"),
    "Floor": (elementwise.floor, "floor"),
    "Neg": (arithmetic.neg, "negative"),
    "Round": (elementwise.round, "rint"),
    "Sign": (elementwise.sign, "sign"),
}
_LEGACY = "consumed_inputs"  # of version 1, a hint about memory


def _register_functions() -> None:
    for name, (value, slope) in _MORE.items():
        members = {"value": staticmethod(value), "slope": staticmethod(slope)}
        kind: Any = type(name, (Unary,), members)
        # Looked up in each call: an export listens there.
        _FUNCTIONS[name] = lambda x, kind=kind: kind.apply(x)
    for name, function in _FUNCTIONS.items():
        _register_one(name, function, None)
    for name, (function, ufunc) in _ANY.items():
        _register_one(name, function, ufunc)


def _register_one(name: str, function, ufunc: str | None) -> None:
    @operator(name)
    def build(node: Node):
        node.skip(_LEGACY)
        if ufunc is None:
            return lambda x: function(x)
        return lambda x: (
            function(x) if floating(x) else plain(lambda xp, a: getattr(xp, ufunc)(a), x)
        )


_register_functions()


@operator("Identity")
def identity(node: Node):
    return lambda x: x


@operator("IsNaN")
def is_nan(node: Node):
    return elementwise.isnan


@operator("IsInf")
def is_inf(node: Node):
    positive, negative = node.flag("detect_positive", True), node.flag("detect_negative", True)

    def run(x):
        found = elementwise.isinf(x)
        if not positive:
            found = arithmetic.logical_and(found, x < 0)
        return found if negative else arithmetic.logical_and(found, x > 0)

    return run


@operator("Not")
def logical_not(node: Node):
    return arithmetic.logical_not


@operator("BitwiseNot", 18)
def bitwise_not(node: Node):
    return arithmetic.bitwise_not


# ---- two operands --------------------------------------------------------------------------------


def legacy_broadcast(node: Node):
    """Before version 7: how the second operand's shape is made to broadcast; None from then on."""
    if node.version >= 7:
        return None
    node.skip(_LEGACY, "axis")
    axis = node.int("axis") if node.flag("broadcast") else None

    def fit(a: Tensor, b: Tensor) -> Tensor:
        if axis is None or b.ndim == 0:
            return b
        start = axis + a.ndim if axis < 0 else axis
        return reshape(b, *b.shape, *(1,) * (a.ndim - start - b.ndim))

    return fit


def _binary(name: str, function, raw=None, first: int = 1) -> None:
    """An operator of two operands: `function` for floats, ``raw(xp, a, b)`` for the rest."""

    @operator(name, first)
    def build(node: Node):
        fit = legacy_broadcast(node)

        def run(a, b):
            if fit is not None:
                b = fit(a, b)
            if raw is None or floating(a):
                return function(a, b)
            return plain(raw, a, b)

        return run


def _truncated(xp, a, b):
    """a / b of integers, rounded towards zero."""
    quotient = xp.floor_divide(a, b)
    if a.dtype.kind == "u":
        return quotient
    inexact = (quotient * b != a) & ((a < 0) != (b < 0))
    return quotient + inexact.astype(a.dtype)


_binary("Add", arithmetic.add, lambda xp, a, b: a + b)
_binary("Sub", arithmetic.sub, lambda xp, a, b: a - b)
_binary("Mul", arithmetic.mul, lambda xp, a, b: a * b)
_binary("Div", arithmetic.div, _truncated)
_binary("Less", arithmetic.lt)
_binary("Greater", arithmetic.gt)
_binary("LessOrEqual", arithmetic.le, first=12)
_binary("GreaterOrEqual", arithmetic.ge, first=12)
_binary("And", arithmetic.logical_and)
_binary("Or", arithmetic.logical_or)
_binary("Xor", arithmetic.logical_xor)
_binary("BitwiseAnd", arithmetic.bitwise_and, first=18)
_binary("BitwiseOr", arithmetic.bitwise_or, first=18)
_binary("BitwiseXor", arithmetic.bitwise_xor, first=18)


@operator("Equal")
def equal(node: Node):
    fit = legacy_broadcast(node)

    def run(a, b):
        if isinstance(a, np.ndarray):  # texts
            return wrap(np.asarray(a == b, np.bool_))
        return arithmetic.eq(a, b if fit is None else fit(a, b))

    return run


@operator("BitShift", 11)
def bit_shift(node: Node):
    left = node.choice("direction", "", ("LEFT", "RIGHT")) == "LEFT"

    def shift(xp, a, b):
        width = a.dtype.itemsize * 8
        outside = (b < 0) | (b >= width)
        amount = xp.where(outside, 0, b).astype(a.dtype)
        if left:
            return xp.where(outside, 0, xp.left_shift(a, amount))
        return xp.where(outside, xp.where(a < 0, -1, 0).astype(a.dtype), xp.right_shift(a, amount))

    return lambda a, b: plain(shift, a, b)


@operator("Pow")
def power(node: Node):
    fit, constant = legacy_broadcast(node), node.constant(1)
    exponent = None
    if constant is not None and constant.ndim == 0 and is_float(constant.dtype):
        exponent = scalar(constant)

    def run(a, b):
        if not floating(a):
            return plain(_integer_power, a, b)
        if exponent == 2:
            return elementwise.square(a)
        if exponent == 0.5:
            return elementwise.sqrt(a)
        b = b if fit is None else fit(a, b)
        return arithmetic.pow(a, b if b.dtype == a.dtype else as_dtype(b, a.dtype))

    return run


def _integer_power(xp, a, b):
    return a ** (b.astype(a.dtype) if b.dtype.kind in "iu" and a.dtype.kind == "i" else b)


class Fmod(arithmetic.Binary):
    """a - b trunc(a / b), with the sign of a; the gradients are g and -g trunc(a / b)"""

    def compute(self, a, b):
        self.save(a, b)
        return array_xp(a).fmod(a, b)

    def backward(self, grad):
        a, b = self.saved
        steps = array_xp(grad).trunc(a / b)
        return self.reduce(
            grad if self.needs[0] else None, -grad * steps if self.needs[1] else None
        )


@operator("Mod", 10)
def modulo(node: Node):
    truncating = node.flag("fmod")

    def run(a, b):
        if not floating(a):
            ufunc = "fmod" if truncating else "remainder"
            return plain(lambda xp, x, y: getattr(xp, ufunc)(x, y), a, b)
        return Fmod.apply(a, b) if truncating else arithmetic.remainder(a, b)

    return run


# ---- any number of operands ----------------------------------------------------------------------


def _folded(name: str, function, ufunc: str) -> None:
    @operator(name)
    def build(node: Node):
        node.skip(_LEGACY)

        def run(*tensors):
            total = tensors[0]
            for tensor in tensors[1:]:
                if floating(total):
                    total = function(total, tensor)
                else:
                    total = plain(lambda xp, a, b: getattr(xp, ufunc)(a, b), total, tensor)
            return total * (1 / len(tensors)) if name == "Mean" else total

        return run


_folded("Sum", arithmetic.add, "add")
_folded("Mean", arithmetic.add, "add")
_folded("Max", arithmetic.maximum, "maximum")
_folded("Min", arithmetic.minimum, "minimum")


@operator("Where", 9)
def where(node: Node):
    def run(condition, a, b):
        if isinstance(a, np.ndarray):  # texts
            return np.where(condition._array, a, b)
        return arithmetic.where(condition, a, b)

    return run


@operator("Clip", 1, 10)
def clip_attributes(node: Node):
    node.skip(_LEGACY)
    low, high = node.float("min", -3.4028234663852886e38), node.float("max", 3.4028234663852886e38)
    return lambda x: elementwise.clamp(x, low, high)


@operator("Clip", 11, arguments=(1, 2))
def clip(node: Node):
    def run(x, low=None, high=None):
        if low is None and high is None:
            return x
        if not floating(x):
            low = None if low is None else low.astype(x.dtype)
            high = None if high is None else high.astype(x.dtype)
            return plain(lambda xp, a: a.clip(_number(low), _number(high)), x)
        return elementwise.clamp(x, scalar(low), scalar(high))

    return run


def _number(value):
    return None if value is None else value.item()
