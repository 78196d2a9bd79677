"""Metrics of translations against references: BLEU and chrF, as sacrebleu computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gpunn.train.metrics.base import at_once, checked_option
from gpunn.train.metrics.text import TextMetric, ngrams

_SMOOTHINGS = ("exp", "floor", "add-k", "none")


class BLEU(TextMetric):
    """Corpus BLEU from 0 to 100: brevity penalty × geometric mean of n-gram precisions.

    K. Papineni, S. Roukos, T. Ward, W.-J. Zhu, "BLEU: a method for automatic evaluation of machine
    translation", 2002. All counts are added up over the corpus first; the value is not a mean over
    sentences. With the defaults it is what sacrebleu gives.

    Parameters
    ----------
    max_order : the longest n-grams
    smoothing : where no n-gram of an order is right: "exp" takes 1/2, 1/4, … in turn for the count
        (NIST), "floor" takes `smoothing_value` (0.1), "add-k" adds `smoothing_value` (1) to counts
        and totals of orders above 1, "none" makes the value 0 (B. Chen, C. Cherry, "A systematic
        comparison of smoothing techniques for sentence-level BLEU", 2014)
    effective_order : leave out orders for which the hypotheses are too short; for single sentences
    tokenize, end, pad : see `TextMetric`, which also says what `update` takes

    The length of the reference of a sentence is that of the one that is closest in length, the
    shorter of two. Without any right word the value is 0.
    """

    name = "bleu"

    def __init__(
        self,
        max_order: int = 4,
        smoothing: str = "exp",
        smoothing_value: float | None = None,
        effective_order: bool = False,
        tokenize: str | Callable[[str], Sequence[Any]] | None = None,
        end: int | None = None,
        pad: int | None = None,
    ):
        if max_order < 1:
            raise ValueError(f"BLEU: max_order must be 1 or more, got {max_order}")
        self.max_order, self.effective_order = int(max_order), bool(effective_order)
        self.smoothing = checked_option("BLEU", "smoothing", smoothing, _SMOOTHINGS)
        usual = {"floor": 0.1, "add-k": 1.0}.get(smoothing, 0.0)
        self.smoothing_value = usual if smoothing_value is None else float(smoothing_value)
        super().__init__(tokenize, end, pad)

    def clear(self) -> None:
        self._right, self._total = [0] * self.max_order, [0] * self.max_order
        self._length, self._reference_length = 0, 0

    def add(self, hypothesis: Sequence[Any], references: list[Sequence[Any]]) -> None:
        length = len(hypothesis)
        self._length += length
        self._reference_length += min(
            map(len, references), key=lambda other: (abs(other - length), other)
        )
        for order in range(1, self.max_order + 1):
            said = ngrams(hypothesis, order)
            allowed = ngrams(references[0], order)
            for reference in references[1:]:
                allowed |= ngrams(reference, order)
            self._right[order - 1] += (said & allowed).total()
            self._total[order - 1] += said.total()

    @property
    def brevity_penalty(self) -> float:
        """exp(1 - reference length / hypothesis length), 1 where the hypotheses are not shorter."""
        if self._length >= self._reference_length:
            return 1.0
        return math.exp(1 - self._reference_length / self._length) if self._length else 0.0

    @property
    def precisions(self) -> list[float]:
        """The smoothed precision of each order, from 0 to 1, as far as there are n-grams."""
        found: list[float] = []
        halved = 1
        for number, (right, total) in enumerate(zip(self._right, self._total, strict=True)):
            more = self.smoothing_value if self.smoothing == "add-k" and number else 0.0
            if total + more == 0:
                break
            if right + more > 0:
                found.append((right + more) / (total + more))
            elif self.smoothing == "exp":
                halved *= 2
                found.append(1 / (halved * total))
            else:
                found.append(self.smoothing_value / total if self.smoothing == "floor" else 0.0)
        return found

    def result(self) -> float:
        found = self.precisions
        if not any(self._right) or not all(found):
            return 0.0
        if len(found) < self.max_order and not self.effective_order:
            return 0.0
        mean = math.fsum(map(math.log, found)) / len(found)
        return 100 * self.brevity_penalty * math.exp(mean)


class ChrF(TextMetric):
    """chrF from 0 to 100: the F-score of character n-grams, recall counting β times.

    M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015; with the
    defaults what sacrebleu gives as chrF2. Spaces do not count; of several references of a
    sentence that with the best score counts. Tokens that are not text are compared as they are.

    Parameters
    ----------
    max_order : the longest n-grams of characters
    beta : how much more recall counts than precision
    end, pad : see `TextMetric`, which also says what `update` takes
    """

    name = "chrf"
    default_tokenizer = "characters"

    def __init__(
        self,
        max_order: int = 6,
        beta: float = 2.0,
        end: int | None = None,
        pad: int | None = None,
    ):
        if max_order < 1:
            raise ValueError(f"ChrF: max_order must be 1 or more, got {max_order}")
        self.max_order, self.beta = int(max_order), float(beta)
        super().__init__(lambda text: [sign for sign in text if not sign.isspace()], end, pad)

    def clear(self) -> None:
        self._counts = [(0, 0, 0)] * self.max_order

    def add(self, hypothesis: Sequence[Any], references: list[Sequence[Any]]) -> None:
        orders = range(1, self.max_order + 1)
        said = [ngrams(hypothesis, order) for order in orders]
        best, best_score = self._counts, -1.0
        for reference in references:
            counts = []
            for order, mine in zip(orders, said, strict=True):
                true = ngrams(reference, order)
                counts.append((mine.total() if true else 0, true.total(), (mine & true).total()))
            score = self._score(counts)
            if score > best_score:
                best, best_score = counts, score
        self._counts = [
            (old[0] + new[0], old[1] + new[1], old[2] + new[2])
            for old, new in zip(self._counts, best, strict=True)
        ]

    def _score(self, counts: list[tuple[int, int, int]]) -> float:
        used = [(both / said, both / true) for said, true, both in counts if said and true]
        if not used:
            return 0.0
        precision, recall = (sum(part) / len(used) for part in zip(*used, strict=True))
        if not precision + recall:
            return 0.0
        square = self.beta**2
        # In sacrebleu's order, as rounding decides which of two equally good references is taken.
        return 100 * ((1 + square) * precision * recall / (square * precision + recall))

    def result(self) -> float:
        return self._score(self._counts)


def bleu(hypotheses: Any, references: Any, **options: Any) -> float:
    """`BLEU` of a corpus at hand: 0 to 100; forms of sentences and options as there.

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"]), 2)
    37.99
    """
    return at_once(BLEU(**options), hypotheses, references)


def chrf(hypotheses: Any, references: Any, **options: Any) -> float:
    """`ChrF` of a corpus at hand: 0 to 100; forms of sentences and options as there."""
    return at_once(ChrF(**options), hypotheses, references)
