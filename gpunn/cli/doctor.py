"""`gpunn doctor`: what can be used here, and does every kernel agree with its reference?"""

from __future__ import annotations

import argparse
import contextlib
import platform
import time

import numpy as np

import gpunn
from gpunn.device import compiler, default_device, probe
from gpunn.device.device import Device
from gpunn.text import table


def add_parser(commands) -> None:
    """Add the command to the command line."""
    made = commands.add_parser(
        "doctor",
        help="say which devices can be used and run each kernel once against its reference",
        description="Say which devices can be used, what is missing for a GPU and how to get it, "
        "and run each kernel once against its reference.",
        epilog="examples:\n  gpunn doctor\n  gpunn doctor --device cuda:1\n"
        "  gpunn doctor --device emulator\n  gpunn doctor --no-kernels",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--device", help="cpu, cuda, cuda:1 or emulator (default: the one that would be used)"
    )
    made.add_argument("--no-kernels", action="store_true", help="leave the kernels out")
    made.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables; 1 if a kernel failed."""
    print(table(["what", "found"], environment()))
    print()
    findings = probe.findings()
    rows = [("yes" if f.passed else "NO", f.name, f.detail) for f in findings]
    print(table(["for a GPU", "", ""], rows))
    print()
    emulator = probe.find_emulator()
    row = ("yes" if emulator.passed else "NO", "host compiler, headers", emulator.detail)
    print(table(["for the emulator", "", ""], [row]))
    for finding in [*findings, emulator]:
        if not finding.passed:
            print(f"\n{finding.name}: {finding.remedy}")
    device = Device(arguments.device) if arguments.device else default_device()
    print(f"\ndevice used: {device}")
    return 0 if arguments.no_kernels else check_kernels(device)


def environment() -> list[tuple[str, str]]:
    """Versions and folders."""
    return [
        ("gpunn", gpunn.__version__),
        ("Python", platform.python_version()),
        ("NumPy", np.__version__),
        ("processor", f"{platform.machine()}, {_processor()}"),
        ("kernel cache", str(compiler.cache_folder())),
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def check_kernels(device: Device) -> int:
    """Run one sample of each primitive on `device` against the float64 reference."""
    from gpunn import kernels
    from gpunn.primitives import parity

    implementations = {"cpu": ["numpy"], "cuda": ["cuda"], "emulator": ["emulator"]}[device.type]
    if device.type == "cuda" and probe.find_numba().passed:
        implementations.append("numba")
    rows, failed, start = [], 0, time.perf_counter()
    for implementation in implementations:
        cases = [
            (made, *next(parity.cases(made, implementation))) for made in kernels.table().values()
        ]
        if implementation == "emulator":
            _compile_together(cases)
        for made, sample, dtype in cases:
            try:
                result = parity.check(made, sample, dtype, implementation, device)
                text = f"{result.error:.1e}" if result.passed else result.reason
                passed = result.passed
            except Exception as error:  # a doctor names every failure and goes on
                text, passed = f"{type(error).__name__}: {error}", False
            failed += not passed
            rows.append((made.name, implementation, "passed" if passed else "FAILED", text))
    print(table(["kernel", "implementation", "", "relative error"], rows))
    passed = len(rows) - failed
    print(f"\n{passed} of {len(rows)} passed on {device} in {time.perf_counter() - start:.1f} s")
    return 1 if failed else 0


def _compile_together(cases: list) -> None:
    """Compile what the samples run on the emulator, several kernels at a time."""
    from gpunn.device.emulator_launch import prepare
    from gpunn.errors import CompileError
    from gpunn.primitives.registry import kernels_of

    with contextlib.suppress(CompileError):  # the kernel's own check then names it
        prepare(kernels_of(cases))
