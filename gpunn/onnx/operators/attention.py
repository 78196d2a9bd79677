"""Attention and rotary positions."""

from __future__ import annotations

import math

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd.functions import arithmetic
from gpunn.autograd.functions.padding import pad_dimensions
from gpunn.autograd.functions.shape import permute, reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.common import as_dtype
from gpunn.onnx.operators.registry import Node, operator


def _heads(x: Tensor, count: int | None) -> Tensor:
    """(B, T, H D) as (B, H, T, D)."""
    if x.ndim == 4:
        return x
    b, t, width = x.shape
    return permute(reshape(x, b, t, count, width // count), 0, 2, 1, 3)


def _visible(scores_shape, causal: bool, left: int, right: int, offset, lengths, xp):
    """Where a query may see a key by its place: an array that broadcasts to the scores, or None."""
    *_, queries, keys = scores_shape
    place = xp.arange(queries).reshape(1, 1, -1, 1) + offset
    key = xp.arange(keys).reshape(1, 1, 1, -1)
    rules = []
    if causal:
        rules.append(key <= place)
    if left >= 0:
        rules.append(key >= place - left)
    if right >= 0:
        rules.append(key <= place + right)
    if lengths is not None:
        rules.append(key < lengths.reshape(-1, 1, 1, 1))
    if not rules:
        return None
    found = rules[0]
    for rule in rules[1:]:
        found = found & rule
    return found


def _bias(mask: Tensor | None, visible, dtype, keys: int, xp):
    """All masks as one number to add to each score, or None."""
    if mask is not None and mask.shape[-1] < keys:
        pairs = [(0, 0)] * (mask.ndim - 1) + [(0, keys - mask.shape[-1])]
        value = False if mask.dtype == np.bool_ else -math.inf
        mask = wrap(xp.pad(mask._array, pairs, mode="constant", constant_values=value))
    total = None
    if mask is not None:
        total = mask._array
        if total.dtype == np.bool_:
            total = xp.where(total, 0.0, -math.inf).astype(np.float32)
        total = total.astype(np.float32) if dtype.itemsize < 8 else total.astype(dtype)
    if visible is not None:
        kind = np.float32 if total is None else total.dtype
        extra = xp.where(visible, 0.0, -math.inf).astype(kind)
        total = extra if total is None else total + extra
    return total


@operator("Attention", 23, frozen=(3, 4, 5, 6))
def attention(node: Node):
    causal, scale = node.flag("is_causal"), node.float("scale")
    heads, kv_heads = node.int("q_num_heads"), node.int("kv_num_heads")
    softcap, shown = node.float("softcap", 0.0), node.int("qk_matmul_output_mode", 0)
    precision = node.dtype("softmax_precision")
    left, right = node.int("left_window_size", -1), node.int("right_window_size", -1)
    wants_scores = node.wants(3)

    def run(q, k, v, mask=None, past_k=None, past_v=None, lengths=None):
        flat = q.ndim == 3
        q, k, v = _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)
        if past_k is not None:
            k, v = gpunn.cat([past_k, k], 2), gpunn.cat([past_v, v], 2)
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        xp, offset = q._xp, 0
        if past_k is not None:
            offset = past_k.shape[2]
        elif lengths is not None:
            offset = (lengths._array.reshape(-1, 1, 1, 1) - q.shape[2]).astype(np.int64)
        seen = None if lengths is None else lengths._array
        visible = _visible((q.shape[2], k.shape[2]), causal, left, right, offset, seen, xp)
        learned = mask if mask is not None and mask.requires_grad else None
        bias = _bias(None if learned is not None else mask, visible, q.dtype, k.shape[2], xp)
        usual = not softcap and not wants_scores and precision is None and learned is None
        if usual and q.shape[-1] <= 256 and v.shape[-1] == q.shape[-1]:
            out, scores = _by_kernel(q, k, v, bias, factor), None
        else:
            out, scores = _written_out(q, k, v, learned, bias, factor, softcap, precision, shown)
        if flat:
            out = reshape(permute(out, 0, 2, 1, 3), out.shape[0], out.shape[2], -1)
        return out, k, v, scores

    return run


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, bias, factor: float) -> Tensor:
    mask = None
    if bias is not None:
        shape = (*(1,) * (4 - bias.ndim), *bias.shape)
        mask = wrap(bias.reshape(shape).astype(q.dtype))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, scale=factor, enable_gqa=grouped)


def _repeated(x: Tensor, groups: int) -> Tensor:
    """Each head of keys as often as heads of queries share it."""
    b, heads, *rest = x.shape
    return reshape(reshape(x, b, heads, 1, *rest).expand(b, heads, groups, *rest), b, -1, *rest)


def _written_out(q, k, v, learned, bias, factor, softcap, precision, shown):
    """The same step by step, where somebody wants to see the scores, to bend them or to learn them.

    learned : a mask that gets a gradient, or None
    """
    xp, dtype = q._xp, q.dtype
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = _repeated(k, groups), _repeated(v, groups)
    root = math.sqrt(factor)
    scores = raw = gpunn.matmul(q * root, permute(k, 0, 1, 3, 2) * root)
    if softcap:
        scores = (scores * (1 / softcap)).tanh() * softcap
    capped = scores
    if learned is not None:
        missing = scores.shape[-1] - learned.shape[-1]
        around = [(0, 0)] * (learned.ndim - 1) + [(0, missing)]
        scores = scores + pad_dimensions(learned, around, "constant", -math.inf)
    if bias is not None:
        scores = as_dtype(scores + wrap(bias.astype(scores.dtype)), dtype)
    biased = scores
    if precision is not None:
        scores = as_dtype(scores, precision)
    nothing = None
    if bias is not None:  # a query that sees no key gives 0
        nothing = wrap(xp.asarray(xp.isneginf(bias).all(axis=-1, keepdims=True)))
        scores = arithmetic.where(nothing, 0.0, scores)
    weights = gpunn.softmax(scores, -1)
    if nothing is not None:
        weights = arithmetic.where(nothing, 0.0, weights)
    weights = as_dtype(weights, dtype)
    out = gpunn.matmul(weights, v)
    return out, (raw, capped, biased, weights)[shown]


@operator("RotaryEmbedding", 23, frozen=(1, 2))
def rotary_embedding(node: Node):
    heads, width = node.int("num_heads", 0), node.int("rotary_embedding_dim", 0)
    interleaved = node.flag("interleaved")

    def run(x, cos, sin, positions=None):
        flat = x.ndim == 3
        x = _heads(x, heads) if flat else x
        size = width or x.shape[-1]
        turned, rest = x[..., :size], x[..., size:]
        if positions is not None:
            cos, sin = cos[positions], sin[positions]
        cos, sin = (reshape(t[..., : size // 2], t.shape[0], 1, t.shape[1], -1) for t in (cos, sin))
        if interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
        else:
            a, b = turned[..., : size // 2], turned[..., size // 2 :]
        first, second = a * cos - b * sin, b * cos + a * sin
        if interleaved:
            out = reshape(gpunn.stack([first, second], -1), *turned.shape)
        else:
            out = gpunn.cat([first, second], -1)
        out = gpunn.cat([out, rest], -1) if size < x.shape[-1] else out
        return reshape(permute(out, 0, 2, 1, 3), out.shape[0], out.shape[2], -1) if flat else out

    return run
