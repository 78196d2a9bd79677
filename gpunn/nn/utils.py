"""Helpers over the parameters of a model: clipping gradients, parameters as one vector."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.autograd.functions.shape import cat, reshape
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.primitives import clip as primitives


def _gradients(parameters) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients together so that their norm is at most `max_norm`; returns the norm.

    The factor is max_norm / (norm + 1e-6), at most 1, as in PyTorch. On a GPU nothing waits for the
    norm unless `error_if_nonfinite`.
    """
    gradients = _gradients(parameters)
    if not gradients:
        return wrap(np.zeros((), np.float32))
    xp = gradients[0]._xp
    norms = xp.stack([_norm(xp, gradient._array, norm_type) for gradient in gradients])
    total = xp.asarray(_norm(xp, norms, norm_type))
    if error_if_nonfinite and not bool(xp.isfinite(total)):
        raise RuntimeError(
            f"clip_grad_norm_: the norm of the gradients is {float(total)}. Lower the learning "
            "rate, look for log(0) or 0/0 in the loss, or pass error_if_nonfinite=False."
        )
    for gradient in gradients:
        array = gradient._array
        whole = xp.ascontiguousarray(array)
        norm = total.astype(np.float64 if array.dtype == np.float64 else np.float32)
        primitives.clip_by_norm(whole, norm, max_norm=float(max_norm))
        if whole is not array:
            array[...] = whole
        gradient._cell[0] += 1
    return wrap(total)


def _norm(xp, array, norm_type: float):
    if norm_type == 2:
        return primitives.global_norm(array)
    flat = xp.abs(wide(array).reshape(-1))
    if norm_type == np.inf:
        return flat.max()
    return (flat**norm_type).sum() ** (1.0 / norm_type)


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Limit every element of the gradients to ±clip_value."""
    for gradient in _gradients(parameters):
        gradient.detach().clamp_(-clip_value, clip_value)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters as one vector."""
    return cat([reshape(parameter, -1) for parameter in parameters])


@no_grad()
def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copy consecutive parts of `vec` into the parameters. Raises ValueError if sizes differ."""
    parameters = list(parameters)
    count = sum(parameter.numel() for parameter in parameters)
    if vec.shape != (count,):
        raise ValueError(
            f"vector_to_parameters: vec has shape {vec.shape}; the parameters need ({count},)"
        )
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter[...] = vec[start:end].reshape(parameter.shape)
        start = end
