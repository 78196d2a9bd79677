"""Model files: `save` and `load` in the safetensors format, which holds data and never code.

Format: https://github.com/huggingface/safetensors#format. PyTorch, JAX and many other programs
read and write the same files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gpunn.autograd.tensor import Tensor
from gpunn.device import as_array, is_array, to_device, to_numpy
from gpunn.errors import GpunnError
from gpunn.io.atomic import atomic_path

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


class FileFormatError(GpunnError, ValueError):
    """A file is damaged, or is not of the format that was expected."""


def save(model: Any, path: str | os.PathLike, metadata: Mapping[str, Any] | None = None) -> None:
    """Save a model, or a dictionary of arrays, to a safetensors file.

    Parameters
    ----------
    model : anything with ``state_dict()``, or a mapping of names to Tensors or arrays
    path : the file; written whole or not at all, so a crash never leaves half a model
    metadata : short texts to keep with it; values are stored as ``str(value)``

    Raises
    ------
    TypeError for what is not such a mapping or an array; ValueError for a dtype that the format
    does not have; OSError if the file cannot be written.
    """
    arrays = {name: _storable(name, value) for name, value in _state_of(model).items()}
    texts = {str(key): str(value) for key, value in (metadata or {}).items()}
    import safetensors.numpy

    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata=texts or None)


def _state_of(model: Any) -> Mapping[str, Any]:
    state = model.state_dict() if hasattr(model, "state_dict") else model
    if not isinstance(state, Mapping):
        raise TypeError(
            f"save: expected a model or a dictionary of arrays, got {type(model).__name__}"
        )
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"save: names must be strings, got {name!r}")
    return state


def _storable(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.array
    if not is_array(value):
        raise TypeError(
            f"save: {name!r} is {type(value).__name__}, not an array; "
            "a safetensors file holds arrays, and texts in its metadata"
        )
    array = to_numpy(as_array(value))
    if array.dtype.newbyteorder("=") not in _NAMES:
        raise ValueError(
            f"save: {name!r} has dtype {array.dtype}, which cannot be stored; "
            f"expected one of {', '.join(dtype.name for dtype in _NAMES)}"
        )
    # The file takes the memory as it lies: a transposed view or foreign byte order must be copied.
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def load(
    path: str | os.PathLike,
    device: Any = "cpu",
    *,
    map_location: Any = None,
    weights_only: bool = True,
) -> dict[str, Tensor]:
    """Load a safetensors file as a dictionary of Tensors on `device`, for ``load_state_dict``.

    `map_location` is PyTorch's name for `device`. `weights_only` changes nothing: the format holds
    arrays and texts, never code.

    Raises
    ------
    FileNotFoundError if there is no such file; FileFormatError (a ValueError) if it is damaged or
    of another format.
    """
    device = device if map_location is None else map_location
    arrays = load_arrays(path)
    return {name: Tensor(to_device(array, device)) for name, array in arrays.items()}


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """`load`, but as NumPy arrays (bfloat16 through ml_dtypes)."""
    with _open(path) as file:
        names = list(file.keys())
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


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts that `save` was given as metadata. Errors as in `load`."""
    with _open(path) as file:
        return dict(file.metadata() or {})


def _open(path: str | os.PathLike):
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a .safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
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
