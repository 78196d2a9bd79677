"""BLEU and chrF against sacrebleu and published values; edits against a plain recursion."""

import functools
import math
import random

import numpy as np
import pytest

from gpunn import nn, optim
from gpunn.train import Trainer, metrics
from gpunn.train.metrics import BLEU, CharacterErrorRate, ChrF, WordErrorRate, tokenize_13a

sacrebleu = pytest.importorskip("sacrebleu")

SENTENCES = [
    "It is a guide to action which ensures that the military always obeys the commands of it.",
    'He said: "it costs $1,000.50 (about 900-950 euros)", didn\'t he?',
    "Wait... what?! 3.14 is pi, e.g. in maths -- &quot;not&quot; 3,14; see a/b & c_d.",
    "the the the the the the the",
    "Straße, déjà vu – naïve coöperation 2-3 times, 10-fold.",
    "ok",
]


def corpus(seed, size=12, references=2):
    """Sentences and damaged copies of them."""
    rng = random.Random(seed)
    said, true = [], []
    for _ in range(size):
        words = rng.choice(SENTENCES).split()
        true.append([" ".join(w for w in words if rng.random() < 0.9) for _ in range(references)])
        kept = [w if rng.random() < 0.8 else rng.choice(words) for w in words]
        said.append(" ".join(kept[: rng.randint(0, len(kept))] if seed % 2 else kept))
    return said, true


def test_tokens_are_those_of_sacrebleu():
    theirs = sacrebleu.metrics.BLEU(tokenize="13a").tokenizer
    for text in SENTENCES:
        assert " ".join(tokenize_13a(text)) == theirs(text)
    assert tokenize_13a("line-\nbreak <skipped> here\nnow") == ["linebreak", "here", "now"]


@pytest.mark.parametrize("smoothing", ["exp", "floor", "add-k", "none"])
def test_bleu_equals_sacrebleu(smoothing):
    for seed in range(8):
        said, true = corpus(seed)
        theirs = sacrebleu.metrics.BLEU(smooth_method=smoothing)
        expected = theirs.corpus_score(said, list(zip(*true, strict=True)))
        metric = BLEU(smoothing=smoothing)
        metric.update(said[:5], true[:5])
        metric.update(said[5:], true[5:])
        assert metric.compute() == pytest.approx(expected.score, abs=1e-9)
        assert metric.brevity_penalty == pytest.approx(expected.bp)
        tokens = [tokenize_13a(text) for text in said]
        lists = [[tokenize_13a(text) for text in texts] for texts in true]
        assert metrics.bleu(tokens, lists, smoothing=smoothing) == metric.compute()
        single = sacrebleu.metrics.BLEU(smooth_method=smoothing, effective_order=True)
        for text, texts in zip(said, true, strict=True):
            ours = metrics.bleu([text], [texts], smoothing=smoothing, effective_order=True)
            assert ours == pytest.approx(single.sentence_score(text, texts).score, abs=1e-9)


