"""Helpers over the parameters of a model: clipping gradients, parameters as one vector.

`rnn` holds what turns sequences of several lengths into a batch.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpunn.autograd.functions.shape import cat, reshape
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor
from gpunn.nn.utils import rnn
from gpunn.optim.clip import clip_grad_norm_, clip_grad_value_

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "parameters_to_vector",
    "rnn",
    "vector_to_parameters",
]


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
