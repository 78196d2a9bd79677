"""Where the time of a whole training step goes on the GPU: each kind of call in it, timed alone.

    python -m gpunn.bench.step_kernels                        what each job launches, and the least
                                                              it takes on an H200; no GPU needed
    python -m gpunn.bench.step_kernels FILE                   what a result file says
    python -m gpunn.bench.step_kernels FILE --job gpt --top 20

A step of every job of `training_jobs` runs on the device as it is written, each call of a primitive
is noted with its arrays, and each kind of call is timed alone behind the step (`step_calls`), warm
and cold. In the step a call finds what the one before has just made, if that fits the L2 cache, and
not its weights: the truth lies between.

Their sum stands beside the time of the compiled step, and each time beside its floor: what is lost,
count x (time - floor), says what to repair first.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gpunn.bench import mlp_phases, stages, training
from gpunn.bench.compile_stage import compile_steps
from gpunn.bench.step_calls import (
    CAPTURED,
    NO_TIME,
    SAMPLES,
    chip_for,
    lost,
    measure,
    merged,
    predicted,
)
from gpunn.bench.step_profiles import kernel_times
from gpunn.bench.tables import seconds_text
from gpunn.bench.timing import clock_for, one_line
from gpunn.bench.training_jobs import COMPILE, FUSED, JOBS, Job
from gpunn.device.device import Device

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

# What is known least comes first.
ORDER = ("cnn", "gpt", "lstm-lm", "lstm", "mlp")
FIRST = 2  # of these jobs all is done before the others
PHASES = "mlp_train phases"
# Kinds of items.
CALLS, PARTS, PROFILES, COMPILED = "calls", "parts", "profiles", "compiled profiles"
CEILINGS = 12.0  # seconds that these may take; they took 5 on an H200, with PyTorch's import
ITEM_SECONDS = 25.0  # that an item may take at the least: to draw a GPT takes five of them
COMPILING = 25.0  # with less left torch.compile is not begun
PROFILED = 3  # steps that CUPTI looks at


# ---- what CUPTI says -----------------------------------------------------------------------------


def profiles(job: Job, device: Device, names: Sequence[str]) -> dict[str, Any]:
    """``profiles``, the kernels of a step of each named contestant of `training` or why there are
    none, and the ``primitives`` of ours that ran."""
    used: set[str] = set()
    if device.type != "cuda":
        reason = f"CUPTI tells of NVIDIA GPUs, and this is {device}"
        return {"profiles": [{"by": name, "reason": reason} for name in names]}
    compiled = [name for name in names if name in training.COMPILED]
    makers = training.contestants(job, device, compiled)
    found = []
    for name in names:
        try:
            if name not in makers:
                raise LookupError("PyTorch is not there, or sees no GPU")
            with training.torch_as_fast_as_exact(), clock_for(device):
                told = _profile(makers[name], used)
        except Exception as error:  # no CUPTI, no compiler, too little memory
            told = {"reason": one_line(error)}
        found.append({"by": name, **told})
        gc.collect()
        stages.release(device)  # each library keeps what the other may need
    return {"profiles": found, "primitives": sorted(used)}


def _profile(make: Callable[[], training.Racer], used: set[str]) -> dict[str, Any]:
    racer = make()
    training.watched(racer, CAPTURED, used)
    return kernel_times(racer.run, PROFILED, racer.calls)


# ---- the stage -----------------------------------------------------------------------------------


def step_kernels(run: Run, seconds: float) -> str:
    """Every kind of call in the steps of all jobs, the kernels of PyTorch's, `mlp_train`'s parts"""
    begin = time.monotonic()
    memory = run.found.environment["machine"].get("gpu_memory_bytes")
    jobs = in_order(training.jobs_on(run.device, memory))
    if run.tiny:
        jobs = [job for job in jobs if job.name == "mlp-64-128-128-10"]
    if not any(stage["name"] == "compile" for stage in run.found.stages):
        run.keep("step kernels", compile_steps(run, seconds / 2))
    ceilings = run.ceilings(max(seconds / 4, CEILINGS)) if run.device.type == "cuda" else None
    items, said = run.known.first(items_of(jobs), _key)
    rows: list[dict[str, Any]] = []
    for what, some in itertools.groupby(items, _process):
        group = [
            item | {"memory": memory, "ceilings": ceilings, "seconds": seconds / 6}
            for item in some
        ]  # fmt: skip
        left = seconds - (time.monotonic() - begin)
        if what == COMPILED and left < COMPILING:
            run.left_out |= {item["id"]: "no time was left" for item in group}
            continue
        limit = left if what == COMPILED else max(left / 2, ITEM_SECONDS)
        outcome = run.supervise("step kernels", group, left, item_seconds=limit)
        rows += [r["step_kernels"] for r in outcome.results.values() if "step_kernels" in r]
    rows = merged(rows)
    run.found.step_kernels += rows
    return f"{summary(rows, len(jobs))}; {said}"


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Those that are known least first."""

    def place(job: Job) -> int:
        return next((i for i, name in enumerate(ORDER) if job.name.startswith(name)), len(ORDER))

    return sorted(jobs, key=place)


