"""From the docstrings of gpunn to reStructuredText.

The docstrings are written to be read in a terminal: `names` in single backticks, formulas as they
are, and sections underlined with dashes, whose entries are ``names : meaning``. Sphinx would take
the ``*`` of a product for emphasis, ``|x|`` for a substitution and ``step_`` for a link, and the
meaning for a type. `translate` leaves code alone and puts the rest right.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

LISTS = {"Parameters", "Attributes", "Returns", "Yields", "Raises"}  # sections of entries
SECTIONS = LISTS | {"Notes", "Examples"}

_CODE = re.compile(r"(``.+?``|(?<![\w`])`[^`\n]+`(?!`)|`[^`]+`_|https?://[^\s>)]+)", re.S)
_EMPHASIS = re.compile(r"(?<![\w*])\*[^\W\d][\w ]*(?<! )\*(?![\w*])")
_ENTRY = re.compile(r"(?P<names>\S.*?) : (?P<meaning>.*)")


def translate(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    out: list[str] = []
    for title, body in _sections(lines):
        if title:
            out += ["", f".. rubric:: {title}", ""]
        out += _entries(body) if title in LISTS else _text(body)
    return out


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) of each section, the first without a title."""
    title, body = "", []
    for line in lines:
        underlined = body and body[-1] in SECTIONS and re.fullmatch(r"-{3,}", line)
        if underlined:
            head = body.pop()
            yield title, body
            title, body = head, []
        else:
            body.append(line)
    yield title, body


def _entries(lines: list[str]) -> list[str]:
    """A section of entries as a list of definitions; text between them stays text."""
    out: list[str] = []
    for head, body in _blocks(lines):
        entry = _ENTRY.match(head)
        if entry:
            names = ", ".join(_name(name.strip()) for name in entry["names"].split(","))
            out += ["", names, *(f"    {line}" for line in _text([entry["meaning"], *body]))]
        else:  # text, and what is indented below it are entries again
            out += [*_text([head]), *(f"    {line}" for line in _entries(body) if body)]
    return out


def _name(name: str) -> str:
    return name if name.startswith("`") else f"``{name}``"


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(line, the lines indented below it, dedented)"""
    head, body = None, []
    for line in lines:
        if head is not None and (line.startswith(" ") or (not line and body)):
            body.append(line)
            continue
        if head is not None:
            yield head, textwrap.dedent("\n".join(body)).split("\n") if body else []
        head, body = line, []
    if head is not None:
        yield head, textwrap.dedent("\n".join(body)).split("\n") if body else []


def _text(lines: list[str]) -> list[str]:
    """Text with what is no markup escaped; code, examples and tables as they are."""
    out: list[str] = []
    paragraph: list[str] = []

    def close() -> None:
        out.extend(_escape("\n".join(paragraph)).split("\n") if paragraph else [])
        paragraph.clear()

    literal: int | None = None  # the indentation of the paragraph that a literal block follows
    example = table = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            close()
            out.append("")
            example = False
            continue
        if literal is not None and indent > literal:
            out.append(line)
            continue
        literal = None
        table = table != bool(re.fullmatch(r"\s*=+( +=+)+", line)) if not table else table
        if line.lstrip().startswith(">>>") or example or table:
            close()
            example = example or line.lstrip().startswith(">>>")
            out.append(line)
            continue
        paragraph.append(line)
        if line.rstrip().endswith("::"):
            literal = indent
            close()
    close()
    return out


def _escape(text: str) -> str:
    parts = _CODE.split(text)
    for number in range(0, len(parts), 2):
        kept = _EMPHASIS.split(parts[number])
        found = _EMPHASIS.findall(parts[number])
        plain = [re.sub(r"([*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in kept]
        parts[number] = "".join(a + b for a, b in zip(plain, [*found, ""], strict=True))
    return "".join(parts)
