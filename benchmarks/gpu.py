"""Every GPU check and benchmark, into one result file. This is what ``make gpu`` runs.

    python benchmarks/gpu.py                     on a machine with an NVIDIA GPU; under 8 minutes
    python benchmarks/gpu.py --stages parity     only some of the stages
    python benchmarks/gpu.py --dry-run           the same stages on the CPU, tiny; no result is kept

Runs from a bare checkout with Python 3.11, NumPy, ml_dtypes and CuPy; installs nothing. Exit code
0: all passed; 1: a test failed; 2: there is no usable GPU.
"""

from __future__ import annotations

import argparse
import os
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
        # A fresh cache, so that the compile stage compiles and every later one finds its work.
        os.environ["GPUNN_CACHE"] = str(Path(scratch) / "cache")
        found = results.new(device, dry_run=arguments.dry_run)
        folder = Path(scratch) if arguments.dry_run else arguments.folder
        path = hardware.result_path(found, folder)
        budget = arguments.seconds or hardware.BUDGET_SECONDS
        run = hardware.Run(
            device, found, path, arguments.dry_run, begin + budget, lambda s: print(s, flush=True)
        )
        passed = hardware.run_all(run, set(arguments.stages) if arguments.stages else None)
        print("\n" + hardware.summary(found))
        if arguments.dry_run:
            print("\nthis was a dry run on the CPU: nothing was kept")
        else:
            print(f"\nresults: {path}\n{time.monotonic() - begin:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
