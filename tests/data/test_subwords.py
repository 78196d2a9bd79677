"""Byte-pair encoding: the merges of the paper, nothing lost on the way, files."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.data import Subwords

CORPUS = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3  # that of the paper


def plain_merges(texts, count):
    """The algorithm of the paper as it stands there: count all pairs, merge, again."""
    words = Counter(texts)
    splits = {word: list(word) for word in words}
    found = []
    for _ in range(count):
        pairs = Counter()
        for word, parts in splits.items():
            for pair in zip(parts, parts[1:], strict=False):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        for word, parts in splits.items():
            text = "\0".join(parts).split("\0")
            at = 0
            while at + 1 < len(text):
                if (text[at], text[at + 1]) == best:
                    text[at : at + 2] = ["".join(best)]
                at += 1
            splits[word] = text
    return found


def test_merges_are_those_of_the_plain_algorithm():
    letters = len({sign for text in CORPUS for sign in text})
    learnt = Subwords.learn(CORPUS, 4 + letters + 8)
    assert learnt.merges == plain_merges(CORPUS, 8)
    assert learnt.merges[:3] == [("e", "s"), ("es", "t"), ("l", "o")]
    assert len(learnt) == 4 + letters + 8
    assert [learnt.tokens[n] for n in learnt.encode("lowest")] == ["low", "est"]


def test_order_of_the_texts_and_of_hashes_counts_for_nothing():
    texts = ["Open the file", "Close the file…", "%1 cells hidden", "the files' names"]
    first, second = (Subwords.learn(some, 60) for some in (texts, texts[::-1]))
    assert first.to_json() == second.to_json()


SUBWORDS = Subwords.learn(["Ouvrir le fichier", "l'espace de travail n° 12", "aaaa aaa"] * 3, 60)


@settings(max_examples=60, deadline=None)
@given(st.text("Ouvrile fchrl'spac dtn°12\n_a", max_size=30))
def test_what_is_encoded_comes_back(text):
    tokens = SUBWORDS.encode(text.replace("\n", " ").replace("_", ""))
    assert SUBWORDS.decode(tokens) == text.replace("\n", " ").replace("_", "")
    assert min(tokens, default=4) >= 4


def test_special_tokens_and_unknown_characters():
    some = SUBWORDS.encode("le")
    assert SUBWORDS.decode([SUBWORDS.start, *some, SUBWORDS.end, 7, SUBWORDS.padding]) == "le"
    assert SUBWORDS.encode("ж") == [SUBWORDS.unknown]
    assert SUBWORDS.decode(SUBWORDS.encode("lжe")) == "l\N{REPLACEMENT CHARACTER}e"
    assert SUBWORDS.encode("") == [] and SUBWORDS.tokens[0] == "<padding>"


def test_it_ends_where_no_pair_occurs_twice():
    assert len(Subwords.learn(["abc"], 100)) == 4 + 3
    # "abc" from "ab" + "c" and from "a" + "bc": two merges, one token.
    texts = ["ab"] * 9 + ["bc"] * 8 + ["abc"] * 4 + ["xbc"] * 5
    learnt = Subwords.learn(texts, 100)
    assert len(set(learnt.tokens)) == len(learnt.tokens)


def test_files_and_errors():
    again = Subwords.from_json(SUBWORDS.to_json())
    assert again.tokens == SUBWORDS.tokens and again.merges == SUBWORDS.merges
    assert again.encode("Ouvrir 12") == SUBWORDS.encode("Ouvrir 12")
    wrong = ("no JSON", "[]", '{"characters": []}', '{"characters": [1], "merges": []}',
             '{"characters": ["a"], "merges": [["a"]]}')  # fmt: skip
    for text in wrong:
        with pytest.raises(ValueError, match="as to_json makes it"):
            Subwords.from_json(text)
    with pytest.raises(ValueError, match="the texts have 3 characters; expected .* 7 or more"):
        Subwords.learn(["abc"], 6)
    with pytest.raises(ValueError, match="expected a text"):
        Subwords.learn([], 10)
