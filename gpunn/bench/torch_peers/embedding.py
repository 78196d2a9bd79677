"""Embedding and rotary embedding by PyTorch."""

from __future__ import annotations

import torch

from gpunn.bench.torch_peers.common import peer, put


@peer
def embedding_forward(weight, indices, *, out=None):
    if out is None:
        return torch.nn.functional.embedding(indices, weight)
    return torch.index_select(weight, 0, indices, out=out)


@peer
def embedding_backward(grad_output, indices, *, num_embeddings, out=None):
    return torch.ops.aten.embedding_dense_backward(grad_output, indices, num_embeddings, -1, False)


@peer
def rotary_forward(x, cos, sin, *, out=None):
    """As in most models: the tables in the dtype of x, and half of the columns exchanged."""
    cos, sin = (torch.cat([table, table], -1).to(x.dtype) for table in (cos, sin))
    a, b = x.chunk(2, -1)
    return put(x * cos + torch.cat([-b, a], -1) * sin, out)
