"""Checks of the arguments of convolutions, with errors that name the function and the numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.autograd.autocast import lowered
from gpunn.autograd.function import check_devices
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor


def each(name: str, argument: str, value: Any, dimensions: int, least: int) -> tuple[int, ...]:
    """An int, or a sequence of one int for each spatial dimension, as a tuple."""
    try:
        if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
            found = tuple(map(operator.index, value))
            found = found * dimensions if len(found) == 1 else found
        else:
            found = (operator.index(value),) * dimensions
    except TypeError:
        raise TypeError(
            f"{name}: {argument} is {value!r}; expected an int or a tuple of {dimensions} ints"
        ) from None
    if len(found) != dimensions or min(found) < least:
        raise ValueError(
            f"{name}: {argument} is {value!r}; expected an int of at least {least}, or "
            f"{dimensions} of them"
        )
    return found


def checked(name: str, input: Tensor, weight: Tensor, bias, dimensions: int, channels_last: bool):
    """(the input with a batch dimension, weight, bias); errors where they do not fit each other."""
    shape = "*sizes, C" if channels_last else "C, *sizes"
    for argument, tensor in (("input", input), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} is {type(tensor).__name__}; expected a Tensor")
    if state.low is not None:
        input, weight, bias = lowered(input, weight, bias)
    x, w = input._array, weight._array
    if w.ndim != dimensions + 2 or x.ndim not in (dimensions + 1, dimensions + 2):
        raise ValueError(
            f"{name}: input has shape {x.shape} and weight {w.shape}; expected {dimensions} "
            f"spatial dimensions: an input (N, {shape}) or ({shape}) and a weight of "
            f"{dimensions + 2} dimensions"
        )
    if x.dtype != w.dtype or (bias is not None and bias._array.dtype != w.dtype):
        raise TypeError(
            f"{name}: input has dtype {x.dtype} and weight {w.dtype}"
            f"{'' if bias is None else f', bias {bias.dtype}'}; they must be equal. "
            f"Convert the input with .to({w.dtype.name!r}), or the model."
        )
    if type(x) is not np.ndarray or type(w) is not np.ndarray:
        check_devices(name, *(t for t in (input, weight, bias) if t is not None))
    return input if x.ndim == dimensions + 2 else reshape(input, 1, *x.shape), weight, bias


def check_channels(name: str, input: Tensor, weight: Tensor, bias, groups, axis: int, outputs):
    """The groups as an int; an error unless they divide the channels, which fit the weight."""
    (groups,) = each(name, "groups", groups, 1, 1)
    channels, w = input.shape[axis], weight.shape
    wanted = w[0] if outputs is None else w[1] * groups
    if channels != wanted or w[0] % groups:
        form = "(in, out / groups, *kernel)" if outputs is None else "(out, in / groups, *kernel)"
        raise ValueError(
            f"{name}: input of shape {input.shape} has {channels} channels (dimension {axis}), but "
            f"weight {w} {form} with groups={groups} needs {wanted}, and groups must divide "
            f"its first dimension, {w[0]}"
        )
    made = w[1] * groups if outputs is None else outputs
    if bias is not None and bias.shape != (made,):
        raise ValueError(
            f"{name}: bias has shape {bias.shape}; expected ({made},), one number for each "
            "channel of the result"
        )
    return groups


def padding_of(name: str, padding, stride, kernel, dilation):
    """What the primitives take from an int, ints, "valid" or "same"."""
    if not isinstance(padding, str):
        return each(name, "padding", padding, len(kernel), 0)
    if padding == "valid":
        return (0,) * len(kernel)
    if padding != "same":
        raise ValueError(f"{name}: padding is {padding!r}; expected ints, 'same' or 'valid'")
    if any(step != 1 for step in stride):
        raise ValueError(
            f"{name}: padding 'same' with stride {stride}; it needs stride 1. Give the padding as "
            "numbers."
        )
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple((zeros // 2, zeros - zeros // 2) for zeros in reach)
