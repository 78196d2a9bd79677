"""Model files: `save` and `load` in the safetensors format, which holds data and never code.

Format: https://github.com/huggingface/safetensors#format. PyTorch, JAX and many other programs
read and write the same files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import is_array, to_device, to_numpy
from gpunn.errors import FileFormatError
from gpunn.io.atomic import atomic_path
from gpunn.io.layouts import to_layout
from gpunn.io.sharded import bytes_of, find_files, remove_shards, save_shards

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(
    model: Any,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    layout: str | None = None,
    shard_size: int | str | None = None,
) -> None:
    """Save a model, or a dictionary of arrays, to a safetensors file.

    Parameters
    ----------
    model : anything with ``state_dict()``, or a mapping of names to Tensors or arrays
    path : the file; written whole or not at all, so a crash never leaves half a model
    metadata : short texts to keep with it; values are stored as ``str(value)``
    layout : under which names: None for gpunn's, or those of another library, see `from_layout`
    shard_size : bytes, or a text such as "5GB": a larger model is written in several files
        ``model-00001-of-00003.safetensors`` with the index ``model.safetensors.index.json``

    Raises
    ------
    TypeError for what is not such a mapping or an array; ValueError for a dtype or a name
    that the format or the layout does not have; OSError if the file cannot be written.
    """
    state, path = _state_of(model), Path(path)
    texts = {str(key): str(value) for key, value in (metadata or {}).items()}
    if layout is not None:
        state = to_layout(state, layout)
        texts.setdefault("format", "pt")  # Hugging Face's libraries ask for it
    arrays = {name: _storable(name, value) for name, value in state.items()}
    limit = None if shard_size is None else bytes_of(shard_size)
    if limit is not None and sum(array.nbytes for array in arrays.values()) > limit:
        save_shards(arrays, path, texts, limit, lambda part, file: _write(part, file, texts))
        return
    _write(arrays, path, texts)
    remove_shards(path)


def _write(arrays: dict[str, np.ndarray], path: Path, texts: dict[str, str]) -> None:
    import safetensors.numpy

    with atomic_path(path) as temporary:
        try:
            safetensors.numpy.save_file(arrays, temporary, metadata=texts or None)
        except safetensors.SafetensorError as error:
            raise _as_os_error(error, path) from error


def _as_os_error(error: Exception, path: str | os.PathLike[str]) -> Exception:
    """What the system said, of which the library gives the text: a full disk, for example."""
    if found := re.search(r"os error (\d+)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])), str(path))
    return error


def _state_of(model: Any) -> Mapping[str, Any]:
    state = model.state_dict() if hasattr(model, "state_dict") else model
    if not isinstance(state, Mapping):
        raise TypeError(
            f"save: expected a model or a dictionary of arrays, got {type(model).__name__}"
        )
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"save: names must be strings, got {name!r}")
    if "__metadata__" in state:
        raise ValueError(
            "save: '__metadata__' is the format's own name, for the texts; rename the array"
        )
    return state


def _storable(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, Tensor) and not is_array(value):
        raise TypeError(
            f"save: {name!r} is {type(value).__name__}, not an array; "
            "a safetensors file holds arrays, and texts in its metadata"
        )
    array = to_numpy(raw_array(value))
    if array.dtype.newbyteorder("=") not in _NAMES:
        raise ValueError(
            f"save: {name!r} has dtype {array.dtype}, which cannot be stored; "
            f"expected one of {', '.join(dtype.name for dtype in _NAMES)}"
        )
    # The file takes the memory as it lies: a transposed view or foreign byte order must be copied.
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def load(
    path: str | os.PathLike[str],
    device: Any = "cpu",
    *,
    map_location: Any = None,
    weights_only: bool = True,
) -> dict[str, Tensor]:
    """Load a safetensors file as a dictionary of Tensors on `device`, for ``load_state_dict``.

    `path` may also be the index of a model in several files (``model.safetensors.index.json``), the
    name of the one file that they stand for, or a folder that holds ``model.safetensors`` or them.
    `map_location` is PyTorch's name for `device`. `weights_only` changes nothing: the format holds
    arrays and texts, never code.

    Raises
    ------
    FileNotFoundError if there is no such file; FileFormatError (a ValueError) if it is damaged or
    of another format, or a part of it is missing.
    """
    device = device if map_location is None else map_location
    arrays = load_arrays(path)
    return {name: Tensor(to_device(array, device)) for name, array in arrays.items()}


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """`load`, but as NumPy arrays (bfloat16 through ml_dtypes)."""
    arrays: dict[str, np.ndarray] = {}
    for file, names in find_files(Path(path)).files.items():
        arrays.update(_arrays_in(file, names))
    return arrays


def _arrays_in(path: Path, wanted: list[str] | None) -> dict[str, np.ndarray]:
    with _open(path) as file:
        names = list(file.keys())
        if wanted is not None:
            if missing := set(wanted) - set(names):
                raise FileFormatError(f"{path} lacks {', '.join(sorted(missing))}")
            names = wanted
        for name in names:
            kind = file.get_slice(name).get_dtype()
            if kind not in DTYPES:
                raise FileFormatError(
                    f"{path}: {name!r} has dtype {kind}, which gpunn does not know; "
                    f"it reads {', '.join(DTYPES)}"
                )
        return {name: _tensor(file, name) for name in names}


def _tensor(file: Any, name: str) -> np.ndarray:
    expected = DTYPES[file.get_slice(name).get_dtype()]
    array = file.get_tensor(name)
    return array if array.dtype == expected else array.view(expected)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that `save` was given as metadata. Errors as in `load`."""
    found = find_files(Path(path))
    if found.metadata:
        return found.metadata
    with _open(next(iter(found.files))) as file:
        return dict(file.metadata() or {})


def _open(path: Path) -> Any:
    import safetensors

    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise FileFormatError(f"{path} {_what_it_is(path, str(error))}") from error


def _what_it_is(path: Path, detail: str) -> str:
    """What is wrong with a file that is not safetensors, as the rest of a sentence."""
    with open(path, "rb") as file:
        start = file.read(9)
    if not start:
        return "is empty"
    detail = detail.replace("Error while deserializing header: ", "")
    if start[8:9] == b"{":  # first: a length of 128 also begins with the byte of a pickle
        return f"is damaged or cut off ({detail}); copy it again or use another copy"
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        return (
            "is a pickle or zip file (PyTorch's .pt?), which could run code when loaded, so gpunn "
            "does not read it; save the state_dict with safetensors.torch.save_file instead"
        )
    if start[:6] == b"\x93NUMPY":
        return "is a NumPy .npy file, not safetensors; read it with numpy.load"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "is an HDF5 file, not safetensors"
    return f"is not a safetensors file ({detail})"
