"""Metrics of predicted probabilities: log loss, perplexity, Brier score, calibration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.device import array_module, device_of, to_numpy
from gpunn.device.quiet import quietly
from gpunn.primitives.cross_entropy import cross_entropy_forward
from gpunn.train.metrics.base import (
    Metric,
    at_once,
    classified,
    counted_labels,
    predicted_classes,
)

_NO_LABEL = -(2**31)
_LOOKED_AT = 64  # rows of a batch: telling logits from probabilities shall cost next to nothing


class ProbabilityMetric(Metric):
    """Base of metrics of probabilities, which `from_logits` makes by softmax or sigmoid.

    Parameters
    ----------
    from_logits : whether the model gives scores before softmax (or sigmoid, with one score a
        sample), as the losses take them; False: it gives probabilities
    ignore_index : samples, or tokens, with this target do not count
    class_axis : see `Accuracy`, also for the forms of prediction and target

    A label that is no class makes the value NaN. ValueError in `compute` where probabilities come
    although `from_logits` is set.
    """

    in_step = True

    def __init__(
        self,
        from_logits: bool = True,
        ignore_index: int | None = None,
        class_axis: int | None = None,
    ):
        self.from_logits = bool(from_logits)
        self.ignore_index, self.class_axis = ignore_index, class_axis
        self.reset()

    def reset(self) -> None:
        self._sum: Any = 0.0
        self._count: Any = 0
        self._looked = 0  # rows that were looked at, and how many of them look like probabilities
        self._alike: Any = 0

    def update(self, prediction: Any, target: Any) -> None:
        scores, target = classified(self.name, prediction, target, self.class_axis)
        scores = scores.astype(np.float64) if scores.dtype.kind in "iub" else scores
        if scores.ndim == 2 and self.from_logits:
            some = scores[:_LOOKED_AT]
            self._looked += len(some)
            self._alike = self._alike + looks_like_probabilities(some).sum()
        labels, valid = counted_labels(scores, target, self.ignore_index)
        with quietly():
            self.take(scores, labels, valid)
        self._count = self._count + (len(labels) if valid is None else valid.sum())

    def take(self, scores: Any, labels: Any, valid: Any) -> None:
        """Add the rows: scores (rows, classes) or (rows,), int64 labels, which count (None: all)"""
        values = self.values(scores, labels)
        if valid is not None:
            values = array_module(device_of(values)).where(valid, values, 0.0)
        self._sum = self._sum + values.astype(np.float64).sum()

    def values(self, scores: Any, labels: Any) -> Any:
        """The value of each row."""
        raise NotImplementedError

    def compute(self) -> Any:
        if isinstance(self._count, int):
            self._require_samples(self._count)
        if self._looked and int(self._alike) == self._looked:
            raise ValueError(
                f"{self.name}: the scores are not negative and add up to 1 in every row, as "
                f"probabilities do; use {type(self).__name__}(from_logits=False)"
            )
        count = int(self._count)
        return self.result(count) if count else math.nan

    def result(self, count: int) -> Any:
        """The value over `count` rows."""
        return float(self._sum) / count


class LogLoss(ProbabilityMetric):
    """The mean of -log(probability of the true class), in nats; arguments as its base says.

    Probabilities below the resolution of their dtype (1.2e-7 for float32) count as that, as in
    scikit-learn. From logits on the CPU a label that is no class is a ValueError at once.
    """

    name = "log_loss"

    def take(self, scores: Any, labels: Any, valid: Any) -> None:
        if scores.ndim == 1 or not self.from_logits:
            super().take(scores, labels, valid)
            return
        ignored = _NO_LABEL if self.ignore_index is None else int(self.ignore_index)
        loss = cross_entropy_forward(scores, labels, ignore_index=ignored, reduction="sum")[0]
        self._sum = self._sum + loss.astype(np.float64)

    def values(self, scores: Any, labels: Any) -> Any:
        xp = array_module(device_of(scores))
        if scores.ndim == 1 and self.from_logits:
            z = scores.astype(np.float64)
            return z.clip(0, None) - z * labels + xp.log1p(xp.exp(-abs(z)))
        resolution = np.finfo(np.float64 if scores.dtype == np.float64 else np.float32).eps
        p = scores.astype(np.float64)
        if scores.ndim == 1:
            p = xp.where(labels > 0, p, 1 - p)
        else:
            p = _of_label(xp, p, labels)
        return -xp.log(p.clip(resolution, None))


class Perplexity(LogLoss):
    """exp(mean of -log(probability of the true token)), each token with the same weight.

    Prediction ``(B, T, vocabulary)`` or ``(tokens, vocabulary)``, target the tokens; those equal to
    `ignore_index` do not count. Arguments as in `LogLoss`. Infinity where exp overflows.
    """

    name = "perplexity"

    def __init__(
        self,
        from_logits: bool = True,
        ignore_index: int | None = -100,
        class_axis: int | None = None,
    ):
        super().__init__(from_logits, ignore_index, class_axis)

    def result(self, count: int) -> float:
        mean = super().result(count)
        return math.exp(mean) if not mean > 709.0 else math.inf


class BrierScore(ProbabilityMetric):
    """The mean over samples of Σ (probability of a class - whether it is the true one)².

    With one score a sample, and with two classes, half of that: (probability of 1 - label)², as in
    scikit-learn. Arguments as its base says.
    """

    name = "brier"

    def values(self, scores: Any, labels: Any) -> Any:
        p = probabilities(scores, self.from_logits)
        if p.ndim == 1:
            return (p - labels) ** 2
        xp = array_module(device_of(p))
        p = xp.where(_is_class(labels, p)[:, None], p, np.nan)
        wrong = p - (labels[:, None] == xp.arange(p.shape[1])[None, :])
        return (wrong * wrong).sum(axis=1) * (0.5 if p.shape[1] == 2 else 1.0)


class CalibrationCurve(NamedTuple):
    """By bin of confidence, without empty bins: mean confidence, share that is true, samples."""

    confidence: np.ndarray
    frequency: np.ndarray
    samples: np.ndarray


class CalibrationError(ProbabilityMetric):
    """The expected calibration error: the mean over samples of their bin's |confidence - truth|.

    M. Naeini, G. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", 2015, with `bins` of equal width, each with its upper end. The confidence is the
    probability of the predicted class, and with one score a sample that of class 1. `curve` gives
    what a reliability diagram shows. Other arguments as its base says. Rows with NaN make it NaN.
    """

    name = "calibration_error"

    def __init__(
        self,
        bins: int = 15,
        from_logits: bool = True,
        ignore_index: int | None = None,
        class_axis: int | None = None,
    ):
        if bins < 1:
            raise ValueError(f"CalibrationError: bins must be 1 or more, got {bins}")
        self.bins = int(bins)
        super().__init__(from_logits, ignore_index, class_axis)

    def take(self, scores: Any, labels: Any, valid: Any) -> None:
        p = probabilities(scores, self.from_logits).astype(np.float64)
        xp = array_module(device_of(p))
        if p.ndim == 1:
            true = labels > 0
        else:
            known = _is_class(labels, p)
            true, p = predicted_classes(p, 0.0) == labels, xp.where(known, p.max(axis=1), np.nan)
        if valid is not None:
            p, true = xp.where(valid, p, 0.0), true & valid
        edges = xp.arange(1, self.bins) * (1.0 / self.bins)
        number = (p[:, None] > edges[None, :]).sum(axis=1)
        inside = number[:, None] == xp.arange(self.bins)[None, :]
        if valid is not None:
            inside = inside & valid[:, None]
        # Beside each other, so that one attribute carries them: confidence, truth, samples.
        sums = xp.stack(
            [
                (inside * p[:, None]).sum(axis=0),
                (inside & true[:, None]).sum(axis=0).astype(p.dtype),
                inside.sum(axis=0).astype(p.dtype),
            ]
        )
        self._sum = self._sum + sums

    def result(self, count: int) -> float:
        confidence, true, _ = to_numpy(self._sum)
        return float(np.abs(confidence - true).sum() / count)

    def curve(self) -> CalibrationCurve:
        """The reliability diagram's points over all samples since `reset`."""
        self.compute()
        confidence, true, count = to_numpy(self._sum) if np.ndim(self._sum) else np.zeros((3, 1))
        filled = count > 0
        count = count[filled]
        return CalibrationCurve(
            confidence[filled] / count, true[filled] / count, count.astype(np.int64)
        )


