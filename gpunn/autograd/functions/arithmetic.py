"""Arithmetic of two operands with broadcasting: + - * / ** // % maximum minimum where, comparisons.

An operand is a Tensor or a number; `operands` has brought both to one dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import numpy as np

from gpunn.autograd.aliases import Operand
from gpunn.autograd.autocast import widened
from gpunn.autograd.dtypes import float32, is_float, wide
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.common import (
    array_xp,
    as_float,
    cast,
    check_broadcast,
    operands,
    shape_of,
    sum_to,
)
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.quiet import quiet


class Binary(Function):
    """A function of two operands that broadcast; `compute` is the arithmetic."""

    widens = True

    def forward(self, a, b):
        self.shapes = shape_of(a), shape_of(b)
        try:
            return self.compute(a, b)
        except ValueError:
            check_broadcast(type(self).__name__.lower(), *self.shapes)
            raise

    def reduce(self, grad_a, grad_b):
        """Both gradients in the shapes of their operands."""
        a, b = self.shapes
        return (
            sum_to(grad_a, a) if grad_a is not None else None,
            sum_to(grad_b, b) if grad_b is not None else None,
        )


class Add(Binary):
    """a + b"""

    def compute(self, a, b):
        return a + b

    def backward(self, grad):
        return self.reduce(grad if self.needs[0] else None, grad if self.needs[1] else None)


class Sub(Binary):
    """a - b"""

    def compute(self, a, b):
        return a - b

    def backward(self, grad):
        return self.reduce(grad if self.needs[0] else None, -grad if self.needs[1] else None)


class Mul(Binary):
    """a b; the gradients are g b and g a"""

    def compute(self, a, b):
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        return a * b

    def backward(self, grad):
        a, b = self.saved
        return self.reduce(grad * b if self.needs[0] else None, grad * a if self.needs[1] else None)


class Div(Binary):
    """a / b; the gradients are g / b and -g a / b^2"""

    def compute(self, a, b):
        self.save(a if self.needs[1] else None, b)
        with quiet():
            return a / b

    def backward(self, grad):
        a, b = self.saved
        with quiet():
            by_b = grad / b
            grad_b = -by_b * (a / b) if self.needs[1] else None
        return self.reduce(by_b if self.needs[0] else None, grad_b)


class Pow(Binary):
    """a ** b; the gradients are g b a^(b-1) and g a^b log(a)"""

    def compute(self, a, b):
        with quiet():
            out = a**b
        self.save(a, b, out if self.needs[1] else None)
        return out

    def backward(self, grad):
        a, b, out = self.saved
        xp = array_xp(grad)
        grad_a = grad_b = None
        with quiet():
            if self.needs[0]:
                # The slope of a^0 is 0 everywhere, also where a^-1 is infinite.
                slope = xp.where(xp.asarray(b) == 0, 0, b * a ** (b - 1))
                grad_a = (grad * slope).astype(grad.dtype, copy=False)
            if self.needs[1]:
                slope = out * xp.log(a)
                slope = xp.where((xp.asarray(a) == 0) & (b >= 0), 0, slope)
                grad_b = (grad * slope).astype(grad.dtype, copy=False)
        return self.reduce(grad_a, grad_b)


class Remainder(Binary):
    """a - b floor(a / b), with the sign of b; the gradients are g and -g floor(a / b)"""

    def compute(self, a, b):
        self.save(a, b)
        with quiet():
            return a % b

    def backward(self, grad):
        a, b = self.saved
        return self.reduce(
            grad if self.needs[0] else None, -grad * (a // b) if self.needs[1] else None
        )


class Extreme(Binary):
    """The larger or smaller of two; where they are equal, each gets half of the gradient"""

    def compute(self, a, b):
        self.save(a, b)
        xp = array_xp(a)
        return (xp.maximum if self.larger else xp.minimum)(a, b)

    def backward(self, grad):
        a, b = self.saved
        xp = array_xp(grad)
        half = (xp.asarray(a == b) * 0.5).astype(grad.dtype)
        first = (a > b if self.larger else a < b) + half
        return self.reduce(
            (grad * first).astype(grad.dtype) if self.needs[0] else None,
            (grad * (1 - first)).astype(grad.dtype) if self.needs[1] else None,
        )


class Maximum(Extreme):
    """max(a, b)"""

    larger = True


class Minimum(Extreme):
    """min(a, b)"""

    larger = False


class Where(Function):
    """a where the condition holds, else b; each gets the gradient of its elements"""

    widens = True

    def forward(self, a, b, condition):
        self.shapes = shape_of(a), shape_of(b)
        self.save(condition)
        return array_xp(condition).where(condition, a, b)

    def backward(self, grad):
        (condition,) = self.saved
        xp, zero = array_xp(grad), grad.dtype.type(0)
        a, b = self.shapes
        return (
            sum_to(xp.where(condition, grad, zero), a) if self.needs[0] else None,
            sum_to(xp.where(condition, zero, grad), b) if self.needs[1] else None,
        )


# ---- the public functions; `input` and `other` are PyTorch's names -------------------------------


def add(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """input + alpha * other, broadcasting."""
    if alpha != 1:
        other = mul(other, alpha) if isinstance(other, Tensor) else other * alpha
    return Add.apply(*operands("add", input, other))


def sub(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """input - alpha * other, broadcasting."""
    if alpha != 1:
        other = mul(other, alpha) if isinstance(other, Tensor) else other * alpha
    return Sub.apply(*operands("sub", input, other))


def mul(input: Operand, other: Operand) -> Tensor:
    """input * other, broadcasting."""
    return Mul.apply(*operands("mul", input, other))


def div(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Tensor:
    """input / other; integers give float32. rounding_mode: None, "trunc" or "floor"."""
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode not in (None, "trunc"):
        raise ValueError(
            f"div: rounding_mode {rounding_mode!r} is not known; use None, 'trunc' or 'floor'"
        )
    a, b = operands("div", input, other)
    if rounding_mode == "trunc":
        ratio = wide((a if isinstance(a, Tensor) else b)._array)
        return cast(wrap(array_xp(ratio).trunc(div(a, b)._array)), ratio.dtype)
    if not isinstance(a, Tensor):  # a reciprocal
        return Div.apply(a, as_float(b if state.low is None else widened(b)))
    if isinstance(b, Tensor):
        return Div.apply(as_float(a), as_float(b))
    return Div.apply(as_float(a), b)


def pow(input: Operand, exponent: Operand) -> Tensor:
    """input ** exponent, broadcasting."""
    if state.low is not None:
        input, exponent = widened(input), widened(exponent)
    return Pow.apply(*operands("pow", input, exponent))


def remainder(input: Operand, other: Operand) -> Tensor:
    """input % other, with the sign of `other` as in Python."""
    return Remainder.apply(*operands("remainder", input, other))


def floor_divide(input: Operand, other: Operand) -> Tensor:
    """input // other, rounded down; no gradient."""
    return _plain("floor_divide", "floor_divide", input, other)


