"""What tells a transformer where a token stands: sums with waves or learned rows, and rotation."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.creation import empty
from gpunn.autograd.dtypes import as_dtype, float32
from gpunn.autograd.functions.shape import unsqueeze
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import as_device, to_device, tracing
from gpunn.nn import functional as F
from gpunn.nn import init
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter
from gpunn.primitives.rotary import tables
from gpunn.primitives.samples import accumulator_dtype


def _check_size(name: str, **sizes: Any) -> None:
    for argument, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}: {argument} is {size!r}; expected an integer of 1 or more")


class _Added(Module):
    """A row for each position, added to the input."""

    def _rows(self) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        """input (B, T, d_model), or (T, B, d_model) without `batch_first`, plus the rows from
        `offset` on: so many tokens came before"""
        name, axis = type(self).__name__, -2 if self.batch_first or input.ndim == 2 else -3
        if input.ndim < 2 or input.shape[-1] != self.d_model:
            raise ValueError(
                f"{name}: input has shape {input.shape}; expected (..., T, {self.d_model})"
            )
        time = input.shape[axis]
        if not 0 <= offset <= self.max_len - time:
            raise ValueError(
                f"{name}: positions {offset} to {offset + time - 1} are asked for; there are 0 to "
                f"{self.max_len - 1} (max_len {self.max_len})"
            )
        rows = self._rows()[offset : offset + time]
        return F.dropout(input + (rows if axis == -2 else unsqueeze(rows, 1)), self.dropout,
                         self.training)  # fmt: skip

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, max_len={self.max_len}, dropout={self.dropout}"


class SinusoidalPositionalEncoding(_Added):
    """Adds waves of the position: sin(p / base^(2 i / d)) in column 2 i, the cosine in 2 i + 1

    Vaswani et al., Attention Is All You Need, 2017. Nothing is trained or saved.

    Parameters: `d_model`, columns; `max_len`, positions; `dropout` of the sum; `batch_first`;
    `base`, 10000 in the paper.
    """

    def __init__(
        self, d_model: int, max_len: int = 5000, dropout: float = 0.0, batch_first: bool = True,
        base: float = 10000.0, device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        _check_size("SinusoidalPositionalEncoding", d_model=d_model, max_len=max_len)
        self.d_model, self.max_len, self.dropout = d_model, max_len, dropout
        self.batch_first = batch_first
        angles = np.arange(max_len)[:, None] * base ** (-np.arange(0, d_model, 2) / d_model)
        waves = np.empty((max_len, d_model))
        waves[:, 0::2], waves[:, 1::2] = np.sin(angles), np.cos(angles)[:, : d_model // 2]
        waves = waves.astype(as_dtype(dtype or float32))
        self.register_buffer("pe", wrap(to_device(waves, as_device(device))), persistent=False)

    def _rows(self) -> Tensor:
        return self.pe


class LearnedPositionalEncoding(_Added):
    """Adds a learned row for each position

    Parameters: as of `SinusoidalPositionalEncoding`.

    Attributes
    ----------
    weight : (max_len, d_model), normal with standard deviation 0.02 at first, as in GPT-2
    """

    def __init__(
        self, d_model: int, max_len: int = 1024, dropout: float = 0.0, batch_first: bool = True,
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        _check_size("LearnedPositionalEncoding", d_model=d_model, max_len=max_len)
        self.d_model, self.max_len, self.dropout = d_model, max_len, dropout
        self.batch_first = batch_first
        self.weight = Parameter(empty(max_len, d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new rows from gpunn's generator."""
        init.normal_(self.weight, 0.0, 0.02)

    def _rows(self) -> Tensor:
        return self.weight


class RotaryEmbedding(Module):
    """Turns pairs of columns of queries and keys by an angle that grows with the position

    So their products depend on the distance of the two alone. Su et al., RoFormer: Enhanced
    Transformer with Rotary Position Embedding, 2021. Nothing is trained or saved; the tables are
    made where and as long as they are needed, in float32 (float64 for float64 inputs).

    Parameters
    ----------
    dim : columns that are turned, an even number; later columns of an input stay
    base : the angle of pair k at position p is p base^(-2 k / dim)
    scaling : positions are divided by it, to stretch a model over longer texts than it was trained
        on (Chen et al., Extending Context Window of Large Language Models via Positional
        Interpolation, 2023)
    interleaved : pairs are the columns (2 k, 2 k + 1) as in the paper, else (k, dim / 2 + k) as in
        GPT-NeoX and Llama's weights for the transformers library
    seq_dim : the dimension of time: -2 for (B, H, T, D), 1 for (B, T, H, D)
    """

    def __init__(
        self, dim: int, base: float = 10000.0, scaling: float = 1.0, interleaved: bool = False,
        seq_dim: int = -2,
    ):  # fmt: skip
        super().__init__()
        _check_size("RotaryEmbedding", dim=dim)
        if dim % 2 or not base > 0 or not scaling > 0:
            raise ValueError(
                f"RotaryEmbedding: dim is {dim}, base {base}, scaling {scaling}; expected an even "
                "dim and positive numbers"
            )
        self.dim, self.base, self.scaling = dim, base, scaling
        self.interleaved, self.seq_dim = interleaved, seq_dim
        self._tables: dict[Any, Any] = {}  # by device and dtype: buffers would be rounded by .to()

    def tables(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) for positions below `length` or more, on the device of `like`."""
        key = (like.device, accumulator_dtype(like.dtype))
        found = self._tables.get(key)
        if found is None or found[0].shape[0] < length:
            length = 1 << max(8, length - 1).bit_length()  # so that growing stays rare
            made = tables(length, self.dim // 2, key[1], self.base, self.scaling)
            with tracing.made_once():
                found = tuple(wrap(to_device(table, like.device)) for table in made)
            self._tables[key] = found
        return found

    def forward(self, input: Tensor, offset: int = 0, positions: Tensor | None = None) -> Tensor:
        """The turned input, of its shape; `offset` tokens came before, in a cache

        `positions`, integers (T,) or (B, T), stand for other positions than 0, 1, 2 …: their
        largest is read back from a GPU.
        """
        length = input.shape[self.seq_dim]
        if positions is not None and positions.numel():
            length = int(positions.max()) + 1
        cos, sin = self.tables(offset + length, input)
        return F.rotary_embedding(
            input, cos, sin, positions, offset=offset, seq_dim=self.seq_dim,
            interleaved=self.interleaved,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, base={self.base}, scaling={self.scaling}, "
            f"interleaved={self.interleaved}, seq_dim={self.seq_dim}"
        )
