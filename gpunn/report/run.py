"""The report of a run folder, as `gpunn train` writes it."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from gpunn.io import load_metadata
from gpunn.report.job_run import job_run_page
from gpunn.report.page import Page
from gpunn.report.pieces import value_text
from gpunn.report.training import Report
from gpunn.train import run_folder as files
from gpunn.train.history import History
from gpunn.train.job import Job
from gpunn.train.job_runs import job_of
from gpunn.train.trained import TrainedModel

PAGE = "report.html"
_NUMBERS = ("epochs", "seconds", "test_accuracy", "test_loss", "test_samples")


def run_page(folder: str | os.PathLike[str]) -> Page:
    """The page of a run folder: ``run_page(folder).write("report.html")``.

    The model is loaded onto the CPU. What cannot be shown (samples whose package is not installed)
    is left out with a sentence. FileNotFoundError if it is no run folder; ValueError, naming the
    file, if one is damaged or of a job that this version does not know.
    """
    folder = Path(folder)
    if isinstance(job := job_of(folder), Job):
        return job_run_page(folder, job)
    metrics = _metrics(folder)
    trained = TrainedModel.load(folder, "cpu")
    history = _history(folder, metrics)
    job = trained.job
    title = f"{job.title}"
    report = Report(
        title,
        f"A network for {job.what} of {' × '.join(map(str, job.shape))} and {job.classes} classes, "
        f"trained by gpunn {metrics.get('gpunn', 'of an unknown version')} on "
        f"{metrics.get('device', 'an unknown device')}. Run folder: {folder}",
        history=history,
        note=_note(trained.config),
    )
    table, left_out = _predictions(folder), []
    data = None
    try:
        data = trained.test_data()
    except ImportError as error:
        left_out.append(f"The samples are not shown: {error}.")
    if table is not None:
        _classes(report, trained, table, data)
    else:
        left_out.append(f"There is no {files.PREDICTIONS}: no confusion matrix, no mistakes.")
    smoothed = bool(getattr(trained.config, "label_smoothing", 0))
    _cards(report, metrics, history, _steps(trained), smoothed)
    report.add_model(trained.model, (math.prod(job.shape),), job.shape)
    for text in left_out:
        report.add_finding("note", text)
    _configuration(report, folder, trained, metrics)
    return report.page


# ---- reading -------------------------------------------------------------------------------------


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / files.METRICS
    if not path.is_file():
        problem = f"has no {files.METRICS}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} is not a run folder: it {problem}. Make one with: gpunn train digits"
        )
    metrics = files.read_json(path)
    for name in _NUMBERS:
        value = metrics.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{path}: {name} must be a number, got {value!r}")
    return metrics


def _history(folder: Path, metrics: dict[str, Any]) -> History:
    path = folder / files.HISTORY
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a whole run folder: it has no {files.HISTORY}")
    history = History.from_csv(path)
    for line, record in enumerate(history, start=2):
        if "epoch" not in record or "loss" not in record:
            raise ValueError(f"{path}, line {line}: there is no epoch or no loss")
    history.interrupted = bool(metrics.get("interrupted"))
    best = metrics.get("best_epoch")
    if isinstance(best, int) and any(record["epoch"] == best for record in history):
        history.best_epoch = best
    return history


def _predictions(folder: Path) -> np.ndarray | None:
    """Columns row, label, prediction, probability; None without the file or without labels."""
    path = folder / files.PREDICTIONS
    if not path.is_file():
        return None
    lines = path.read_text("utf-8").splitlines()
    if not lines or lines[0].split(",")[:4] != ["row", "label", "prediction", "probability"]:
        raise ValueError(f"{path}: the header must be row,label,prediction,probability")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            row, label, prediction, probability = map(float, line.split(",")[:4])
        except ValueError:
            raise ValueError(f"{path}, line {number}: not a row of four numbers") from None
        if not 0 <= probability <= 1.000001 or min(row, label, prediction) < 0:
            raise ValueError(f"{path}, line {number}: a probability or a class is out of range")
        rows.append((row, label, prediction, probability))
    return np.array(rows) if rows else None


# ---- sections ------------------------------------------------------------------------------------


def _classes(report: Report, trained: TrainedModel, table: np.ndarray, data: Any) -> None:
    rows = table[:, 0].astype(int)
    images = None
    if data is not None:
        at = {int(number): position for position, number in enumerate(data[2])}
        if all(number in at for number in rows):  # else the file is of other data
            images = data[0][[at[number] for number in rows]]
    if max(table[:, 1].max(), table[:, 2].max()) >= trained.job.classes:
        raise ValueError(f"{files.PREDICTIONS} has a class that {trained.job.name} does not know")
    report.add_classification(
        table[:, 1].astype(int),
        table[:, 2].astype(int),
        table[:, 3],
        images=images,
        shape=trained.job.shape,
        rows=rows.tolist(),
        classes=trained.job.classes,
    )


def _steps(trained: TrainedModel) -> int | None:
    """Weight updates an epoch, if the data can be had."""
    try:
        split, _ = trained.job.split(trained.config)
    except ImportError:
        return None
    return -(-len(split.train[1]) // trained.config.batch_size)


def _cards(
    report: Report, metrics: dict[str, Any], history: History, steps: int | None, smoothed: bool
) -> None:
    detail = "cross-entropy" + (", without label smoothing" if smoothed else "")
    report.add_card("Test loss", f"{metrics['test_loss']:.4f}", detail)
    speed = ""
    if "seconds" in history and steps:
        spent = sum(history["seconds"])
        speed = f"{steps * len(history) / spent:,.0f} steps a second" if spent > 0 else ""
    report.add_card("Time", _duration(metrics["seconds"]), speed)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _note(config: Any) -> str:
    """Why the curve of the training may lie on the wrong side of the other."""
    parts = ["with dropout"] if getattr(config, "dropout", 0) else []
    parts += ["with label smoothing"] if getattr(config, "label_smoothing", 0) else []
    parts += ["on images changed at random"] if getattr(config, "augments", False) else []
    return f"Training is measured {' and '.join(parts)}." if parts else ""


def _configuration(
    report: Report, folder: Path, trained: TrainedModel, metrics: dict[str, Any]
) -> None:
    section = report.page.section("Configuration")
    path = folder / files.CONFIG
    config = trained.config
    values = [
        (name.replace("_", " "), value_text(getattr(config, name)))
        for name in config.__dataclass_fields__
    ]
    section.facts([("job", trained.job.name), *values])
    section.facts(
        [("gpunn", metrics.get("gpunn", "unknown")), *_made_with(path), *_model_facts(folder)]
    )
    again = report.page.section(
        "Reproduce",
        "The same configuration gives the same weights, bit for bit, on the same device.",
    )
    again.code(f"gpunn train --config {quote(str(path))}", "Train the same model again:")
    again.code(f"gpunn predict {quote(str(folder))} {trained.job.name}-test", "Use the model:")


def _made_with(path: Path) -> list[tuple[str, str]]:
    """Versions that the head of the configuration names; ValueError if it is damaged."""
    if not path.is_file():
        return []
    try:
        text = path.read_text("utf-8")
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    head = text.splitlines()[0] if text.startswith("#") else ""
    found = [part.strip().rpartition(" ") for part in head.lstrip("# ").split(",")]
    return [(name, version) for name, _, version in found if name and name != "gpunn"]


def _model_facts(folder: Path) -> list[tuple[str, str]]:
    size = (folder / files.MODEL).stat().st_size
    facts = [("model file", f"{size / 2**20:.2f} MiB")]
    written = load_metadata(folder / files.MODEL).get("gpunn_version")
    return facts + ([("model written by gpunn", written)] if written else [])
