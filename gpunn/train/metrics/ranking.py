"""Metrics of how scores order samples: ROC, its area, precision against recall, its area."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.device import to_numpy
from gpunn.device.quiet import quietly
from gpunn.train.metrics.base import Collected, at_once, checked_option, classified, columns
from gpunn.train.metrics.probability import looks_like_probabilities, probabilities


class ROCCurve(NamedTuple):
    """False and true positive rates where samples of a score ≥ threshold are called positive."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall where samples of a score ≥ threshold are called positive.

    One point for each threshold, which grow; behind them a last point, precision 1 and recall 0.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


class ROCAUC(Collected):
    """The area under the ROC curve: how often a positive sample has the larger score; ties half.

    Exact: all scores are kept, where they are, until `compute`, which takes them to the host and
    sorts them.

    Parameters
    ----------
    average : of the areas of each class against the rest, "macro" or "weighted" by how often a
        class is true; None: an array (classes,), which does not go into the history
    from_logits : with more than two classes, compare softmax of the scores; False: they are
        probabilities already
    ignore_index, class_axis : prediction and target as in `Accuracy`. With one score a sample, and
        with two classes, there is one area, that of class 1.
    multilabel : several yes-or-no labels a sample: prediction and target are (samples, labels)

    A class that no sample, or every sample, belongs to has no area: NaN, and it is left out of
    means. So with samples of one class only the value is NaN, as it is where a score is NaN.
    """

    kind = "auc"

    def __init__(
        self,
        average: str | None = "macro",
        from_logits: bool = True,
        ignore_index: int | None = None,
        multilabel: bool = False,
        class_axis: int | None = None,
    ):
        known = ("macro", "weighted", None)
        self.average = checked_option(type(self).__name__, "average", average, known)
        self.from_logits, self.multilabel = bool(from_logits), bool(multilabel)
        self.ignore_index, self.class_axis = ignore_index, class_axis
        ending = {"macro": "", None: "_per_class"}.get(average, f"_{average}")
        self.name, self.scalar = self.kind + ending, average is not None
        super().__init__()

    def rows(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        if self.multilabel:
            return columns(self.name, prediction, target)
        return classified(self.name, prediction, target, self.class_axis)

    def value(self, prediction: np.ndarray, target: np.ndarray) -> Any:
        scores = prediction.astype(np.float64)
        if not self.multilabel and self.ignore_index is not None:
            counts = target != self.ignore_index
            scores, target = scores[counts], target[counts]
        scores, true = self._questions(scores, target)
        areas = np.array([self._area(scores[:, c], true[:, c]) for c in range(true.shape[1])])
        if true.shape[1] == 1 and not self.multilabel:
            return float(areas[0])
        if self.average is None:
            return areas
        weights = true.sum(axis=0) if self.average == "weighted" else np.ones(len(areas))
        weights = weights * ~np.isnan(areas)
        if np.isnan(scores).any() or not weights.sum():
            return math.nan
        return float(np.nansum(areas * weights) / weights.sum())

    def _questions(self, scores: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and truths as columns, each a question of yes or no."""
        if self.multilabel:
            return scores, target > 0
        if scores.ndim == 1:
            return scores[:, None], (target > 0)[:, None]
        classes = scores.shape[1]
        outside = int(((target < 0) | (target >= classes)).sum())
        if outside:
            raise ValueError(
                f"{self.name}: {outside} samples have a class outside 0 … {classes - 1}; correct "
                "the labels, or give ignore_index if they should not count"
            )
        if classes == 2:
            # For logits; of probabilities it keeps the order, but for very small ones.
            with quietly():
                margin = scores[:, 1:] - scores[:, :1] if self.from_logits else scores[:, 1:]
            return margin, (target == 1)[:, None]
        if self.from_logits:
            if len(scores) and looks_like_probabilities(scores).all():
                raise ValueError(
                    f"{self.name}: the scores are not negative and add up to 1 in every row, as "
                    f"probabilities do; use {type(self).__name__}(from_logits=False)"
                )
            with quietly():
                scores = probabilities(scores)
        return scores, target[:, None] == np.arange(classes)

    def _area(self, scores: np.ndarray, true: np.ndarray) -> float:
        positive = int(true.sum())
        negative = len(true) - positive
        if not positive or not negative or np.isnan(scores).any():
            return math.nan
        _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
        rank = (np.cumsum(ties) - (ties - 1) / 2)[place]  # the mean rank of equal scores
        above = rank[true].sum() - positive * (positive + 1) / 2
        return float(above / (positive * negative))


class AveragePrecision(ROCAUC):
    """The mean precision at the thresholds of the scores, weighted by the gain in recall there.

    Arguments as in `ROCAUC`. A class that no sample belongs to has NaN, and is left out of means.
    """

    kind = "average_precision"

    def _area(self, scores: np.ndarray, true: np.ndarray) -> float:
        if not true.any() or np.isnan(scores).any():
            return math.nan
        _, hits, called = _by_threshold(scores, true)
        gain = np.diff(hits, prepend=0) / hits[-1]
        return float((gain * hits / called).sum())


def _by_threshold(
    scores: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thresholds from the largest, positives at or above each, samples at or above each)"""
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], true[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of runs of equal scores
    return scores[last], np.cumsum(true)[last].astype(np.float64), last + 1.0


def _binary(name: str, scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    values = to_numpy(raw_array(scores)).astype(np.float64)
    true = to_numpy(raw_array(labels)) > 0
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.shape[1] == 2:
        with quietly():
            values = values[:, 1] - values[:, 0]
    true = true.reshape(-1) if true.ndim == 2 and true.shape[1] == 1 else true
    if values.ndim != 1 or values.shape != true.shape or not len(values):
        raise ValueError(
            f"{name}: scores have shape {values.shape} and labels {true.shape}; expected "
            "(samples,) or (samples, 2) and (samples,), with at least one sample"
        )
    if np.isnan(values).any():
        raise ValueError(f"{name}: {int(np.isnan(values).sum())} scores are NaN")
    return values, true


def roc_curve(scores: Any, labels: Any) -> ROCCurve:
    """The ROC curve of one score a sample, or of class 1 of two, with a point for each threshold.

    It begins with (0, 0) at the threshold infinity. A rate without samples is NaN.
    """
    values, true = _binary("roc_curve", scores, labels)
    thresholds, hits, called = _by_threshold(values, true)
    positive, negative = hits[-1], called[-1] - hits[-1]
    false = np.append(0.0, called - hits)
    hits = np.append(0.0, hits)
    return ROCCurve(
        false / negative if negative else np.full_like(false, np.nan),
        hits / positive if positive else np.full_like(hits, np.nan),
        np.append(np.inf, thresholds),
    )


def precision_recall_curve(scores: Any, labels: Any) -> PrecisionRecallCurve:
    """Precision against recall of one score a sample, or of class 1 of two.

    Without a positive sample the recall is NaN.
    """
    values, true = _binary("precision_recall_curve", scores, labels)
    thresholds, hits, called = _by_threshold(values, true)
    recall = hits / hits[-1] if hits[-1] else np.full_like(hits, np.nan)
    return PrecisionRecallCurve(
        np.append((hits / called)[::-1], 1.0), np.append(recall[::-1], 0.0), thresholds[::-1]
    )


def roc_auc(prediction: Any, target: Any, **options: Any) -> Any:
    """`ROCAUC` of arrays at hand."""
    return at_once(ROCAUC(**options), prediction, target)


def average_precision(prediction: Any, target: Any, **options: Any) -> Any:
    """`AveragePrecision` of arrays at hand."""
    return at_once(AveragePrecision(**options), prediction, target)
