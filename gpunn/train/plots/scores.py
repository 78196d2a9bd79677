"""The numbers behind the pictures of classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.train.metrics import CalibrationError
from gpunn.train.plots.figures import class_values, values_of


def worst_first(
    labels: np.ndarray, predictions: np.ndarray, probabilities: Any = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples that are wrong, the surest first, and every sample's confidence (or None).

    `probabilities` are (samples, classes), or those of the predictions (samples,). ValueError if
    they do not match.
    """
    wrong = np.flatnonzero(labels != predictions)
    if probabilities is None:
        return wrong, None
    confidence = values_of(probabilities, "probabilities").astype(float)
    if confidence.ndim == 2 and len(confidence) == len(labels):
        if len(labels) and predictions.max() >= confidence.shape[1]:
            raise ValueError(
                f"probabilities of {confidence.shape[1]} classes for prediction {predictions.max()}"
            )
        confidence = confidence[np.arange(len(labels)), predictions]
    if confidence.shape != labels.shape:
        raise ValueError(
            f"probabilities have shape {confidence.shape}; there are {len(labels)} samples"
        )
    return wrong[np.argsort(-confidence[wrong], kind="stable")], confidence


@dataclass(frozen=True)
class Calibration:
    """Of each bin with samples the mean confidence and the share that is right, of all the samples.

    `error` is the expected calibration error and `what` says what the share is one of.
    """

    confidence: np.ndarray
    share: np.ndarray
    counts: np.ndarray
    error: float
    what: str


def calibration(probabilities: Any, labels: Any, bins: int = 10) -> Calibration:
    """Confidence against how often it is right, in `bins` of equal width.

    Arguments as of `plot_calibration`. ValueError for probabilities outside 0 … 1.
    """
    probabilities = values_of(probabilities, "probabilities").astype(float)
    labels = class_values(labels, len(probabilities))
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be 1 or more")
    if probabilities.ndim == 1:
        sure, right, what = probabilities, labels == 1, "share of class 1"
    elif probabilities.ndim == 2:
        sure = probabilities.max(axis=1)
        right, what = probabilities.argmax(axis=1) == labels, "share that is right"
    else:
        raise ValueError(f"probabilities have shape {probabilities.shape}; expected 1 or 2 axes")
    return binned(sure, right, bins, what)


def binned(sure: np.ndarray, right: np.ndarray, bins: int, what: str) -> Calibration:
    """Confidences and whether each was right, by bin. ValueError outside 0 … 1."""
    if not len(sure) or not ((sure >= 0) & (sure <= 1 + 1e-6)).all():
        raise ValueError("probabilities must lie between 0 and 1, and there must be some")
    metric = CalibrationError(bins, from_logits=False)
    metric.update(sure, right)
    curve = metric.curve()
    edges = np.arange(1, bins) * (1.0 / bins)  # as the metric has them, each bin with its upper end
    counts = np.bincount(np.searchsorted(edges, sure), minlength=bins)
    return Calibration(curve.confidence, curve.frequency, counts, metric.compute(), what)


def class_report(matrix: np.ndarray) -> list[dict[str, float]]:
    """Of each class by a confusion matrix [true, predicted]: precision, recall, f1, support.

    NaN where a class was never predicted (precision) or has no sample (recall).
    """
    found = []
    for number in range(len(matrix)):
        hit, taken, there = matrix[number, number], matrix[:, number].sum(), matrix[number].sum()
        found.append(
            {
                "precision": float(hit / taken) if taken else float("nan"),
                "recall": float(hit / there) if there else float("nan"),
                "f1": float(2 * hit / (taken + there)) if taken + there else float("nan"),
                "support": int(there),
            }
        )
    return found


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share that was found `right` times in `count` (Wilson, 1927).

    ValueError without a sample.
    """
    if not 0 <= right <= count or not count:
        raise ValueError(f"{right} of {count} is no share")
    share, z2 = right / count, z * z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * np.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
