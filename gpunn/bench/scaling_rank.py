"""What one rank of the benchmark of scaling does; `gpunn.bench.scaling` starts it, once a rank.

    mpirun -n 2 python -m gpunn.bench.scaling_rank PLAN.json RESULTS.json

Of each job it makes the first steps, whose losses must be those of the other library, and then
times blocks of steps in turns: with the reduction of the gradients, without it, and the reduction
alone. Before each block all ranks wait for each other, and the slowest rank's time counts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpunn.bench.training_jobs import JOBS, Job
from gpunn.io.atomic import write_text

STEPS_COMPARED = 8
WITH, WITHOUT, ALONE = "step", "without", "alone"  # the reduction, in what is timed


@dataclasses.dataclass
class Ranks:
    """What both libraries give: who this is, and how the ranks meet.

    Attributes
    ----------
    make : (job, pairs of inputs and labels) -> what can be timed: `WITH` is a function of the
        number of the step and gives the loss; with several ranks also `WITHOUT` and `ALONE`
    reducer : a number of float32s -> a function that adds so many up over all ranks
    barrier, synchronize : wait for all ranks, and for this rank's device
    gather : numbers of this rank -> those of all ranks, a row each
    """

    rank: int
    size: int
    device: str
    make: Callable[[Job, list[tuple[np.ndarray, np.ndarray]]], dict[str, Callable[[int], Any]]]
    reducer: Callable[[int], Callable[[int], Any]]
    barrier: Callable[[], Any]
    synchronize: Callable[[], Any]
    gather: Callable[[np.ndarray], np.ndarray]


def named(name: str, device: str, batch: int | None = None) -> Job:
    """The job of this name as it runs on "cpu" or "cuda", with a batch of its own if given."""
    # Only the kind of a Device is asked for, and PyTorch's ranks need none of gpunn's.
    job = next(job for job in JOBS if job.name == name).placed(SimpleNamespace(type=device))
    return dataclasses.replace(job, batch=batch or job.batch)


def part(job: Job, rank: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows ``[B*r//n, B*(r+1)//n)`` of each global batch of B."""
    rows = slice(job.batch * rank // size, job.batch * (rank + 1) // size)
    return [(x[rows], y[rows]) for x, y in zip(*job.data(), strict=True)]


def in_turns(
    runs: dict[str, Callable[[int], Any]], ranks: Ranks, seconds: float, blocks: int
) -> dict[str, list[float]]:
    """Seconds a call of each, for each block of about `seconds`; of all ranks the slowest's."""
    inner = {name: _calls(run, ranks, seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(blocks):
        for name, run in runs.items():
            times[name].append(_block(run, ranks, inner[name]))
    return {name: ranks.gather(np.array(own)).max(axis=0).tolist() for name, own in times.items()}


def _calls(run: Callable[[int], Any], ranks: Ranks, seconds: float) -> int:
    """How many calls take so long, the same on all ranks."""
    _block(run, ranks, 2)  # the first calls make what the later ones use again
    lasts = float(ranks.gather(np.array([_block(run, ranks, 3)])).max())
    return int(max(1, min(10_000, round(seconds / lasts))))


def _block(run: Callable[[int], Any], ranks: Ranks, calls: int) -> float:
    """Seconds a call."""
    ranks.barrier()
    ranks.synchronize()
    start = time.perf_counter()
    for i in range(calls):
        run(i)
    ranks.synchronize()
    return (time.perf_counter() - start) / calls


def step_row(plan: dict[str, Any], ranks: Ranks, name: str, kind: str) -> dict[str, Any]:
    """Losses and times of a job: "weak" with its batch on each rank, "strong" with it on all."""
    batch = plan["batches"].get(name) or named(name, ranks.device).batch
    job = named(name, ranks.device, batch * ranks.size if kind == "weak" else batch)
    pairs = part(job, ranks.rank, ranks.size)
    runs = ranks.make(job, pairs)
    share = len(pairs[0][1]) / job.batch
    own = [share * float(runs[WITH](i).item()) for i in range(STEPS_COMPARED)]
    losses = ranks.gather(np.array(own)).sum(axis=0).tolist()
    times = in_turns(runs, ranks, plan["seconds"], plan["blocks"])
    found = {"job": name, "kind": kind, "batch": job.batch, "precision": job.precision}
    return found | {"losses": losses, "times": times}


def sums_row(plan: dict[str, Any], ranks: Ranks, size: int) -> dict[str, Any]:
    """Times of an all-reduce of so many bytes."""
    runs = {ALONE: ranks.reducer(size // 4)}
    times = in_turns(runs, ranks, plan["seconds"] / 2, plan["blocks"])
    return {"kind": "sum", "bytes": size, "times": times}


def rows(plan: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """All that a plan asks of this number of ranks."""
    kinds = plan["kinds"] if ranks.size > 1 else ["weak"]  # on one rank they are the same
    found = [step_row(plan, ranks, name, kind) for name in plan["jobs"] for kind in kinds]
    if ranks.size > 1:
        found += [sums_row(plan, ranks, size) for size in plan["bytes"]]
    return [row | {"ranks": ranks.size, "device": ranks.device} for row in found]


def main(plan_file: str, results: str) -> None:
    """Join the others, measure, and on rank 0 write the rows."""
    plan = json.loads(Path(plan_file).read_text(encoding="utf-8"))
    if plan["library"] == "torch":
        from gpunn.bench.scaling_torch import join
    else:
        from gpunn.bench.scaling_ours import join
    with join(plan) as ranks:
        found = rows(plan, ranks)
        if ranks.rank == 0:
            write_text(results, json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
