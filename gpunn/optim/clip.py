"""Limits on the gradients of a model: by their norm, by value; and gradients of penalties.

Gradients that lie side by side in an optimizer's arena are worked on together, in one launch.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, device_of, empty, pointer, to_device, tracing
from gpunn.optim.arena import ALIGNMENT, Arena
from gpunn.optim.sharding import Ranks
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

    Of parameters whose optimizer is sharded (`Optimizer.shard`), each rank scales its part, by the
    norm over all ranks' parts; all ranks must call it.
    """
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type is {norm_type}; expected a number above 0")
    parameters = with_gradient(parameters)
    if not parameters:
        return wrap(np.zeros((), np.float32))
    runs = grouped_runs(parameters)
    norm = _norm(runs, float(norm_type))
    if error_if_nonfinite:
        tracing.host_read("clip_grad_norm_(error_if_nonfinite=True)")
    if error_if_nonfinite and not math.isfinite(float(norm)):
        raise RuntimeError(
            f"clip_grad_norm_: the norm of the gradients is {float(norm)}. Lower the learning "
            "rate, look for log(0) or 0/0 in the loss, or pass error_if_nonfinite=False."
        )
    for run in itertools.chain.from_iterable(runs.values()):
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
    """The gradients as few arrays: neighbours in an arena as one flat view of it.

    Of parameters whose optimizer is sharded, what is in this rank's part.
    """
    return list(itertools.chain.from_iterable(grouped_runs(parameters).values()))


def grouped_runs(parameters: list[Any]) -> dict[Ranks | None, list[Any]]:
    """`gradient_runs` by the ranks that have the rest of them.

    None -> those that are complete here. Group -> of the parameters whose optimizer is sharded over
    it, what is in this rank's part of each arena, or an empty array: elsewhere nothing is to be
    read. All ranks get the same keys, in the same order.
    """
    alone: list[Any] = []
    slots: dict[int, list[Any]] = {}
    sharded: dict[Arena, list[int]] = {}
    for parameter in parameters:
        arena, place = _sharded_arena(parameter)
        if arena is not None:
            sharded.setdefault(arena, []).append(place)
            continue
        array = parameter.grad._array
        if array is parameter._grad_slot and array.size:
            slots.setdefault(id(array.base), []).append(array)
        else:
            alone.append(array)
    for neighbours in slots.values():
        alone += _joined(neighbours)
    found: dict[Ranks | None, list[Any]] = {None: alone}
    for arena, places in sharded.items():
        own = arena.own.inside(arena.runs(sorted(set(places)))) or [(arena.own.start,) * 2]
        runs = [arena.gradients[start:stop] for start, stop in own]
        found.setdefault(arena.own.group, []).extend(runs)
    return found


def _sharded_arena(parameter: Tensor) -> tuple[Arena | None, int]:
    """The arena of a sharded optimizer and the parameter's place in it; its gradient is there."""
    if parameter._low_source is None:
        return None, 0
    reference, place = parameter._low_source
    arena = reference()
    if arena is None or arena.bounds is None or parameter._array is not arena.views[place]:
        return None, 0
    if parameter.grad is not None and parameter.grad._array is not arena.slots[place]:
        arena.take_gradient(place)
    return arena, place


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


def _norm(runs: dict[Ranks | None, list[Any]], norm_type: float) -> Any:
    """The norm over all runs of all ranks, as an array of shape () on the device of the first."""
    parts = list(runs.get(None, []))
    for group, own in runs.items():
        if group is not None:
            parts.append(_norms_of_ranks(group, _norm_here(own, norm_type)))
    return _norm_here(parts, norm_type)


def _norms_of_ranks(group: Ranks, norm: Any) -> Any:
    """Each rank's norm. They are gathered, not added up: so any norm is alike on all ranks."""
    each = empty((group.size,), norm.dtype, device_of(norm))
    each[group.rank] = norm
    group.all_gather(each, [(rank, rank + 1) for rank in range(group.size)])
    return each


def _norm_here(runs: list[Any], norm_type: float) -> Any:
    """The norm over some arrays, as an array of shape () on the device of the first."""
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
    return xp.asarray((size**norm_type).sum() ** (1 / norm_type))


def mark_written(parameters: list[Any]) -> None:
    """Tell the tape that the gradients were written in place."""
    for parameter in parameters:
        parameter.grad._cell[0] += 1
