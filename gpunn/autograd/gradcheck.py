"""Checking gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import to_device, to_numpy


def gradcheck(
    func: Callable[..., Tensor],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Whether the gradients of `func` agree with central differences.

    `func(*inputs)` returns one Tensor. Every float64 input that requires a gradient is checked: a
    fixed random combination of the outputs is differentiated once by `backward` and once by moving
    each element by `eps`; they agree if the error is within ``atol + rtol * |numeric|``.

    Raises AssertionError with the worst element (or returns False), TypeError for a checked input
    that is not float64.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    for value in checked:
        if value.dtype != np.float64:
            raise TypeError(
                f"gradcheck: an input has dtype {value.dtype}; differences need float64. "
                "Use .double()."
            )
        value.grad = None
    out = func(*inputs)
    direction = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(wrap(to_device(direction.astype(out.dtype), out.device)))
    for position, value in enumerate(checked):
        numeric = _differences(func, inputs, value, direction, eps)
        found = np.zeros(value.shape) if value.grad is None else to_numpy(value.grad._array)
        error = np.abs(found - numeric) - (atol + rtol * np.abs(numeric))
        if not (error <= 0).all():
            if not raise_exception:
                return False
            worst = np.unravel_index(int(np.argmax(np.nan_to_num(error, nan=np.inf))), error.shape)
            raise AssertionError(
                f"gradcheck: input {position}, element {tuple(map(int, worst))}: the gradient is "
                f"{found[worst]:.8g}, differences give {numeric[worst]:.8g}"
            )
    return True


def _differences(func: Any, inputs: Any, value: Tensor, direction: Any, eps: float) -> np.ndarray:
    """d(direction . func) / d(value) by central differences, one element at a time."""
    numeric = np.empty(value.shape)
    array = value.array
    with no_grad():
        for index in np.ndindex(value.shape):
            before = array[index].item() if array.ndim else array.item()
            values = []
            for moved in (before + eps, before - eps):
                array[index] = moved
                values.append(float((to_numpy(func(*inputs)._array) * direction).sum()))
            array[index] = before
            numeric[index] = (values[0] - values[1]) / (2 * eps)
    return numeric
