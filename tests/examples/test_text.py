"""The text example: its n-grams against the definition, its measuring against plain reading."""

import math
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn.train import evaluate_run, find_job, opened, run_job

JOB = find_job("text")
TEXT = sys.modules[JOB.train.__module__]
NGRAMS = sys.modules[TEXT.best_order.__module__]


def counted(learnt, characters, order):
    return NGRAMS.NGrams(NGRAMS.Grams(learnt, characters, order), order)


def kneser_ney(learnt, characters, order):
    """probability(character, those before), by dictionaries, from the definition."""
    levels = {}
    for length in range(1, order + 1):
        if length == order:
            grams = [tuple(learnt[n : n + length]) for n in range(len(learnt) - length + 1)]
            counts = Counter(grams)
        else:
            longer = {tuple(learnt[n : n + length + 1]) for n in range(len(learnt) - length)}
            counts = Counter(gram[1:] for gram in longer)
        of = [max(1, sum(count == n for count in counts.values())) for n in range(5)]
        share = of[1] / (of[1] + 2 * of[2])
        discounts = [0.0] + [n - (n + 1) * share * of[n + 1] / of[n] for n in (1, 2, 3)]
        discounts = [min(max(value, 0), n) for n, value in enumerate(discounts)]
        followers = defaultdict(dict)
        for gram, count in counts.items():
            followers[gram[:-1]][gram[-1]] = count
        levels[length] = followers, discounts

    def probability(character, before):
        found = 1 / characters
        for length in range(1, min(order, len(before) + 1) + 1):
            followers, discounts = levels[length]
            known = followers.get(tuple(before[len(before) - length + 1 :]))
            if known:
                total = sum(known.values())
                count = known.get(character, 0)
                rest = sum(discounts[min(3, n)] for n in known.values()) / total
                found = (count - discounts[min(3, count)]) / total + rest * found
        return found

    return probability


def test_ngrams_by_hand():
    # "abac": ab, ba and ac come once each, and a, b and c each behind one other character, so
    # D = 1 - 2 · 3/(3 + 2) · 1/3 = 0.6 in both levels. P(b) = 0.4/3 + 0.6/3.
    ngrams = counted(np.array([0, 1, 0, 2]), 3, 2)
    found = [ngrams.probabilities(np.array(pair))[1] for pair in ((0, 1), (0, 2), (0, 0), (1, 0))]
    np.testing.assert_allclose(found, [0.4, 0.4, 0.2, 0.6], rtol=1e-14)
    np.testing.assert_allclose(ngrams.probabilities(np.array([2, 1])), [1 / 3, 1 / 3], rtol=1e-14)


def test_ngrams_are_those_of_the_definition_and_sum_to_one():
    rng = np.random.default_rng(0)
    characters = 5
    learnt = np.cumsum(rng.choice(3, 400, p=[0.1, 0.6, 0.3])) % characters
    learnt[learnt == 4] = 0  # one that never comes
    asked = rng.integers(0, characters, 60)
    for order in (1, 2, 4):
        slow = kneser_ney(learnt.tolist(), characters, order)
        wanted = [slow(asked[n], asked[:n].tolist()) for n in range(len(asked))]
        ngrams = counted(learnt, characters, order)
        np.testing.assert_allclose(ngrams.probabilities(asked), wanted, rtol=1e-12)
        for before in (asked[:3], asked[:30], learnt[:30], asked[:0]):
            rows = [np.append(before, character) for character in range(characters)]
            total = sum(ngrams.probabilities(row)[-1] for row in rows)
            assert math.isclose(total, 1, rel_tol=1e-12)
    with pytest.raises(ValueError, match="order is 7; expected 1 to 6"):
        NGRAMS.NGrams(NGRAMS.Grams(learnt[:6], characters, 9), 7)


