"""The command `gpunn`: finds the subcommand, runs it, turns errors into one sentence."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import Any

import gpunn
from gpunn.cli import ranks
from gpunn.cli.arguments import Parser, print_json
from gpunn.errors import GpunnError

COMMANDS = ("train", "predict", "evaluate", "bench", "report", "profile", "explain", "check",
            "kernels", "doctor", "completion")  # fmt: skip

EXAMPLE = """examples:
  gpunn train digits              train a network on real handwritten digits
  gpunn predict runs/… digits-test  use the trained network
  gpunn report runs/…             see the run as a page in the browser
  gpunn doctor                    which devices can be used, and do the kernels work?
  gpunn kernels --compile sm_90a  compile every kernel, no GPU needed
  gpunn bench softmax_forward     time a kernel against its peers
  gpunn profile mlp --by layer    time each layer and kernel of a training step
  gpunn explain gpt2              which kernels a step launches on a GPU, and what limits them
  gpunn check mine.cu --list      run a CUDA kernel on the CPU and report its faults

gpunn COMMAND --help says what a command takes, with examples and its exit codes.
"""


def parser() -> Parser:
    """The whole command line."""
    return _parsers()[0]


def subcommands() -> dict[str, Parser]:
    """The parser of each command by its name."""
    return _parsers()[1]


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    made = Parser(
        prog="gpunn",
        description="Train neural networks with hand-written CUDA kernels, on a GPU or on the CPU.",
        epilog=EXAMPLE,
    )
    made.add_argument(
        "--version", action="store_true", help="print the version; with --json, all that matter"
    )
    made.add_argument("--json", dest="version_json", action="store_true", help="with --version")
    made.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (also GPUNN_DEBUG=1)"
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        importlib.import_module(f"gpunn.cli.{name}").add_parser(commands)
    return made, commands.choices


def main(arguments: list[str] | None = None) -> int:
    """Run `gpunn` with `arguments` (default: the process's) and return the exit code.

    0: done; 1: done, and the answer is no (a check failed); 2: wrong use, said in one sentence;
    130: interrupted; 141: the reader of the output, such as `head`, went away before the end.
    """
    _prepare_streams()
    try:
        with ranks.one_voice():
            parsed = _parse(arguments)
        return _run(parsed)
    except KeyboardInterrupt:
        with ranks.one_voice():
            print("\ninterrupted", file=sys.stderr)
        return 130


def _prepare_streams() -> None:
    """Printing must not fail: a closed stream takes all, a character that one has not is "?"."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _parse(arguments: list[str] | None) -> Any:
    """What was given, with `run`: what does it."""
    root, commands = _parsers()
    parsed, rest = root.parse_known_args(arguments)
    if rest:
        commands.get(parsed.command, root).unexpected(rest)
    if parsed.version_json and not parsed.version:
        root.error("--json before a command goes with --version; give it after the command")
    if parsed.version:
        parsed.run = _print_version
    elif parsed.command is None:
        parsed.run, parsed.help = _print_help, root.format_help()
    return parsed


def _print_version(parsed: Any) -> int:
    if parsed.version_json:
        from gpunn.cli.versions import versions

        print_json(versions())
    else:
        print(f"gpunn {gpunn.__version__}")
    return 0


def _print_help(parsed: Any) -> int:
    print(parsed.help, end="")
    return 0


def _run(parsed: Any) -> int:
    try:
        code = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # so that Python's own flush at the end has a reader
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (GpunnError, ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if parsed.debug or os.environ.get("GPUNN_DEBUG", "0") not in ("", "0"):
            raise
        command = f"gpunn {parsed.command}" if parsed.command else "gpunn"
        text = [f"{command}: {_sentence(error)}", *getattr(error, "__notes__", ())]
        return ranks.say_error("\n".join(text), error, 2)


def _sentence(error: Exception) -> str:
    """What went wrong; of the operating system's errors the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
