"""Points of many dimensions in two: principal components or t-SNE."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.train.plots.figures import (
    MARKS,
    PALETTE,
    class_names,
    class_values,
    finished,
    literal,
    new_figure,
    plain,
    values_of,
)


def principal_components(vectors: Any, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of (samples, features), and each one's share of the variance.

    By the singular value decomposition of the centred data. The sign is chosen so that the largest
    loading of a component is positive. ValueError for fewer samples or features than `count`.
    """
    vectors = values_of(vectors, "vectors").astype(np.float64)
    if vectors.ndim != 2 or min(vectors.shape) < count:
        raise ValueError(
            f"vectors have shape {vectors.shape}; expected (samples, features), at least {count} "
            "of each"
        )
    if not np.isfinite(vectors).all():
        raise ValueError("the vectors hold NaN or infinity")
    centred = vectors - vectors.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    variance = singular**2
    shares = variance / (variance.sum() or 1.0)
    return (left * singular * sign)[:, :count], shares[:count]


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            't-SNE needs scikit-learn; run: pip install scikit-learn, or use method="pca"'
        ) from error
    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def plot_embedding(
    vectors: Any,
    labels: Any = None,
    *,
    method: str = "pca",
    names: Sequence[str] | None = None,
    words: Sequence[str] | None = None,
    title: str = "Embedding",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Vectors as points in a plane, coloured and marked by class.

    Parameters
    ----------
    vectors : (samples, features), such as the outputs of a hidden layer or rows of an embedding
    labels : class indices (samples,); None draws all alike
    method : "pca", whose axes tell their share of the variance; or "tsne", which keeps neighbours
        together but no distances, by scikit-learn
    names : of the classes, written at the middle of each
    words : a text for each point, written beside it; for some dozens of points
    seed : of t-SNE

    Returns the Figure. ValueError for shapes that do not match or another method; ImportError for
    t-SNE without scikit-learn.
    """
    vectors = values_of(vectors, "vectors")
    if method not in ("pca", "tsne"):
        raise ValueError(f"method must be 'pca' or 'tsne', got {method!r}")
    points, shares = principal_components(vectors)
    axis_labels = [
        f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares)
    ]
    if method == "tsne":
        points = _tsne(np.asarray(vectors, np.float32), seed)
        axis_labels = ["t-SNE 1 (no unit)", "t-SNE 2 (no unit)"]
    if words is not None and len(words) != len(points):
        raise ValueError(f"{len(words)} words for {len(points)} vectors")
    figure = new_figure(7.2, 6.0)
    axes = figure.subplots()
    if labels is None:
        axes.scatter(*points.T, s=16, color=PALETTE[0], alpha=0.7, lw=0)
    else:
        _by_class(axes, points, class_values(labels, len(points)), names)
    for point, word in zip(points, words if words is not None else (), strict=False):
        axes.annotate(literal(word), point, xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.set_title(title, fontsize=12, fontweight="bold")
    axes.margins(0.06)
    plain(axes)
    return finished(figure, path)


def _by_class(axes: Any, points: np.ndarray, labels: np.ndarray, names: Any) -> None:
    classes = int(labels.max()) + 1 if names is None else len(names)
    names = [literal(name) for name in class_names(names, max(classes, int(labels.max()) + 1))]
    for number in np.unique(labels):
        mine = points[labels == number]
        color = PALETTE[number % len(PALETTE)]
        axes.scatter(
            *mine.T,
            s=18,
            color=color,
            marker=MARKS[number % len(MARKS)],
            alpha=0.65,
            lw=0,
            label=names[number],
        )
        axes.annotate(
            names[number],
            np.median(mine, axis=0),
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": color, "alpha": 0.9, "lw": 1.2},
        )
    if len(np.unique(labels)) <= 20:
        axes.figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            fontsize=9,
            frameon=False,
            markerscale=1.3,
        )
