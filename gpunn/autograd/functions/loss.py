"""Losses, each over its pair of kernels. `reduction` is "mean", "sum" or "none"."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from gpunn.autograd import mode
from gpunn.autograd.autocast import widened
from gpunn.autograd.dtypes import is_float, promote
from gpunn.autograd.function import Function
from gpunn.autograd.functions.activation import relu
from gpunn.autograd.functions.arithmetic import where
from gpunn.autograd.functions.common import array_xp, cast, check_broadcast
from gpunn.autograd.functions.reduction import Pick, mean, sum
from gpunn.autograd.functions.shape import broadcast_to, moveaxis, reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.quiet import quiet
from gpunn.primitives import loss as primitives
from gpunn.primitives.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
)
from gpunn.primitives.scale import scale

_REGRESSION = {
    "mse": (primitives.mse_forward, primitives.mse_backward),
    "l1": (primitives.l1_forward, primitives.l1_backward),
    "huber": (primitives.huber_forward, primitives.huber_backward),
}


class Regression(Function):
    """mse, l1 or huber of a prediction and a target; the target's gradient is the opposite one"""

    def forward(self, prediction, target, kind, reduction, options):
        self.kind, self.options = kind, {"reduction": reduction, **options}
        self.save(prediction, target)
        return _REGRESSION[kind][0](prediction, target, **self.options)

    def backward(self, grad):
        grad = _REGRESSION[self.kind][1](grad, *self.saved, **self.options)
        return grad if self.needs[0] else None, -grad if self.needs[1] else None


class BinaryCrossEntropyWithLogits(Function):
    """Binary cross-entropy of sigmoid(logits)"""

    def forward(self, logits, target, weight, pos_weight, reduction):
        self.options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
        self.save(logits, target)
        return primitives.binary_cross_entropy_forward(logits, target, **self.options)

    def backward(self, grad):
        return primitives.binary_cross_entropy_backward(grad, *self.saved, **self.options)


class BinaryCrossEntropy(Function):
    """-t log(p) - (1 - t) log(1 - p), each logarithm no less than -100"""

    widens = True

    def forward(self, p, target):
        self.save(p, target)
        xp = array_xp(p)
        with quiet():
            yes, no = xp.maximum(xp.log(p), -100), xp.maximum(xp.log1p(-p), -100)
        return -(target * yes + (1 - target) * no)

    def backward(self, grad):
        p, target = self.saved
        return grad * (p - target) / array_xp(p).maximum(p * (1 - p), 1e-12)


class CrossEntropy(Function):
    """Softmax and negative log-likelihood of rows of logits

    Where their gradient will be wanted, it is made in the forward pass, which has each logit at
    hand, for a gradient of the loss of 1; any other is multiplied in on the way back. Two kinds
    of loss take a second pass over the logits instead: float16, because the gradient of a loss that
    is scaled up, as it has to be there, must be multiplied in before anything is rounded; and
    reduction "none", whose gradient differs from row to row.
    """

    def forward(self, logits, target, weight, ignore_index, label_smoothing, reduction):
        self.options = {
            "weight": weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
        }
        self.at_once = self.needs[0] and reduction != "none" and logits.dtype != np.float16
        if self.at_once:
            loss, *_, gradient = cross_entropy_forward_backward(logits, target, **self.options)
            self.save(gradient)
            return loss
        loss, normalizer, total = cross_entropy_forward(logits, target, **self.options)
        self.save(logits, target, normalizer, total)
        return loss

    def backward(self, grad):
        if not self.at_once:
            return cross_entropy_backward(grad, *self.saved, **self.options)
        (gradient,), owned = self.take_saved()
        if owned and self.starts_with_one:
            return gradient
        return scale(gradient, grad, out=gradient if owned else None)


# ---- public functions ---------------------------------------------------------------------------


