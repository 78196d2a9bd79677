"""Losses of padded sequences: what is beyond a sequence's end counts nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.dtypes import is_float
from gpunn.autograd.functions.arithmetic import where
from gpunn.autograd.functions.common import cast, operands
from gpunn.autograd.functions.loss import cross_entropy
from gpunn.autograd.functions.reduction import sum
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import to_device
from gpunn.primitives.samples import accumulator_dtype

_REDUCTIONS = ("mean", "sum", "none", "sequence", "sequence_sum")


def sequence_mask(
    lengths: Tensor, max_len: int | None = None, dtype: DTypeLike = np.bool_
) -> Tensor:
    """(*lengths.shape, max_len): True, or 1, at the places before each sequence's end.

    >>> sequence_mask(gpunn.tensor([1, 3])).tolist()
    [[True, False, False], [True, True, True]]

    `max_len` None is the largest length, which has to be read from a GPU. Raises TypeError unless
    `lengths` holds integers, ValueError for a length outside 0 … max_len (on the CPU).
    """
    array, xp = lengths._array, lengths._xp
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"sequence_mask: lengths has dtype {lengths.dtype}; expected integers. Use .long()."
        )
    if max_len is None:
        max_len = int(array.max()) if array.size else 0
    if (
        type(array) is np.ndarray
        and array.size
        and not 0 <= int(array.min()) <= int(array.max()) <= max_len
    ):
        raise ValueError(
            f"sequence_mask: lengths are from {int(array.min())} to {int(array.max())}; expected "
            f"0 to max_len {max_len}"
        )
    return wrap((xp.arange(max_len) < array[..., None]).astype(dtype))


def _mask(name: str, shape: tuple[Any, ...], lengths, mask, device) -> Tensor | None:
    """The mask of shape (B, T, …) from one of the two ways to give it, None for neither."""
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: both lengths and mask are given; give one of them")
    if lengths is not None:
        if not isinstance(lengths, Tensor):
            given = np.asarray(lengths)
            if given.size and (given.dtype.kind not in "iu" or given.max() > shape[1]):
                raise ValueError(
                    f"{name}: lengths is {given.tolist()!r:.60}; expected integers from 0 to "
                    f"{shape[1]}, the steps of {shape}"
                )
            lengths = wrap(to_device(given.astype(np.int64), device))
        if lengths.shape != shape[:1]:
            raise ValueError(
                f"{name}: lengths has shape {lengths.shape}; expected ({shape[0]},), one for each "
                f"sequence of {shape}"
            )
        mask = sequence_mask(lengths, shape[1])
    if mask is None:
        return None
    if mask.shape not in (shape, shape[:2]):
        raise ValueError(f"{name}: mask has shape {mask.shape}; expected {shape[:2]} or {shape}")
    mask = wrap(mask._array != 0)
    return mask if mask.ndim == len(shape) else reshape(mask, *shape[:2], *(1,) * (len(shape) - 2))


def _reduce(loss: Tensor, mask: Tensor | None, reduction: str, dtype) -> Tensor:
    """Sums and means over the places that count; of none, the mean is NaN as in PyTorch."""
    if mask is None:
        mask = wrap(loss._xp.ones(loss.shape, np.bool_))
    elif mask.shape != loss.shape:
        mask = mask.expand(*loss.shape)
    # Sums and counts may be too much for 16 bits where their quotient is not.
    return cast(_wide_reduce(cast(loss, accumulator_dtype(dtype)), mask, reduction), dtype)


def _wide_reduce(loss: Tensor, mask: Tensor, reduction: str) -> Tensor:
    loss = where(mask, loss, 0.0)  # also where it is NaN
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    places = tuple(range(1, loss.ndim))
    if reduction == "mean":
        return sum(loss) / wrap(loss._xp.asarray(mask._array.sum()).astype(loss.dtype))
    total = sum(loss, places)
    if reduction == "sequence_sum":
        return total
    counts = mask._array.sum(axis=places)
    return total / wrap(counts.clip(1, None).astype(loss.dtype))


def _check(name: str, reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"{name}: reduction {reduction!r} is not known; use one of "
            f"{', '.join(map(repr, _REDUCTIONS))}"
        )


def sequence_cross_entropy(
    input: Tensor,
    target: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the classes at each step of padded sequences.

    Parameters
    ----------
    input : logits (B, T, V)
    target : class indices (B, T), 0 to V - 1; beyond a sequence's end anything may stand
    lengths : (B,) how many steps of each sequence count; or
    mask : (B, T) where a step counts (True or not 0); neither: every step does
    weight, ignore_index, label_smoothing : as in `cross_entropy`
    reduction : "mean" over all steps that count, as if they stood in one row (so a long sequence
        weighs more); "sum"; "none", (B, T) with 0 where nothing counts; "sequence", (B,) the mean
        of each sequence (0 for one without steps); "sequence_sum", (B,) the sum of each

    Raises ValueError for shapes that do not fit, a length beyond T and, on the CPU, a label out of
    range that counts.
    """
    name = "sequence_cross_entropy"
    _check(name, reduction)
    if input.ndim != 3 or target.shape != input.shape[:2]:
        raise ValueError(
            f"{name}: input has shape {input.shape} and target {target.shape}; expected (B, T, V) "
            "and (B, T)"
        )
    if target._array.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: target has dtype {target.dtype}; expected class indices. Use .long()."
        )
    if reduction.startswith("sequence") and weight is not None:
        raise ValueError(f"{name}: class weights need reduction 'mean', 'sum' or 'none'")
    kept = _mask(name, target.shape, lengths, mask, input.device)
    xp, labels = target._xp, target._array
    if kept is not None:
        labels = xp.where(kept._array, labels, ignore_index).astype(labels.dtype)
    whole = reduction in ("mean", "sum")
    loss = cross_entropy(
        reshape(input, -1, input.shape[2]), wrap(labels.reshape(-1)), weight,
        ignore_index=ignore_index, reduction=reduction if whole else "none",
        label_smoothing=label_smoothing,
    )  # fmt: skip
    if whole:
        return loss
    loss = reshape(loss, *target.shape)
    return _reduce(loss, wrap(labels != ignore_index), reduction, loss.dtype)


def masked_mse_loss(
    input: Tensor,
    target: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """The squared error of padded sequences (B, T, …), over the places that count alone.

    `lengths` (B,), `mask` (B, T) or of the full shape, and `reduction` are those of
    `sequence_cross_entropy`; "mean" divides by the number of elements that count. What stands
    elsewhere, even NaN, changes neither the loss nor the gradient.
    """
    name = "masked_mse_loss"
    _check(name, reduction)
    if input.shape != target.shape or input.ndim < 2:
        raise ValueError(
            f"{name}: input has shape {input.shape} and target {target.shape}; expected one shape "
            "(B, T, ...)"
        )
    if not is_float(input.dtype):
        raise TypeError(f"{name}: input has dtype {input.dtype}; expected a floating one")
    kept = _mask(name, input.shape, lengths, mask, input.device)
    input, target = operands(name, input, target)
    dtype = input.dtype
    input, target = (cast(tensor, accumulator_dtype(dtype)) for tensor in (input, target))
    if kept is not None:
        input, target = where(kept, input, 0.0), where(kept, target, 0.0)
    error = input - target
    return _reduce(error * error, kept, reduction, dtype)
