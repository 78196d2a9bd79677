"""`Metric`, and how predictions and targets of several forms become rows to be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.autograd.tensor import raw_array
from gpunn.device import array_module, device_of, to_numpy
from gpunn.train.metrics.merging import added_up, copied, inner, taken_home


class Metric:
    """Base of metrics: `reset`, `update(prediction, target)` for each batch, `compute`.

    `name` is the key under which the history keeps the value. `scalar` is False for metrics whose
    value is not one number; those do not go into the history. `in_step` says that `update` may be
    part of a compiled training step: it only computes with arrays, reads no value of them, and
    keeps nothing but arrays and numbers to which it adds. `collects` says that `compute` goes
    through all samples, so it is not asked while an epoch runs.
    """

    name = "metric"
    scalar = True
    in_step = False
    collects = False

    def reset(self) -> None:
        """Forget all samples."""
        raise NotImplementedError

    def update(self, prediction: Any, target: Any) -> None:
        """Take in a batch: Tensors or arrays, with one row for each sample."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The value over all samples since `reset`. ValueError if there were none."""
        raise NotImplementedError

    def merge(self, group: Any) -> None:
        """Take in what the metrics of all ranks of a `Group` counted; all of them call it.

        Once, before `compute`: what follows is `reset`. As it stands here it adds up what changed
        since `reset`: numbers, arrays, entries of lists, counts by key (`merging.added_up` says
        how). Define it for a metric of your own that keeps something else, such as the largest
        value: ``self.top = max(group.exchange(self.top))``. Metrics that it is made of are merged
        by their own.
        """
        for metric in inner(vars(self)):
            metric.merge(group)
        for name, value in added_up(self, group).items():
            setattr(self, name, value)

    def _require_samples(self, count: int) -> None:
        if count == 0:
            raise ValueError(f"{self.name}: no samples were given; call update first")


def merged(metric: Metric, group: Any) -> Metric:
    """A copy that has taken in what all ranks counted; `metric` goes on with its own samples."""
    made: Metric = copied(metric)
    made.merge(group)
    return taken_home(made, metric)  # for who goes on with it


class Collected(Metric):
    """Base of metrics that need all samples: they are kept, where they are, until `compute`.

    A subclass gives `rows`, what is kept of a batch, and `value`, of NumPy arrays of all samples.
    """

    collects = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._pairs: list[tuple[Any, Any]] = []

    def rows(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """What is kept of a batch: two arrays of the same length."""
        return raw_array(prediction), raw_array(target)

    def update(self, prediction: Any, target: Any) -> None:
        # Copies: a captured training step may reuse its output's memory for the next batch.
        prediction, target = self.rows(prediction, target)
        self._pairs.append((prediction.copy(), target.copy()))

    def value(self, prediction: np.ndarray, target: np.ndarray) -> Any:
        """The value for all samples."""
        raise NotImplementedError

    def compute(self) -> Any:
        self._require_samples(len(self._pairs))
        predictions, targets = (
            np.concatenate([to_numpy(part) for part in parts])
            for parts in zip(*self._pairs, strict=True)
        )
        return self.value(predictions, targets)


class FunctionMetric(Collected):
    """Any function ``f(prediction, target) -> number`` of NumPy arrays as a metric.

    All predictions are kept until `compute`, which calls the function once for all samples.
    """

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], float], name: str = ""):
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        super().__init__()

    def value(self, prediction: np.ndarray, target: np.ndarray) -> float:
        return float(self.function(prediction, target))


def classified(
    name: str, prediction: Any, target: Any, class_axis: int | None = None
) -> tuple[Any, Any]:
    """Raw arrays: scores (rows, classes) or (rows,), and labels (rows,).

    Scores of more than two axes have their classes on the axis that the target lacks: the last one,
    as sequence models give them, or axis 1, as images have them. ValueError where both would fit
    and `class_axis` does not say which.
    """
    prediction, target = raw_array(prediction), raw_array(target)
    shapes = f"prediction has shape {prediction.shape} and target {target.shape}"
    if prediction.ndim > 2:
        prediction, target = _flattened(name, prediction, target, class_axis, shapes)
    if prediction.ndim == 2 and prediction.shape[1] == 1:
        prediction = prediction[:, 0]
        target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    elif target.ndim == 2 and prediction.ndim == 2 and target.shape == prediction.shape:
        target = target.argmax(axis=1)
    if target.ndim != 1 or prediction.ndim not in (1, 2) or len(target) != len(prediction):
        raise ValueError(
            f"{name}: {shapes}; expected "
            "(samples, classes) or (samples,) and class numbers (samples,)"
        )
    return prediction, target


