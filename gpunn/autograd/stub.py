"""The operations of `Tensor` for type checkers: ``python -m gpunn.autograd.stub`` writes them.

`gpunn.autograd.methods` attaches them when gpunn is imported, which no type checker can see.
`tensor_methods.pyi` says the same in the words of one.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpunn.autograd.methods import ALIASES, METHODS, OPERATORS
from gpunn.autograd.tensor import Tensor

FILE = Path(__file__).with_name("tensor_methods.pyi")

HEAD = '''\
"""What `gpunn.autograd.methods` attaches to `Tensor`; written by gpunn.autograd.stub."""

import builtins
from collections.abc import Sequence
from typing import Any, Literal, overload

from gpunn.autograd.aliases import DeviceLike, Dims, DTypeLike, Operand, Size
from gpunn.autograd.functions.layout import MemoryFormat
from gpunn.autograd.functions.reduction import Extreme
from gpunn.autograd.functions.sorting import Sorted
from gpunn.autograd.random import Generator
from gpunn.autograd.tensor import Tensor

class Methods:
    __hash__: Any
    @property
    def T(self) -> Tensor: ...
    @property
    def mT(self) -> Tensor: ...
'''

_COMPARISONS = ("__eq__", "__ne__")
# A NumPy array to the left gives way to `__array_priority__`, which its annotations do not know.
_IGNORED = dict.fromkeys(("__lt__", "__le__", "__gt__", "__ge__"), "  # type: ignore[misc]")


def stub() -> str:
    """The text of the file."""
    names = [name for listed in METHODS.values() for name in listed.split()]
    names += [name for name in (*OPERATORS, *ALIASES) if name not in ("T", "mT")]
    return HEAD + "".join(_method(name, getattr(Tensor, name)) for name in names)


def _method(name: str, function: Callable[..., Any]) -> str:
    if name in _COMPARISONS:
        return f"    def {name}(self, other: object) -> Tensor: ...  # type: ignore[override]\n"
    if name == "__pos__":
        return f"    def {name}(self) -> Tensor: ...\n"
    if re.fullmatch("__r[a-z]+__", name) and name != "__round__":
        return f"    def {name}(self, other: Operand) -> Tensor: ...\n"
    if name == "where":
        text = "condition: Tensor, other: Operand"
        return f"    def where(self, {text}) -> Tensor: ...\n"
    if name == "__setitem__":
        return "    def __setitem__(self, key: Any, value: Operand) -> None: ...\n"
    if name.endswith("_") and not name.startswith("__"):  # in place: the arguments are the same
        function = getattr(Tensor, name[:-1], function)
    if name.startswith("__i") and name.endswith("__") and name != "__invert__":
        function = getattr(Tensor, name.replace("__i", "__", 1))
    if name.startswith("__") and (keywords := function.__kwdefaults__):
        return _written(name, ("", _without(function, keywords)))  # an operator has no options
    return "".join(_written(name, one) for one in _signatures(function))


def _signatures(function: Callable[..., Any]) -> Iterator[tuple[str, inspect.Signature]]:
    """Each way in which the function may be called, and what stands above it."""
    ways = typing.get_overloads(function)
    for way in ways:
        yield "    @overload\n", inspect.signature(way)
    if not ways:
        yield "", inspect.signature(function)


def _without(function: Callable[..., Any], names: Iterable[str]) -> inspect.Signature:
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.name not in names]
    return signature.replace(parameters=kept)


def _written(name: str, way: tuple[str, inspect.Signature]) -> str:
    above, signature = way
    first, *others = signature.parameters.values()
    parameters = [first.replace(name="self", annotation=inspect.Parameter.empty), *others]
    text = str(signature.replace(parameters=parameters)).replace("'", "")
    # In the class, float, int, bool and type are methods.
    text = re.sub(r"(?<![\w.])(float|int|bool|type)\b", r"builtins.\1", text)
    text = re.sub(r"= gpunn\.\w+", "= ...", text)  # how a MemoryFormat shows itself
    return f"{above}    def {name}{text}: ...{_IGNORED.get(name, '')}\n"


if __name__ == "__main__":
    FILE.write_text(stub(), encoding="utf-8")
