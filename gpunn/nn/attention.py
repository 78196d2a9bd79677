"""Multi-head attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DeviceLike, DTypeLike
from gpunn.autograd.creation import empty
from gpunn.autograd.dtypes import is_float
from gpunn.autograd.functions.activation import dropout as drop
from gpunn.autograd.functions.activation import softmax
from gpunn.autograd.functions.arithmetic import where
from gpunn.autograd.functions.attention import packed_attention, scaled_dot_product_attention
from gpunn.autograd.functions.linalg import linear, matmul
from gpunn.autograd.functions.shape import split
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.nn import init
from gpunn.nn.key_value_cache import KeyValueCache
from gpunn.nn.linear import Linear
from gpunn.nn.module import Module
from gpunn.nn.parameter import Parameter


class MultiheadAttention(Module):
    """Attention in `num_heads` parts of the features, as `torch.nn.MultiheadAttention`.

    ``softmax(Q_h K_h^T / sqrt(d)) V_h`` for each head h with Q, K, V linear in query, key, value;
    the heads' results are joined and go through one more linear layer. Source: Vaswani et al.,
    Attention is all you need, 2017; grouped queries: Ainslie et al., GQA, 2023.

    Parameters
    ----------
    embed_dim, num_heads : features, and parts of them: embed_dim must be a multiple of num_heads
    dropout : probability that a weight of the attention is dropped in training
    bias : whether the linear layers have one
    kdim, vdim : features of key and value where they differ from embed_dim
    batch_first : tensors are (B, T, features) instead of (T, B, features)
    num_kv_heads : heads of keys and values, each shared by num_heads / num_kv_heads query heads
        (beyond PyTorch; default num_heads)

    Attributes
    ----------
    in_proj_weight : ((num_heads + 2 num_kv_heads) head_dim, embed_dim), those of Q, K and V under
        each other; with kdim or vdim instead `q_proj_weight`, `k_proj_weight`, `v_proj_weight`
    in_proj_bias : its rows, or None
    out_proj : Linear(embed_dim, embed_dim)
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True,
        add_bias_kv: bool = False, add_zero_attn: bool = False, kdim: int | None = None,
        vdim: int | None = None, batch_first: bool = False, device: DeviceLike = None,
        dtype: DTypeLike = None, *, num_kv_heads: int | None = None,
    ):  # fmt: skip
        super().__init__()
        groups = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim {embed_dim} is not a multiple of num_heads "
                f"{num_heads}"
            )
        if groups < 1 or num_heads % groups:
            raise ValueError(
                f"MultiheadAttention: num_heads {num_heads} is not a multiple of num_kv_heads "
                f"{groups}"
            )
        if add_bias_kv or add_zero_attn:
            raise NotImplementedError(
                "MultiheadAttention: add_bias_kv and add_zero_attn are not offered; append the row "
                "to key and value before the call"
            )
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"MultiheadAttention: dropout is {dropout}; expected 0 to 1")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, groups
        self.head_dim, self.dropout, self.batch_first = embed_dim // num_heads, dropout, batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = groups * self.head_dim
        self._sizes = [embed_dim, inner, inner]
        if self._one_weight:
            self.in_proj_weight = Parameter(empty(embed_dim + 2 * inner, embed_dim, **place))
        else:
            self.q_proj_weight = Parameter(empty(embed_dim, embed_dim, **place))
            self.k_proj_weight = Parameter(empty(inner, self.kdim, **place))
            self.v_proj_weight = Parameter(empty(inner, self.vdim, **place))
        rows = Parameter(empty(embed_dim + 2 * inner, **place)) if bias else None
        self.register_parameter("in_proj_bias", rows)
        self.out_proj = Linear(embed_dim, embed_dim, bias, **place)
        self.reset_parameters()

    @property
    def _one_weight(self) -> bool:
        return self.kdim == self.embed_dim and self.vdim == self.embed_dim

    def reset_parameters(self) -> None:
        """Draw new values as PyTorch does: Glorot's for the weights, zero biases."""
        for name, parameter in self._parameters.items():
            if name.endswith("weight"):
                init.xavier_uniform_(parameter)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None,
        key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False, *, cache: KeyValueCache | None = None,
    ) -> Any:  # fmt: skip
        """Attend from `query` to `key` and `value` (default: to itself).

        Parameters
        ----------
        query : (T, B, embed_dim), or (B, T, embed_dim) with batch_first, or (T, embed_dim)
        key, value : (S, B, kdim), (S, B, vdim), or as above
        key_padding_mask : (B, S) bool, True for keys to be left out; or floats added to the scores
        attn_mask : (T, S) or (B num_heads, T, S), bool (True: must not look) or added floats
        need_weights : also return the weights (B, T, S), the mean of the heads, or
            (B, num_heads, T, S) without `average_attn_weights`. They have to be made in full for
            it: say False (the second result is then None) and long sequences take little memory.
        is_causal : position i sees none behind i; stands for the mask, which then may be left out
        cache : keys and values of earlier positions; `query` are the next ones (self-attention)

        Returns (output in the form of `query`, weights or None).
        """
        key = query if key is None else key
        value = key if value is None else value
        query, key, value, alone = self._batched(query, key, value)
        before = 0 if cache is None else cache.length
        keys = before + key.shape[1]
        mask = self._mask(attn_mask, key_padding_mask, query, keys)
        causal = is_causal and attn_mask is None
        dropout, weights = self.dropout if self.training else 0.0, None
        if self._one_weight and key is query and value is query and not need_weights:
            packed = linear(query, self.in_proj_weight, self.in_proj_bias)
            out = attend_packed(
                packed, self.num_heads, self.num_kv_heads, mask, dropout, causal, cache
            )
        else:
            q, k, v = self._project(query, key, value)
            if cache is not None:
                k, v = cache.append(k, v)
            if need_weights:
                out, weights = self._with_weights(q, k, v, mask, causal, before)
                weights = weights.mean(1) if average_attn_weights else weights
            else:
                out = _attend(q, k, v, mask, dropout, causal, before)
            out = out.flatten(2)
        out = self.out_proj(out)
        if alone:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batched(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        """The three as (B, T, features), and whether there was no batch; all sizes checked."""
        if query.ndim not in (2, 3) or key.ndim != query.ndim or value.ndim != query.ndim:
            raise ValueError(
                f"MultiheadAttention: query has shape {query.shape}, key {key.shape} and value "
                f"{value.shape}; expected 3 dimensions each, or 2 without a batch"
            )
        wanted = (self.embed_dim, self.kdim, self.vdim)
        for name, tensor, size in zip(("query", "key", "value"), (query, key, value), wanted,
                                      strict=True):  # fmt: skip
            if tensor.shape[-1] != size:
                raise ValueError(
                    f"MultiheadAttention: {name} has shape {tensor.shape}; its last size should "
                    f"be {size}"
                )
        alone, same = query.ndim == 2, (key is query, value is key)
        if alone:
            first = query[None]
        else:
            first = query if self.batch_first else query.transpose(0, 1)
        second = first if same[0] else self._first(key, alone)
        third = second if same[1] else self._first(value, alone)
        if second.shape[:2] != third.shape[:2] or second.shape[0] != first.shape[0]:
            raise ValueError(
                f"MultiheadAttention: query has shape {query.shape}, key {key.shape} and value "
                f"{value.shape}; batch sizes, and the lengths of key and value, must be equal"
            )
        return first, second, third, alone

    def _first(self, tensor: Tensor, alone: bool) -> Tensor:
        if alone:
            return tensor[None]
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        """Q (B, T, num_heads, head_dim), K and V (B, S, num_kv_heads, head_dim)."""
        bias = self.in_proj_bias
        if self._one_weight and key is query and value is query:
            parts = list(split(linear(query, self.in_proj_weight, bias), self._sizes, -1))
        else:
            if self._one_weight:
                weights: Any = split(self.in_proj_weight, self._sizes, 0)
            else:
                weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None,) * 3 if bias is None else split(bias, self._sizes, 0)
            inputs = zip((query, key, value), weights, biases, strict=True)
            parts = [linear(x, w, b) for x, w, b in inputs]
        return [part.reshape(*part.shape[:2], -1, self.head_dim) for part in parts]

    def _mask(self, attn_mask: Any, key_padding_mask: Any, query: Tensor, keys: int) -> Any:
        """Both masks as one for `scaled_dot_product_attention`: True may look, or floats added."""
        (batch, queries), heads = query.shape[:2], self.num_heads
        found = []
        if attn_mask is not None:
            if attn_mask.shape == (batch * heads, queries, keys):
                mask = attn_mask.reshape(batch, heads, queries, keys)
            elif attn_mask.shape == (queries, keys):
                mask = attn_mask
            else:
                raise ValueError(
                    f"MultiheadAttention: attn_mask has shape {attn_mask.shape}; expected "
                    f"({queries}, {keys}) or ({batch * heads}, {queries}, {keys})"
                )
            found.append(mask)
        if key_padding_mask is not None:
            mask = key_padding_mask[None] if key_padding_mask.ndim == 1 else key_padding_mask
            if mask.shape != (batch, keys):
                raise ValueError(
                    f"MultiheadAttention: key_padding_mask has shape {key_padding_mask.shape}; "
                    f"expected ({batch}, {keys})"
                )
            found.append(mask.reshape(batch, 1, 1, keys))
        found = [_may_look(mask, query.dtype) for mask in found]
        if len(found) < 2:
            return found[0] if found else None
        if all(mask.dtype == np.bool_ for mask in found):
            return found[0] & found[1]
        first, second = (_added(mask, query.dtype) for mask in found)
        return first + second

    def _with_weights(self, q: Any, k: Any, v: Any, mask: Any, causal: bool, before: int) -> Any:
        """The same in the open: all weights are made, and returned beside the output."""
        group = self.num_heads // self.num_kv_heads
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        if group > 1:
            k, v = (_repeated(tensor, group) for tensor in (k, v))
        scores = matmul(q * (1 / math.sqrt(self.head_dim)), k.transpose(-1, -2))
        if causal:
            xp, (rows, columns) = scores._xp, scores.shape[-2:]
            seen = xp.arange(columns)[None, :] <= xp.arange(rows)[:, None] + before
            scores = where(wrap(seen), scores, -math.inf)
        if mask is None:
            weights = softmax(scores, -1)
        else:
            scores = where(mask, scores, -math.inf) if mask.dtype == np.bool_ else scores + mask
            nowhere = scores.detach().amax(-1, keepdim=True) == -math.inf  # gets 0, not NaN
            weights = where(nowhere, 0.0, softmax(where(nowhere, 0.0, scores), -1))
        weights = drop(weights, self.dropout, self.training)
        return matmul(weights, v).transpose(1, 2), weights

    def extra_repr(self) -> str:
        same = self.num_kv_heads == self.num_heads
        shared = "" if same else f"num_kv_heads={self.num_kv_heads}, "
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, {shared}"
            f"dropout={self.dropout}, batch_first={self.batch_first}"
        )


