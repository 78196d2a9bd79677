"""What subcommands share: the parser, common options, exit codes, JSON that stands alone."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from gpunn.text import known, nearest, plain, table

DEVICE = "cpu, cuda, cuda:1 or emulator (default: a GPU if one is usable)"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

_CHOICE = re.compile(r"argument ([^:]+): invalid choice: '?(.*?)'? \(choose from (.*)\)", re.DOTALL)
_NUMBER = re.compile(r"argument ([^:]+): invalid (int|float) value: (.*)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse's parser with mistakes told in one sentence that names what was probably meant."""

    def __init__(self, **options: Any):
        # An abbreviation that works today would mean something else once an option is added.
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if sys.version_info >= (3, 14):
            options.setdefault("color", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        found = _CHOICE.fullmatch(message)
        if found:
            name, value, listed = found.groups()
            choices = re.findall(r"[^\s',]+", listed)
            what = f"there is no command {value!r}"
            if name != "COMMAND":
                what = f"{name} cannot be {value!r}"
            message = what + known(value, choices)
        elif found := _NUMBER.fullmatch(message):
            kind = "a whole number" if found[2] == "int" else "a number"
            message = f"{found[1]} must be {kind}, got {found[3]}"
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def unexpected(self, rest: list[str]) -> NoReturn:
        """Refuse the arguments that no option and no position takes."""
        option = next((text for text in rest if text.startswith("-") and len(text) > 1), None)
        if option is None:
            self.error(f"unexpected {'argument' if len(rest) == 1 else 'arguments'} "
                       f"{' '.join(map(repr, rest))}")  # fmt: skip
        name = option.partition("=")[0]
        self.error(f"there is no option {name}{nearest(name, self._option_string_actions)}")


def add_command(
    subparsers: Any,
    name: str,
    *,
    help: str,
    description: str,
    examples: str,
    no: str = "",
    interrupted: str = "",
) -> Parser:
    """A parser for a subcommand, whose help ends with examples and exit codes.

    Parameters
    ----------
    help, description : in the list of commands, and at the top of its own help
    examples : what follows the options; it has a paragraph that begins with "examples:"
    no : what exit code 1 says, if the command has one
    interrupted : what is kept after Ctrl-C, if anything
    """
    codes = ["exit codes:", "  0    done"]
    codes += [f"  1    {no}"] if no else []
    codes += [
        "  2    wrong use, or it cannot be done here: one sentence says why",
        f"  130  interrupted by Ctrl-C{interrupted and '; ' + interrupted}",
    ]
    width = min(shutil.get_terminal_size((100, 24)).columns - 2, 98)
    return subparsers.add_parser(
        name,
        help=help,
        description=textwrap.fill(" ".join(description.split()), max(width, 40)),
        epilog=examples.rstrip() + "\n\n" + "\n".join(codes),
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON and nothing else; progress goes to standard error",
    )


def add_quiet(parser: argparse.ArgumentParser, what: str = "no progress, only the result") -> None:
    """The option --quiet."""
    parser.add_argument("--quiet", action="store_true", help=what)


def print_json(result: Any) -> None:
    """Print one JSON document; NaN and infinity, which JSON has not, as null."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = codecs.lookup(encoding).name != "utf-8"  # where "?" would stand for what it has not
    text = json.dumps(plain(result), indent=1, ensure_ascii=escaped, allow_nan=False)
    print(text, flush=True)


@contextlib.contextmanager
def only_result(active: bool) -> Iterator[None]:
    """If `active`, all that is printed inside goes to standard error, kernels' printf included."""
    if not active:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def wide_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int], cut: int
) -> str:
    """A table whose column `cut` gives way where the terminal is too narrow; a pipe gets it all."""
    if not _is_terminal(sys.stdout):
        return table(headers, rows, right)
    from gpunn.profiling.tables import fitted

    return fitted(headers, rows, right, {cut: "start"}, shutil.get_terminal_size().columns)


def progress(items: Any, unit: str, quiet: bool = False, total: int | None = None) -> Any:
    """The items with a bar on standard error, if that is a terminal and not `quiet`."""
    from tqdm import tqdm

    off = quiet or not _is_terminal(sys.stderr)
    return tqdm(items, total=total, unit=unit, leave=False, disable=off, file=sys.stderr)


def _is_terminal(stream: Any) -> bool:
    with contextlib.suppress(AttributeError, ValueError, io.UnsupportedOperation):
        return bool(stream.isatty())
    return False


def check_picture(option: str, path: str) -> None:
    """Refuse, before any work, a picture that could not be written in the end."""
    from gpunn.bench.roofline import require_matplotlib
    from gpunn.io import check_target

    if os.path.splitext(path)[1] not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--{option} {path}: give a name that ends in .png, .svg or .pdf")
    require_matplotlib()
    check_target(path)


def at_least(name: str, value: int | None, low: int) -> None:
    """ValueError if the option --`name` is below `low`."""
    if value is not None and value < low:
        raise ValueError(f"--{name} is {value}; expected {low} or more")
