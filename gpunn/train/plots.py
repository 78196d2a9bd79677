"""Pictures: training curves and the confusion matrix, by matplotlib's object interface.

No pyplot: nothing global is touched, no window is opened, and it works without a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.io import atomic_path

TRAINING, VALIDATION, BEST = "#4477aa", "#cc6677", "#666666"  # told apart by the colour-blind too
_LONG = {"mae": "mean absolute error", "mse": "mean squared error", "r2": "R²"}


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches. ImportError, with the remedy, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which is not installed; run: pip install matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure to `path`, in the format of its suffix, whole or not at all.

    ValueError for a format that matplotlib does not write.
    """
    suffix = Path(path).suffix.lstrip(".").lower()
    formats = figure.canvas.get_supported_filetypes()
    if suffix not in formats:
        raise ValueError(f"{path}: use a suffix such as .png, .svg or .pdf for a picture")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix)


def training_curves(history: Any, title: str = "Training", note: str = "") -> Any:
    """A panel for the loss and one for each metric, against the epoch.

    Training is drawn solid and validation dashed; a vertical line marks the epoch whose weights the
    model bears (`history.best_epoch`, else the best validation loss, if there was validation).
    `note` is written below in small letters.
    ValueError for an empty history.
    """
    if not len(history):
        raise ValueError("the history is empty; there is nothing to draw")
    names = [
        name
        for name in history.metrics()
        if name not in ("epoch", "seconds", "learning_rate") and not name.startswith("validation_")
    ]
    best = history.best_epoch
    if best is None and "validation_loss" in history:
        best = history.best("validation_loss")["epoch"]
    figure = new_figure(max(6.0, 4.8 * len(names)), 4.0)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _curve_panel(axes, history, name, best)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    if note:
        figure.supxlabel(note, fontsize=9, color=BEST)
    return figure


def _curve_panel(axes: Any, history: Any, name: str, best: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = np.array(history["epoch"])
    few = dict(marker="o", markersize=3) if len(epochs) < 12 else {}
    axes.plot(epochs, history[name], color=TRAINING, lw=1.8, label="training", **few)
    other = f"validation_{name}"
    curves = [np.array(history[name], float)]
    if other in history:
        curves.append(np.array(history[other], float))
        axes.plot(epochs, curves[1], color=VALIDATION, lw=1.8, ls="--", label="validation", **few)
    if best is not None:
        axes.axvline(best, color=BEST, lw=1.0, ls=":", label=f"best epoch, {best}")
        record = history.records[int(np.argmin(np.abs(epochs - best)))]
        if other in record:
            axes.plot([best], [record[other]], "o", color=VALIDATION, ms=6, mec="white", zorder=5)
    label = _LONG.get(name, name.replace("_", " "))
    axes.set(title=label[0].upper() + label[1:], xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    values = np.concatenate(curves)
    finite = values[np.isfinite(values) & (values > 0)]
    # A loss that falls through orders of magnitude is only legible on a logarithmic scale.
    if "accuracy" not in name and finite.size and finite.max() > 30 * finite.min():
        axes.set_yscale("log")
    elif "accuracy" in name:
        low = np.nanmin(values)
        axes.set_ylim(max(0.0, low - 0.05 * (1 - low)), 1.0 + 0.03 * (1 - low))
    axes.grid(True, color="#dddddd", lw=0.7, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.legend(fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def confusion_matrix_figure(
    matrix: np.ndarray, labels: Sequence[str] | None = None, title: str = "Confusion matrix"
) -> Any:
    """Rows are true classes, columns predicted ones; each cell has its count, zeros a dot.

    The shade is the share of the row, so that rare classes show as well as frequent ones. The title
    gains the accuracy. ValueError if `matrix` is not square, or the labels do not match.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"a confusion matrix must be square, got shape {matrix.shape}")
    size = len(matrix)
    labels = [str(number) for number in range(size)] if labels is None else list(labels)
    if len(labels) != size:
        raise ValueError(f"{len(labels)} labels for a confusion matrix of {size} classes")
    side = min(12.0, max(4.2, 0.48 * size + 1.4))
    figure = new_figure(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    total = int(matrix.sum())
    right = int(np.trace(matrix))
    accuracy = f"accuracy {right / total:.4f} ({right} of {total})" if total else "no samples"
    axes.set_title(f"{title}\n{accuracy}", fontsize=12)
    axes.set_xlabel("predicted", fontsize=11)
    axes.set_ylabel("true", fontsize=11)
    rotation = 45 if max(map(len, labels)) > 3 else 0
    axes.set_xticks(range(size), labels, rotation=rotation)
    axes.set_yticks(range(size), labels)
    axes.tick_params(length=0, labelsize=10)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1.5)
    axes.tick_params(which="minor", length=0)
    _cell_numbers(axes, matrix, shares)
    return figure


def _cell_numbers(axes: Any, matrix: np.ndarray, shares: np.ndarray) -> None:
    size = len(matrix)
    fontsize = 11 if size <= 12 else max(5, 130 / size)
    for row in range(size):
        for column in range(size):
            count = int(matrix[row, column])
            wrong = row != column and count > 0
            color = "white" if shares[row, column] > 0.55 else "#aa2222" if wrong else "#222222"
            if not count:
                color = "#c8c8c8"
            axes.text(
                column,
                row,
                str(count) if count else "·",
                ha="center",
                va="center",
                fontsize=fontsize,
                color=color,
                fontweight="bold" if wrong else "normal",
            )
