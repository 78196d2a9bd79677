"""The arguments of a launch as bytes: what ``cuLaunchKernel`` reads.

The driver takes an array of pointers, one for each argument, and copies from each as many bytes as
the kernel declares for that parameter. So nothing but the size of each argument matters; where it
lies is ours to choose. A *layout* is made once for a list of argument types: one format for
`struct.Struct.pack_into`, which writes all arguments at once, and *storages*, the memory written
to, which are used again and again.

==========================  ===================================================================
argument                    what the kernel gets
==========================  ===================================================================
array on the GPU            its address, 8 bytes
None                        a null pointer
NumPy scalar                its own bytes: `numpy.int32` 4, `numpy.float64` 8, `numpy.bool_` 1
`TensorMap`                 its 128 bytes, by value, at a multiple of 64
NumPy array of one element  its bytes by value: a structure
==========================  ===================================================================
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SLOT = 8  # every argument begins at a multiple of this
WIDE = 64  # and structures at a multiple of this, as tensor maps must

_FORMATS = {
    np.bool_: "?", np.int8: "b", np.uint8: "B", np.int16: "h", np.uint16: "H", np.int32: "i",
    np.uint32: "I", np.int64: "q", np.uint64: "Q", np.float16: "e", np.float32: "f",
    np.float64: "d",
}  # fmt: skip
_POINTER, _MAP, _BYTES = "pointer", "map", "bytes"
# What stands in the generated function for an argument {0} of each kind.
_VALUES = {
    _POINTER: "0 if {0} is None else {0}.data.ptr",
    _MAP: "{0}.as_argument({0}.array.data.ptr).tobytes()",
    _BYTES: "{0}.tobytes()",
}


class Storage(NamedTuple):
    """Memory for the arguments of one launch: `buffer` to write, `pointers` for the driver."""

    buffer: memoryview
    pointers: int  # the address of the array of pointers
    keep: np.ndarray  # which is this


class Layout:
    """How the arguments of some types lie in memory.

    Attributes
    ----------
    sizes : bytes of each argument
    write : function(storage, args), which packs `args` into a storage. It raises whatever the
        conversion raises if an argument is of another kind than the layout was made for.
    spare : storages that no launch uses now. A launch takes one away and puts it back, so that
        threads never share one while the driver reads it: it does so without Python's lock.
    """

    __slots__ = ("sizes", "offsets", "bytes", "write", "spare")

    def __init__(self, kinds: Sequence[tuple[str, int]]):
        parts, offsets, at = [], [], 0
        for kind, size in kinds:
            start = -(-at // (WIDE if size > SLOT else SLOT)) * (WIDE if size > SLOT else SLOT)
            code = {_POINTER: "Q", _MAP: f"{size}s", _BYTES: f"{size}s"}.get(kind, kind)
            parts.append(f"{start - at}x{code}")
            offsets.append(start)
            at = start + size
        self.sizes = tuple(size for _, size in kinds)
        self.offsets, self.bytes = tuple(offsets), max(at, SLOT)
        self.spare: list[Storage] = []
        self.write = _writer(tuple(kind for kind, _ in kinds), struct.Struct("=" + "".join(parts)))

    def storage(self) -> Storage:
        """New memory for the arguments of one launch."""
        room = np.zeros(self.bytes + WIDE, np.uint8)
        start = -room.ctypes.data % WIDE
        buffer = room[start : start + self.bytes]
        pointers = np.array([buffer.ctypes.data + at for at in self.offsets] or [0], np.uint64)
        return Storage(memoryview(buffer), pointers.ctypes.data, pointers)


def _writer(kinds: tuple[str, ...], packer: struct.Struct) -> Callable[[Storage, Any], None]:
    """The function that packs arguments of these kinds.

    It is made as text, one expression an argument, because it runs at every launch: a loop that
    asks each argument for its kind takes three times as long.
    """
    names = [f"a{i}" for i in range(len(kinds))]
    values = [
        _VALUES.get(kind, "{0}").format(name) for name, kind in zip(names, kinds, strict=True)
    ]
    text = (
        "def write(storage, args):\n"
        f"    [{', '.join(names)}] = args\n"
        f"    pack_into({', '.join(['storage[0]', '0', *values])})\n"
    )
    scope: dict[str, Any] = {"pack_into": packer.pack_into}
    exec(text, scope)
    return scope["write"]


@functools.cache
def _layout(kinds: tuple[tuple[str, int], ...]) -> Layout:
    return Layout(kinds)


def layout_of(args: Sequence[Any]) -> Layout:
    """The layout for arguments of these types; the same object for the same types.

    TypeError names the first argument that cannot be passed, and says why.
    """
    return _layout(tuple(_kind(position, value) for position, value in enumerate(args)))


def _kind(position: int, value: Any) -> tuple[str, int]:
    """How an argument is passed, and its bytes."""
    if isinstance(value, np.generic):
        code = _FORMATS.get(type(value))
        return (code or _BYTES, value.itemsize)
    if value is None or hasattr(getattr(value, "data", None), "ptr"):
        return _POINTER, 8
    if hasattr(value, "as_argument"):
        if not hasattr(getattr(value.array, "data", None), "ptr"):
            raise TypeError(
                f"argument {position} is a tensor map of an array in the memory of the host"
            )
        return _MAP, 128
    if isinstance(value, np.ndarray):
        if value.size == 1:
            return _BYTES, value.nbytes
        raise TypeError(
            f"argument {position} is a NumPy array of shape {value.shape}, which is in the memory "
            "of the host: move it to the GPU"
        )
    if isinstance(value, (bool, int, float)):
        raise TypeError(
            f"argument {position} is a Python {type(value).__name__}; pass a NumPy scalar of the "
            "kernel's own type"
        )
    raise TypeError(f"argument {position} is a {type(value).__name__}, which no kernel takes")


def parameter_sizes(cubin: bytes, symbol: str) -> tuple[int, ...] | None:
    """Bytes of each parameter that a kernel declares, as its machine code (an ELF file) says.

    None where the file does not tell. They stand in the section ``.nv.info.<symbol>``, a list of
    attributes; number 0x17 is a parameter: its index, ordinal, offset and, from bit 18 on, size.
    """
    section = _section(cubin, f".nv.info.{symbol}".encode())
    found: dict[int, int] = {}
    at = 0
    while section is not None and at + 4 <= len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if form != 4:  # the two bytes were the value itself
            continue
        if attribute == 0x17 and size == 12:
            _, ordinal, _, flags = struct.unpack_from("<IHHI", section, at)
            found[ordinal] = flags >> 18
        at += size
    return tuple(found[i] for i in sorted(found)) or None


def _section(elf: bytes, name: bytes) -> bytes | None:
    """The contents of a section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    for header in headers:
        start = headers[names][4] + header[0]
        if elf[start : elf.index(b"\0", start)] == name:
            return elf[header[4] : header[4] + header[5]]
    return None
