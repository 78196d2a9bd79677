"""Where a random primitive's numbers begin: a seed and an offset by value, or in device memory.

A launch that is captured into a CUDA graph is repeated with the same arguments. So what changes
from one repetition to the next lies in an array on the device, the *counter*: uint64 [seed,
offset]. With one the kernels take

    seed = counter[0]           offset = counter[1] + offset  (modulo 2^64)

and the seed that was given counts for nothing.
"""

from __future__ import annotations

import operator

import numpy as np

UINT64 = np.dtype(np.uint64)

_RANGE = "expected an integer from 0 to 2^64 - 1"


def check_integer(call, name: str, value) -> int:
    """A seed, an offset or a number of draws as a Python int in [0, 2^64)."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{call.primitive.name}: {name} is {value!r:.60}; {_RANGE}.") from None
    call.require(0 <= number < 1 << 64, name, f"is {number}", _RANGE)
    return number


def check_counter(call, value):
    """A counter, on the device of the call's other arrays; or None."""
    return None if value is None else call.array("counter", value, dtypes=(UINT64,), shape=(2,))


def origin(seed: int, offset: int, counter) -> tuple[int, int]:
    """(seed, offset) that count, on the CPU."""
    if counter is None:
        return seed, offset
    return int(counter[0]), (int(counter[1]) + offset) % (1 << 64)


def numba_arguments(launch, seed: int, offset: int, counter) -> tuple:
    """What Numba's kernels take: a type for each argument, whether there is a counter or not."""
    given = counter is not None
    array = counter if given else launch.empty((2,), UINT64)
    return np.uint64(seed), np.uint64(offset), array, np.int32(given)
