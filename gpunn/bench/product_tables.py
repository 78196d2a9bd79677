"""What rows of matrix products say: their ratios to the peer, and a line each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpunn.text import table


def summary(rows: Sequence[dict]) -> list[dict[str, Any]]:
    """Geometric mean and worst of the ratios, by kind and dtype, and how errors compare."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row.get("ratio"):
            groups.setdefault((row["kind"], row["dtype"]), []).append(row)
    found = []
    for (kind, dtype), members in groups.items():
        worst = min(members, key=lambda row: row["ratio"])
        logs = [math.log(row["ratio"]) for row in members]
        errors = [
            row["errors"]["gpunn"] / other
            for row in members
            for name, other in row["errors"].items()
            if name != "gpunn" and other and "gpunn" in row["errors"]
        ]
        found.append({
            "kind": kind, "dtype": dtype, "shapes": len(members),
            "mean": math.exp(sum(logs) / len(logs)), "worst": worst["ratio"],
            "worst_key": worst["key"], "error": max(errors, default=None),
        })  # fmt: skip
    return found


def summary_text(rows: Sequence[dict]) -> str:
    """The summary as an aligned table."""
    lines = [
        (one["kind"], one["dtype"], str(one["shapes"]), f"{one['mean']:.2f}",
         f"{one['worst']:.2f}", one["worst_key"],
         "" if one["error"] is None else f"{one['error']:.2f}")
        for one in summary(rows)
    ]  # fmt: skip
    heads = ["kind", "dtype", "shapes", "mean", "worst", "worst shape", "error ratio"]
    return table(heads, lines)


def rows_text(rows: Sequence[dict]) -> str:
    """One line a product."""
    lines = []
    for row in rows:
        if "seconds" not in row:
            continue
        ratio = row["ratio"]
        lines.append((
            row["key"], row["kernel"].partition("<")[0], f"{row['seconds'] * 1e6:.1f}",
            f"{row['tflops']:.2f}", "" if ratio is None else f"{ratio:.2f}",
            *(f"{row['errors'][n]:.1e}" if n in row["errors"] else "" for n in ("gpunn",)),
        ))  # fmt: skip
    heads = ["product", "kernel", "us", "TFLOP/s", "vs peer", "error"]
    return table(heads, lines)
