"""Loss modules. `reduction` is "mean", "sum" or "none"; formulas stand in `functional`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.creation import tensor
from gpunn.autograd.functions.loss import check_reduction
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, device_of
from gpunn.nn import functional as F
from gpunn.nn.linear import Linear
from gpunn.nn.module import Module


class Loss(Module):
    """Base of the losses: keeps and checks `reduction`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        check_reduction(type(self).__name__, reduction)
        self.reduction = reduction

    def divisor(self, target: Tensor) -> Tensor | None:
        """What the mean divides by: a Tensor (), float64, on the device; None: by the rows.

        Or by as many elements for each row. Where several processes share a batch, the sum of each
        is divided by all their divisors together (see `gpunn.distributed`).
        """
        return None


def _label_weights(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor | None:
    """The sum of the weights of the class indices that count; None for probabilities."""
    labels = target._array
    if labels.dtype.kind not in "iu":
        return None
    counts = labels != ignore_index
    if weight is None:
        return wrap(array_module(device_of(labels)).asarray(counts.sum(dtype=np.float64)))
    factors = weight._array
    xp, last = array_module(device_of(factors)), len(factors) - 1
    # A label that is no class is the loss's to refuse.
    found = factors[xp.where(counts, labels, 0).clip(0, last)].astype(np.float64)
    return wrap(xp.asarray(xp.where(counts, found, 0.0).sum()))


class MSELoss(Loss):
    """(input - target)^2"""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(Loss):
    """|input - target|"""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(Loss):
    """Squared for errors up to `delta`, linear beyond"""

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1Loss(Loss):
    """Huber's loss divided by its threshold `beta`"""

    def __init__(self, reduction: str = "mean", beta: float = 1.0):
        super().__init__(reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class QuantileLoss(Loss):
    """The pinball loss of predicted quantiles: input (..., Q), target (...)

    A network trained with it predicts the quantiles of what it cannot know, so intervals: those of
    0.05 and 0.95 hold nine of ten targets between them.
    """

    def __init__(self, quantiles: Sequence[float], reduction: str = "mean"):
        super().__init__(reduction)
        given = np.asarray(quantiles, np.float64)
        if given.ndim != 1 or not given.size or not ((given >= 0) & (given <= 1)).all():
            raise ValueError(
                f"QuantileLoss: quantiles is {quantiles!r}; expected a list of numbers from 0 to 1"
            )
        self.quantiles = tuple(given.tolist())
        values = tensor(given, dtype=np.float64, device="cpu")
        self.register_buffer("values", values, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.quantile_loss(input, target, self._buffers["values"], reduction=self.reduction)


class _Weighted(Loss):
    """A loss with a `weight` that moves with the module and is not saved."""

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean"):
        super().__init__(reduction)
        self.register_buffer("weight", weight, persistent=False)


class BCELoss(_Weighted):
    """Binary cross-entropy of probabilities"""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(_Weighted):
    """Binary cross-entropy of sigmoid(input), stable for large logits"""

    def __init__(
        self,
        weight: Tensor | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ):
        super().__init__(weight, reduction)
        self.register_buffer("pos_weight", pos_weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class NLLLoss(_Weighted):
    """The negative log-likelihood of log-probabilities and class indices"""

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
    ):
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index

    def divisor(self, target: Tensor) -> Tensor | None:
        return _label_weights(target, self._buffers["weight"], self.ignore_index)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class CrossEntropyLoss(_Weighted):
    """Cross-entropy of softmax(input) and class indices or probabilities"""

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__(weight, reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def divisor(self, target: Tensor) -> Tensor | None:
        return _label_weights(target, self._buffers["weight"], self.ignore_index)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            self._buffers["weight"],
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class LinearCrossEntropyLoss(_Weighted):
    """Cross-entropy of a linear layer's output, without ever holding all of its logits

    The head of a model with a large vocabulary and its loss in one: input (..., in_features),
    target (...) class indices. See `functional.linear_cross_entropy`.

    Attributes
    ----------
    linear : the layer; ``loss.linear(x)`` gives the logits where they are wanted after all
    weight : the classes' weights or None, as in CrossEntropyLoss
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        chunk_rows: int | None = None,
        device: DeviceLike = None,
        dtype: DTypeLike = None,
    ):
        super().__init__(weight, reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.chunk_rows = chunk_rows
        self.linear = Linear(in_features, num_classes, bias, device, dtype)

    def divisor(self, target: Tensor) -> Tensor | None:
        return _label_weights(target, self._buffers["weight"], self.ignore_index)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.linear_cross_entropy(
            input,
            self.linear.weight,
            self.linear.bias,
            target,
            self._buffers["weight"],
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            chunk_rows=self.chunk_rows,
        )
