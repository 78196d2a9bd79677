"""`gpunn doctor`: what can be used here, and does every kernel agree with its reference?"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
from typing import Any

import numpy as np

import gpunn
from gpunn.cli.arguments import (
    add_command,
    add_json,
    add_quiet,
    only_result,
    print_json,
    progress,
)
from gpunn.cli.versions import OPTIONAL
from gpunn.device import compiler, default_device, probe
from gpunn.device.device import Device
from gpunn.text import table


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    made = add_command(
        commands,
        "doctor",
        help="say which devices can be used and run each kernel once against its reference",
        description="Say which devices can be used, which optional packages are there, what is "
        "missing and how to get it, and run each kernel once against its reference.",
        examples="examples:\n  gpunn doctor\n  gpunn doctor --device cuda:1\n"
        "  gpunn doctor --device emulator\n  gpunn doctor --no-kernels\n"
        "  gpunn doctor --quiet && echo all kernels are right",
        no="a kernel does not agree with its reference",
    )
    made.add_argument(
        "--device", help="cpu, cuda, cuda:1 or emulator (default: the one that would be used)"
    )
    made.add_argument("--no-kernels", action="store_true", help="leave the kernels out")
    add_json(made)
    add_quiet(made, "only what failed and the closing line")
    made.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables; 1 if a kernel failed."""
    findings, emulator = probe.findings(), probe.find_emulator()
    told = not (arguments.json or arguments.quiet)
    # What connects processes takes a moment to ask for.
    links = [] if arguments.quiet else distributed()
    if told:
        print_machine(findings, emulator, links)
    device = Device(arguments.device) if arguments.device else default_device()
    if told:
        print(f"\ndevice used: {device}")
    kernels: list[dict[str, Any]] = []
    seconds = 0.0
    if not arguments.no_kernels:
        start = time.perf_counter()
        with only_result(arguments.json):
            kernels = check_kernels(device, arguments.quiet)
        seconds = time.perf_counter() - start
    failed = [one for one in kernels if not one["passed"]]
    if arguments.json:
        print_json(as_json([*findings, emulator, *links], device, kernels))
    elif kernels:
        shown = failed if arguments.quiet else kernels
        if shown:
            print(kernel_table(shown) + "\n")
        passed = len(kernels) - len(failed)
        print(f"{passed} of {len(kernels)} passed on {device} in {seconds:.1f} s")
    return 1 if failed else 0


def distributed() -> list[probe.Finding]:
    """What connects several processes."""
    from gpunn.distributed import finding

    return finding.findings()


def print_machine(
    findings: list[probe.Finding], emulator: probe.Finding, links: list[probe.Finding]
) -> None:
    """The tables of what there is, and below them what to do about what there is not."""
    print(table(["what", "found"], environment()))
    print()
    rows = [("yes" if f.passed else "NO", f.name, f.detail) for f in findings]
    print(table(["for a GPU", "", ""], rows))
    print()
    row = ("yes" if emulator.passed else "NO", emulator.name, emulator.detail)
    print(table(["for the emulator", "", ""], [row]))
    print()
    rows = [("yes" if f.passed else "NO", f.name, f.detail) for f in links]
    print(table(["for several processes", "", ""], rows))
    print()
    print(table(["optional package", "version", "what for", "install with"], packages()))
    for finding in [*findings, emulator, *links]:
        if not finding.passed:
            print(f"\n{finding.name}: {finding.remedy}")


def environment() -> list[tuple[str, str]]:
    """Versions and folders."""
    return [
        ("gpunn", gpunn.__version__),
        ("Python", platform.python_version()),
        ("NumPy", np.__version__),
        ("processor", f"{platform.machine()}, {_processor()}"),
        ("kernel cache", str(compiler.cache_folder())),
    ]


def packages() -> list[tuple[str, str, str, str]]:
    """The optional packages: name, version, what needs it, how to get it if it is not there."""
    rows = []
    for package in OPTIONAL:
        version = package.found()
        remedy = "" if version else f"pip install '{package.install}'"
        rows.append((package.names[0], version or "-", package.what, remedy))
    return rows


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def check_kernels(device: Device, quiet: bool = False) -> list[dict[str, Any]]:
    """Run one sample of each primitive on `device` against the float64 reference.

    Each result has kernel, implementation, passed, error (relative; None where there is none) and
    reason (why it failed).
    """
    from gpunn import kernels
    from gpunn.primitives import parity

    implementations = {"cpu": ["numpy"], "cuda": ["cuda"], "emulator": ["emulator"]}[device.type]
    if device.type == "cuda" and probe.find_numba().passed:
        implementations.append("numba")
    cases = [
        (made, *next(parity.cases(made, implementation)), implementation)
        for implementation in implementations
        for made in kernels.table().values()
    ]
    if device.type == "emulator":
        _compile_together([case[:3] for case in cases])
    found = []
    for made, sample, dtype, implementation in progress(cases, "kernel", quiet):
        one: dict[str, Any] = {"kernel": made.name, "implementation": implementation}
        try:
            result = parity.check(made, sample, dtype, implementation, device)
            one |= {"passed": bool(result.passed), "error": float(result.error),
                    "reason": "" if result.passed else result.reason}  # fmt: skip
        except Exception as error:  # a doctor names every failure and goes on
            reason = f"{type(error).__name__}: {error}"
            one |= {"passed": False, "error": None, "reason": reason}
        found.append(one)
    return found


def kernel_table(kernels: list[dict[str, Any]]) -> str:
    """The results of `check_kernels` as text."""
    rows = [
        (
            one["kernel"],
            one["implementation"],
            "passed" if one["passed"] else "FAILED",
            f"{one['error']:.1e}" if one["passed"] else one["reason"],
        )
        for one in kernels
    ]
    return table(["kernel", "implementation", "", "relative error"], rows)


def as_json(
    findings: list[probe.Finding],
    device: Device,
    kernels: list[dict[str, Any]],
) -> dict[str, Any]:
    """All of it for programs."""
    return {
        "environment": dict(environment()),
        "findings": [vars(finding) for finding in findings],
        "packages": {
            package.names[0]: {"version": package.found(), "what": package.what,
                               "install": package.install}
            for package in OPTIONAL
        },
        "device": str(device),
        "kernels": kernels,
    }  # fmt: skip


def _compile_together(cases: list[Any]) -> None:
    """Compile what the samples run on the emulator, several kernels at a time."""
    from gpunn.device.emulator_launch import prepare
    from gpunn.errors import CompileError
    from gpunn.primitives.registry import kernels_of

    with contextlib.suppress(CompileError):  # the kernel's own check then names it
        prepare(kernels_of(cases))
