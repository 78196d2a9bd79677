"""The memory of keys and values that generation keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.autocast import is_autocast_enabled
from gpunn.autograd.creation import zeros
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor


class KeyValueCache:
    """Keys and values of the positions already seen, so that a new one costs one row, not all.

    Memory for `max_length` positions is taken once; `append` copies the new ones behind the others
    and gives back all so far as views. For generation alone: gradients do not go through it.

    Attributes
    ----------
    keys, values : (batch, max_length, heads, head_dim)
    length : how many positions are filled
    """

    def __init__(
        self,
        batch: int,
        max_length: int,
        heads: int,
        head_dim: int,
        dtype: DTypeLike = np.float32,
        device: DeviceLike = None,
    ):
        shape = (batch, max_length, heads, head_dim)
        self.keys = zeros(*shape, dtype=dtype, device=device)
        self.values = zeros(*shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in (batch, T, heads, head_dim) and return all keys and all values so far.

        Raises ValueError where they do not fit, also where more than `max_length` would be kept.
        """
        batch, capacity, heads, size = self.keys.shape
        steps = keys.shape[1] if keys.ndim == 4 else 0
        if keys.shape != (batch, steps, heads, size) or values.shape != keys.shape:
            raise ValueError(
                f"KeyValueCache: keys have shape {keys.shape} and values {values.shape}; this "
                f"cache takes ({batch}, T, {heads}, {size})"
            )
        if is_autocast_enabled():
            keys, values = keys.to(self.keys.dtype), values.to(self.keys.dtype)
        for new in (keys, values):
            if new.dtype != self.keys.dtype or new.device != self.keys.device:
                raise ValueError(
                    f"KeyValueCache: keys or values have dtype {new.dtype} on {new.device}; this "
                    f"cache was made for {self.keys.dtype} on {self.keys.device}"
                )
        end = self.length + steps
        if end > capacity:
            raise ValueError(
                f"KeyValueCache: {self.length} positions are kept and {steps} more came; it was "
                f"made for {capacity}. Make it longer, or start a new one."
            )
        with no_grad():
            for kept, new in ((self.keys, keys), (self.values, values)):
                kept[:, self.length : end] = new.detach()
        self.length = end
        return self.keys[:, :end], self.values[:, :end]

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.length = 0

    @no_grad()
    def select(self, rows: Any) -> None:
        """Keep these sequences of the batch, in this order: for beam search."""
        self.keys, self.values = self.keys[rows], self.values[rows]
