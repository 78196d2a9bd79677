"""The Transformer's layers and stacks, with PyTorch's names and parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.functions.linalg import linear
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.nn import init
from gpunn.nn.attention import MultiheadAttention
from gpunn.nn.containers import ModuleList
from gpunn.nn.dropout import Dropout
from gpunn.nn.key_value_cache import KeyValueCache
from gpunn.nn.linear import Linear
from gpunn.nn.module import Module
from gpunn.nn.normalization import LayerNorm
from gpunn.primitives.activation import ACTIVATIONS


class _Layer(Module):
    """What encoder and decoder layers share: the two linear layers and where the norms stand."""

    def _feed_forward_parts(
        self,
        d_model: Any,
        dim_feedforward: Any,
        dropout: float,
        activation: str | Callable[..., Any],
        bias: bool,
        place: Any,
    ) -> None:
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: activation {activation!r} is not known; expected one of "
                f"{', '.join(ACTIVATIONS)}, or a function"
            )
        self.linear1 = Linear(d_model, dim_feedforward, bias, **place)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **place)
        self.activation = activation

    def _feed_forward(self, x: Tensor) -> Tensor:
        first = self.linear1
        if isinstance(self.activation, str):  # within the product's kernel
            x = linear(x, first.weight, first.bias, self.activation)
        else:
            x = self.activation(first(x))
        return self.linear2(self.dropout(x))

    def _through(self, x: Tensor, *parts: tuple[LayerNorm, Callable[[Tensor], Tensor]]) -> Tensor:
        """For each (norm, part): x + part(norm(x)), or norm(x + part(x)) as in the first paper.

        A sum that is normalised next is made by the norm's kernel.
        """
        if not self.norm_first:
            for norm, part in parts:
                x, _ = norm(part(x), residual=x)
            return x
        first, part = parts[0]
        found = part(first(x))
        for norm, part in parts[1:]:
            normal, x = norm(found, residual=x)
            found = part(normal)
        return x + found


class TransformerEncoderLayer(_Layer):
    """Self-attention and a small network for each position, each with residual and layer norm.

    ``norm_first=False`` (Vaswani et al., 2017): x = norm(x + f(x)); True: x = x + f(norm(x)), which
    trains deep stacks without warm-up (Xiong et al., On layer normalization, 2020).

    Parameters: as of `torch.nn.TransformerEncoderLayer`; `activation` is the name of one of
    `gpunn.kernels.ACTIVATIONS`, which runs within the product's kernel, or a function.
    Input and output (T, B, d_model), or (B, T, d_model) with `batch_first`.
    """

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Callable[..., Any] = "relu", layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True,
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm_first = norm_first
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, **place
        )
        self._feed_forward_parts(d_model, dim_feedforward, dropout, activation, bias, place)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def forward(
        self, src: Tensor, src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, is_causal: bool = False,
        *, cache: KeyValueCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Masks as of `MultiheadAttention`; with `cache`, `src` are the next positions alone."""

        def attend(x: Tensor) -> Tensor:
            out, _ = self.self_attn(
                x, key_padding_mask=src_key_padding_mask, need_weights=False, attn_mask=src_mask,
                is_causal=is_causal, cache=cache,
            )  # fmt: skip
            return self.dropout1(out)

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout2(self._feed_forward(x))

        return self._through(src, (self.norm1, attend), (self.norm2, feed_forward))


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to the encoder's output, and a small network for each position.

    Parameters and norms as of `TransformerEncoderLayer`; names as of
    `torch.nn.TransformerDecoderLayer`.
    """

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Callable[..., Any] = "relu", layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True,
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm_first = norm_first
        attention = {"bias": bias, "batch_first": batch_first, **place}
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, **attention)
        self.multihead_attn = MultiheadAttention(d_model, nhead, dropout, **attention)
        self._feed_forward_parts(d_model, dim_feedforward, dropout, activation, bias, place)
        for number in (1, 2, 3):
            norm = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
            setattr(self, f"norm{number}", norm)
            setattr(self, f"dropout{number}", Dropout(dropout))

    def forward(
        self, tgt: Tensor, memory: Tensor, tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, tgt_is_causal: bool = False,
        memory_is_causal: bool = False, *, cache: KeyValueCache | None = None,
    ) -> Tensor:  # fmt: skip
        """`tgt` attends to itself and to `memory`, the encoder's output."""

        def attend(x: Tensor) -> Tensor:
            out, _ = self.self_attn(
                x, key_padding_mask=tgt_key_padding_mask, need_weights=False, attn_mask=tgt_mask,
                is_causal=tgt_is_causal, cache=cache,
            )  # fmt: skip
            return self.dropout1(out)

        def look_across(x: Tensor) -> Tensor:
            out, _ = self.multihead_attn(
                x, memory, memory, key_padding_mask=memory_key_padding_mask, need_weights=False,
                attn_mask=memory_mask, is_causal=memory_is_causal,
            )  # fmt: skip
            return self.dropout2(out)

        def feed_forward(x: Tensor) -> Tensor:
            return self.dropout3(self._feed_forward(x))

        parts = (self.norm1, attend), (self.norm2, look_across), (self.norm3, feed_forward)
        return self._through(tgt, *parts)


