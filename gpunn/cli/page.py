"""The commands of docs/cli.md, made from the parsers: ``python -m gpunn.cli.page docs/cli.md``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from gpunn.cli.main import subcommands

MARK = "<!-- What follows is made from the parsers by `make docs-tables`; do not edit it. -->"


def commands_text() -> str:
    """A section for each command: what it does, what it takes, examples and exit codes."""
    return "\n".join(_section(name, parser) for name, parser in subcommands().items())


def whole(page: str) -> str:
    """The page with the sections as they must be."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"the page has no line {MARK}")
    return f"{head}{MARK}\n\n{commands_text()}"


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| {_syntax(action)} | {_cell(str(action.help) % {'default': action.default})} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    description = textwrap.fill(" ".join((parser.description or "").split()), 100)
    lines = [f"## gpunn {name}", "", description, ""]
    lines += ["| argument | what it does |", "| --- | --- |", *rows, ""]
    return "\n".join([*lines, "```text", *(parser.epilog or "").strip().split("\n"), "```", ""])


def _syntax(action: argparse.Action) -> str:
    metavar = action.metavar
    if metavar is None:
        metavar = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    value = "" if action.nargs == 0 else str(metavar)
    value += " …" if action.nargs in ("+", "*") else ""
    value = f"[{value}]" if action.nargs in ("?", "*") else value
    names = ", ".join(action.option_strings)
    return f"`{_cell(f'{names} {value}'.strip())}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(whole(path.read_text(encoding="utf-8")), encoding="utf-8")
