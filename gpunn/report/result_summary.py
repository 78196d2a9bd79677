"""The top of a benchmark report: is it right, is it fast, what was left out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpunn.bench.measure import Row
from gpunn.bench.results import Results
from gpunn.bench.tables import significant
from gpunn.report.gist import grouped, last_line
from gpunn.report.page import Card, Cell, Finding, Page, Section
from gpunn.report.result_steps import Job, jobs_of
from gpunn.report.roofline import fastest

_SAME = 0.02  # closer to a peer than this is as fast
_OPEN, _LISTED = 3, 8  # so many failures are unfolded, so many are not hidden in a fold
_SHOWN = 40  # failures of a stage


def summary_section(page: Page, found: Results) -> None:
    """The cards, and in sentences what is wrong, slow or missing."""
    ours = fastest([row for row in found.rows if row.ours])
    compared = [row for row in ours if row.peers]
    jobs = [job for job in jobs_of(found.training) if job.ratio is not None]
    products = [row for row in found.products if row.get("ratio")]
    _cards(page, found, ours, jobs, products)
    findings = [*_right(found), *_speed(compared, jobs, products), *_left_out(found)]
    if findings:
        page.section("Summary").findings(findings)


# ---- cards --------------------------------------------------------------------------------------


def _cards(
    page: Page,
    found: Results,
    ours: Sequence[Row],
    jobs: Sequence[Job],
    products: Sequence[dict[str, Any]],
) -> None:
    add = page.cards.append
    if found.tests:
        checked = sum(int(test.get("checked", 1)) for test in found.tests)
        failed = sum(not test["passed"] for test in found.tests)
        value = f"{failed:,} failed" if failed else "all right"
        detail = f"of {len(found.tests):,} items with {checked:,} comparisons"
        add(Card("Checks", value, detail, "bad" if failed else ""))
    ratios = [min(row.peers.values()) for row in ours if row.peers]
    if ratios:
        add(_ratio_card("Kernels vs peers", ratios, "cases"))
    if products:
        mine = [row["ratio"] for row in products]
        add(_ratio_card("Products vs peers", mine, "shapes"))
    if jobs:
        add(_ratio_card("Steps vs peers", [job.ratio or 0.0 for job in jobs], "jobs"))
    shares = [row.percent_of_floor for row in ours if row.floor > 0]
    if shares:
        primitives = len({row.primitive for row in ours})
        detail = f"median of {len(shares):,} cases; kernels: {primitives}"
        add(Card("Of the floor", f"{statistics.median(shares):.0f}%", detail))
    for ceilings in found.ceilings[:1]:
        fast = any(rate > 1e12 for rate in ceilings.rates.values())
        scale, unit = (1e12, "TFLOP/s") if fast else (1e9, "GFLOP/s")
        rates = ", ".join(f"{n} {significant(r / scale)}" for n, r in ceilings.rates.items())
        detail = f"products, {unit}: {rates}" if rates else ""
        add(Card("Copy bandwidth", f"{ceilings.copy / 1e9:,.0f} GB/s", detail))


def _ratio_card(label: str, ratios: Sequence[float], what: str) -> Card:
    mean = statistics.geometric_mean(ratios)
    detail = f"the fastest peer's time over ours, geometric mean of {len(ratios):,} {what}"
    return Card(label, f"{mean:.2f}×", detail, "bad" if mean < 1 - _SAME else "")


# ---- sentences ----------------------------------------------------------------------------------


def _right(found: Results) -> list[Finding]:
    """Stages that broke, and the failures by stage."""
    said = [
        Finding("bad", f"Stage {stage['name']} broke: {last_line(str(stage['detail']))}")
        for stage in found.stages
        if stage["state"] == "broke"
    ]
    failed = Counter(str(test["stage"]) for test in found.tests if not test["passed"])
    if failed:
        there = Counter(str(test["stage"]) for test in found.tests)
        parts = ", ".join(f"{name} {count} of {there[name]}" for name, count in failed.items())
        total = f"{sum(failed.values()):,} of {len(found.tests):,}"
        said.append(Finding("bad", f"Checks: {total} items failed: {parts}."))
    elif found.tests and not said:
        said.append(Finding("good", f"Checks: all {len(found.tests):,} items are right."))
    return said


def _speed(
    rows: Sequence[Row], jobs: Sequence[Job], products: Sequence[dict[str, Any]]
) -> list[Finding]:
    """How often ours is faster than the fastest peer, and where it is the slowest."""
    kernels = []
    for row in rows:
        peer, ratio = min(row.peers.items(), key=lambda item: item[1])
        kernels.append((ratio, f"{row.primitive} {row.dtype} beside {peer}".replace(" - ", " ")))
    numpy = any(row.implementation == "numpy" for row in rows)
    why = "The NumPy kernels of a CPU are references, not made to be fast."
    return [
        *([Finding("note", why)] if numpy else []),
        *_compared("Kernels", kernels),
        *_compared("Matrix products", [(row["ratio"], str(row["key"])) for row in products]),
        *_compared("Training steps", [(job.ratio or 0.0, job.name) for job in jobs]),
        *_targets([row for job in jobs for row in job.rows if row.get("target")]),
    ]


def _targets(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """Of the rows with a target how many reach it."""
    if not rows:
        return []
    verdicts = Counter(row.get("reached") for row in rows)
    missed = [f"{row['contestant']} in {row['job']}" for row in rows if row.get("reached") is False]
    text = f"Training targets: {verdicts[True]} of {len(rows)} reached"
    text += f", {len(missed)} missed ({', '.join(missed)})" if missed else ""
    text += f", {verdicts[None]} not measured" if verdicts[None] else ""
    return [Finding("warning" if missed else "note", f"{text}.")]


def _compared(what: str, found: Sequence[tuple[float, str]]) -> list[Finding]:
    if not found:
        return []
    faster = sum(ratio > 1 + _SAME for ratio, _ in found)
    slower = sum(ratio < 1 - _SAME for ratio, _ in found)
    text = (
        f"{what}: ours is faster than the fastest peer in {faster:,} of {len(found):,}, "
        f"within {_SAME:.0%} in {len(found) - faster - slower:,}, slower in {slower:,}"
    )
    worst, name = min(found)
    text += f"; the slowest is {name}, {worst:.2f}×." if slower else "."
    return [Finding("warning" if slower else "good", text)]


def _left_out(found: Results) -> list[Finding]:
    """How many items were not run, by stage."""
    left: Counter[str] = Counter()
    for stage in found.stages:
        left[str(stage["name"])] += len(stage.get("not_run") or {})
    left = +left
    if not left:
        return []
    parts = ", ".join(f"{name} {count:,}" for name, count in left.items())
    text = f"This result is partial: {sum(left.values()):,} items were not run: {parts}."
    return [Finding("note", text)]


# ---- failures -----------------------------------------------------------------------------------


def failures_section(page: Page, found: Results) -> None:
    """What failed: a line for equal messages, and folded each item with its messages."""
    failed = [test for test in found.tests if not test["passed"]]
    if not failed:
        return
    section = page.section("Failures", f"{len(failed):,} of {len(found.tests):,} items failed.")
    if len(failed) > _OPEN:
        _groups(section, failed)
    if len(failed) <= _LISTED:
        _items(section, failed)
        return
    for stage in dict.fromkeys(str(test["stage"]) for test in failed):
        mine = [test for test in failed if str(test["stage"]) == stage]
        inside = Section("")
        _items(inside, mine[:_SHOWN])
        if len(mine) > _SHOWN:
            inside.text(f"… and {len(mine) - _SHOWN} more in the file.")
        items = "1 item" if len(mine) == 1 else f"{len(mine):,} items"
        section.details(f"{stage}: {items}, with the messages", inside)


def _messages(test: dict[str, Any]) -> list[str]:
    reasons = [str(failure["reason"]) for failure in test.get("failures") or ()]
    return reasons or [str(test.get("detail") or "")]


def _groups(section: Section, failed: Sequence[dict[str, Any]]) -> None:
    groups = grouped(
        (str(test["stage"]), str(test["item"]), text) for test in failed for text in _messages(test)
    )
    section.table(
        ["Stage", "Items", "What", "Which"],
        [[g.kind, Cell(f"{len(g.names):,}", len(g.names)), g.text, g.which(2)] for g in groups],
        right=(1,),
        search=False,
        caption="Equal messages together, without their numbers",
    )


def _items(section: Section, failed: Sequence[dict[str, Any]]) -> None:
    for test in failed:
        inside = Section("")
        for failure in (test.get("failures") or ())[:20]:
            inside.code(str(failure["reason"]), str(failure.get("case", "")))
        if not test.get("failures"):
            inside.text(str(test.get("detail") or "no reason is recorded"))
        section.details(f"{test['stage']}: {test['item']}", inside, len(failed) <= _OPEN)