class TransformerEncoder(Module):
    """`num_layers` copies of an encoder layer, one after the other, and a norm at the end."""

    def __init__(
        self, encoder_layer: TransformerEncoderLayer, num_layers: int, norm: Module | None = None
    ):
        super().__init__()
        self.layers = _copies(encoder_layer, num_layers)
        self.num_layers, self.norm = num_layers, norm

    def forward(
        self, src: Tensor, mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, is_causal: bool = False,
        *, caches: list[KeyValueCache] | None = None,
    ) -> Tensor:  # fmt: skip
        """`caches` holds one `KeyValueCache` for each layer."""
        for number, layer in enumerate(self.layers):
            cache = None if caches is None else caches[number]
            src = layer(src, mask, src_key_padding_mask, is_causal, cache=cache)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(Module):
    """`num_layers` copies of a decoder layer, one after the other, and a norm at the end."""

    def __init__(
        self, decoder_layer: TransformerDecoderLayer, num_layers: int, norm: Module | None = None
    ):
        super().__init__()
        self.layers = _copies(decoder_layer, num_layers)
        self.num_layers, self.norm = num_layers, norm

    def forward(
        self, tgt: Tensor, memory: Tensor, tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, tgt_is_causal: bool = False,
        memory_is_causal: bool = False, *, caches: list[KeyValueCache] | None = None,
    ) -> Tensor:  # fmt: skip
        """`caches` holds one `KeyValueCache` for each layer."""
        for number, layer in enumerate(self.layers):
            tgt = layer(
                tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
                tgt_is_causal, memory_is_causal, cache=None if caches is None else caches[number],
            )  # fmt: skip
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """Encoder and decoder, as `torch.nn.Transformer`. Source: Vaswani et al., 2017.

    Input `src` (S, B, d_model) and `tgt` (T, B, d_model), or (B, …) with `batch_first`;
    output as `tgt`.
    """

    def __init__(
        self, d_model: int = 512, nhead: int = 8, num_encoder_layers: int = 6,
        num_decoder_layers: int = 6, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Callable[..., Any] = "relu", custom_encoder: Module | None = None,
        custom_decoder: Module | None = None, layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True,
        device: DeviceLike = None, dtype: DTypeLike = None,
    ):  # fmt: skip
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps,
                   batch_first, norm_first, bias)  # fmt: skip

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, **place)

        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(*options, **place), num_encoder_layers, norm()
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(*options, **place), num_decoder_layers, norm()
        )
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        for parameter in self.parameters():
            if parameter.ndim > 1:
                init.xavier_uniform_(parameter)

    def forward(
        self, src: Tensor, tgt: Tensor, src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None, memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, src_is_causal: bool = False,
        tgt_is_causal: bool = False, memory_is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Masks as of `MultiheadAttention`."""
        for name, tensor in (("src", src), ("tgt", tgt)):
            if tensor.shape[-1] != self.d_model:
                raise ValueError(
                    f"Transformer: {name} has shape {tensor.shape}; its last size should be "
                    f"d_model, {self.d_model}"
                )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        return self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal, memory_is_causal,
        )  # fmt: skip

    @staticmethod
    def generate_square_subsequent_mask(
        sz: int, device: DeviceLike = None, dtype: DTypeLike = np.float32
    ) -> Tensor:
        """(sz, sz): 0 on and below the diagonal, -inf above. `is_causal=True` needs no mask."""
        mask = np.triu(np.full((sz, sz), -math.inf, dtype), 1)
        return wrap(mask) if device is None else wrap(mask).to(device)


def _copies(layer: Module, count: int) -> ModuleList:
    if count < 1:
        raise ValueError(f"{type(layer).__name__}: num_layers is {count}; expected 1 or more")
    return ModuleList([copy.deepcopy(layer) for _ in range(count)])
