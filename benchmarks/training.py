"""Whole training steps, ours and PyTorch's: same data, same initial weights, in turns.

    python benchmarks/training.py                      all jobs, on the GPU if there is one
    python benchmarks/training.py --device cpu --threads 2 --jobs mlp-784-256-128-10
    python benchmarks/training.py --plot curves.png          the loss curves, ours over PyTorch's
    python benchmarks/training.py --device cpu --profile     where our step spends its time

A step is what a user writes: zero_grad, forward, cross-entropy, backward, update; ours also under
`gpunn.compile` and, for small perceptrons, many steps by one kernel. Before anything is timed, all
must go through the same losses. Without PyTorch only ours is timed. The targets are for GPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def pin_threads(threads: int) -> None:
    """Start again with the thread counts set: BLAS reads them once, when it is loaded."""
    wanted = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from gpunn.bench.training import JOBS

    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({job.name for job in JOBS})
    made.add_argument("--device", help="cpu, cuda or cuda:1 (default: the one gpunn would use)")
    made.add_argument("--threads", type=int, help="CPU threads of both (default: all cores)")
    made.add_argument("--jobs", nargs="+", choices=names, default=names, metavar="JOB",
                      help=", ".join(names))  # fmt: skip
    made.add_argument("--batch", type=int, nargs="+", help="only these batch sizes")
    made.add_argument("--samples", type=int, default=30, help="samples of each (default: 30)")
    made.add_argument("--steps", type=int, help="steps of the loss curves (default: by job)")
    made.add_argument("--json", metavar="FILE", help="write the results")
    made.add_argument("--plot", metavar="FILE", help="draw the loss curves (needs matplotlib)")
    made.add_argument("--profile", action="store_true", help="profile our step instead of timing")
    made.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return made


def profile(job, device, steps: int = 2000) -> None:
    """Print where the Python of our step spends its time."""
    import cProfile
    import pstats

    from gpunn.bench import training

    step = training.our_step(job, device)
    training.losses(step)
    profiler = cProfile.Profile()
    profiler.enable()
    for i in range(steps):
        step(i)
    profiler.disable()
    print(f"{job.name}, batch {job.batch}, {steps} steps")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> int:
    """Run the jobs; 1 if a trajectory differed."""
    arguments = parser().parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = arguments.threads or cores or 1
    pin_threads(threads)
    from gpunn.bench import results, training, training_tables
    from gpunn.device.device import as_device

    device = as_device(arguments.device)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)
    found = results.new(device)
    memory = found.environment["machine"].get("gpu_memory_bytes")
    for job in training.jobs_on(device, memory):
        if job.name not in arguments.jobs or job.batch not in (arguments.batch or [job.batch]):
            continue
        if arguments.profile:
            profile(job, device)
            continue
        compiled = () if arguments.no_compile else training.COMPILED
        found.training += training.run_job(
            job, device, arguments.samples, compiled, threads, curve=arguments.steps
        )
        if arguments.json:
            found.write(arguments.json)
        if arguments.plot:
            training_tables.draw(found.training, arguments.plot)
    if arguments.profile:
        return 0
    if not found.training:
        print(f"none of these jobs is one for {device}", file=sys.stderr)
        return 2
    print(training_tables.table_of(found.training))
    if not any(row["contestant"].startswith("torch") for row in found.training):
        print("PyTorch is not installed (or sees no GPU): only ours was timed")
    return 1 if any("losses differ" in row.get("reason", "") for row in found.training) else 0


if __name__ == "__main__":
    sys.exit(main())
