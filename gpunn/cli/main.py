"""The command `gpunn`: finds the subcommand, runs it, turns errors into one sentence."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

import gpunn
from gpunn.errors import GpunnError

COMMANDS = ("train", "predict", "evaluate", "bench", "profile", "explain", "check", "kernels",
            "doctor")  # fmt: skip

EXAMPLE = """examples:
  gpunn train digits              train a network on real handwritten digits
  gpunn predict runs/… digits-test  use the trained network
  gpunn doctor                    which devices can be used, and do the kernels work?
  gpunn kernels --compile sm_90a  compile every kernel, no GPU needed
  gpunn bench softmax_forward     time a kernel against its peers
  gpunn profile mlp --by layer    time each layer and kernel of a training step
  gpunn explain gpt2              which kernels a step launches on a GPU, and what limits them
  gpunn check mine.cu --list      run a CUDA kernel on the CPU and report its faults
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog="gpunn",
        description="Train neural networks with hand-written CUDA kernels, on a GPU or on the CPU.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"gpunn {gpunn.__version__}")
    made.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (also GPUNN_DEBUG=1)"
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"gpunn.cli.{name}").add_parser(commands)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run `gpunn` with `arguments` (default: the process's) and return the exit code.

    0: done; 1: done, and the answer is no (a check failed); 2: wrong use, said in one sentence;
    130: interrupted.
    """
    parsed = parser().parse_args(arguments)
    if parsed.debug:
        return parsed.run(parsed)
    try:
        return parsed.run(parsed)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GpunnError, ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("GPUNN_DEBUG", "0") not in ("", "0"):
            raise
        print(f"gpunn {parsed.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
