"""Attention as a user would write it: all scores at once."""

from __future__ import annotations

from gpunn.bench.array_peers.common import peer, put, wide


def _heads(x, heads: int):
    """(B, T, Hkv, D) as (B, H, T, D), heads of keys repeated for their group."""
    return wide(x).transpose(0, 2, 1, 3).repeat(heads // x.shape[2], axis=1)


def _scores(xp, q, k, causal, causal_offset):
    """(queries times their factor, keys, scores), each (B, H, T, …)."""
    q = _heads(q, q.shape[2]) * q.shape[3] ** -0.5
    k = _heads(k, q.shape[1])
    scores = xp.matmul(q, k.swapaxes(2, 3))
    if causal:
        later = xp.arange(k.shape[2]) > xp.arange(q.shape[2])[:, None] + causal_offset
        scores[:, :, later] = -xp.inf
    return q, k, scores


@peer
def attention_forward(xp, q, k, v, *, causal=False, causal_offset=0, out=None):
    _, _, scores = _scores(xp, q, k, causal, causal_offset)
    top = scores.max(axis=3, keepdims=True)
    weights = xp.exp(scores - top)
    total = weights.sum(axis=3, keepdims=True)
    made = xp.matmul(weights / total, _heads(v, q.shape[2]))
    made = made.transpose(0, 2, 1, 3).astype(q.dtype)
    return put(made, out), (top + xp.log(total))[..., 0]


@peer
def attention_backward(
    xp, grad_out, q, k, v, out, log_sum_exp, *, causal=False, causal_offset=0
):
    heads, shape = q.shape[2], k.shape
    scaled, keys, scores = _scores(xp, q, k, causal, causal_offset)
    weights = xp.exp(scores - log_sum_exp[..., None])
    grads = _heads(grad_out, heads)
    delta = (grads * _heads(out, heads)).sum(axis=3, keepdims=True)
    slopes = weights * (xp.matmul(grads, _heads(v, heads).swapaxes(2, 3)) - delta)

    def finish(x, of):
        x = x.reshape(x.shape[0], of.shape[2], -1, *x.shape[2:]).sum(axis=2)
        return x.transpose(0, 2, 1, 3).astype(q.dtype)

    return (
        finish(xp.matmul(slopes, keys) * shape[3] ** -0.5, q),
        finish(xp.matmul(slopes.swapaxes(2, 3), scaled), k),
        finish(xp.matmul(weights.swapaxes(2, 3), grads), v),
    )
