"""One sequence from another: an encoder, and a decoder that looks at all of its states.

Bahdanau, Cho, Bengio: Neural machine translation by jointly learning to align and translate, 2015,
in the form of Luong, Pham, Manning: Effective approaches to attention-based NMT, 2015, where the
decoder's states ask after the recurrence and not within: the whole target goes through one
recurrent kernel and one attention kernel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn import nn
from gpunn.autograd.creation import arange, full
from gpunn.autograd.functions.activation import softmax, tanh
from gpunn.autograd.functions.attention import scaled_dot_product_attention
from gpunn.autograd.functions.linalg import matmul
from gpunn.autograd.functions.shape import cat
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor


class Seq2Seq(nn.Module):
    """A bidirectional GRU encoder and a GRU decoder with attention.

    Parameters
    ----------
    source_vocabulary, target_vocabulary : numbers of tokens
    embedding_size, hidden_size, dropout : as usual; hidden_size is even, at most 256
    padding_idx : the token that fills short sequences, in both vocabularies
    """

    def __init__(
        self, source_vocabulary: int, target_vocabulary: int, embedding_size: int = 128,
        hidden_size: int = 256, dropout: float = 0.0, padding_idx: int = 0,
    ):  # fmt: skip
        super().__init__()
        if hidden_size % 2 or not 2 <= hidden_size <= 256:
            raise ValueError(
                f"Seq2Seq: hidden_size is {hidden_size}; expected an even number from 2 to 256"
            )
        self.source = nn.Embedding(source_vocabulary, embedding_size, padding_idx)
        self.target = nn.Embedding(target_vocabulary, embedding_size, padding_idx)
        self.encoder = nn.GRU(
            embedding_size, hidden_size // 2, batch_first=True, bidirectional=True
        )
        self.decoder = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.bridge = nn.Linear(hidden_size, hidden_size)
        self.mix = nn.Linear(2 * hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, target_vocabulary)
        self.dropout = nn.Dropout(dropout)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, S) -> (encoder's states (B, S, hidden), decoder's first (1, B, hidden))"""
        states, last = self.encoder(self.dropout(self.source(source)), lengths=lengths)
        return states, tanh(self.bridge(cat([last[0], last[1]], 1))).unsqueeze(0)

    def decode(
        self, target: Tensor, states: Tensor, hidden: Tensor, lengths: Tensor | None = None
    ) -> Any:
        """Tokens (B, T) so far -> (logits (B, T, target_vocabulary), hidden)"""
        x, hidden = self.decoder(self.dropout(self.target(target)), hidden)
        seen = scaled_dot_product_attention(
            x.unsqueeze(1), states.unsqueeze(1), states.unsqueeze(1), kv_lengths=lengths
        ).squeeze(1)
        return self.head(self.dropout(tanh(self.mix(cat([seen, x], -1))))), hidden

    def forward(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, T, target_vocabulary) of the token behind each of `target` (B, T).

        `lengths` (B,) are those of `source` (B, S).
        """
        return self.decode(target, *self.encode(source, lengths), lengths)[0]

    @no_grad()
    def attention(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """How much of each source token went into what follows each of `target`: (B, T, S).

        Each row is a share of 1 over the encoder's states.
        """
        states, hidden = self.encode(source, lengths)
        x, _ = self.decoder(self.target(target), hidden)
        scores = matmul(x, states.transpose(1, 2)) / math.sqrt(x.shape[-1])
        if lengths is not None:
            places = arange(source.shape[1], device=source.device)
            scores = scores.masked_fill((places >= lengths.unsqueeze(1)).unsqueeze(1), -math.inf)
        return softmax(scores, -1)

    @no_grad()
    def translate(
        self, source: Tensor, start: int, end: int, max_length: int = 50,
        lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The likeliest token at each step, from `start` to `end`: (B, at most max_length).

        Rows that ended are filled with `end`. `gpunn.models.beam_search` finds likelier sequences.
        """
        states, hidden = self.encode(source, lengths)
        token = full((source.shape[0], 1), start, dtype=np.int64, device=source.device)
        done, found = None, []
        for _ in range(max_length):
            logits, hidden = self.decode(token, states, hidden, lengths)
            token = logits.argmax(-1)
            if done is not None:
                token = token.masked_fill(done, end)
            done = token == end
            found.append(token)
            if bool(done.all()):
                break
        return cat(found, 1)
