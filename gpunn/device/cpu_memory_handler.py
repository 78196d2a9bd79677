"""A handler for NumPy's memory, as `cpu_memory` uses it: the capsule, its control block, the arena.

NumPy's part of it is told in NEP 49. The functions that NumPy calls are in `cpu_memory_compiled`,
which Numba compiles; it is imported when it is first needed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

import numpy as np

from gpunn.device.memory_plan import Block, MemoryPlan
from gpunn.text import bytes_text

HUGE = 1 << 22  # bytes from which the arena asks for large pages, as NumPy does for an array
# Words of the control block that are written at every step (`cpu_memory_compiled` names them all).
MODE, LOGGED, NEXT, MISSED, IN_USE, COUNTERS = 0, 2, 11, 12, 18, slice(20, 26)
LOGGING, SERVING, SCATTERED, ZEROS = 1, 2, 4, (0,) * 6


class Handler:
    """A capsule for NumPy, with its control block, and once there is a plan the arena and tables.

    All of it is memory of the C library that the capsule's destructor frees, so it lives as long as
    any array does that came from here. When this object goes, no step is served any more, and the
    arena goes with the last of its blocks, even if others live on.
    """

    def __init__(self, plan: MemoryPlan | None = None):
        code = compiled()
        raw = _zeroed(code.HANDLER + 8 * code.WORDS)
        self.context = raw + code.HANDLER
        self.words = (ctypes.c_int64 * code.WORDS).from_address(self.context)
        functions = {name: function.address for name, function in code.FUNCTIONS.items()}
        description = _Description.from_address(raw)
        description.name, description.version = b"gpunn step", 1
        description.context = self.context
        description.malloc, description.calloc = functions["on_malloc"], functions["on_calloc"]
        description.realloc, description.free = functions["on_realloc"], functions["on_free"]
        name = raw + ctypes.sizeof(_Description)  # lives as long as the capsule
        ctypes.memmove(name, b"mem_handler\0", 12)
        new, set_context, _ = _capsules()
        self.capsule = new(raw, name, functions["on_last"])
        set_context(self.capsule, self.context)
        self._retire = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(functions["on_retire"])
        if plan is not None:
            self._install(plan)

    def __del__(self):
        if hasattr(self, "_retire"):
            self._retire(self.context)

    def begin(self, mode: int) -> None:
        """Set to the beginning of a run."""
        words = self.words
        words[MODE] = mode
        words[NEXT] = words[MISSED] = words[IN_USE] = 0
        words[COUNTERS] = ZEROS

    def drop_log(self) -> None:
        """Begin the log anew."""
        self.words[LOGGED] = 0

    def recorded(self) -> list[Block]:
        """The blocks of the log, in the order in which they were allocated."""
        code, words = compiled(), self.words
        if words[code.LOG_LOST // 8]:
            raise MemoryError("CpuStepMemory: no memory for the record of the step's allocations")
        count = words[LOGGED]
        events = (ctypes.c_int64 * (2 * count)).from_address(words[code.LOG // 8] or self.context)
        pairs = list(zip(events[::2], events[1::2], strict=True))
        blocks, alive = [], {}
        for event, (address, size) in enumerate(pairs):
            if size >= 0:
                alive[address] = len(blocks)
                blocks.append(Block(size, event, None))
            elif (number := alive.pop(address, None)) is not None:  # else older than the log
                blocks[number] = blocks[number]._replace(dies=event)
        return blocks

    def _install(self, plan: MemoryPlan) -> None:
        """Lay down the tables of a plan, and its arena."""
        code, words = compiled(), self.words
        count = len(plan.blocks)
        words[code.SIZES // 8] = tables = _zeroed(16 * count + 8)
        words[code.PLACES // 8] = tables + 8 * count
        words[code.COUNT // 8] = count
        words[code.TOP // 8] = plan.escaping
        values = [block.size for block in plan.blocks] + list(plan.offsets)
        (ctypes.c_int64 * (2 * count)).from_address(tables)[:] = values
        if plan.size:
            granules = plan.size >> code.GRANULE_BITS
            words[code.USED // 8] = _zeroed(8 * (granules // 64 + 1))
            words[code.OWNER // 8] = _zeroed(8 * granules)
            self._map_arena(plan.size)

    def _map_arena(self, size: int) -> None:
        """Memory that the kernel gives when it is first touched, in large pages if it is large."""
        code, words = compiled(), self.words
        alignment = 1 << 21 if size >= HUGE else 4096
        raw = _libc().malloc(size + alignment)
        if not raw:
            raise MemoryError(f"CpuStepMemory: no memory for an arena of {bytes_text(size)}")
        start = (raw + alignment - 1) & -alignment
        if size >= HUGE and hasattr(_libc(), "madvise") and sys.platform == "linux":
            _libc().madvise(start, size, 14)  # MADV_HUGEPAGE; no matter if it is refused
        words[code.ARENA_RAW // 8] = raw
        words[code.ARENA // 8], words[code.ARENA_END // 8] = start, start + size


class _Description(ctypes.Structure):
    """NumPy's PyDataMem_Handler, version 1."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.c_void_p),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


