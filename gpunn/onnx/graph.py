"""A graph of ONNX nodes as a list of steps, and one run of it.

A value is a Tensor on the model's device, or a NumPy array on the host. What comes from shapes and
constants (sizes, axes, indices, masks) stays on the host, where it costs microseconds and nobody
waits for a GPU; it goes to the device where it meets a Tensor. A step whose inputs are all on the
host, and small, is computed there by the same functions, on CPU Tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, to_device, to_numpy, tracing
from gpunn.errors import FileFormatError, UnsupportedError
from gpunn.onnx.files import form_of, to_array
from gpunn.onnx.fixed import Record
from gpunn.onnx.operators import registry
from gpunn.onnx.operators.registry import Node, Operator

_SMALL = 4096  # elements up to which a step on host values is computed on the host


class Placed:
    """Copies on the device of host arrays that stay as they are, each made when first wanted."""

    def __init__(self, arrays: Iterable[np.ndarray] = ()):
        self._entries: dict[int, list] = {}
        self.add(arrays)

    def __deepcopy__(self, memo: dict) -> Placed:
        return Placed(array for array, _ in self._entries.values())

    def add(self, arrays: Iterable[np.ndarray]) -> None:
        """More arrays that stay as they are."""
        self._entries.update((id(array), [array, None]) for array in arrays)

    def get(self, array: np.ndarray, device: Any) -> Tensor | None:
        """The copy of `array` on `device`, None if it is none of these arrays."""
        entry = self._entries.get(id(array))
        if entry is None:
            return None
        if entry[1] is None or entry[1].device != device:
            with tracing.made_once():
                entry[1] = wrap(to_device(array, device))
        return entry[1]


class Context:
    """One run of a graph: where it runs, whether it trains, and the values there are so far.

    Attributes
    ----------
    values : by their names in the graph
    states : the initializers by their names in the module's state
    place : (array, Tensor) of buffers by the id of the array that stands for them on the host
    placed : copies on the device of constants, and of what is known for these shapes
    """

    def __init__(
        self, module: Any, device: Any, values: dict[str, Any], states: dict[str, Any],
        place: dict[int, tuple], placed: tuple[Placed, ...] = (),
    ):  # fmt: skip
        self.module, self.device, self.values, self.states = module, device, values, states
        self.place, self.placed = place, placed

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.module.training

    def tensor(self, value: Any) -> Any:
        """A value as Tensor on the device; None, lists and texts as they are."""
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OUST":
            return value
        known = self.place.get(id(value))
        if known is not None and known[0] is value:
            return known[1]
        for arrays in self.placed:
            found = arrays.get(value, self.device)
            if found is not None:
                return found
        return wrap(to_device(value, self.device))

    def full(self, shape: tuple[int, ...], value: Any) -> Tensor:
        """A Tensor on the device with one value everywhere."""
        return wrap(array_module(self.device).full(shape, value, np.asarray(value).dtype))

    def inner(self, values: dict[str, Any]) -> Context:
        """The same run with other values, for a graph inside a node."""
        return Context(self.module, self.device, values, self.states, self.place, self.placed)


def on_host(value: Any) -> np.ndarray | None:
    """A value as NumPy array; from a GPU that waits."""
    if isinstance(value, Tensor):
        return to_numpy(value.array)
    return value


class Step:
    """One node: what computes it, where its inputs are found, what is not needed after it."""

    __slots__ = ("node", "operator", "run", "outside", "drop")

    def __init__(self, node: Node, operator: Operator, run: Callable, outside: Iterable[str] = ()):
        self.node, self.operator, self.run = node, operator, run
        self.outside = set(outside)  # what the graphs inside it use of this one
        self.drop: list[str] = []

    def __call__(self, context: Context) -> None:
        values, node = context.values, self.node
        given = [values[name] if name else None for name in node.inputs]
        try:
            made = self._made(context, given)
        except Exception as error:
            error.add_note(f"in {node} of the ONNX model")
            raise
        made = made if isinstance(made, tuple) else (made,)
        for name, value in zip(node.outputs, made, strict=False):
            if name:
                values[name] = np.asarray(value) if isinstance(value, np.generic) else value

    def _made(self, context: Context, given: list) -> Any:
        operator = self.operator
        if operator.raw:
            return self.run(context, *given) if operator.context else self.run(*given)
        if operator.pure and all(map(_is_small, given)):
            return self.on_host(given, context)
        arguments = operator.arguments
        inputs = [
            on_host(value) if index in arguments else context.tensor(value)
            for index, value in enumerate(given)
        ]
        return self.run(context, *inputs) if operator.context else self.run(*inputs)

    def on_host(self, given: list, context: Context | None = None) -> Any:
        """What `run` makes of host values: host values."""
        arguments = self.operator.arguments
        inputs = [
            wrap(value) if isinstance(value, np.ndarray) and index not in arguments else value
            for index, value in enumerate(given)
        ]
        with no_grad():
            made = self.run(context, *inputs) if self.operator.context else self.run(*inputs)
        return tuple(map(_back, made)) if isinstance(made, tuple) else _back(made)


def _back(value: Any) -> Any:
    """A Tensor on the CPU as an array; what was made on the device stays there."""
    if isinstance(value, Tensor) and type(value._array) is np.ndarray:
        return value._array
    return value


def _is_small(value: Any) -> bool:
    return value is None or (isinstance(value, np.ndarray) and value.size <= _SMALL)


class Graph:
    """Steps in the order in which they are run, and the constants that they use."""

    def __init__(self, inputs: list[str], outputs: list[str]):
        self.inputs, self.outputs = inputs, outputs
        self.steps: list[Step] = []
        self.constants: dict[str, np.ndarray] = {}
        self.initializers: dict[str, str] = {}  # name -> name in the state
        self.forms: list[tuple[Any, tuple[int, ...]]] = []  # dtype and shape of each output
        self.outer: set[str] = set()  # values of the graphs around that are used in here
        self.fixed: list[bool] = []  # of each step, see `fixed`

    def __deepcopy__(self, memo: dict) -> Graph:
        return self  # nothing in it changes after loading

    def run(self, context: Context) -> list:
        """Run all steps on `context.values`; returns the values of the outputs."""
        run_steps(self.steps, context)
        return [context.values[name] for name in self.outputs]

    def run_noting(self, context: Context) -> tuple[list, Record]:
        """The same, and what can be left out when the inputs have these shapes again."""
        made: dict[int, dict[str, np.ndarray]] = {}
        placed = Placed()
        context.placed += (placed,)
        run_steps(self.steps, context, self.fixed, made, placed)
        return [context.values[name] for name in self.outputs], Record(self, made, placed)

    def run_again(self, context: Context, record: Record) -> list:
        """The same with the values of a record."""
        context.values.update(record.values)
        context.placed += (record.placed,)
        run_steps(record.steps, context)
        return [context.values[name] for name in self.outputs]

    def call(self, context: Context, given: Iterable[Any]) -> list:
        """Run this graph, which stands inside a node, on values for its inputs."""
        values = {**context.values, **self.constants}
        for name, state in self.initializers.items():
            values[name] = context.states[state]
        values.update(zip(self.inputs, given, strict=True))
        return self.run(context.inner(values))


def run_steps(
    steps: list[Step], context: Context, fixed: Any = None, made: Any = None, placed: Any = None
) -> None:
    """Run steps one after the other; `made` and `placed` get the host values of `fixed` ones."""
    values = context.values
    for at, step in enumerate(steps):
        step(context)
        if fixed is not None and fixed[at]:
            found = {name: values[name] for name in step.node.outputs if name in values}
            if all(isinstance(value, np.ndarray) for value in found.values()):
                made[at] = found
                placed.add(found.values())
        for name in step.drop:
            values.pop(name, None)


class Builder:
    """Makes a Graph of a GraphProto: finds the operators, computes what is constant.

    Attributes
    ----------
    versions : domain -> version of its operator set
    weights, uses : name in the state -> the array of an initializer, and how it is used
    problems : what the model needs and gpunn does not have
    lasting : the constants of all graphs
    """

    def __init__(self, versions: dict[str, int], outer: Builder | None = None, path: str = ""):
        self.versions, self.outer, self.path = versions, outer, path
        self.weights: dict[str, np.ndarray] = {} if outer is None else outer.weights
        self.uses: dict[str, set[str]] = {} if outer is None else outer.uses
        self.problems: list[str] = [] if outer is None else outer.problems
        self.lasting: list[np.ndarray] = [] if outer is None else outer.lasting
        self.names: dict[str, str] = {}  # of initializers -> their names in the state
        self.known: set[str] = set()
        self.inputs: list[str] = []
        self.constants: dict[str, np.ndarray] = {}
        self.used_outside: set[str] = set()

    # ---- what operators ask for ------------------------------------------------------------------

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant, here or in a graph around."""
        if name in self.constants or self.outer is None or name in self.known:
            return self.constants.get(name)
        return self.outer.constant(name)

    def inner(self, proto: Any, node: Node) -> Graph:
        """A graph inside a node."""
        builder = Builder(self.versions, self, f"{node.name}/")
        graph = builder.build(proto)
        self.used_outside |= graph.outer
        return graph

    def state_name(self, name: str) -> str | None:
        """The name in the state of an initializer, here or in a graph around."""
        if name in self.names or self.outer is None or name in self.known:
            return self.names.get(name)
        return self.outer.state_name(name)

    # ---- building --------------------------------------------------------------------------------

    def build(self, proto: Any) -> Graph:
        """The Graph of `proto`; what gpunn cannot do is added to `problems`."""
        if proto.sparse_initializer:
            self.problems.append("the graph has sparse initializers")
        for tensor in proto.initializer:
            self._initializer(tensor)
        self.inputs = [value.name for value in proto.input if value.name not in self.known]
        self.known |= {value.name for value in proto.input}
        graph = Graph(self.inputs, [value.name for value in proto.output])
        graph.forms = [form_of(value) for value in proto.output]
        for number, node in enumerate(proto.node):
            self.used_outside = set()
            step = self._step(node, number)
            self.known |= set(node.output)
            for name in node.input:
                self._note(name, graph)
            for name in self.used_outside:
                self._note(name, graph)
            if step is not None:
                graph.steps.append(step)
        for name in graph.outputs:
            self._note(name, graph)
        graph.constants, graph.initializers = self.constants, self.names
        self.lasting += [a for a in self.constants.values() if a.dtype.kind not in "OUST"]
        if self.outer is None:
            _plan(graph)
        return graph

    def _note(self, name: str, graph: Graph) -> None:
        if name and name not in self.known:
            graph.outer.add(name)

    def _initializer(self, tensor: Any) -> None:
        name, array = tensor.name, to_array(tensor)
        if array.dtype.kind in "OUST":
            self.constants[name] = array
            self.known.add(name)
            return
        free = name
        while free in self.weights:  # of a graph inside a node, as another one's
            free = f"{self.path}{free}"
        self.names[name] = free
        self.known.add(name)
        self.weights[free] = array

    def _step(self, proto: Any, number: int) -> Step | None:
        """The step of a node; None where it is constant, and its value known now."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        version = self.versions.get(domain, 0)
        node = Node(proto, version, proto.name or f"{self.path}#{number}", self)
        try:
            operator = _found(node, domain)
            run = operator.build(node)
            unread = node.unread()
            if unread:
                raise node.refuse(f"attribute {unread[0]!r} is not supported")
        except UnsupportedError as error:
            self.problems.append(str(error))
            return None
        self._note_uses(node, operator)
        step = Step(node, operator, run, self.used_outside)
        return None if self._folded(step) else step

    def _note_uses(self, node: Node, operator: Operator) -> None:
        for index, name in enumerate(node.inputs):
            state = self.state_name(name) if name else None
            if state is not None:
                kind = "statistic" if index in operator.statistics else (
                    "frozen" if index in operator.frozen else "weight"
                )  # fmt: skip
                self.uses.setdefault(state, set()).add(kind)

    def _folded(self, step: Step) -> bool:
        """Compute a step of constants alone, and keep its results as constants."""
        node = step.node
        given = [self.constant(name) if name else None for name in node.inputs]
        pairs = zip(node.inputs, given, strict=True)
        missing = any(name and value is None for name, value in pairs)
        if not step.operator.pure or step.operator.raw or missing:
            return False
        try:
            made = step.on_host(given)
        except Exception as error:
            raise FileFormatError(f"{node}: its constants do not fit it: {error}") from error
        made = made if isinstance(made, tuple) else (made,)
        if not all(isinstance(value, np.ndarray) for value in made):
            return False
        self.constants.update(
            (name, value) for name, value in zip(node.outputs, made, strict=False) if name
        )
        return True


def _found(node: Node, domain: str) -> Operator:
    """The operator of a node, or the error that says what there is."""
    if domain not in registry.domains():
        raise node.refuse(f"gpunn has no operators of the domain {domain!r}, only those of ai.onnx")
    operator = registry.find(domain, node.op, node.version)
    if operator is not None and not _changed(node, domain):
        return operator
    known = registry.versions(domain, node.op)
    if not known:
        raise node.refuse("gpunn does not have this operator; docs/onnx.md lists those it has")
    raise node.refuse(f"gpunn has this operator for the versions {known}")


def _changed(node: Node, domain: str) -> bool:
    """Whether the operator was changed by a version that nobody has read yet."""
    if domain or node.version <= registry.NEWEST:
        return False
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op, node.version, domain)
    except onnx.defs.SchemaError:
        return True
    return schema.since_version > registry.NEWEST


def _plan(graph: Graph) -> None:
    """Note after which step each value made in the graph can be forgotten."""
    made = {name for step in graph.steps for name in step.node.outputs if name}
    last: dict[str, int] = {}
    for index, step in enumerate(graph.steps):
        for name in (*step.node.inputs, *step.outside, *step.node.outputs):
            last[name] = index
    for name, index in last.items():
        if name in made and name not in graph.outputs:
            graph.steps[index].drop.append(name)