def _of_label(xp: Any, p: Any, labels: Any) -> Any:
    """The entry of each row at its label; NaN where the label is no class."""
    known = _is_class(labels, p)
    own = xp.take_along_axis(p, xp.where(known, labels, 0)[:, None], axis=1)[:, 0]
    return xp.where(known, own, np.nan)


def _is_class(labels: Any, p: Any) -> Any:
    return (labels >= 0) & (labels < p.shape[1])


def probabilities(scores: Any, from_logits: bool = True) -> Any:
    """Softmax of rows (rows, classes), sigmoid of (rows,); as they are without `from_logits`."""
    scores = wide(scores)
    if not from_logits:
        return scores
    xp = array_module(device_of(scores))
    if scores.ndim == 1:
        return 0.5 * (1.0 + xp.tanh(0.5 * scores))  # exp of a large number would overflow
    grown = xp.exp(scores - scores.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


def looks_like_probabilities(scores: Any) -> Any:
    """For each row, whether it is not negative and adds up to 1."""
    total = wide(scores).sum(axis=1, dtype=np.float64)
    return (scores >= 0).all(axis=1) & (abs(total - 1.0) < 1e-3)


def log_loss(prediction: Any, target: Any, **options: Any) -> float:
    """`LogLoss` of arrays at hand."""
    return at_once(LogLoss(**options), prediction, target)


def perplexity(prediction: Any, target: Any, **options: Any) -> float:
    """`Perplexity` of arrays at hand."""
    return at_once(Perplexity(**options), prediction, target)


def brier_score(prediction: Any, target: Any, **options: Any) -> float:
    """`BrierScore` of arrays at hand."""
    return at_once(BrierScore(**options), prediction, target)


def calibration_error(prediction: Any, target: Any, **options: Any) -> float:
    """`CalibrationError` of arrays at hand."""
    return at_once(CalibrationError(**options), prediction, target)


def calibration_curve(
    prediction: Any, target: Any, *, bins: int = 10, **options: Any
) -> CalibrationCurve:
    """`CalibrationError.curve` of arrays at hand."""
    metric = CalibrationError(bins, **options)
    metric.update(prediction, target)
    return metric.curve()
