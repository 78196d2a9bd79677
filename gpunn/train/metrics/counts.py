"""Metrics that follow from counts by class: confusion matrix, precision, recall, F, correlation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.device import array_module, device_of, to_numpy
from gpunn.distributed.values import exchange_values
from gpunn.train.metrics.base import (
    Metric,
    at_once,
    checked_option,
    classified,
    columns,
    counted_labels,
    predicted_classes,
)

AVERAGES = ("auto", "binary", "micro", "macro", "weighted", None)


class ConfusionMatrix(Metric):
    """Counts ``matrix[true, predicted]`` as an int64 array (classes, classes).

    `classes` may be left out: then it is the number of columns of the first prediction. Prediction,
    target, `ignore_index` and `class_axis` as in `Accuracy`. A row that holds NaN predicts no class
    and is left out. ValueError in `compute` for labels outside 0 … classes - 1.
    """

    name = "confusion_matrix"
    scalar = False

    def __init__(
        self,
        classes: int | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        class_axis: int | None = None,
    ):
        self.classes, self.threshold = classes, threshold
        self.ignore_index, self.class_axis = ignore_index, class_axis
        self.reset()

    def reset(self) -> None:
        self._counts: Any = None
        self._size = self.classes

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = classified(self.name, prediction, target, self.class_axis)
        xp = array_module(device_of(prediction))
        if self._size is None:
            self._size = prediction.shape[1] if prediction.ndim == 2 else 2
        predicted = predicted_classes(prediction, self.threshold)
        size = self._size
        # Cells outside the matrix are counted in one more bin, as raising an error would wait for
        # the device; what does not count goes into a bin behind that.
        inside = (target >= 0) & (target < size) & (predicted < size)
        cell = xp.where(inside, target.astype(np.int64) * size + predicted, size * size)
        left_out = predicted < 0
        if self.ignore_index is not None:
            left_out = left_out | (target == self.ignore_index)
        cell = xp.where(left_out, size * size + 1, cell)
        counts = xp.bincount(cell, minlength=size * size + 2)
        self._counts = counts if self._counts is None else self._counts + counts

    def merge(self, group: Any) -> None:
        sizes = group.exchange(self._size)
        self._size = next((size for size in sizes if size is not None), None)
        ranks = exchange_values(group, self._counts)
        counts = [part for part in ranks if part is not None]
        if len({len(part) for part in counts}) > 1:
            raise ValueError(f"{self.name}: the processes count {sizes} classes; give classes=")
        self._counts = np.add.reduce(counts) if counts else None

    def compute(self) -> np.ndarray:
        if self._counts is None or self._size is None:
            raise ValueError("confusion_matrix: no samples were given; call update first")
        counts = to_numpy(self._counts).astype(np.int64)
        if counts[-2]:
            raise ValueError(
                f"confusion_matrix: {counts[-2]} samples have a class outside 0 … "
                f"{self._size - 1}; give classes= as many as there are"
            )
        return counts[:-2].reshape(self._size, self._size)


class ClassCounts(Metric):
    """Base of metrics of three counts for each class: hits, how often predicted, how often true.

    Comparing every row with every class takes rows × classes bytes three times over; for
    vocabularies of many thousands take `ConfusionMatrix` of a sample, or `Accuracy`.
    """

    in_step = True

    def __init__(
        self,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        multilabel: bool = False,
        class_axis: int | None = None,
    ):
        self.threshold, self.ignore_index = threshold, ignore_index
        self.multilabel, self.class_axis = bool(multilabel), class_axis
        self.reset()

    def reset(self) -> None:
        self._hits: Any = 0
        self._predicted: Any = 0
        self._true: Any = 0
        self._outside: Any = 0
        self._count: Any = 0

    def update(self, prediction: Any, target: Any) -> None:
        if self.multilabel:
            scores, labels = columns(self.name, prediction, target)
            predicted, true, outside = scores > self.threshold, labels > 0, 0
            valid = None if self.ignore_index is None else labels != self.ignore_index
            if valid is not None:
                predicted, true = predicted & valid, true & valid
        else:
            scores, labels = classified(self.name, prediction, target, self.class_axis)
            labels, valid = counted_labels(scores, labels, self.ignore_index)
            predicted, true, outside = self._compared(scores, labels, valid)
        if np.ndim(self._true) and len(self._true) != true.shape[1]:
            raise ValueError(
                f"{self.name}: {true.shape[1]} classes in this batch, {len(self._true)} before"
            )
        self._hits = self._hits + (predicted & true).sum(axis=0)
        self._predicted = self._predicted + predicted.sum(axis=0)
        self._true = self._true + true.sum(axis=0)
        self._outside = self._outside + outside
        self._count = self._count + (len(scores) if valid is None else valid.sum())

    def _compared(self, scores: Any, labels: Any, valid: Any) -> tuple[Any, Any, Any]:
        """(predicted, true) as (rows, classes) truths, and how many labels are no class."""
        size = 2 if scores.ndim == 1 else scores.shape[1]
        xp = array_module(device_of(scores))
        predicted = predicted_classes(scores, self.threshold)
        outside = (labels < 0) | (labels >= size) | (predicted >= size)
        if valid is not None:
            predicted, labels = xp.where(valid, predicted, -1), xp.where(valid, labels, -1)
            outside = outside & valid
        classes = xp.arange(size)[None, :]
        return predicted[:, None] == classes, labels[:, None] == classes, outside.sum()

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hits, predicted, true), each float64 (classes,). ValueError for labels of no class."""
        if isinstance(self._count, int):  # an array, if only zero, of samples that do not count
            self._require_samples(self._count)
        outside = int(self._outside)
        if outside:
            raise ValueError(
                f"{self.name}: {outside} samples have a class outside 0 … {len(self._true) - 1}; "
                "correct the labels, or give ignore_index if they should not count"
            )
        hits, predicted, true = (
            to_numpy(part).astype(np.float64) for part in (self._hits, self._predicted, self._true)
        )
        return hits, predicted, true


