"""Plain text that aligns: what commands print."""

from __future__ import annotations

from collections.abc import Sequence


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


def bytes_text(count: float) -> str:
    """A number of bytes in its largest whole unit: ``bytes_text(1536)`` is "1.50 KiB"."""
    unit = 0
    while abs(count) >= 1024 and unit < 4:
        count, unit = count / 1024, unit + 1
    return f"{count:,.0f} B" if unit == 0 else f"{count:.2f} {' KMGT'[unit]}iB"
