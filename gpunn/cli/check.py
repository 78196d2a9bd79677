"""`gpunn check`: run a kernel of a CUDA source on the CPU in many orders and report its faults."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpunn.cli.arguments import (
    add_command,
    add_json,
    add_quiet,
    at_least,
    only_result,
    print_json,
)
from gpunn.text import table

EPILOG = """the launch is written as in CUDA C++:
  kernel<<<grid, block, shared bytes>>>(arguments)        dim3(4, 2) or (4, 2) for more dimensions
  float[1000]  half[8, 64]  int[n*4]    an array: floating-point numbers are random, others zeros
  [1000]                                the same, of the type that the kernel declares
  zeros  ones  nan  arange  random  random(0, 9)           before the type: how it is filled
  @x.npy                                an array from a file
  1000  2.5f  true  half(2.5)           a number, of the type that the kernel declares
  null                                  a null pointer
  x = float[1000], x                    the same array twice
  TensorMap(half[128, 64], box=(64, 64), swizzle=128)

examples:
  gpunn check saxpy.cu --list
  gpunn check saxpy.cu --launch "saxpy<<<4, 256>>>([1000], [1000], 2.5f, 1000)"
  gpunn check norm.cu --launch "norm<float, 4><<<8, 128, 4096>>>(zeros float[8, 500], @x.npy, 500)"
  gpunn check sum.cu --define BLOCK=64 --seeds 50 --json \\
      --launch "partial<<<8, 64>>>(p = [8], [500], 500)" --launch "total<<<1, 8>>>([1], p)"
"""


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    made = add_command(
        commands,
        "check",
        help="run a CUDA kernel on the CPU and report races, wrong accesses, missing barriers",
        description="Compile a CUDA C++ source for the CPU and run a kernel with every access "
        "checked, its threads in order, in reverse and in a number of random orders. No GPU and no "
        "CUDA toolkit is needed.",
        examples=EPILOG,
        no="a fault was found",
    )
    made.add_argument("source", metavar="FILE.cu", help="the source")
    made.add_argument(
        "--launch",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to run, see below; several run one after the other and share named arrays",
    )
    made.add_argument("--list", action="store_true", help="list the kernels of the source")
    made.add_argument("--seeds", type=int, default=10, metavar="N", help="random orders (10)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first one (0)")
    made.add_argument(
        "-D", "--define", action="append", default=[], metavar="NAME[=VALUE]", help="a macro"
    )
    made.add_argument(
        "-I", "--include", action="append", default=[], metavar="FOLDER", help="for #include"
    )
    made.add_argument(
        "--cluster", type=int, metavar="N", help="blocks of a cluster, if the kernel does not say"
    )
    made.add_argument(
        "--cooperative", action="store_true", help="all blocks at once, with grid barriers"
    )
    made.add_argument(
        "--preempt",
        type=int,
        default=0,
        metavar="N",
        help="change threads also between barriers, after about N accesses (0: never)",
    )
    made.add_argument(
        "--timeout", type=float, default=60, metavar="S", help="seconds a launch may take (60)"
    )
    add_json(made)
    add_quiet(made, "only the faults and the closing sentence")
    made.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and say by the exit code whether something was found."""
    from gpunn.emulator import checking

    if arguments.list:
        return list_kernels(checking.declarations(arguments.source), arguments.json)
    if not arguments.launch:
        known = checking.declarations(arguments.source)
        listed = "".join(f"\n  {text}" for text in known.values()) or " none"
        raise ValueError(
            "give --launch 'kernel<<<grid, block>>>(arguments)'; the kernels of "
            f"{arguments.source}:{listed}"
        )
    at_least("cluster", arguments.cluster, 1)
    at_least("preempt", arguments.preempt, 0)
    for folder in arguments.include:
        if not Path(folder).is_dir():  # which a compiler passes over in silence
            raise NotADirectoryError(f"--include {folder}: there is no such folder")
    options = [f"-D{name}" for name in arguments.define]
    options += [f"-I{folder}" for folder in arguments.include]
    with only_result(arguments.json):
        report = checking.check(
            arguments.source,
            arguments.launch,
            options=options,
            seeds=arguments.seeds,
            first_seed=arguments.seed,
            cluster=arguments.cluster and (arguments.cluster,),
            cooperative=arguments.cooperative,
            preempt=arguments.preempt,
            timeout=arguments.timeout,
        )
    if arguments.json:
        print_json(as_json(report))
    else:
        print(as_text(report, arguments.quiet))
    return 0 if report.clean else 1