class FBeta(ClassCounts):
    """The weighted harmonic mean of precision and recall: (1 + β²)PR / (β²P + R).

    Parameters
    ----------
    beta : how much more recall counts than precision
    average : "binary": class 1 alone, of two; "micro": all classes' counts together; "macro": the
        mean over classes; "weighted": the same weighted by how often each is true; None: an array
        (classes,), which does not go into the history; "auto": "binary" if there are two classes
        and one label a sample, else "macro"
    threshold, ignore_index, class_axis : prediction and target as in `Accuracy`
    multilabel : several yes-or-no labels a sample: prediction and target are (samples, labels)
    zero_division : the value where nothing was to be found, 0 / 0; NaN leaves that class out of
        means

    Classes that are neither true nor predicted anywhere are left out of means, as scikit-learn
    does. A row that holds NaN predicts no class. Where every sample is ignored the value is NaN.
    """

    kind = "f"

    def __init__(
        self,
        beta: float = 1.0,
        average: str | None = "auto",
        threshold: float = 0.0,
        ignore_index: int | None = None,
        multilabel: bool = False,
        zero_division: float = 0.0,
        class_axis: int | None = None,
    ):
        if not 0 <= beta < math.inf:
            raise ValueError(f"FBeta: beta must be 0 or more, got {beta}")
        self.beta, self.zero_division = float(beta), float(zero_division)
        self.average = checked_option(type(self).__name__, "average", average, AVERAGES)
        base = f"f{self.beta:g}" if self.kind == "f" else self.kind
        ending = {"auto": "", "binary": "", None: "_per_class"}.get(average, f"_{average}")
        self.name, self.scalar = base + ending, average is not None
        super().__init__(threshold, ignore_index, multilabel, class_axis)

    def _fraction(self, hits: Any, predicted: Any, true: Any) -> tuple[Any, Any]:
        """Numerator and denominator."""
        square = self.beta**2
        return (1 + square) * hits, square * true + predicted

    def _ratio(self, hits: Any, predicted: Any, true: Any) -> np.ndarray:
        above, below = self._fraction(hits, predicted, true)
        nothing = np.equal(below, 0)
        return np.where(nothing, self.zero_division, above / np.where(nothing, 1.0, below))

    def compute(self) -> Any:
        hits, predicted, true = self.counts()
        average = self.average
        if average == "auto":
            average = "binary" if len(true) == 2 and not self.multilabel else "macro"
        if not int(self._count):
            return math.nan if average is not None else np.full(len(true), np.nan)
        if average is None:
            return self._ratio(hits, predicted, true)
        if average == "binary":
            if len(true) != 2 or self.multilabel:
                raise ValueError(
                    f"{self.name}: average='binary' is for two classes, and there are "
                    f"{len(true)}; use 'macro', 'micro' or 'weighted'"
                )
            return float(self._ratio(hits, predicted, true)[1])
        if average == "micro":
            return float(self._ratio(hits.sum(), predicted.sum(), true.sum()))
        ratios = self._ratio(hits, predicted, true)
        known = (true + predicted > 0) if not self.multilabel else np.ones(len(true), bool)
        weights = (true if average == "weighted" else np.ones(len(true))) * known
        weights = weights * ~np.isnan(ratios)
        if not weights.sum():
            return self.zero_division
        return float(np.nansum(ratios * weights) / weights.sum())


