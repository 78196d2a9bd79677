"""What a profile writes down while it runs: entries that lie inside each other, and their times.

Every kernel, layer, operation of autograd and region is an `Entry` with a beginning, an end and
the entry around it. What the profile does for itself (the arithmetic of a cost, a look at the
memory) is cut out of the clock: entries do not grow by being watched.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.device import Device
from gpunn.profiling.clock import CupyEvents, Events
from gpunn.profiling.memory import HostMemory, MemoryTimeline, PoolMemory

UPDATING = ("optimizer", "clip", "amp")  # families at work between steps
ROOT = 0


class Entry:
    """Something that took time.

    Attributes
    ----------
    kind : "kernel", "layer", "operation" (of autograd; "view" where it only shows the same memory
        in another way), or "region"
    name : of the primitive, layer, operation or region
    layer, what : the layer it belongs to, and what that is ("Linear", "Linear + relu")
    phase : "forward", "backward" or "update"
    parent : the number of the entry around it, -1 for the first
    start, seconds : on the device, since the profile began; on a GPU from its events
    host_start, host_seconds : the same on the host, where a launch is over at once
    own : seconds that no entry inside it took
    shapes, dtype, device, flops, read, written : of a kernel
    launches : of a kernel in `explain`: what it launches
    """

    __slots__ = (
        "kind", "name", "layer", "what", "phase", "parent", "start", "seconds", "host_start",
        "host_seconds", "own", "shapes", "dtype", "device", "flops", "read", "written", "launches",
        "_begin", "_end",
    )  # fmt: skip

    def __init__(self, kind: str, name: str, layer: str, what: str, phase: str, parent: int):
        self.kind, self.name, self.layer, self.what = kind, name, layer, what
        self.phase, self.parent = phase, parent
        self.start = self.seconds = self.host_start = self.host_seconds = self.own = 0.0
        self.shapes, self.dtype, self.device = "", "", ""
        self.flops = self.read = self.written = 0.0
        self.launches: list[Any] = []
        self._begin = self._end = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} in {self.layer!r}, {self.phase}, {self.seconds:.3g} s>"

    @property
    def bytes(self) -> float:
        """Bytes read and written, each once."""
        return self.read + self.written


class Recording:
    """The entries of a running profile. All times are those of one thread.

    Parameters
    ----------
    device : where most kernels run: its memory is watched, and on a GPU its events are the clock
    memory : whether to keep a timeline of the memory
    events : function(device) -> `Events` for GPUs
    ranges : something with ``push(name)`` and ``pop()``, or None
    always_events : use events for every device (a test without a GPU)
    clock : whether times matter; without there are no events
    """

    def __init__(
        self,
        device: Device,
        memory: bool = False,
        events: Callable[[Device], Events] = CupyEvents,
        ranges: Any = None,
        always_events: bool = False,
        clock: bool = True,
    ):
        self.device, self._make_events, self._ranges = device, events, ranges
        self._always, self._clock = always_events, clock
        self._drivers: dict[Device, tuple[Events, Any, float]] = {}  # and origin, and when it was
        self.entries: list[Entry] = []
        self._known: dict[int, weakref.ref] = {}
        self._open: list[int] = []
        self._lost = 0.0
        self.layer, self.what, self.phase = "", "", "forward"
        self._begun = time.perf_counter()
        if self._has_events(device):
            self._driver(device)
        self._memory = None
        self.timeline: MemoryTimeline | None = None
        if memory:
            on_gpu = self._has_events(device)
            self._memory = PoolMemory(self._driver(device)[0]) if on_gpu else HostMemory()
            self.timeline = MemoryTimeline(self._memory.what)
        self._lost = time.perf_counter() - self._begun  # the clock begins at 0
        self.begin("region", "profile")

    @property
    def lost(self) -> float:
        """Seconds that went into the recording itself."""
        return self._lost

    @property
    def innermost(self) -> Entry:
        """The entry that was opened last."""
        return self.entries[self._open[-1]]

    # ---- the clock -------------------------------------------------------------------------------

    def _has_events(self, device: Device) -> bool:
        return self._clock and (self._always or device.type == "cuda")

    def _driver(self, device: Device) -> tuple[Events, Any, float]:
        found = self._drivers.get(device)
        if found is None:
            events = self._make_events(device)
            origin = events.record()
            now = time.perf_counter() - self._begun - self._lost
            found = self._drivers[device] = (events, origin, now)
        return found

    def _mark(self, device: Device):
        """An event on the device, None where there are none."""
        if not self._has_events(device):
            return None
        events, origin, _ = self._driver(device)
        event = None if origin is None else events.record()
        return None if event is None else (device, event)

    # ---- entries ---------------------------------------------------------------------------------

    def begin(self, kind: str, name: str, device: Device | None = None) -> Entry:
        """Open an entry inside the one that is open."""
        entered = time.perf_counter()
        now = entered - self._begun - self._lost
        sample = None if self._memory is None else self._memory.pause()
        parent = self._open[-1] if self._open else -1
        entry = Entry(kind, name, self.layer, self.what, self.phase, parent)
        entry.host_start = now
        self._open.append(len(self.entries))
        self.entries.append(entry)
        if sample is not None:
            self._sample(now, sample)
        if self._ranges is not None:
            self._ranges.push(self.where(entry) or name)
        entry._begin = self._mark(device or self.device)
        if self._memory is not None:
            self._memory.resume()
        self._lost += time.perf_counter() - entered
        return entry

    def end(self, entry: Entry, device: Device | None = None) -> None:
        """Close an entry, and first what is open inside it (a region in a generator that waits).

        Nothing is left to do for one that was closed so, or by the end of the profile.
        """
        if not any(self.entries[number] is entry for number in reversed(self._open)):
            return
        while self.innermost is not entry:
            self.end(self.innermost)
        entered = time.perf_counter()
        self._open.pop()
        entry._end = self._mark(device or self.device)
        now = entered - self._begun - self._lost
        entry.host_seconds = now - entry.host_start
        if self._ranges is not None:
            self._ranges.pop()
        if self._memory is not None:
            self._sample(now, self._memory.pause(), entry)
            self._memory.resume()
        self._lost += time.perf_counter() - entered

    def _sample(self, now: float, sample: tuple[int, int], entry: Entry | None = None) -> None:
        open_entry = self.entries[self._open[-1]] if self._open else None
        self.timeline.add(now, sample, self.where(entry or open_entry))

    @staticmethod
    def where(entry: Entry | None) -> str:
        """ "layer: kernel", for people."""
        if entry is None or entry.kind == "region":
            return "" if entry is None or entry.parent < 0 else entry.name
        if entry.kind == "layer" or not entry.layer:
            return entry.layer or entry.name
        return f"{entry.layer}: {entry.name}"

    # ---- what the hooks report -------------------------------------------------------------------

    def kernel(self, call, args: tuple, run: Callable) -> None:
        """A primitive runs; the listener of the kernel table."""
        made, phase = call.primitive, self.phase
        if phase == "forward" and made.family in UPDATING:
            self.phase = "update"
        device = call.device
        entry = self.begin("kernel", made.name, device)
        try:
            run(call, args)
        finally:
            self.end(entry, device)
            self.phase = phase
            entered = time.perf_counter()
            if self._memory is not None:
                self._memory.pause()
            self._describe(entry, made, device, args)
            if self._memory is not None:
                self._memory.resume()
            self._lost += time.perf_counter() - entered

    @staticmethod
    def _describe(entry: Entry, made, device: Device, args: tuple) -> None:
        cost = made._cost(*args)
        entry.flops, entry.read, entry.written = cost.flops, cost.read, cost.written
        arrays = [value for value in args if hasattr(value, "shape")]
        entry.shapes = " ".join("x".join(map(str, a.shape)) or "1" for a in arrays)
        floats = [a.dtype for a in arrays if a.dtype.kind not in "iub"] or [
            a.dtype for a in arrays
        ]
        entry.dtype = np.dtype(floats[0]).name if floats else ""
        entry.device = str(device)

    def enter(self, kind: str, name: str, layer: str, what: str, phase: str) -> tuple:
        """Go into a layer or an operation; gives what `leave` needs."""
        before = (self.layer, self.what, self.phase)
        self.layer, self.what, self.phase = layer, what, phase
        return self.begin(kind, name), before

    def leave(self, before: tuple) -> None:
        """Come out of it again."""
        entry, (self.layer, self.what, self.phase) = before
        self.end(entry)

    # ---- which arrays kernels made (for `explain`) -----------------------------------------------

    def remember(self, args: tuple) -> None:
        """These arrays belong to a kernel: an operation that returns one has made no array."""
        for value in args:
            owner = _owner(value)
            if isinstance(owner, np.ndarray):
                self._known[id(owner)] = weakref.ref(owner)

    def knows(self, array) -> bool:
        """Whether some kernel had this array or a part of it."""
        owner = _owner(array)
        found = self._known.get(id(owner))
        return found is not None and found() is owner

    # ---- the end ---------------------------------------------------------------------------------

    def finish(self) -> float:
        """Close what is open, wait for the GPUs, work out all times; the host's seconds."""
        while self._open:
            self.end(self.innermost)
        host = self.entries[ROOT].host_seconds
        if self._memory is not None:
            self._memory.close()
        for events, origin, _ in self._drivers.values():
            last = events.record() if origin is not None else None
            if last is not None:
                events.synchronize(last)
        for entry in self.entries:
            entry.start = self._time(entry._begin, entry.host_start)
            end = self._time(entry._end, entry.host_start + entry.host_seconds)
            entry.seconds = max(end - entry.start, 0.0)
            entry.own = entry.seconds
            entry._begin = entry._end = None
        for entry in self.entries:
            if entry.parent >= 0:
                around = self.entries[entry.parent]
                around.own = max(around.own - entry.seconds, 0.0)
        return host

    def _time(self, mark, host: float) -> float:
        if mark is None:
            return host
        events, origin, offset = self._drivers[mark[0]]
        return offset + events.elapsed(origin, mark[1])


def _owner(array):
    """The array that owns the memory of a view."""
    base = getattr(array, "base", None)
    return array if base is None else base
