"""`load`: an ONNX file as a Module that runs on gpunn's kernels, and can be trained further."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import is_float
from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.device import to_device, to_numpy
from gpunn.errors import FileFormatError, UnsupportedError
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter
from gpunn.onnx import files, fixed
from gpunn.onnx.graph import Builder, Context, Graph, Placed
from gpunn.onnx.operators import find

OWN = ("", "ai.onnx")
_PLACE = "_place"


class OnnxModule(Module):
    """An imported ONNX model; made by `gpunn.onnx.load`.

    Call it with the graph's inputs in their order, or by their names: Tensors, or arrays and lists,
    which go to the model's device. It returns a Tensor, or a tuple for several outputs.

    Attributes
    ----------
    input_names, output_names : of the graph, in the order of the arguments and of the results
    """

    def __init__(self, graph: Graph, inputs: dict[str, tuple[Any, Any]], builder: Builder):
        super().__init__()
        set_plainly = super(Module, self).__setattr__
        set_plainly("input_names", list(inputs))
        set_plainly("output_names", list(graph.outputs))
        set_plainly("_graph", graph)
        set_plainly("_inputs", inputs)
        set_plainly("_states", tuple(builder.weights))
        set_plainly("_plain", frozenset())
        set_plainly("_placed", Placed(builder.lasting))
        set_plainly("_memory", fixed.Memory())
        set_plainly("_settling", ())

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the graph. Raises TypeError for missing, unknown or unfit inputs."""
        given = self._bound(inputs, named)
        device = self._device
        if device.type != "cuda":
            return self._run(given, device)
        with device.activate():
            return self._run(given, device)

    def _run(self, given: dict[str, Any], device: Any) -> Any:
        place: dict[int, tuple] = {}
        values = dict(self._graph.constants)
        states = {state: self._initializer(state, place) for state in self._states}
        for name, state in self._graph.initializers.items():
            values[name] = states[state]
        inputs = {name: self._input(name, value, device) for name, value in given.items()}
        values.update(inputs)
        placed = () if device.type == "cpu" else (self._placed,)
        context = Context(self, device, values, states, place, placed)
        made = tuple(_result(context, value) for value in self._outputs(context, inputs))
        return made[0] if len(made) == 1 else made

    def _outputs(self, context: Context, inputs: dict[str, Any]) -> list:
        """The values of the outputs; what follows from shapes alone is computed once for each."""
        if not inputs.keys().isdisjoint(self._graph.initializers):
            return self._graph.run(context)
        buffers = [self._buffers[name] for name in self._settling]
        key = fixed.key_of(inputs, buffers)
        record = self._memory.get(key)
        if record is not None:
            return self._graph.run_again(context, record)
        outputs, record = self._graph.run_noting(context)
        record.held = [tensor._array for tensor in buffers]
        self._memory.put(key, record)
        return outputs

    # ---- inputs ----------------------------------------------------------------------------------

    def _bound(self, inputs: tuple, named: dict[str, Any]) -> dict[str, Any]:
        """name -> value of what was passed; TypeError unless each input is given once."""
        names = self.input_names
        if len(inputs) > len(names):
            raise TypeError(
                f"the ONNX model takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}"
            )
        given = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name in given:
                raise TypeError(f"the ONNX model's input {name!r} is given twice")
            if name not in names and name not in self._graph.initializers:
                raise TypeError(
                    f"the ONNX model has no input {name!r}; its inputs are {', '.join(names)}"
                )
            given[name] = value
        missing = [name for name in names if name not in given and not _optional(self, name)]
        if missing:
            raise TypeError(
                f"the ONNX model needs {', '.join(missing)} as well; its inputs are "
                f"{', '.join(names)}"
            )
        return {**{name: None for name in names if name not in given}, **given}

    def _input(self, name: str, value: Any, device: Any) -> Any:
        """An input as the graph wants it; errors that name it."""
        dtype, rank = self._inputs.get(name, (None, None))
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and dtype is None:  # a sequence
            return [self._input("", item, device) for item in value]
        if not isinstance(value, Tensor):
            value = _as_array(name, value, dtype)
            if value.dtype.kind in "OUST":
                return value
            value = wrap(to_device(value, device))
        if dtype is not None and is_float(dtype) != is_float(value.dtype):
            raise TypeError(
                f"the ONNX model's input {name!r} has dtype {value.dtype}; expected {dtype}"
            )
        if dtype is not None and rank is not None and value.ndim != rank:
            raise ValueError(
                f"the ONNX model's input {name!r} has shape {value.shape}; expected {rank} "
                "dimensions"
            )
        if value.device != device:
            raise ValueError(
                f"the ONNX model's input {name!r} is on {value.device} and the model on {device}; "
                f"move one with .to({str(device)!r})"
            )
        return value

    @property
    def _device(self) -> Any:
        register = self._parameters or self._buffers
        return next(iter(register.values())).device

    # ---- initializers ----------------------------------------------------------------------------

    def _initializer(self, state: str, place: dict[int, tuple]) -> Any:
        """A weight as Tensor; what is no weight on the host, with its place on the device."""
        tensor = self._parameters.get(state)
        if tensor is not None:
            return tensor
        tensor = self._buffers[state]
        if state in self._plain:
            return tensor
        host = self._host_copy(state, tensor)
        place[id(host)] = (host, tensor)
        return host

    def _host_copy(self, state: str, tensor: Tensor) -> np.ndarray:
        """The values of a buffer on the host; read from a GPU again only after a write."""
        array, device, version = tensor._array, tensor.device, tensor._cell[0]
        if device.type == "cpu":
            self._memory.hosts[state] = (array, version, device, array)
            return array
        known = self._memory.hosts.get(state)
        if known is not None:
            before, seen, place, host = known
            moved = place != device and host.dtype == array.dtype  # by Module.to, values as before
            if seen == version and (before is array or moved):
                self._memory.hosts[state] = (array, version, device, host)
                return host
        host = to_numpy(array)
        self._memory.hosts[state] = (array, version, device, host)
        return host

    def extra_repr(self) -> str:
        return f"{', '.join(self.input_names)} -> {', '.join(self.output_names)}"


