"""Metrics: how good predictions are, over data that arrive in batches of any size.

A `Metric` object accumulates sums over samples where the predictions live, without waiting for the
device, and works out its value only in `compute`; so the value is that of all samples together,
never a mean over batches. The functions below give the same for arrays at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.device import array_module, device_of, to_numpy


class Metric:
    """Base of metrics: `reset`, `update(prediction, target)` for each batch, `compute`.

    `name` is the key under which the history keeps the value. `scalar` is False for metrics whose
    value is not one number; those do not go into the history. `in_step` says that `update` may be
    part of a compiled training step: it only computes with arrays, reads no value of them, and
    keeps nothing but arrays and numbers to which it adds.
    """

    name = "metric"
    scalar = True
    in_step = False

    def reset(self) -> None:
        """Forget all samples."""
        raise NotImplementedError

    def update(self, prediction: Any, target: Any) -> None:
        """Take in a batch: Tensors or arrays, with one row for each sample."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The value over all samples since `reset`. ValueError if there were none."""
        raise NotImplementedError

    def _require_samples(self, count: int) -> None:
        if count == 0:
            raise ValueError(f"{self.name}: no samples were given; call update first")


class Accuracy(Metric):
    """The share of samples whose predicted class is the true one.

    Prediction ``(samples, classes)``: the class with the largest score, the first if several are
    equal. Prediction ``(samples,)`` or ``(samples, 1)``: class 1 where the score is above
    `threshold` (0, as for logits; 0.5 for probabilities). Target: class numbers ``(samples,)``, or
    probabilities ``(samples, classes)``, whose largest counts.
    """

    name = "accuracy"
    in_step = True

    def __init__(self, threshold: float = 0.0):
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self._correct: Any = 0
        self._count = 0

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = _classified(self.name, prediction, target)
        if prediction.ndim == 1:
            hits = (prediction > self.threshold) == (target > 0)
        else:
            hits = prediction.argmax(axis=1) == target
        self.add(hits.sum(), len(target))

    def add(self, correct: Any, count: int) -> None:
        """Take in `count` samples of which `correct`, a number or an array, were right."""
        self._correct = self._correct + correct
        self._count += count

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._correct) / self._count


class TopKAccuracy(Metric):
    """The share of samples whose true class is among the `k` with the largest scores.

    Among equal scores the lower class number goes first, so that k = 1 equals `Accuracy`.
    Prediction ``(samples, classes)``, target as in `Accuracy`.
    """

    in_step = True

    def __init__(self, k: int = 5):
        if k < 1:
            raise ValueError(f"TopKAccuracy: k must be 1 or more, got {k}")
        self.k = k
        self.name = f"top_{k}_accuracy"
        self.reset()

    def reset(self) -> None:
        self._correct: Any = 0
        self._count = 0

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = _classified(self.name, prediction, target)
        if prediction.ndim != 2:
            raise ValueError(f"{self.name}: needs scores of shape (samples, classes)")
        xp = array_module(device_of(prediction))
        own = xp.take_along_axis(prediction, target[:, None], axis=1)
        earlier = xp.arange(prediction.shape[1])[None, :] < target[:, None]
        ahead = (prediction > own) | ((prediction == own) & earlier)
        hits = (ahead.sum(axis=1) < self.k) & (own[:, 0] == own[:, 0])  # NaN is never a hit
        self._correct = self._correct + hits.sum()
        self._count += len(target)

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._correct) / self._count


class MeanSquaredError(Metric):
    """The mean of (prediction - target)² over all elements, summed in float64."""

    name = "mse"
    in_step = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sum: Any = 0.0
        self._count = 0

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = _paired(self.name, prediction, target)
        self._sum = self._sum + self._error(prediction - target).sum()
        self._count += target.size

    @staticmethod
    def _error(difference):
        return difference * difference

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._sum) / self._count


class MeanAbsoluteError(MeanSquaredError):
    """The mean of |prediction - target| over all elements, summed in float64."""

    name = "mae"

    @staticmethod
    def _error(difference):
        return abs(difference)


class R2Score(Metric):
    """The coefficient of determination: 1 - Σ(y - ŷ)² / Σ(y - mean y)², the mean over columns.

    Exact over batches: the spread of y is merged batch by batch (T. Chan, G. Golub, R. LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979), which
    does not cancel as Σy² - n·mean² does. A column whose target is constant scores 1 if it is
    predicted exactly, else 0 (as in scikit-learn). Needs two samples or more.
    """

    name = "r2"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._spread: Any = 0.0
        self._residual: Any = 0.0

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = _paired(self.name, prediction, target)
        if target.size == 0:
            return
        target = target.reshape(len(target), -1)
        prediction = prediction.reshape(target.shape)
        count, mean = len(target), target.mean(axis=0)
        total, shift = self._count + count, mean - self._mean
        spread = ((target - mean) ** 2).sum(axis=0)
        self._spread = self._spread + spread + shift**2 * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._residual = self._residual + ((target - prediction) ** 2).sum(axis=0)
        self._count = total

    def compute(self) -> float:
        self._require_samples(self._count)
        if self._count < 2:
            raise ValueError("r2: is not defined for a single sample; give two or more")
        residual, spread = to_numpy(self._residual), to_numpy(self._spread)
        constant = spread == 0
        ratio = residual / np.where(constant, 1.0, spread)
        return float(np.mean(np.where(constant, residual == 0, 1.0 - ratio)))


