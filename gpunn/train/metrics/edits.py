"""Edit distance, and the error rates of words and characters that rest on it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn.train.metrics.base import at_once
from gpunn.train.metrics.text import TextMetric


class EditCounts(NamedTuple):
    """What turns a reference into a hypothesis; `hits` tokens of the reference stay."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def distance(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Tokens of the reference."""
        return self.hits + self.substitutions + self.deletions


def edit_counts(reference: Sequence[Any], hypothesis: Sequence[Any]) -> EditCounts:
    """The fewest edits that turn `reference` into `hypothesis` (V. Levenshtein, 1966).

    Both are texts (compared by character) or sequences of tokens. Of several shortest ways the one
    that, gone back from the end, substitutes where it can. Takes 4 bytes for each pair of tokens
    beyond a common beginning and end.

    >>> edit_counts("the cat sat".split(), "a cat sat down".split())
    EditCounts(hits=2, substitutions=1, deletions=0, insertions=1)
    """
    true, said = _numbers(reference, hypothesis)
    begin, end = _common(true, said)
    true, said = true[begin : len(true) - end], said[begin : len(said) - end]
    table = np.empty((len(true) + 1, len(said) + 1), np.int32)
    for row, values in enumerate(_rows(true, said)):
        table[row] = values
    i, j, hits, substitutions, deletions, insertions = len(true), len(said), begin + end, 0, 0, 0
    while i or j:
        same = i and j and true[i - 1] == said[j - 1]
        if i and j and table[i, j] == table[i - 1, j - 1] + (not same):
            hits, substitutions = hits + bool(same), substitutions + (not same)
            i, j = i - 1, j - 1
        elif i and table[i, j] == table[i - 1, j] + 1:
            i, deletions = i - 1, deletions + 1
        else:
            j, insertions = j - 1, insertions + 1
    return EditCounts(hits, substitutions, deletions, insertions)


def edit_distance(reference: Sequence[Any], hypothesis: Sequence[Any]) -> int:
    """The least number of substitutions, deletions and insertions between two sequences.

    >>> edit_distance("kitten", "sitting")
    3
    """
    true, said = _numbers(reference, hypothesis)
    begin, end = _common(true, said)
    rows = _rows(true[begin : len(true) - end], said[begin : len(said) - end])
    return int(deque(rows, maxlen=1).pop()[-1])


def _numbers(reference: Sequence[Any], hypothesis: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Both as integers, equal where the tokens are."""
    known: dict[Any, int] = {}
    true, said = (
        np.array([known.setdefault(token, len(known)) for token in tokens], np.int64)
        for tokens in (reference, hypothesis)
    )
    return true, said


def _common(true: np.ndarray, said: np.ndarray) -> tuple[int, int]:
    """Lengths of the common beginning, and of the common end of what is left."""
    shorter = min(len(true), len(said))
    differs = np.flatnonzero(true[:shorter] != said[:shorter])
    begin = int(differs[0]) if differs.size else shorter
    rest = shorter - begin
    back = np.flatnonzero(true[::-1][:rest] != said[::-1][:rest])
    return begin, int(back[0]) if back.size else rest


def _rows(true: np.ndarray, said: np.ndarray) -> Iterator[np.ndarray]:
    """The table of distances between beginnings, row by row.

    Insertions run along a row: min over k ≤ j of (row_k + j - k), which is a running minimum.
    """
    steps = np.arange(len(said) + 1, dtype=np.int32)
    row = steps
    yield row
    for number, token in enumerate(true, start=1):
        fresh = np.empty_like(row)
        fresh[0] = number
        np.minimum(row[1:] + 1, row[:-1] + (said != token), out=fresh[1:])
        row = np.minimum.accumulate(fresh - steps) + steps
        yield row


class WordErrorRate(TextMetric):
    """(substitutions + deletions + insertions) / words of the references, over the whole corpus.

    Texts are split at spaces and compared as they are: bring case and punctuation into one form
    before. May be above 1. Without a word in the references it is 0, or infinity if some were said.

    Parameters
    ----------
    tokenize, end, pad : see `TextMetric`, which also says what `update` takes. Of several
        references that with the fewest errors counts.
    """

    name = "wer"
    default_tokenizer = "words"

    def __init__(
        self,
        tokenize: str | Callable[[str], Sequence[Any]] | None = None,
        end: int | None = None,
        pad: int | None = None,
    ):
        super().__init__(tokenize, end, pad)

    def clear(self) -> None:
        self._sums = [0, 0, 0, 0]

    @property
    def counts(self) -> EditCounts:
        """Hits and errors over all sentences that `compute` has seen, or that came as lists."""
        return EditCounts(*self._sums)

    def add(self, hypothesis: Sequence[Any], references: list[Sequence[Any]]) -> None:
        found = min(
            (edit_counts(reference, hypothesis) for reference in references),
            key=lambda counts: counts.distance / max(counts.length, 1),
        )
        self._sums = [a + b for a, b in zip(self._sums, found, strict=True)]

    def result(self) -> float:
        if not self.counts.length:
            return math.inf if self.counts.distance else 0.0
        return self.counts.distance / self.counts.length


class CharacterErrorRate(WordErrorRate):
    """As `WordErrorRate` with characters, spaces included."""

    name = "cer"
    default_tokenizer = "characters"


def word_error_rate(hypotheses: Any, references: Any, **options: Any) -> float:
    """`WordErrorRate` of a corpus at hand.

    >>> word_error_rate(["the cat sit on mat"], ["the cat sat on the mat"])
    0.3333333333333333
    """
    return at_once(WordErrorRate(**options), hypotheses, references)


def character_error_rate(hypotheses: Any, references: Any, **options: Any) -> float:
    """`CharacterErrorRate` of a corpus at hand."""
    return at_once(CharacterErrorRate(**options), hypotheses, references)
