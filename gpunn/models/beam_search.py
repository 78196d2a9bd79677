"""Beam search: the likeliest sequences of a model that says the next token.

It serves whatever makes one token after the other: translation, captions, spoken words. Lowerre,
The Harpy speech recognition system, 1976; with length normalisation as in Wu et al., Google's
neural machine translation system, 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpunn import nn
from gpunn.autograd.creation import arange, full, tensor
from gpunn.autograd.functions.activation import log_softmax
from gpunn.autograd.functions.shape import cat
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import Tensor


class Beams(NamedTuple):
    """What `beam_search` found, the best first.

    Attributes
    ----------
    tokens : int64 (batch, beams, at most max_length), without `start`; behind its `end` a sequence
        is filled with `end`
    scores : float32 (batch, beams), log-probability divided by length^length_penalty; -inf where a
        model cannot say so many sequences
    lengths : int64 (batch, beams), with the `end`
    """

    tokens: Tensor
    scores: Tensor
    lengths: Tensor


@no_grad()
def beam_search(
    step: Callable[[Tensor, Any], tuple[Tensor, Any]],
    state: Any,
    batch: int,
    start: int,
    end: int,
    beams: int = 4,
    max_length: int = 50,
    length_penalty: float = 1.0,
    device: Any = None,
) -> Beams:
    """For each of a batch the `beams` best sequences, as far as a beam of that width finds them.

    Parameters
    ----------
    step : ``step(tokens (rows, 1), state) -> (logits (rows, vocabulary), state)``: from the latest
        token of each row and what the model remembers of those before, what comes next
    state : what the first step is given, one row for each of the batch: a Tensor with the rows on
        its first axis, a `nn.KeyValueCache` (or another object with ``select(rows)``), None, or
        tuples, lists and dictionaries of them. Rows are multiplied and put in order here: also
        what the decoder looks at, such as the encoder's output, belongs in it.
    batch : how many
    start, end : the token before the first, and the one after which a sequence is complete
    beams : how many unfinished sequences are kept at each step, and given in the end; 1 is greedy:
        the likeliest token at each step, up to `end`
    max_length : a sequence that has not ended after so many tokens is taken as it is
    length_penalty : sequences are compared by log-probability / length^length_penalty: 0 favours
        short ones, 1 is the mean over the tokens
    device : where the tokens are made; None: that of the state's first Tensor, else the default

    It ends when no unfinished sequence can become better than those found. With beams as wide as
    there are sequences nothing is left out and the result is exact.

    Raises ValueError for counts below 1, a negative penalty, and logits of another shape.
    """
    for name, count in (("batch", batch), ("beams", beams), ("max_length", max_length)):
        if count < 1:
            raise ValueError(f"beam_search: {name} is {count}; expected 1 or more")
    if not length_penalty >= 0:
        raise ValueError(f"beam_search: length_penalty is {length_penalty}; expected 0 or more")
    search = _Search(batch, beams, start, end, max_length, length_penalty, device or _place(state))
    state = select_rows(state, search.first.reshape(-1))
    tokens = full((batch * beams, 1), start, dtype=np.int64, device=search.device)
    for length in range(1, max_length + 1):
        logits, state = step(tokens, state)
        if logits.ndim != 2 or logits.shape[0] != batch * beams:
            raise ValueError(
                f"beam_search: step gave logits of shape {logits.shape}; expected "
                f"({batch * beams}, vocabulary), a row for each of {batch} times {beams} beams"
            )
        rows = search.take(logits, length)
        if length == max_length or search.complete(length):
            break
        state = select_rows(state, rows)
        tokens = search.tokens[:, :, -1].reshape(-1, 1)
    return search.result()


class _Search:
    """The unfinished sequences of each of a batch, and the best finished ones."""

    def __init__(
        self, batch: int, beams: int, start: int, end: int, max_length: int, penalty: float,
        device: Any,
    ):  # fmt: skip
        self.batch, self.beams, self.end = batch, beams, end
        self.max_length, self.penalty, self.device = max_length, penalty, device
        self.first = arange(batch, device=device).to(np.int64).reshape(batch, 1)
        self.first = self.first.expand(batch, beams)  # of the batch: rows of its state
        self.offset = (self.first * beams)[:, :1]
        self.tokens = full((batch, beams, 0), end, dtype=np.int64, device=device)
        # At first all beams are the same: only one of them counts.
        scores = [0.0] + [-np.inf] * (beams - 1)
        self.scores = tensor([scores] * batch, dtype=np.float32, device=device)
        self.found = full((batch, beams, 0), end, dtype=np.int64, device=device)
        self.found_scores = full((batch, beams), -np.inf, dtype=np.float32, device=device)
        self.found_lengths = full((batch, beams), 0, dtype=np.int64, device=device)

    def take(self, logits: Tensor, length: int) -> Tensor:
        """Go on by one token; the rows of the state that the unfinished sequences come from."""
        batch, beams, vocabulary = self.batch, self.beams, logits.shape[-1]
        steps = log_softmax(logits.float(), -1).reshape(batch, beams, vocabulary)
        every = (self.scores.unsqueeze(2) + steps).reshape(batch, beams * vocabulary)
        # Each beam can end in one way: among twice as many candidates enough go on. A single beam
        # ends where it is likeliest to.
        wanted = 2 * beams if beams > 1 else 1
        scores, places = every.topk(min(wanted, beams * vocabulary), -1)
        came, token = places // vocabulary, places % vocabulary
        candidates = cat([_rows(self.tokens, came), token.unsqueeze(2)], 2)
        ended = token == self.end
        last = length == self.max_length
        self._keep(candidates, scores if last else scores.masked_fill(~ended, -np.inf), length)
        self.scores, kept = scores.masked_fill(ended, -np.inf).topk(beams, -1)
        self.tokens = _rows(candidates, kept)
        return (came.gather(1, kept) + self.offset).reshape(-1)

    def _keep(self, candidates: Tensor, scores: Tensor, length: int) -> None:
        """The best of those finished before and these, whose score is not -inf."""
        scores = scores / float(length) ** self.penalty
        shape = (self.batch, self.beams, length - self.found.shape[2])
        filled = full(shape, self.end, dtype=np.int64, device=self.device)
        tokens = cat([cat([self.found, filled], 2), candidates], 1)
        lengths = full(scores.shape, length, dtype=np.int64, device=self.device)
        self.found_scores, kept = cat([self.found_scores, scores], 1).topk(self.beams, -1)
        self.found = _rows(tokens, kept)
        self.found_lengths = cat([self.found_lengths, lengths], 1).gather(1, kept)

    def complete(self, length: int) -> bool:
        """Whether no unfinished sequence can still come among the best; waits for the device."""
        # A log-probability only falls, and is divided by no more than the greatest length.
        best = self.scores.amax(-1) / float(self.max_length) ** self.penalty
        return bool((best <= self.found_scores.amin(-1)).all())

    def result(self) -> Beams:
        none = self.found_scores == -np.inf
        tokens = self.found.masked_fill(none.unsqueeze(2), self.end)
        lengths = self.found_lengths.masked_fill(none, 0)
        return Beams(tokens, self.found_scores, lengths)


def _rows(sequences: Tensor, numbers: Tensor) -> Tensor:
    """sequences (B, K, T) at numbers (B, N) of each of the batch: (B, N, T)"""
    batch, count = numbers.shape
    index = numbers.unsqueeze(2).expand(batch, count, sequences.shape[2])
    return sequences.gather(1, index)


def _place(state: Any) -> Any:
    """The device of the first Tensor in it; None if it has none."""
    if isinstance(state, Tensor):
        return state.device
    if isinstance(state, nn.KeyValueCache):
        return state.keys.device
    parts = state.values() if isinstance(state, dict) else state
    if isinstance(state, (dict, list, tuple)):
        return next((found for found in map(_place, parts) if found is not None), None)
    return None


def select_rows(state: Any, rows: Tensor) -> Any:
    """The same state with these of its rows, as `beam_search` does between two steps."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, dict):
        return {key: select_rows(part, rows) for key, part in state.items()}
    if isinstance(state, (list, tuple)):
        made = [select_rows(part, rows) for part in state]
        if isinstance(state, list):
            return made
        return type(state)(*made) if hasattr(state, "_fields") else tuple(made)
    if hasattr(state, "select"):
        state.select(rows)
    return state