def check_reduction(name: str, reduction: str) -> None:
    """Raise the error for an unknown reduction."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(
            f"{name}: reduction {reduction!r} is not known; use 'none', 'mean' or 'sum'"
        )


def check_constant(name: str, **tensors: Tensor | None) -> None:
    """Raise the error for a gradient that this loss does not give."""
    for argument, tensor in tensors.items():
        if tensor is not None and tensor._requires_grad and mode.state.enabled:
            raise NotImplementedError(
                f"{name}: {argument} requires a gradient, and this loss gives one to input alone. "
                f"Pass {argument}.detach(), or write the loss with tensor arithmetic."
            )


def _pair(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Input and target in one shape and dtype, the wider one; whole numbers become floats.

    Broadcasting is allowed as in PyTorch, with its warning.
    """
    if mode.state.low is not None:
        input, target = widened(input), widened(target)
    if input.dtype != target.dtype and (is_float(input.dtype) or is_float(target.dtype)):
        dtype = promote(input.dtype, target.dtype)
        input, target = cast(input, dtype), cast(target, dtype)
    if input.shape == target.shape:
        return input, target
    check_broadcast(name, input.shape, target.shape)
    shape = np.broadcast_shapes(input.shape, target.shape)
    warnings.warn(
        f"{name}: input has shape {input.shape}, target {target.shape}; broadcasting them is "
        "rarely meant. Give both the same shape.",
        UserWarning,
        stacklevel=3,
    )
    return broadcast_to(input, shape), broadcast_to(target, shape)


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The squared error (input - target)^2, reduced."""
    input, target = _pair("mse_loss", input, target)
    return Regression.apply(input, target, "mse", reduction, {})


def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The absolute error |input - target|, reduced."""
    input, target = _pair("l1_loss", input, target)
    return Regression.apply(input, target, "l1", reduction, {})


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2), with e = input - target, reduced."""
    input, target = _pair("huber_loss", input, target)
    return Regression.apply(input, target, "huber", reduction, {"delta": delta})


def smooth_l1_loss(
    input: Tensor, target: Tensor, *, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Huber's loss with delta = beta, divided by beta; the absolute error for beta = 0."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta is {beta}; expected at least 0")
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return huber_loss(input, target, reduction, beta) * (1.0 / beta)


def quantile_loss(
    input: Tensor, target: Tensor, quantiles: Sequence[float] | Tensor, *, reduction: str = "mean"
) -> Tensor:
    """The pinball loss, which the quantiles of a target make least: q·e for e >= 0, else (q - 1)·e.

    Parameters
    ----------
    input : (..., Q), a prediction for each quantile in the last place
    target : (...) or (..., 1), what was observed; e = target - input
    quantiles : (Q,) from 0 to 1. A Tensor is taken as it is, without a look at its values
    reduction : "mean" over all elements, as of `train.metrics.PinballLoss`; "sum"; "none", (..., Q)

    Half the absolute error for the one quantile 0.5. Nothing keeps the predictions in order: give
    the model an output that is ordered if they must not cross. ValueError for shapes that do not
    fit and quantiles outside 0 … 1.
    """
    check_reduction("quantile_loss", reduction)
    if mode.state.low is not None:
        input, target = widened(input), widened(target)
    if not isinstance(quantiles, Tensor):
        given = np.asarray(quantiles, np.float64)
        if given.ndim != 1 or not given.size or not ((given >= 0) & (given <= 1)).all():
            raise ValueError(
                f"quantile_loss: quantiles is {quantiles!r}; expected a list of numbers from 0 to 1"
            )
        quantiles = wrap(input._xp.asarray(given, input.dtype))
    if input.ndim < 1 or quantiles.shape != input.shape[-1:]:
        raise ValueError(
            f"quantile_loss: input has shape {input.shape} and there are {quantiles.shape} "
            "quantiles; the last dimension of input must be one for each"
        )
    if target.shape == input.shape[:-1]:
        target = reshape(target, *target.shape, 1)
    if target.shape != (*input.shape[:-1], 1):
        raise ValueError(
            f"quantile_loss: target has shape {target.shape}, input {input.shape}; expected "
            f"{input.shape[:-1]}, one observation for all quantiles"
        )
    error = cast(target, input.dtype) - input
    return _reduced(error * cast(quantiles, input.dtype) + relu(-error), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of sigmoid(input) and targets in [0, 1], stable for large logits.

    `weight` scales each loss and `pos_weight` the positive part; both broadcast to the input.
    """
    if mode.state.low is not None:
        input, target, weight, pos_weight = map(widened, (input, target, weight, pos_weight))
    if target.shape != input.shape:
        raise ValueError(
            f"binary_cross_entropy_with_logits: target has shape {target.shape}, input "
            f"{input.shape}; they must be equal"
        )
    check_constant(
        "binary_cross_entropy_with_logits", target=target, weight=weight, pos_weight=pos_weight
    )
    weight, pos_weight = (None if w is None else w._array for w in (weight, pos_weight))
    return BinaryCrossEntropyWithLogits.apply(input, target._array, weight, pos_weight, reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy of probabilities in [0, 1]; with logits use the stabler sibling.

    Raises ValueError for another shape of `target`, and for an `input` outside [0, 1] on the CPU;
    on a GPU, where looking would mean waiting, the loss becomes NaN.
    """
    check_reduction("binary_cross_entropy", reduction)
    if mode.state.low is not None:
        input, target = widened(input), widened(target)
    if target.shape != input.shape:
        raise ValueError(
            f"binary_cross_entropy: target has shape {target.shape}, input {input.shape}; "
            "they must be equal"
        )
    check_constant("binary_cross_entropy", target=target)
    p = input._array
    if type(p) is np.ndarray and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            "binary_cross_entropy: input must hold probabilities from 0 to 1. Apply a sigmoid, or "
            "use binary_cross_entropy_with_logits."
        )
    loss = BinaryCrossEntropy.apply(input, target._array)
    return _reduced(loss if weight is None else loss * weight, reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return mean(loss) if reduction == "mean" else sum(loss)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of softmax(input) and class indices or class probabilities.

    Parameters
    ----------
    input : logits (C,), (N, C) or (N, C, d1, …)
    target : integers (), (N,) or (N, d1, …), or probabilities in the shape of `input`
    weight : (C,) a factor for each class; "mean" divides by the sum of the targets' weights
    ignore_index : integer targets of this value count nothing
    label_smoothing : mixes the target with the uniform distribution, from 0 to 1

    Raises ValueError for a label outside 0 … C - 1 and for shapes that do not fit.
    """
    check_reduction("cross_entropy", reduction)
    check_constant("cross_entropy", target=target, weight=weight)
    if mode.state.low is not None and (reduction == "none" or is_float(target.dtype)):
        input, target = widened(input), widened(target)  # else the kernel's loss is float32 anyway
    logits, labels, shape = rows_of("cross_entropy", input, target)
    loss = CrossEntropy.apply(
        logits,
        labels,
        None if weight is None else weight._array,
        ignore_index,
        float(label_smoothing),
        reduction,
    )
    return reshape(loss, shape) if reduction == "none" and loss.shape != shape else loss


def rows_of(name: str, input: Tensor, target: Tensor):
    """(logits as rows, targets as an array to match, shape of the unreduced loss)."""
    probabilities = target.shape == input.shape and target._array.dtype.kind not in "iu"
    shape = input.shape[:1] + input.shape[2:] if input.ndim > 1 else ()
    if not probabilities and target.shape != shape:
        raise ValueError(
            f"{name}: target has shape {target.shape} and dtype {target.dtype}, input has shape "
            f"{input.shape}; expected class indices of shape {shape}, or floating probabilities of "
            f"shape {input.shape}"
        )
    labels = target._array
    if input.ndim == 2:
        return input, labels, shape
    classes, rows = input.shape[1 if input.ndim > 1 else 0], math.prod(shape)
    if input.ndim == 1:
        return (
            reshape(input, 1, classes),
            labels.reshape((1, classes) if probabilities else 1),
            shape,
        )
    logits = reshape(moveaxis(input, 1, -1), rows, classes)
    if probabilities:
        labels = array_xp(labels).moveaxis(labels, 1, -1).reshape(rows, classes)
    return logits, labels.reshape(rows, -1) if probabilities else labels.reshape(rows), shape


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The negative log-likelihood of log-probabilities; arguments as in `cross_entropy`.

    Raises ValueError for a label outside the classes on the CPU; on a GPU, where looking would mean
    waiting, the loss becomes NaN.
    """
    check_reduction("nll_loss", reduction)
    if mode.state.low is not None:
        input = widened(input)
    rows, labels, shape = rows_of("nll_loss", input, target)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(
            f"nll_loss: target has dtype {target.dtype}; expected class indices (int64)"
        )
    xp, classes = rows._xp, rows.shape[1]
    kept = labels != ignore_index
    safe = xp.where(kept, labels, 0)
    wrong = (safe < 0) | (safe >= classes)
    if type(safe) is np.ndarray and wrong.any():
        raise ValueError(
            f"nll_loss: target holds labels from {int(safe.min())} to {int(safe.max())}; expected "
            f"0 to {classes - 1}, or ignore_index ({ignore_index})"
        )
    safe = xp.where(wrong, 0, safe)
    factors = xp.ones(classes, rows.dtype) if weight is None else weight._array
    factors = xp.where(kept, xp.where(wrong, np.nan, factors[safe]), 0).astype(rows.dtype)
    picked = reshape(Pick.apply(rows, safe.reshape(-1, 1), 1), -1)
    loss = where(wrap(kept), -picked * wrap(factors), 0.0)
    if reduction == "none":
        return reshape(loss, shape)
    return sum(loss) if reduction == "sum" else sum(loss) / sum(wrap(factors))
