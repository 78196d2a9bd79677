"""Metrics of numbers: errors, the coefficient of determination, quantiles and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.device import to_numpy
from gpunn.device.quiet import quietly
from gpunn.distributed.values import exchange_values
from gpunn.train.metrics.base import Metric, at_once, paired


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
        prediction, target = paired(self.name, prediction, target)
        with quietly():
            self._sum = self._sum + self._error(prediction, target).sum()
        self._count += target.size

    def _error(self, prediction: Any, target: Any) -> Any:
        difference = prediction - target
        return difference * difference

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._sum) / self._count


class RootMeanSquaredError(MeanSquaredError):
    """The square root of the mean squared error, in the units of the target."""

    name = "rmse"

    def compute(self) -> float:
        return math.sqrt(super().compute())


class MeanAbsoluteError(MeanSquaredError):
    """The mean of |prediction - target| over all elements, summed in float64."""

    name = "mae"

    def _error(self, prediction: Any, target: Any) -> Any:
        return abs(prediction - target)


class MeanAbsolutePercentageError(MeanSquaredError):
    """The mean of |prediction - target| / |target|: 0.1 means 10 %.

    A target of 0 counts as 2.2e-16 (as in scikit-learn), so that it shows instead of being left
    out; use another metric where zeros are ordinary values.
    """

    name = "mape"

    def _error(self, prediction: Any, target: Any) -> Any:
        return abs(prediction - target) / abs(target).clip(np.finfo(np.float64).eps, None)


class PinballLoss(Metric):
    """The mean quantile loss: q·(y - ŷ) where the target lies above, (1 - q)·(ŷ - y) below.

    Parameters
    ----------
    quantile : from 0 to 1, for predictions in the shape of the target; or several, for predictions
        (samples, quantiles) and targets (samples,) or (samples, 1)
    """

    in_step = True

    def __init__(self, quantile: float | Sequence[float] = 0.5):
        self.quantiles = tuple(np.atleast_1d(np.asarray(quantile, np.float64)).tolist())
        if not self.quantiles or not all(0 <= q <= 1 for q in self.quantiles):
            raise ValueError(f"PinballLoss: quantiles must be from 0 to 1, got {quantile}")
        self.name = "_".join(["pinball", *(f"{q:g}" for q in self.quantiles)])
        self.reset()

    def reset(self) -> None:
        self._sum: Any = 0.0
        self._count = 0

    def update(self, prediction: Any, target: Any) -> None:
        for number, quantile in enumerate(self.quantiles):
            column = prediction
            if len(self.quantiles) > 1:
                column = _column(self.name, prediction, number, len(self.quantiles))
            column, wanted = paired(self.name, column, target)
            with quietly():
                over = wanted - column
                self._sum = self._sum + (quantile * over - over.clip(None, 0)).sum()
            self._count += wanted.size

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._sum) / self._count


class IntervalCoverage(Metric):
    """The share of targets inside the predicted interval, its ends included.

    Predictions are (samples, columns), of which `lower` and `upper` say which hold the ends: the
    first and the last. Targets are (samples,) or (samples, 1). A NaN is not inside.
    """

    name = "interval_coverage"
    in_step = True

    def __init__(self, lower: int = 0, upper: int = -1):
        self.lower, self.upper = int(lower), int(upper)
        self.reset()

    def reset(self) -> None:
        self._sum: Any = 0.0
        self._count = 0

    def update(self, prediction: Any, target: Any) -> None:
        low, wanted = paired(self.name, _column(self.name, prediction, self.lower), target)
        high, wanted = paired(self.name, _column(self.name, prediction, self.upper), target)
        with quietly():
            self._sum = self._sum + self._measure(low, high, wanted).sum()
        self._count += wanted.size

    def _measure(self, low: Any, high: Any, wanted: Any) -> Any:
        return (low <= wanted) & (wanted <= high)

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._sum) / self._count


class IntervalWidth(IntervalCoverage):
    """The mean width of the predicted interval; its columns as in `IntervalCoverage`."""

    name = "interval_width"

    def _measure(self, low: Any, high: Any, wanted: Any) -> Any:
        return high - low


def _column(name: str, prediction: Any, number: int, expected: int | None = None) -> Any:
    prediction = raw_array(prediction)
    right = prediction.ndim == 2 and -prediction.shape[1] <= number < prediction.shape[1]
    if not right or (expected is not None and prediction.shape[1] != expected):
        wanted = f"{expected} columns" if expected else f"a column {number}"
        raise ValueError(
            f"{name}: prediction has shape {prediction.shape}; expected (samples, columns) with "
            f"{wanted}"
        )
    return prediction[:, number]


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
        prediction, target = paired(self.name, prediction, target)
        if target.size == 0:
            return
        target = target.reshape(len(target), -1)
        prediction = prediction.reshape(target.shape)
        with quietly():
            mean = target.mean(axis=0)
            spread = ((target - mean) ** 2).sum(axis=0)
            residual = ((target - prediction) ** 2).sum(axis=0)
            self._add(len(target), mean, spread, residual)

    def _add(self, count: int, mean: Any, spread: Any, residual: Any) -> None:
        """Take in `count` samples, 1 or more, by what they are about their own mean."""
        total = self._count + count
        shift = mean - self._mean
        self._spread = self._spread + spread + shift**2 * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._residual = self._residual + residual
        self._count = total

    def merge(self, group: Any) -> None:
        ranks = exchange_values(group, (self._count, self._mean, self._spread, self._residual))
        self.reset()
        with quietly():
            for count, *sums in ranks:
                if count:
                    self._add(count, *sums)

    def compute(self) -> float:
        self._require_samples(self._count)
        if self._count < 2:
            raise ValueError("r2: is not defined for a single sample; give two or more")
        mean, residual, spread = map(to_numpy, (self._mean, self._residual, self._spread))
        with quietly():
            # The mean of equal numbers is not always that number.
            constant = np.sqrt(spread / self._count) <= 4 * np.finfo(np.float64).eps * abs(mean)
            ratio = residual / np.where(constant, 1.0, spread)
            return float(np.mean(np.where(constant, residual == 0, 1.0 - ratio)))


def mean_absolute_error(prediction: Any, target: Any) -> float:
    """`MeanAbsoluteError` of arrays at hand."""
    return at_once(MeanAbsoluteError(), prediction, target)


def mean_squared_error(prediction: Any, target: Any) -> float:
    """`MeanSquaredError` of arrays at hand."""
    return at_once(MeanSquaredError(), prediction, target)


def root_mean_squared_error(prediction: Any, target: Any) -> float:
    """`RootMeanSquaredError` of arrays at hand."""
    return at_once(RootMeanSquaredError(), prediction, target)


def mean_absolute_percentage_error(prediction: Any, target: Any) -> float:
    """`MeanAbsolutePercentageError` of arrays at hand."""
    return at_once(MeanAbsolutePercentageError(), prediction, target)


def pinball_loss(prediction: Any, target: Any, *, quantile: float | Sequence[float] = 0.5) -> float:
    """`PinballLoss` of arrays at hand."""
    return at_once(PinballLoss(quantile), prediction, target)


def interval_coverage(prediction: Any, target: Any, *, lower: int = 0, upper: int = -1) -> float:
    """`IntervalCoverage` of arrays at hand."""
    return at_once(IntervalCoverage(lower, upper), prediction, target)


def r2_score(prediction: Any, target: Any) -> float:
    """`R2Score` of arrays at hand (mind the order: the prediction comes first)."""
    return at_once(R2Score(), prediction, target)
