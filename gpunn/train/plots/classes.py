"""Pictures for classifiers: confusion, mistakes, calibration, ROC, precision and recall."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.train.metrics import average_precision, precision_recall_curve, roc_auc, roc_curve
from gpunn.train.plots.figures import (
    BEST,
    PALETTE,
    TRAINING,
    class_names,
    class_values,
    finished,
    legend,
    literal,
    new_figure,
    panels,
    plain,
    values_of,
)
from gpunn.train.plots.images import as_images, show_image
from gpunn.train.plots.scores import calibration, worst_first


def confusion_matrix_figure(
    matrix: np.ndarray,
    labels: Sequence[str] | None = None,
    title: str = "Confusion matrix",
    path: str | os.PathLike[str] | None = None,
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
    labels = [literal(label) for label in labels]
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
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(size), labels, **(turned if max(map(len, labels)) > 3 else {}))
    axes.set_yticks(range(size), labels)
    axes.tick_params(length=0, labelsize=10)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1.5)
    axes.tick_params(which="minor", length=0)
    _cell_numbers(axes, matrix, shares)
    return finished(figure, path)


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


def plot_misclassified(
    images: Any,
    labels: Any,
    predictions: Any,
    probabilities: Any = None,
    *,
    shape: tuple[int, ...] | None = None,
    names: Sequence[str] | None = None,
    limit: int = 20,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """The images that a model takes for something else, the surest mistakes first.

    Parameters
    ----------
    images : (samples, height, width), the same with 1, 3 or 4 channels before or after, or
        (samples, features) with `shape`, that of one image
    labels, predictions : class indices (samples,)
    probabilities : (samples, classes), or that of the prediction (samples,); without it the
        mistakes come in the order of the samples
    names : of the classes
    limit : how many at most

    Returns the Figure, which says so if no image is misclassified. ValueError for shapes that do
    not match.
    """
    pictures = as_images(images, shape)
    labels = class_values(labels, len(pictures))
    predictions = class_values(predictions, len(pictures), "predictions")
    wrong, confidence = worst_first(labels, predictions, probabilities)
    classes = int(max(labels.max(initial=0), predictions.max(initial=0))) + 1
    names = class_names(names, classes if names is None else max(classes, len(names)))
    shown = wrong[:limit]
    columns = min(5, max(2, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    figure = new_figure(1.75 * columns + 0.3, 2.15 * rows + 0.7)
    count = f"{len(wrong)} of {len(labels)} misclassified"
    figure.suptitle(
        count + (f", the worst {len(shown)}" if len(shown) < len(wrong) else ""),
        fontsize=12,
        fontweight="bold",
    )
    if not len(shown):
        figure.text(0.5, 0.4, "none to show", ha="center", color=BEST)
        return finished(figure, path)
    span = (float(np.nanmin(pictures[shown])), float(np.nanmax(pictures[shown])))
    for axes, index in zip(panels(figure, len(shown), columns), shown, strict=True):
        show_image(axes, pictures[index], span)
        true, taken = literal(names[labels[index]]), literal(names[predictions[index]])
        sure = "" if confidence is None else f" ({confidence[index]:.0%})"
        axes.set_title(f"taken for {taken}{sure}", fontsize=9, color="#aa2222", pad=3)
        axes.set_xlabel(f"is {true}  ·  #{index}", fontsize=9)
    return finished(figure, path)


def plot_calibration(
    probabilities: Any,
    labels: Any,
    bins: int = 10,
    *,
    title: str = "Calibration",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """How often a model is right among the predictions that it is so and so sure of.

    Parameters
    ----------
    probabilities : (samples, classes), or of the class 1 (samples,). Of several classes the
        predicted one counts
    labels : class indices (samples,); 0 or 1 for probabilities of one class
    bins : of equal width between 0 and 1

    On the diagonal the confidence can be believed; below it the model is too sure. The title tells
    the expected calibration error, the mean distance from the diagonal. The panel beneath counts
    the samples. Returns the Figure.
    """
    found = calibration(probabilities, labels, bins)
    figure = new_figure(5.2, 5.8)
    upper, lower = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color=BEST, lw=1, ls=":", label="perfect")
    upper.vlines(
        found.confidence,
        found.confidence,
        found.share,
        color="#cc6677",
        lw=2.5,
        alpha=0.6,
        label="off by",
    )
    upper.plot(
        found.confidence,
        found.share,
        "-o",
        color=TRAINING,
        lw=1.8,
        ms=5,
        label="the model",
    )
    upper.set(ylabel=found.what, xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"{title}\nexpected calibration error {found.error:.3f}", fontsize=12)
    legend(upper, loc="upper left")
    edges = np.linspace(0, 1, bins + 1)
    lower.bar(edges[:-1], found.counts, width=1 / bins, align="edge", color=TRAINING, ec="white")
    lower.set(xlabel="predicted probability", ylabel="samples")
    plain(upper)
    plain(lower, "y")
    return finished(figure, path)


def plot_roc(
    scores: Any,
    labels: Any,
    names: Sequence[str] | None = None,
    *,
    title: str = "ROC curve",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """True against false positives over every threshold; the legend tells the area below.

    `scores` are (samples,) for the class 1, or (samples, classes): then each class has a curve
    against all others. `labels` are class indices (samples,). Returns the Figure. ValueError where
    a class has no sample, or has them all.
    """

    def draw(
        axes: Any, score: np.ndarray, positive: np.ndarray, name: str, style: dict[str, Any]
    ) -> None:
        x, y, _ = roc_curve(score, positive)
        axes.plot(x, y, label=f"{name}area {roc_auc(score, positive):.3f}", **style)

    figure, axes = _against_others(scores, labels, names, draw)
    axes.plot([0, 1], [0, 1], color=BEST, lw=1, ls=":", label="chance")
    axes.set(
        xlabel="false positives, share of the negatives",
        ylabel="true positives, share of the positives",
    )
    axes.set_title(title, fontsize=12, fontweight="bold")
    legend(axes, loc="lower right")
    return finished(figure, path)


def plot_precision_recall(
    scores: Any,
    labels: Any,
    names: Sequence[str] | None = None,
    *,
    title: str = "Precision and recall",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Precision against recall over every threshold; the legend tells the average precision.

    Arguments and errors as of `plot_roc`.
    """

    def draw(
        axes: Any, score: np.ndarray, positive: np.ndarray, name: str, style: dict[str, Any]
    ) -> None:
        precision, recall, _ = precision_recall_curve(score, positive)
        label = f"{name}average {average_precision(score, positive):.3f}"
        axes.step(recall, precision, where="post", label=label, **style)

    figure, axes = _against_others(scores, labels, names, draw)
    axes.set(
        xlabel="recall, share of the positives that is found",
        ylabel="precision, share of what is found that is right",
    )
    axes.set_title(title, fontsize=12, fontweight="bold")
    legend(axes, loc="lower left")
    return finished(figure, path)


def _against_others(scores: Any, labels: Any, names: Any, draw: Any) -> tuple[Any, Any]:
    scores = values_of(scores, "scores").astype(float)
    if scores.ndim not in (1, 2):
        raise ValueError(f"scores have shape {scores.shape}; expected (samples,) or (…, classes)")
    labels = class_values(labels, len(scores))
    columns = [(1, scores)] if scores.ndim == 1 else list(enumerate(scores.T))
    names = class_names(names, scores.shape[1]) if scores.ndim == 2 else None
    figure = new_figure(5.6, 5.4)
    axes = figure.subplots()
    for number, (label, score) in enumerate(columns):
        style = {
            "color": PALETTE[number % len(PALETTE)],
            "lw": 1.8,
            "ls": ("-", "--", "-.", ":")[number // len(PALETTE) % 4],
        }
        positive = labels == label
        if not positive.any() or positive.all():
            raise ValueError(
                f"a curve of class {label} needs samples of the class and samples of the others"
            )
        draw(axes, score, positive, f"{literal(names[label])}: " if names else "", style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    plain(axes)
    return figure, axes
