"""The file of a checkpoint: safetensors with a tree of plain values in its metadata.

Arrays are entries of the file, named by their place in the tree: ``model/0.weight``,
``optimizer/state/3/exp_avg``. All else is one JSON text in the metadata, and beside it the SHA-256
of that text and of every array with its name, dtype and shape. The checksum is in the file itself:
what is copied or renamed cannot lose it, and a file whose end or middle is missing cannot pass.
Nothing of it is code, and reading runs none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpunn import io
from gpunn.autograd.tensor import Tensor
from gpunn.device import is_array, to_numpy
from gpunn.errors import GpunnError
from gpunn.io import FileFormatError

FORMAT = "1"
_TREE, _SUM, _FORMAT = "gpunn_checkpoint", "sha256", "gpunn_checkpoint_format"
_MARK = "$"  # the key of what JSON has no word for
_LONGEST = 90_000_000  # bytes of the tree: no reader of safetensors takes a header above 100 MB


class CheckpointError(GpunnError, ValueError):
    """A checkpoint does not belong to this training, or holds something that it cannot hold."""


def write(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a tree of values to `path`, whole or not at all.

    The tree is made of dictionaries, lists, tuples, None, booleans, numbers, texts, NumPy scalars,
    arrays on any device and Tensors. TypeError, naming the place, for anything else;
    CheckpointError if there is too much besides arrays; OSError if the file cannot be written.
    """
    encoder = _Encoder()
    text = json.dumps(encoder.encode(dict(state), ""), allow_nan=False)
    size = len(text) + text.count('"') + text.count("\\")  # as a text within the header's JSON
    if size > _LONGEST:
        raise CheckpointError(
            f"checkpoint: all but the arrays takes {size:,} bytes, and a file can have {_LONGEST:,}"
            " of it; keep long lists of numbers, as of a callback, as arrays"
        )
    metadata = {_FORMAT: FORMAT, _TREE: text, _SUM: _checksum(text, encoder.arrays)}
    io.save(encoder.arrays, path, metadata)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tree that `write` was given, its arrays as NumPy arrays.

    Raises
    ------
    FileNotFoundError if there is no such file; FileFormatError (a ValueError) if it is damaged, is
    no checkpoint, or comes from a newer gpunn.
    """
    metadata = io.load_metadata(path)
    if _TREE not in metadata or _SUM not in metadata:
        raise FileFormatError(
            f"{path} is a safetensors file, but not a checkpoint of gpunn (a model? read it with "
            "gpunn.io.load)"
        )
    if metadata.get(_FORMAT) != FORMAT:
        raise FileFormatError(
            f"{path} has the checkpoint format {metadata.get(_FORMAT)!r}, and this gpunn reads "
            f"{FORMAT!r}; it was written by a newer gpunn, or is damaged"
        )
    try:
        arrays = io.load_arrays(path)
        intact = _checksum(metadata[_TREE], arrays) == metadata[_SUM]
    except (FileFormatError, UnicodeError, MemoryError, OSError):
        raise
    except Exception as error:  # of the library, at data that contradict the header
        raise FileFormatError(f"{path} is damaged ({error})") from error
    if not intact:
        raise FileFormatError(
            f"{path} is damaged: its content does not have the checksum that it was written with"
        )
    try:
        tree = _decode(json.loads(metadata[_TREE]), arrays)
        if not isinstance(tree, dict):
            raise TypeError("it holds no names")
        return tree
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a checkpoint that gpunn wrote ({error})") from error


def _checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the tree and the arrays in the order of their names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        shape = ",".join(map(str, arrays[name].shape))
        digest.update(f"\n{name}\n{array.dtype.name}\n{shape}\n".encode())
        if array.size:
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class _Encoder:
    """Turns a tree into what JSON has, and puts its arrays aside, each once."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._seen: dict[int, tuple[str, Any]] = {}  # id -> name, and the object: so it stays

    def encode(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, float):  # NumPy's of 64 bits, too: JSON keeps all their digits
            value = float(value)
            return value if math.isfinite(value) else {_MARK: "float", "value": str(value)}
        if isinstance(value, int):
            return value
        if isinstance(value, np.generic):
            return {_MARK: "scalar", "name": self._put(np.asarray(value), place)}
        if isinstance(value, Tensor):
            value = value.array
        if is_array(value):
            return {_MARK: "array", "name": self._put(value, place)}
        if isinstance(value, Mapping):
            return self._mapping(value, place)
        if isinstance(value, (list, tuple)):
            items = [self.encode(item, f"{place}/{i}") for i, item in enumerate(value)]
            return items if type(value) is list else {_MARK: "tuple", "items": items}
        raise TypeError(
            f"checkpoint: {place.lstrip('/') or 'the state'} is {type(value).__name__}; a "
            "checkpoint holds numbers, texts, None, arrays and Tensors, in dictionaries, lists and "
            "tuples"
        )

    def _mapping(self, value: Mapping[Any, Any], place: str) -> Any:
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            if type(value) is not Counter:
                return {k: self.encode(item, f"{place}/{k}") for k, item in value.items()}
        kind = "counter" if type(value) is Counter else "pairs"
        items = [
            [self.encode(key, f"{place}/key"), self.encode(item, f"{place}/{key}")]
            for key, item in value.items()
        ]
        return {_MARK: kind, "items": items}

    def _put(self, array: Any, place: str) -> str:
        if id(array) in self._seen:  # weights that layers share
            return self._seen[id(array)][0]
        name = place.lstrip("/") or "array"
        while name in self.arrays:
            name += "'"
        if getattr(array, "dtype", None) is not None and array.dtype.kind in "OSUMmc":
            raise TypeError(f"checkpoint: {name} has dtype {array.dtype}, which it cannot hold")
        self.arrays[name] = to_numpy(array)
        self._seen[id(array)] = name, array
        return name


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind is None:
        return {key: _decode(item, arrays) for key, item in value.items()}
    if kind == "array":
        array = arrays[value["name"]]
        return array if array.flags.writeable else array.copy()
    if kind == "float":
        return float(value["value"])
    if kind == "scalar":
        return arrays[value["name"]].reshape(())[()]
    items = [_decode(item, arrays) for item in value["items"]]
    if kind == "tuple":
        return tuple(items)
    if kind in ("pairs", "counter"):
        return (Counter if kind == "counter" else dict)({key: item for key, item in items})
    raise ValueError(f"unknown kind of value {kind!r}")
