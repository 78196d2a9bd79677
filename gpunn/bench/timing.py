"""Clocks and statistics: median seconds a call, contestants interleaved, on a CPU or a GPU.

A *contestant* is something that can be called again and again. All contestants of one case are
timed in turns, so that a change of clock speed or a busy neighbour meets each of them alike: one
sample of the first, one of the second, …, and the order rotates from round to round. A sample is
the mean of enough calls in a row to be long against the clock's resolution.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpunn.device.device import Device
from gpunn.device.probe import import_cupy

SAMPLES = 20
# A sample lasts at least this long: 1000 times what perf_counter and CUDA's events resolve.
SAMPLE_SECONDS = {"cpu": 2e-3, "cuda": 1e-3}
MAX_INNER = 10_000


@dataclass(frozen=True)
class Timing:
    """Seconds a call: one number a sample, each the mean of `inner` calls in a row."""

    samples: tuple[float, ...]
    inner: int = 1

    @property
    def median(self) -> float:
        """The middle sample."""
        return float(np.median(self.samples))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile: half of the samples lie between them."""
        low, high = np.percentile(self.samples, (25, 75))
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """The distance of the quartiles relative to the median: 0.02 is a quiet machine."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0


@dataclass
class Contestant:
    """Something to time. `run(i)` makes `calls` calls, the i-th on the i-th set of inputs."""

    name: str
    run: Callable[[int], object]
    calls: int = 1
    library: str = "gpunn"
    keep: object = field(default=None, repr=False)  # what must live as long as it runs


class CpuClock:
    """Wall-clock time by `time.perf_counter`."""

    kind = "cpu"

    def time(self, run: Callable[[int], object], first: int, inner: int) -> float:
        """Seconds for `inner` runs in a row, numbered from `first`."""
        start = time.perf_counter()
        for i in range(first, first + inner):
            run(i)
        return time.perf_counter() - start

    def synchronize(self) -> None:
        """Nothing is queued on a CPU."""


class GpuClock:
    """Time between two CUDA events around the runs, on a stream of its own.

    Before the first event some memory is filled, which keeps the GPU busy while Python queues the
    first launches: what is measured is the GPU's time wherever a call lasts longer on the GPU than
    its launch does in Python, and the launches' where it does not.
    """

    kind = "cuda"
    HEAD_START_BYTES = 256 << 20

    def __init__(self, device: Device):
        cupy = import_cupy()
        self.device, self._elapsed = device, cupy.cuda.get_elapsed_time
        with device.activate():
            # The legacy stream cannot be captured into a graph.
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self._start, self._stop = cupy.cuda.Event(), cupy.cuda.Event()
            self._filler = cupy.empty(self.HEAD_START_BYTES, np.uint8)

    def time(self, run: Callable[[int], object], first: int, inner: int) -> float:
        """Seconds for `inner` runs in a row, numbered from `first`."""
        self._filler.data.memset_async(0, self._filler.nbytes, self.stream)
        self._start.record(self.stream)
        for i in range(first, first + inner):
            run(i)
        self._stop.record(self.stream)
        self._stop.synchronize()
        return self._elapsed(self._start, self._stop) * 1e-3

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.stream.synchronize()


@contextlib.contextmanager
def clock_for(device: Device) -> Iterator[CpuClock | GpuClock]:
    """The clock of a device; on a GPU CuPy and, if it is loaded, PyTorch launch on its stream."""
    if device.type == "cpu":
        yield CpuClock()
        return
    import_cupy().cuda.runtime.deviceSynchronize()
    clock = GpuClock(device)
    with device.activate(), clock.stream, _torch_on(clock.stream):
        yield clock
        clock.synchronize()


@contextlib.contextmanager
def _torch_on(stream) -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        yield
        return
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
        yield


def interleave(
    contestants: Sequence[Contestant],
    clock: CpuClock | GpuClock,
    samples: int = SAMPLES,
    sample_seconds: float | None = None,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time the contestants in turns.

    Returns the timings by name, and for contestants that raised an error its text instead.
    """
    target = SAMPLE_SECONDS[clock.kind] if sample_seconds is None else sample_seconds
    failed: dict[str, str] = {}
    inner: dict[str, int] = {}
    for contestant in contestants:
        try:
            inner[contestant.name] = calibrate(contestant, clock, target)
        except Exception as error:
            failed[contestant.name] = one_line(error)
    running = [c for c in contestants if c.name in inner]
    times: dict[str, list[float]] = {c.name: [] for c in running}
    for number in range(samples):
        for contestant in rotated(running, number):
            repeats = inner[contestant.name]
            try:
                total = clock.time(contestant.run, number * repeats, repeats)
                times[contestant.name].append(total / (repeats * contestant.calls))
            except Exception as error:
                failed[contestant.name] = one_line(error)
        running = [c for c in running if c.name not in failed]
    return {
        c.name: Timing(tuple(times[c.name]), inner[c.name] * c.calls) for c in running
    }, failed


def calibrate(contestant: Contestant, clock: CpuClock | GpuClock, target: float) -> int:
    """Warm up, and how many runs in a row fill a sample of `target` seconds."""
    first = clock.time(contestant.run, 0, 1)  # compiles, allocates, loads libraries
    if first > 100 * target:
        second = clock.time(contestant.run, 1, 1)
    else:
        second = clock.time(contestant.run, 1, 3) / 3
    if second > target:
        return 1
    inner = repeats_for(second, target)
    measured = clock.time(contestant.run, 0, inner) / inner
    return repeats_for(measured, target)


def repeats_for(seconds: float, target: float) -> int:
    """Runs of `seconds` each that last `target` together; at least 1."""
    return max(1, min(MAX_INNER, math.ceil(target / max(seconds, 1e-9))))


def rotated(items: Sequence, number: int) -> list:
    """The items, starting from the number-th and around."""
    if not items:
        return []
    start = number % len(items)
    return [*items[start:], *items[:start]]


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ---- graphs --------------------------------------------------------------------------------------


def captured(contestant: Contestant, clock: GpuClock, calls: int) -> Contestant:
    """The contestant as a graph of `calls` of its calls, replayed by each run.

    The launches of a replay cost no Python, so a short kernel shows its own time. Raises what the
    capture raised: cuBLAS and anything that waits for the GPU or copies to the host cannot be
    captured by CuPy.
    """
    if contestant.library == "torch":
        return _captured_by_torch(contestant, clock, calls)
    cupy = import_cupy()
    contestant.run(0)  # what it keeps for all later calls must outlive the graph and its pool
    # Scratch memory that calls free while they are captured is used by every replay: it must not
    # be handed to anyone else, so the graph has a pool of its own.
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        contestant.run(0)
        clock.synchronize()
        clock.stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
        try:
            kept = [contestant.run(i) for i in range(calls)]
        except BaseException:
            with contextlib.suppress(Exception):
                clock.stream.end_capture()
            raise
        graph = clock.stream.end_capture()
    return Contestant(
        contestant.name,
        lambda i: graph.launch(clock.stream),
        calls,
        contestant.library,
        (graph, pool, kept, contestant),
    )


def _captured_by_torch(contestant: Contestant, clock: GpuClock, calls: int) -> Contestant:
    import torch

    contestant.run(0)
    clock.synchronize()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.ExternalStream(clock.stream.ptr)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
        kept = [contestant.run(i) for i in range(calls)]
    return Contestant(
        contestant.name, lambda i: graph.replay(), calls, "torch", (graph, kept, contestant)
    )