class F1(FBeta):
    """The harmonic mean of precision and recall; the options are those of `FBeta`."""

    def __init__(self, average: str | None = "auto", **options: Any):
        super().__init__(1.0, average, **options)


class Precision(F1):
    """The share of right ones among what was predicted; the options are those of `FBeta`."""

    kind = "precision"

    def _fraction(self, hits: Any, predicted: Any, true: Any) -> tuple[Any, Any]:
        return hits, predicted


class Recall(F1):
    """The share found of what is true (sensitivity); the options are those of `FBeta`."""

    kind = "recall"

    def _fraction(self, hits: Any, predicted: Any, true: Any) -> tuple[Any, Any]:
        return hits, true


class BalancedAccuracy(ClassCounts):
    """The mean over the classes that occur of the share of their samples that were found.

    Prediction, target, `threshold`, `ignore_index` and `class_axis` as in `Accuracy`. NaN where
    every sample is ignored.
    """

    name = "balanced_accuracy"

    def __init__(
        self, threshold: float = 0.0, ignore_index: int | None = None, class_axis: int | None = None
    ):
        super().__init__(threshold, ignore_index, False, class_axis)

    def compute(self) -> float:
        hits, _, true = self.counts()
        occurs = true > 0
        return float(np.mean(hits[occurs] / true[occurs])) if occurs.any() else math.nan


class MatthewsCorrelation(BalancedAccuracy):
    """The correlation of true and predicted classes, from -1 to 1.

    For several classes R_K of J. Gorodkin, "Comparing two K-category assignments by a K-category
    correlation coefficient", 2004. 0 where all samples are, or are predicted to be, of one class,
    as in scikit-learn. Arguments as in `BalancedAccuracy`.
    """

    name = "matthews_correlation"

    def compute(self) -> float:
        hits, predicted, true = self.counts()
        samples = true.sum()
        if not samples:
            return math.nan
        # Rows that predict no class (NaN) are one class more, which is never true.
        nothing = samples - predicted.sum()
        covariance = hits.sum() * samples - predicted @ true
        spread = (samples**2 - predicted @ predicted - nothing**2) * (samples**2 - true @ true)
        return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def precision(prediction: Any, target: Any, *, average: str | None = "auto", **options: Any) -> Any:
    """`Precision` of arrays at hand."""
    return at_once(Precision(average, **options), prediction, target)


def recall(prediction: Any, target: Any, *, average: str | None = "auto", **options: Any) -> Any:
    """`Recall` of arrays at hand."""
    return at_once(Recall(average, **options), prediction, target)


def f1_score(prediction: Any, target: Any, *, average: str | None = "auto", **options: Any) -> Any:
    """`F1` of arrays at hand."""
    return at_once(F1(average, **options), prediction, target)


def fbeta_score(
    prediction: Any, target: Any, *, beta: float, average: str | None = "auto", **options: Any
) -> Any:
    """`FBeta` of arrays at hand."""
    return at_once(FBeta(beta, average, **options), prediction, target)


def balanced_accuracy(prediction: Any, target: Any, **options: Any) -> float:
    """`BalancedAccuracy` of arrays at hand."""
    return at_once(BalancedAccuracy(**options), prediction, target)


def matthews_correlation(prediction: Any, target: Any, **options: Any) -> float:
    """`MatthewsCorrelation` of arrays at hand."""
    return at_once(MatthewsCorrelation(**options), prediction, target)


def confusion_matrix(prediction: Any, target: Any, *, classes: int | None = None) -> np.ndarray:
    """`ConfusionMatrix` of arrays at hand."""
    return at_once(ConfusionMatrix(classes), prediction, target)
