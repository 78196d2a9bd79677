"""Scaled dot-product attention over its kernels, which never hold all scores.

The kernels take (B, T, H, D). A user's (B, H, T, D) is seen through a view, so nothing is copied
where the heads came from a projection (B, T, H D), and the result is a view on (B, T, H, D) that
the next projection takes without a copy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.autograd import random
from gpunn.autograd.autocast import lowered
from gpunn.autograd.dtypes import is_float
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor
from gpunn.primitives.attention import attention_backward, attention_forward


def _heads_inside(array):
    """(B, H, T, D) seen as (B, T, H, D), or the reverse; the same memory."""
    return array.transpose(0, 2, 1, 3)


class Attention(Function):
    """softmax(scale q k^T + mask) v of (B, H, T, D) queries, keys and values"""

    def forward(self, query, key, value, options):
        self.options = options
        views = map(_heads_inside, (query, key, value))
        out, normalizer = attention_forward(*views, **options, keep=any(self.needs))
        out = _heads_inside(out)
        if normalizer is not None:
            self.save(query, key, value, out, normalizer)
        return out

    def backward(self, grad):
        query, key, value, out, normalizer = self.saved
        views = map(_heads_inside, (grad, query, key, value, out))
        grads = attention_backward(*views, normalizer, **self.options)
        return tuple(map(_heads_inside, grads))


class PackedAttention(Function):
    """The same of queries, keys and values in one (B, T, 3, H, D): their gradients come as one"""

    def forward(self, packed, options):
        self.options = options
        out, normalizer = attention_forward(*_unpack(packed), **options, keep=any(self.needs))
        if normalizer is not None:
            self.save(packed, out, normalizer)
        return out

    def backward(self, grad):
        packed, out, normalizer = self.saved
        made = array_xp(packed).empty(packed.shape, packed.dtype)
        grad_q, grad_k, grad_v = _unpack(made)
        attention_backward(
            grad, *_unpack(packed), out, normalizer, **self.options,
            grad_q=grad_q, grad_k=grad_k, grad_v=grad_v,
        )  # fmt: skip
        return made


def _unpack(packed):
    return packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]


# ---- public functions ----------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_offset: Any = 0,
    window: int | None = None,
    q_lengths: Tensor | None = None,
    kv_lengths: Tensor | None = None,
) -> Tensor:
    """``softmax(scale query key^T + mask) value`` for every head, as in PyTorch.

    Parameters
    ----------
    query : (..., H, Tq, D) with D <= 256; also (Tq, D) or (H, Tq, D)
    key, value : (..., Hkv, Tk, D), of the same dtype and leading sizes. Hkv is H, or with
        `enable_gqa` a divisor of it: query head h looks at head h // (H / Hkv).
    attn_mask : boolean (True: may be seen) or floating of query's dtype (added to the scores); of a
        shape that broadcasts to (..., H, Tq, Tk). It gets no gradient.
    dropout_p : probability of dropping a weight; pass 0 in evaluation. Drawn from gpunn's generator
        (`manual_seed`): one seed gives one mask on every device.
    is_causal : query i sees the keys j <= i + causal_offset. Unlike in PyTorch a mask may be given,
        too.
    scale : None for 1 / sqrt(D)
    causal_offset : an int, or an integer Tensor (B,). 0 is PyTorch's ``is_causal``; Tk - Tq is for
        queries that are the last of the keys (decoding with a cache).
    window : with is_causal, how many keys a query sees at most
    q_lengths, kv_lengths : integer Tensors (B,): keys from kv_lengths[b] on are not seen, queries
        from q_lengths[b] on give 0

    A query that sees no key gives 0 and has gradient 0. Returns (..., H, Tq, D).

    Raises ValueError or TypeError for shapes, dtypes or devices that do not suit each other, for
    heads that differ without `enable_gqa`, and for a mask that requires a gradient.
    """
    name = "scaled_dot_product_attention"
    given = [t for t in (query, key, value) if isinstance(t, Tensor)]
    if len(given) < 3:
        raise TypeError(f"{name}: query, key and value must be Tensors")
    if state.low is not None:
        query, key, value, attn_mask = lowered(query, key, value, attn_mask)
        given = [query, key, value]
    if any(t.ndim < 2 or t.ndim != query.ndim for t in given):
        shapes = ", ".join(str(t.shape) for t in given)
        raise ValueError(
            f"{name}: query, key and value have shapes {shapes}; expected (..., heads, T, D), all "
            "with as many dimensions"
        )
    heads, kv_heads = (t.shape[-3] if t.ndim > 2 else 1 for t in (query, key))
    if heads != kv_heads and not enable_gqa:
        raise ValueError(
            f"{name}: query has {heads} heads and key {kv_heads}; pass enable_gqa=True where "
            "several query heads share a head of keys"
        )
    check_devices(name, *given)
    options = _options(
        name, query, attn_mask, dropout_p, is_causal, scale, causal_offset, window, q_lengths,
        kv_lengths,
    )  # fmt: skip
    shape = query.shape
    if query.ndim == 4:
        return Attention.apply(query, key, value, options)
    options["mask"] = _flat_mask(options["mask"], shape, key.shape[-2])
    flat = [_four_dimensions(t) for t in (query, key, value)]
    return reshape(Attention.apply(*flat, options), shape)


def packed_attention(
    qkv: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    causal_offset: Any = 0,
    window: int | None = None,
    kv_lengths: Tensor | None = None,
) -> Tensor:
    """Self-attention of what one projection made: ``qkv`` is (B, T, 3, H, D), returns (B, T, H, D).

    The same as `scaled_dot_product_attention` of the three parts, but their gradients are written
    into one array, which the projection's backward takes as it is. Options are those of that
    function; a sequence's kv_lengths are also the lengths of its queries.
    """
    name = "packed_attention"
    if not isinstance(qkv, Tensor):
        raise TypeError(f"{name}: qkv is {type(qkv).__name__}; expected a Tensor")
    if state.low is not None:
        qkv, attn_mask = lowered(qkv, attn_mask)
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"{name}: qkv has shape {qkv.shape}; expected (B, T, 3, H, D)")
    options = _options(
        name, qkv, attn_mask, dropout_p, is_causal, scale, causal_offset, window, kv_lengths,
        kv_lengths,
    )  # fmt: skip
    return PackedAttention.apply(qkv, options)


def _options(
    name, query, mask, dropout_p, is_causal, scale, causal_offset, window, q_lengths, kv_lengths
) -> dict[str, Any]:
    """The keyword arguments of the primitive."""
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(
            f"{name}: dropout_p is {dropout_p}; expected a probability from 0 to 1"
        )
    arrays = {
        "mask": mask, "causal_offset": causal_offset, "q_lengths": q_lengths,
        "kv_lengths": kv_lengths,
    }  # fmt: skip
    for key, value in arrays.items():
        if isinstance(value, Tensor):
            check_devices(name, query, value)
            if value.requires_grad:
                raise ValueError(
                    f"{name}: attn_mask requires a gradient, which these kernels do not make. Pass "
                    "attn_mask.detach(), or write the attention with matmul and softmax."
                )
            arrays[key] = value._array
        elif value is not None and not isinstance(value, (int, np.integer)):
            wanted = "an int or a Tensor" if key == "causal_offset" else "a Tensor"
            raise TypeError(f"{name}: {key} is {type(value).__name__}; expected {wanted}")
    mask = arrays["mask"]
    if mask is not None and mask.dtype != np.bool_ and not is_float(mask.dtype):
        raise TypeError(
            f"{name}: attn_mask has dtype {mask.dtype}; expected bool (True: may be seen) or "
            f"{query.dtype} (added to the scores)"
        )
    draw = random.default_generator.draw(query.device)._asdict() if dropout_p else {}
    return {
        **arrays, "causal": bool(is_causal), "window": window, "scale": scale,
        "dropout_p": dropout_p, **draw,
    }  # fmt: skip


def _four_dimensions(x: Tensor) -> Tensor:
    """(T, D), (H, T, D) or (N, M, …, H, T, D) as (B, H, T, D)."""
    heads = x.shape[-3] if x.ndim > 2 else 1
    return reshape(x, math.prod(x.shape[:-3]), heads, *x.shape[-2:])


def _flat_mask(mask, shape, keys: int):
    """A mask for the shape (..., H, Tq, D) of queries as one for (B, H, Tq, Tk)."""
    if mask is None or mask.ndim <= min(3, len(shape)):
        return mask
    full = (*shape[:-1], keys)
    leading = mask.shape[:-3]
    if all(size == 1 for size in leading):
        return mask.reshape(1, *mask.shape[-3:])
    repeated = array_xp(mask).broadcast_to(mask, (*full[:-3], *mask.shape[-3:]))
    return repeated.reshape(math.prod(full[:-3]), *mask.shape[-3:])
