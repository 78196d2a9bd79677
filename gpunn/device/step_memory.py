"""The memory of a compiled step: one arena, with a place for every allocation of the step.

A step makes the same allocations in the same order each time. A first run is recorded: the sizes,
and between which allocations each block is alive. From that `memory_plan` finds places in one
arena, where blocks that are never alive together share bytes. A later run is *served* from the
arena, allocation by allocation, and what it captures holds those addresses.

What outlives the step (results, gradients that no optimizer has a place for) gets memory of its
own. So between two runs nothing in the arena counts, and the kinds of calls of a step, of which one
runs at a time, share it: `SharedArena`.

An allocation that is not as it was recorded (another size, or a block that lives longer than then)
gets memory of its own too and is counted: never is a block that is in use given out again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.device import memory_plan


class Block:
    """Memory given out: `ptr` and `size` in bytes. It is free when the object goes."""

    __slots__ = ("ptr", "size", "owner", "_number", "_memory", "__weakref__")

    def __init__(self, ptr: int, size: int, owner: Any, number: int, memory: StepMemory):
        self.ptr, self.size, self.owner = ptr, size, owner
        self._number, self._memory = number, memory

    def __del__(self):
        self._memory._freed(self._number, self.owner)

    @property
    def source(self) -> Any:
        """The owner of its bytes: its own, or that of the arena."""
        return self._memory.arena_owner if self.owner is None else self.owner

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """How NumPy sees a block in the memory of the host: bytes."""
        return {"version": 3, "shape": (self.size,), "typestr": "|u1", "data": (self.ptr, False)}


class SharedArena:
    """Memory for several plans that are served one at a time: as large as the largest so far."""

    def __init__(self) -> None:
        self.size = 0
        self._memory: tuple[int, Any] = (0, None)

    def of(self, size: int, allocate: Callable[[int], tuple[int, Any]]) -> tuple[int, Any]:
        """(address, owner) of `size` bytes or more; a plan that had less keeps what it had."""
        if size > self.size:
            self._memory, self.size = allocate(size), size
        return self._memory


class StepMemory:
    """Records the allocations of a step, plans, and serves them.

    Parameters
    ----------
    allocate : function(bytes) -> (address, owner), on the device; the memory is free when the owner
        goes
    alignment : of every block, in bytes
    arena : that of the step's other kinds of calls

    Attributes
    ----------
    plan : the `MemoryPlan`, None before `make_plan`
    unplanned : (count, bytes) of the latest served run: what the plan had no place for
    """

    def __init__(
        self,
        allocate: Callable[[int], tuple[int, Any]],
        alignment: int = 256,
        arena: SharedArena | None = None,
    ):
        self._allocate, self._alignment = allocate, alignment
        self._shared = SharedArena() if arena is None else arena
        self._mode = "off"
        self._run = 0  # blocks of earlier runs come back late
        self._born: list[tuple[int, int]] = []  # (event, size) by number
        self._died: dict[int, int] = {}
        self._events = self._count = 0
        self.plan: Any = None
        self.unplanned = (0, 0)
        self._arena: tuple[int, Any] | None = None
        self._alive: list[bool] = []
        self._conflicts: list[Any] = []
        self._own: list[Any] = []  # memory outside the arena that a capture refers to

    def allocate_with(self, allocate: Callable[[int], tuple[int, Any]]) -> None:
        """Take memory by another function from now on."""
        self._allocate = allocate

    # ---- giving out ------------------------------------------------------------------------------

    def take(self, size: int) -> Block:
        """Memory for the next allocation of the step."""
        number, self._count = self._count, self._count + 1
        if self._mode == "serving":
            return self._serve(number, size)
        if self._mode == "recording":
            self._born.append((self._events, size))
            self._events += 1
        return self._fresh(size, number)

    def _fresh(self, size: int, number: int) -> Block:
        ptr, owner = self._allocate(size)
        return Block(ptr, size, owner, self._key(number), self)

    def _key(self, number: int) -> int:
        return number + (self._run << 32)

    def _serve(self, number: int, size: int) -> Block:
        fits = number < len(self._born) and self._born[number][1] == size
        if fits and not any(self._alive[other] for other in self._conflicts[number]):
            offset = self.plan.offsets[number]
            if offset >= 0:
                self._alive[number] = True
                return Block(self._arena[0] + offset, size, None, self._key(number), self)
        else:
            count, total = self.unplanned
            self.unplanned = (count + 1, total + size)
        block = self._fresh(size, 1 << 31)
        self._own.append(block.owner)
        return block

    def _freed(self, key: int, owner: Any) -> None:
        if key >> 32 != self._run:
            return
        number = key & 0xFFFFFFFF
        if self._mode == "recording":
            self._died[number] = self._events
            self._events += 1
        elif number < len(self._alive):
            self._alive[number] = False

    @property
    def arena_owner(self) -> Any:
        """What keeps the arena; None before `make_plan`."""
        return None if self._arena is None else self._arena[1]

    def arena_view(self, array: np.ndarray) -> np.ndarray | None:
        """On the host: the same view of the arena without its block; None if it lies elsewhere."""
        if self._mode != "serving" or self._arena[1] is None or array.size == 0:
            return None
        offset = array.ctypes.data - self._arena[0]
        if not 0 <= offset < self.plan.size:
            return None
        return np.ndarray(array.shape, array.dtype, self._arena[1], offset, array.strides)

    # ---- phases ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[StepMemory]:
        """Record the allocations inside a ``with`` block."""
        self._begin("recording")
        self._born, self._died, self._events = [], {}, 0
        try:
            yield self
        finally:
            self._mode = "off"
            self._run += 1

    def make_plan(self) -> Any:
        """Find the places from what was recorded, and allocate the arena."""
        blocks = [
            memory_plan.Block(size, born, self._died.get(number))
            for number, (born, size) in enumerate(self._born)
        ]
        self.plan = memory_plan.plan(blocks, self._alignment)
        self._arena = self._shared.of(self.plan.size, self._allocate)
        self._conflicts = _conflicts(blocks, self.plan.offsets)
        return self.plan

    @contextlib.contextmanager
    def serving(self) -> Iterator[StepMemory]:
        """Serve the allocations inside a ``with`` block from the arena."""
        self._begin("serving")
        self._alive, self.unplanned = [False] * len(self._born), (0, 0)
        self._own.clear()
        try:
            yield self
        finally:
            self._mode = "off"

    def _begin(self, mode: str) -> None:
        if self._mode != "off":
            raise RuntimeError(f"the memory of a step is {self._mode} already")
        self._mode, self._count = mode, 0
        self._run += 1


def _conflicts(blocks: list, offsets: tuple[int, ...]) -> list:
    """For each block the numbers of those born before it whose places overlap its own."""
    start = np.array(offsets, np.int64)
    size = np.array([block.size for block in blocks], np.int64)
    end = start + np.where(start < 0, 0, size)  # those outside the arena meet none
    found = []
    for number in range(len(blocks)):
        earlier = (start[:number] < end[number]) & (end[:number] > start[number])
        found.append(np.flatnonzero(earlier).tolist())
    return found
