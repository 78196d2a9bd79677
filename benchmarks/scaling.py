"""Data-parallel training on several ranks, ours and PyTorch's: how well it scales.

    python benchmarks/scaling.py                       1 and 2 ranks, weak and strong
    python benchmarks/scaling.py --ranks 1 2 4 --weak --jobs mlp-784-256-128-10
    python benchmarks/scaling.py --json out.json --plot scaling.png
    python benchmarks/scaling.py --folder benchmarks/results   a file for docs/scaling.md
    python benchmarks/gpu.py --stages "one rank"               one GPU: what NCCL adds to a step
    python benchmarks/scaling.py --model                       8, 64, 1024 GPUs: no measurement

It starts the ranks itself: ours by mpirun, PyTorch's (DistributedDataParallel over gloo, or NCCL)
with RANK and WORLD_SIZE; a fresh start for each round, library and number of ranks, in turns. Each
rank has one BLAS thread. Both libraries must go through the same losses. Let the machine be idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from gpunn.bench import scaling, training_jobs

    plan = scaling.Plan()
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({job.name for job in training_jobs.JOBS})
    add = made.add_argument
    add("--ranks", type=positive, nargs="+", metavar="N", default=list(plan.ranks),
        help="numbers of ranks; 1 is always among them (default: 1 2)")  # fmt: skip
    add("--jobs", nargs="+", choices=names, metavar="JOB",
        help=f"of: {', '.join(names)} (default: {', '.join(plan.jobs)})")  # fmt: skip
    add("--batch", type=positive, metavar="B",
        help="of one rank, and of all for strong scaling (default: by job)")  # fmt: skip
    add("--peer", choices=["torch", "none"],
        help="whom to compare with (default: PyTorch, if it is installed)")  # fmt: skip
    add("--device", choices=["cpu", "cuda"], help="default: GPUs if there are some")
    add("--weak", action="store_true", help="weak scaling alone")
    add("--strong", action="store_true", help="strong scaling alone")
    add("--no-sums", action="store_true", help="leave out the all-reduces by themselves")
    add("--repeats", type=positive, default=plan.rounds, metavar="N",
        help=f"rounds (default: {plan.rounds})")  # fmt: skip
    add("--samples", type=positive, default=plan.blocks, metavar="N",
        help=f"of each step in a round (default: {plan.blocks})")  # fmt: skip
    add("--seconds", type=float, default=plan.seconds, metavar="S",
        help=f"of a sample (default: {plan.seconds})")  # fmt: skip
    add("--json", metavar="FILE", help="write the results")
    add("--folder", metavar="DIR", help="the same to DIR/scaling/<date>-<commit>.json")
    add("--plot", metavar="FILE", help="draw efficiencies, and those of the model")
    add("--model", action="store_true", help="print the model of cost and measure nothing")
    return made


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def plan_of(arguments: argparse.Namespace):
    """The `Plan` that the command line asks for."""
    from gpunn.bench import scaling
    from gpunn.device import probe

    device = arguments.device or ("cuda" if probe.cuda_usable() else "cpu")
    wanted = arguments.peer or ("torch" if scaling.has_torch() else "none")
    kinds = [kind for kind in ("weak", "strong") if getattr(arguments, kind)]
    plan = scaling.Plan(
        libraries=(scaling.OURS, scaling.TORCH) if wanted == "torch" else (scaling.OURS,),
        ranks=tuple(sorted({1, *arguments.ranks})), rounds=arguments.repeats,
        blocks=arguments.samples, seconds=arguments.seconds, device=device,
    )  # fmt: skip
    changes: dict = {"kinds": tuple(kinds)} if kinds else {}
    if device == "cuda":
        changes |= {"jobs": scaling.GPU_JOBS, "batches": (), "bytes": scaling.GPU_BYTES}
    if arguments.jobs:
        changes["jobs"] = tuple(arguments.jobs)
    if arguments.batch:
        changes["batches"] = tuple(
            (name, arguments.batch) for name in changes.get("jobs", plan.jobs)
        )
    if arguments.no_sums:
        changes["bytes"] = ()
    return dataclasses.replace(plan, **changes)


def model_of(folder: Path):
    """The newest result file of a GPU below a folder, or None; and the works of the model."""
    from gpunn.bench import report, scaling_model

    newest = next((result for _, result in report.result_files(folder)), None)
    return newest, scaling_model.works(newest) if newest else []


def print_model(newest, works) -> int:
    """The tables of the model and its assumptions; 1 if there is nothing to begin with."""
    from gpunn.bench import scaling_model
    from gpunn.text import table

    if newest is None:
        print("benchmarks/results has no run on a GPU, with which the model begins")
        return 1
    headers, cells = scaling_model.table_rows(works)
    print("Weak scaling on GPUs, a model: none of this was measured\n")
    print(table(headers, cells, right=range(5, len(headers))))
    headers, cells = scaling_model.collective_rows()
    print("\nAn all-reduce in the model\n")
    print(table(headers, cells, right=range(1, len(headers))))
    print("\nAssumptions")
    for said in scaling_model.assumptions(newest.gpu, newest.environment["date"][:10]):
        print(textwrap.fill(said, 100, initial_indent="- ", subsequent_indent="  "))
    return 0


def print_rows(rows) -> None:
    """The tables of what was measured."""
    from gpunn.bench import scaling_tables
    from gpunn.text import table

    headers, cells = scaling_tables.steps_cells(rows)
    print(table(headers, cells, right=range(4, len(headers))))
    headers, cells = scaling_tables.sums_cells(rows)
    if cells:
        print("\nan all-reduce of float32 by itself")
        print(table(headers, cells, right=range(len(headers))))
    print(*scaling_tables.verdicts(rows), sep="\n")


def measure(arguments: argparse.Namespace) -> list[dict]:
    """Measure, print and write; gives the rows."""
    from gpunn.bench import results, scaling
    from gpunn.device.device import Device

    plan = plan_of(arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if plan.device == "cpu" and cores and max(plan.ranks) > cores:
        print(f"note: {max(plan.ranks)} ranks share {cores} cores")
    found = results.new(Device(plan.device))
    found.scaling = scaling.measure(plan, said=lambda text: print(text, flush=True))
    print_rows(found.scaling)
    if arguments.json:
        found.write(arguments.json)
    if arguments.folder:
        path = Path(arguments.folder) / "scaling" / results.file_name(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.write(path)
        print(f"wrote {path}")
    return found.scaling


def main() -> int:
    """Measure, or print the model; 1 if losses differed."""
    from gpunn.bench import scaling, scaling_tables

    arguments = parser().parse_args()
    newest, works = model_of(ROOT / "benchmarks" / "results")
    rows: list[dict] = []
    if arguments.model:
        code = print_model(newest, works)
    else:
        try:
            rows = measure(arguments)
        except scaling.ScalingError as error:
            print(error, file=sys.stderr)
            return 2
        code = 1 if any("reason" in row for row in rows) else 0
    if arguments.plot:
        scaling_tables.draw(rows, works, arguments.plot)
        print(f"wrote {arguments.plot}")
    return code


if __name__ == "__main__":
    sys.exit(main())