def test_the_order_is_chosen_by_validation():
    learnt = np.tile([0, 1, 2, 1], 30)  # what follows 1 is told by the two before
    chosen = TEXT.best_order(learnt, np.tile([1, 2, 1, 0], 5), 3, longest=4)
    losses = [counted(learnt, 3, n).losses(np.tile([1, 2, 1, 0], 5)).mean() for n in (1, 2, 3, 4)]
    assert len(chosen) == 1 + int(np.argmin(losses)) >= 3
    assert len(TEXT.best_order(learnt, learnt, 2**20, longest=30)) > 3  # of any alphabet


def small(model, **more):
    gpunn.manual_seed(1)
    config = JOB.configure(model=model, width=8, layers=1, heads=2, context=6, **more).sized()
    return config, TEXT.network(config, 7).eval()


@gpunn.no_grad()
def test_an_lstm_reads_the_held_out_text_once():
    config, model = small("lstm")
    held = np.random.default_rng(0).integers(0, 7, 2100)  # longer than what is read at once
    logits, _ = model(gpunn.tensor(held[None, :-1]))
    wanted = F.cross_entropy(logits[0], gpunn.tensor(held[1:]), reduction="none").numpy()
    np.testing.assert_allclose(TEXT.losses(model, config, held), wanted, rtol=2e-5)


@gpunn.no_grad()
@pytest.mark.parametrize("length", [7, 8, 9, 10, 11, 12, 13, 31])
def test_a_gpt_knows_half_a_context_everywhere(length):
    config, model = small("gpt")
    held = np.random.default_rng(0).integers(0, 7, length)
    found = TEXT.losses(model, config, held, batch=2)
    assert found.shape == (length - 1,)
    for place in range(length - 1):  # of the character behind `place`
        possible = []
        for start in range(max(0, place - 5), place + 1):
            known = held[start : start + 6]
            if len(known) == 6 and (start == 0 or place - start >= 3):
                logits = model(gpunn.tensor(known[None]))[0, place - start]
                possible.append(-F.log_softmax(logits, -1).numpy()[held[place + 1]])
        assert np.isclose(found[place], possible, rtol=1e-5).any()


@pytest.mark.parametrize("model", ["gpt", "lstm"])
def test_streams_are_what_is_generated(model):
    _, network = small(model)
    begin = gpunn.tensor([[1, 2, 3], [4, 5, 6]])
    gpunn.manual_seed(3)
    whole = network.generate(begin, 9, temperature=0.9, top_k=3)
    gpunn.manual_seed(3)
    pieces = list(network.stream(begin, 9, temperature=0.9, top_k=3))
    assert all(piece.shape == (2, 1) for piece in pieces)
    np.testing.assert_array_equal(gpunn.cat([begin, *pieces], 1).numpy(), whole.numpy())
    assert network.generate(begin, 0).shape == (2, 3)


def test_a_file_of_ones_own_is_learnt_and_gone_on_with(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("abcdefgh" * 60 + "Ω", encoding="utf-8")
    changes = {"model": "gpt", "file": str(path), "limit": None, "width": 16, "epochs": 25,
               "learning_rate": 0.02, "temperature": 0.0, "length": 10}  # fmt: skip
    config = JOB.configure(**JOB.quick | changes)
    result = run_job(JOB, config, tmp_path / "run", verbose=False)
    assert result.outcome.value < 1.5 and result.outcome.samples == 48
    written = (tmp_path / "run/samples.txt").read_text(encoding="utf-8")
    assert [f"---- temperature {t} ----\nThe " in written for t in (0.5, 0.8, 1.0)] == [True] * 3
    run = opened(tmp_path / "run", verbose=False)
    pieces = list(JOB.predict(run, "abcd"))
    assert pieces[0] == "abcd" and "".join(pieces) == "abcdefghabcdef"
    assert len(list(JOB.predict(run, ""))) == 11  # begun with the end of a line
    path.write_text("abcdefgh" * 61, encoding="utf-8")
    with pytest.raises(ValueError, match="is another text than .* was trained on"):
        evaluate_run(tmp_path / "run")


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="the width, 20, is not a multiple of 3 heads"):
        JOB.configure(width=20, heads=3)
    config = JOB.configure(limit=1000, context=100).sized()
    with pytest.raises(ValueError, match="1,000 characters; for pieces of 100 it takes at least"):
        TEXT.read(config)
