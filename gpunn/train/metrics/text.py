"""What metrics of text share: sentences in several forms, tokenisers, n-grams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import is_array, to_numpy
from gpunn.train.metrics.base import Metric

# The rules of NIST's mteval-v13a.pl: what is set apart by spaces.
_APART = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # signs, but for ' , - .
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # . and , unless a digit stands before
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # or behind
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash behind a digit
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenize_13a(text: str) -> list[str]:
    """Words and punctuation as NIST's ``mteval-v13a`` and sacrebleu's "13a" separate them.

    >>> tokenize_13a("It costs $1,000.50, doesn't it?")
    ['It', 'costs', '$', '1,000.50', ',', "doesn't", 'it', '?']
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, sign in _ENTITIES:
        text = text.replace(name, sign)
    text = f" {text} "
    for pattern, apart in _APART:
        text = pattern.sub(apart, text)
    return text.split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "13a": tokenize_13a,
    "words": str.split,
    "characters": list,
}


def find_tokenizer(
    name: str, tokenize: str | Callable[[str], Sequence[Any]]
) -> Callable[[str], Sequence[Any]]:
    """A function ``text -> tokens`` from one, or from its name in `TOKENIZERS`."""
    if callable(tokenize):
        return tokenize
    if tokenize not in TOKENIZERS:
        raise ValueError(
            f"{name}: tokenize is {tokenize!r}; expected one of "
            f"{', '.join(map(repr, TOKENIZERS))}, or a function of a text"
        )
    return TOKENIZERS[tokenize]


def ngrams(tokens: Sequence[Any], order: int) -> Counter[Any]:
    """How often each run of `order` tokens occurs."""
    runs = zip(*(tokens[start:] for start in range(order)), strict=False)
    return Counter(runs)


class TextMetric(Metric):
    """Base of metrics of sentences against references; not part of a compiled step.

    `update` takes sentences in one of these forms, as many references as hypotheses:

    - texts (list of str), which `tokenize` splits; a reference may be a list of several texts
    - lists of tokens (str or int); a reference may be a list of several lists
    - integer arrays (B, T) of tokens, which end before `end` and in which `pad` is left out
    - as the prediction, floating scores (B, T, vocabulary) beside a target (B, T): the best token
      at each place that is not `pad` in the target. In training, where the model is shown the true
      tokens before each, that measures single steps, not what the model would say by itself.

    Parameters
    ----------
    tokenize : "13a" (words and punctuation), "words" (split at spaces), "characters", or a function
    end, pad : tokens that end a sentence, and that fill one up
    """

    default_tokenizer = "13a"

    def __init__(
        self,
        tokenize: str | Callable[[str], Sequence[Any]] | None = None,
        end: int | None = None,
        pad: int | None = None,
    ):
        chosen = self.default_tokenizer if tokenize is None else tokenize
        self.tokenize = find_tokenizer(type(self).__name__, chosen)
        self.end, self.pad = end, pad
        self.reset()

    def reset(self) -> None:
        self._waiting: list[tuple[Any, Any]] = []  # arrays, where they are
        self._sentences = 0
        self.clear()

    def clear(self) -> None:
        """Forget the sums."""
        raise NotImplementedError

    def add(self, hypothesis: Sequence[Any], references: list[Sequence[Any]]) -> None:
        """Take in one sentence: tokens, and the tokens of each of its references."""
        raise NotImplementedError

    def result(self) -> float:
        """The value of the sums."""
        raise NotImplementedError

    def update(self, prediction: Any, target: Any) -> None:
        if _is_text(prediction):
            if isinstance(prediction, str) or isinstance(target, str):
                raise TypeError(f"{self.name}: expected lists of sentences, got one text")
            if len(prediction) != len(target):
                raise ValueError(
                    f"{self.name}: {len(prediction)} sentences and {len(target)} references; give "
                    "as many (several references of one sentence as a list of them)"
                )
            for hypothesis, reference in zip(prediction, target, strict=True):
                self._take(hypothesis, reference)
            return
        prediction, target = raw_array(prediction), raw_array(target)
        shapes = f"prediction has shape {prediction.shape} and target {target.shape}"
        if prediction.ndim == 3 and prediction.shape[:2] == target.shape:
            found = prediction.argmax(axis=2)
            if self.pad is not None:
                found[target == self.pad] = self.pad
            prediction = found
        if prediction.ndim != 2 or target.ndim != 2 or len(prediction) != len(target):
            raise ValueError(
                f"{self.name}: {shapes}; expected tokens (B, T) for both, or scores "
                "(B, T, vocabulary) with tokens (B, T)"
            )
        if prediction.dtype.kind not in "iu" or target.dtype.kind not in "iu":
            raise TypeError(
                f"{self.name}: tokens have dtype {prediction.dtype} and {target.dtype}; expected "
                "integers"
            )
        self._waiting.append((prediction.copy(), target.copy()))

    def _take(self, hypothesis: Any, reference: Any) -> None:
        if isinstance(hypothesis, str):
            references = [reference] if isinstance(reference, str) else list(reference)
        else:
            several = len(reference) > 0 and isinstance(reference[0], (list, tuple, np.ndarray))
            references = list(reference) if several else [reference]
        if not references:
            raise ValueError(f"{self.name}: a sentence has no reference")
        self._sentences += 1
        self.add(self._tokens(hypothesis), [self._tokens(one) for one in references])

    def _tokens(self, sentence: Any) -> list[Any]:
        if isinstance(sentence, str):
            return list(self.tokenize(sentence))
        tokens = sentence.tolist() if isinstance(sentence, np.ndarray) else list(sentence)
        if self.end is not None and self.end in tokens:
            tokens = tokens[: tokens.index(self.end)]
        return [token for token in tokens if token != self.pad] if self.pad is not None else tokens

    def compute(self) -> float:
        waiting, self._waiting = self._waiting, []
        for prediction, target in waiting:
            rows = zip(to_numpy(prediction), to_numpy(target), strict=True)
            for hypothesis, reference in rows:
                self._take(hypothesis, reference)
        self._require_samples(self._sentences)
        return self.result()


def _is_text(value: Any) -> bool:
    """Sentences as Python objects, not an array."""
    if isinstance(value, str):
        return True
    if isinstance(value, Tensor) or is_array(value):
        return False
    first: Iterator[Any] = iter(value)
    return isinstance(next(first, ""), (str, list, tuple, np.ndarray))
