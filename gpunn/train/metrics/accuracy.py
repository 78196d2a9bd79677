"""Shares of samples that were predicted right: by class, among the best k, by several labels."""

from __future__ import annotations

from typing import Any

from gpunn.device import array_module, device_of
from gpunn.train.metrics.base import (
    Metric,
    at_once,
    checked_option,
    classified,
    columns,
    holds_classes,
    predicted_classes,
)


class Accuracy(Metric):
    """The share of samples whose predicted class is the true one.

    Prediction ``(samples, classes)``: the class with the largest score, the first if several are
    equal. Prediction ``(samples,)`` or ``(samples, 1)``: class 1 where the score is above
    `threshold` (0, as for logits; 0.5 for probabilities); integers ``(samples,)`` are the classes
    themselves. Target: class numbers ``(samples,)``, or probabilities ``(samples, classes)``, whose
    largest counts. Sequences and images have more axes: prediction ``(B, T, classes)`` or
    ``(B, classes, H, W)`` with a target that lacks the axis of the classes; `class_axis` says which
    it is where both could be meant.

    Samples whose target is `ignore_index` do not count. Without any others the value is NaN. A row
    that holds NaN is never right.
    """

    name = "accuracy"
    in_step = True

    def __init__(
        self, threshold: float = 0.0, ignore_index: int | None = None, class_axis: int | None = None
    ):
        self.threshold, self.ignore_index, self.class_axis = threshold, ignore_index, class_axis
        self.reset()

    def reset(self) -> None:
        self._correct: Any = 0
        self._count: Any = 0

    def update(self, prediction: Any, target: Any) -> None:
        prediction, target = classified(self.name, prediction, target, self.class_axis)
        hits = self._hits(prediction, target)
        if self.ignore_index is None:
            self.add(hits.sum(), len(target))
        else:
            valid = target != self.ignore_index
            self.add((hits & valid).sum(), valid.sum())

    def _hits(self, prediction: Any, target: Any) -> Any:
        if prediction.ndim == 1 and not holds_classes(prediction):
            right = (prediction > self.threshold) == (target > 0)
            return right & (prediction == prediction)
        return predicted_classes(prediction, self.threshold) == target

    def add(self, correct: Any, count: Any) -> None:
        """Take in `count` samples of which `correct` were right: numbers or arrays."""
        self._correct = self._correct + correct
        self._count = self._count + count

    def compute(self) -> float:
        if isinstance(self._count, int):  # an array, if only zero, of samples that do not count
            self._require_samples(self._count)
        count = int(self._count)
        return float(self._correct) / count if count else float("nan")


class TopKAccuracy(Accuracy):
    """The share of samples whose true class is among the `k` with the largest scores.

    Among equal scores the lower class number goes first, so that k = 1 equals `Accuracy`; a row
    whose true class has the score NaN is never right. Prediction ``(samples, classes)``; more axes,
    target, `ignore_index` and `class_axis` as in `Accuracy`.
    """

    def __init__(self, k: int = 5, ignore_index: int | None = None, class_axis: int | None = None):
        if k < 1:
            raise ValueError(f"TopKAccuracy: k must be 1 or more, got {k}")
        self.k = k
        self.name = f"top_{k}_accuracy"
        super().__init__(0.0, ignore_index, class_axis)

    def _hits(self, prediction: Any, target: Any) -> Any:
        if prediction.ndim != 2:
            raise ValueError(f"{self.name}: needs scores of shape (samples, classes)")
        xp = array_module(device_of(prediction))
        known = (target >= 0) & (target < prediction.shape[1])  # `ignore_index` may be no class
        target = xp.where(known, target, 0)
        own = xp.take_along_axis(prediction, target[:, None], axis=1)
        earlier = xp.arange(prediction.shape[1])[None, :] < target[:, None]
        ahead = (prediction > own) | ((prediction == own) & earlier)
        return (ahead.sum(axis=1) < self.k) & (own[:, 0] == own[:, 0]) & known


class MultilabelAccuracy(Metric):
    """How well several yes-or-no labels a sample are predicted.

    Parameters
    ----------
    kind : "exact": the share of samples all of whose labels are right; "hamming": the share of
        single labels that are right; "jaccard": the mean over samples of |both| / |either|, where
        a sample without any label, predicted to have none, counts 1
    threshold : a label is predicted where its score is above (0, as for logits; 0.5 for
        probabilities)

    Prediction and target: ``(samples, labels)``; the target is 0 or 1.
    """

    in_step = True

    def __init__(self, kind: str = "exact", threshold: float = 0.0):
        known = ("exact", "hamming", "jaccard")
        self.kind = checked_option("MultilabelAccuracy", "kind", kind, known)
        self.name = {"exact": "exact_match", "hamming": "hamming_accuracy"}.get(kind, kind)
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self._sum: Any = 0.0
        self._count = 0

    def update(self, prediction: Any, target: Any) -> None:
        scores, target = columns(self.name, prediction, target)
        found, true = scores > self.threshold, target > 0
        if self.kind == "jaccard":
            both, either = (found & true).sum(axis=1), (found | true).sum(axis=1)
            self._sum = self._sum + ((both + (either == 0)) / either.clip(1, None)).sum()
        else:
            right = found == true
            self._sum = self._sum + (right.all(axis=1) if self.kind == "exact" else right).sum()
        self._count += true.size if self.kind == "hamming" else len(true)

    def compute(self) -> float:
        self._require_samples(self._count)
        return float(self._sum) / self._count


def accuracy(prediction: Any, target: Any, *, threshold: float = 0.0) -> float:
    """`Accuracy` of arrays at hand."""
    return at_once(Accuracy(threshold), prediction, target)


def top_k_accuracy(prediction: Any, target: Any, *, k: int = 5) -> float:
    """`TopKAccuracy` of arrays at hand."""
    return at_once(TopKAccuracy(k), prediction, target)


def multilabel_accuracy(
    prediction: Any, target: Any, *, kind: str = "exact", threshold: float = 0.0
) -> float:
    """`MultilabelAccuracy` of arrays at hand."""
    return at_once(MultilabelAccuracy(kind, threshold), prediction, target)
