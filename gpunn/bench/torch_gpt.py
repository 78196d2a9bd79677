"""PyTorch's side of the GPT in the benchmark of whole steps: the modules and names of GPT-2, with
`scaled_dot_product_attention`. Imports PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Of each position to itself and those before it."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x):
        batch, steps, width = x.shape
        parts = self.c_attn(x).split(width, 2)
        q, k, v = (p.view(batch, steps, self.heads, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, steps, width))


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))"""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(heads, width)
        self.ln_2, self.mlp = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """Logits of the next token at every position, as `gpunn.models.GPT`."""

    def __init__(self, vocabulary: int, positions: int, layers: int, heads: int, width: int):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocabulary, width),
            "wpe": nn.Embedding(positions, width),
            "h": nn.ModuleList([Block(heads, width) for _ in range(layers)]),
            "ln_f": nn.LayerNorm(width),
        })  # fmt: skip
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens):
        parts = self.transformer
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = parts["wte"](tokens) + parts["wpe"](places)
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))
