"""The CTC loss: labels whose places in time are not known."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.functions.loss import check_constant, check_reduction
from gpunn.autograd.functions.reduction import mean, sum
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import as_array
from gpunn.device.arrays import is_array
from gpunn.primitives.ctc import ctc_backward, ctc_forward


class Ctc(Function):
    """The losses of all sequences; the gradient is one through a log-softmax before them"""

    def forward(self, log_probs, targets, input_lengths, target_lengths, blank, zero_infinity):
        problem = (log_probs, targets, input_lengths, target_lengths)
        self.blank, self.zero_infinity = blank, zero_infinity
        loss, alpha = ctc_forward(*problem, blank=blank)
        if self.needs[0]:
            self.lengths = problem[2:]
            self.save(log_probs, targets, loss, alpha)
        if not zero_infinity:
            return loss.copy() if self.needs[0] else loss  # what is kept is not the caller's
        return array_xp(loss).where(loss == np.inf, 0, loss).astype(loss.dtype)

    def backward(self, grad):
        log_probs, targets, loss, alpha = self.saved
        options = {"blank": self.blank, "zero_infinity": self.zero_infinity}
        return ctc_backward(grad, log_probs, targets, *self.lengths, loss, alpha, **options)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """-log of the probability that log-probabilities spell the target (Graves et al., 2006).

    Parameters
    ----------
    log_probs : (T, B, C), or (T, C) for one sequence, from `log_softmax` over the last dimension.
        The gradient is the one through that log-softmax, as PyTorch's: it sums to 0 over classes.
    targets : integers (B, S), padded, or all labels in a row; 0 to C - 1 without `blank`
    input_lengths, target_lengths : B integers each: a tensor, a list or a tuple (or a number for
        one sequence). In a tensor on the GPU of `log_probs` they are not looked at and nothing
        waits; wrong ones make the loss NaN there, and so do wrong labels.
    reduction : "mean" divides each loss by its target's length (at least 1) and averages; "sum",
        "none"
    zero_infinity : a target that is too long for its input gives a loss and a gradient of 0, not
        +inf and NaN

    float16 and bfloat16 are computed in float32, and so is their loss. Raises ValueError for
    lengths and labels out of range, with the numbers.
    """
    check_reduction("ctc_loss", reduction)
    check_constant("ctc_loss", targets=targets)
    if log_probs.ndim not in (2, 3):
        raise ValueError(
            f"ctc_loss: log_probs has shape {log_probs.shape}; expected (T, B, C), or (T, C) for "
            "one sequence"
        )
    single = log_probs.ndim == 2
    if single:
        log_probs = reshape(log_probs, log_probs.shape[0], 1, -1)
    inputs, lengths = (_lengths(value) for value in (input_lengths, target_lengths))
    loss = Ctc.apply(log_probs, targets, inputs, lengths, blank, bool(zero_infinity))
    if reduction == "sum":
        return sum(loss)
    if reduction == "none":
        return reshape(loss, ()) if single else loss
    divisor = lengths if is_array(lengths) else np.asarray(lengths)
    divisor = loss._xp.asarray(divisor).clip(1, None).astype(loss.dtype)
    return mean(loss / wrap(divisor))


def _lengths(value):
    """Lengths as a list or as an array of one dimension."""
    value = value._array if isinstance(value, Tensor) else value
    if is_array(value):
        return as_array(value).reshape(-1)
    return [int(value)] if isinstance(value, Integral) else list(value)
