"""The calls of one training step: noted while it runs, then each kind timed alone.

Behind the step each kind of call is timed on the arrays of the first of them: many in a row inside
a captured graph, so that no launch shows; long ones one by one behind something that keeps the GPU
busy. *Warm*, the same arrays again and again, and *cold*, with the L2 cache read full of something
else before each. What calls write is written again and again (a parameter moves on, a sum grows):
no kernel's time depends on such values, but a chip at its power limit is faster on numbers that are
not any more; so what moves parameters, which others read, is timed last.
"""

from __future__ import annotations

import functools
import gc
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpunn.bench import training
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.timing import (
    Contestant,
    Timing,
    captured,
    clock_for,
    interleave,
    one_line,
)
from gpunn.bench.training_jobs import Job
from gpunn.device.device import Device

if TYPE_CHECKING:
    from gpunn.profiling.chips import Chip
    from gpunn.profiling.explanation import Row

WARM = 3  # steps before the one that is noted: kernels are compiled, states made
CAPTURED = 6  # calls of a compiled step until it is replayed
SAMPLES, CALLS, COLD_CALLS = 5, 20, 10
# A call of this length hides its own launch; and a sample of short ones lasts as long.
LONG = 1e-3
NO_TIME = "no time was left"


# ---- the calls of a step -------------------------------------------------------------------------


@dataclass
class Noted:
    """Calls of one kind: what `explain` says of them, and the first with its arguments."""

    row: Row
    call: Any
    args: tuple

    def run(self, i: int = 0) -> None:
        """Run it once more."""
        self.call.primitive.run(self.call, self.args)

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        held = {id(value): value.nbytes for value in self.args if hasattr(value, "nbytes")}
        return sum(held.values())


def noted_calls(step: Callable[[], Any], chip: Chip) -> list[Noted]:
    """Run a step and note its calls, in the order of their kinds."""
    from gpunn.profiling.explainer import kind_of, note, rows_of

    first: dict[tuple, tuple[Any, tuple]] = {}
    entries = note(
        step, None, chip, lambda entry, call, args: first.setdefault(kind_of(entry), (call, args))
    )
    return [Noted(row, *first[kind]) for kind, row in rows_of(entries, chip).items()]


def chip_for(device: Device, ceilings: dict[str, Any] | None) -> Chip:
    """What launch code and floors ask of: the GPU as measured; an H200 where there is none."""
    from gpunn.device.launch import device_properties
    from gpunn.profiling.chips import CHIPS, as_measured, chip_of

    chip = CHIPS["h200"]
    if device.type == "cuda":
        properties = device_properties(device.index)
        chip = replace(
            chip_of(device) or chip, arch=properties["arch"],
            multiprocessors=properties["multiProcessorCount"],
            shared_limit=properties["sharedMemPerBlockOptin"],
        )  # fmt: skip
    return as_measured(chip, Ceilings.from_json(ceilings)) if ceilings else chip


def described(row: Row) -> dict[str, Any]:
    """A row of `explain` as a JSON object of the results."""
    return {
        "primitive": row.primitive, "layer": row.layer, "what": row.what, "phase": row.phase,
        "shapes": row.shapes, "dtype": row.dtype, "count": row.count, "flops": row.flops,
        "bytes": row.bytes, "floor": row.floor, "bound": row.limit,
        "kernels": [vars(launch) for launch in row.launches],
    }  # fmt: skip


def lost(call: dict[str, Any]) -> float:
    """Seconds of a step that its calls of this kind take beyond their floor; 0 if not timed."""
    seconds = call.get("seconds")
    return 0.0 if seconds is None else call["count"] * max(0.0, seconds - call["floor"])


