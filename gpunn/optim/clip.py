"""Limits on the gradients of a model: by their norm, by value; and gradients of penalties.

Gradients that lie side by side in an optimizer's arena are worked on together, in one launch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, device_of, empty, pointer, to_device, tracing
from gpunn.optim.arena import ALIGNMENT
from gpunn.primitives.clip import clip_by_norm, clip_by_value, global_norm, penalty_gradient
from gpunn.primitives.samples import accumulator_dtype


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients together so that their norm is at most `max_norm`; returns the norm.

    The factor is max_norm / (norm + 1e-6), at most 1, as in PyTorch. It is computed where the
    gradients are: nothing waits for a GPU, unless `error_if_nonfinite`, which raises RuntimeError
    for a norm that is NaN or infinite. `norm_type` may be any p > 0, or inf for the largest
    absolute value. `foreach` is accepted and changes nothing.
    """
    parameters = with_gradient(parameters)
    runs = gradient_runs(parameters)
    if not runs:
        return wrap(np.zeros((), np.float32))
    norm = _norm(runs, float(norm_type))
    if error_if_nonfinite:
        tracing.host_read("clip_grad_norm_(error_if_nonfinite=True)")
    if error_if_nonfinite and not math.isfinite(float(norm)):
        raise RuntimeError(
            f"clip_grad_norm_: the norm of the gradients is {float(norm)}. Lower the learning "
            "rate, look for log(0) or 0/0 in the loss, or pass error_if_nonfinite=False."
        )
    for run in runs:
        own = to_device(norm.astype(accumulator_dtype(run.dtype), copy=False), device_of(run))
        with contiguous(run) as flat:
            clip_by_norm(flat, own, max_norm=max_norm)
    mark_written(parameters)
    return wrap(norm)


def clip_grad_value_(
    parameters: Iterable[Tensor] | Tensor, clip_value: float, foreach: bool | None = None
) -> None:
    """Limit every element of the gradients to ±`clip_value`, in place."""
    parameters = with_gradient(parameters)
    for run in gradient_runs(parameters):
        with contiguous(run) as flat:
            clip_by_value(flat, limit=clip_value)
    mark_written(parameters)


def add_penalty_gradient_(
    parameters: Iterable[Tensor] | Tensor, l1: float = 0.0, l2: float = 0.0
) -> None:
    """Add the gradient of ``l1 · sum|w| + l2 · sum w²`` to the gradients, in place.

    The same as adding that penalty to the loss, without a graph. To be called after `backward`;
    parameters without a gradient are left alone.
    """
    parameters = with_gradient(parameters)
    for parameter in parameters:
        with contiguous(parameter.grad._array) as gradient:
            penalty_gradient(parameter._array, gradient, l1=l1, l2=l2)
    mark_written(parameters)


@contextlib.contextmanager
def contiguous(array: Any) -> Iterator[Any]:
    """`array` to be changed in place; a strided one as a copy that is written back."""
    if array.flags.c_contiguous:
        yield array
    else:
        flat = array.copy(order="C")
        yield flat
        array[...] = flat


def with_gradient(parameters: Iterable[Tensor] | Tensor) -> list[Any]:
    """The parameters that have a gradient."""
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [parameter for parameter in parameters if parameter.grad is not None]


def gradient_runs(parameters: list[Any]) -> list[Any]:
    """The gradients as few arrays: neighbours in an arena as one flat view of it."""
    alone: list[Any] = []
    slots: dict[int, list[Any]] = {}
    for parameter in parameters:
        array = parameter.grad._array
        if array is parameter._grad_slot and array.size:
            slots.setdefault(id(array.base), []).append(array)
        else:
            alone.append(array)
    for neighbours in slots.values():
        alone += _joined(neighbours)
    return alone


def _joined(slots: list[Any]) -> list[Any]:
    """Parts of one arena, as flat views of it over all that are side by side."""
    arena, itemsize = slots[0].base, slots[0].itemsize
    origin = pointer(arena)
    places = sorted(((pointer(slot) - origin) // itemsize, slot.size) for slot in slots)
    spans: list[list[int]] = []
    for start, size in places:
        # A gap shorter than the alignment holds the zeros behind a parameter, never another one.
        if spans and (start - spans[-1][1]) * itemsize < ALIGNMENT:
            spans[-1][1] = start + size
        else:
            spans.append([start, start + size])
    return [arena[start:stop] for start, stop in spans]


def _norm(runs: list[Any], norm_type: float) -> Any:
    """The norm over all runs, as an array of shape () on the device of the first."""
    device = device_of(runs[0])
    dtype = max((accumulator_dtype(run.dtype) for run in runs), key=lambda d: d.itemsize)
    if len(runs) == 1 and norm_type == 2:
        return global_norm(runs[0])
    each = empty((len(runs),), dtype, device)
    for place, run in enumerate(runs):
        each[place] = to_device(_norm_of(run, norm_type), device)
    return _norm_of(each, norm_type)


def _norm_of(array: Any, norm_type: float) -> Any:
    if norm_type == 2:
        return global_norm(array)
    xp = array_module(device_of(array))
    size = xp.abs(array.astype(accumulator_dtype(array.dtype), copy=False))
    if norm_type == math.inf:
        return xp.asarray(size.max() if size.size else size.sum())
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type is {norm_type}; expected a number above 0")
    return xp.asarray((size**norm_type).sum() ** (1 / norm_type))


def mark_written(parameters: list[Any]) -> None:
    """Tell the tape that the gradients were written in place."""
    for parameter in parameters:
        parameter.grad._cell[0] += 1
