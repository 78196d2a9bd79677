"""Weights of samples: checked, folded into the loss, and made one with repeated samples."""

from __future__ import annotations

import copy
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array, check_consistent_length

from gpunn import nn
from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.models.mlp import MLP
from gpunn.nn.activation import FUSABLE
from gpunn.train.metrics import Metric, as_metric

# Of these no sample's output depends on the other samples of its batch, nor on chance.
_BY_ROW = frozenset({
    nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.LayerNorm, nn.Sequential, MLP,
    nn.Softmax, nn.LogSoftmax, *FUSABLE,
})  # fmt: skip


def check_sample_weight(sample_weight: Any, x: Any) -> np.ndarray | None:
    """Weights as float64 (samples,), or None. A number stands for all samples.

    ValueError for another shape, for NaN, infinite or negative weights, and if all are 0.
    """
    if sample_weight is None:
        return None
    count = x.shape[0]
    if isinstance(sample_weight, Real):
        sample_weight = np.full(count, sample_weight, np.float64)
    weights = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weights.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got {weights.ndim}D array.")
    check_consistent_length(x, weights)
    if (weights < 0).any():
        raise ValueError("Negative values in data passed to `sample_weight`")
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


def by_row(module: nn.Module) -> bool:
    """Whether each output is known to depend on its own sample alone, also in training."""
    return all(
        type(part) in _BY_ROW or (type(part) is nn.Dropout and part.p == 0)
        for part in module.modules()
    )


def merged(x: np.ndarray, target: np.ndarray, weights: np.ndarray | None) -> tuple[Any, Any, Any]:
    """Equal samples as one with the sum of their weights, in an order of their values.

    In a batch of all samples neither the order nor the repetition of samples has a meaning: after
    this they have no influence on the rounding either.
    """
    rows = [np.ascontiguousarray(part).reshape(len(x), -1).view(np.uint8) for part in (x, target)]
    joined = np.ascontiguousarray(np.concatenate(rows, axis=1))
    keys = joined.view(np.dtype((np.void, joined.shape[1]))).reshape(-1)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return x[first], target[first], np.bincount(group.reshape(-1), weights)


def with_weights(target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Targets (samples,) or (samples, k) with weights of mean 1 as a last column, float32."""
    columns = target.reshape(len(target), -1)
    return np.column_stack([columns, weights / weights.mean()]).astype(np.float32)


class WeightedLoss(nn.Module):
    """The mean of weight · loss over the samples; targets come from `with_weights`.

    Parameters
    ----------
    loss : a loss with a `reduction`
    labels : targets are numbers of classes
    flat : targets are of shape (samples,), not (samples, k)

    Raises TypeError for a loss without `reduction`, which cannot be had sample by sample.
    """

    def __init__(self, loss: Any, labels: bool, flat: bool):
        super().__init__()
        if not hasattr(loss, "reduction"):
            raise TypeError(
                f"sample weights need the loss of each sample, and {type(loss).__name__} has no "
                "`reduction`; use a loss of gpunn.nn, or give no weights"
            )
        self.loss = copy.copy(loss)
        self.loss.reduction = "none"
        self.labels, self.flat = labels, flat

    def wanted(self, target: Any) -> Any:
        """The targets without their weights."""
        wanted = target[:, 0] if self.flat else target[:, :-1]
        return wanted.long() if self.labels else wanted

    def forward(self, prediction: Tensor, target: Any) -> Tensor:
        weight = target[:, -1]
        each = self.loss(prediction, self.wanted(target))
        if each.ndim > 1:
            each = each.flatten(1).mean(1)
        return (each * weight).mean()


class WithoutWeights(Metric):
    """A metric that sees the targets without their weights: every sample counts once."""

    def __init__(self, metric: Any, loss: WeightedLoss):
        self.metric, self.loss = as_metric(metric), loss
        self.name, self.scalar = self.metric.name, self.metric.scalar
        self.collects = self.metric.collects

    def reset(self) -> None:
        self.metric.reset()

    def update(self, prediction: Any, target: Any) -> None:
        self.metric.update(prediction, self.loss.wanted(wrap(raw_array(target))))

    def compute(self) -> Any:
        return self.metric.compute()
