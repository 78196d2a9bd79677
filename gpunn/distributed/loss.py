"""The loss of a batch whose rows several ranks share: shares whose sum is the loss of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.functions.arithmetic import where
from gpunn.autograd.functions.reduction import sum
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, device_of
from gpunn.distributed.group import Group
from gpunn.distributed.link import Pending


class Divisor(NamedTuple):
    """What a loss divides by, of all ranks together: a sum that is on its way."""

    array: Any  # float64 (), on the device
    pending: Pending


def begin_divisor(loss: Any, target: Tensor, own: int, group: Group) -> Divisor | None:
    """Begin what `global_mean` of this loss needs of the other ranks; None if that is nothing.

    All ranks call it. It needs the target alone: begun before the model runs, nobody waits for it.
    """
    if getattr(loss, "reduction", None) != "mean" or not _own_divisor(loss):
        return None
    divisor = loss.divisor(target)
    if divisor is None:
        return None
    total = divisor._array.astype(np.float64)
    if own == 0:
        total[...] = 0
    return Divisor(total, group.begin_reduce(total))


def global_mean(
    loss: Callable[..., Any],
    prediction: Tensor,
    target: Tensor,
    own: int,
    whole: int,
    group: Group,
    divisor: Divisor | None = None,
) -> Tensor:
    """This rank's share of the loss of a batch: the sum over all ranks is the loss of the whole.

    So is the sum of their gradients. All ranks call it, for the same batch.

    Parameters
    ----------
    loss : ``loss(prediction, target)`` giving a Tensor of shape (). A mean over rows counts
        ``own / whole`` of it. A loss with ``reduction = "sum"`` is a share as it is. One with
        ``reduction = "mean"`` and a `divisor`, as cross-entropy whose labels may be ignored or have
        weights, is summed, and divided by the divisors of all ranks together: an all-reduce of one
        number, on the device.
    prediction, target : the rows that this rank was given
    own, whole : how many of them are its own, and rows of the whole batch. With `own` 0 the share
        is 0, and its gradients are 0, whatever the rows hold.
    divisor : what `begin_divisor` gave, if it was called before; else it is called here

    ValueError if the loss has another shape than ().

    A batch of which nothing counts has the mean NaN and gradients of 0, as on one process.
    """
    divisor = begin_divisor(loss, target, own, group) if divisor is None else divisor
    summed = getattr(loss, "reduction", "mean") == "sum"
    if own == 0 and (divisor is not None or summed):  # a sum over no rows
        prediction, target = prediction[:0], target[:0]
    if divisor is None:
        if own == 0 and not summed:
            return _nothing(loss, prediction, target)
        found = _scalar(loss(prediction, target))
        return found if summed or own == whole else found * (own / whole)
    found = _scalar(_summing(loss)(prediction, target))
    divisor.pending.wait()
    xp, total = array_module(device_of(divisor.array)), divisor.array.astype(found.dtype)
    nothing = total == 0
    mean = found / wrap(xp.where(nothing, 1, total).astype(found.dtype))
    return mean + wrap(xp.where(nothing, np.nan, 0).astype(found.dtype))


def _own_divisor(loss: Any) -> bool:
    """Whether `divisor` is of the class that computes the loss, or of one below it."""
    for kind in type(loss).__mro__:
        if "divisor" in vars(kind):
            return True
        if {"forward", "__call__"} & set(vars(kind)):
            return False
    return False


def _summing(loss: Any) -> Any:
    """The same loss as a sum: a view that shares parameters, buffers and hooks."""
    made = copy.copy(loss)
    vars(made)["reduction"] = "sum"  # beside Module.__setattr__, which would tell compiled steps
    return made


def _nothing(loss: Any, prediction: Tensor, target: Tensor) -> Tensor:
    """0, whose gradients are 0, also those of parameters of the loss itself."""
    if not any(True for _ in getattr(loss, "parameters", tuple)()):
        return sum(prediction[:0])
    found = _scalar(loss(prediction, target))
    return where(wrap(found._xp.zeros((), np.bool_)), found, 0.0)


def _scalar(found: Tensor) -> Tensor:
    if found.shape != ():
        raise ValueError(
            f"the loss has shape {found.shape}, expected (); use reduction='mean' or 'sum'"
        )
    return found