@functools.cache
def _capsules():
    """Python's (new, set context, pointer) of capsules, called with the interpreter locked."""
    pointer, value = ctypes.c_void_p, ctypes.py_object
    api, make = ctypes.pythonapi, ctypes.PYFUNCTYPE
    return (
        make(value, pointer, pointer, pointer)(("PyCapsule_New", api)),
        make(ctypes.c_int, value, pointer)(("PyCapsule_SetContext", api)),
        make(pointer, value, pointer)(("PyCapsule_GetPointer", api)),
    )


@functools.cache
def _libc():
    library = ctypes.CDLL(None)
    library.malloc.argtypes, library.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    library.calloc.argtypes, library.calloc.restype = (ctypes.c_size_t,) * 2, ctypes.c_void_p
    if hasattr(library, "madvise"):
        library.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return library


def _zeroed(size: int) -> int:
    address = _libc().calloc(1, size)
    if not address:
        raise MemoryError(f"CpuStepMemory: no memory for tables of {bytes_text(size)}")
    return address


@functools.cache
def _numpy_set_handler():
    """NumPy's ``PyDataMem_SetHandler``: number 304 of its C interface since 1.22."""
    table = _capsules()[2](np._core._multiarray_umath._ARRAY_API, None)
    address = (ctypes.c_void_p * 305).from_address(table)[304]
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)


def set_handler(capsule: object) -> object:
    """Give NumPy another source of memory in this context; returns the one before."""
    return _numpy_set_handler()(capsule)


@functools.cache
def compiled():
    """The compiled functions. They are never unloaded: an array may ask for them at any time."""
    from gpunn.device import cpu_memory_compiled

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(cpu_memory_compiled.FUNCTIONS))
    return cpu_memory_compiled


@functools.cache
def why_not() -> str | None:
    """Why steps on the CPU cannot have planned memory here, in a sentence; None if they can."""
    if os.name != "posix" or sys.implementation.name != "cpython":
        return "planned memory on the CPU needs CPython on Linux or macOS"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "planned memory on the CPU needs Python with its global lock"
    if os.environ.get("GPUNN_CPU_COMPILED") == "0":
        return "planned memory on the CPU is compiled by Numba, and GPUNN_CPU_COMPILED is 0"
    try:
        import numba
    except ImportError as error:
        return f"planned memory on the CPU needs Numba (pip install numba): {error}"
    if numba.config.DISABLE_JIT:
        return "planned memory on the CPU is compiled by Numba, and NUMBA_DISABLE_JIT is set"
    try:
        compiled()
        _numpy_set_handler()
    except Exception as error:  # an unknown NumPy, Numba or platform
        return f"planned memory on the CPU could not be compiled: {type(error).__name__}: {error}"
    return None
