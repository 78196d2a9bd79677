"""What functions without a gradient compute with NumPy: comparisons, masks, positions, order."""

from __future__ import annotations

import numpy as np

from gpunn.autograd.dtypes import is_float
from gpunn.onnx import export_arithmetic as arithmetic
from gpunn.onnx import export_reduction as reduction
from gpunn.onnx.recording import Value
from gpunn.onnx.table import converts

_COMPARE = {"equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
            "greater_equal": "GreaterOrEqual"}  # fmt: skip
_ARITHMETIC = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div",
               "maximum": "Max", "minimum": "Min", "power": "Pow", "matmul": "MatMul"}  # fmt: skip
_FUNCTION = {"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "absolute": "Abs", "negative": "Neg",
             "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "isnan": "IsNaN"}  # fmt: skip
_LOGIC = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
_BITS = {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor"}


def _names(*tables):
    return (f"numpy.{name}" for table in tables for name in table)


def _common(a, b):
    """The dtype in which NumPy compares two operands."""
    return np.result_type(*(part.dtype if isinstance(part, Value) else part for part in (a, b)))


@converts(*_names(_COMPARE), "numpy.not_equal")
def _compare(graph, call):
    a, b, _ = call.arguments
    name = call.kind.partition(".")[2]
    dtype = _common(a, b)
    if dtype == np.bool_ and name not in ("equal", "not_equal"):
        dtype = np.dtype(np.int32)
    a, b = graph.operand(a, dtype), graph.operand(b, dtype)
    if name == "not_equal":
        return graph.op("Not", graph.op("Equal", a, b))
    return graph.op(_COMPARE[name], a, b)


@converts(*_names(_ARITHMETIC))
def _arithmetic(graph, call):
    a, b, _ = call.arguments
    dtype = call.outputs[0].dtype
    name = call.kind.partition(".")[2]
    return graph.op(_ARITHMETIC[name], graph.operand(a, dtype), graph.operand(b, dtype))


@converts("numpy.remainder")
def _remainder(graph, call):
    a, b, _ = call.arguments
    return arithmetic.remainder(graph, a, b, call.outputs[0].dtype)


@converts("numpy.floor_divide")
def _floor_divide(graph, call):
    a, b, _ = call.arguments
    return arithmetic.floor_divide(graph, a, b, call.outputs[0].dtype)


@converts(*_names(_FUNCTION))
def _function(graph, call):
    x = call.arguments[0]
    return graph.op(_FUNCTION[call.kind.partition(".")[2]], graph.edge(x))


@converts("numpy.floor", "numpy.ceil", "numpy.rint", "numpy.trunc", "numpy.sign")
def _flat(graph, call):
    x = call.arguments[0]
    return arithmetic.flat(graph, graph.edge(x), x.dtype, call.kind.partition(".")[2])


@converts("numpy.isinf", "numpy.isfinite")
def _infinite(graph, call):
    x = call.arguments[0]
    infinite = graph.op("IsInf", graph.edge(x))
    if call.kind == "numpy.isinf":
        return infinite
    return graph.op("Not", graph.op("Or", infinite, graph.op("IsNaN", graph.edge(x))))


def truth(graph, value) -> str:
    """The edge of an operand as truth values: whether it is not zero."""
    return graph.operand(value, np.bool_)


@converts(*_names(_LOGIC))
def _logic(graph, call):
    a, b, _ = call.arguments
    return graph.op(_LOGIC[call.kind.partition(".")[2]], truth(graph, a), truth(graph, b))


@converts("numpy.logical_not")
def _not(graph, call):
    return graph.op("Not", truth(graph, call.arguments[0]))


@converts(*_names(_BITS))
def _bits(graph, call):
    a, b, _ = call.arguments
    dtype, name = call.outputs[0].dtype, _BITS[call.kind.partition(".")[2]]
    name = name if dtype == np.bool_ else f"Bitwise{name}"
    return graph.op(name, graph.operand(a, dtype), graph.operand(b, dtype))


@converts("numpy.invert")
def _invert(graph, call):
    x = call.arguments[0]
    return graph.op("Not" if x.dtype == np.bool_ else "BitwiseNot", graph.edge(x))


@converts("numpy.clip")
def _clip(graph, call):
    x, low, high, _ = call.arguments
    dtype = call.outputs[0].dtype
    bounds = [None if b is None else graph.operand(b, dtype) for b in (low, high)]
    return graph.op("Clip", graph.operand(x, dtype), *bounds)


@converts("numpy.astype")
def _astype(graph, call):
    x, dtype = call.arguments
    return graph.cast(graph.edge(x), dtype, x.dtype)


@converts("numpy.copy")
def _copy(graph, call):
    return graph.edge(call.arguments[0])


@converts("numpy.where")
def _where(graph, call):
    condition, a, b, _ = call.arguments
    dtype = call.outputs[0].dtype
    return arithmetic.where(
        graph, truth(graph, condition), graph.operand(a, dtype), graph.operand(b, dtype), dtype
    )


# ---- reductions and order ------------------------------------------------------------------------


_REDUCTIONS = {"add": "ReduceSum", "multiply": "ReduceProd", "maximum": "ReduceMax",
               "minimum": "ReduceMin", "logical_or": "ReduceMax",
               "logical_and": "ReduceMin"}  # fmt: skip


@converts(*(f"numpy.{name}.reduce" for name in _REDUCTIONS))
def _reduce(graph, call):
    x, *positional, options = call.arguments
    options = {**dict(zip(("axis", "dtype", "out", "keepdims"), positional, strict=False)),
               **options}  # fmt: skip
    axis, result = options.get("axis", 0), call.outputs[0].dtype
    axes = tuple(range(len(x.shape))) if axis is None else axis if isinstance(axis, tuple) else (
        axis,)  # fmt: skip
    name = _REDUCTIONS[call.kind.split(".")[1]]
    inner = np.dtype(np.int32) if result == np.bool_ else result
    edge = truth(graph, x) if result == np.bool_ else graph.edge(x)
    edge = graph.cast(edge, inner, result if result == np.bool_ else x.dtype)
    edge = reduction.reduce(graph, name, edge, axes, bool(options.get("keepdims")))
    return graph.cast(edge, result, inner)


@converts("numpy.argmax", "numpy.argmin")
def _arg(graph, call):
    x, *positional, options = call.arguments
    axis = positional[0] if positional else options.get("axis")
    name = "ArgMax" if call.kind == "numpy.argmax" else "ArgMin"
    edge = graph.edge(x)
    if x.dtype == np.bool_:
        edge = graph.cast(edge, np.int32)
    if axis is None:
        edge, axis = graph.reshape(edge, [-1]), 0
    return graph.op(name, edge, axis=axis, keepdims=int(bool(options.get("keepdims"))))


@converts("numpy.argsort")
def _argsort(graph, call):
    x, *positional, options = call.arguments
    axis = positional[0] if positional else options.get("axis", -1)
    axis %= len(x.shape)
    edge = graph.edge(x)
    if x.dtype.kind not in "fi" and not is_float(x.dtype):
        edge = graph.cast(edge, np.int32)
    size = graph.size(x.shape[axis])
    return graph.op("TopK", edge, size, outputs=2, axis=axis, largest=0, sorted=1)[1]


@converts("numpy.take_along_axis")
def _take_along_axis(graph, call):
    x, index, *positional, options = call.arguments
    axis = positional[0] if positional else options["axis"]
    return graph.op("GatherElements", graph.edge(x), graph.edge(index), axis=axis)


@converts("numpy.searchsorted")
def _searchsorted(graph, call):
    """How many of the sorted values lie before each value."""
    values, found, *positional, options = call.arguments
    side = positional[0] if positional else options.get("side", "left")
    if isinstance(found, Value) and len(found.shape) > 1:
        graph.refuse("numpy.searchsorted is known for one dimension only")
    dtype = _common(values, found)
    row = graph.op("Unsqueeze", graph.operand(values, dtype), graph.ints(0))
    column = graph.op("Unsqueeze", graph.operand(found, dtype), graph.ints(-1))
    before = graph.op("LessOrEqual" if side == "right" else "Less", row, column)
    return graph.op("ReduceSum", graph.cast(before, np.int64), graph.ints(-1), keepdims=0)
