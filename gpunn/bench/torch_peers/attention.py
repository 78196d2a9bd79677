"""PyTorch's scaled_dot_product_attention, forward and through autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from gpunn.bench.torch_peers.common import peer, prepared, put


def _attend(q, k, v, causal, causal_offset):
    """(B, T, H, D) in, (B, H, T, D) out. A single query that is the last sees all keys."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    options = {"enable_gqa": q.shape[1] != k.shape[1]}
    queries, keys = q.shape[2], k.shape[2]
    if causal and causal_offset not in (0, keys - queries):
        raise TypeError(f"no peer for causal_offset {causal_offset}")
    if causal and queries == keys:
        options["is_causal"] = True
    elif causal and queries > 1:
        if causal_offset == 0:
            options["is_causal"] = True
        else:
            options["attn_mask"] = causal_lower_right(queries, keys)
    return F.scaled_dot_product_attention(q, k, v, **options)


@peer
def attention_forward(q, k, v, *, causal=False, causal_offset=0, out=None):
    return put(_attend(q, k, v, causal, causal_offset).transpose(1, 2), out), None


@prepared
def attention_backward(
    grad_out, q, k, v, out, log_sum_exp, *, causal=False, causal_offset=0
):
    """The way back alone; the forward is prepared."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        made = _attend(*inputs, causal, causal_offset)
    grad = grad_out.transpose(1, 2)
    return lambda: torch.autograd.grad(made, inputs, grad, retain_graph=True)
