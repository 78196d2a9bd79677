"""Checks of integer arrays that say where to read: indices, positions, labels, lengths.

On the CPU every value is looked at, and the message names the first wrong one. On a GPU that would
mean waiting, so there a wrong value becomes NaN in the result; with ``GPUNN_CHECK_INDICES=1`` in
the environment it is checked there, too.
"""

from __future__ import annotations

import os

import numpy as np

from gpunn.device import arrays, tracing
from gpunn.primitives.call import CPU
from gpunn.primitives.samples import INTEGERS

CHECK_EVERYWHERE = os.environ.get("GPUNN_CHECK_INDICES", "0") not in ("", "0")


def check_range(call, name: str, indices, below: int, remedy: str) -> None:
    """Raise ValueError unless all `indices` are from 0 to `below` - 1, where they are looked at."""
    on_cpu = call.device is CPU
    if not on_cpu and (not CHECK_EVERYWHERE or tracing.state.trace is not None):
        return
    if indices.size == 0:
        return
    # Seen as unsigned, a negative number is larger than any limit.
    wrong = indices.view(f"u{indices.dtype.itemsize}") >= below
    if not bool(wrong.any()):
        return
    place = int(arrays.to_numpy(wrong).argmax())
    value = int(arrays.to_numpy(indices).reshape(-1)[place])
    where = tuple(map(int, np.unravel_index(place, indices.shape)))
    where = where[0] if len(where) == 1 else where
    expected = f"0 to {below - 1}" if below else "none at all"
    call.require(False, name, f"holds {value} at position {where}", f"expected {expected} {remedy}")


def host_integers(call, name: str, value) -> np.ndarray:
    """`value`, integers in a list or an array on any device, as an int64 array on the CPU."""
    array = value if isinstance(value, np.ndarray) else None
    try:
        array = arrays.to_numpy(arrays.as_array(value)) if arrays.is_array(value) else array
        array = np.asarray(value if array is None else array)
    except (TypeError, ValueError):
        array = None
    if array is None or (array.dtype not in INTEGERS and array.size):
        call.refuse(name, value, "integers (int32 or int64)", error=TypeError)
    return array.astype(np.int64)
