"""Many messages that say the same, as few lines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_GAP = "…"


@dataclass
class Group:
    """Messages of one `kind` that differ only in numbers and in the names of their items."""

    kind: str
    text: str
    names: list[str] = field(default_factory=list)

    def which(self, most: int = 4) -> str:
        """The first names, and how many more there are."""
        more = len(self.names) - most
        return ", ".join(self.names[:most]) + (f" and {more:,} more" if more > 0 else "")


def last_line(text: str) -> str:
    """The last line that is not empty: of a traceback the one that names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is recorded"


def gist(text: str, name: str) -> str:
    """A line without numbers and without the words of `name`, of which it speaks."""
    for word in sorted(set(re.findall(r"\w{2,}", name)), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", _GAP, text)
    text = re.sub(r"\w*\d(?:[\w.+-]*\w)?", _GAP, text)
    return re.sub(rf"{_GAP}(?:[\s.+-]*{_GAP})+", _GAP, text)


def grouped(messages: Iterable[tuple[str, str, str]]) -> list[Group]:
    """Messages (kind, name of the item, text) in groups, the largest first.

    Where all have the same last line it is shown as it is. An item is named once in a group.
    """
    found: dict[tuple[str, str], Group] = {}
    for kind, name, text in messages:
        line = last_line(text)
        key = kind, gist(line, name)
        group = found.setdefault(key, Group(kind, line))
        if name not in group.names:
            group.names.append(name)
        if line != group.text:
            group.text = key[1]
    return sorted(found.values(), key=lambda group: -len(group.names))