def items_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What the stage does, one by one: first all of the large jobs, and at the very end what
    torch.compile makes, as it compiles for longer than all else takes together.

    A process to which CUPTI was attached times nothing any more: it would be slower, and may die.
    So calls and profiles take turns as seldom as can be.
    """
    found: list[dict[str, Any]] = []
    for some in (jobs[:FIRST], jobs[FIRST:]):
        for job in some:
            found.append(_item(job.name, job.batch, CALLS))
            if len(found) == 1:
                batch = mlp_phases.EXPERIMENTS[0].batch
                found.append(_item(PHASES, batch, PARTS))
        found += [_item(j.name, j.batch, PROFILES, training.OUR_COMPILED, FUSED) for j in some]
    return found + [
        _item(job.name, job.batch, COMPILED, COMPILE)
        for job in jobs
        if any(peer in training.COMPILED for target in job.targets for peer in target.peers)
    ]


def _process(item: dict[str, Any]) -> str:
    """Items of one kind that follow each other run in one process."""
    return CALLS if item["what"] == PARTS else item["what"]


def _item(name: str, batch: int, what: str, *by: str) -> dict[str, Any]:
    named = {CALLS: f"{name} {batch}", PARTS: name, PROFILES: f"{name} {batch} by CUPTI",
             COMPILED: f"{name} {batch} by CUPTI, compiled"}  # fmt: skip
    return {"id": named[what], "what": what, "job": name, "batch": batch, "by": by}


def _key(item: dict[str, Any]) -> tuple:
    return ("step kernels", item["job"], item["batch"], *item["by"][:1])


def run_item(item: dict[str, Any], device: Device, tiny: bool) -> dict[str, Any]:
    """One item; a result as the stages have it, with ``step_kernels``."""
    samples = 2 if tiny else SAMPLES
    if item["what"] == PARTS:
        chip = chip_for(device, item["ceilings"])
        few = mlp_phases.SMALL if tiny else {}
        row = mlp_phases.measure(chip, device, **few)
        failures = [{"case": one["name"], "reason": one["reason"]}
                    for one in row["experiments"] if "reason" in one]  # fmt: skip
        return _result(row, len(row["experiments"]), failures)
    (job,) = [
        job for job in training.jobs_on(device, item["memory"])
        if (job.name, job.batch) == (item["job"], item["batch"])
    ]  # fmt: skip
    if item["what"] in (PROFILES, COMPILED):
        found = profiles(job, device, item["by"])
        row = {"job": job.name, "batch": job.batch, **found}
        return _result(row, len(found["profiles"]), [])
    row = measure(job, device, item["ceilings"], item["seconds"], samples)
    failures = [
        {"case": f"{call['primitive']} {call['shapes']}", "reason": call["reason"]}
        for call in row["calls"] if call.get("reason", NO_TIME) != NO_TIME
    ]  # fmt: skip
    if "reason" in row:
        failures.append({"case": job.name, "reason": row["reason"]})
    return _result(row, len(row["calls"]), failures)


def _result(row: dict[str, Any], checked: int, failures: list) -> dict[str, Any]:
    return {"passed": not failures, "checked": checked, "failures": failures, "step_kernels": row}


def summary(rows: Sequence[dict[str, Any]], jobs: int) -> str:
    """How many jobs there are, and what each loses most at."""
    timed = [row for row in rows if row.get("calls")]
    parts = [f"{len(timed)} of {jobs} jobs"]
    for row in timed:
        first = row["calls"][0]
        what = f"{row['job']} {row['batch']}: {first['primitive']} loses"
        parts.append(f"{what} {seconds_text(lost(first))} of {seconds_text(row['sum_seconds'])}")
    for row in rows:
        if "factors" in row:
            factors = (f"{part} {factor:.2f}" for part, factor in row["factors"].items())
            parts.append(f"mlp_train over its estimate: {', '.join(factors)}")
    return "; ".join(parts)


# ---- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Print what a file says, or what is expected."""
    from gpunn.bench import results, step_kernel_tables
    from gpunn.profiling.chips import CHIPS, find_chip

    parser = argparse.ArgumentParser(
        prog="python -m gpunn.bench.step_kernels", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", nargs="?", help="a result file; without, floors by data sheet")
    parser.add_argument("--job", metavar="NAME", help="only jobs whose names begin so")
    parser.add_argument("--top", type=int, default=40, help="rows of each table (default: 40)")
    parser.add_argument("--chip", default="h200", help=f"without a file: {', '.join(CHIPS)}")
    parsed = parser.parse_args(arguments)
    wanted = parsed.job or ""
    try:
        if parsed.file:
            rows = results.read(parsed.file).step_kernels
            names = [row["job"] for row in rows]
        else:
            chip = find_chip(parsed.chip)
            jobs = in_order([job for job in JOBS if job.on in ("gpu", "both")])
            names = [job.name for job in jobs]
            rows = (predicted(job, chip) for job in jobs if job.name.startswith(wanted))
        if not any(name.startswith(wanted) for name in names):
            known = ", ".join(dict.fromkeys(names)) or "none"
            where = parsed.file or "the benchmark"
            raise ValueError(f"{where} has no job that begins with {wanted!r}; it has: {known}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for row in rows:
        if row["job"].startswith(wanted):
            print(step_kernel_tables.text(row, parsed.top), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
