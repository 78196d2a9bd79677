"""The report of a run of a `gpunn.train.Job`: the outcome, how it learned, the pictures."""

from __future__ import annotations

import base64
from pathlib import Path
from shlex import quote
from typing import Any

from markupsafe import Markup

from gpunn.report.page import Card, Cell, Finding, Page
from gpunn.report.pieces import value_text
from gpunn.report.svg import element
from gpunn.report.training import Report
from gpunn.text import number_text
from gpunn.train import run_folder as files
from gpunn.train.configuration import read_config
from gpunn.train.history import History
from gpunn.train.job import Job, Outcome

_OUTCOME = tuple(Outcome.__dataclass_fields__)


def job_run_page(folder: Path, job: Job) -> Page:
    """The page of a run folder; nothing is loaded or measured, all is in its files.

    The settings are those of its file, whatever the job has by now. FileNotFoundError if the run is
    not complete; ValueError, naming the file, if one is damaged.
    """
    path = folder / files.METRICS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a complete run: it has no {files.METRICS}. Go on with: gpunn train "
            f"--resume {quote(str(folder))}"
        )
    metrics = files.read_json(path)
    history = folder / files.HISTORY  # of several trainings the main one; the rest are pictures
    file = read_config(folder)
    outcome = None if metrics.get("interrupted") else outcome_of(metrics, path)
    report = Report(
        job.title,
        f"{_title(job.use)}, trained by gpunn {metrics.get('gpunn', '?')} on "
        f"{metrics.get('device', '?')}. Data: {job.data}. Run folder: {folder}",
        history=History.from_csv(history) if history.is_file() else None,
    )
    if outcome is None:
        report.add_finding("warning", "The run was interrupted before it was measured.")
    else:
        _outcome(report, outcome, metrics)
    _pictures(report, folder)
    section = report.page.section("Configuration")
    section.facts([("job", job.name)] + [
        (name.replace("_", " "), value_text(value)) for name, value in file.values.items()
    ])  # fmt: skip
    again = report.page.section(
        "Reproduce",
        "The same configuration gives the same weights, bit for bit, on the same device.",
    )
    again.code(f"gpunn train --config {quote(str(folder / files.CONFIG))}", "Train it again:")
    again.code(f"gpunn evaluate {quote(str(folder))}", "Measure it again:")
    return report.page


def outcome_of(metrics: dict[str, Any], path: Path) -> Outcome:
    """The outcome that ``metrics.json`` holds. ValueError, naming the file, if it holds none."""
    try:
        return Outcome(**{name: metrics[name] for name in _OUTCOME})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the outcome of a run: {error!r}") from None


def _outcome(report: Report, outcome: Outcome, metrics: dict[str, Any]) -> None:
    detail = f"{outcome.samples:,} {outcome.what}"
    shown = number_text(outcome.value, outcome.unit)
    report.page.cards.insert(0, Card(_title(outcome.metric), shown, detail))
    report.page.sections[0].findings([_verdict(outcome)])
    section = report.page.section(
        "Comparison", f"{'Higher' if outcome.higher_is_better else 'Lower'} is better. All are "
        f"measured on the same {outcome.samples:,} {outcome.what} that were held out."
    )  # fmt: skip
    rows = [("the network", outcome.value), *outcome.baselines.items()]
    section.table(
        ["", outcome.metric],
        [[name, Cell(number_text(value, outcome.unit))] for name, value in rows],
        right=[1],
    )
    report.page.sections.insert(1, report.page.sections.pop())  # before how it learned
    for note in outcome.notes:
        section.text(note)
    if outcome.more:
        section.facts([(name, number_text(value)) for name, value in outcome.more.items()])
    if isinstance(metrics.get("seconds"), (int, float)):
        report.add_card("Time", f"{metrics['seconds']:.1f} s", "training and measuring")


def _verdict(outcome: Outcome) -> Finding:
    """What the numbers show, and no more: of one run, on these samples."""
    order = max if outcome.higher_is_better else min
    name, best = order(outcome.baselines.items(), key=lambda item: item[1])
    numbers = (
        f"{number_text(outcome.value, outcome.unit)} against {number_text(best, outcome.unit)} of "
        f"{name}"
    )
    if not outcome.wins:
        return Finding("note", f"The network does not win here: {numbers}.")
    return Finding(
        "good",
        f"On these {outcome.samples:,} {outcome.what} the network is ahead of all that it is "
        f"compared with: {numbers}. Whether it would be with another seed or other samples, one "
        "run does not say.",
    )


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pictures(report: Report, folder: Path) -> None:
    for path in sorted(folder.glob("*.png")):
        if path.stem == "curves":
            continue  # drawn above from the history itself
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        title = _title(path.stem.replace("_", " ").replace("-", " "))
        image = element("img", src=f"data:image/png;base64,{data}", alt=title)
        report.page.section(title).picture(Markup(image), path.name)
