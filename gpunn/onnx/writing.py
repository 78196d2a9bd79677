"""The graph that is written: nodes, initializers, and the edges between them by their names.

bfloat16 is a type for memory here: few operators and no runtime on the CPU compute with it. So such
values are widened to float32 where they are read, operators work in float32, and each result is
rounded to bfloat16, which is what gpunn computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

from gpunn.autograd.dtypes import bfloat16, float32, is_float, is_low
from gpunn.onnx import patterns, table
from gpunn.onnx.aligning import Plan, Varying, needed
from gpunn.onnx.files import import_onnx
from gpunn.onnx.recording import Call, ExportError, Value, values_in

INT64 = np.dtype(np.int64)
# Calls that only move elements, so that nothing is to be rounded.
_MOVING = frozenset(
    "Reshape Permute Expand Clone Move Flip Cat Triangle View Index Pick Gather PickRows FinalState"
    " Embedding embedding Extremum MaxUnpool numpy.getitem".split()
)


def _moved(value: Value) -> bool:
    """Whether a value is a parameter, or elements of one, moved: the file has it by its name."""
    if value.origin != "call":
        return value.origin == "parameter"
    if value.call.kind not in _MOVING or (value.array is None and value.arrays is None):
        return False
    return any(map(_moved, values_in(value.call.arguments)))


class Graph:
    """Nodes in the order in which they run.

    Attributes
    ----------
    opset : the version of the operators that are written
    nodes, initializers : as they will stand in the file
    """

    def __init__(self, opset: int, plan: Plan, inputs: list[tuple[str, Value]]):
        self.opset, self.plan, self.inputs = opset, plan, inputs
        self.onnx = import_onnx()
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.call: Call | None = None  # the one that is being written
        self._edges: dict[int, str] = {}
        self._kept: list[Any] = []  # so that no identity is used twice
        self._constants: dict[tuple, str] = {}
        self._sizes: dict[Any, str] = {}
        self._taken: set[str] = {name for name, _ in inputs}
        self._rounded: set[int] = set()  # values of bfloat16, by their identity

    # ---- from calls to nodes ---------------------------------------------------------------------

    def write(self, calls: list[Call], results: list[Value]) -> list[str]:
        """Write the calls that the results need; gives the results' edges."""
        for value in self._all(calls, results):
            self._widen(value)
        wanted = needed(results, self._settled)
        for call in calls:
            if call.number in wanted:
                self._write_call(call)
        self.call = None
        return [
            self.op("Cast", self.edge(value), to=self.type(bfloat16))
            if id(value) in self._rounded else self.edge(value)
            for value in results
        ]  # fmt: skip

    def _all(self, calls: list[Call], results: list[Value]) -> Iterable[Value]:
        for call in calls:
            yield from values_in(call.arguments)
            yield from call.outputs
        yield from results
        yield from (value for _, value in self.inputs)

    def _widen(self, value: Value) -> None:
        """Let converters see a value of bfloat16 as one of float32."""
        if value.dtype != bfloat16:
            return
        value.dtype = float32
        self._rounded.add(id(value))
        self._kept.append(value)
        if value.origin != "parameter":
            if value.array is not None:
                value.array = value.array.astype(float32)
            if value.arrays is not None:
                value.arrays = tuple(array.astype(float32) for array in value.arrays)

    def outward(self, value: Value) -> np.dtype:
        """The dtype of an input or result in the file."""
        return bfloat16 if id(value) in self._rounded else value.dtype

    def _settled(self, value: Value) -> bool:
        """Whether a value has an edge already: constants have, and what has a pattern."""
        if id(value) in self._edges:
            return True
        return not _moved(value) and self._known(value)

    def _known(self, value: Value) -> bool:
        """Whether a value's numbers are known, or have a pattern."""
        if value.array is not None:
            return True
        if value.arrays is None:
            return False
        self.call = value.call
        edge = patterns.write(self, value.arrays, value.shape)
        if edge is not None:
            self._bind(value, edge)
        return edge is not None

    def _write_call(self, call: Call) -> None:
        converter = table.converter_of(call.kind)
        self.call = call
        if converter is None:
            self.refuse("there is no way to say it in ONNX here")
        try:
            made = converter(self, call)
        except ExportError:
            # A parameter whose elements are moved in a way that cannot be said: as a constant.
            if not all(_moved(value) and self._known(value) for value in call.outputs):
                raise
            return
        made = made if isinstance(made, tuple) else (made,)
        for value, edge in zip(call.outputs, made, strict=False):
            if edge is None:
                continue
            if id(value) in self._rounded and call.kind not in _MOVING:
                edge = self.op("Cast", edge, to=self.type(bfloat16))
                edge = self.op("Cast", edge, to=self.type(float32))
            self._bind(value, edge)

    def _bind(self, value: Value, edge: str) -> None:
        self._edges[id(value)] = edge
        self._kept.append(value)

    def edge(self, value: Value) -> str:
        """The name of the edge that holds a value."""
        found = self._edges.get(id(value))
        if found is None:
            found = self._new_edge(value)
            self._bind(value, found)
        return found

    def _new_edge(self, value: Value) -> str:
        if value.origin in ("input", "parameter"):
            edge = value.name
            if value.origin == "parameter":
                self.initializer(edge, value.array)
            if id(value) in self._rounded:
                edge = self.op("Cast", edge, to=self.type(float32))
            return edge
        if value.array is not None:
            return self.constant(value.array)
        if value.arrays is not None:
            edge = patterns.write(self, value.arrays, value.shape)
            if edge is not None:
                return edge
            self.refuse(
                f"it uses an array of shape {value.arrays[0].shape} that was not the same in "
                "several runs of the model with other inputs, and follows no known pattern. It was "
                "made from values of the inputs outside of gpunn's functions, or at random, or is "
                "a table that depends on the sizes: make it from Tensors, give it as an input, or "
                "keep that axis fixed"
            )
        self.refuse(f"it needs a result of {value.call} that is not written")

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that names the layer and the function."""
        call = self.call
        where = "export" if call is None else f"export: {call.path or 'the model'} uses {call.kind}"
        raise ExportError(f"{where}, which cannot be exported: {why}.")

    def require(self, opset: int, what: str) -> None:
        """Raise the error if the version of the operators is too old for something."""
        if self.opset < opset:
            self.refuse(f"{what} needs opset {opset} or newer, and opset is {self.opset}")

    # ---- nodes -----------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str | None, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of its output, or a tuple of names."""
        path = "" if self.call is None else self.call.path.replace(".", "/")
        name = self.free(f"/{path}/{kind}" if path else f"/{kind}")
        made = [f"{name}_output_{number}" for number in range(outputs)]
        given = [edge or "" for edge in inputs]
        while given and not given[-1]:
            given.pop()
        node = self.onnx.helper.make_node(kind, given, made, name=name, **attributes)
        self.nodes.append(node)
        return made[0] if outputs == 1 else tuple(made)

    def free(self, name: str) -> str:
        """`name`, with a number behind it if it is taken."""
        made, number = name, 0
        while made in self._taken:
            number += 1
            made = f"{name}_{number}"
        self._taken.add(made)
        return made

    def initializer(self, name: str, array: np.ndarray) -> str:
        """A named array of the file, such as a parameter."""
        if name not in self.initializers:
            self._taken.add(name)
            self.initializers[name] = array
        return name

    def constant(self, array: Any, dtype: Any = None) -> str:
        """The edge of an array of numbers."""
        array = np.asarray(array, dtype)
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            path = "" if self.call is None else f"{self.call.path}."
            name = self.free(f"{path}constant" if path != "." else "constant")
            self._constants[key] = self.initializer(name, array)
        return self._constants[key]

    def folded(self, value: Value, name: str, change: Any) -> str | None:
        """A changed copy of a constant as an initializer; None if `value` is no constant."""
        if value.array is None:
            return None
        source = value.name or f"{self.call.path if self.call else ''}.constant".lstrip(".")
        found = f"{source}.{name}"
        if (key := ("folded", id(value), name)) in self._sizes:
            return self._sizes[key]
        made = self.initializer(self.free(found), np.ascontiguousarray(change(value.array)))
        if id(value) in self._rounded:
            made = self.op("Cast", made, to=self.type(float32))
        self._sizes[key] = made
        self._kept.append(value)
        return made

    def ints(self, *numbers: int) -> str:
        """The edge of a list of whole numbers."""
        return self.constant(np.array(numbers, np.int64))

    # ---- sizes -----------------------------------------------------------------------------------

    def size(self, size: int | Varying) -> str:
        """The edge of one size, int64 of shape (1,)."""
        if not isinstance(size, Varying):
            return self.ints(size)
        if size.terms is not None:
            return self._polynomial(size.terms)
        for value in values_in(self.call.arguments if self.call else ()):
            if value.arrays is not None:
                continue  # made of sizes itself
            for axis, other in enumerate(value.shape):
                if isinstance(other, Varying) and other.values == size.values:
                    return self.op("Shape", self.edge(value), start=axis, end=axis + 1)
        first, last = size.values[0], next(n for n in size.values if n != size.values[0])
        if not self.plan.names:
            self.refuse(
                f"it uses a number that was {first} in one run of the model and {last} in another "
                "with inputs of the same shape"
            )
        self.refuse(
            f"it uses a number that was {first} for one size of the dynamic axes and {last} for "
            "another, and is no sum of products of these sizes. Give sizes as -1 where the "
            "function works them out, or keep that axis fixed"
        )

    def _polynomial(self, terms) -> str:
        if terms not in self._sizes:
            total = None
            for names, factor in terms:
                part = None
                for name in names:
                    edge = self._axis(name)
                    part = edge if part is None else self.op("Mul", part, edge)
                if part is None:
                    part = self.ints(factor)
                elif factor != 1:
                    part = self.op("Mul", part, self.ints(factor))
                total = part if total is None else self.op("Add", total, part)
            self._sizes[terms] = total
        return self._sizes[terms]

    def _axis(self, name: str) -> str:
        """The size of a dynamic axis, read from an input that has it."""
        wanted = tuple(run[name] for run in self.plan.runs)
        if name not in self._sizes:
            for edge, value in self.inputs:
                for axis, size in enumerate(value.shape):
                    if isinstance(size, Varying) and size.values == wanted:
                        self._sizes[name] = self.op("Shape", edge, start=axis, end=axis + 1)
                        return self._sizes[name]
        return self._sizes[name]

    def sizes(self, shape: Iterable[int | Varying]) -> str:
        """The edge of several sizes, int64 of shape (count,)."""
        parts: list[list[int] | Varying] = []
        for size in shape:
            if isinstance(size, Varying):
                parts.append(size)
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(size)
            else:
                parts.append([size])
        edges = [
            self.size(part) if isinstance(part, Varying) else self.ints(*part) for part in parts
        ]
        if not edges:
            return self.constant(np.zeros(0, np.int64))
        return edges[0] if len(edges) == 1 else self.op("Concat", *edges, axis=0)

    def scalar(self, edge: str) -> str:
        """A list of one number as that number."""
        return self.op("Squeeze", edge, self.ints(0))

    def range(self, size: int | Varying) -> str:
        """0, 1 … size - 1 as int64."""
        if not isinstance(size, Varying):
            return self.constant(np.arange(size, dtype=np.int64))
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        return self.op("Range", zero, self.scalar(self.size(size)), one)

    # ---- nodes that are used everywhere ----------------------------------------------------------

    def reshape(self, edge: str, shape: Iterable[int | Varying]) -> str:
        """The same elements in another shape, which may hold one -1 and zeros for "as it is"."""
        return self.op("Reshape", edge, self.sizes(shape))

    def expand(self, edge: str, shape: Iterable[int | Varying]) -> str:
        """Repeated along axes of size 1."""
        return self.op("Expand", edge, self.sizes(shape))

    def transpose(self, edge: str, order: Iterable[int]) -> str:
        """The axes in another order."""
        order = list(order)
        return edge if order == sorted(order) else self.op("Transpose", edge, perm=order)

    def cast(self, edge: str, dtype: Any, before: Any = None) -> str:
        """The values in `dtype`, as they are if they had it `before`."""
        dtype = np.dtype(dtype)
        dtype = float32 if dtype == bfloat16 else dtype
        if before is not None and np.dtype(before) == dtype:
            return edge
        return self.op("Cast", edge, to=self.type(dtype))

    def type(self, dtype: Any) -> int:
        """ONNX's number for a dtype."""
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def operand(self, value: Any, dtype: Any) -> str:
        """An operand of arithmetic, a value or a number, in `dtype`."""
        if isinstance(value, Value):
            return self.cast(self.edge(value), dtype, value.dtype)
        if isinstance(value, Varying):
            return self.cast(self.scalar(self.size(value)), dtype, INT64)
        return self.constant(np.asarray(value).astype(dtype))

    def wide(self, value: Value) -> tuple[str, np.dtype]:
        """A value in the dtype in which it is computed with: float32 for 16 bits."""
        dtype = np.dtype(np.float32) if is_low(value.dtype) and is_float(value.dtype) else (
            value.dtype)  # fmt: skip
        return self.cast(self.edge(value), dtype, value.dtype), dtype