class ConfusionMatrix(Metric):
    """Counts ``matrix[true, predicted]`` as an int64 array (classes, classes).

    `classes` may be left out: then it is the number of columns of the first prediction. Prediction
    and target as in `Accuracy`; ValueError in `compute` for labels outside 0 … classes - 1.
    """

    name = "confusion_matrix"
    scalar = False

    def __init__(self, classes: int | None = None, threshold: float = 0.0):
        self.classes, self.threshold = classes, threshold
        self.reset()

    def reset(self) -> None:
        self._counts: Any = None
        self._size = self.classes

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = _classified(self.name, prediction, target)
        xp = array_module(device_of(prediction))
        if self._size is None:
            self._size = prediction.shape[1] if prediction.ndim == 2 else 2
        if prediction.ndim == 2:
            predicted = prediction.argmax(axis=1)
        else:
            predicted = prediction > self.threshold
        size = self._size
        # Cells outside the matrix are counted in one more bin, so nothing waits for the device.
        inside = (target >= 0) & (target < size) & (predicted < size)
        cell = xp.where(inside, target.astype(np.int64) * size + predicted, size * size)
        counts = xp.bincount(cell, minlength=size * size + 1)
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> np.ndarray:
        if self._counts is None or self._size is None:
            raise ValueError("confusion_matrix: no samples were given; call update first")
        counts = to_numpy(self._counts).astype(np.int64)
        if counts[-1]:
            raise ValueError(
                f"confusion_matrix: {counts[-1]} samples have a class outside 0 … "
                f"{self._size - 1}; give classes= as many as there are"
            )
        return counts[:-1].reshape(self._size, self._size)


class FunctionMetric(Metric):
    """Any function ``f(prediction, target) -> number`` of NumPy arrays as a metric.

    All predictions are kept until `compute`, which calls the function once for all samples.
    """

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], float], name: str = ""):
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.reset()

    def reset(self) -> None:
        self._pairs: list[tuple[Any, Any]] = []

    def update(self, prediction: Any, target: Any) -> None:
        # Copies: a captured training step may reuse its output's memory for the next batch.
        self._pairs.append((raw_array(prediction).copy(), raw_array(target).copy()))

    def compute(self) -> float:
        self._require_samples(len(self._pairs))
        predictions, targets = (
            np.concatenate([to_numpy(part) for part in parts])
            for parts in zip(*self._pairs, strict=True)
        )
        return float(self.function(predictions, targets))


def _classified(name: str, prediction: Any, target: Any):
    """Raw arrays: scores (samples, classes) or (samples,), and labels (samples,)."""
    prediction, target = raw_array(prediction), raw_array(target)
    if prediction.ndim == 2 and prediction.shape[1] == 1:
        prediction = prediction[:, 0]
        target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    elif target.ndim == 2 and prediction.ndim == 2 and target.shape == prediction.shape:
        target = target.argmax(axis=1)
    if target.ndim != 1 or prediction.ndim not in (1, 2) or len(target) != len(prediction):
        raise ValueError(
            f"{name}: prediction has shape {prediction.shape} and target {target.shape}; expected "
            "(samples, classes) or (samples,) and class numbers (samples,)"
        )
    return prediction, target


def _paired(name: str, prediction: Any, target: Any):
    """Raw float64 arrays of one shape; a lone trailing axis of 1 may be missing in one of them."""
    prediction, target = raw_array(prediction), raw_array(target)
    if prediction.shape != target.shape:
        if prediction.shape not in (target.shape + (1,), target.shape[:-1]) or (
            prediction.size != target.size
        ):
            raise ValueError(
                f"{name}: prediction has shape {prediction.shape} and target {target.shape}; "
                "they must be equal"
            )
        prediction = prediction.reshape(target.shape)
    return prediction.astype(np.float64), target.astype(np.float64)


def _at_once(metric: Metric, prediction: Any, target: Any) -> Any:
    metric.update(prediction, target)
    return metric.compute()


def accuracy(prediction: Any, target: Any, *, threshold: float = 0.0) -> float:
    """`Accuracy` of arrays at hand."""
    return _at_once(Accuracy(threshold), prediction, target)


def top_k_accuracy(prediction: Any, target: Any, *, k: int = 5) -> float:
    """`TopKAccuracy` of arrays at hand."""
    return _at_once(TopKAccuracy(k), prediction, target)


def mean_absolute_error(prediction: Any, target: Any) -> float:
    """`MeanAbsoluteError` of arrays at hand."""
    return _at_once(MeanAbsoluteError(), prediction, target)


def mean_squared_error(prediction: Any, target: Any) -> float:
    """`MeanSquaredError` of arrays at hand."""
    return _at_once(MeanSquaredError(), prediction, target)


def r2_score(prediction: Any, target: Any) -> float:
    """`R2Score` of arrays at hand (mind the order: the prediction comes first)."""
    return _at_once(R2Score(), prediction, target)


def confusion_matrix(prediction: Any, target: Any, *, classes: int | None = None) -> np.ndarray:
    """`ConfusionMatrix` of arrays at hand."""
    return _at_once(ConfusionMatrix(classes), prediction, target)


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top_5_accuracy": TopKAccuracy,
    "mae": MeanAbsoluteError,
    "mean_absolute_error": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "mean_squared_error": MeanSquaredError,
    "r2": R2Score,
    "r2_score": R2Score,
    "confusion_matrix": ConfusionMatrix,
}


def as_metric(metric: Any) -> Metric:
    """A `Metric` from one, from its name, or from a function of (prediction, target) arrays."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is not known; known are {', '.join(METRICS)}")
        return METRICS[metric]()
    if callable(metric):
        return FunctionMetric(metric)
    raise TypeError(f"expected a metric, its name or a function, got {type(metric).__name__}")
