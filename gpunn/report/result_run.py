"""The sections of a benchmark report on launches, stages and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn.bench import launch
from gpunn.bench.measure import NotTimed
from gpunn.bench.results import Results
from gpunn.report.gist import grouped
from gpunn.report.page import Cell, Page
from gpunn.report.roofline import flops_text


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
    left = grouped(
        (str(stage["name"]), name, str(reason))
        for stage in stages
        for name, reason in (stage.get("not_run") or {}).items()
    )
    if left:
        section.table(
            ["Stage", "Items", "Why", "Which"],
            [[g.kind, Cell(f"{len(g.names):,}", len(g.names)), g.text, g.which()] for g in left],
            right=(1,),
            search=False,
            caption="Not run",
        )


def not_timed_section(page: Page, skipped: Sequence[NotTimed]) -> None:
    """What has no time, and why, equal reasons together."""
    if not skipped:
        return
    groups = grouped((one.contestant, one.case, one.reason) for one in skipped)
    cells = [[g.kind, Cell(f"{len(g.names):,}", len(g.names)), g.text, g.which()] for g in groups]
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
            else flops_text(ceilings.rates[name])
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
