"""Every GPU check and benchmark, into one result file. This is what ``make gpu`` runs.

    python benchmarks/gpu.py                     on a machine with an NVIDIA GPU; under 8 minutes
    python benchmarks/gpu.py --stages parity     only some of the stages
    python benchmarks/gpu.py --dry-run           the same stages on the CPU, tiny; no result is kept

Everything takes longer than one run has: the checks some 200 s on one GPU and 16 cores, all that is
measured, by the seconds that items took, some 800 more. Stages that measure begin with what no
result file holds yet of the present sources, so runs add up, and the tables take each row from the
newest file that has it. With a machine for a quarter of an hour, its start included:

    python benchmarks/gpu.py --seconds 390 --folder build/results
    python benchmarks/gpu.py --seconds 360 --folder build/results --stages steps "step kernels" \\
        choices candidates products microbenchmarks sanitizer

The second finds the kernels that the first compiled (build/gpu-cache) and goes on where it stopped.
Both files belong into benchmarks/results.

Runs from a bare checkout with Python 3.11, NumPy, ml_dtypes and CuPy; installs nothing. Exit code
0: all passed; 1: a test failed; 2: there is no usable GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", default="cuda", help="cuda or cuda:1 (default: cuda)")
    made.add_argument("--seconds", type=float, help="time budget (default: 450)")
    made.add_argument("--stages", nargs="+", metavar="STAGE", help="only these")
    made.add_argument("--folder", type=Path, default=CHECKOUT / "benchmarks" / "results",
                      help="where the result file goes (default: benchmarks/results)")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, kept nowhere")
    return made


def kernel_cache(chosen: set[str] | None, scratch: Path, dry_run: bool) -> Path:
    """Where compiled kernels lie: emptied where the compile stage is to compile them all; a later
    run of other stages finds them there. In `scratch` where the checkout cannot be written to."""
    place = CHECKOUT / "build" / "gpu-cache"
    if dry_run or not os.access(CHECKOUT, os.W_OK):
        return scratch / "cache"
    if chosen is None or "compile" in chosen:
        shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(place / "tuned", ignore_errors=True)  # the rules are measured, not the autotuner
    return place


def main() -> int:
    """Run the stages and print the table."""
    begin = time.monotonic()
    arguments = parser().parse_args()
    try:
        from gpunn.bench import hardware, results
        from gpunn.device.device import Device
        from gpunn.errors import DeviceError
    except ModuleNotFoundError as error:
        print(
            f"{sys.executable} has no {error.name}. This installs nothing and needs a Python with "
            "NumPy, ml_dtypes and CuPy; name it with: make gpu PYTHON=.venv/bin/python",
            file=sys.stderr,
        )
        return 2

    names = [name for name, _, _ in hardware.STAGES]
    for name in arguments.stages or ():
        if name not in names:
            print(f"{name} is no stage; there are: {', '.join(names)}", file=sys.stderr)
            return 2
    try:
        device = Device("cpu") if arguments.dry_run else Device(arguments.device)
    except (DeviceError, ValueError) as error:
        print(f"This needs a usable NVIDIA GPU: {error}", file=sys.stderr)
        return 2
    if device.type == "cpu" and not arguments.dry_run:
        print("This needs an NVIDIA GPU; --dry-run goes through it on the CPU.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpunn-") as scratch:
        chosen = set(arguments.stages) if arguments.stages else None
        os.environ["GPUNN_CACHE"] = str(kernel_cache(chosen, Path(scratch), arguments.dry_run))
        found = results.new(device, dry_run=arguments.dry_run)
        folder = Path(scratch) if arguments.dry_run else arguments.folder
        path = hardware.result_path(found, folder)
        budget = arguments.seconds or hardware.BUDGET_SECONDS
        run = hardware.Run(
            device, found, path, arguments.dry_run, begin + budget, lambda s: print(s, flush=True)
        )
        passed = hardware.run_all(run, chosen)
        print("\n" + hardware.summary(found))
        if arguments.dry_run:
            print("\nthis was a dry run on the CPU: nothing was kept")
        else:
            print(f"\nresults: {path}\n{time.monotonic() - begin:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
