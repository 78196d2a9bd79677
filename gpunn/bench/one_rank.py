"""What a training step costs more when its gradients go through NCCL: one rank beside no rank.

A sum over one rank changes nothing, so both must give the same bits. What is left to pay for are
the events and streams around each bucket, in the graph of the step, and what was done for the
gradients to lie in buckets. NCCL itself starts no kernel for one rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.bench import training
from gpunn.bench.timing import Contestant, clock_for, interleave
from gpunn.device.device import Device

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

TARGET = 1.03  # of the plain step's time, on a GPU
COMPARED = 6  # steps: traced, recorded, captured, and then replayed
PLAIN, RANK = "plain", "one rank"


def one_rank(run: Run, seconds: float) -> str:
    """The compiled step of each job with a group of one rank, beside the same without."""
    if run.device.type == "cuda":
        from gpunn.distributed.finding import find_nccl

        nccl = find_nccl()
        if not nccl.passed:
            run.left_out["one rank by NCCL"] = nccl.remedy
            return "there is no NCCL"
    memory = run.found.environment["machine"].get("gpu_memory_bytes")
    jobs = training.jobs_on(run.device, memory)
    if run.tiny:
        jobs = [job for job in jobs if job.name == "mlp-64-128-128-10"]
    items = [
        {"id": f"{job.name} {job.batch}", "job": job.name, "batch": job.batch, "memory": memory}
        for job in jobs
    ]
    outcome = run.supervise("one rank", items, seconds)
    times = [result["times"] for result in outcome.results.values() if "times" in result]
    parts = [f"{one['job']} {one['batch']} {100 * (one['over'] - 1):+.1f}%" for one in times]
    within = sum(one["over"] <= TARGET for one in times)
    text = f"{within} of {len(times)} within {100 * (TARGET - 1):.0f}% of the step without ranks"
    return ": ".join([text, ", ".join(parts)]) if parts else text


def time_job(item: dict[str, Any], device: Device, tiny: bool) -> dict[str, Any]:
    """Compare and time one job; a result as the stages have it, with ``times``."""
    from gpunn.distributed import alone

    (job,) = [
        job for job in training.jobs_on(device, item["memory"])
        if (job.name, job.batch) == (item["job"], item["batch"])
    ]  # fmt: skip
    group = alone(device)
    try:
        with clock_for(device) as clock:
            steps = {
                name: training.our_step(job, device, compiled=True, group=each)
                for name, each in ((PLAIN, None), (RANK, group))
            }
            curves = {name: training.losses(one, COMPARED) for name, one in steps.items()}
            racers = [Contestant(name, one) for name, one in steps.items()]
            samples, least = (2, 1e-3) if tiny else (20, 0.02)
            timings, failed = interleave(racers, clock, samples, sample_seconds=least)
    finally:
        group.close()
    failures = [{"case": name, "reason": reason} for name, reason in failed.items()]
    if curves[PLAIN] != curves[RANK]:
        text = f"the losses are not the same bits: {curves[PLAIN]}, with a rank {curves[RANK]}"
        failures.append({"case": RANK, "reason": text})
    found: dict[str, Any] = {"passed": not failures, "checked": 2, "failures": failures}
    if not failed:
        plain, rank = (np.array(timings[name].samples) for name in (PLAIN, RANK))
        over = float(np.median(rank) / np.median(plain))
        found["times"] = {
            "job": job.name, "batch": job.batch, "device": str(device), "over": over,
            "plain": timings[PLAIN].median, "rank": timings[RANK].median,
            "quartiles": {name: list(one.quartiles) for name, one in timings.items()},
            "reached": over <= TARGET if device.type == "cuda" else None,
        }  # fmt: skip
    return found
