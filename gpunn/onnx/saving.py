"""From a graph to a file: the ModelProto, the checker, and writing it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.io.atomic import atomic_path, check_target
from gpunn.onnx.aligning import Varying
from gpunn.onnx.files import import_onnx
from gpunn.onnx.recording import ExportError, Value

# Bytes of weights from which on they go into a file of their own: a message of protobuf has room
# for 2 GiB.
EXTERNAL = 3 << 29
_PAGE = 4096


def assemble(
    graph: Any, outputs: list[tuple[str, str, Value]], name: str, ir_version: int, text: str,
    metadata: Mapping[str, Any],
):  # fmt: skip
    """The ModelProto of a written graph, and the arrays that have no room in it, by their names.

    `outputs` are (name, edge, value).
    """
    onnx = import_onnx()
    import gpunn

    taken = {key for key, _ in graph.inputs} | set(graph.initializers)
    clash = sorted({key for key, _, _ in outputs} & taken)
    shared = sorted({key for key, _ in graph.inputs} & set(graph.initializers))
    if clash or shared:
        raise ValueError(
            f"export: the name {(clash + shared)[0]!r} is that of two things; inputs, outputs and "
            "parameters need different names. Give input_names and output_names."
        )
    nodes = _named_outputs(onnx, graph.nodes, outputs, taken)
    nodes = _used(nodes, {key for key, _, _ in outputs})
    read = {edge for node in nodes for edge in node.input}
    arrays = {key: np.ascontiguousarray(array).reshape(array.shape)
              for key, array in graph.initializers.items() if key in read}  # fmt: skip
    large = sum(array.nbytes for array in arrays.values()) >= EXTERNAL
    outside = {key: array for key, array in arrays.items() if large and array.nbytes >= _PAGE}
    made = onnx.helper.make_graph(
        nodes, name, [_info(onnx, graph, key, value) for key, value in graph.inputs],
        [_info(onnx, graph, key, value) for key, _, value in outputs],
        _tensors(onnx, arrays, outside),
    )  # fmt: skip
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", graph.opset)], ir_version=ir_version,
        producer_name="gpunn", producer_version=gpunn.__version__, doc_string=text,
    )  # fmt: skip
    if metadata:
        texts = {str(key): str(value) for key, value in metadata.items()}
        onnx.helper.set_model_props(model, texts)
    return model, outside


def _named_outputs(onnx, nodes, outputs, taken) -> list:
    """The nodes with the outputs' edges under the outputs' names; Identity where that cannot be."""
    made = {edge for node in nodes for edge in node.output}
    renamed: dict[str, str] = {}
    copies = []
    for name, edge, _ in outputs:
        if edge in made and edge not in renamed:
            renamed[edge] = name
        else:
            source = renamed.get(edge, edge)
            copies.append(onnx.helper.make_node("Identity", [source], [name], name=f"/{name}"))
    for node in nodes:
        for edges in (node.input, node.output):
            for place, edge in enumerate(edges):
                if edge in renamed:
                    edges[place] = renamed[edge]
    return nodes + copies


def _used(nodes: list, wanted: set[str]) -> list:
    """The nodes that the wanted edges need."""
    kept = []
    for node in reversed(nodes):
        if any(edge in wanted for edge in node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _tensors(onnx, arrays: dict[str, np.ndarray], outside: dict[str, np.ndarray]) -> list:
    """The initializers; those outside say at which whole page of the other file they begin."""
    tensors, end = [], 0
    for name, array in arrays.items():
        if name not in outside:
            tensors.append(onnx.numpy_helper.from_array(array, name))
            continue
        tensor = onnx.TensorProto(
            name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
        )  # fmt: skip
        start = -(-end // _PAGE) * _PAGE
        end = start + array.nbytes
        for key, value in (("location", ""), ("offset", start), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    return tensors


def _info(onnx, graph, name: str, value: Value):
    kind = onnx.helper.np_dtype_to_tensor_dtype(graph.outward(value))
    shape = [
        (str(size) if size.terms is not None else None) if isinstance(size, Varying) else size
        for size in value.shape
    ]
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def check(model) -> None:
    """Let onnx.checker look at the model, or its file; ExportError for what it finds."""
    onnx = import_onnx()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _invalid(error) from error


def _invalid(error: Exception) -> ExportError:
    return ExportError(
        "export: what was written is no valid ONNX model, which may be a dtype that an operator "
        f"does not take, or an error in gpunn: {error}"
    )


def checked_target(path: str | os.PathLike, overwrite: bool) -> Path:
    """`path` as a Path to which a model may be written."""
    target = check_target(path)
    for file in (target, _data_file(target)):
        if file.exists() and not overwrite:
            raise FileExistsError(f"export: {file} is there already; pass overwrite=True")
    return target


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def save(model, outside: dict[str, np.ndarray], path: Path) -> None:
    """Check and write a model; what is outside goes into a file that takes its name first."""
    if not outside:
        check(model)
        with atomic_path(path) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        return
    data = _data_file(path)
    with atomic_path(path) as temporary, atomic_path(data) as weights:
        with open(weights, "wb") as out:
            for array in outside.values():
                out.seek(-(-out.tell() // _PAGE) * _PAGE)
                out.write(array.data.cast("B") if array.dtype.kind != "V" else array.tobytes())
        _write_with(model, weights.name, temporary)
        check(str(temporary))
        _write_with(model, data.name, temporary)


def _write_with(model, location: str, path: Path) -> None:
    """Write a model whose weights lie in the file `location` of the same folder."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString(deterministic=True))
