"""`Report`: what a profile found, as tables, a trace, a memory timeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpunn.bench.ceilings import Ceilings
from gpunn.profiling import tables, trace
from gpunn.profiling.memory import MemoryTimeline
from gpunn.profiling.recording import ROOT, Entry, Recording


class Report:
    """What was measured. It is filled when the ``with`` block of `profile` ends.

    Attributes
    ----------
    entries : kernels, layers, operations and regions in the order in which they began (`Entry`);
        the first is the whole profile
    seconds : from the beginning to the end of the block; on a GPU until its last kernel was done
    host_seconds : until the host came to the end of the block
    overhead : seconds that the profile took for itself, which no time above contains
    memory : the `MemoryTimeline`, None unless it was asked for
    steps : how many steps the block held; tables show times of one
    device : where most kernels ran
    ceilings : what the tables hold the rates against, or None; may be set at any time to
        `gpunn.bench.ceilings.measure_ceilings(device)`
    """

    def __init__(self, steps: int = 1, ceilings: Ceilings | None = None):
        self.steps, self.ceilings = steps, ceilings
        self.entries: list[Entry] = []
        self.seconds = self.host_seconds = self.overhead = 0.0
        self.memory: MemoryTimeline | None = None
        self.device = ""

    def _fill(self, recording: Recording) -> None:
        self.host_seconds = recording.finish()
        self.entries = recording.entries
        self.seconds = self.entries[ROOT].seconds
        self.overhead = recording.lost
        self.memory = recording.timeline
        self.device = str(recording.device)

    def __repr__(self) -> str:
        count = len(self.kernels)
        return f"<Report: {count} kernels in {self.seconds * 1e3:.3g} ms on {self.device}>"

    def __str__(self) -> str:
        return self.table()

    @property
    def kernels(self) -> list[Entry]:
        """The runs of primitives, in order."""
        return [entry for entry in self.entries if entry.kind == "kernel"]

    @property
    def kernel_seconds(self) -> float:
        """The sum over all primitives."""
        return sum(entry.own for entry in self.kernels)

    def table(self, by: str = "kernel", depth: int | None = None) -> str:
        """The report as text.

        Parameters
        ----------
        by : "kernel" sums up the runs of each primitive; "layer" those of each layer, forward and
            backward, with what Python and plain array arithmetic took between them; "call" lists
            every run
        depth : for "layer": sum up layers below that many names, so that 1 makes one row of
            ``"blocks.0.norm"`` and ``"blocks.1.norm"``
        """
        if by not in tables.BY:
            raise ValueError(f"table: by is {by!r}; expected one of {', '.join(tables.BY)}")
        if not self.entries:
            return "nothing was profiled: the block of `profile` has not ended"
        if by == "layer":
            return tables.by_layer(self, depth)
        return tables.by_kernel(self) if by == "kernel" else tables.by_call(self)

    def save_trace(self, path: str | Path) -> None:
        """Write a trace that https://ui.perfetto.dev and chrome://tracing show (JSON)."""
        trace.save(self, path)

    def plot_memory(self, path: str | Path) -> None:
        """Draw the memory timeline. ValueError if none was kept; needs matplotlib."""
        if self.memory is None:
            raise ValueError("plot_memory: no timeline was kept; write profile(memory=True)")
        self.memory.plot(path, self.phases())

    def phases(self) -> list[tuple[float, float, str]]:
        """(start, stop, phase) of the stretches in which something ran, in order."""
        found: list[tuple[float, float, str]] = []
        for entry in self.entries:
            if entry.kind not in ("kernel", "operation"):
                continue
            stop = entry.start + entry.seconds
            if found and found[-1][2] == entry.phase:
                found[-1] = (found[-1][0], max(stop, found[-1][1]), entry.phase)
            else:
                found.append((entry.start, stop, entry.phase))
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dictionaries and lists."""
        names = ("kind", "name", "layer", "what", "phase", "parent", "start", "seconds", "own",
                 "host_start", "host_seconds", "shapes", "dtype", "device", "flops", "read",
                 "written")  # fmt: skip
        found: dict[str, Any] = {
            "device": self.device, "steps": self.steps, "seconds": self.seconds,
            "host_seconds": self.host_seconds, "overhead": self.overhead,
            "entries": [{name: getattr(entry, name) for name in names} for entry in self.entries],
        }  # fmt: skip
        if self.memory is not None:
            memory = self.memory
            found["memory"] = {
                "what": memory.what, "times": memory.times, "bytes": memory.bytes,
                "peaks": memory.peaks,
            }  # fmt: skip
        return found
