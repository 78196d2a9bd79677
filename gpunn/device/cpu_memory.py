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
import functools
import threading

from gpunn.device import cpu_memory_handler
from gpunn.device.cpu_memory_handler import (
    COUNTERS,
    LOGGING,
    MODE,
    SCATTERED,
    SERVING,
    ZEROS,
    Handler,
    set_handler,
)
from gpunn.device.memory_plan import Block, MemoryPlan, plan
from gpunn.errors import DeviceError
from gpunn.text import bytes_text

SETTLED = 2  # served runs in a row that the plan held all of: from then on it stays
PLANS = 5  # at most; where sizes depend on the data none holds everything


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
        if (reason := cpu_memory_handler.why_not()) is not None:
            raise DeviceError(f"CpuStepMemory: {reason}")
        self.plan: MemoryPlan | None = None
        self._handler: Handler | None = None
        self._counts: tuple[int, ...] | None = ZEROS  # of the latest run; None: ask the handler
        self._recorded: list[Block] | None = None
        self._before: tuple | None = None  # NumPy's capsule outside, and our handler
        self._settling = self._plans = 0  # clean runs and new plans to come
        self._inside, self._one = "", threading.Lock()

    @staticmethod
    def available() -> bool:
        """Whether there can be planned memory on the CPU here. Imports Numba if it is there."""
        return cpu_memory_handler.why_not() is None

    @staticmethod
    def why_not() -> str | None:
        """Why there can be none, in a sentence; None if there can."""
        return cpu_memory_handler.why_not()

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
        self._handler, self._recorded = Handler(self.plan), None
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
            return tuple(self._handler.words[COUNTERS])
        return self._counts

    def _enter(self, name: str, handler: Handler) -> None:
        self._before = set_handler(handler.capsule), _here.handler
        _here.handler = handler
        self._inside = name

    def _leave(self) -> None:
        capsule, _here.handler = self._before
        set_handler(capsule)
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
    handler: Handler | None = None  # inside `recording` or `serving` on this thread


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
    mode = handler.words[MODE]
    handler.words[MODE] = mode | SCATTERED
    try:
        yield functools.partial(_helping, handler)
    finally:
        handler.words[MODE] = mode


@contextlib.contextmanager
def _helping(handler: Handler):
    before = set_handler(handler.capsule)
    try:
        yield
    finally:
        set_handler(before)


class _Recording:
    """What `CpuStepMemory.recording` gives."""

    def __init__(self, memory: CpuStepMemory):
        self.memory, self.handler = memory, None

    def __enter__(self) -> CpuStepMemory:
        memory = self.memory
        self.handler = Handler()
        memory._alone("recording")
        self.handler.words[MODE] = LOGGING
        memory._recorded = None
        memory._enter("recording", self.handler)
        return memory

    def __exit__(self, kind, *_) -> None:
        self.memory._leave()
        handler, self.handler = self.handler, None
        handler.words[MODE] = 0
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
        handler.begin(SERVING | LOGGING if memory._settling else SERVING)
        memory._enter("serving", handler)
        return memory

    def __exit__(self, kind, *_) -> None:
        memory = self.memory
        memory._leave()
        handler = memory._handler
        handler.words[MODE] = 0
        if memory._settling:
            self._settle(handler, kind is None)

    def _settle(self, handler: Handler, whole: bool) -> None:
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
