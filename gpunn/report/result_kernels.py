"""The sections of a benchmark report on kernels and matrix products."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from gpunn.bench import product_tables
from gpunn.bench.cases import shape_text
from gpunn.bench.measure import Row
from gpunn.bench.tables import seconds_text, significant
from gpunn.report.charts import Key, Ratio, ratios
from gpunn.report.page import Cell, Page
from gpunn.report.roofline import fastest, flops_text


def ratio_cell(ratio: float | None, tip: str = "") -> Cell:
    """A peer's time over ours: green-blue above 1, orange below, stronger the further away.

    What is 1.00 as it is written has no colour.
    """
    if ratio is None:
        return Cell("")
    text = f"{ratio:.2f}×"
    if text == "1.00×":
        return Cell(text, ratio, tip=tip)
    strength = min(1.0, 0.12 + abs(math.log2(ratio)) / 2.5) if ratio > 0 else 1.0
    return Cell(text, ratio, "good" if ratio >= 1 else "bad", strength, tip=tip)


# ---- kernels -------------------------------------------------------------------------------------


def peers_section(page: Page, rows: Sequence[Row]) -> None:
    """Bars of a peer's time over ours, a chart a dtype, over all shapes of a primitive."""
    ours = [row for row in fastest([row for row in rows if row.ours]) if row.peers]
    if not ours:
        return
    peers = list(dict.fromkeys(name for row in ours for name in row.peers))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in ours:
        groups.setdefault((row.implementation, row.dtype), []).append(row)
    for key in [key for key in groups if key[1] == "-"]:  # these few stand with others
        if other := _largest(groups, key[0]):
            groups[other] += groups.pop(key)
    charts = []
    for (by, dtype), mine in sorted(groups.items(), key=lambda item: -len(item[1])):
        keys = [
            Key(number, name, "dot")
            for number, name in enumerate(peers)
            if any(name in row.peers for row in mine)
        ]
        charts.append(
            ratios(
                f"{by}, {_dtypes(dtype, mine)}",
                _lines(mine, peers),
                keys,
                x_label="peer's time over ours",
                full=len(groups) == 1,
            )
        )
    page.section(
        "Beside peers",
        "A peer's time over ours, as the geometric mean over the shapes of "
        "each primitive. Right of 1× ours is faster. Dots are the peers; the bar ends at the "
        "fastest of them.",
    ).charts(*charts)


def _largest(groups: dict[tuple[str, str], list[Row]], by: str) -> tuple[str, str] | None:
    """The group of that implementation with the most rows that have a dtype."""
    mine = [key for key in groups if key[0] == by and key[1] != "-"]
    return max(mine, key=lambda key: len(groups[key]), default=None)


def _dtypes(dtype: str, rows: Sequence[Row]) -> str:
    if dtype == "-":
        return "no dtype"
    return f"{dtype} and no dtype" if any(row.dtype == "-" for row in rows) else dtype


