"""Embedding and rotary embedding by array functions."""

from __future__ import annotations

from gpunn.bench.array_peers.common import peer, put, wide


@peer
def embedding_forward(xp, weight, indices, *, out=None):
    return xp.take(weight, indices, axis=0, out=out)


@peer
def embedding_backward(xp, grad_output, indices, *, num_embeddings, out=None):
    total = xp.zeros((num_embeddings, grad_output.shape[-1]), wide(grad_output).dtype)
    xp.add.at(total, indices, wide(grad_output))
    return put(total.astype(grad_output.dtype), out)


@peer
def rotary_forward(xp, x, cos, sin, *, out=None):
    a, b = xp.split(wide(x), 2, axis=-1)
    turned = xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return put(turned.astype(x.dtype), out)
