"""Stages of the run on hardware about whole training steps: whether compiled ones do what they
should, and how long steps take beside PyTorch's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gpunn.bench import step_parity, training
from gpunn.bench.training_jobs import Job
from gpunn.device.device import Device
from gpunn.text import bytes_text

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run


def compiled_steps(run: Run, seconds: float) -> str:
    """Small networks in every precision, compiled and not: the same bits."""
    cases = [(name, how) for how in step_parity.PRECISIONS for name in step_parity.NETWORKS]
    items = [
        {"id": f"compiled {name} {how}", "network": name, "precision": how}
        for name, how in (cases[:5] if run.tiny else cases)
    ]
    outcome = run.supervise("compiled steps", items, seconds)
    arenas = [r["arena"] for r in outcome.results.values() if r.get("arena")]
    passed = sum(result["passed"] for result in outcome.results.values())
    text = f"{passed} of {len(items)} compiled networks train bit for bit as others do"
    if arenas:
        size, all_of_it = (sum(arena[name] for arena in arenas) for name in ("peak", "unshared"))
        text += f", in {bytes_text(size)} of memory instead of {bytes_text(all_of_it)}"
    return text


def steps(run: Run, seconds: float) -> str:
    """Whole training steps beside PyTorch's, also beside what torch.compile makes."""
    memory = run.found.environment["machine"].get("gpu_memory_bytes")
    jobs = training.jobs_on(run.device, memory)
    if run.tiny:
        jobs = [job for job in jobs if job.name == "mlp-64-128-128-10"]
    # First what is done soon; torch.compile takes the large networks longest.
    small = [job for job in jobs if job.name.startswith(("mlp", "lstm"))]
    small.sort(key=lambda job: len(compiled_peers(job)))
    large = [job for job in jobs if not job.name.startswith(("mlp", "lstm"))]
    items = [_item(job, memory, run.device) for job in small]
    items += [_item(job, memory, None) for job in large]
    items, said = run.known.first(items, lambda item: ("step", item["job"], item["batch"]))
    slow = [_item(job, memory, run.device) for job in large if compiled_peers(job, run.device)]
    items += run.known.first(slow, _compiled_key)[0]
    for item in items:
        item["budget"] = 0.4 * seconds / len(items)
    outcome = run.supervise("steps", items, seconds, item_seconds=seconds)
    rows: dict[tuple, list] = {}
    for result in outcome.results.values():  # a job's later run has all that the first had
        for row in result.get("training", ())[:1]:
            rows[row["job"], row["batch"]] = result["training"]
    run.found.training += [row for found in rows.values() for row in found]
    verdicts = [row["reached"] for row in run.found.training if row["target"]]
    return (
        f"{len(rows)} of {len(jobs)} jobs; {verdicts.count(True)} of {len(verdicts)} targets "
        f"reached, {verdicts.count(False)} missed; {said}"
    )


def _compiled_key(item: dict[str, Any]) -> tuple:
    return ("step", item["job"], item["batch"], item["compiled"][-1])


def _item(job: Job, memory: int | None, device: Device | None) -> dict[str, Any]:
    """A job, with the peers that torch.compile makes if a device is given."""
    compiled = compiled_peers(job, device) if device else ()
    name = " ".join([job.name, str(job.batch), *(("beside", *compiled) if compiled else ())])
    return {"id": name, "job": job.name, "batch": job.batch, "memory": memory,
            "compiled": compiled}  # fmt: skip


def compiled_peers(job: Job, device: Device | None = None) -> tuple[str, ...]:
    """What of torch.compile's the targets of a job name; one, where any of several would do.

    None on a `device` that is no GPU.
    """
    if device is not None and device.type != "cuda":
        return ()
    named = [[p for p in t.peers if p in training.COMPILED] for t in job.targets]
    return tuple(dict.fromkeys(peers[0] for peers in named if peers))


def time_job(item: dict[str, Any], device: Device, tiny: bool) -> dict[str, Any]:
    """Compare and time one job; a result as the stages have it."""
    (job,) = [
        job for job in training.jobs_on(device, item["memory"])
        if (job.name, job.batch) == (item["job"], item["batch"])
    ]  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = 1 if tiny else cores or 1
    if training.has_torch():
        import torch

        torch.set_num_threads(threads)
    sizes = {"samples": 2, "seconds": 1e-3, "curve": 20} if tiny else {"samples": 20}
    rows = training.run_job(
        job, device, compiled=item["compiled"], threads=threads, budget=item["budget"], **sizes
    )
    failures = [
        {"case": row["contestant"], "reason": row["reason"]}
        for row in rows
        if "reason" in row and (row["contestant"].startswith("gpunn") or "differ" in row["reason"])
    ]
    return {
        "passed": not failures, "checked": len(rows), "failures": failures, "training": rows,
    }  # fmt: skip
