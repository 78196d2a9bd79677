"""Words of a text, and `Vocabulary`: tokens (words, characters, parts of words) as numbers."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.device import is_array, to_numpy
from gpunn.errors import FileFormatError
from gpunn.io import write_text

PADDING, UNKNOWN = "<pad>", "<unk>"

# What stands in no alternative but the last is a token of its own, so no character gets lost.
_TOKEN = re.compile(
    r"(?:https?://|www\.)\S+"  # an address
    r"|(?<!\w)[:;=8][-'^o]?[()\[\]DPp/\\|*3](?!\w)|<3"  # an emoticon
    r"|[@#]?\w+(?:['’\-.,/]\w+)*"  # a word, a number, a mention, a hash tag
    r"|([^\w\s])\1*",  # a mark, several of the same in one
    re.IGNORECASE,
)


def split_words(text: str, lower: bool = True) -> list[str]:
    """The words, numbers and marks of a text, in their order; nothing but white space is left out.

    Words keep their apostrophes and hyphens ("don't"), numbers their points ("1,000.50"), mentions
    and hash tags their first sign ("@you", "#fun"). An address, an emoticon and a run of one mark
    ("!!!") are one token each. For languages that put spaces between words.

    Parameters
    ----------
    lower : in lower case

    Examples
    --------
    >>> split_words("I can't WAIT!!! :-)")
    ['i', "can't", 'wait', '!!!', ':-)']
    """
    return [found[0] for found in _TOKEN.finditer(text.lower() if lower else text)]


class Vocabulary:
    """Tokens and their numbers: token i of `tokens` has the number i.

    Parameters
    ----------
    tokens : all different; where "<unk>" is among them, unknown tokens get its number

    Attributes
    ----------
    tokens : as a tuple
    padding : the number of "<pad>", None without
    unknown : the number of "<unk>", None without

    ValueError for a token that comes twice.

    Examples
    --------
    >>> vocabulary = Vocabulary.of([["good", "day"], ["good", "night"]], at_least=2)
    >>> vocabulary.tokens
    ('<pad>', '<unk>', 'good')
    >>> vocabulary.encode(["good", "morning"])
    array([2, 1])
    """

    def __init__(self, tokens: Iterable[str]):
        self.tokens = tuple(tokens)
        self._numbers = {token: number for number, token in enumerate(self.tokens)}
        if len(self._numbers) < len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"Vocabulary: the token {twice!r} comes more than once")
        self.padding, self.unknown = self._numbers.get(PADDING), self._numbers.get(UNKNOWN)

    @classmethod
    def of(
        cls,
        texts: Iterable[Iterable[str]],
        limit: int | None = None,
        at_least: int = 1,
        special: Sequence[str] = (PADDING, UNKNOWN),
    ) -> Vocabulary:
        """The tokens of `texts`, the most frequent first (of equals, in the order of characters).

        Parameters
        ----------
        texts : each an iterable of tokens; a string is one of characters
        limit : at most so many tokens, the special ones among them
        at_least : leave out what comes less often
        special : tokens that come first, whether they are in the texts or not

        Give the training data alone: what only others contain is to be unknown.
        """
        counts = Counter(token for text in texts for token in text)
        for token in special:
            counts.pop(token, None)
        frequent = sorted(
            (token for token, count in counts.items() if count >= at_least),
            key=lambda token: (-counts[token], token),
        )
        return cls([*special, *frequent][:limit])

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __getitem__(self, token: str) -> int:
        """The number of a token. KeyError for one that is not there, even with "<unk>"."""
        return self._numbers[token]

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """The numbers of tokens, int64 (tokens,).

        ValueError for an unknown token, if "<unk>" is none of them.
        """
        if self.unknown is None:
            try:
                return np.array([self._numbers[token] for token in tokens], np.int64)
            except KeyError as error:
                raise ValueError(
                    f"the token {error.args[0]!r} is none of the vocabulary's {len(self)}, and it "
                    f"has no {UNKNOWN}"
                ) from None
        get, unknown = self._numbers.get, self.unknown
        return np.array([get(token, unknown) for token in tokens], np.int64)

    def decode(self, numbers: Any) -> list[str]:
        """The tokens of numbers (an array, a Tensor or a list), without padding.

        ValueError for a number that no token has.
        """
        values = getattr(numbers, "array", numbers)  # of a Tensor
        values = to_numpy(values) if is_array(values) else np.asarray(values)
        if values.size and (values.dtype.kind not in "iu" or values.ndim != 1):
            raise ValueError(
                f"decode: expected whole numbers of shape (tokens,), got {values.dtype} of shape "
                f"{values.shape}"
            )
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low < 0 or (values.size and high >= len(self)):
            bad = low if low < 0 else high
            raise ValueError(f"decode: {bad} is the number of no token; there are {len(self)}")
        return [self.tokens[number] for number in values.tolist() if number != self.padding]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokens as a JSON list, whole or not at all."""
        write_text(Path(path), json.dumps(self.tokens, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote. FileNotFoundError; FileFormatError for another file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            tokens = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FileFormatError(f"{path} is no vocabulary: {error}") from None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise FileFormatError(f"{path} is no vocabulary: expected a JSON list of texts")
        try:
            return cls(tokens)
        except ValueError as error:
            raise FileFormatError(f"{path}: {error}") from None
