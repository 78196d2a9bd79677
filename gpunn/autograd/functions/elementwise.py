"""Functions of one operand, element by element: exp log sqrt sin … clamp abs, and the roundings.

The activation functions of networks have kernels of their own: see `activation.py`.
"""

from __future__ import annotations

from typing import Any

from gpunn.autograd.aliases import Operand
from gpunn.autograd.autocast import widened
from gpunn.autograd.dtypes import is_float, wide
from gpunn.autograd.function import Function
from gpunn.autograd.functions.arithmetic import maximum, minimum
from gpunn.autograd.functions.common import array_xp, as_float
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.quiet import quiet


class Unary(Function):
    """One operand; `value(xp, x)`, and `slope(xp, x, y)`, the derivative where y = value(x).

    `keeps` is "x" or "y", whichever the slope needs; the other is not kept in memory.
    """

    widens = True
    keeps = "x"

    def forward(self, x):
        with quiet():
            y = self.value(array_xp(x), x)
        if self.needs[0]:
            self.save(*((x, None) if self.keeps == "x" else (None, y)))
        return y

    def backward(self, grad):
        x, y = self.saved
        with quiet():
            return (grad * self.slope(array_xp(grad), x, y)).astype(grad.dtype, copy=False)


# What `autocast` computes in float32: what grows fast, or is steep.
_EXACT = {"exp", "expm1", "log", "log2", "log10", "log1p", "rsqrt", "reciprocal", "tan"}


def _unary(name: str, formula: str, value, slope, keeps: str = "x", floats: bool = True):
    """A public function `name` from its value and its slope."""
    exact = name in _EXACT
    members = {"value": staticmethod(value), "slope": staticmethod(slope), "keeps": keeps}
    node: Any = type(name.title(), (Unary,), members)
    node.__doc__ = formula

    def function(input: Tensor) -> Tensor:
        if exact and state.low is not None:
            input = widened(input)
        return node.apply(as_float(input) if floats else input)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{formula}, element by element."
    return function


exp = _unary("exp", "e^x", lambda xp, x: xp.exp(x), lambda xp, x, y: y, "y")
expm1 = _unary(
    "expm1", "e^x - 1, exact near 0", lambda xp, x: xp.expm1(x), lambda xp, x, y: y + 1, "y"
)
log = _unary("log", "The natural logarithm", lambda xp, x: xp.log(x), lambda xp, x, y: 1 / x)
log2 = _unary(
    "log2", "The logarithm to base 2",
    lambda xp, x: xp.log2(x), lambda xp, x, y: 1.4426950408889634 / x,
)  # fmt: skip
log10 = _unary(
    "log10", "The logarithm to base 10",
    lambda xp, x: xp.log10(x), lambda xp, x, y: 0.4342944819032518 / x,
)  # fmt: skip
log1p = _unary(
    "log1p", "log(1 + x), exact near 0", lambda xp, x: xp.log1p(x), lambda xp, x, y: 1 / (1 + x)
)
sqrt = _unary("sqrt", "The square root", lambda xp, x: xp.sqrt(x), lambda xp, x, y: 0.5 / y, "y")
rsqrt = _unary(
    "rsqrt", "1 / sqrt(x)", lambda xp, x: 1 / xp.sqrt(x), lambda xp, x, y: -0.5 * y * y * y, "y"
)
reciprocal = _unary("reciprocal", "1 / x", lambda xp, x: 1 / x, lambda xp, x, y: -y * y, "y")
square = _unary("square", "x^2", lambda xp, x: x * x, lambda xp, x, y: 2 * x, floats=False)
sin = _unary("sin", "The sine", lambda xp, x: xp.sin(x), lambda xp, x, y: xp.cos(x))
cos = _unary("cos", "The cosine", lambda xp, x: xp.cos(x), lambda xp, x, y: -xp.sin(x))
tan = _unary("tan", "The tangent", lambda xp, x: xp.tan(x), lambda xp, x, y: 1 + y * y, "y")
atan = _unary(
    "atan", "The arc tangent", lambda xp, x: xp.arctan(x), lambda xp, x, y: 1 / (1 + x * x)
)
abs = _unary(
    "abs", "|x|; the slope at 0 is 0",
    lambda xp, x: xp.absolute(x), lambda xp, x, y: xp.sign(x), floats=False,
)  # fmt: skip


class Clamp(Function):
    """min(max(x, low), high); the gradient flows where low <= x <= high"""

    widens = True

    def forward(self, x, low, high):
        self.save(x)
        self.limits = low, high
        return array_xp(x).clip(x, low, high)

    def backward(self, grad):
        (x,) = self.saved
        low, high = self.limits
        inside = True
        if low is not None:
            inside = x >= low
        if high is not None:
            inside = inside & (x <= high)
        return grad * inside


def clamp(input: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """`input` limited to [min, max]; either may be None, a number or a Tensor."""
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        input = input if min is None else maximum(input, min)
        return input if max is None else minimum(input, max)
    if isinstance(min, float) or isinstance(max, float):
        input = as_float(input)
    return Clamp.apply(input, min, max)


# ---- no gradient: steps are flat -----------------------------------------------------------------


class Flat(Function):
    """A function with slope 0 wherever it has one"""

    widens = True

    def forward(self, x, ufunc):
        return getattr(array_xp(x), ufunc)(x)

    def backward(self, grad):
        return array_xp(grad).zeros_like(grad)


def _flat(name: str, ufunc: str, formula: str):
    def function(input: Tensor) -> Tensor:
        return Flat.apply(input, ufunc)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{formula}, element by element; the gradient is 0."
    return function


floor = _flat("floor", "floor", "The largest integer not above x")
ceil = _flat("ceil", "ceil", "The smallest integer not below x")
round = _flat("round", "rint", "The nearest integer, halves to even")
trunc = _flat("trunc", "trunc", "x without its fraction")
sign = _flat("sign", "sign", "-1, 0 or 1")


def _test(name: str, meaning: str):
    def function(input: Tensor) -> Tensor:
        if not is_float(input.dtype):
            return wrap(input._xp.full(input.shape, name == "isfinite"))
        return wrap(input._xp.asarray(getattr(input._xp, name)(wide(input._array))))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Where `input` is {meaning}, as a bool tensor."
    return function


isnan = _test("isnan", "not a number")
isinf = _test("isinf", "plus or minus infinity")
isfinite = _test("isfinite", "neither infinite nor NaN")