def _optional(module: OnnxModule, name: str) -> bool:
    return module._inputs[name] == (None, "optional")


def _as_array(name: str, value: Any, dtype: Any) -> Any:
    array = value if isinstance(value, np.ndarray) else raw_array(value, dtype)
    if dtype is not None and array.dtype != dtype and array.dtype.kind == dtype.kind != "V":
        return array.astype(dtype)
    return array


def _result(context: Context, value: Any) -> Any:
    if isinstance(value, list):
        return [context.tensor(item) for item in value]
    found = context.tensor(value)
    if isinstance(value, np.ndarray) and isinstance(found, Tensor):
        return wrap(found._array.copy())  # what the model keeps is not the caller's to write
    return found


# ---- loading -------------------------------------------------------------------------------------


def load(model: Any, *, buffers: Collection[str] = (), device: Any = None) -> OnnxModule:
    """An ONNX model as a Module.

    Parameters
    ----------
    model : the path of an .onnx file, or an ``onnx.ModelProto``
    buffers : names of initializers that are not to be trained although they look like weights
    device : where to put it; None for the CPU

    Floating initializers with at least one dimension become Parameters under their names, unless
    the operators that use them take them for something else (running statistics, scales of a
    Resize, zero points); all others become buffers. ``state_dict`` has both. The model comes in
    evaluation mode, in which it computes what the file says; after ``.train()`` BatchNormalization
    takes the statistics of the batch and updates its own, and Dropout drops.

    Weights in other files are read only from the model's own folder.

    Raises
    ------
    FileNotFoundError; FileFormatError (a ValueError) for a damaged or foreign file;
    UnsupportedError for operators, attributes or versions that gpunn does not have: one sentence
    that names the nodes; ImportError if the package onnx is not installed.
    """
    name = "the model" if not isinstance(model, (str, os.PathLike)) else str(model)
    proto, folder = files.read_model(model)
    files.check_model(proto, name, folder)
    proto = _expanded(proto)
    files.read_external(proto, folder)
    versions = {_domain(entry.domain): entry.version for entry in proto.opset_import}
    builder = Builder(versions)
    graph = builder.build(proto.graph)
    if builder.problems:
        raise UnsupportedError(_listed(name, builder.problems))
    inputs = {
        value.name: _expected(value) for value in proto.graph.input
        if value.name not in builder.names and value.name not in builder.constants
    }  # fmt: skip
    module = OnnxModule(graph, inputs, builder)
    _register(module, builder, set(buffers))
    module.eval()
    return module if device is None else module.to(device)


