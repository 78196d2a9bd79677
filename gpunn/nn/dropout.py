"""Dropout."""

from __future__ import annotations

from gpunn.autograd.functions.activation import dropout
from gpunn.autograd.tensor import Tensor
from gpunn.nn.module import Module


class Dropout(Module):
    """In training each element is zero with probability `p` and the others are divided by 1 - p.

    In evaluation the input passes through. Source: Srivastava et al., JMLR 15 (2014) 1929.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"Dropout: p is {p}; expected a probability from 0 to 1")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
