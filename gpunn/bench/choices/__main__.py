"""`python -m gpunn.bench.choices`: the problems and their ways, or what a result file says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gpunn.bench import results
from gpunn.bench.choices import tables
from gpunn.bench.choices.problems import KINDS, described, estimated_anew, ways_of
from gpunn.bench.choices.stage import left_out
from gpunn.device.launch import RecordingLauncher
from gpunn.profiling.chips import CHIPS, Chip, find_chip

_DESCRIPTION = """What the rules for kernels, tiles, parts of K, blocks and teams choose among.

Without FILE: the problems, all ways to make each and the rules' estimates. With files of runs on
one kind of GPU: the choice's time over the fastest way's for each problem, the factors between
estimates and times, and what to make of them. The estimates and choices are those of the present
rules: change a number of a rule, and the same command says what becomes of the choices. Of several
files each problem is taken from the newest. Needs no GPU.
"""
_EXAMPLES = """examples:
  python -m gpunn.bench.choices --kind product --brief
  python -m gpunn.bench.choices benchmarks/results/nvidia-h200/2026-11-26-a78d8e0.json
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m gpunn.bench.choices", description=_DESCRIPTION, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="result files")
    made.add_argument("--kind", choices=sorted(KINDS), help="only problems of this kind")
    made.add_argument("--brief", action="store_true", help="of each problem only what is chosen")
    made.add_argument("--chip", default="h200", choices=sorted(CHIPS), help="default: h200")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 2 for a file that is no result file."""
    parsed = parser().parse_args(arguments)
    chip = find_chip(parsed.chip)
    if not parsed.files:
        print(_listing(parsed.kind, parsed.brief, chip))
        return 0
    try:
        found = [results.read(path) for path in parsed.files]
    except (results.ResultError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    choices: dict[str, dict[str, Any]] = {}
    for result in sorted(found, key=lambda one: one.environment["date"], reverse=True):
        for one in result.choices:
            if parsed.kind in (None, one["kind"]):
                choices.setdefault(one["key"], one)
        print(f"{result.gpu or 'a CPU'}, {result.made_on}")
    print("\n" + tables.text([estimated_anew(one, chip) for one in choices.values()], chip.arch))
    return 0


def _listing(kind: str | None, brief: bool, chip: Chip) -> str:
    from gpunn.bench.choices.listing import all_problems

    lines = []
    for posed in all_problems():
        problem = posed.problem
        if kind not in (None, problem.kind):
            continue
        launch = RecordingLauncher(
            problem.source, chip.arch, chip.multiprocessors, chip.shared_limit
        )
        ways, _ = ways_of(problem, launch)
        lines.append(described(problem, ways, left_out(ways)) | {"where": posed.where})
    return tables.listing(lines, brief)


if __name__ == "__main__":
    sys.exit(main())
