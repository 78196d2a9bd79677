"""`gpunn kernels`: list the kernel table, and compile every kernel without a GPU."""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from gpunn.device import compiler
from gpunn.text import table


def add_parser(commands) -> None:
    """Add the command to the command line."""
    made = commands.add_parser(
        "kernels",
        help="list the kernels, or compile them for named architectures",
        description="List the kernel table, or compile every CUDA kernel for named architectures "
        "(no GPU needed) and print registers, shared memory and spills.",
        epilog="examples:\n  gpunn kernels\n  gpunn kernels --compile sm_80 sm_90a\n"
        "  gpunn kernels softmax --compile sm_90a --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("name", nargs="*", help="only primitives whose name or family contains this")
    made.add_argument(
        "--compile", nargs="+", metavar="ARCH", help="architectures such as sm_80 sm_90a sm_100a"
    )
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
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
            f"no kernel is named like {' or '.join(arguments.name)}; see gpunn kernels"
        )
    if arguments.compile:
        return compile_kernels(chosen, arguments.compile, arguments.json)
    rows = [
        (p.name, p.family, ", ".join(p.implementations), p.cuda_source, first_line(p))
        for p in chosen
    ]
    if arguments.json:
        names = ("name", "family", "implementations", "source", "summary")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        print(table(["primitive", "family", "implementations", "CUDA source", "what"], rows))
    return 0


def first_line(made) -> str:
    """The first line of the primitive's docstring, without markup."""
    return (made.__doc__ or "").strip().splitlines()[0].replace("`", "")


def compile_kernels(primitives, architectures: list[str], as_json: bool) -> int:
    """Compile all kernels of `primitives` for each architecture and report on each."""
    from gpunn.primitives.registry import reachable_kernels

    start = time.perf_counter()
    jobs = [
        (source, tuple(expressions), arch)
        for arch in architectures
        for source, expressions in reachable_kernels(arch, primitives=primitives).items()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = list(pool.map(lambda job: compiler.build(*job), jobs))
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
    if as_json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        print(table(names, rows, right=(3, 4, 5, 6)))
    warnings = [f"{b.source} ({b.arch}): {line}" for b in builds for line in b.warnings]
    spilling = sum(1 for row in rows if row[6])
    if not as_json:
        print(*warnings, sep="\n", end="\n" if warnings else "")
        seconds = time.perf_counter() - start
        print(
            f"\n{len(rows)} kernels compiled for {', '.join(architectures)} in {seconds:.1f} s; "
            f"{spilling} spill, {len(warnings)} warnings"
        )
    return 1 if spilling or warnings else 0
