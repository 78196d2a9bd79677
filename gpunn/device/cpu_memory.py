"""Planned memory for a step on the CPU: NumPy's arrays of a step in one arena, run after run.

NumPy lets a program say where the memory of arrays comes from (NEP 49): a capsule with four
functions, held in a context variable. Inside ``with memory.recording():`` ours note what is
allocated and given back; `make_plan` lays that out; inside ``with memory.serving():`` allocation
number i gets its place in the arena. So a step takes no memory from the system once it has run a
few times, touches the same few pages each time, and nothing is ever cleared by the kernel.

Nothing depends on the step doing again what it did. An allocation is served only if its size is the
planned one (else a planned one of that size is looked for a little further on) and its place is
free at that moment; otherwise it is counted, and gets a spare block. Spare blocks also serve what
outlived the recorded step (results, gradients): they come from the C library, and once given back
they are kept for the next of about their size. Arrays may be kept, given back late or by another
thread, or outlive the `CpuStepMemory`: each holds the capsule, and the last frees what is left.

The functions are compiled by Numba (`cpu_memory_compiled`), which is imported when the first
`CpuStepMemory` is made; without it there is none, and steps run as ever. What threads allocate
that share out the pieces of a computation (`scattered`) follows no order, so it is not planned:
spare blocks serve it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading

import numpy as np

from gpunn.device.memory_plan import Block, MemoryPlan, plan
from gpunn.errors import DeviceError
from gpunn.text import bytes_text

SETTLED = 2  # served runs in a row that the plan held all of: from then on it stays
PLANS = 5  # at most; where sizes depend on the data none holds everything
HUGE = 1 << 22  # bytes from which the arena asks for large pages, as NumPy does for an array


class CpuStepMemory:
    """The memory of a step that is run again and again.

    >>> memory = CpuStepMemory()
    >>> with memory.recording():
    ...     step()
    >>> memory.make_plan()
    >>> with memory.serving():  # from now on
    ...     step()

    `recording` may be entered again at any time; a new plan follows. While the first served runs
    find no place for something, they are recorded too and planned anew: the first step of a
    training makes the optimizer's state, say, and those behind it do not.

    Attributes
    ----------
    plan : the `MemoryPlan`, None before `make_plan`
    unplanned : (count, bytes) of the latest served run: allocations for which the plan had no
        place, because it has none such or the place was still in use
    fresh : the same of what was newly taken from the C library, unplanned or outliving the step;
        (0, 0) as soon as there are as many spare blocks as are in use at one time
    served : the same of what was served from the arena
    """

    def __init__(self) -> None:
        if (reason := _why_not()) is not None:
            raise DeviceError(f"CpuStepMemory: {reason}")
        self.plan: MemoryPlan | None = None
        self._handler: _Handler | None = None
        self._counts: tuple[int, ...] | None = _ZEROS  # of the latest run; None: ask the handler
        self._recorded: list[Block] | None = None
        self._before: tuple | None = None  # NumPy's capsule outside, and our handler
        self._settling = self._plans = 0  # clean runs and new plans to come
        self._inside, self._one = "", threading.Lock()

    @staticmethod
    def available() -> bool:
        """Whether there can be planned memory on the CPU here. Imports Numba if it is there."""
        return _why_not() is None

    @staticmethod
    def why_not() -> str | None:
        """Why there can be none, in a sentence; None if there can."""
        return _why_not()

    def recording(self):
        """A context: what is allocated and given back inside is noted for `make_plan`."""
        return _Recording(self)

    def serving(self):
        """A context: memory comes from the plan. Raises RuntimeError before `make_plan`."""
        return _Serving(self)

    def make_plan(self) -> MemoryPlan:
        """Plan what was recorded. Raises RuntimeError if no step was recorded to its end."""
        if self._inside:
            raise RuntimeError(f"CpuStepMemory: make_plan was called inside {self._inside}()")
        if self._recorded is None:
            raise RuntimeError(
                "CpuStepMemory: there is no recorded step to plan; run one to its end inside "
                "recording()"
            )
        self.plan = plan(self._recorded, alignment=64)  # a granule
        self._handler, self._recorded = _Handler(self.plan), None
        self._settling, self._plans = SETTLED, PLANS - 1
        return self.plan

    @property
    def unplanned(self) -> tuple[int, int]:
        return self._counted()[0:2]

    @property
    def fresh(self) -> tuple[int, int]:
        return self._counted()[2:4]

    @property
    def served(self) -> tuple[int, int]:
        return self._counted()[4:6]

    def report(self) -> str:
        """The plan, and what the latest served run took from it and beside it, as text."""
        if self.plan is None:
            return "no plan yet"
        lines = [self.plan.describe()]
        for text, (count, size) in (
            ("from the arena", self.served),
            ("not in the plan", self.unplanned),
            ("newly taken from the system", self.fresh),
        ):
            lines.append(f"{text}: {count:,} allocations, {bytes_text(size)}")
        return "\n".join(lines)

    def _counted(self) -> tuple[int, ...]:
        if self._counts is None:
            return tuple(self._handler.words[_COUNTERS])
        return self._counts

    def _enter(self, name: str, handler: _Handler) -> None:
        self._before = _set_handler(handler.capsule), _here.handler
        _here.handler = handler
        self._inside = name

    def _leave(self) -> None:
        capsule, _here.handler = self._before
        _set_handler(capsule)
        self._before, self._inside = None, ""
        self._one.release()

    def _alone(self, name: str) -> None:
        """Refuse a second one inside, of this thread or another."""
        if not self._one.acquire(blocking=False):
            raise RuntimeError(
                f"CpuStepMemory: {name}() was entered inside {self._inside}() of the same memory; "
                f"a step within a step, or on another thread, needs a CpuStepMemory of its own"
            )


class _Here(threading.local):
    handler: _Handler | None = None  # inside `recording` or `serving` on this thread


_here = _Here()


@contextlib.contextmanager
def scattered():
    """Inside it several threads allocate for the step of this one, in any order.

    Gives a function of no arguments that each helping thread calls: a context in which the helper's
    memory comes from here as well; None where no step is planned.
    """
    handler = _here.handler
    if handler is None:
        yield None
        return
    mode = handler.words[_MODE]
    handler.words[_MODE] = mode | _SCATTERED
    try:
        yield functools.partial(_helping, handler)
    finally:
        handler.words[_MODE] = mode


@contextlib.contextmanager
def _helping(handler: _Handler):
    before = _set_handler(handler.capsule)
    try:
        yield
    finally:
        _set_handler(before)


class _Recording:
    """What `CpuStepMemory.recording` gives."""

    def __init__(self, memory: CpuStepMemory):
        self.memory, self.handler = memory, None

    def __enter__(self) -> CpuStepMemory:
        memory = self.memory
        self.handler = _Handler()
        memory._alone("recording")
        self.handler.words[_MODE] = _LOGGING
        memory._recorded = None
        memory._enter("recording", self.handler)
        return memory

    def __exit__(self, kind, *_) -> None:
        self.memory._leave()
        handler, self.handler = self.handler, None
        handler.words[_MODE] = 0
        if kind is None:
            self.memory._recorded = handler.recorded()


class _Serving:
    """What `CpuStepMemory.serving` gives. Entered and left at each step, so it does little."""

    def __init__(self, memory: CpuStepMemory):
        self.memory = memory

    def __enter__(self) -> CpuStepMemory:
        memory = self.memory
        if memory._handler is None:
            raise RuntimeError("CpuStepMemory: serving() before make_plan(); record a step first")
        memory._alone("serving")
        handler, memory._counts = memory._handler, None
        handler.begin(_SERVING | _LOGGING if memory._settling else _SERVING)
        memory._enter("serving", handler)
        return memory

    def __exit__(self, kind, *_) -> None:
        memory = self.memory
        memory._leave()
        handler = memory._handler
        handler.words[_MODE] = 0
        if memory._settling:
            self._settle(handler, kind is None)

    def _settle(self, handler: _Handler, whole: bool) -> None:
        """Plan this run instead, if it was one and not all of it was in the plan."""
        memory = self.memory
        if whole and memory.unplanned[0] == 0:
            memory._settling -= 1
        elif whole:
            plans, memory._counts = memory._plans - 1, memory._counted()
            memory._recorded = handler.recorded()
            memory.make_plan()
            memory._plans = plans
            memory._settling = SETTLED if plans else 0
        handler.drop_log()


class _Handler:
    """A capsule for NumPy, with its control block, and once there is a plan the arena and tables.

    All of it is memory of the C library that the capsule's destructor frees, so it lives as long as
    any array does that came from here. When this object goes, no step is served any more, and the
    arena goes with the last of its blocks, even if others live on.
    """

    def __init__(self, plan: MemoryPlan | None = None):
        code = _compiled()
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
        words[_MODE] = mode
        words[_NEXT] = words[_MISSED] = words[_IN_USE] = 0
        words[_COUNTERS] = _ZEROS

    def drop_log(self) -> None:
        """Begin the log anew."""
        self.words[_LOGGED] = 0

    def recorded(self) -> list[Block]:
        """The blocks of the log, in the order in which they were allocated."""
        code, words = _compiled(), self.words
        if words[code.LOG_LOST // 8]:
            raise MemoryError("CpuStepMemory: no memory for the record of the step's allocations")
        count = words[_LOGGED]
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
        code, words = _compiled(), self.words
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
        code, words = _compiled(), self.words
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


# Words of the control block that are written at every step (`cpu_memory_compiled` names them all).
_MODE, _LOGGED, _NEXT, _MISSED, _IN_USE, _COUNTERS = 0, 2, 11, 12, 18, slice(20, 26)
_LOGGING, _SERVING, _SCATTERED, _ZEROS = 1, 2, 4, (0,) * 6


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


def _set_handler(capsule: object) -> object:
    """Give NumPy another source of memory in this context; returns the one before."""
    return _numpy_set_handler()(capsule)


@functools.cache
def _compiled():
    """The compiled functions. They are never unloaded: an array may ask for them at any time."""
    from gpunn.device import cpu_memory_compiled

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(cpu_memory_compiled.FUNCTIONS))
    return cpu_memory_compiled


@functools.cache
def _why_not() -> str | None:
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
        _compiled()
        _numpy_set_handler()
    except Exception as error:  # an unknown NumPy, Numba or platform
        return f"planned memory on the CPU could not be compiled: {type(error).__name__}: {error}"
    return None
