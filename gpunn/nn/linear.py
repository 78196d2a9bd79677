"""Layers that multiply or rearrange: Linear, Identity, Flatten, Unflatten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.creation import empty
from gpunn.autograd.functions.linalg import linear
from gpunn.autograd.functions.shape import flatten, unflatten
from gpunn.autograd.tensor import Tensor
from gpunn.nn import init
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter


class Linear(Module):
    """``y = x W^T + b``

    Parameters: `in_features`, `out_features`, whether there is a `bias`, `device`, `dtype`.
    Input (..., in_features), output (..., out_features).

    Attributes
    ----------
    weight : (out_features, in_features), uniform in ±1/sqrt(in_features) at first, as in PyTorch
    bias : (out_features,), uniform in the same interval, or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: DeviceLike = None,
        dtype: DTypeLike = None,
    ):
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(f"Linear: {name} is {size!r}; expected an integer of 1 or more")
        self.in_features, self.out_features = in_features, out_features
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = Parameter(empty(out_features, in_features, **place))
        self.register_parameter("bias", Parameter(empty(out_features, **place)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values from gpunn's generator."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        parameters = self._parameters
        return linear(input, parameters["weight"], parameters["bias"])

    def forward_activated(self, input: Tensor, activation: str, alpha: float | None) -> Tensor:
        """The layer with an activation behind it, in one kernel."""
        parameters = self._parameters
        return linear(input, parameters["weight"], parameters["bias"], activation, alpha)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Identity(Module):
    """Gives back its input; takes and ignores any arguments."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class Flatten(Module):
    """The dimensions from `start_dim` to `end_dim` as one; by default all but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Dimension `dim` split into `unflattened_size`."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]):
        super().__init__()
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        return unflatten(input, self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
