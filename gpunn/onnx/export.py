"""`export`: a model as an ONNX file, which onnxruntime and many other programs run."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpunn.autograd.autocast import autocast
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import to_numpy
from gpunn.device.device import default_device, set_default_device
from gpunn.device.quiet import quiet
from gpunn.nn.module import Module
from gpunn.onnx import saving
from gpunn.onnx.aligning import Plan, align
from gpunn.onnx.example import Example, dynamic_axes_of
from gpunn.onnx.files import import_onnx
from gpunn.onnx.listening import listening
from gpunn.onnx.recording import ExportError, Recorder, Value, recording
from gpunn.onnx.writing import Graph

if TYPE_CHECKING:
    import onnx

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
# The oldest version of the file format that has an opset: older runtimes read it.
_IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
_one_at_a_time = threading.RLock()  # a model stands in another form while it is exported


def export(
    model: Module | Callable[..., Any],
    inputs: Any,
    path: str | os.PathLike | None,
    *,
    opset: int = DEFAULT_OPSET,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    dynamic_batch: bool = False,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> onnx.ModelProto:
    """Write a model as ONNX: what it computes in evaluation mode, with its weights.

    The model runs a few times on the CPU with these inputs and variations of them, without
    gradients; what its functions compute is taken down and written as ONNX operators. The model is
    as before afterwards.

    Parameters
    ----------
    model : a Module, or a function of Tensors, whose layers must be in evaluation mode themselves
    inputs : an example: a Tensor or array, or a tuple of the arguments, or a dictionary of them by
        name. Arguments may be Tensors, tuples of them (a state), and numbers or None, which become
        part of the model.
    path : the file to write, whole or not at all, usually with the suffix .onnx; None writes none.
        Weights of 1.5 GiB and more go into a second file beside it, whose name ends in .data.
    opset : version of the operators, 18 to 23
    input_names, output_names : in the order of the tensors; by default the keys of dictionaries,
        or "input" and "output" ("input_0", "input_1" … of several)
    dynamic_axes : the axes whose size may differ, with a name: ``{"input": {0: "batch"}}``. Axes of
        one name always have one size. They may be up to three.
    dynamic_batch : axis 0 of every input of the same first size is named "batch"
    metadata : short texts to keep in the file; values are stored as ``str(value)``
    overwrite : whether a file that is there may be replaced

    Returns
    -------
    the onnx.ModelProto, checked by onnx.checker. Parameters and buffers have their names of
    ``model.state_dict()``. Of weights in a second file it holds the places, not the numbers.

    Raises
    ------
    ExportError (a ValueError) : a function that ONNX cannot express, or whose path depends on
        values; the text names the layer, the function and the reason
    ValueError, TypeError : inputs or names that do not fit
    FileExistsError : the file is there, and `overwrite` is not set
    ImportError : the package onnx is not installed
    """
    newest = import_onnx().defs.onnx_opset_version()
    if opset not in OPSETS or opset > newest:
        raise ValueError(
            f"export: opset is {opset!r}; expected {OPSETS[0]} to {OPSETS[-1]} (onnxruntime reads "
            f"{DEFAULT_OPSET} since 1.17), and the installed package onnx knows up to "
            f"{newest}"
        )
    if not callable(model):
        raise TypeError(f"export: model is {type(model).__name__}; expected a Module or a function")
    target = None if path is None else saving.checked_target(path, overwrite)
    example = Example(inputs, input_names)
    axes = dynamic_axes_of(example, dynamic_axes, dynamic_batch)
    plan = Plan(axes.sizes, axes.batches)
    with _one_at_a_time, _settled(model) as parameters:
        recorders, results, names = _run(model, example, axes, plan, parameters)
    values = align(recorders, results, plan)
    graph = Graph(opset, plan, list(zip(example.names, recorders[0].inputs, strict=True)))
    edges = graph.write(recorders[0].calls, values)
    named = _named(names, output_names, {*example.names, *parameters})
    made, outside = saving.assemble(
        graph, list(zip(named, edges, values, strict=True)), _name_of(model), _IR_VERSIONS[opset],
        (model.__doc__ or "").strip().partition("\n\n")[0], metadata or {},
    )  # fmt: skip
    if target is not None:
        saving.save(made, outside, target)
    elif outside:
        raise ValueError("export: a model of this size can only be written to files; give a path")
    else:
        saving.check(made)
    return made


def _name_of(model: Any) -> str:
    return type(model).__name__ if isinstance(model, Module) else getattr(
        model, "__name__", type(model).__name__)  # fmt: skip


# ---- running -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _settled(model: Any) -> Iterator[dict[str, Tensor]]:
    """The model in evaluation mode on the CPU, and its state; afterwards it is as it was."""
    modules = list(model.modules()) if isinstance(model, Module) else []
    modes = [(module, module.training) for module in modules]
    state: dict[str, Tensor] = {}
    if isinstance(model, Module):
        state.update(model.named_parameters())
        state.update(model.named_buffers())
    arrays = {name: tensor._array for name, tensor in state.items()}
    device = default_device()
    try:
        for module in modules:
            module.training = False
        for tensor in state.values():
            tensor._array = to_numpy(tensor._array)
        set_default_device("cpu")
        yield state
    finally:
        set_default_device(device)
        for name, tensor in state.items():
            tensor._array = arrays[name]
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _as_found(model: Any) -> Iterator[None]:
    """What forward writes into buffers inside the block is undone, so that all runs begin alike."""
    modules = list(model.modules()) if isinstance(model, Module) else []
    registers = [(module, dict(module._buffers)) for module in modules]
    tensors = [tensor for _, found in registers for tensor in found.values() if tensor is not None]
    arrays = [tensor._array for tensor in tensors]
    try:
        for tensor in tensors:
            tensor._array = tensor._array.copy()
        yield
    finally:
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor._array = array
        for module, found in registers:
            module._buffers.clear()
            module._buffers.update(found)


def _run(model, example: Example, axes, plan: Plan, parameters: dict[str, Tensor]):
    """(recorders, their results, names of the results) of all runs."""
    names = {}
    if isinstance(model, Module):
        names = {id(module): name for name, module in model.named_modules()}
    recorders, results, outputs = [], [], []
    with no_grad(), autocast(enabled=False), quiet():
        _warm_up(model, example, axes, plan)
        with listening():
            for number, sizes in enumerate(plan.runs):
                recorder = Recorder(names)
                arrays = example.arrays(axes, sizes, number)
                with _as_found(model):
                    found, outputs = _record(model, example, recorder, arrays, parameters)
                recorders.append(recorder)
                results.append(found)
    counts = {len(found) for found in results}
    if len(counts) > 1:
        raise ExportError("export: the model returns another number of tensors for other inputs")
    for values in zip(*(recorder.inputs for recorder in recorders), strict=True):
        values[0].shape = tuple(
            plan.number(each) for each in zip(*(value.shape for value in values), strict=True)
        )
    return recorders, results, outputs


def _warm_up(model, example: Example, axes, plan: Plan) -> None:
    """Plain runs at the largest sizes, so that tables and the like are made before.

    They show which variations of the example the model takes.
    """
    failed: Exception | None = None
    for check, example.moves_rows in itertools.product(plan.checks, (True, False)):
        arrays = example.arrays(axes, check, len(plan.runs))
        positional, named = example.arguments([wrap(array) for array in arrays])
        try:
            with _as_found(model):
                model(*positional, **named)
        except Exception as error:
            failed = error
            continue
        plan.settle(check)
        return
    if not plan.names:
        raise failed
    sizes = ", ".join(f"{name} = {size}" for name, size in plan.checks[-1].items())
    raise ExportError(
        f"export: the model does not run with other sizes of its dynamic axes ({sizes}): "
        f"{type(failed).__name__}: {failed}. Keep the axes fixed that cannot vary, or give an "
        "example that is small enough for its sizes to be tripled."
    ) from failed


def _record(model, example: Example, recorder: Recorder, arrays, parameters: dict[str, Tensor]):
    """(values of the results, their names) of one run under record."""
    before = {name: tensor._array for name, tensor in parameters.items()}
    tensors = []
    for name, array in zip(example.names, arrays, strict=True):
        value = Value("input", array.shape, array.dtype, name=name)
        recorder.inputs.append(value)
        tensors.append((array, value))
    try:
        with recording(recorder):
            for name, tensor in parameters.items():
                array = tensor._array
                value = Value("parameter", array.shape, array.dtype, name=name, array=array)
                tensor._array = recorder.traced(array, value)
            given = [wrap(recorder.traced(array, value)) for array, value in tensors]
            positional, named = example.arguments(given)
            returned = list(_tensors_in(model(*positional, **named), ""))
            found = [recorder.value_of(tensor._array) for _, tensor in returned]
    finally:
        for name, tensor in parameters.items():
            tensor._array = before[name]
    if not found:
        raise ExportError("export: the model returns no Tensor")
    return found, [name for name, _ in returned]


def _tensors_in(result: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """(name, Tensor) of all Tensors in a result; None counts for nothing."""
    if isinstance(result, Tensor):
        yield name, result
    elif isinstance(result, Mapping):
        for key, part in result.items():
            yield from _tensors_in(part, f"{name}_{key}" if name else str(key))
    elif isinstance(result, (tuple, list)):
        for number, part in enumerate(result):
            yield from _tensors_in(part, f"{name}_{number}" if name else f"output_{number}")
    elif result is not None:
        raise ExportError(
            f"export: the model returns a {type(result).__name__}; expected Tensors, or tuples, "
            "lists or dictionaries of them"
        )


def _named(found: list[str], given: Sequence[str] | None, taken: set[str]) -> list[str]:
    """The outputs' names; `taken` are those of inputs and parameters."""
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        if len(names) != len(found) or len(set(names)) != len(names):
            raise ValueError(
                f"export: output_names are {names}, and the model returns {len(found)} tensors; "
                "expected a different name for each"
            )
        return names
    names = ["output" if not name else name for name in found]
    return [f"{name}_out" if name in taken else name for name in names]
