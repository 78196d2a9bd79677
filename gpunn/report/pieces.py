"""Parts of the report of a training: curves, classes, confidence, the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.nn.module import Module
from gpunn.nn.summary import summarize
from gpunn.report.charts import Chart, Line, curves, histogram
from gpunn.report.images import data_uri, diverging
from gpunn.report.page import Cell, Page, Section
from gpunn.train.history import History, resolve_mode
from gpunn.train.plots.curves import is_logarithmic, metric_title, overfitting_gap
from gpunn.train.plots.images import filter_images, first_layer_weight
from gpunn.train.plots.scores import binned, class_report

_FILTERS = 48
MATRIX_CLASSES = 25  # more do not fit into a matrix that can be read


def value_text(value: Any) -> str:
    """A setting for people: yes and no, none, and lists with commas."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def figure_text(value: float, name: str) -> str:
    """A measurement for a card: shares in percent."""
    if "accuracy" in name:
        return "100%" if value == 1 else f"{value:.2%}"
    return f"{value:.4g}"


def record_cell(value: float | None, name: str) -> Cell:
    """A cell of the table of epochs."""
    if value is None:
        return Cell("")
    return Cell(f"{value:g}" if name == "epoch" else f"{value:.5g}", float(value))


def learning_curve(history: History, name: str, best: int | None) -> Chart:
    """Training and validation of one metric, with the gap."""
    epochs, other = history["epoch"], f"validation_{name}"
    lines = [Line("training", epochs, history[name], 0)]
    caption, gap = "", overfitting_gap(history, name)
    if gap:
        lines.append(Line("validation", epochs, history[other], 1, dashed=True))
        caption = f"Gap {gap.at_best:+.3g} at epoch {gap.epoch}, {gap.at_end:+.3g} at the end"
        caption += ": validation is the worse of the two." if gap.at_best > 0 else "."
    lower = resolve_mode(name) == "min"
    values = np.concatenate([np.array(line.y, float) for line in lines])
    log = is_logarithmic(name, values)
    return curves(
        metric_title(name),
        lines,
        x_label="epoch",
        y_label=metric_title(name).lower(),
        log=log,
        gap=(0, 1) if gap else None,
        lower_is_better=lower,
        caption=caption,
        mark=(best, f"best epoch, {best}") if best is not None else None,
    )


def other_curves(history: History) -> list[Chart]:
    """The learning rate, where it changed."""
    if "learning_rate" not in history or len(set(history["learning_rate"])) < 2:
        return []
    line = Line("learning rate", history["epoch"], history["learning_rate"], 2)
    return [curves("Learning rate", [line], x_label="epoch", y_label="learning rate")]


def classes_section(section: Section, matrix: np.ndarray, names: Sequence[str]) -> None:
    """The confusion matrix, if it can be read, beside a row a class."""
    left = Section("")
    if len(matrix) <= MATRIX_CLASSES:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        rows: list[Any] = []
        for true, name in enumerate(names):
            cells = []
            for taken, count in enumerate(matrix[true]):
                share = float(shares[true, taken])
                tone = "" if not count else "accent" if true == taken else "bad"
                strength = share if true == taken else min(1.0, 0.35 + share)
                tip = f"is {name}, taken for {names[taken]}: {count} ({share:.1%})"
                cells.append(Cell(str(count) if count else "·", None, tone, strength, tip=tip))
            rows.append((name, cells))
        left.matrix("is ↓  taken for →", names, rows, "Confusion matrix: rows are true classes")
    report = class_report(matrix)
    rows = []
    for name, row in zip(names, report, strict=True):
        shares = [
            Cell(f"{row[key]:.3f}", row[key], bar=row[key])
            if row[key] == row[key]
            else Cell("none", None)
            for key in ("precision", "recall", "f1")
        ]
        rows.append([name, *shares, Cell(f"{row['support']:,}", row["support"])])
    right = Section("").table(
        ["Class", "Precision", "Recall", "F1", "Samples"],
        rows,
        right=(1, 2, 3, 4),
        caption="Precision, recall and F1 of each class",
    )
    section.columns(*([left] if left.blocks else []), right)


def confidence_charts(sure: np.ndarray, right: np.ndarray) -> list[Chart]:
    """Calibration, and how often the model is how sure."""
    found = binned(sure, right, 10, "share that is right")
    x, y = found.confidence.tolist(), found.share.tolist()
    perfect = Line("perfect", [0.0, 1.0], [0.0, 1.0], 6, dashed=True)
    chart = curves(
        "Calibration",
        [perfect, Line("the model", x, y, 0)],
        x_label="confidence",
        y_label="share that is right",
        limits=(0.0, 1.04),
        caption=f"Expected calibration error {found.error:.3f}.",
    )
    edges = np.linspace(0, 1, 11).tolist()
    return [chart, histogram("Confidence", edges, found.counts.tolist(), x_label="confidence")]


def weights_chart(name: str, array: np.ndarray) -> Chart:
    """The histogram of a parameter."""
    values = array[np.isfinite(array)].astype(float)
    if not values.size:
        return histogram(f"{name}: nothing finite", [0.0, 1.0], [0], x_label="value")
    counts, edges = np.histogram(values, 40)
    bad = array.size - values.size
    caption = f"{'×'.join(map(str, array.shape))}, mean {values.mean():.2g}, sd {values.std():.2g}"
    return histogram(
        name,
        edges.tolist(),
        counts.tolist(),
        x_label="value",
        caption=caption + (f", {bad} not finite" if bad else ""),
    )


# ---- the model -----------------------------------------------------------------------------------


def layers_section(page: Page, model: Module, input_shape: tuple[int, ...]) -> None:
    """The layers with their output shapes and parameters, by running the model once on zeros."""
    summary = summarize(model, input_shape)
    rows = []
    for row in summary.rows:
        known = row.output_shape
        shape = "not run" if known is None else " × ".join(("batch", *map(str, known[1:])))
        share = row.parameters / (summary.total or 1)
        count = Cell(f"{row.parameters:,}", row.parameters, bar=share)
        rows.append([row.name, row.layer, shape, count])
    note = (
        f"{summary.total:,} parameters, {summary.trainable:,} of them trained, "
        f"{summary.parameter_bytes / 2**20:.2f} MiB."
    )
    headers, caption = ["Layer", "Kind", "Output", "Parameters"], "Layers in the order of the model"
    section = page.section("Model", note)
    section.table(headers, rows, right=(3,), search=False, sortable=False, caption=caption)


def filters_section(page: Page, model: Module, shape: tuple[int, ...] | None) -> None:
    """The first layer's filters; nothing for a dense one without the `shape` of an image."""
    if not any(parameter.ndim > 1 for parameter in model.parameters()):
        return
    name, weight = first_layer_weight(model)
    if weight.ndim == 2 and shape is None:
        return
    pictures, order = filter_images(weight, shape, _FILTERS)
    largest = float(np.nanmax(np.abs(pictures)))
    found = [
        (data_uri(diverging(picture, largest)), f"filter {number} of {name}", f"#{number}")
        for picture, number in zip(pictures, order, strict=True)
    ]
    total = f"All {len(weight)}"
    if len(order) < len(weight):
        total = f"The {len(order)} with the largest norm of {len(weight)}"
    scale = f"Blue is negative, white zero, red positive, up to ±{largest:.3g}."
    scale = "Grey is zero." if pictures.ndim == 4 else scale
    section = page.section("First layer", f"What each unit of {name} looks for. {total}. {scale}")
    section.images(found, 72)
