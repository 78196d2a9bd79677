"""Translations without a network, for translation.py: a dictionary and a translation memory."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

Pairs = list[tuple[str, str]]


def words(text: str) -> list[str]:
    """The words and signs of a text; what is cut short by an apostrophe, as in l'espace, alone."""
    return re.findall(r"\w+['’]?|[^\w\s]", text)


def word_probabilities(pairs: Pairs, rounds: int = 5) -> dict[str, dict[str, float]]:
    """For each English word how probable each French one is as its translation.

    The first model of P. Brown et al., The mathematics of statistical machine translation, 1993:
    each French word of a pair comes from one of its English words, or from none, which is "". Which
    one is not known; expectation and maximisation in turn find the probabilities.
    """
    kinds: dict[tuple[str, str], int] = {}
    link_kinds, link_places, place = [], [], 0
    for english, french in pairs:
        sources = ["", *words(english)]
        for target in words(french):
            link_kinds += [kinds.setdefault((source, target), len(kinds)) for source in sources]
            link_places += [place] * len(sources)
            place += 1
    kind, at = np.array(link_kinds), np.array(link_places)
    numbers: dict[str, int] = {}
    source_of = np.array([numbers.setdefault(source, len(numbers)) for source, _ in kinds])
    probability = np.ones(len(kinds))
    for _ in range(rounds):
        share = probability[kind]
        share = share / np.bincount(at, share)[at]  # of each English word in this French one
        counts = np.bincount(kind, share, len(kinds))
        probability = counts / np.bincount(source_of, counts)[source_of]
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for (source, target), value in zip(kinds, probability.tolist(), strict=True):
        table[source][target] = value
    return table


def by_dictionary(pairs: Pairs, texts: Sequence[str]) -> list[str]:
    """Word by word the likeliest translation; words that were never seen stay."""
    table = word_probabilities(pairs)
    best = {source: max(found, key=found.__getitem__) for source, found in table.items()}
    made = [" ".join(best.get(word, word) for word in words(text)) for text in texts]
    return [re.sub(r"(['’]) ", r"\1", text) for text in made]


def by_memory(pairs: Pairs, texts: Sequence[str]) -> list[str]:
    """The translation of the training text most like each, by rare groups of three letters."""

    def groups(text: str) -> set[str]:
        text = f"  {text.casefold()} "
        return {text[start : start + 3] for start in range(len(text) - 2)}

    where: dict[str, list[int]] = defaultdict(list)
    for number, (english, _) in enumerate(pairs):
        for group in sorted(groups(english)):
            where[group].append(number)
    places = {group: np.array(found) for group, found in where.items()}
    weight = {group: math.log(len(pairs) / len(found)) ** 2 for group, found in where.items()}
    norms = np.full(len(pairs), 1e-9)
    for group, found in places.items():
        norms[found] += weight[group]
    chosen = []
    for text in texts:
        score = np.zeros(len(pairs))
        for group in sorted(groups(text) & places.keys()):
            score[places[group]] += weight[group]
        chosen.append(pairs[int((score / np.sqrt(norms)).argmax())][1])
    return chosen
