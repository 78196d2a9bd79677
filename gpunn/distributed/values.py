"""Values of the host as bytes, without pickle: what `Group.exchange` of JSON cannot carry.

A header of JSON says how the value is nested; the bytes of arrays follow it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import as_dtype, bfloat16
from gpunn.device import is_array, to_numpy
from gpunn.distributed.group import Group


def exchange_values(group: Group, value: Any) -> list[Any]:
    """What each rank gave, by rank; all ranks take part.

    None, truth values, numbers, texts, bytes, arrays of numbers or texts of any dtype, and lists,
    tuples, dictionaries and sets of these. Arrays of a GPU, or the emulator, arrive as NumPy's, and
    subclasses (as of dict) as what they are made of. TypeError for anything else, on this rank.
    """
    return [unpacked(data) for data in group.exchange_bytes(packed(value))]


def packed(value: Any) -> bytes:
    """`value` as bytes. TypeError for what `exchange_values` does not take."""
    blobs: list[bytes] = []
    head = json.dumps(_written(value, blobs)).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *blobs])


def unpacked(data: bytes) -> Any:
    """What `packed` made these bytes of."""
    size = int.from_bytes(data[:8], "little")
    return _Reader(data, 8 + size).read(json.loads(data[8 : 8 + size]))


def _written(value: Any, blobs: list[bytes]) -> Any:
    """The header's form of a value: itself, or a list [kind, …]."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes):
        blobs.append(value)
        return ["bytes", len(value)]
    if isinstance(value, dict):
        pairs = [[_written(k, blobs), _written(v, blobs)] for k, v in value.items()]
        return ["dict", pairs]
    for name, kind in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kind):
            return [name, [_written(one, blobs) for one in value]]
    if is_array(value) or isinstance(value, np.generic):
        array = to_numpy(value) if is_array(value) else np.asarray(value)
        low = array.dtype == bfloat16
        if low or array.dtype.kind in "biufcUSMm":
            blobs.append(array.tobytes())
            return ["array", "bfloat16" if low else array.dtype.str, list(array.shape)]
        raise TypeError(f"an array of {array.dtype} cannot be sent to other processes")
    raise TypeError(f"a {type(value).__name__} cannot be sent to other processes")


class _Reader:
    """Reads a value whose bytes begin at `place`, in the order in which they were written."""

    def __init__(self, data: bytes, place: int):
        self.data, self.place = data, place

    def read(self, form: Any) -> Any:
        if not isinstance(form, list):
            return form
        kind, what, *shape = form
        if kind == "bytes":
            return self._take(what)
        if kind == "array":
            dtype = as_dtype("bfloat16") if what == "bfloat16" else np.dtype(what)
            data = self._take(dtype.itemsize * int(np.prod(shape[0], dtype=np.int64)))
            return np.frombuffer(data, dtype).reshape(shape[0]).copy()
        if kind == "dict":
            return {self.read(key): self.read(value) for key, value in what}
        return {"list": list, "tuple": tuple, "set": set}[kind](self.read(one) for one in what)

    def _take(self, size: int) -> bytes:
        self.place += size
        return self.data[self.place - size : self.place]
