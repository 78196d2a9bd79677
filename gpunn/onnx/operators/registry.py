"""The table of ONNX operators that gpunn runs, and a node as the builders of operators see it.

An operator is a *builder*: a function that gets a `Node`, reads its attributes, refuses what it
cannot do, and returns the function that computes. So a model is refused when it is loaded, never
halfway through its first batch. An attribute that no builder has read is refused as well: none is
ignored silently.

What computes gets one value for each input of the node, None for one that is left out, and returns
one value, or a tuple where the node has several outputs. Values are Tensors on the model's device,
but for the positions that an operator calls its *arguments* (a shape, axes, a number of
repetitions): those come as NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpunn.errors import UnsupportedError

# The newest version of the operator set whose changes have been read; an operator that a later one
# changed is refused until somebody has looked at what changed.
NEWEST = 28

Position = int  # of an input; inside Node the name `int` is that of a method


class Operator(NamedTuple):
    """One row of the table: who builds it, for which versions, and what its inputs are.

    arguments : positions of inputs that are wanted on the host as NumPy arrays
    frozen : positions of inputs that are no weights, so that an initializer there is a buffer
    statistics : positions of inputs that the operator itself writes in training
    pure : the result follows from the inputs alone, so that it can be computed when loading
    context : the computing function gets the `Context` of the run first
    raw : values come as they are, host arrays and Tensors alike
    settled : the shapes of the results follow from those of the inputs and from the arguments
    """

    build: Callable[[Node], Callable]
    first: int
    last: int | None
    arguments: tuple[int, ...]
    frozen: tuple[int, ...]
    statistics: tuple[int, ...]
    pure: bool
    context: bool
    raw: bool
    settled: bool


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def operator(
    names: str,
    first: int = 1,
    last: int | None = None,
    *,
    domain: str = "",
    arguments: tuple[int, ...] = (),
    frozen: tuple[int, ...] = (),
    statistics: tuple[int, ...] = (),
    pure: bool = True,
    context: bool = False,
    raw: bool = False,
    settled: bool = True,
):
    """Register a builder for the operators `names`, versions `first` to `last` (None: newest)."""

    def register(build):
        row = Operator(
            build, first, last, arguments, frozen + arguments, statistics, pure, context, raw,
            settled,
        )  # fmt: skip
        for name in names.split():
            _TABLE.setdefault((domain, name), []).append(row)
        return build

    return register


def find(domain: str, name: str, version: int) -> Operator | None:
    """The row for an operator in a version of its domain, None if there is none."""
    for row in _TABLE.get((domain, name), ()):
        if row.first <= version and (row.last is None or version <= row.last):
            return row
    return None


def versions(domain: str, name: str) -> str:
    """The versions in which gpunn has an operator, in words; "" for none."""
    rows = sorted(_TABLE.get((domain, name), ()), key=lambda row: row.first)
    return ", ".join(f"{row.first} to {row.last or NEWEST}" for row in rows)


def domains() -> set[str]:
    """The domains of the operators that gpunn has."""
    return {domain for domain, _ in _TABLE}


def names(domain: str = "") -> list[str]:
    """The operators of a domain that gpunn has."""
    return sorted(name for where, name in _TABLE if where == domain)


class Node:
    """A node of a graph: its attributes by type, and which of its outputs are wanted.

    Attributes
    ----------
    name, op, domain, version : of the node and of the operator set that the model imports
    inputs, outputs : names of values, "" for one that is left out
    builder : what builds the graphs inside this node
    """

    def __init__(self, proto: Any, version: int, name: str, builder: Any = None):
        self.name, self.op, self.domain, self.version = name, proto.op_type, proto.domain, version
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.builder = builder
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}
        self._read: set[str] = set()

    def __str__(self) -> str:
        domain = f"{self.domain}, " if self.domain else ""
        return f"node {self.name!r} ({self.op}, {domain}opset {self.version})"

    def refuse(self, reason: str) -> UnsupportedError:
        """The error that says what of this node gpunn cannot do; to be raised."""
        return UnsupportedError(f"{self}: {reason}")

    def wants(self, output: Position) -> bool:
        """Whether somebody uses an output."""
        return output < len(self.outputs) and bool(self.outputs[output])

    def has(self, name: str) -> bool:
        """Whether the node says something of an attribute."""
        return name in self._attributes

    def skip(self, *names: str) -> None:
        """Attributes that change nothing here; say in a comment why."""
        self._read.update(names)

    def unread(self) -> list[str]:
        """The attributes that the builder has not asked for."""
        return [name for name in self._attributes if name not in self._read]

    def _get(self, name: str, field: str, default: Any) -> Any:
        self._read.add(name)
        attribute = self._attributes.get(name)
        if attribute is None:
            return default
        if attribute.ref_attr_name:
            raise self.refuse(f"attribute {name!r} refers to one of a function that is not there")
        return getattr(attribute, field)

    def int(self, name: str, default: Any = None) -> Any:
        """An integer attribute."""
        return self._get(name, "i", default)

    def flag(self, name: str, default: bool = False) -> bool:
        """An integer attribute that says yes or no."""
        return bool(self._get(name, "i", default))

    def float(self, name: str, default: Any = None) -> Any:
        """A floating attribute."""
        return self._get(name, "f", default)

    def ints(self, name: str, default: Any = None) -> Any:
        """A list of integers as a tuple."""
        found = self._get(name, "ints", None)
        return default if found is None else tuple(found)

    def floats(self, name: str, default: Any = None) -> Any:
        """A list of numbers as a tuple."""
        found = self._get(name, "floats", None)
        return default if found is None else tuple(found)

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        found = self._get(name, "s", None)
        return default if found is None else found.decode("utf-8", "replace")

    def texts(self, name: str, default: Any = None) -> Any:
        """A list of strings as a tuple."""
        found = self._get(name, "strings", None)
        return default if found is None else tuple(s.decode("utf-8", "replace") for s in found)

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """A string attribute that must be one of `allowed`."""
        found = self.text(name, default)
        if found not in allowed:
            raise self.refuse(
                f"attribute {name!r} is {found!r}; gpunn has {', '.join(map(repr, allowed))}"
            )
        return found

    def array(self, name: str) -> np.ndarray | None:
        """A tensor attribute as a NumPy array."""
        found = self._get(name, "t", None)
        if found is None:
            return None
        from gpunn.onnx.files import to_array

        return to_array(found)

    def dtype(self, name: str, default: Any = None) -> Any:
        """An attribute that names an element type, as a NumPy dtype."""
        found = self._get(name, "i", None)
        return default if found is None else numpy_dtype(found, self)

    def graph(self, name: str) -> Any:
        """A graph attribute, built."""
        return self.builder.inner(self._get(name, "g", None), self)

    def constant(self, index: Position) -> np.ndarray | None:
        """The value of an input that is the same for all inputs of the model, else None."""
        if self.builder is None or index >= len(self.inputs):
            return None
        return self.builder.constant(self.inputs[index])

    def given(self, index: Position) -> bool:
        """Whether an input is there."""
        return index < len(self.inputs) and bool(self.inputs[index])


def numpy_dtype(number: int, node: Node) -> np.dtype:
    """The NumPy dtype (ml_dtypes' for the small ones) of ONNX's number for an element type."""
    import onnx

    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, ValueError):
        raise node.refuse(f"element type {number} is not known") from None
