"""Subwords: texts as tokens between characters and words, learnt from the texts themselves."""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

# A word with the space before it, digits one by one, and all other signs one by one.
_PIECES = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]| ?_|\s")
_SPECIAL = ("<padding>", "<start>", "<end>", "<unknown>")


class Subwords:
    """Byte-pair encoding: the commonest pair of neighbours becomes a token, again and again.

    R. Sennrich, B. Haddow, A. Birch, "Neural machine translation of rare words with subword units",
    2016. Frequent words become one token, rare ones a few; merges stay within a word, its space
    before it included, so `decode` gives back the text as it was. Made by `learn`.

    Attributes
    ----------
    padding, start, end, unknown : 0, 1, 2, 3: what fills up, begins and ends sequences, and stands
        for a character that was not among the texts
    tokens : the text of each token, `len` of them: the four, the characters, then what was merged

    Examples
    --------
    >>> subwords = Subwords.learn(["low lower lowest", "new newer newest"], 24)
    >>> [subwords.tokens[token] for token in subwords.encode("newest low")]
    ['ne', 'w', 'est', ' low']
    >>> subwords.decode(subwords.encode("newest low"))
    'newest low'
    """

    padding, start, end, unknown = range(4)

    def __init__(self, characters: Sequence[str], merges: Sequence[tuple[str, str]]):
        self.merges = [(first, second) for first, second in merges]
        self.characters = list(characters)
        # Two merges may make the same text, "ab" + "c" and "a" + "bc": that is one token.
        joined = dict.fromkeys(first + second for first, second in self.merges)
        self.tokens = [*_SPECIAL, *self.characters, *joined]
        self._numbers = {text: number for number, text in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._known: dict[str, tuple[int, ...]] = {}  # words that were split before

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> Subwords:
        """Tokens for such texts: all their characters, and merges until there are `size` tokens.

        It ends before where no pair of tokens occurs twice. ValueError for no text, or a `size`
        that does not hold the characters.
        """
        words = Counter(piece for text in texts for piece in _PIECES.findall(text))
        characters = sorted({sign for word in words for sign in word})
        least = len(_SPECIAL) + len(characters)
        if not words or size < least:
            raise ValueError(
                f"Subwords: size is {size}, and the texts have {len(characters)} characters; "
                f"expected a text and a size of {least} or more"
            )
        splits = {word: list(word) for word in words}
        counts, where = _pairs(splits, words)
        # The commonest first; of equally common ones the first in the alphabet, whatever the order
        # of the texts. Counts that changed since make an entry void.
        heap = [(-count, pair) for pair, count in counts.items()]
        heapq.heapify(heap)
        merges: list[tuple[str, str]] = []
        made: set[str] = set()
        while heap and len(made) < size - least:
            count, pair = heapq.heappop(heap)
            if -count < 2:
                break
            if -count != counts[pair]:
                continue
            merges.append(pair)
            made.add("".join(pair))
            changed: set[tuple[str, str]] = set()
            for word in where[pair]:
                before, after = splits[word], _merged(splits[word], pair)
                for old in _neighbours(before):
                    counts[old] -= words[word]
                for new in _neighbours(after):
                    counts[new] += words[word]
                    where.setdefault(new, set()).add(word)
                splits[word] = after
                changed.update(_neighbours(before), _neighbours(after))
            for other in changed:
                heapq.heappush(heap, (-counts[other], other))
        return cls(characters, merges)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without `start` and `end`."""
        return [token for piece in _PIECES.findall(text) for token in self._word(piece)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens up to the first `end`; `padding` and `start` are left out.

        `unknown` becomes U+FFFD, the replacement character.
        """
        parts = []
        for token in tokens:
            if token == self.end:
                break
            if token == self.unknown:
                parts.append("\N{REPLACEMENT CHARACTER}")
            elif token not in (self.padding, self.start):
                parts.append(self.tokens[token])
        return "".join(parts)

    def _word(self, word: str) -> tuple[int, ...]:
        found = self._known.get(word)
        if found is None:
            parts, last = list(word), len(self._ranks)
            while len(parts) > 1:
                pair = min(_neighbours(parts), key=lambda pair: self._ranks.get(pair, last))
                if pair not in self._ranks:
                    break
                parts = _merged(parts, pair)
            found = tuple(self._numbers.get(part, self.unknown) for part in parts)
            self._known[word] = found
        return found

    # ---- files -----------------------------------------------------------------------------------

    def to_json(self) -> str:
        """All of it as a text for a file."""
        content = {"characters": self.characters, "merges": self.merges}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Subwords:
        """What `to_json` gave. ValueError if it is something else."""
        try:
            content = json.loads(text)
            characters, merges = content["characters"], content["merges"]
            parts = [*characters, *(part for pair in merges for part in pair)]
            fits = all(isinstance(part, str) for part in parts)
            fits = fits and all(len(pair) == 2 for pair in merges)
        except (ValueError, TypeError, KeyError):
            fits = False
        if not fits:
            raise ValueError(
                'Subwords: expected {"characters": […], "merges": [[…, …], …]}, as to_json makes it'
            )
        return cls(characters, merges)


def _neighbours(parts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(parts, parts[1:], strict=False))


def _pairs(
    splits: dict[str, list[str]], words: Counter[str]
) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], set[str]]]:
    """How often each pair of neighbours occurs, and in which words."""
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[str]] = {}
    for word, parts in splits.items():
        for pair in _neighbours(parts):
            pairs[pair] += words[word]
            where.setdefault(pair, set()).add(word)
    return pairs, where


def _merged(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """The same with each occurrence of the pair, from the left, made one."""
    made, at = [], 0
    while at < len(parts):
        if at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair:
            made.append(parts[at] + parts[at + 1])
            at += 2
        else:
            made.append(parts[at])
            at += 1
    return made
