"""The report of a benchmark result: of a run on a GPU, or of ``gpunn bench --json``."""

from __future__ import annotations

import os
from pathlib import Path

from gpunn.bench import results
from gpunn.bench.results import ResultError, Results
from gpunn.report import result_kernels, result_run
from gpunn.report.page import Page
from gpunn.report.result_steps import training_section
from gpunn.report.result_summary import failures_section, summary_section
from gpunn.report.roofline import roofline


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
    summary_section(page, found)
    failures_section(page, found)
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
    training_section(page, found.training)
    result_kernels.products_section(page, found.products)
    result_kernels.rows_section(page, found.rows)
    result_run.launches_section(page, found.launches)
    result_run.stages_section(page, found.stages)
    result_run.not_timed_section(page, found.not_timed)
    result_run.environment_section(page, found)
    return page