def attend_packed(
    packed: Tensor, num_heads: int, num_kv_heads: int | None = None, mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, cache: KeyValueCache | None = None,
) -> Tensor:  # fmt: skip
    """Self-attention of what one projection made: (B, T, (num_heads + 2 num_kv_heads) D).

    With `cache` the positions are those behind the cached ones, and see these, too. `mask` as of
    `scaled_dot_product_attention`. Returns (B, T, num_heads D).
    """
    batch, steps, size = packed.shape
    groups = num_heads if num_kv_heads is None else num_kv_heads
    width = size // (num_heads + 2 * groups)
    if groups == num_heads and cache is None:
        qkv = packed.reshape(batch, steps, 3, num_heads, width)
        return packed_attention(qkv, mask, dropout_p, is_causal).flatten(2)
    parts = split(packed, [num_heads * width, groups * width, groups * width], -1)
    q, k, v = (part.reshape(batch, steps, -1, width) for part in parts)
    before = 0
    if cache is not None:
        before = cache.length
        k, v = cache.append(k, v)
    return _attend(q, k, v, mask, dropout_p, is_causal, before).flatten(2)


def _attend(
    q: Any, k: Any, v: Any, mask: Any, dropout_p: float, causal: bool, before: int
) -> Tensor:
    """Of (B, T, heads, D), whose first query stands at position `before`."""
    return scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, dropout_p, causal,
        enable_gqa=q.shape[2] != k.shape[2], causal_offset=before if causal else 0,
    ).transpose(1, 2)  # fmt: skip


def _may_look(mask: Tensor, dtype: DTypeLike) -> Tensor:
    """A mask as PyTorch's layers take it (True: must not look) turned round; numbers as `dtype`."""
    if mask.dtype == np.bool_:
        return ~mask
    if not is_float(mask.dtype):
        raise TypeError(
            f"MultiheadAttention: a mask has dtype {mask.dtype}; expected bool (True: must not "
            "look) or a floating one (added to the scores)"
        )
    return mask if mask.dtype == dtype else mask.to(dtype)


def _added(mask: Tensor, dtype: DTypeLike) -> Tensor:
    """A mask of what may be seen as numbers to add: 0 or -inf."""
    return where(mask, 0.0, -math.inf).to(dtype) if mask.dtype == np.bool_ else mask


def _repeated(tensor: Tensor, group: int) -> Tensor:
    """(B, Hkv, T, D) -> (B, Hkv group, T, D): each head `group` times in a row."""
    batch, heads, steps, size = tensor.shape
    wide = tensor.unsqueeze(2).expand(batch, heads, group, steps, size)
    return wide.reshape(batch, heads * group, steps, size)


