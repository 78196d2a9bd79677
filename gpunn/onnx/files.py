"""ONNX files read with suspicion: what they say of themselves is checked before it is believed.

A file is protobuf: data, never code. Weights may lie in other files beside it (*external data*);
those are opened only inside the model's own folder, through no symbolic link that leaves it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.errors import FileFormatError

_MOST = 2**31 - 1  # bytes of one protobuf message; larger models keep their weights outside


def import_onnx():
    """The package onnx; ImportError with the command that installs it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "gpunn.onnx needs the package onnx, which is not installed: pip install 'gpunn[onnx]'"
        ) from error
    return onnx


def read_model(source: Any) -> tuple[Any, Path | None]:
    """(ModelProto, folder of its external data) of a path or of a ModelProto.

    Raises FileNotFoundError, IsADirectoryError, FileFormatError for what is no valid ONNX model.
    """
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        name, folder, model = "the ModelProto", None, onnx.ModelProto()
        model.CopyFrom(source)  # ours to change
    else:
        path = Path(source)
        name, folder = str(path), path.resolve().parent
        model = _parse(onnx, path)
    if not model.opset_import or not model.HasField("graph"):
        raise FileFormatError(
            f"{name} is no ONNX model: it has no graph or names no operator set. Expected a file "
            "that an exporter to ONNX wrote"
        )
    return model, folder


def _parse(onnx, path: Path):
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a .onnx file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    if size == 0 or size > _MOST:
        raise FileFormatError(f"{path} has {size} bytes; an ONNX file has from 1 to {_MOST}")
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise FileFormatError(
            f"{path} is damaged or no ONNX file: protobuf cannot read it ({error})"
        ) from error
    return model


def check_model(model: Any, name: str, folder: Path | None) -> None:
    """Raise FileFormatError for a model that breaks the rules of ONNX.

    With weights in other files, where those lie is checked, and the model then by its path `name`:
    the weights may be more than one message of protobuf holds.
    """
    onnx = import_onnx()
    outside = [tensor for tensor in all_tensors(model) if tensor.data_location == tensor.EXTERNAL]
    for tensor in outside:
        _place(tensor, folder)
    try:
        onnx.checker.check_model(name if outside else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileFormatError(f"{name} is not a valid ONNX model: {reason[:500]}") from error


def read_external(model: Any, folder: Path | None) -> None:
    """Bring the weights that lie in other files into `model`, each checked first."""
    for tensor in all_tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            path, offset, length = _place(tensor, folder)
            with open(path, "rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(length)
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]


def all_tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model: initializers and attributes, in all graphs and functions."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        yield from _of_nodes(graph.node)
    for function in model.functions:
        yield from _of_nodes(function.node)
        for node in function.node:
            for inner in _inner(node):
                for graph in all_graphs(inner):
                    yield from graph.initializer
                    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: Any) -> Iterator[Any]:
    """A graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from all_graphs(inner)


def _place(tensor: Any, folder: Path | None) -> tuple[Path, int, int]:
    """(file, first byte, bytes) of a tensor's data; FileFormatError where they cannot be that."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"tensor {tensor.name!r}: its data lies in the file {location!r}"
    if folder is None:
        raise FileFormatError(
            f"{where}, and a ModelProto has no folder; load the file by its path, or call "
            "onnx.load_external_data_for_model first"
        )
    path = _inside(folder, location, where)
    nbytes = byte_size(tensor)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", nbytes))
    except ValueError:
        raise FileFormatError(f"{where} at a place that is no number") from None
    size = path.stat().st_size
    if length != nbytes or offset < 0 or offset + length > size:
        raise FileFormatError(
            f"{where}, bytes {offset} to {offset + length} of {size}, but a tensor of shape "
            f"{list(tensor.dims)} has {nbytes} bytes; the files do not belong together or one is "
            "damaged"
        )
    return path, offset, length


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file `location` if it lies in `folder`; FileFormatError for anything else."""
    parts = location.replace("\\", "/").split("/")
    if not location or os.path.isabs(location) or ".." in parts or ":" in parts[0]:
        raise FileFormatError(f"{where}, which is not inside the model's own folder; refused")
    path = (folder / location).resolve()
    if not path.is_relative_to(folder):
        raise FileFormatError(f"{where}, a link that leads out of the model's own folder; refused")
    if not path.is_file():
        raise FileNotFoundError(f"{where}, and there is no file {path}")
    return path


def dtype_of(element_type: int, where: str) -> np.dtype:
    """The NumPy dtype (ml_dtypes' for the small ones) of ONNX's number for an element type."""
    try:
        return np.dtype(import_onnx().helper.tensor_dtype_to_np_dtype(element_type))
    except (KeyError, ValueError):
        raise FileFormatError(f"{where} has element type {element_type}, which is none") from None


def form_of(value: Any) -> tuple[np.dtype, tuple[int, ...]]:
    """(dtype, shape) that a graph says of an output; float32 and () where it says nothing, 0 for
    a size that is open.
    """
    tensor = value.type.tensor_type
    if not tensor.elem_type or tensor.elem_type == import_onnx().TensorProto.STRING:
        return np.dtype(np.float32), ()
    sizes = tuple(dim.dim_value for dim in tensor.shape.dim)
    return dtype_of(tensor.elem_type, f"output {value.name!r}"), sizes


def bits(element_type: int, where: str) -> int:
    """The bits of one element as a tensor's raw data holds it."""
    onnx, dtype = import_onnx(), dtype_of(element_type, where)
    names = onnx.TensorProto.DataType
    small = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    return small.get(names.Name(element_type), dtype.itemsize * 8)


def byte_size(tensor: Any) -> int:
    """The bytes that a tensor's shape and element type ask for; FileFormatError for bad shapes."""
    dims = list(tensor.dims)
    if any(size < 0 for size in dims):
        raise FileFormatError(f"tensor {tensor.name!r} has a negative size: {dims}")
    return -(-math.prod(dims) * bits(tensor.data_type, f"tensor {tensor.name!r}") // 8)


def to_array(tensor: Any) -> np.ndarray:
    """A TensorProto as a NumPy array; FileFormatError where its data is not what its shape says."""
    onnx = import_onnx()
    if tensor.data_location == tensor.EXTERNAL:
        raise FileFormatError(f"tensor {tensor.name!r}: its data lies in another file")
    if tensor.data_type != tensor.STRING:
        wanted = byte_size(tensor)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
            raise FileFormatError(
                f"tensor {tensor.name!r} of shape {list(tensor.dims)} has {len(tensor.raw_data)} "
                f"bytes of data; expected {wanted}"
            )
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise FileFormatError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} does not hold as many values: "
            f"{error}"
        ) from error
