"""What the kernels of images share: sizes of one to three dimensions, and the look of 5-D arrays.

The kernels of pooling, padding and resizing know one shape, (N, D, H, W, C) with the channels
innermost; an image of fewer dimensions has leading ones of size 1.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np

SPATIAL = (1, 2, 3)  # how many spatial dimensions there may be
BLOCK = 256
_WORD = {"int32": np.int32, "int64": np.int64}


def spatial_dimensions(call, name: str, x) -> int:
    """How many spatial dimensions (N, *spatial, C) has; an error for others than 1, 2 or 3."""
    if x.ndim - 2 not in SPATIAL:
        call.refuse(name, x, "3, 4 or 5 dimensions: (N, *spatial, C) with 1 to 3 spatial ones")
    return x.ndim - 2


def per_dimension(call, name: str, value: Any, dimensions: int, low: int = 0) -> tuple[int, ...]:
    """An int for all dimensions, or a sequence with one for each; none below `low`."""
    if isinstance(value, (tuple, list)):
        given = value * dimensions if len(value) == 1 else value
    else:
        given = (value,) * dimensions
    try:
        found = tuple(map(operator.index, given))
    except TypeError:
        raise TypeError(
            f"{call.primitive.name}: {name} is {value!r}; expected an int, or a tuple of "
            f"{dimensions} ints."
        ) from None
    call.require(
        len(found) == dimensions,
        name,
        f"is {value!r}, {len(found)} numbers, but there are {dimensions} spatial dimensions",
        "give an int, or one for each dimension",
    )
    call.require(min(found) >= low, name, f"is {value!r}", f"every number must be at least {low}")
    return found


def volumes(x):
    """(N, *spatial, C) as (N, D, H, W, C) on the same memory, with leading sizes of 1."""
    n, *spatial, c = x.shape
    return x.reshape(n, *(1,) * (3 - len(spatial)), *spatial, c)


def leading(values: tuple, fill) -> tuple:
    """One to three values, as three with `fill` in front."""
    return (fill,) * (3 - len(values)) + tuple(values)


@functools.lru_cache(1 << 10)
def structure(word: str, values: tuple[int, ...]) -> np.ndarray:
    """Numbers of one type as one argument by value: a structure of the kernel's."""
    return np.array(values, _WORD[word]).view(np.dtype((np.void, len(values) * _size(word))))


def _size(word: str) -> int:
    return np.dtype(_WORD[word]).itemsize


def blocks(threads: int) -> tuple[int]:
    """The grid of one thread an item; at least one block."""
    return (max(1, -(-threads // BLOCK)),)


def pack_width(launch, channels: int, *arrays) -> int:
    """Elements of a pack: 16 bytes if channels and addresses allow, else 1.

    They do where all arrays begin at multiples of 16 and a pixel is a whole number of packs. Eight
    bytes, a float64, are wide enough alone: that spares a set of kernels.
    """
    width = 16 // arrays[0].itemsize
    return width if width > 2 and channels % width == 0 and launch.aligned(16, *arrays) else 1


def numba_grid(items: int) -> tuple[int]:
    """Blocks of 64 threads for a Numba kernel that strides over `items`."""
    return (min(-(-items // 64), 65535),)
