"""A page of sections, and how it becomes one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

import gpunn
from gpunn.io import write_text
from gpunn.report.charts import Chart

TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Card:
    """A figure that a reader should see first; `tone` "bad" colours it."""

    label: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Finding:
    """A sentence that a reader should not miss; `kind` is "bad", "warning", "good" or "note"."""

    kind: str
    text: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, what it is sorted by, and how strongly it is coloured.

    `tone` is "", "good", "bad" or "accent" and `strength` between 0 and 1; `bar` between 0 and 1
    draws a bar of that length behind the text; `tip` is shown when it is pointed at.
    """

    text: str
    sort: float | None = None
    tone: str = ""
    strength: float = 0.0
    bar: float | None = None
    tip: str = ""


@dataclass
class Block:
    """A part of a section; `kind` is the macro of templates/page.html that writes it."""

    kind: str
    data: dict[str, Any]


@dataclass
class Section:
    """A heading with what stands under it."""

    title: str
    note: str = ""
    blocks: list[Block] = field(default_factory=list)
    anchor: str = ""

    def text(self, text: str) -> Section:
        """A paragraph."""
        return self._add("text", text=text)

    def charts(self, *charts: Chart) -> Section:
        """Charts beside each other where there is room."""
        return self._add("charts", charts=charts) if charts else self

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        right: Sequence[int] = (),
        caption: str = "",
        sortable: bool = True,
        search: bool | None = None,
    ) -> Section:
        """A table; cells are texts, numbers or `Cell`. Those numbered in `right` stand right.

        `search` offers a field that filters the rows (None: from 12 rows on).
        """
        cells = [
            [cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row] for row in rows
        ]
        return self._add(
            "table",
            headers=list(headers),
            rows=cells,
            right=set(right),
            caption=caption,
            sortable=sortable and len(cells) > 1,
            search=len(cells) >= 12 if search is None else search,
        )

    def matrix(
        self,
        corner: str,
        columns: Sequence[str],
        rows: Sequence[tuple[str, list[Cell]]],
        caption: str,
        numbers: bool = True,
    ) -> Section:
        """A heat map as a table: a name and cells for each row."""
        return self._add(
            "matrix",
            corner=corner,
            columns=list(columns),
            rows=list(rows),
            caption=caption,
            numbers=numbers,
        )

    def images(self, images: Sequence[tuple[str, str, str]], size: int) -> Section:
        """Images of `size` pixels: (data address, what it shows, caption)."""
        return self._add("images", images=list(images), size=size)

    def facts(self, pairs: Sequence[tuple[str, str]]) -> Section:
        """Names and values."""
        return self._add("facts", pairs=[(name, str(value)) for name, value in pairs])

    def code(self, text: str, label: str = "") -> Section:
        """Something to type, or to read letter by letter."""
        return self._add("code", text=text, label=label)

    def picture(self, content: Markup, caption: str) -> Section:
        """An image or an SVG, made elsewhere."""
        return self._add("picture", content=content, caption=caption)

    def details(self, summary: str, inside: Section, unfolded: bool = False) -> Section:
        """Something to unfold."""
        return self._add("details", summary=summary, blocks=inside.blocks, unfolded=unfolded)

    def columns(self, *columns: Section) -> Section:
        """Blocks beside each other where there is room."""
        return self._add("columns", columns=[column.blocks for column in columns])

    def findings(self, findings: Sequence[Finding]) -> Section:
        """Sentences that stand out."""
        return self._add("findings", findings=list(findings)) if findings else self

    def _add(self, kind: str, **data: Any) -> Section:
        self.blocks.append(Block(kind, data))
        return self


class Page:
    """A page: a title, the figures that matter, sections.

    All texts are escaped when the page is written, wherever they come from.
    """

    def __init__(self, title: str, subtitle: str = "", kicker: str = "gpunn"):
        self.title, self.subtitle, self.kicker = title, subtitle, kicker
        self.cards: list[Card] = []
        self.sections: list[Section] = []

    def section(self, title: str, note: str = "") -> Section:
        """Add a section and return it, to be filled."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {section.anchor for section in self.sections}
        number = 2
        unique = anchor
        while unique in taken:
            unique, number = f"{anchor}-{number}", number + 1
        self.sections.append(Section(title, note, anchor=unique))
        return self.sections[-1]

    def html(self) -> str:
        """The whole page as text."""
        script = (TEMPLATES / "page.js").read_text("utf-8").strip()
        # The policy names the digest of our script: none that came with the data would run.
        digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
        text = (
            _environment()
            .get_template("page.html")
            .render(
                page=self,
                style=Markup((TEMPLATES / "page.css").read_text("utf-8")),
                script=Markup(script),
                digest=digest,
                written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
                version=gpunn.__version__,
            )
        )
        return text.strip() + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page whole or not at all. FileNotFoundError if the folder is not there."""
        write_text(path, self.html())


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["sort_key"] = lambda value: (
        "" if value is None or math.isnan(value) else (f"{value:.6g}")
    )
    return made
