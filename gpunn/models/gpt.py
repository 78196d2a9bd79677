"""GPT: the next token by attention to all before it; shaped as GPT-2 and loading its weights.

Radford et al.: Language models are unsupervised multitask learners, 2019. The names of modules and
parameters are those of the published GPT-2 (and of Karpathy's nanoGPT, which wrote it so shortly).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn import nn
from gpunn.autograd.creation import arange
from gpunn.autograd.functions.linalg import linear
from gpunn.autograd.functions.loss import cross_entropy
from gpunn.autograd.functions.shape import cat
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor
from gpunn.io.layouts import from_layout
from gpunn.models.lstm import draw
from gpunn.nn.attention import attend_packed


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT; as they stand, those of the smallest GPT-2 (124 million parameters)."""

    vocab_size: int = 50257
    block_size: int = 1024  # positions
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class SelfAttention(nn.Module):
    """Attention of each position to itself and those before it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.n_head < 1 or config.n_embd % config.n_head:
            raise ValueError(
                f"GPT: n_embd {config.n_embd} is not a multiple of n_head {config.n_head}"
            )
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x: Tensor, cache: nn.KeyValueCache | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        out = attend_packed(
            self.c_attn(x), self.n_head, dropout_p=dropout, is_causal=True, cache=cache
        )
        return self.resid_dropout(self.c_proj(out))


class FeedForward(nn.Module):
    """Two linear layers with GELU between, for each position alone."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = linear(x, self.c_fc.weight, self.c_fc.bias, "gelu_tanh")
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))

    Each sum is made by the kernel that normalises it, the second one by that of the next block:
    what is to be added to x is handed on beside it.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = SelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, change: Tensor | None = None, cache: nn.KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x, what is to be added to it) from the same of the block before."""
        normal, x = _add_and_normalise(self.ln_1, x, change)
        normal, x = self.ln_2(self.attn(normal, cache), residual=x)
        return x, self.mlp(normal)


def _add_and_normalise(norm: nn.Module, x: Tensor, change: Tensor | None) -> Any:
    """(norm(x + change), x + change)"""
    return (norm(x), x) if change is None else norm(change, residual=x)


class GPT(nn.Module):
    """``model(tokens (B, T))`` -> logits (B, T, vocab_size) of the token behind each.

    >>> GPT(GPTConfig(vocab_size=65, block_size=128, n_layer=4, n_head=4, n_embd=128))
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # so that the residual sum keeps its size
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def features(self, tokens: Tensor, caches: list[nn.KeyValueCache] | None = None) -> Tensor:
        """What the last layer sees: (B, T, n_embd). Raises ValueError for too long a text."""
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ValueError(f"GPT: tokens have shape {tokens.shape}; expected (B, T) with T >= 1")
        start = 0 if caches is None else caches[0].length
        steps = tokens.shape[1]
        if start + steps > self.config.block_size:
            raise ValueError(
                f"GPT: {start + steps} positions, but block_size is {self.config.block_size}"
            )
        parts = self.transformer
        places = arange(start, start + steps, dtype=np.int64, device=tokens.device)
        x, change = parts["drop"](parts["wte"](tokens) + parts["wpe"](places)), None
        for number, block in enumerate(parts["h"]):
            x, change = block(x, change, None if caches is None else caches[number])
        return _add_and_normalise(parts["ln_f"], x, change)[0]

    def forward(self, tokens: Tensor, caches: list[nn.KeyValueCache] | None = None) -> Tensor:
        return self.lm_head(self.features(tokens, caches))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of the tokens that follow; -1 in `targets` counts for nothing.

        On a GPU the logits are never held at once (`nn.functional.linear_cross_entropy`).
        """
        x = self.features(tokens).reshape(-1, self.config.n_embd)
        if x.device.type == "cpu":
            return cross_entropy(self.lm_head(x), targets.reshape(-1), ignore_index=-1)
        return nn.functional.linear_cross_entropy(
            x, self.lm_head.weight, None, targets.reshape(-1), ignore_index=-1
        )

    def caches(self, batch: int, length: int | None = None) -> list[nn.KeyValueCache]:
        """An empty `KeyValueCache` for each layer."""
        config, weight = self.config, self.lm_head.weight
        sizes = (batch, length or config.block_size, config.n_head, config.n_embd // config.n_head)
        return [
            nn.KeyValueCache(*sizes, dtype=weight.dtype, device=weight.device)
            for _ in range(config.n_layer)
        ]

    def generate(
        self, tokens: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """`tokens` (B, T) and `count` more, each drawn from the model's distribution.

        `temperature` 0 takes the likeliest; `top_k` draws among so many. Earlier keys and values
        are kept, so a token costs one position; where the text outgrows block_size, its last half
        is read again. Call `eval` first, or dropout takes part.
        """
        return cat([tokens, *self.stream(tokens, count, temperature, top_k)], 1)

    def stream(
        self, tokens: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Iterator[Tensor]:
        """The tokens that `generate` puts behind `tokens`, (B, 1) each, as they are drawn."""
        if tokens.ndim != 2:
            raise ValueError(f"GPT: tokens have shape {tokens.shape}; expected (B, T)")
        size = self.config.block_size
        caches = self.caches(tokens.shape[0])
        recent = fresh = tokens[:, -size:].detach()
        for _ in range(count):
            if caches[0].length + fresh.shape[1] > size:
                for cache in caches:
                    cache.reset()
                fresh = recent[:, -max(1, size // 2) :]
            with no_grad():
                fresh = draw(self(fresh, caches)[:, -1], temperature, top_k).to(tokens.dtype)
                recent = cat([recent[:, -size:], fresh], 1)
            yield fresh

    def load_gpt2(self, state: Mapping[str, Any]) -> None:
        """Load the published weights of GPT-2, as `gpunn.io.load` gives them.

        There the four weights of a block lie transposed, and a mask is among the state. Raises
        RuntimeError where a name is missing or a shape does not fit. `gpunn.io.load_into` does the
        same from a file.
        """
        self.load_state_dict(from_layout(state, "huggingface-gpt2"))
