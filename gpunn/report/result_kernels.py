"""The sections of a benchmark report on kernels and matrix products."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpunn.bench import products
from gpunn.bench.cases import shape_text
from gpunn.bench.measure import Row
from gpunn.bench.tables import seconds_text, significant
from gpunn.report.charts import Key, Ratio, ratios
from gpunn.report.page import Cell, Page
from gpunn.report.roofline import fastest


def ratio_cell(ratio: float | None, tip: str = "") -> Cell:
    """A peer's time over ours: green-blue above 1, orange below, stronger the further away."""
    if ratio is None:
        return Cell("")
    strength = min(1.0, 0.12 + abs(math.log2(ratio)) / 2.5) if ratio > 0 else 1.0
    return Cell(f"{ratio:.2f}×", ratio, "good" if ratio >= 1 else "bad", strength, tip=tip)


def _mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


# ---- kernels -------------------------------------------------------------------------------------


def peers_section(page: Page, rows: Sequence[Row]) -> None:
    """Bars of a peer's time over ours, a chart a dtype, over all shapes of a primitive."""
    ours = [row for row in fastest([row for row in rows if row.ours]) if row.peers]
    if not ours:
        return
    peers = list(dict.fromkeys(name for row in ours for name in row.peers))
    keys = [Key(number, name, "dot") for number, name in enumerate(peers)]
    charts = []
    groups = Counter((row.implementation, row.dtype) for row in ours)
    for (by, dtype), _ in groups.most_common():
        members: dict[str, list[Row]] = {}
        for row in ours:
            if (row.implementation, row.dtype) == (by, dtype):
                members.setdefault(row.primitive, []).append(row)
        lines = []
        for primitive, mine in members.items():
            values = {}
            for number, name in enumerate(peers):
                found = [row.peers[name] for row in mine if name in row.peers]
                if found:
                    mean = _mean(found)
                    tip = (
                        f"{primitive}, {dtype}: {mean:.2f}× against {name}\n{len(found)} shapes, "
                        f"{min(found):.2f}× to {max(found):.2f}×"
                    )
                    values[number] = (mean, tip)
            lines.append(Ratio(primitive, values))
        lines.sort(key=lambda line: -min(ratio for ratio, _ in line.values.values()))
        charts.append(
            ratios(
                f"{by}, {'no dtype' if dtype == '-' else dtype}",
                lines,
                keys,
                x_label="peer's time over ours",
            )
        )
    page.section(
        "Beside peers",
        "A peer's time over ours, as the geometric mean over the shapes of "
        "each primitive. Right of 1× ours is faster. Dots are the peers; the bar ends at the "
        "fastest of them.",
    ).charts(*charts)


def rows_section(page: Page, rows: Sequence[Row]) -> None:
    """Every measurement of ours, with its share of the floor and the peers beside it."""
    ours = [row for row in rows if row.ours]
    if not ours:
        return
    peers = list(dict.fromkeys(name for row in ours for name in row.peers))
    first = ["Primitive", "Shape", "Dtype", "Median", "Of floor", *(f"vs {name}" for name in peers)]
    headers = [*first, "GB/s", "TFLOP/s", "Spread", "Bound", "By", "Mode", "Cache"]
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
                Cell(significant(row.flops / seconds / 1e12), row.flops / seconds),
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
    dtypes = list(dict.fromkeys(row["dtype"] for row in timed))
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    for row in timed:
        name = " ".join(str(row["key"]).replace(str(row["dtype"]), "").split())
        lines.setdefault(f"{row['kind']}: {name}", {})[row["dtype"]] = row
    table = []
    for name, found in lines.items():
        cells = []
        for dtype in dtypes:
            row = found.get(dtype, {})
            if not row:
                cells.append(Cell(""))
                continue
            error = row["errors"].get("gpunn")
            tip = (
                f"{row['key']}\n{seconds_text(row['seconds'])}, "
                f"{significant(row['tflops'])} TFLOP/s\n{str(row['kernel']).partition('<')[0]}"
                + ("" if error is None else f"\nerror {error:.1e}")
            )
            cells.append(ratio_cell(row["ratio"], tip))
        table.append((name, cells))
    section = page.section(
        "Matrix products",
        "The fastest way of the peer over ours: above 1 ours "
        "is faster. Errors are those of two corners against float64.",
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
        for one in products.summary(timed)
    ]
    section.table(
        ["Kind", "Dtype", "Shapes", "Mean", "Worst", "Worst shape", "Error ratio"],
        summary,
        right=(2, 3, 4, 6),
        search=False,
        caption="Geometric mean and worst by kind and dtype",
    )
    section.matrix("M×N×K, layout", dtypes, table, "Each product by dtype")
