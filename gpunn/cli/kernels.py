"""`gpunn kernels`: list the kernel table, and compile every kernel without a GPU."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpunn.cli.arguments import (
    add_command,
    add_json,
    add_quiet,
    only_result,
    print_json,
    progress,
    wide_table,
)
from gpunn.device import compiler
from gpunn.text import nearest


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    made = add_command(
        commands,
        "kernels",
        help="list the kernels, or compile them for named architectures",
        description="List the kernel table, or compile every CUDA kernel for named architectures "
        "(no GPU needed) and print registers, shared memory and spills.",
        examples="examples:\n  gpunn kernels\n  gpunn kernels --compile sm_80 sm_90a\n"
        "  gpunn kernels softmax --compile sm_90a --json",
        no="a kernel spills registers, or the compiler warned",
    )
    made.add_argument(
        "name", nargs="*", metavar="NAME", help="only primitives whose name or family contains this"
    )
    made.add_argument(
        "--compile", nargs="+", metavar="ARCH", help="architectures such as sm_80 sm_90a sm_100a"
    )
    add_json(made)
    add_quiet(made, "with --compile: no progress, and no table but of kernels that spill")
    made.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table or the compiler's reports; 1 if a kernel spills or the compiler warned."""
    from gpunn import kernels

    chosen = [
        made
        for made in kernels.table().values()
        if not arguments.name or any(n in f"{made.family} {made.name}" for n in arguments.name)
    ]
    if not chosen:
        raise ValueError(
            f"no kernel is named like {' or '.join(arguments.name)}"
            f"{nearest(arguments.name[0], kernels.table())} (see gpunn kernels)"
        )
    if arguments.compile:
        return compile_kernels(chosen, arguments)
    rows = [
        (p.name, p.family, ", ".join(p.implementations), p.cuda_source, first_line(p))
        for p in chosen
    ]
    if arguments.json:
        names = ("name", "family", "implementations", "source", "summary")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        headers = ["primitive", "family", "implementations", "CUDA source", "what"]
        print(wide_table(headers, rows, (), cut=4))
    return 0


def first_line(made: Any) -> str:
    """The first line of the primitive's docstring, without markup."""
    return (made.__doc__ or "").strip().splitlines()[0].replace("`", "")


def compile_kernels(primitives: list[Any], arguments: argparse.Namespace) -> int:
    """Compile all kernels of `primitives` for each architecture and report on each."""
    from gpunn.primitives.registry import reachable_kernels

    start = time.perf_counter()
    architectures = list(dict.fromkeys(arguments.compile))
    for arch in architectures:
        if not re.fullmatch(r"sm_\d+[af]?", arch):
            raise ValueError(f"--compile {arch}: write an architecture such as sm_90a")
    jobs = [
        (source, tuple(expressions), arch)
        for arch in architectures
        for source, expressions in reachable_kernels(arch, primitives=primitives).items()
    ]
    with only_result(arguments.json), ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda job: compiler.build(*job), jobs)
        builds = list(progress(compiled, "source", arguments.quiet, len(jobs)))
    rows = [
        (
            b.arch,
            b.source,
            r.expression,
            r.registers,
            r.shared,
            r.stack,
            r.spill_stores + r.spill_loads,
        )
        for b in builds
        for r in b.reports
    ]
    names = ["arch", "source", "kernel", "registers", "shared", "stack", "spills"]
    warnings = [f"{b.source} ({b.arch}): {line}" for b in builds for line in b.warnings]
    spilling = [row for row in rows if row[6]]
    if arguments.json:
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        print(*warnings, sep="\n", end="\n" if warnings else "", file=sys.stderr)
        return 1 if spilling or warnings else 0
    shown = spilling if arguments.quiet else rows
    if shown:
        print(wide_table(names, shown, (3, 4, 5, 6), cut=2) + "\n")
    print(*warnings, sep="\n", end="\n" if warnings else "")
    print(
        f"{len(rows)} kernels compiled for {', '.join(architectures)} "
        f"in {time.perf_counter() - start:.1f} s; "
        f"{len(spilling)} spill, {len(warnings)} warnings"
    )
    return 1 if spilling or warnings else 0
