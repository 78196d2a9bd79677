"""The section of a benchmark report on training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpunn.bench.tables import seconds_text
from gpunn.bench.training_tables import target_text
from gpunn.report.charts import Line, curves
from gpunn.report.page import Cell, Page, Section
from gpunn.report.result_kernels import ratio_cell

_STEPS = "Job|Batch|Device|Precision|By|A step|Spread|Steps/s|Over gpunn|Target".split("|")
_CURVES = 2  # jobs whose curves are not folded


@dataclass(frozen=True)
class Job:
    """The rows of one job: the same model, batch, device and precision by each contestant."""

    rows: Sequence[dict[str, Any]]

    @property
    def name(self) -> str:
        """The job and its batch."""
        return f"{self.rows[0]['job']}, batch {self.rows[0]['batch']}"

    def best(self, ours: bool) -> dict[str, Any] | None:
        """The fastest of our rows, or of the peers'."""
        timed = [row for row in self.rows if "median" in row and _is_ours(row) == ours]
        return min(timed, key=lambda row: row["median"], default=None)

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time over our fastest: above 1 ours is faster."""
        ours, peer = self.best(True), self.best(False)
        return peer["median"] / ours["median"] if ours and peer else None


def _is_ours(row: dict[str, Any]) -> bool:
    return str(row["contestant"]).startswith("gpunn")


def jobs_of(rows: Sequence[dict[str, Any]]) -> list[Job]:
    """The rows by job, in their order."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["job"], row["batch"], row["device"], row.get("precision"))
        found.setdefault(key, []).append(row)
    return [Job(members) for members in found.values()]


def training_section(page: Page, rows: Sequence[dict[str, Any]]) -> None:
    """Whole training steps: a line a job, every contestant, and the loss curves."""
    if not rows:
        return
    jobs = jobs_of(rows)
    section = page.section(
        "Training steps",
        "Whole steps (forward, backward, update) of the same model by each contestant: gpunn "
        "layer by layer, compiled into one program, or fused into one kernel.",
    )
    by = list(dict.fromkeys(str(row["contestant"]) for row in rows))
    by.sort(key=lambda name: not name.startswith("gpunn"))  # stable: ours first
    section.table(
        ["Job", "Batch", "Peer over ours", *by],
        [_overview(job, by) for job in jobs],
        right=range(1, len(by) + 3),
        search=False,
        caption="Median time of a step. Peer over ours: the time of the fastest peer over that of "
        "our fastest way; above 1 ours is faster",
    )
    inside = Section("").table(
        _STEPS,
        [line for job in jobs for line in _steps(job.rows)],
        right=(1, 5, 6, 7, 8),
        search=False,
        caption="The bar is the time of a step within its job. Over gpunn: over the time of gpunn "
        "layer by layer",
    )
    section.details("Every contestant with its spread and target", inside)
    charts = [
        curves(job.name, lines, x_label="step", y_label="loss")
        for job in jobs
        if (lines := _losses(job.rows))
    ]
    if charts:
        inside = Section("").text(
            "From the same weights and batches: curves that lie on each other are what is wanted."
        )
        inside.charts(*charts)
        section.details("The loss of each, step by step", inside, len(charts) <= _CURVES)


def _overview(job: Job, by: Sequence[str]) -> list[Any]:
    row = job.rows[0]
    line: list[Any] = [
        f"{row['job']} {row.get('precision') or ''}".strip(),
        Cell(str(row["batch"]), float(row["batch"])),
        ratio_cell(job.ratio),
    ]
    fastest = [best for best in (job.best(True), job.best(False)) if best]
    for name in by:
        mine = next((row for row in job.rows if row["contestant"] == name), {})
        if "median" in mine:
            strong = 0.35 if any(mine is best for best in fastest) else 0.0
            text = seconds_text(mine["median"])
            line.append(Cell(text, mine["median"], "accent" if strong else "", strong))
        else:
            line.append(Cell("–" if mine else "", None, tip=str(mine.get("reason", ""))))
    return line


def _steps(members: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The lines of one job."""
    longest = max((row["median"] for row in members if "median" in row), default=1.0)
    found = []
    for row in members:
        batch = Cell(str(row["batch"]), float(row["batch"]))
        line = [row["job"], batch, row["device"], row.get("precision", ""), row["contestant"]]
        if "median" in row:
            seconds = row["median"]
            low, high = row.get("quartiles") or (seconds, seconds)
            spread, over = (high - low) / seconds, row.get("over_ours")
            line += [
                Cell(seconds_text(seconds), seconds, bar=seconds / longest),
                Cell(f"{spread:.0%}" if row.get("quartiles") else "", spread),
                Cell(f"{1 / seconds:,.0f}", 1 / seconds),
                Cell(f"{over:.2f}×", over) if over else Cell(""),
            ]
            found.append([*line, target_text(row)])
        else:
            found.append([*line, row.get("reason", ""), "", "", "", ""])
    return found


def _losses(members: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        Line(
            row["contestant"],
            range(1, len(row["curve"]) + 1),
            row["curve"],
            number,
            dashed=not _is_ours(row),
        )
        for number, row in enumerate(members)
        if row.get("curve")
    ]
