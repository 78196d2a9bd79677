"""In which line of a TOML text each key and element stands: `tomllib` says what, but not where."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' + r"|'''.*?'''(?:'{0,2})"
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


@dataclass
class Positions:
    """What `find_positions` found.

    Attributes
    ----------
    lines : the line, from 1, of each table, key and element: ``("digits", "hidden", 1)`` is the
        second element of ``hidden`` in the table ``[digits]``
    twice : each key or table that is written a second time: (path, first line, second line)
    """

    lines: dict[KeyPath, int] = field(default_factory=dict)
    twice: list[tuple[KeyPath, int, int]] = field(default_factory=list)

    def of(self, path: KeyPath) -> int:
        """The line of `path`, or of the innermost table or list around it that stands anywhere."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def find_positions(text: str) -> Positions:
    """The lines of all keys in `text`; where it is not TOML, those up to there."""
    scanner = _Scanner(text)
    try:
        scanner.document()
    except (_LostError, RecursionError):
        pass  # what is wrong with it is tomllib's to say
    return scanner.found


class _LostError(Exception):
    """The text is not TOML from here on."""


class _Scanner:
    """Reads keys and steps over values; `at` is where in the text it stands."""

    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.found = Positions()
        self.elements: dict[KeyPath, int] = {}  # how many [[tables]] of that name there are
        self.ends = [match.start() for match in re.finditer("\n", text)]

    def document(self) -> None:
        table: KeyPath = ()
        while self.skip(_BLANK) and self.at < len(self.text):
            start = self.at
            if self.take("[["):
                path = self.resolved(self.key())
                self.need("]]")
                number = self.elements[path] = self.elements.get(path, -1) + 1
                table = (*path, number)
                self.note(table, start)
                self.found.lines.setdefault(path, self.line(start))
            elif self.take("["):
                table = self.resolved(self.key())
                self.need("]")
                self.note(table, start)
            else:
                self.pair(table)

    def pair(self, table: KeyPath) -> None:
        start = self.at
        path = (*table, *self.key())
        self.need("=")
        self.note(path, start)
        for length in range(len(table) + 1, len(path)):  # a.b = 1 makes the table a
            self.found.lines.setdefault(path[:length], self.line(start))
        self.value(path)

    def key(self) -> tuple[str, ...]:
        names = []
        while True:
            self.skip(_SPACE)
            raw = self.match(_KEY)
            try:
                names.append(tomllib.loads(f"x = {raw}")["x"] if raw[0] in "\"'" else raw)
            except tomllib.TOMLDecodeError:
                raise _LostError from None
            self.skip(_SPACE)
            if not self.take("."):
                return tuple(names)

    def resolved(self, names: tuple[str, ...]) -> KeyPath:
        """The path of a header: within an array of tables the latest one is meant."""
        path: KeyPath = ()
        for name in names[:-1]:
            path = (*path, name)
            if path in self.elements:
                path = (*path, self.elements[path])
        return (*path, names[-1])

    def value(self, path: KeyPath) -> None:
        self.skip(_SPACE)
        if self.take("["):
            self.items(path)
        elif self.take("{"):
            while self.skip(_BLANK) and not self.take("}"):
                self.pair(path)
                self.skip(_BLANK)
                self.take(",")
        elif self.text.startswith(('"', "'"), self.at):
            self.match(_STRING)
        else:
            self.match(_SCALAR)

    def items(self, path: KeyPath) -> None:
        number = 0
        while self.skip(_BLANK) and not self.take("]"):
            self.found.lines[(*path, number)] = self.line(self.at)
            self.value((*path, number))
            number += 1
            self.skip(_BLANK)
            if not self.take(",") and not self.text.startswith("]", self.at):
                raise _LostError

    def note(self, path: KeyPath, start: int) -> None:
        line = self.line(start)
        if path in self.found.lines:
            self.found.twice.append((path, self.found.lines[path], line))
        else:
            self.found.lines[path] = line

    def line(self, at: int) -> int:
        return bisect_right(self.ends, at - 1) + 1

    def skip(self, pattern: re.Pattern[str]) -> bool:
        matched = pattern.match(self.text, self.at)
        assert matched is not None  # it matches nothing, too
        self.at = matched.end()
        return True

    def match(self, pattern: re.Pattern[str]) -> str:
        matched = pattern.match(self.text, self.at)
        if matched is None:
            raise _LostError
        self.at = matched.end()
        return matched.group()

    def take(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def need(self, mark: str) -> None:
        self.skip(_SPACE)
        if not self.take(mark):
            raise _LostError
