"""What a launch costs the host: ours, beside other libraries, and where a whole call spends it.

Small networks are bound by the host: a kernel of two microseconds cannot be launched by code that
takes ten. Measured is the time that Python spends on calls that only queue work, so the GPU is left
out, but for a wait before each sample that keeps the queue from filling up.

On a machine without a GPU our own path is measured up to the driver's call, which is replaced by
one that does nothing, on stand-ins for arrays on a GPU; the others have nothing to show there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpunn.kernels
from gpunn.bench import launch_peers
from gpunn.bench.launch_host import StandIn, host_launcher
from gpunn.bench.launch_peers import ARGUMENTS, Item, kernel_arguments
from gpunn.bench.measure import NotTimed
from gpunn.bench.tables import significant
from gpunn.bench.timing import Timing, one_line, rotated
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.device.launch import Launcher
from gpunn.primitives.registry import intercepting
from gpunn.text import table

SAMPLES = 25
CALLS = 200  # in a row: well below the thousand launches that a stream queues before it waits
WITHOUT_GPU = (
    "There is no GPU here: measured is the host's work up to the driver's call, which is replaced "
    "by one that does nothing; other libraries need a GPU to be measured."
)


def measure(
    device: Device, samples: int = SAMPLES, calls: int = CALLS
) -> tuple[list[dict], list[NotTimed]]:
    """Time launches and whole calls. Returns rows for result files, and what has no time and why.

    A row of ``kind`` "launch" has the ``contestant`` and the number of ``arguments`` (0 where a
    library chooses them itself); one of kind "call" the ``contestant``, a primitive, and the
    ``part`` "checks", "launch code", "launch" or "whole". All have the ``samples`` in seconds and
    say whether the driver was called (``driver``).
    """
    skipped: list[NotTimed] = []
    rows = _launch_rows(device, samples, calls, skipped)
    rows += _call_rows(device, samples, calls, skipped)
    return rows, skipped


# ---- launches ------------------------------------------------------------------------------------


def _launch_rows(device: Device, samples: int, calls: int, skipped: list[NotTimed]) -> list[dict]:
    rows = []
    on_gpu = device.type == "cuda"
    for count in ARGUMENTS:
        if not on_gpu:
            launcher = host_launcher(launch_peers.SOURCE)
            args = kernel_arguments(count, StandIn.some)
            ours = ("gpunn", launch_peers.ours(launcher, count, args), 1)
            found = host_times([ours], samples, calls)
        else:
            with launch_peers.contestants(device, count, skipped) as items:
                found = host_times(items, samples, calls, lambda: arrays.synchronize(device))
        for name, timing in found.items():
            arguments = 0 if name in launch_peers.CHOOSE_THEMSELVES else count
            rows.append(_row("launch", name, timing, on_gpu, arguments=arguments))
    return rows


def host_times(
    items: Sequence[Item],
    samples: int,
    calls: int,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Seconds of the host for a launch, the contestants in turns; `wait` empties the queue."""
    clock = time.perf_counter
    times: dict[str, list[float]] = {name: [] for name, _, _ in items}
    for _, call, _ in items:
        for _ in range(3):  # compiles, allocates, loads
            call()
    for number in range(samples):
        for name, call, launches in rotated(items, number):
            repeats = range(max(1, calls // launches))
            wait()
            start = clock()
            for _ in repeats:
                call()
            times[name].append((clock() - start) / (len(repeats) * launches))
    wait()
    return {name: Timing(tuple(values), calls) for name, values in times.items()}


# ---- whole calls ---------------------------------------------------------------------------------


def whole_calls(place: Callable[[np.ndarray], Any]) -> dict[str, Callable[[], object]]:
    """Calls of primitives on hardly any data; `place` moves an array to the device."""
    kernels = gpunn.kernels
    one, other = place(np.ones(1, np.float32)), place(np.ones(1, np.float32))
    a, b, c = (place(np.full((8, 8), 0.5, np.float32)) for _ in range(3))
    update, options = kernels.table()["adam_update"].benchmark_inputs((64,))
    update = [place(value) if isinstance(value, np.ndarray) else value for value in update]
    return {
        "activation_forward": lambda: kernels.activation_forward(one, activation="relu", out=other),
        "softmax_forward": lambda: kernels.softmax_forward(a, out=c),
        "matmul": lambda: kernels.matmul(a, b, out=c),
        "adam_update": lambda: kernels.adam_update(*update, **options),
    }


def _call_rows(device: Device, samples: int, calls: int, skipped: list[NotTimed]) -> list[dict]:
    on_gpu = device.type == "cuda"
    rows = []
    for name, call in whole_calls(lambda array: arrays.to_device(array, device)).items():
        try:
            timings = _parts(device, call, samples, calls)
        except Exception as error:
            skipped.append(NotTimed(f"a call of {name}", "gpunn", one_line(error)))
            continue
        rows += [_row("call", name, timing, on_gpu, part=part) for part, timing in timings.items()]
    return rows


def _parts(device: Device, call: Callable[[], object], samples: int, calls: int) -> dict:
    """The time of a call's checks, of its launch code, of the launches themselves, and all of it.

    The launch code is run on the call's own checked arguments, with a launcher that does nothing
    and with the real one; the difference, sample by sample, are the launches.
    """
    recorded: list[tuple] = []
    with intercepting(lambda made, args: recorded.append((made.primitive, args))):
        call()
    if device.type == "cuda":
        from gpunn.device.cuda_launch import cuda_launcher

        work = [(made, cuda_launcher(made.cuda_source, device), args) for made, args in recorded]
    else:
        work = [
            (made, host_launcher(made.cuda_source), tuple(map(StandIn.of, args)))
            for made, args in recorded
        ]
    silent = [(made, Silent(launcher), args) for made, launcher, args in work]

    def checks() -> None:
        with intercepting(_nothing):
            for _ in range(10):
                call()

    def run(what) -> None:
        for made, launcher, args in what:
            made.run_cuda(launcher, args)

    items: list[Item] = [
        ("checks", checks, 10),
        ("launch code", lambda: run(silent), 1),
        ("both", lambda: run(work), 1),
    ]
    if device.type == "cuda":
        items.append(("whole", call, 1))
    found = host_times(items, samples, calls, lambda: arrays.synchronize(device))
    both, code = (np.array(found[name].samples) for name in ("both", "launch code"))
    result = {
        "checks": found["checks"],
        "launch code": found["launch code"],
        "launch": Timing(tuple(np.maximum(both - code, 0).tolist()), calls),
    }
    whole = np.array(found["checks"].samples) + both
    result["whole"] = found.get("whole") or Timing(tuple(whole.tolist()), calls)
    return result


def _nothing(call, args) -> None:
    """Runs nothing."""


class Silent(Launcher):
    """Looks like another launcher to the launch code and launches nothing."""

    def __init__(self, other: Any):
        self._other, self.source, self.arch = other, other.source, other.arch
        self.multiprocessors, self.shared_limit = other.multiprocessors, other.shared_limit
        self.empty = other.empty

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        return

    def sibling(self, source: str) -> Silent:
        return Silent(self._other.sibling(source))


# ---- rows and tables -----------------------------------------------------------------------------


def _row(kind: str, contestant: str, timing: Timing, driver: bool, **more) -> dict[str, Any]:
    low, high = timing.quartiles
    return {
        "kind": kind, "contestant": contestant, **more, "driver": driver, "median": timing.median,
        "quartiles": [low, high], "samples": list(timing.samples), "inner": timing.inner,
    }  # fmt: skip


def cell(row: dict[str, Any]) -> str:
    """Median and spread: ``2.61 ± 4%``, in microseconds."""
    timing = Timing(tuple(row["samples"]), row["inner"])
    return f"{significant(timing.median * 1e6)} ± {100 * timing.spread:.0f}%"


def launch_cells(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of the table of launches: a line a contestant."""
    mine = [row for row in rows if row["kind"] == "launch"]
    lines = []
    for name in dict.fromkeys(row["contestant"] for row in mine):
        found = {row["arguments"]: cell(row) for row in mine if row["contestant"] == name}
        lines.append([name, *(found.get(count, "") for count in ARGUMENTS), found.get(0, "")])
    headers = ["a launch, us", *(f"{count} arguments" for count in ARGUMENTS), "its own op"]
    headers[1] = "1 argument"
    if not any(line[-1] for line in lines):
        headers, lines = headers[:-1], [line[:-1] for line in lines]
    return headers, lines


PARTS = ("checks", "launch code", "launch", "whole")


def call_cells(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of the table of whole calls: a line a primitive."""
    mine = [row for row in rows if row["kind"] == "call"]
    lines = []
    for name in dict.fromkeys(row["contestant"] for row in mine):
        found = {row["part"]: cell(row) for row in mine if row["contestant"] == name}
        lines.append([name, *(found.get(part, "") for part in PARTS)])
    return ["a call, us", *PARTS], lines


def text(rows: Sequence[dict]) -> str:
    """Both tables."""
    tables = []
    for headers, lines in (launch_cells(rows), call_cells(rows)):
        if lines:
            tables.append(table(headers, lines, right=range(1, len(headers))))
    note = "median and spread (the distance of the quartiles) of the host's time for each launch"
    return "\n\n".join([*tables, note])
