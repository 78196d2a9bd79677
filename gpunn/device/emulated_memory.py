"""The memory of the device "emulator": given out and taken back as CuPy's pool does it on a GPU.

Memory that nobody holds is handed out again at once, what was freed last first, to the next that
asks for as many multiples of 512 bytes. So an address that outlives its array is as dangerous here
as there: it sees the bytes 0xFF, which are NaN, or what belongs to another array by then. The one
difference is that it never leaves the process: who keeps an address (`address_only`) keeps the
bytes mapped, though not the array.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpunn.device.step_memory import Block

GRANULE = 512  # CuPy's: sizes are rounded up to it, and addresses are multiples of it
_HERE = str(Path(__file__).parent)  # as the frames of its functions name it


class _Pool(threading.local):
    """The free memory of one thread, by size.

    A finalizer may ask it while it is being asked. When Python ends, arrays outlive the globals of
    this module: what gives memory back uses none.
    """

    most = 256 << 20  # bytes kept for the next; more go back to the system

    def __init__(self) -> None:
        self.free: dict[int, list[tuple[int, np.ndarray]]] = {}
        self.kept = 0

    def take(self, size: int) -> tuple[int, np.ndarray]:
        """(address, bytes) of a size that is a multiple of GRANULE."""
        stack = self.free.get(size)
        if stack:
            self.kept -= size
            return stack.pop()
        room = np.full(size + GRANULE, 0xFF, np.uint8)
        address = room.ctypes.data
        start = -address % GRANULE
        return address + start, room[start : start + size]

    def give(self, piece: tuple[int, np.ndarray]) -> None:
        """Overwrite it, and keep it for the next."""
        memory = piece[1]
        memory.fill(0xFF)
        size = memory.size
        if self.kept + size > self.most:
            self.free, self.kept = {}, 0
            if size > self.most:
                return
        self.free.setdefault(size, []).append(piece)
        self.kept += size


class Memory:
    """Memory of the emulator that somebody holds; it is free when the object goes.

    Attributes
    ----------
    address, bytes : where it is; who has no more than these does not hold it
    place : (file, line) of the code that asked for it
    """

    __slots__ = ("address", "bytes", "place", "__array_interface__", "__weakref__")
    _pool = _Pool()

    def __init__(self, piece: tuple[int, np.ndarray], shape: tuple[int, ...], dtype: np.dtype):
        self.address, self.bytes = piece
        self.place = _asked_by()
        self.__array_interface__ = {  # how NumPy sees it
            "version": 3, "shape": shape, "typestr": dtype.str, "data": (self.address, False),
        }  # fmt: skip

    def __del__(self):
        self._pool.give((self.address, self.bytes))


def _asked_by() -> tuple[str, int]:
    """The file and line of the nearest caller outside of this folder."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_HERE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def taken(shape: Any, dtype: Any) -> np.ndarray:
    """A plain C-contiguous array in memory of the emulator; new memory is full of bytes 0xFF."""
    dtype = np.dtype(dtype)
    shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))
    size = math.prod(shape) * dtype.itemsize
    if size <= 0 or dtype.hasobject:  # NumPy says what is wrong with a negative length
        return np.empty(shape, dtype)
    piece = Memory._pool.take(-(-size // GRANULE) * GRANULE)  # before there is what gives it back
    array = np.asarray(Memory(piece, shape, dtype))
    return array if array.dtype is dtype else array.view(dtype)  # NumPy calls bfloat16 two bytes


def holder_of(array: Any) -> Memory | Block | None:
    """What keeps the memory of an array, if that is memory of the emulator: it alone or, as for all
    views of an array, together with others."""
    found = array
    while found is not None and not isinstance(found, Memory | Block):
        found = getattr(found, "base", None)
    return found


class Lifetime(NamedTuple):
    """How long an address is good."""

    holder: weakref.ref
    place: tuple[str, int]  # see `Memory`; ("", 0) in the arena of a compiled step

    @property
    def over(self) -> bool:
        """Whether the memory is free, or another's by now."""
        return self.holder() is None


def address_only(array: np.ndarray) -> tuple[np.ndarray, Lifetime | None]:
    """(the same view, which keeps no memory from being free; how long it is good).

    An array that does not lie in memory of the emulator stays as it is, and None.
    """
    holder = holder_of(array)
    memory = holder_of(holder.source) if isinstance(holder, Block) else holder
    if memory is None:
        return array, None
    offset = array.ctypes.data - memory.address
    seen = np.ndarray(array.shape, array.dtype, memory.bytes, offset, array.strides)
    in_arena = holder is not memory and holder.owner is None
    return seen, Lifetime(weakref.ref(holder), ("", 0) if in_arena else memory.place)