def test_bleu_of_the_paper():
    """Papineni et al., 2002: clipped counts 2/7 for example 2, 17/18 and 8/14 for example 1."""
    candidate_1 = (
        "It is a guide to action which ensures that the military always obeys the commands of "
        "the party"
    ).lower()
    candidate_2 = (
        "It is to insure the troops forever hearing the activity guidebook that party direct"
    ).lower()
    references = [
        "it is a guide to action that ensures that the military will forever heed party commands",
        "it is the guiding principle which guarantees the military forces always being under the "
        "command of the party",
        "it is the practical guide for the army always to heed the directions of the party",
    ]
    metric = BLEU(tokenize="words", smoothing="none")
    for candidate, unigram, bigram in (
        (candidate_1, 17 / 18, 10 / 17),
        (candidate_2, 8 / 14, 1 / 13),
    ):
        metric.reset()
        metric.update([candidate], [references])
        assert metric.precisions[:2] == pytest.approx([unigram, bigram])
    metric.reset()
    metric.update(
        ["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]]
    )
    assert metric.precisions[0] == pytest.approx(2 / 7)
    # "Candidate: of the": short, so its brevity counts, against the closest reference (16 words).
    metric.reset()
    metric.update(["of the"], [references])
    assert metric.precisions[:2] == [1.0, 1.0]
    assert metric.brevity_penalty == pytest.approx(math.exp(1 - 16 / 2))
    assert metric.compute() == 0.0
    assert metrics.bleu(["a b c d e"], ["a b c d e"]) == pytest.approx(100.0)
    assert metrics.bleu([""], ["a b"]) == 0.0


def test_chrf_equals_sacrebleu():
    for seed in range(4):
        said, true = corpus(seed)
        expected = sacrebleu.metrics.CHRF().corpus_score(said, list(zip(*true, strict=True)))
        metric = ChrF()
        metric.update(said[:5], true[:5])
        metric.update(said[5:], true[5:])
        assert metric.compute() == pytest.approx(expected.score, abs=1e-9)
    assert metrics.chrf(["abc"], ["xyz"]) == 0.0
    said = ["a e b c d b d", "d e e b", "b c d d"]  # the second has two references as good
    true = [["c a e d e e d c", "e c d", "d d a e b a b c"], ["d a d", "a e", "b e a d a b b a"]]
    expected = sacrebleu.corpus_chrf(said, true).score
    assert metrics.chrf(said, [list(r) for r in zip(*true, strict=True)]) == pytest.approx(expected)


def plain_distance(a, b):
    @functools.cache
    def d(i, j):
        if not i or not j:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return d(len(a), len(b))


def test_edits():
    rng = random.Random(0)
    for _ in range(60):
        a = [rng.choice("abc") for _ in range(rng.randint(0, 14))]
        b = [rng.choice("abc") for _ in range(rng.randint(0, 14))]
        counts = metrics.edit_counts(a, b)
        assert counts.distance == metrics.edit_distance(a, b) == plain_distance(tuple(a), tuple(b))
        assert counts.length == len(a) and min(counts) >= 0
        assert counts.hits + counts.substitutions + counts.insertions == len(b)
    assert metrics.edit_distance("intention", "execution") == 5  # Jurafsky & Martin, section 2.5
    assert metrics.edit_counts("kitten", "sitting") == (4, 2, 0, 1)
    assert metrics.edit_counts([], [1, 2]) == (0, 0, 0, 2)
    long = [rng.randint(0, 3) for _ in range(1500)]
    other = long[:700] + [9] + long[705:]
    assert metrics.edit_counts(long, other) == (1495, 1, 4, 0)


def test_error_rates():
    said, true = ["the cat sit on mat", "hello"], ["the cat sat on the mat", "hello world"]
    metric = WordErrorRate()
    metric.update(said[:1], true[:1])
    metric.update(said[1:], true[1:])
    assert metric.compute() == 3 / 8 and metric.counts == (5, 1, 2, 0)
    assert metric.compute() == 3 / 8
    assert metrics.character_error_rate(["helo"], ["hello"]) == 1 / 5
    assert metrics.word_error_rate(["a b"], [["a c d", "a"]]) == pytest.approx(2 / 3)
    assert metrics.word_error_rate([""], [""]) == 0.0
    assert metrics.word_error_rate(["x"], [""]) == math.inf
    chars = CharacterErrorRate()
    chars.update([list("abd")], [list("abc")])
    assert chars.compute() == 1 / 3


def test_arrays_of_tokens():
    true = np.array([[5, 6, 7, 2, 0, 0], [5, 5, 8, 9, 2, 0]])
    said = np.array([[5, 6, 2, 7, 7, 7], [5, 5, 8, 9, 2, 3]])
    metric = WordErrorRate(end=2, pad=0)
    metric.update(said, true)
    assert metric.compute() == 1 / 7 and metric.counts.deletions == 1
    scores = np.eye(10)[said]
    scores[0, 4:] = np.eye(10)[4]  # what stands where the target is padding is not looked at
    shown = WordErrorRate(pad=0)
    shown.update(scores, true)
    assert shown.compute() == 2 / 9 and shown.counts.substitutions == 2
    bleu = BLEU(end=2, pad=0)
    bleu.update(true, true)
    assert bleu.compute() == pytest.approx(100.0)


def test_in_a_training():
    """A model that copies its input is as good as its output layer says."""
    tokens = np.random.default_rng(0).integers(3, 9, (8, 6))
    model = nn.Embedding(9, 9)
    model.weight.data = 2 * np.eye(9, dtype=np.float32)
    loss = lambda p, t: nn.functional.cross_entropy(p.reshape(-1, 9), t.reshape(-1))  # noqa: E731
    trainer = Trainer(
        model, loss, optim.SGD(model.parameters(), lr=0.0), ["bleu", "wer", "perplexity"]
    )
    measured = trainer.evaluate((tokens, tokens), batch_size=3)
    assert measured["bleu"] == pytest.approx(100.0) and measured["wer"] == 0.0
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]), rel=1e-6)
    record = trainer.fit((tokens, tokens), batch_size=3, verbose=False).records[0]
    assert record["bleu"] == pytest.approx(100.0) and record["perplexity"] == pytest.approx(
        measured["perplexity"], rel=1e-6
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="2 sentences and 1 references"):
        metrics.bleu(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="expected lists of sentences, got one text"):
        metrics.bleu("a b", "a b")
    with pytest.raises(ValueError, match="expected tokens"):
        metrics.word_error_rate(np.zeros((2, 3, 4)), np.zeros((2, 5), int))
    with pytest.raises(TypeError, match="tokens have dtype float64"):
        metrics.word_error_rate(np.zeros((2, 3)), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="smoothing is 'laplace'; expected one of 'exp'"):
        BLEU(smoothing="laplace")
    with pytest.raises(ValueError, match="tokenize is '14a'; expected one of '13a'"):
        BLEU(tokenize="14a")
    with pytest.raises(ValueError, match="no reference"):
        metrics.bleu(["a"], [[]])
    with pytest.raises(ValueError, match="no samples were given"):
        BLEU().compute()
