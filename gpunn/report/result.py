"""The report of a benchmark result: of a run on a GPU, or of ``gpunn bench --json``."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from gpunn.bench import results
from gpunn.bench.results import ResultError, Results
from gpunn.bench.tables import significant
from gpunn.report import result_kernels, result_run
from gpunn.report.page import Card, Finding, Page, Section
from gpunn.report.roofline import fastest, roofline


def result_page(path: str | os.PathLike[str]) -> Page:
    """The page of a result file: ``result_page(path).write("result.html")``.

    The format is that of benchmarks/results/README.md. FileNotFoundError if there is no file;
    ResultError (a ValueError), naming the file, if it is damaged, no result of gpunn, of a newer
    version, or a dry run, whose numbers mean nothing.
    """
    path = Path(path)
    found = results.read(path)
    if found.dry_run:
        raise ResultError(
            f"{path} is a dry run: its sizes are tiny and its numbers mean nothing. Measure with: "
            "make gpu, or gpunn bench all --json FILE"
        )
    try:
        return _page(found, path)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ResultError(f"{path} is damaged: {text}") from error


def _page(found: Results, path: Path) -> Page:
    environment = found.environment
    machine = environment["machine"]
    device = found.gpu or machine["cpu"]
    commit = (environment["commit"] or "unknown commit")[:10]
    changed = ", with uncommitted changes" if environment["clean"] is False else ""
    when = str(environment["date"]).replace("T", " ").removesuffix("Z")
    page = Page(
        str(device),
        f"Measured {when} UTC at {commit}{changed}. {path.name}",
        "gpunn · benchmark result",
    )
    _cards(page, found)
    _failures(page, found)
    for ceilings in found.ceilings:
        mine = [row for row in found.rows if row.device == ceilings.device]
        chart = roofline(mine or found.rows, ceilings, str(device))
        if chart:
            title = "Roofline" if len(found.ceilings) == 1 else f"Roofline of {ceilings.device}"
            page.section(
                title,
                "Bytes and FLOPs by the cost model of each primitive; the ceilings "
                "are a copy and large matrix products, measured here.",
            ).charts(chart)
    result_kernels.peers_section(page, found.rows)
    result_kernels.rows_section(page, found.rows)
    result_run.training_section(page, found.training)
    result_kernels.products_section(page, found.products)
    result_run.launches_section(page, found.launches)
    result_run.stages_section(page, found.stages)
    result_run.not_timed_section(page, found.not_timed)
    result_run.environment_section(page, found)
    return page


def _cards(page: Page, found: Results) -> None:
    checked = sum(int(test.get("checked", 1)) for test in found.tests)
    if found.tests:
        failed = sum(not test["passed"] for test in found.tests)
        page.cards.append(
            Card(
                "Checks",
                "all right" if not failed else f"{failed} failed",
                f"{checked:,} comparisons in {len(found.tests):,} items",
                "bad" if failed else "",
            )
        )
    ours = fastest([row for row in found.rows if row.ours])
    if ours:
        primitives = len({row.primitive for row in ours})
        page.cards.append(Card("Kernels timed", f"{primitives}", f"{len(ours):,} cases"))
        shares = [row.percent_of_floor for row in ours if row.floor > 0]
        if shares:
            page.cards.append(
                Card("Of the floor", f"{statistics.median(shares):.0f}%", "median over the cases")
            )
        ratios = [min(row.peers.values()) for row in ours if row.peers]
        if ratios:
            page.cards.append(
                Card(
                    "Against the fastest peer",
                    f"{geometric_mean(ratios):.2f}×",
                    f"geometric mean; faster in {sum(r >= 1 for r in ratios):,} of "
                    f"{len(ratios):,} cases",
                )
            )
    reached = [row["reached"] for row in found.training if row.get("reached") is not None]
    if reached:
        page.cards.append(Card("Training targets", f"{sum(reached)} of {len(reached)}", "reached"))
    for ceilings in found.ceilings[:1]:
        rates = ", ".join(
            f"{name} {significant(rate / 1e12)} TFLOP/s" for name, rate in ceilings.rates.items()
        )
        page.cards.append(Card("Copy bandwidth", f"{ceilings.copy / 1e9:,.0f} GB/s", rates))


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of numbers above 0."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def _failures(page: Page, found: Results) -> None:
    failed = [test for test in found.tests if not test["passed"]]
    broken = [stage for stage in found.stages if stage["state"] == "broke"]
    if not failed and not broken:
        return
    section = page.section("Failures", f"{len(failed)} of {len(found.tests)} items failed.")
    section.findings(
        [Finding("bad", f"Stage {stage['name']} broke: {stage['detail']}") for stage in broken]
    )
    for test in failed[:100]:
        inside = Section("")
        for failure in test.get("failures", ())[:20]:
            inside.code(str(failure["reason"]), str(failure.get("case", "")))
        if not test.get("failures"):
            inside.text(str(test.get("detail", "no reason is recorded")))
        section.details(f"{test['stage']}: {test['item']}", inside, len(failed) <= 3)
    if len(failed) > 100:
        section.text(f"… and {len(failed) - 100} more in the file.")
