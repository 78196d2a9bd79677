"""Graphs inside nodes (If, Loop, Scan), and values that are lists or may be missing."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpunn
from gpunn.autograd.tensor import Tensor
from gpunn.device import to_numpy
from gpunn.onnx.operators.common import along, axis_of, ints, scalar
from gpunn.onnx.operators.registry import Node, operator

# ---- control flow --------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    """One number of a value; from a GPU that waits."""
    return scalar(to_numpy(value.array) if isinstance(value, Tensor) else value)


@operator("If", raw=True, context=True, pure=False, settled=False)
def if_else(node: Node):
    branches = {True: node.graph("then_branch"), False: node.graph("else_branch")}

    def run(context, condition):
        return tuple(branches[bool(_number(condition))].call(context, ()))

    return run


@operator("Loop", raw=True, context=True, pure=False, settled=False)
def loop(node: Node):
    body, carried = node.graph("body"), len(node.inputs) - 2
    if not node.given(0) and not node.given(1):
        raise node.refuse("it has neither a number of steps nor a condition, so it never ends")

    def run(context, most, condition, *state):
        limit = None if most is None else int(_number(most))
        goes_on = condition is None or bool(_number(condition))
        state, made = list(state), []
        step = 0
        while goes_on and (limit is None or step < limit):
            given = [np.asarray(step, np.int64), np.asarray(goes_on), *state]
            found = body.call(context, given)
            goes_on = bool(_number(found[0])) if condition is not None else True
            state = found[1 : 1 + carried]
            made.append(found[1 + carried :])
            step += 1
        return (*state, *(
            _stacked(context, [row[at] for row in made], form)
            for at, form in enumerate(body.forms[1 + carried :])
        ))  # fmt: skip

    return run


def _stacked(context, values: list, form: tuple, axis: int = 0, backwards: bool = False) -> Any:
    """Values of all steps along a new axis, on the host if they all are there.

    form : (dtype, shape) of one step, which says what there is after none
    """
    values = values[::-1] if backwards else values
    if not values:
        dtype, shape = form
        at = axis_of(axis, len(shape) + 1)
        return np.zeros((*shape[:at], 0, *shape[at:]), dtype)
    if all(isinstance(value, np.ndarray) for value in values):
        return np.stack(values, axis)
    tensors = [context.tensor(value) for value in values]
    return gpunn.stack(tensors, axis_of(axis, tensors[0].ndim + 1))


def _part(x: Any, axis: int, index: int) -> Any:
    part = x[along(axis, index)]
    return np.asarray(part) if isinstance(part, np.generic) else part


@operator("Scan", 8, 8, raw=True, context=True, pure=False, settled=False)
def scan_of_batches(node: Node):
    """The first Scan: everything has a batch dimension, and sequences of it may end early."""
    if any(node.ints("directions", ())):
        raise node.refuse("attribute 'directions': this version of Scan only goes forward here")
    body, count = node.graph("body"), node.int("num_scan_inputs")
    carried = len(node.inputs) - 1 - count

    def run(context, lengths, *values):
        rows = []
        for row in range(values[0].shape[0]):
            steps = values[-1].shape[1]
            if lengths is not None:
                steps = int(_number(lengths[row]))
            state, made = [_part(value, 0, row) for value in values[:carried]], []
            for step in range(steps):
                parts = [_part(_part(x, 0, row), 0, step) for x in values[carried:]]
                found = body.call(context, [*state, *parts])
                state = found[:carried]
                made.append(found[carried:])
            outputs = [
                _stacked(context, [row[at] for row in made], form)
                for at, form in enumerate(body.forms[carried:])
            ]
            rows.append([*state, *outputs])
        return tuple(
            _stacked(context, list(column), form)
            for column, form in zip(zip(*rows, strict=True), body.forms, strict=True)
        )

    return run


@operator("Scan", 9, raw=True, context=True, pure=False, settled=False)
def scan(node: Node):
    body, count = node.graph("body"), node.int("num_scan_inputs")
    carried = len(node.inputs) - count
    results = len(node.outputs) - carried
    in_axes = node.ints("scan_input_axes", (0,) * count)
    out_axes = node.ints("scan_output_axes", (0,) * results)
    in_back = node.ints("scan_input_directions", (0,) * count)
    out_back = node.ints("scan_output_directions", (0,) * results)

    def run(context, *values):
        state, scanned = list(values[:carried]), values[carried:]
        axes = [axis_of(axis, x.ndim) for axis, x in zip(in_axes, scanned, strict=True)]
        steps, made = scanned[0].shape[axes[0]], []
        for step in range(steps):
            parts = [
                _part(x, axis, steps - 1 - step if back else step)
                for x, axis, back in zip(scanned, axes, in_back, strict=True)
            ]
            found = body.call(context, [*state, *parts])
            state = found[:carried]
            made.append(found[carried:])
        return (*state, *(
            _stacked(context, [row[at] for row in made], body.forms[carried + at], axis, bool(back))
            for at, (axis, back) in enumerate(zip(out_axes, out_back, strict=True))
        ))  # fmt: skip

    return run


# ---- lists of values -----------------------------------------------------------------------------


@operator("SequenceEmpty", 11, pure=False, settled=False)
def sequence_empty(node: Node):
    node.skip("dtype")
    return lambda: []


@operator("SequenceConstruct", 11, pure=False, settled=False)
def sequence_construct(node: Node):
    return lambda *values: list(values)


@operator("SequenceInsert", 11, arguments=(2,), pure=False, settled=False)
def sequence_insert(node: Node):
    def run(values, value, position=None):
        at = len(values) if position is None else int(scalar(position))
        if not -len(values) <= at <= len(values):
            raise IndexError(f"SequenceInsert: position {at} in a list of {len(values)}")
        at = at + len(values) if at < 0 else at
        return [*values[:at], value, *values[at:]]

    return run


@operator("SequenceErase", 11, arguments=(1,), pure=False, settled=False)
def sequence_erase(node: Node):
    def run(values, position=None):
        at = len(values) - 1 if position is None else int(scalar(position))
        rest = list(values)
        del rest[at]
        return rest

    return run


@operator("SequenceAt", 11, arguments=(1,), pure=False, settled=False)
def sequence_at(node: Node):
    return lambda values, position: values[int(scalar(position))]


@operator("SequenceLength", 11, pure=False, settled=False)
def sequence_length(node: Node):
    return lambda values: np.asarray(len(values), np.int64)


@operator("ConcatFromSequence", 11, pure=False, settled=False)
def concat_from_sequence(node: Node):
    axis, new = node.int("axis"), node.flag("new_axis")
    return lambda values: gpunn.stack(values, axis) if new else gpunn.cat(values, axis)


@operator("SplitToSequence", 11, arguments=(1,), pure=False, settled=False)
def split_to_sequence(node: Node):
    axis, keep = node.int("axis", 0), node.flag("keepdims", True)

    def run(x, sizes=None):
        at = axis_of(axis, x.ndim)
        if sizes is None:
            parts = x.split(1, at)
            return list(parts) if keep else [part.squeeze(at) for part in parts]
        return list(x.split(int(sizes) if sizes.ndim == 0 else list(ints(sizes)), at))

    return run


@operator("SequenceMap", 17, raw=True, context=True, pure=False, settled=False)
def sequence_map(node: Node):
    body = node.graph("body")

    def run(context, values, *more):
        rows = [
            body.call(context, [value, *(x[at] if isinstance(x, list) else x for x in more)])
            for at, value in enumerate(values)
        ]
        return tuple([context.tensor(row[at]) for row in rows] for at in range(len(body.outputs)))

    return run


# ---- values that may be missing ------------------------------------------------------------------


@operator("Optional", 15, pure=False, settled=False)
def optional(node: Node):
    node.skip("type")
    return lambda value=None: value


@operator("OptionalGetElement", 15, pure=False, settled=False)
def optional_get(node: Node):
    def run(value):
        if value is None:
            raise ValueError("OptionalGetElement: there is no value")
        return value

    return run


@operator("OptionalHasElement", 15, pure=False, settled=False)
def optional_has(node: Node):
    return lambda value=None: np.asarray(value is not None)