def _domain(name: str) -> str:
    return "" if name in OWN else name


def _listed(name: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{name} cannot be run by gpunn: {shown}{more}"


def _expanded(proto: Any) -> Any:
    """The model with its own functions written out, and operators that are functions by ONNX."""
    onnx = files.import_onnx()
    import onnx.inliner as inliner

    if proto.functions:
        proto = inliner.inline_local_functions(proto, convert_version=True)
    versions = {_domain(entry.domain): entry.version for entry in proto.opset_import}
    functions = sorted(_functions(onnx, proto.graph, versions))
    if functions:
        try:
            return inliner.inline_selected_functions(proto, functions, inline_schema_functions=True)
        except (RuntimeError, TypeError):
            pass  # this onnx cannot write all of them out; the nodes are refused by their names
    return proto


def _functions(onnx: Any, graph: Any, versions: dict[str, int]) -> set[tuple[str, str]]:
    """The operators that gpunn lacks and ONNX defines by others; their nodes are made explicit."""
    found = set()
    for inner in files.all_graphs(graph):
        for node in inner.node:
            domain = _domain(node.domain)
            version = versions.get(domain, 0)
            if find(domain, node.op_type, version) is not None:
                continue
            try:
                schema = onnx.defs.get_schema(node.op_type, version, domain)
            except onnx.defs.SchemaError:
                continue
            if schema.has_function or schema.has_context_dependent_function:
                found.add((node.domain, node.op_type))
                # What writes them out forgets the defaults of their attributes.
                given = {attribute.name for attribute in node.attribute}
                for name, attribute in schema.attributes.items():
                    if name not in given and attribute.default_value.name:
                        node.attribute.append(attribute.default_value)
    return found


def _expected(value: Any) -> tuple[Any, Any]:
    """(dtype, number of dimensions) of a graph's input, None for what is open."""
    onnx = files.import_onnx()
    kind = value.type.WhichOneof("value")
    if kind == "optional_type":
        return None, "optional"
    if kind != "tensor_type":
        return None, None
    tensor = value.type.tensor_type
    if tensor.elem_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return None, None
    dtype = files.dtype_of(tensor.elem_type, f"input {value.name!r}")
    return dtype, len(tensor.shape.dim) if tensor.HasField("shape") else None


def _register(module: OnnxModule, builder: Builder, buffers: set[str]) -> None:
    """Parameters and buffers of a module from the initializers."""
    unknown = buffers - set(builder.weights)
    if unknown:
        raise ValueError(f"buffers names {sorted(unknown)}, which the model does not have")
    plain = set()
    for name, array in builder.weights.items():
        if name in module.__dict__:
            raise FileFormatError(
                f"the model has an initializer {name!r}, a name that gpunn's Modules use "
                "themselves; rename it"
            )
        uses = builder.uses.get(name, set())
        # ONNX's arrays may be views of the file's bytes, which cannot be written.
        tensor = array if array.flags.writeable else array.copy()
        if is_float(array.dtype) and array.ndim and "weight" in uses and name not in buffers:
            module._parameters[name] = Parameter(tensor)
            continue
        module._buffers[name] = buffer = wrap(tensor)
        module._memory.hosts[name] = (tensor, buffer._cell[0], buffer.device, tensor)
        if "statistic" in uses:
            plain.add(name)
    if not builder.weights:  # something must say on which device it is
        module.register_buffer(_PLACE, wrap(np.zeros(0, np.float32)), persistent=False)
    object.__setattr__(module, "_plain", frozenset(plain))
    settling = tuple(name for name in module._buffers if name not in plain and name != _PLACE)
    object.__setattr__(module, "_settling", settling)
    graph, changing = module._graph, {*module._parameters, *plain}
    states = graph.initializers.items()
    graph.fixed = fixed.find(graph, {name for name, state in states if state in changing})
