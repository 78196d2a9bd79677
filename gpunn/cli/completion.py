"""``gpunn completion``: a script that lets the shell complete commands, options and names."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any

from gpunn.cli.arguments import Parser, add_command

SHELLS = ("bash", "zsh", "fish")

DESCRIPTION = """\
Print a script that lets the shell complete commands, options, files, and the names of jobs,
steps, settings and primitives of this version. Needs shtab: pip install 'gpunn[completion]'.
"""

EXAMPLES = """\
Print it again after an update of gpunn.

examples:
  gpunn completion bash > ~/.local/share/bash-completion/completions/gpunn
  gpunn completion zsh > ~/.zfunc/_gpunn     with fpath+=~/.zfunc before compinit in ~/.zshrc
  gpunn completion fish > ~/.config/fish/completions/gpunn.fish
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = add_command(
        subparsers,
        "completion",
        help="print a completion script for bash, zsh or fish",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from gpunn.cli.main import parser

    sys.stdout.write(script(parser(), arguments.shell))
    return 0


def script(parser: Parser, shell: str) -> str:
    """The completion script. ImportError, with what to do, without shtab."""
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "shell completion needs shtab, which is not installed; run: pip install shtab"
        ) from error
    for path, action in actions(parser):
        words = WORDS.get((path, action.dest))
        if words is not None:
            action.complete = _choices(words(), f"{path}_{action.dest}")
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY
        elif action.dest in FILES or str(action.metavar).startswith(("FILE", "OLD")):
            action.complete = shtab.FILE
    return shtab.complete(parser, shell=shell)


def actions(parser: argparse.ArgumentParser, path: str = "") -> Iterable[tuple[str, Any]]:
    """Every argument of the parser and its subcommands, each with its command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from actions(below, name)
        else:
            yield path, action


def _choices(words: Iterable[str], name: str) -> dict[str, Any]:
    """What shtab wants to know of a position that completes one of `words` but takes any text."""
    listed = " ".join(map(shlex.quote, words))
    function = f"_gpunn_{name}"
    return {
        "bash": function,
        "zsh": f"({listed})",
        "fish": f"(printf '%s\\n' {listed})",
        "preamble": {"bash": f'{function}() {{ compgen -W "{listed}" -- "$1"; }}'},
    }


def _primitives() -> list[str]:
    from gpunn import kernels

    table = kernels.table()
    return sorted({*table, *(made.family for made in table.values())})


def _jobs() -> list[str]:
    from gpunn.train import job_names

    return sorted(job_names())


def _steps() -> list[str]:
    from gpunn.profiling.ready import names

    return sorted(names())


def _settings() -> list[str]:
    from gpunn.train import find_job, job_names
    from gpunn.train.configuration import settings_of

    configs = []
    for name in job_names():
        with contextlib.suppress(Exception):  # a script of one's own that has a mistake
            configs.append(find_job(name).config)
    return sorted({f"{name}=" for config in configs for name in settings_of(config)})


def _devices() -> list[str]:
    return ["cpu", "cuda", "emulator"]


WORDS: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("bench", "primitives"): lambda: [*_primitives(), "all", "launch", "products"],
    ("kernels", "name"): _primitives,
    ("bench", "peers"): lambda: ["numpy", "cupy", "torch", "torch.compile", "triton", "none"],
    ("train", "job"): _jobs,
    ("train", "set"): _settings,
    ("profile", "step"): _steps,
    ("explain", "step"): _steps,
    ("explain", "chip"): lambda: ["h200", "h100", "a100"],
    **{(command, "device"): _devices
       for command in ("train", "predict", "evaluate", "bench", "profile", "doctor")},
}  # fmt: skip
FOLDERS = ("folder", "include", "resume")
FILES = ("data", "output", "source")
