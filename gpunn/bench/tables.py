"""Rows as text: what ``gpunn bench`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpunn.bench.cases import shape_text
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.compare import Change
from gpunn.bench.measure import NotTimed, Row
from gpunn.text import table


def seconds_text(seconds: float) -> str:
    """Three significant digits with a unit: 850 ns, 1.23 us, 45.6 ms."""
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{significant(seconds * factor)} {unit}"
    return f"{significant(seconds)} s"


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits and never in exponent form: 0.0123, 12.3, 1230."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")  # 0.9999 has one digit more before the point
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{min(places, 9)}f}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]], right: int) -> str:
    """A Markdown table; the columns from `right` on are aligned to the right."""
    rule = ["---" if i < right else "---:" for i in range(len(headers))]
    lines = [headers, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def rows_table(rows: Sequence[Row]) -> str:
    """Every row with its rates, its floor and, for ours, how many times as fast as each peer."""
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    fast = any(row.flops / row.timing.median > 1e12 for row in rows)
    scale, unit = (1e12, "TFLOP/s") if fast else (1e9, "GFLOP/s")
    headers = ["primitive", "shape", "dtype", "by", "mode", "cache", "median", "spread", "GB/s",
               unit, "floor", "of floor", *(f"vs {name}" for name in peers)]  # fmt: skip
    cells = []
    for row in rows:
        seconds = row.timing.median
        cells.append([
            row.primitive, shape_text(row.shape), row.dtype, row.implementation, row.mode,
            row.cache, seconds_text(seconds), f"{100 * row.timing.spread:.0f}%",
            significant(row.bytes / seconds / 1e9), significant(row.flops / seconds / scale),
            seconds_text(row.floor), f"{row.percent_of_floor:.0f}%",
            *(f"{row.peers[name]:.2f}x" if name in row.peers else "" for name in peers),
        ])  # fmt: skip
    return table(headers, cells, right=range(6, len(headers)))


def over_shapes(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: each primitive over all its shapes, as geometric mean and worst.

    Of the two modes of a case the faster counts: a graph where launches would be what is measured.
    """
    best: dict[tuple, Row] = {}
    for row in rows:
        key = (row.primitive, row.dtype, row.implementation, row.shape)
        if row.ours and (key not in best or row.timing.median < best[key].timing.median):
            best[key] = row
    peers = list(dict.fromkeys(name for row in best.values() for name in row.peers))
    groups: dict[tuple, list[Row]] = {}
    for row in best.values():
        groups.setdefault((row.primitive, row.dtype, row.implementation), []).append(row)
    cells = []
    for key, members in groups.items():
        worst = min(members, key=lambda row: row.percent_of_floor)
        cells.append([
            *key, str(len(members)), f"{_mean([r.percent_of_floor for r in members]):.0f}%",
            f"{worst.percent_of_floor:.0f}%", shape_text(worst.shape),
            *(_ratios([r.peers[name] for r in members if name in r.peers]) for name in peers),
        ])  # fmt: skip
    headers = ["primitive", "dtype", "by", "shapes", "of floor", "worst", "at",
               *(f"vs {name}" for name in peers)]  # fmt: skip
    return headers, cells


def _mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _ratios(values: Sequence[float]) -> str:
    return f"{_mean(values):.2f} ({min(values):.2f})" if values else ""


def ceilings_text(ceilings: Ceilings) -> str:
    """The measured ceilings, a line each."""
    lines = [f"copy bandwidth of {ceilings.device}: {ceilings.copy / 1e9:,.1f} GB/s "
             f"({ceilings.how['copy']})"]  # fmt: skip
    for dtype, rate in ceilings.rates.items():
        lines.append(f"{dtype} product: {significant(rate / 1e12)} TFLOP/s ({ceilings.how[dtype]})")
    return "\n".join(lines)


def not_timed_text(skipped: Sequence[NotTimed]) -> str:
    """What has no time, and why; one line each, equal reasons together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for one in skipped:
        grouped.setdefault((one.contestant, one.reason), []).append(one.case)
    lines = []
    for (contestant, reason), cases in grouped.items():
        where = cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
        lines.append(f"  {contestant}, {where}: {reason}")
    return "not timed:\n" + "\n".join(lines) if lines else ""


def changes_table(changes: Sequence[Change]) -> str:
    """Rows of two runs beside each other."""
    cells = [
        [*change.name, seconds_text(change.old), seconds_text(change.new),
         f"{100 * (change.ratio - 1):+.1f}%", change.verdict]
        for change in changes
    ]  # fmt: skip
    headers = ["primitive", "shape", "dtype", "by", "mode", "before", "now", "change", ""]
    return table(headers, cells, right=(5, 6, 7))
