"""Dropout, of elements and of whole channels."""

from __future__ import annotations

from gpunn.autograd.creation import ones
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
            raise ValueError(f"{type(self).__name__}: p is {p}; expected a probability from 0 to 1")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class _ChannelDropout(Dropout):
    """Base of Dropout1d and Dropout2d: one draw for each channel of each sample."""

    axes = 0  # behind the channel

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in (self.axes + 1, self.axes + 2):
            raise ValueError(
                f"{type(self).__name__}: input has shape {input.shape}; expected "
                f"{self.axes + 2} dimensions, (samples, channels, …), or one less for one sample"
            )
        if not self.training or self.p == 0.0:
            return input
        shape = (*input.shape[: -self.axes], *(1,) * self.axes)
        return input * dropout(ones(shape, dtype=input.dtype, device=input.device), self.p, True)


class Dropout1d(_ChannelDropout):
    """In training each channel of a sample (B, C, L) or (C, L) is zero with probability `p`.

    The others are divided by 1 - p. Neighbours in a channel are alike, so that single elements tell
    little when they are left out. Source: Tompson et al., Efficient object localization using
    convolutional networks, 2015.
    """

    axes = 1


class Dropout2d(_ChannelDropout):
    """`Dropout1d` for images (B, C, H, W) or (C, H, W)."""

    axes = 2
