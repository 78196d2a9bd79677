"""The memory timeline of a profile: bytes in use at the borders of kernels and layers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from gpunn.profiling.clock import Events

MIB = float(1 << 20)


class HostMemory:
    """Bytes that arrays and Python's objects have come to hold on the host since the start.

    By `tracemalloc`, to which NumPy reports its arrays. What was there before is not counted, nor
    is what the profile itself keeps.
    """

    what = "arrays and Python objects made since the profile began"

    def __init__(self):
        self._ours = not tracemalloc.is_tracing()
        if self._ours:
            tracemalloc.start()
        self._own = tracemalloc.get_traced_memory()[0]  # what is not to be counted
        self._before = 0
        tracemalloc.reset_peak()

    def pause(self) -> tuple[int, int]:
        """(bytes now, most bytes since `resume`); from here on the profile works for itself."""
        self._before, peak = tracemalloc.get_traced_memory()
        return self._before - self._own, peak - self._own

    def resume(self) -> None:
        """The end of what the profile does for itself."""
        self._own += tracemalloc.get_traced_memory()[0] - self._before
        tracemalloc.reset_peak()

    def close(self) -> None:
        """Stop tracing, unless somebody else had started it."""
        if self._ours:
            tracemalloc.stop()


class PoolMemory:
    """Bytes that arrays hold in the pool of a GPU, everything counted."""

    what = "arrays in the pool of the GPU"

    def __init__(self, events: Events):
        self._events = events

    def pause(self) -> tuple[int, int]:
        """(bytes now, the same): the pool keeps no peak of its own."""
        used = self._events.used_bytes()
        return used, used

    def resume(self) -> None:
        """The profile allocates nothing on a GPU."""

    def close(self) -> None:
        """Nothing was switched on."""


class MemoryTimeline:
    """What was in use when.

    Attributes
    ----------
    what : which memory was counted
    times : seconds since the profile began, rising
    bytes : in use at that time
    peaks : the most in use between the time before and that time
    layers : "layer: kernel" or "layer" that was at work until then
    """

    def __init__(self, what: str):
        self.what = what
        self.times: list[float] = []
        self.bytes: list[int] = []
        self.peaks: list[int] = []
        self.layers: list[str] = []

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return f"<MemoryTimeline: {len(self)} samples, peak {self.peak / MIB:,.2f} MiB>"

    def add(self, time: float, sample: tuple[int, int], where: str) -> None:
        """One sample."""
        self.times.append(time)
        self.bytes.append(sample[0])
        self.peaks.append(sample[1])
        self.layers.append(where)

    @property
    def peak(self) -> int:
        """The most bytes in use."""
        return max(self.peaks, default=0)

    @property
    def peak_at(self) -> tuple[float, str]:
        """When that was, and which layer and kernel were at work."""
        if not self.peaks:
            return 0.0, ""
        place = self.peaks.index(self.peak)
        return self.times[place], self.layers[place]

    def text(self) -> str:
        """The peak and what was at work then, in a sentence."""
        time, where = self.peak_at
        at = f" in {where}" if where else ""
        size, when = f"{self.peak / MIB:,.2f} MiB", f"after {time * 1e3:.2f} ms"
        return f"peak memory {size}, {when}{at} ({self.what})"

    def plot(self, path: str | Path, phases: list[tuple[float, float, str]]) -> None:
        """Draw the timeline over stripes that show the phases: (start, stop, name)."""
        from gpunn.train.plots import new_figure, save_figure

        figure = new_figure(9.0, 4.0)
        axes = figure.subplots()
        for start, stop, phase in phases:
            axes.axvspan(start * 1e3, stop * 1e3, color=_STRIPES[phase], lw=0, label=phase)
        times = [t * 1e3 for t in self.times]
        axes.fill_between(
            times, [p / MIB for p in self.peaks], step="pre", color="#4477aa", alpha=0.25, lw=0,
            label="peak between samples",
        )  # fmt: skip
        axes.step(times, [b / MIB for b in self.bytes], where="post", color="#4477aa", lw=1.4,
                  label="in use")  # fmt: skip
        time, where = self.peak_at
        axes.axhline(self.peak / MIB, color="#666666", lw=0.8, ls=":")
        axes.set(xlabel="time, ms", ylabel="MiB", xlim=(0, max(times, default=1.0) or 1.0))
        axes.set_ylim(min(0, *self.bytes) / MIB, self.peak / MIB * 1.18 or 1.0)
        side = "right" if times and time * 1e3 > times[-1] / 2 else "left"
        axes.annotate(
            f"{self.peak / MIB:,.1f} MiB" + (f" in {where}" if where else ""),
            (time * 1e3, self.peak / MIB), (0, 4), textcoords="offset points", ha=side,
            fontsize=9, color="#333333",
        )  # fmt: skip
        axes.set_title(f"Memory: {self.what}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        single = dict(zip(labels, handles, strict=True))  # each phase once
        figure.legend(
            single.values(), single.keys(), loc="outside lower center", ncols=len(single),
            frameon=False, fontsize=9,
        )  # fmt: skip
        save_figure(figure, Path(path))


_STRIPES = {"forward": "#eef3e6", "backward": "#f8ecec", "update": "#f3f0fa"}