def _lines(rows: Sequence[Row], peers: Sequence[str]) -> list[Ratio]:
    """A line a primitive, where ours is the fastest first."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.primitive, []).append(row)
    lines = []
    for primitive, mine in members.items():
        values = {}
        for number, name in enumerate(peers):
            found = [row.peers[name] for row in mine if name in row.peers]
            if found:
                mean = statistics.geometric_mean(found)
                tip = f"{primitive}, {mine[0].dtype}: {mean:.2f}× against {name}"
                if len(found) > 1:
                    tip += f"\n{len(found)} shapes, {min(found):.2f}× to {max(found):.2f}×"
                values[number] = (mean, tip.replace(", -:", ":"))
        lines.append(Ratio(primitive, values))
    return sorted(lines, key=lambda line: -min(ratio for ratio, _ in line.values.values()))


def rows_section(page: Page, rows: Sequence[Row]) -> None:
    """Every measurement of ours, with its share of the floor and the peers beside it."""
    ours = [row for row in rows if row.ours]
    if not ours:
        return
    peers = list(dict.fromkeys(name for row in ours for name in row.peers))
    first = ["Primitive", "Shape", "Dtype", "Median", "Of floor", *(f"vs {name}" for name in peers)]
    fast = any(row.flops / row.timing.median > 1e12 for row in ours)
    scale, unit = (1e12, "TFLOP/s") if fast else (1e9, "GFLOP/s")
    headers = [*first, "GB/s", unit, "Spread", "Bound", "By", "Mode", "Cache"]
    cells = []
    for row in ours:
        seconds, share = row.timing.median, row.percent_of_floor
        cells.append(
            [
                row.primitive,
                shape_text(row.shape),
                row.dtype,
                Cell(seconds_text(seconds), seconds),
                Cell(f"{share:.0f}%", share, bar=min(1.0, max(0.0, share / 100))),
                *(ratio_cell(row.peers.get(name)) for name in peers),
                Cell(significant(row.bytes / seconds / 1e9), row.bytes / seconds),
                Cell(significant(row.flops / seconds / scale), row.flops / seconds),
                Cell(f"{100 * row.timing.spread:.0f}%", row.timing.spread),
                row.bound,
                row.implementation,
                row.mode,
                row.cache,
            ]
        )
    page.section(
        "Kernels",
        "Of floor: the time that the bytes at the measured copy bandwidth, or the FLOPs "
        "at the measured rate, take at the least, over the time taken. vs: a peer's time over "
        "ours, above 1 ours is faster. cold: no input is in the cache.",
    ).table(
        headers,
        cells,
        right=range(3, len(first) + 3),
        search=True,
        caption=f"All {len(cells):,} measurements of gpunn's kernels",
    )


# ---- products -----------------------------------------------------------------------------------


def products_section(page: Page, rows: Sequence[dict[str, Any]]) -> None:
    """The sweep of matrix products as a heat map: shapes down, dtypes across."""
    timed = [row for row in rows if row.get("ratio")]
    if not timed:
        return
    section = page.section(
        "Matrix products",
        "The fastest way of the peer over ours: above 1 ours is faster. What is as short as its "
        "launch is compared as a replayed graph. Error ratio: ours over the peer's, of two corners "
        "against float64, the largest of the shapes.",
    )
    summary = [
        [
            one["kind"],
            one["dtype"],
            one["shapes"],
            ratio_cell(one["mean"]),
            ratio_cell(one["worst"]),
            one["worst_key"],
            "" if one["error"] is None else Cell(f"{one['error']:.2f}", one["error"]),
        ]
        for one in product_tables.summary(timed)
    ]
    section.table(
        ["Kind", "Dtype", "Shapes", "Mean", "Worst", "Worst shape", "Error ratio"],
        summary,
        right=(2, 3, 4, 6),
        search=False,
        caption="Geometric mean and worst by kind and dtype",
    )
    dtypes = list(dict.fromkeys(row["dtype"] for row in timed))
    section.matrix("M×N×K, layout", dtypes, _products(timed, dtypes), "Each product by dtype")


def _products(rows: Sequence[dict[str, Any]], dtypes: Sequence[str]) -> list[tuple[str, Any]]:
    """Names and cells of the heat map."""
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = " ".join(str(row["key"]).replace(str(row["dtype"]), "").split())
        lines.setdefault(f"{row['kind']}: {name}", {})[row["dtype"]] = row
    return [
        (name, [_product(found[dtype]) if dtype in found else Cell("") for dtype in dtypes])
        for name, found in lines.items()
    ]


def _product(row: dict[str, Any]) -> Cell:
    error = row["errors"].get("gpunn")
    how = ", ".join(str(row[name]) for name in ("mode", "cache") if row.get(name))
    tip = [
        row["key"],
        f"{seconds_text(row['seconds'])}, {flops_text(row['tflops'] * 1e12)}",
        f"{str(row['kernel']).partition('<')[0]}" + (f" ({how})" if how else ""),
        *([] if error is None else [f"error {error:.1e}"]),
    ]
    return ratio_cell(row["ratio"], "\n".join(map(str, tip)))
