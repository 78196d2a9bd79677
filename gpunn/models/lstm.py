"""Networks on an LSTM: a class for a whole sequence, and the next token of a text.

Hochreiter, Schmidhuber: Long short-term memory, 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpunn import nn
from gpunn.autograd.functions.activation import softmax
from gpunn.autograd.functions.shape import cat
from gpunn.autograd.mode import no_grad
from gpunn.autograd.sampling import multinomial
from gpunn.autograd.tensor import Tensor


class LSTMClassifier(nn.Module):
    """An LSTM over the sequence, and a linear layer on its last states.

    Parameters
    ----------
    num_features : size of the vectors of a sequence; with `vocabulary` that of its embedding
    hidden_size, num_layers, bidirectional, dropout : as of `nn.LSTM`; dropout also acts before the
        last layer
    num_classes : how many logits
    vocabulary : number of tokens where sequences are tokens, else None
    padding_idx : the token that fills short sequences

    Input (B, T, num_features), or (B, T) tokens, and the `lengths` (B,) where they differ; output
    (B, num_classes) logits.
    """

    def __init__(
        self, num_features: int, num_classes: int, hidden_size: int = 128, num_layers: int = 1,
        bidirectional: bool = False, dropout: float = 0.0, vocabulary: int | None = None,
        padding_idx: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.embedding = (
            None if vocabulary is None else nn.Embedding(vocabulary, num_features, padding_idx)
        )
        self.lstm = nn.LSTM(
            num_features, hidden_size, num_layers, batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0, bidirectional=bidirectional,
        )  # fmt: skip
        self.directions = 1 + bidirectional
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.directions * hidden_size, num_classes)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = input if self.embedding is None else self.embedding(input)
        _, (states, _) = self.lstm(x, lengths=lengths)
        last = cat(list(states[-self.directions :]), 1)  # of the top layer, both directions
        return self.head(self.dropout(last))


class LSTMLanguageModel(nn.Module):
    """Logits of the next token at every position.

    With `tie_weights` the output layer's weight is the embedding's (Press, Wolf: Using the output
    embedding, 2017); hidden_size must then equal embedding_size.

    ``model(tokens (B, T), state)`` -> (logits (B, T, vocabulary), state): give the state back to go
    on where a text was cut.
    """

    def __init__(
        self, vocabulary: int, embedding_size: int = 256, hidden_size: int = 256,
        num_layers: int = 2, dropout: float = 0.0, tie_weights: bool = True,
    ):  # fmt: skip
        super().__init__()
        if tie_weights and embedding_size != hidden_size:
            raise ValueError(
                f"LSTMLanguageModel: tied weights need one size, but embedding_size is "
                f"{embedding_size} and hidden_size {hidden_size}"
            )
        self.embedding = nn.Embedding(vocabulary, embedding_size)
        self.lstm = nn.LSTM(
            embedding_size, hidden_size, num_layers, batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, vocabulary)
        nn.init.normal_(self.embedding.weight, std=embedding_size**-0.5)
        if tie_weights:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = self.dropout(self.embedding(tokens))
        x, state = self.lstm(x, state)
        return self.head(self.dropout(x)), state

    def generate(
        self, tokens: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """`tokens` (B, T) and `count` more, drawn from the model's distribution.

        `temperature` 0 takes the likeliest each time; `top_k` draws among so many. Raises
        ValueError for a negative temperature. Call `eval` first, or dropout takes part.
        """
        return cat([tokens, *self.stream(tokens, count, temperature, top_k)], 1)

    def stream(
        self, tokens: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Iterator[Tensor]:
        """The tokens that `generate` puts behind `tokens`, (B, 1) each, as they are drawn."""
        fresh, state = tokens.detach(), None
        for _ in range(count):
            with no_grad():
                logits, state = self(fresh, state)
                fresh = draw(logits[:, -1], temperature, top_k).to(tokens.dtype)
            yield fresh


def draw(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """One token (B, 1) for each row of logits (B, V), among the `top_k` likeliest if given."""
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; expected 0 or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more, or None for all tokens")
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        values, _ = logits.topk(top_k, -1)
        logits = logits.masked_fill(logits < values[:, -1:], -np.inf)
    return multinomial(softmax(logits, -1), 1)
