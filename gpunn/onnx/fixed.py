"""What a graph computes from shapes alone, computed once for each set of input shapes.

Exporters leave half of a graph to the making of shapes, axes and masks. Those values follow from
the shapes of the inputs, from constants and from initializers that are no weights. `find` says of
which steps that is so; `Memory` keeps what they gave, and which steps are left to run.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Any

import numpy as np

_MOST = 16  # sets of shapes that are remembered


def find(graph: Any, weights: set[str]) -> list[bool]:
    """For each step: whether its results follow from the shapes of the graph's inputs.

    `weights` are the initializers whose values change in training. A shape is settled if it
    follows from the inputs' shapes, a value if it does as well.
    """
    values = set(graph.constants) | (set(graph.initializers) - weights)
    shapes = values | set(graph.initializers) | set(graph.inputs)
    found = []
    for step in graph.steps:
        node, operator = step.node, step.operator
        names = [name for name in node.inputs if name]
        asked = [node.inputs[at] for at in operator.arguments if node.given(at)]
        known = operator.pure and operator.settled and values.issuperset(names)
        if node.op in ("Shape", "Size"):
            known = shapes.issuperset(names)
        shaped = operator.settled and shapes.issuperset(names) and values.issuperset(asked)
        if known:
            values.update(node.outputs)
        if known or shaped:
            shapes.update(node.outputs)
        found.append(known)
    return found


class Record:
    """For one set of shapes: the values that are known, and the steps that are left."""

    def __init__(self, graph: Any, made: dict[int, dict[str, np.ndarray]], placed: Any):
        self.steps = [step for at, step in enumerate(graph.steps) if at not in made]
        used = {name for step in self.steps for name in (*step.node.inputs, *step.outside)}
        used.update(graph.outputs)
        self.values = {
            name: value for values in made.values() for name, value in values.items()
            if name in used
        }  # fmt: skip
        self.placed = placed  # copies of values on the device
        self.held: Any = None  # what the key names by its id, so that no other takes it


class Memory:
    """What a model remembers from run to run: records, the latest used last, and buffers' values.

    hosts : name of a buffer -> (its array, its version, its device, its values on the host)
    """

    def __init__(self) -> None:
        self._records: OrderedDict[Any, Record] = OrderedDict()
        self.hosts: dict[str, tuple] = {}

    def __deepcopy__(self, memo: dict) -> Memory:
        return Memory()

    def get(self, key: Any) -> Record | None:
        """The record of a set of shapes, if there is one."""
        record = self._records.get(key)
        if record is not None:
            with contextlib.suppress(KeyError):  # another thread has just forgotten it
                self._records.move_to_end(key)
        return record

    def put(self, key: Any, record: Record) -> None:
        """Remember a record, and forget the one that was not used for longest if there are many."""
        self._records[key] = record
        if len(self._records) > _MOST:
            self._records.popitem(last=False)


def key_of(given: dict[str, Any], buffers: list[Any]) -> Any:
    """What a record depends on: shapes of the inputs, and versions of the buffers."""
    inputs = tuple((name, _kind(value)) for name, value in given.items())
    return inputs, tuple((id(t._array), t._cell[0]) for t in buffers)


def _kind(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_kind, value))
    return None if value is None else (value.shape, value.dtype)
