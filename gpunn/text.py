"""Plain text that aligns: what commands print."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

_MANY = 30


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()
) -> str:
    """Rows under headers in aligned columns; the columns numbered in `right` to the right.

    >>> print(table(["name", "bytes"], [["x", 12], ["total", 7]], right=[1]))
    name   bytes
    -----  -----
    x         12
    total      7
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])


def aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Names and values in columns, without a header: each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(indent + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def nearest(name: str, names: Iterable[str]) -> str:
    """What follows a name that there is not: "; did you mean mlp?", or nothing if none is like it.

    >>> nearest("trian", ["train", "bench"])
    '; did you mean train?'
    """
    import difflib  # here, as everything imports this file and only mistakes need it

    spelled = {one.lower(): one for one in names}
    found = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
    return f"; did you mean {spelled[found[0]]}?" if found else ""


def known(name: str, names: Iterable[str]) -> str:
    """The same with all names that there are, unless these are many and one is like it.

    >>> known("mpl", ["digits", "mlp"])
    '; did you mean mlp? Known: digits, mlp'
    """
    names = list(names)
    near = nearest(name, names)
    if near and len(names) > _MANY:
        return near
    return f"{near}{' Known:' if near else '; known:'} {', '.join(names)}"


def bytes_text(count: float) -> str:
    """A number of bytes in its largest whole unit: ``bytes_text(1536)`` is "1.50 KiB"."""
    unit = 0
    while abs(count) >= 1024 and unit < 4:
        count, unit = count / 1024, unit + 1
    return f"{count:,.0f} B" if unit == 0 else f"{count:.2f} {' KMGT'[unit]}iB"


def number_text(value: float, unit: str = "") -> str:
    """A measured number with four digits or more: "0.9917", "12.30 °C", "1,234"; "not defined".

    >>> number_text(0.9917), number_text(12.3, "°C"), number_text(0.000012), number_text(1234)
    ('0.9917', '12.30 °C', '1.2e-05', '1,234')
    """
    size = abs(value)
    if not math.isfinite(value):
        return "not defined"
    if 0 < size < 0.001:
        text = f"{value:.3g}"
    else:
        text = f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def plain(value: Any) -> Any:
    """The value as JSON has it: tuples, paths and NumPy's numbers, NaN and infinity as None.

    >>> plain({"x": (1, float("nan"))})
    {'x': [1, None]}
    """
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
