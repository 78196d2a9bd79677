"""Words, vocabularies, and sequences of different lengths in batches."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpunn
from gpunn.data import DataLoader, TrimPadding, Vocabulary, pad_sequences, split_words
from gpunn.data.sequences import POOL
from gpunn.errors import FileFormatError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I can’t, won't!!! ...", ["i", "can’t", ",", "won't", "!!!", "..."]),
        ("@You like #fun? http://t.co/aB3 :-)", "@you like #fun ? http://t.co/ab3 :-)".split()),
        ("1,000.50 € (self-driving)", ["1,000.50", "€", "(", "self-driving", ")"]),
        ("café_3 ❤❤ a'b'", ["café_3", "❤❤", "a'b", "'"]),
        (" \n", []),
        ("8pm at 5:30) :D", ["8pm", "at", "5", ":", "30", ")", ":d"]),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_words_lose_nothing_but_white_space(text):
    assert "".join(split_words(text, lower=False)) == "".join(text.split())


def test_the_most_frequent_tokens_come_first():
    vocabulary = Vocabulary.of([["b", "a", "c"], ["a", "b"], ["d", "<unk>"]], at_least=2)
    assert vocabulary.tokens == ("<pad>", "<unk>", "a", "b")
    assert vocabulary.encode(["b", "z", "a"]).tolist() == [3, 1, 2]
    assert vocabulary.encode([]).dtype == np.int64
    assert vocabulary.decode(gpunn.tensor([2, 0, 1, 3])) == ["a", "<unk>", "b"]
    assert len(vocabulary) == 4 and "a" in vocabulary and vocabulary["a"] == 2
    assert [*Vocabulary.of(["hello"], limit=3, special=())] == ["l", "e", "h"]
    with pytest.raises(KeyError):
        vocabulary["z"]


def test_what_a_vocabulary_refuses():
    letters = Vocabulary("abc")
    with pytest.raises(ValueError, match=r"token 'z' is none of the vocabulary's 3.*<unk>"):
        letters.encode("abz")
    for numbers, said in (([3], "3 is the number of no token"), ([-1], "-1 is the number")):
        with pytest.raises(ValueError, match=said):
            letters.decode(numbers)
    with pytest.raises(ValueError, match=r"whole numbers.*float64"):
        letters.decode([0.5])
    with pytest.raises(ValueError, match="'a' comes more than once"):
        Vocabulary("abca")


def test_a_vocabulary_in_a_file(tmp_path):
    path = tmp_path / "words.json"
    vocabulary = Vocabulary(["<pad>", "<unk>", "né", '"', "\n", "😀"])
    vocabulary.save(path)
    assert Vocabulary.load(path).tokens == vocabulary.tokens
    for text, said in (("{}", "JSON list"), ('["a", 1]', "JSON list"), ("[", "no vocabulary"),
                       ('["a", "a"]', "more than once")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(FileFormatError, match=rf"words\.json.*{said}"):
            Vocabulary.load(path)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(FileFormatError, match=r"words\.json"):
        Vocabulary.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Vocabulary.load(tmp_path / "none.json")
    vocabulary.save(path)
    assert json.loads(path.read_text("utf-8")) == [*vocabulary.tokens]


def test_padding():
    padded, lengths = pad_sequences([np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32)])
    assert padded.shape == (2, 2, 3) and padded.dtype == np.float32 and lengths.tolist() == [2, 0]
    padded, lengths = pad_sequences([[1, 2, 3], [], [4]], length=2, value=-1)
    assert padded.tolist() == [[1, 2], [-1, -1], [4, -1]] and lengths.tolist() == [2, 0, 1]
    assert padded.dtype == np.int64
    for bad, said in (([], "no sequences"), ([np.ones((1, 2)), np.ones((1, 3))], r"\(1, 3\)"),
                      ([1, 2], "agree")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            pad_sequences(bad)
    with pytest.raises(ValueError, match="1 or more"):
        pad_sequences([[1]], length=0)


def test_batches_hold_sequences_of_like_length():
    rng = np.random.default_rng(0)
    count, size = 2 * POOL * 4 + 7, 4
    lengths = rng.integers(1, 41, count)
    words = np.arange(1, 41) * (np.arange(40) < lengths[:, None])
    loader = DataLoader((words, lengths, np.arange(count)), size, shuffle=True, lengths=lengths,
                        seed=3, transform=TrimPadding(multiple=8))  # fmt: skip
    seen, steps, spread = [], 0, []
    for x, n, number in loader:
        longest = int(n.numpy().max())
        assert x.shape[1] == -(-longest // 8) * 8
        np.testing.assert_array_equal(x.numpy(), words[number.numpy()][:, : x.shape[1]])
        seen += number.numpy().tolist()
        steps += x.shape[0] * longest
        spread.append(np.ptp(n.numpy()))
    assert sorted(seen) == list(range(count)) and len(number) == count % size
    assert steps < 1.06 * lengths.sum()  # in the order of chance it is some 1.6 times
    assert np.median(spread) <= 2
    assert seen == loader.order(0).tolist() != loader.order(1).tolist()
    assert np.corrcoef(lengths[loader.order(1)], np.arange(count))[0, 1] ** 2 < 0.05  # shuffled
    short = DataLoader(np.arange(7), 4, shuffle=True, lengths=np.arange(7), drop_last=True)
    left_out = [set(range(7)) - set(short.order(epoch)[:4]) for epoch in range(20)]
    assert set.union(*left_out) == set(range(7))  # not the longest every time
    again = DataLoader(loader.dataset, size, shuffle=True, lengths=lengths, seed=3)
    iterator = iter(again)
    for _ in range(5):
        next(iterator)
    rest = DataLoader(loader.dataset, size, shuffle=True, lengths=gpunn.tensor(lengths))
    rest.load_state_dict(again.state_dict())
    assert [n for *_, number in rest for n in number.numpy()] == seen[5 * size :]


def test_what_grouping_refuses():
    with pytest.raises(ValueError, match="shuffle=True"):
        DataLoader(np.ones((3, 2)), 2, lengths=[1, 2, 2])
    for lengths in ([1, 2], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="whole number for each of the 3"):
            DataLoader(np.ones((3, 2)), 2, shuffle=True, lengths=lengths)
    with pytest.raises(ValueError, match="multiple"):
        TrimPadding(multiple=0)
