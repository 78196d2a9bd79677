"""Arithmetic of two operands and functions of one, element by element, as ONNX nodes."""

from __future__ import annotations

import numpy as np

from gpunn.autograd.dtypes import is_float
from gpunn.onnx.recording import Value
from gpunn.onnx.table import converts

_BINARY = {"Add": "Add", "Sub": "Sub", "Mul": "Mul", "Div": "Div", "Maximum": "Max",
           "Minimum": "Min"}  # fmt: skip


@converts(*_BINARY)
def _binary(graph, call):
    a, b = call.arguments
    dtype = call.outputs[0].dtype
    return graph.op(_BINARY[call.kind], graph.operand(a, dtype), graph.operand(b, dtype))


@converts("Pow")
def _pow(graph, call):
    base, exponent = call.arguments
    dtype = call.outputs[0].dtype
    if exponent == 2 and isinstance(base, Value):
        edge = graph.edge(base)
        return graph.op("Mul", edge, edge)
    return graph.op("Pow", graph.operand(base, dtype), graph.operand(exponent, dtype))


@converts("Fmod")
def _fmod(graph, call):
    a, b = call.arguments
    dtype = call.outputs[0].dtype
    return graph.op("Mod", graph.operand(a, dtype), graph.operand(b, dtype), fmod=1)


@converts("Remainder")
def _remainder(graph, call):
    a, b = call.arguments
    return remainder(graph, a, b, call.outputs[0].dtype)


def remainder(graph, a, b, dtype):
    """a - b floor(a / b), with the sign of b."""
    a, b = graph.operand(a, dtype), graph.operand(b, dtype)
    if not is_float(dtype):
        return graph.op("Mod", a, b)
    # A remainder with the sign of a, which is exact; plus b where the signs differ.
    rest = graph.op("Mod", a, b, fmod=1)
    zero = graph.constant(np.zeros((), dtype))
    signs = graph.op("Less", graph.op("Mul", graph.op("Sign", rest), graph.op("Sign", b)), zero)
    return graph.op("Where", signs, graph.op("Add", rest, b), rest)


def floor_divide(graph, a, b, dtype):
    """a / b, rounded down."""
    if not is_float(dtype):
        rest = remainder(graph, a, b, dtype)
        a, b = graph.operand(a, dtype), graph.operand(b, dtype)
        return graph.op("Div", graph.op("Sub", a, rest), b)
    # As NumPy does it: 1 // 0.1 is 9, though the quotient rounds to 10.
    rest = remainder(graph, a, b, dtype)
    a, b = graph.operand(a, dtype), graph.operand(b, dtype)
    none = graph.op("Equal", b, graph.constant(0, dtype))
    whole = graph.op("Round", graph.op("Div", graph.op("Sub", a, rest), b))
    return graph.op("Where", none, graph.op("Div", a, b), whole)


@converts("Where")
def _where(graph, call):
    a, b, condition = call.arguments
    dtype = call.outputs[0].dtype
    return where(graph, graph.edge(condition), graph.operand(a, dtype), graph.operand(b, dtype),
                 dtype)  # fmt: skip


def where(graph, condition: str, a: str, b: str, dtype) -> str:
    """`a` where the condition holds, else `b`; runtimes have no Where of truth values."""
    if dtype != np.bool_:
        return graph.op("Where", condition, a, b)
    kept = graph.op("And", condition, a)
    return graph.op("Or", kept, graph.op("And", graph.op("Not", condition), b))


# ---- one operand ---------------------------------------------------------------------------------

_UNARY = {"Exp": "Exp", "Log": "Log", "Sqrt": "Sqrt", "Reciprocal": "Reciprocal", "Sin": "Sin",
          "Cos": "Cos", "Tan": "Tan", "Atan": "Atan", "Abs": "Abs"}  # fmt: skip
# Of models that were loaded from ONNX.
_UNARY |= {name: name for name in "Acos Acosh Asin Asinh Atanh Cosh Erf Sinh".split()}
_UNARY["Determinant"] = "Det"


@converts(*_UNARY)
def _unary(graph, call):
    return graph.op(_UNARY[call.kind], graph.edge(call.arguments[0]))


@converts("Square")
def _square(graph, call):
    edge = graph.edge(call.arguments[0])
    return graph.op("Mul", edge, edge)


@converts("Rsqrt")
def _rsqrt(graph, call):
    return graph.op("Reciprocal", graph.op("Sqrt", graph.edge(call.arguments[0])))


@converts("Log2", "Log10")
def _log(graph, call):
    (x,) = call.arguments
    factor = 1 / np.log(2.0 if call.kind == "Log2" else 10.0)
    return graph.op("Mul", graph.op("Log", graph.edge(x)), graph.constant(factor, x.dtype))


@converts("Expm1")
def _expm1(graph, call):
    """tanh(x / 2) (e^x + 1), which is exact near 0."""
    (x,) = call.arguments
    edge, one = graph.edge(x), graph.constant(1, x.dtype)
    half = graph.op("Tanh", graph.op("Mul", edge, graph.constant(0.5, x.dtype)))
    return graph.op("Mul", half, graph.op("Add", graph.op("Exp", edge), one))


@converts("Log1P")
def _log1p(graph, call):
    """log(u) x / (u - 1) with u = 1 + x rounded, which is exact near 0; log(u) elsewhere."""
    (x,) = call.arguments
    edge, one = graph.edge(x), graph.constant(1, x.dtype)
    u = graph.op("Add", edge, one)
    rounded = graph.op("Sub", u, one)
    log = graph.op("Log", u)
    zero = graph.constant(0, x.dtype)
    near = graph.op("Less", graph.op("Abs", edge), graph.constant(0.5, x.dtype))
    same = graph.op("Equal", rounded, zero)
    quotient = graph.op("Div", edge, graph.op("Where", same, one, rounded))
    exact = graph.op("Where", same, edge, graph.op("Mul", log, quotient))
    return graph.op("Where", near, exact, log)


@converts("Clamp")
def _clamp(graph, call):
    x, low, high = call.arguments
    bounds = [None if b is None else graph.operand(b, x.dtype) for b in (low, high)]
    return graph.op("Clip", graph.edge(x), *bounds)


_FLAT = {"floor": "Floor", "ceil": "Ceil", "rint": "Round", "sign": "Sign"}


@converts("Flat")
def _flat(graph, call):
    x, ufunc = call.arguments
    return flat(graph, graph.edge(x), x.dtype, ufunc)


def flat(graph, edge: str, dtype, ufunc: str) -> str:
    """One of the roundings, by NumPy's name."""
    if not is_float(dtype) and ufunc != "sign":
        return edge
    if ufunc == "trunc":
        return graph.op("Mul", graph.op("Sign", edge), graph.op("Floor", graph.op("Abs", edge)))
    return graph.op(_FLAT[ufunc], edge)


@converts("Cast")
def _cast(graph, call):
    x, dtype = call.arguments
    return graph.cast(graph.edge(x), dtype, x.dtype)


@converts("Clone", "Move")
def _same(graph, call):
    return graph.edge(call.arguments[0])