def maximum(input: Operand, other: Operand) -> Tensor:
    """The larger of two, element by element; NaN wins."""
    return Maximum.apply(*operands("maximum", input, other))


def minimum(input: Operand, other: Operand) -> Tensor:
    """The smaller of two, element by element; NaN wins."""
    return Minimum.apply(*operands("minimum", input, other))


@overload
def where(condition: Tensor) -> tuple[Tensor, ...]: ...
@overload
def where(condition: Tensor, input: Operand, other: Operand) -> Tensor: ...
def where(
    condition: Tensor, input: Operand | None = None, other: Operand | None = None
) -> Tensor | tuple[Tensor, ...]:
    """`input` where `condition` (bool) holds, else `other`; broadcasting.

    With the condition alone: the indices of its true elements, one tensor a dimension.
    """
    if input is None and other is None:
        return tuple(wrap(index) for index in condition._array.nonzero())
    if condition.dtype != np.bool_:
        raise TypeError(
            f"where: condition has dtype {condition.dtype}; expected bool. Compare first, for "
            "example x > 0."
        )
    if not isinstance(input, Tensor) and not isinstance(other, Tensor):
        dtype = float32 if isinstance(input, float) or isinstance(other, float) else np.int64
        input = wrap(condition._xp.asarray(input, dtype))
    a, b = operands("where", input, other)
    check_devices("where", condition, *(value for value in (a, b) if isinstance(value, Tensor)))
    check_broadcast("where", condition.shape, shape_of(a), shape_of(b))
    dtype = (a if isinstance(a, Tensor) else b)._array.dtype
    # A Python number becomes an array, for `xp.where` would make it float64.
    a = a if isinstance(a, Tensor) else wrap(condition._xp.asarray(a, dtype))
    b = b if isinstance(b, Tensor) else wrap(condition._xp.asarray(b, dtype))
    return Where.apply(a, b, condition._array)