def list_kernels(declared: dict[str, str], as_json: bool) -> int:
    """Print the kernels of a source."""
    if as_json:
        print_json([{"name": name, "declaration": text} for name, text in declared.items()])
    else:
        print(*declared.values() or ["no kernels"], sep="\n")
    return 0


def as_text(report: Any, quiet: bool = False) -> str:
    """The report as a person wants to read it: launches, runs (unless quiet), each fault once."""
    rows = []
    for group in _grouped(report.runs):
        first, last = group[0], group[-1]
        seeds = "" if first.schedule != "random" else str(first.seed)
        if last is not first:
            seeds += f" to {last.seed}"
        found = sum(1 for run in group if run.findings)
        outcome = "clean" if not found else f"faults in {found} of {len(group)}"
        results = {run.result for run in group} - {""}
        rows.append(
            (
                first.schedule,
                seeds,
                len(group),
                f"{max(run.accesses for run in group):,}",
                f"{sum(run.seconds for run in group):.2f} s",
                outcome,
                "differs" if "differs" in results else "".join(results),
            )
        )
    headers = ["order", "seeds", "runs", "accesses", "time", "outcome", "result"]
    parts = []
    if not quiet:
        parts.append(f"{report.source}: {'; '.join(report.launches)}")
        parts.append(table(headers, rows, right=(2, 3, 4)))
    for found in report.found:
        kind = found.finding.error.__name__
        parts.append(f"{kind} in {_in_runs(found.runs, report.runs)}\n{found.finding}")
    count = len(report.found)
    closing = "nothing found" if not count else f"{count} fault{'s' if count > 1 else ''} found"
    if any(run.result == "differs" for run in report.runs):
        closing += "; the result depends on the order (float atomics may do that without a fault)"
    return "\n\n".join([*parts, closing])


def _grouped(runs: list[Any]) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.schedule, []).append(run)
    return list(groups.values())


def _in_runs(runs: list[Any], everything: list[Any]) -> str:
    if len(runs) == len(everything):
        return f"all {len(runs)} runs"
    names = ", ".join(str(run) for run in runs[:4]) + (", …" if len(runs) > 4 else "")
    return f"{len(runs)} of {len(everything)} runs ({names})"


def as_json(report: Any) -> dict[str, Any]:
    """The report for programs."""
    numbered = {id(run): number for number, run in enumerate(report.runs)}
    return {
        "source": str(report.source),
        "launches": report.launches,
        "clean": report.clean,
        "runs": [
            {
                "schedule": run.schedule,
                "seed": run.seed,
                "seconds": round(run.seconds, 6),
                "accesses": run.accesses,
                "findings": run.findings,
                "result": run.result or None,
            }
            for run in report.runs
        ],
        "findings": [
            {
                "error": found.finding.error.__name__,
                "kernel": found.finding.kernel,
                "file": found.finding.file,
                "line": found.finding.line,
                "block": found.finding.block,
                "thread": found.finding.thread,
                "message": found.finding.message,
                "memory": found.finding.memory,
                "argument": found.finding.argument,
                "index": found.finding.index,
                "text": str(found.finding),
                "runs": [numbered[id(run)] for run in found.runs],
            }
            for found in report.found
        ],
    }