def by_loss(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most lost first; behind them what was not timed, the largest floor first."""
    return sorted(calls, key=lambda one: (-lost(one), -one["count"] * one["floor"]))


# ---- times ---------------------------------------------------------------------------------------


class CallTimer:
    """Times calls on one device with its clock."""

    def __init__(self, device: Device, clock: Any, samples: int = SAMPLES):
        self.device, self.clock, self.samples = device, clock, samples
        self._flush: Callable[[int], Any] | None = None
        self._cache = 0  # bytes of the L2 cache

    def time(self, noted: Noted) -> dict[str, Any]:
        """``seconds`` warm and perhaps ``cold_seconds`` of a call, and the ``mode``.

        With cold ones ``cold_spread``: they are a difference of two times, whose noise is that of
        reading the cache full. It may be more than a short call takes.
        """
        self.clock.time(noted.run, 0, 1)
        single = self.clock.time(noted.run, 0, 3) / 3
        one = Contestant("warm", noted.run)
        if self.device.type != "cuda":
            return {"mode": self.device.type, **self._medians([one])}
        if single >= LONG:  # such a one is larger than any cache
            return {"mode": "stream", **self._medians([one])}
        try:
            calls = max(1, min(CALLS, math.ceil(LONG / max(single, 1e-7))))
            return {"mode": "graph", **self._medians(self._graphs(noted, one, calls))}
        except Exception as error:  # what waits for the GPU cannot be captured
            note = f"not captured into a graph: {one_line(error)}"
            return {"mode": "stream", "note": note, **self._medians([one])}

    def _graphs(self, noted: Noted, one: Contestant, calls: int) -> list[Contestant]:
        found = [captured(one, self.clock, calls)]
        flush = self._flushing()
        if noted.nbytes >= 2 * self._cache:
            return found  # each call drives its own arrays out

        def behind(i: int) -> None:
            flush(i)
            noted.run(i)

        for name, run in (("cold", behind), ("flush", flush)):
            found.append(captured(Contestant(name, run), self.clock, COLD_CALLS))
        return found

    def _flushing(self) -> Callable[[int], Any]:
        """A run that *reads* twice the cache: what had been written to it would be in a call's
        way."""
        if self._flush is None:
            import gpunn.kernels
            from gpunn.device.launch import device_properties
            from gpunn.device.probe import import_cupy

            cupy = import_cupy()
            self._cache = int(device_properties(self.device.index)["l2CacheSize"])
            filler = cupy.zeros(2 * self._cache // 4, cupy.float32)
            total = cupy.empty((), cupy.float32)
            reduce = gpunn.kernels.table()["reduce_sum"]
            self._flush = lambda i: reduce(filler, out=total)
        return self._flush

    def _medians(self, contestants: list[Contestant]) -> dict[str, float]:
        timings, failed = interleave(contestants, self.clock, self.samples, sample_seconds=LONG)
        if failed:
            raise RuntimeError("; ".join(failed.values()))
        found = {"seconds": timings["warm"].median}
        if "cold" in timings:
            # Of each round, so that a clock that moves on meets both alike.
            pairs = zip(timings["cold"].samples, timings["flush"].samples, strict=True)
            alone = Timing(tuple(behind - flush for behind, flush in pairs))
            low, high = alone.quartiles
            found |= {"cold_seconds": max(0.0, alone.median), "cold_spread": high - low}
        return found


def step_times(job: Job, device: Device, clock: Any, samples: int) -> dict[str, float]:
    """``step_seconds`` of the compiled step, and ``graph_seconds`` of its captured graph alone."""
    step = training.our_step(job, device, compiled=True)
    training.losses(step, CAPTURED)
    contestants = [Contestant("step", step)]
    compiled = inspect.getclosurevars(step).nonlocals["train"]  # the CompiledStep behind it
    variant = list(compiled._variants.values())[-1]
    if variant.state == "captured":
        contestants.append(Contestant("graph", lambda i: variant.graph.replay()))
    timings, failed = interleave(contestants, clock, samples, sample_seconds=LONG)
    if failed:
        raise RuntimeError("; ".join(failed.values()))
    return {f"{name}_seconds": timing.median for name, timing in timings.items()}


def measure(
    job: Job, device: Device, ceilings: dict[str, Any] | None = None, seconds: float = math.inf,
    samples: int = SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """A row of the results: the step of a job, its calls, their times and floors.

    After `seconds` of timing calls no more are timed; those that are left say so.
    """
    chip = chip_for(device, ceilings)
    # The emulator runs on the host.
    with clock_for(device if device.type == "cuda" else Device("cpu")) as clock:
        try:
            times: dict[str, Any] = step_times(job, device, clock, samples)
        except Exception as error:
            times = {"reason": f"the compiled step: {one_line(error)}"}
        gc.collect()  # its memory is wanted
        step = training.our_step(job, device)
        training.losses(step, WARM)
        noted = noted_calls(functools.partial(step, WARM), chip)
        del step  # and with it the arrays that no call is timed on
        timer, calls = CallTimer(device, clock, samples), []
        end = time.monotonic() + seconds  # drawing the weights of a large network takes long
        for one in sorted(noted, key=_turn):
            call = described(one.row)
            if time.monotonic() >= end:
                call["reason"] = NO_TIME
            else:
                try:
                    call |= timer.time(one)
                except Exception as error:
                    call["reason"] = one_line(error)
            calls.append(call)
    return {
        "job": job.name, "batch": job.batch, "device": str(device), "precision": job.precision,
        "floors_by": "what was measured" if ceilings else f"the {chip.name}'s data sheet", **times,
        **sums(calls), "calls": by_loss(calls),
        "primitives": sorted({call["primitive"] for call in calls}),
    }  # fmt: skip


def _turn(noted: Noted) -> tuple[bool, float]:
    """In which order calls are timed: updates last, and what weighs most first."""
    return noted.row.phase == "update", -noted.row.count * noted.row.floor


def sums(calls: Sequence[dict[str, Any]]) -> dict[str, float]:
    """``sum_seconds`` warm, ``cold_sum_seconds`` and ``floor_seconds`` of the calls of a step."""
    timed = [call for call in calls if call.get("seconds") is not None]
    return {
        "sum_seconds": sum(call["count"] * call["seconds"] for call in timed),
        "cold_sum_seconds": sum(
            call["count"] * call.get("cold_seconds", call["seconds"]) for call in timed
        ),
        "floor_seconds": sum(call["count"] * call["floor"] for call in calls),
    }


def merged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of each job as one, with the profiles of all; what a later one has counts."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault((row["job"], row["batch"]), {})
        profiles = {profile["by"]: profile for profile in one.get("profiles", ())}
        profiles |= {profile["by"]: profile for profile in row.get("profiles", ())}
        used = {*one.get("primitives", ()), *row.get("primitives", ())}
        one |= row
        if profiles:
            one["profiles"] = list(profiles.values())
        if used:
            one["primitives"] = sorted(used)
    return list(found.values())


def predicted(job: Job, chip: Chip) -> dict[str, Any]:
    """The same row from the launch code alone, without any time; nothing runs."""
    from gpunn import nn
    from gpunn.primitives.registry import intercepting
    from gpunn.profiling.explainer import note, rows_of

    with intercepting(lambda call, args: None):  # nobody looks at the weights: none are drawn
        model = job.network(nn).to("cpu")  # beside a GPU too
    step = training.our_step(job, Device("cpu"), job.data(1), model=model)
    calls = [described(row) for row in rows_of(note(lambda: step(0), None, chip), chip).values()]
    return {
        "job": job.name, "batch": job.batch, "precision": job.precision,
        "floors_by": f"the {chip.name}'s data sheet", **sums(calls), "calls": by_loss(calls),
    }  # fmt: skip
