"""The stage that compiles: every kernel that a sample reaches, and those of the benchmark's steps.

The large steps use tiles that no sample reaches. Compiled one after the other when a step first
needs them, they take longer than all of its timing; here they are compiled beside all others.
"""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from gpunn.bench import supervise, training
from gpunn.bench.training_jobs import JOBS
from gpunn.device import probe
from gpunn.primitives.registry import reachable_kernels

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

LARGE = ("cnn", "gpt", "lstm-lm")  # how the names of jobs begin that need other kernels


def chip_of(run: Run) -> tuple[str, int]:
    """Architecture and multiprocessors of the run's GPU; an H200's without one."""
    from gpunn.device.launch import device_properties

    if run.device.type != "cuda":
        return "sm_90a", 132
    properties = device_properties(run.device.index)
    return properties["arch"], properties["multiProcessorCount"]


def compile_kernels(run: Run, seconds: float) -> str:
    """Every kernel that a sample or a step reaches, for this GPU, in a fresh cache."""
    if not probe.find_cupy().passed:
        return "no CuPy, so no compiler"
    begin = time.monotonic()
    arch, multiprocessors = chip_of(run)
    items = []
    reached = reachable_kernels(arch, multiprocessors)
    for source, expressions in list(reached.items())[:2] if run.tiny else reached.items():
        expressions = expressions[:2] if run.tiny else expressions
        for start in range(0, len(expressions), 8):
            items.append({"id": f"{source} {start // 8}", "source": source, "arch": arch,
                          "expressions": expressions[start : start + 8]})  # fmt: skip
    jobs = 1 if run.tiny else max(1, min(16, (os.cpu_count() or 2)))
    left = seconds - (time.monotonic() - begin)
    with ThreadPoolExecutor(1) as pool:
        steps = pool.submit(compile_steps, run, left, reached)
        outcome = run.supervise("compile", items, left, jobs=jobs)
        others = steps.result()
    run.keep("compile", others)
    results = [*outcome.results.values(), *others.results.values()]
    spilling = [name for result in results for name in result.get("spilling", ())]
    text = (
        f"{sum(result['checked'] for result in results)} kernels for {arch} in "
        f"{time.monotonic() - begin:.0f} s on {jobs} processes"
    )
    return text + (f"; {len(spilling)} spill registers" if spilling else "")


def compile_steps(
    run: Run, seconds: float, known: dict[str, list[str]] | None = None
) -> supervise.Outcome:
    """Compile what the large steps need beside the kernels that are `known`, a process a step.

    Where none are known there are several processes a step.
    """
    if run.tiny:
        return supervise.Outcome()
    arch, multiprocessors = chip_of(run)
    memory = run.found.environment["machine"].get("gpu_memory_bytes")
    jobs = [job for job in training.jobs_on(run.device, memory) if job.name.startswith(LARGE)]
    parts = 1 if known is not None else max(1, min(4, (os.cpu_count() or 1) // max(len(jobs), 1)))
    items = [
        {"id": f"kernels of {job.name}, {part + 1}/{parts}", "job": job.name, "batch": job.batch,
         "arch": arch, "multiprocessors": multiprocessors, "known": known or {},
         "part": (part, parts)}
        for job in jobs for part in range(parts)
    ]  # fmt: skip
    if not items:
        return supervise.Outcome()
    return supervise.supervise(
        "compile", items, device="cpu", seconds=seconds, jobs=len(items), item_seconds=seconds
    )


def kernels_of(item: dict[str, Any]) -> list[tuple[str, str]]:
    """(source, expression) of what an item compiles."""
    if "job" not in item:
        return [(item["source"], expression) for expression in item["expressions"]]
    first, step = item["part"]
    known = item["known"]
    chip = item["arch"], item["multiprocessors"]
    missing = [one for one in kernels_of_step(item["job"], item["batch"], *chip)
               if one[1] not in known.get(one[0], ())]  # fmt: skip
    return missing[first::step]


def kernels_of_step(
    name: str, batch: int, arch: str, multiprocessors: int
) -> list[tuple[str, str]]:
    """(source, expression) of what a step of the job `name` launches."""
    from gpunn.bench.step_calls import predicted
    from gpunn.profiling.chips import CHIPS

    (job,) = [job for job in JOBS if job.name == name]
    chip = dataclasses.replace(CHIPS["h200"], arch=arch, multiprocessors=multiprocessors)
    row = predicted(dataclasses.replace(job, batch=batch), chip)
    return list(dict.fromkeys(
        (one["source"], one["kernel"]) for call in row["calls"] for one in call["kernels"]
    ))  # fmt: skip
