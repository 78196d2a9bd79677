"""The sections of a benchmark report on training steps, launches, stages and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn.bench import launch
from gpunn.bench.measure import NotTimed
from gpunn.bench.results import Results
from gpunn.bench.tables import seconds_text, significant
from gpunn.bench.training_tables import target_text
from gpunn.report.charts import Line, curves
from gpunn.report.page import Cell, Page, Section
from gpunn.report.result_kernels import ratio_cell

_STEPS = "Job|Batch|Device|Precision|By|A step|Steps/s|Time over ours|Target".split("|")


def training_section(page: Page, rows: Sequence[dict[str, Any]]) -> None:
    """Whole training steps: a bar a contestant, and the loss curves."""
    if not rows:
        return
    jobs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        jobs.setdefault((row["job"], row["batch"], row["device"]), []).append(row)
    cells = [line for members in jobs.values() for line in _steps(members)]
    section = page.section(
        "Training steps",
        "Whole steps (forward, backward, update) of the same model by each contestant. The bar is "
        "the time of a step within its job; time over ours above 1: gpunn is faster.",
    )
    caption = "Median time of a training step"
    section.table(_STEPS, cells, right=(1, 5, 6, 7), search=False, caption=caption)
    charts = [
        curves(f"{job}, batch {batch}", lines, x_label="step", y_label="loss")
        for (job, batch, _), members in jobs.items()
        if (lines := _losses(members))
    ]
    if charts:
        section.text(
            "The loss of each, step by step, from the same weights and batches: curves that lie on "
            "each other are what is wanted."
        ).charts(*charts)


def _steps(members: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The lines of one job."""
    longest = max((row["median"] for row in members if "median" in row), default=1.0)
    found = []
    for row in members:
        batch = Cell(str(row["batch"]), float(row["batch"]))
        line = [row["job"], batch, row["device"], row.get("precision", ""), row["contestant"]]
        if "median" in row:
            seconds = row["median"]
            line += [
                Cell(seconds_text(seconds), seconds, bar=seconds / longest),
                Cell(f"{1 / seconds:,.0f}", 1 / seconds),
            ]
            found.append([*line, _over(row), target_text(row)])
        else:
            found.append([*line, row.get("reason", ""), "", "", ""])
    return found


def _losses(members: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        Line(
            row["contestant"],
            range(1, len(row["curve"]) + 1),
            row["curve"],
            number,
            dashed=not row["contestant"].startswith("gpunn"),
        )
        for number, row in enumerate(members)
        if row.get("curve")
    ]


def _over(row: dict[str, Any]) -> Cell:
    """The time over ours; in colour for peers."""
    over = row.get("over_ours")
    if not over:
        return Cell("")
    return Cell(f"{over:.2f}×", over) if row["contestant"].startswith("gpunn") else ratio_cell(over)


# ---- the rest -----------------------------------------------------------------------------------


def launches_section(page: Page, rows: Sequence[dict[str, Any]]) -> None:
    """What a launch and a call cost the host."""
    if not rows:
        return
    note = "Median and spread of the host's time, in microseconds."
    if not all(row["driver"] for row in rows):
        note += " Without a GPU: no driver was called."
    section = page.section("Launches", note)
    for (headers, lines), caption in (
        (launch.launch_cells(rows), "One launch, by library"),
        (launch.call_cells(rows), "One call of a primitive, by part"),
    ):
        if lines:
            section.table(
                headers,
                [[_leading(cell) for cell in line] for line in lines],
                right=range(1, len(headers)),
                caption=caption,
                search=False,
            )


def _leading(text: str) -> Cell:
    """A cell that is sorted by the number that it begins with."""
    head = text.split(" ", 1)[0]
    try:
        return Cell(text, float(head))
    except ValueError:
        return Cell(text)


def stages_section(page: Page, stages: Sequence[dict[str, Any]]) -> None:
    """What was run and what was not."""
    if not stages:
        return
    cells = []
    for stage in stages:
        tone = {"done": "", "partly": "accent", "broke": "bad"}.get(stage["state"], "")
        cells.append(
            [
                stage["name"],
                Cell(str(stage["state"]), None, tone, 0.5 if tone else 0.0),
                Cell(f"{stage['seconds']:.1f}", float(stage["seconds"])),
                stage["items"],
                Cell(
                    str(stage["failed"]),
                    float(stage["failed"]),
                    "bad" if stage["failed"] else "",
                    0.6 if stage["failed"] else 0.0,
                ),
                stage["detail"],
            ]
        )
    section = page.section("Stages")
    section.table(
        ["Stage", "State", "Seconds", "Items", "Failed", "Detail"],
        cells,
        right=(2, 3, 4),
        search=False,
        caption="Stages of the run",
    )
    left = [
        [stage["name"], name, reason]
        for stage in stages
        for name, reason in (stage.get("not_run") or {}).items()
    ]
    if left:
        inside = Section("").table(["Stage", "Item", "Why"], left, caption="Not run")
        section.details(f"{len(left)} items were not run", inside)


def not_timed_section(page: Page, skipped: Sequence[NotTimed]) -> None:
    """What has no time, and why, equal reasons together."""
    if not skipped:
        return
    grouped: dict[tuple[str, str], list[str]] = {}
    for one in skipped:
        grouped.setdefault((one.contestant, one.reason), []).append(one.case)
    cells = [
        [
            who,
            Cell(str(len(cases)), len(cases)),
            reason,
            ", ".join(cases[:4]) + (f" and {len(cases) - 4} more" if len(cases) > 4 else ""),
        ]
        for (who, reason), cases in grouped.items()
    ]
    page.section("Not timed").table(
        ["Contestant", "Cases", "Why", "Which"],
        cells,
        right=(1,),
        caption="Contestants without a time",
    )


def environment_section(page: Page, found: Results) -> None:
    """The machine, the versions, how the ceilings were measured, the command."""
    environment = found.environment
    section = page.section("Environment")
    clean = {True: "no", False: "yes", None: "unknown"}[environment["clean"]]
    section.facts(facts_of(environment["machine"]))
    section.facts(facts_of(environment["versions"]))
    section.facts(
        [
            ("commit", environment["commit"] or "unknown"),
            ("uncommitted changes", clean),
            ("date", environment["date"]),
        ]
    )
    rows = [
        [
            ceilings.device,
            name,
            f"{ceilings.copy / 1e9:,.1f} GB/s"
            if name == "copy"
            else f"{significant(ceilings.rates[name] / 1e12)} TFLOP/s"
            if name in ceilings.rates
            else "",
            how,
        ]
        for ceilings in found.ceilings
        for name, how in ceilings.how.items()
    ]
    if rows:
        section.table(
            ["Device", "Ceiling", "Measured", "How"],
            rows,
            right=(2,),
            search=False,
            caption="Ceilings",
        )
    section.code(" ".join(map(str, environment["command"])), "Started as:")


def facts_of(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values that are known, sizes in GiB."""
    found = []
    for name, value in mapping.items():
        if value is None:
            continue
        if name.endswith("_bytes"):
            size = float(value)
            text = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
            found.append((name.removesuffix("_bytes").replace("_", " "), text))
        else:
            found.append((name.replace("_", " "), str(value)))
    return found