def masked_fill(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """`input` with `value` where `mask` (bool, broadcast to it) holds."""
    return where(mask, value, input)


def neg(input: Tensor) -> Tensor:
    """-input"""
    return Mul.apply(input, -1)


def _plain(name: str, ufunc: str, input: Operand, other: Operand) -> Tensor:
    """A NumPy function of two operands that has no gradient."""
    a, b = operands(name, input, other)
    x = wide(a._array) if isinstance(a, Tensor) else a
    y = wide(b._array) if isinstance(b, Tensor) else b
    xp = array_xp(x if isinstance(a, Tensor) else y)
    try:
        with quiet():
            out = xp.asarray(getattr(xp, ufunc)(x, y))
    except ValueError:
        check_broadcast(name, shape_of(x), shape_of(y))
        raise
    dtype = (a if isinstance(a, Tensor) else b)._array.dtype
    return wrap(out if out.dtype == np.bool_ or not is_float(dtype) else out.astype(dtype))


def _comparison(name: str, ufunc: str, symbol: str) -> Callable[[Operand, Operand], Tensor]:
    def compare(input: Operand, other: Operand) -> Tensor:
        return _plain(name, ufunc, input, other)

    compare.__name__ = compare.__qualname__ = name
    compare.__doc__ = f"input {symbol} other, element by element, as a bool tensor."
    return compare


eq = _comparison("eq", "equal", "==")
ne = _comparison("ne", "not_equal", "!=")
lt = _comparison("lt", "less", "<")
le = _comparison("le", "less_equal", "<=")
gt = _comparison("gt", "greater", ">")
ge = _comparison("ge", "greater_equal", ">=")
logical_and = _comparison("logical_and", "logical_and", "and")
logical_or = _comparison("logical_or", "logical_or", "or")
logical_xor = _comparison("logical_xor", "logical_xor", "xor")
bitwise_and = _comparison("bitwise_and", "bitwise_and", "&")
bitwise_or = _comparison("bitwise_or", "bitwise_or", "|")
bitwise_xor = _comparison("bitwise_xor", "bitwise_xor", "^")


def logical_not(input: Tensor) -> Tensor:
    """True where `input` is zero or False."""
    return wrap(input._xp.asarray(input._xp.logical_not(input._array)))


def bitwise_not(input: Tensor) -> Tensor:
    """~input: not for bool, the complement for integers."""
    return wrap(input._xp.asarray(~input._array))


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and the same elements."""
    return input.shape == other.shape and bool(eq(input, other)._array.all())


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether |input - other| <= atol + rtol |other| everywhere."""
    a, b = operands("allclose", input, other)
    return bool(input._xp.allclose(wide(a._array), wide(b._array), rtol, atol, equal_nan))


def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """Where |input - other| <= atol + rtol |other|."""
    a, b = operands("isclose", input, other)
    return wrap(input._xp.isclose(wide(a._array), wide(b._array), rtol, atol, equal_nan))