def _flattened(
    name: str, prediction: Any, target: Any, class_axis: int | None, shapes: str
) -> tuple[Any, Any]:
    shape = prediction.shape
    fits = [axis for axis in (1, len(shape) - 1) if target.shape == _without(shape, axis)]
    if target.shape == shape:  # one score a pixel, or a place of a sequence
        fits = [axis for axis in (1, len(shape) - 1) if shape[axis] == 1][:1]
    if class_axis is not None:
        if not -len(shape) <= class_axis < len(shape):
            raise ValueError(f"{name}: {shapes}; there is no axis class_axis={class_axis}")
        fits = [class_axis % len(shape)]
    if len(fits) != 1:
        raise ValueError(
            f"{name}: {shapes}; "
            + (
                "the classes may be on axis 1 or the last; say which by class_axis="
                if fits
                else "expected class numbers of that shape without the axis of the classes, "
                "which is 1 or the last"
            )
        )
    axis = fits[0]
    if target.shape != _without(shape, axis) and not (target.shape == shape and shape[axis] == 1):
        raise ValueError(
            f"{name}: {shapes}; with the classes on axis {axis} the target must be "
            f"{_without(shape, axis)}"
        )
    xp = array_module(device_of(prediction))
    rows = xp.moveaxis(prediction, axis, -1).reshape(-1, shape[axis])
    return rows, target.reshape(-1)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def predicted_classes(scores: Any, threshold: float) -> Any:
    """Class numbers of score rows, -1 where a score is NaN: such a row says nothing.

    One integer a sample is no score but the class itself.
    """
    if holds_classes(scores):
        return scores.astype(np.int64)
    xp, scores = array_module(device_of(scores)), wide(scores)
    if scores.ndim == 1:
        found, best = (scores > threshold).astype(np.int64), scores
    else:
        found = scores.argmax(axis=1)  # of the first NaN, if there is one
        best = xp.take_along_axis(scores, found[:, None], axis=1)[:, 0]
    return xp.where(best == best, found, -1)


def holds_classes(prediction: Any) -> bool:
    """Whether a prediction is class numbers, one integer a sample, and not scores."""
    return prediction.ndim == 1 and prediction.dtype.kind in "iu"


def counted_labels(scores: Any, target: Any, ignore_index: int | None) -> tuple[Any, Any]:
    """(labels as int64, which rows count or None for all) of what `classified` gave.

    With one score a sample a label above 0 is class 1, all else class 0.
    """
    valid = None if ignore_index is None else target != ignore_index
    if scores.ndim == 1 and not holds_classes(scores):
        target = target > 0
    return target.astype(np.int64), valid


def columns(name: str, prediction: Any, target: Any) -> tuple[Any, Any]:
    """Raw arrays (samples, labels) of one shape; (samples,) is one label."""
    prediction, target = raw_array(prediction), raw_array(target)
    if prediction.shape != target.shape or prediction.ndim not in (1, 2):
        raise ValueError(
            f"{name}: prediction has shape {prediction.shape} and target {target.shape}; with "
            "several labels a sample both must be (samples, labels)"
        )
    if prediction.ndim == 1:
        prediction, target = prediction[:, None], target[:, None]
    return prediction, target


def paired(name: str, prediction: Any, target: Any) -> tuple[Any, Any]:
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


def at_once(metric: Metric, prediction: Any, target: Any) -> Any:
    """The value of a metric for arrays at hand."""
    metric.update(prediction, target)
    return metric.compute()


def checked_option(name: str, option: str, value: Any, known: tuple[Any, ...]) -> Any:
    """`value`, if it is one of `known`. ValueError that lists them otherwise."""
    if value not in known:
        listed = ", ".join(map(repr, known))
        raise ValueError(f"{name}: {option} is {value!r}; expected one of {listed}")
    return value
