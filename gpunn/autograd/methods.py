"""The methods of `Tensor` that are operations, each a function of `gpunn.autograd.functions`.

A function whose first argument is the tensor serves as a method as it stands, so ``x.exp()`` and
``gpunn.exp(x)`` are one object and a call costs no detour.
"""

from __future__ import annotations

from typing import Any

from gpunn.autograd import creation
from gpunn.autograd.aliases import Operand
from gpunn.autograd.functions import (
    activation,
    arithmetic,
    elementwise,
    indexing,
    inplace,
    linalg,
    moving,
    reduction,
    shape,
    sorting,
)
from gpunn.autograd.tensor import Tensor

# Which functions of each family are methods too.
METHODS = {
    arithmetic: (
        "add sub mul div pow remainder floor_divide maximum minimum neg where masked_fill "
        "eq ne lt le gt ge logical_and logical_or logical_xor logical_not equal allclose isclose"
    ),
    elementwise: (
        "exp expm1 log log2 log10 log1p sqrt rsqrt reciprocal square sin cos tan atan abs clamp "
        "floor ceil round trunc sign isnan isinf isfinite"
    ),
    reduction: (
        "sum mean var std prod max min amax amin argmax argmin any all norm cumsum logsumexp gather"
    ),
    shape: (
        "reshape view permute transpose t moveaxis expand broadcast_to expand_as view_as squeeze "
        "unsqueeze flatten unflatten contiguous clone flip repeat tril triu split chunk unbind "
        "narrow"
    ),
    indexing: "index_select nonzero",
    sorting: "sort argsort topk unique bincount",
    linalg: "matmul bmm dot outer",
    activation: "sigmoid tanh relu softmax log_softmax",
    moving: "to cpu cuda type_as",
    creation: "new_tensor new_empty new_full new_zeros new_ones",
    inplace: (
        "add_ sub_ mul_ div_ pow_ remainder_ neg_ clamp_ exp_ sqrt_ abs_ relu_ sigmoid_ tanh_ "
        "masked_fill_ copy_ fill_ zero_ uniform_ normal_"
    ),
}


def _reflected(function: Any) -> Any:
    def reflected(self: Any, other: Any) -> Any:
        return function(other, self)

    reflected.__name__ = f"r{function.__name__}"
    reflected.__doc__ = f"`{function.__name__}` with the operands exchanged."
    return reflected


def _equality(function: Any) -> Any:
    def compare(self: Any, other: Any) -> Any:
        if other is None or isinstance(other, (str, type, dict)):
            return NotImplemented  # Python then compares identities, as for any two objects
        return function(self, other)

    compare.__name__ = compare.__qualname__ = function.__name__
    compare.__doc__ = function.__doc__
    return compare


OPERATORS = {
    "__add__": arithmetic.add,
    "__radd__": _reflected(arithmetic.add),
    "__sub__": arithmetic.sub,
    "__rsub__": _reflected(arithmetic.sub),
    "__mul__": arithmetic.mul,
    "__rmul__": _reflected(arithmetic.mul),
    "__truediv__": arithmetic.div,
    "__rtruediv__": _reflected(arithmetic.div),
    "__floordiv__": arithmetic.floor_divide,
    "__rfloordiv__": _reflected(arithmetic.floor_divide),
    "__mod__": arithmetic.remainder,
    "__rmod__": _reflected(arithmetic.remainder),
    "__pow__": arithmetic.pow,
    "__rpow__": _reflected(arithmetic.pow),
    "__matmul__": linalg.matmul,
    "__rmatmul__": _reflected(linalg.matmul),
    "__neg__": arithmetic.neg,
    "__pos__": lambda self: self,
    "__abs__": elementwise.abs,
    "__invert__": arithmetic.bitwise_not,
    "__and__": arithmetic.bitwise_and,
    "__rand__": _reflected(arithmetic.bitwise_and),
    "__or__": arithmetic.bitwise_or,
    "__ror__": _reflected(arithmetic.bitwise_or),
    "__xor__": arithmetic.bitwise_xor,
    "__rxor__": _reflected(arithmetic.bitwise_xor),
    "__eq__": _equality(arithmetic.eq),
    "__ne__": _equality(arithmetic.ne),
    "__lt__": arithmetic.lt,
    "__le__": arithmetic.le,
    "__gt__": arithmetic.gt,
    "__ge__": arithmetic.ge,
    "__iadd__": inplace.add_,
    "__isub__": inplace.sub_,
    "__imul__": inplace.mul_,
    "__itruediv__": inplace.div_,
    "__ipow__": inplace.pow_,
    "__imod__": inplace.remainder_,
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
}

ALIASES = {
    "multiply": arithmetic.mul,
    "subtract": arithmetic.sub,
    "divide": arithmetic.div,
    "negative": arithmetic.neg,
    "absolute": elementwise.abs,
    "clip": elementwise.clamp,
    "swapaxes": shape.transpose,
    "movedim": shape.moveaxis,
    "ravel": shape.flatten,
    "mm": linalg.matmul,
    "type": moving.as_type,
    "T": property(lambda self: shape.permute(self, *range(self.ndim)[::-1])),
    "mT": property(lambda self: shape.transpose(self, -2, -1)),
    **moving.CONVERSIONS,
}


def _where(self: Tensor, condition: Tensor, other: Operand) -> Tensor:
    """The tensor where `condition` (bool) holds, else `other`; broadcasting."""
    return arithmetic.where(condition, self, other)


def attach() -> None:
    """Give `Tensor` its operations."""
    for module, names in METHODS.items():
        for name in names.split():
            setattr(Tensor, name, getattr(module, name))
    for table in (OPERATORS, ALIASES):
        for name, function in table.items():
            setattr(Tensor, name, function)
    setattr(Tensor, "where", _where)  # noqa: B010


attach()
