"""Beam search against all sequences there are, and what it does with a model's state."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpunn
from gpunn import models, nn

END, START, WORDS, LONGEST, BATCH = 0, 1, 4, 4, 3
TABLE = np.random.default_rng(0).normal(size=(BATCH, WORDS, WORDS, WORDS)).astype(np.float32) * 2


def step(tokens, state):
    """Logits by the latest two tokens and which of the batch it is."""
    which, before = state["which"], state["before"]
    logits = TABLE[which.numpy(), before.numpy(), tokens[:, 0].numpy()]
    return gpunn.tensor(logits), {"which": which, "before": tokens[:, 0]}


def beginning():
    return {"which": gpunn.arange(BATCH), "before": gpunn.full((BATCH,), START, dtype=np.int64)}


def log_probability(which, tokens):
    total, two = 0.0, (START, START)
    for token in tokens:
        logits = TABLE[(which, *two)].astype(np.float64)
        total += logits[token] - np.log(np.exp(logits).sum())
        two = two[1], token
    return total


def sequences():
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(WORDS), repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == LONGEST):
                yield tokens


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 1.5])
def test_wide_beams_find_the_best_of_all_sequences(penalty):
    found = models.beam_search(
        step, beginning(), BATCH, START, END, 81, LONGEST, length_penalty=penalty
    )
    for which in range(BATCH):
        scores = sorted(
            (log_probability(which, one) / len(one) ** penalty for one in sequences()), reverse=True
        )
        np.testing.assert_allclose(found.scores[which].numpy(), scores[:81], atol=2e-5)
        for rank in range(81):
            length = int(found.lengths[which, rank])
            tokens = found.tokens[which, rank].tolist()
            assert set(tokens[length:]) <= {END}
            mine = log_probability(which, tokens[:length]) / length**penalty
            assert abs(mine - scores[rank]) < 2e-5


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy(monkeypatch, penalty, seed):
    table = np.random.default_rng(seed).normal(size=TABLE.shape).astype(np.float32)
    monkeypatch.setitem(globals(), "TABLE", table)
    found = models.beam_search(
        step, beginning(), BATCH, START, END, 1, LONGEST, length_penalty=penalty
    )
    for which in range(BATCH):
        two, greedy = (START, START), []
        while len(greedy) < LONGEST and END not in greedy:
            token = int(TABLE[(which, *two)].argmax())
            greedy.append(token)
            two = two[1], token
        length = int(found.lengths[which, 0])
        assert found.tokens[which, 0].tolist()[:length] == greedy
        score = log_probability(which, greedy) / length**penalty
        assert abs(float(found.scores[which, 0]) - score) < 2e-5


def test_fewer_sequences_than_beams():
    def ends(tokens, state):
        return gpunn.tensor([[9.0, -np.inf]] * tokens.shape[0]), state

    found = models.beam_search(ends, None, 2, START, END, beams=3, max_length=5)
    assert found.scores.tolist() == [[0.0, -np.inf, -np.inf]] * 2
    assert found.lengths.tolist() == [[1, 0, 0]] * 2 and not found.tokens.numpy().any()


def test_a_transformer_with_caches_says_what_it_says_without():
    gpunn.manual_seed(3)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    embedding, head = nn.Embedding(7, 8), nn.Linear(8, 7)
    memory = gpunn.randn(2, 3, 8)

    def with_caches(tokens, state):
        memory, caches = state
        out = decoder(embedding(tokens), memory, caches=caches)
        return head(out[:, -1]), state

    def without(tokens, state):
        memory, before = state
        before = tokens if before is None else gpunn.cat([before, tokens], 1)
        out = decoder(embedding(before), memory, tgt_is_causal=True)
        return head(out[:, -1]), (memory, before)

    caches = [nn.KeyValueCache(2, 6, 2, 4) for _ in range(2)]
    first = models.beam_search(with_caches, (memory, caches), 2, START, END, 3, 6)
    second = models.beam_search(without, (memory, None), 2, START, END, 3, 6)
    assert first.tokens.tolist() == second.tokens.tolist()
    np.testing.assert_allclose(first.scores.numpy(), second.scores.numpy(), rtol=1e-5)


def test_state_keeps_its_form():
    rows = gpunn.tensor([1, 1, 0])
    state = ({"a": gpunn.tensor([[1.0], [2.0]])}, [None, gpunn.tensor([3, 4])])
    first, second = models.select_rows(state, rows)
    assert first["a"].tolist() == [[2.0], [2.0], [1.0]]
    assert second[0] is None and second[1].tolist() == [4, 4, 3]


def test_errors():
    with pytest.raises(ValueError, match="beams is 0"):
        models.beam_search(step, beginning(), BATCH, START, END, beams=0)
    with pytest.raises(ValueError, match="length_penalty is -1"):
        models.beam_search(step, beginning(), BATCH, START, END, length_penalty=-1)
    with pytest.raises(ValueError, match=r"shape \(3, 4\); expected \(6, vocabulary\)"):
        models.beam_search(
            lambda tokens, state: (gpunn.zeros(3, 4), state), None, 3, START, END, beams=2
        )


def test_attention_of_seq2seq_is_what_its_decoder_sees():
    gpunn.manual_seed(0)
    model = models.Seq2Seq(9, 9, 6, 8)
    model.eval()
    source = gpunn.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    target, lengths = gpunn.tensor([[1, 3, 4], [1, 5, 6]]), gpunn.tensor([4, 2])
    weights = model.attention(source, target, lengths)
    assert weights.shape == (2, 3, 4) and not weights[1, :, 2:].numpy().any()
    np.testing.assert_allclose(weights.sum(-1).numpy(), 1, rtol=1e-6)
    states, hidden = model.encode(source, lengths)
    x, _ = model.decoder(model.target(target), hidden)
    mixed = gpunn.tanh(model.mix(gpunn.cat([weights @ states, x], -1)))
    want = model(source, target, lengths)
    np.testing.assert_allclose(model.head(mixed).detach().numpy(), want.detach().numpy(), atol=1e-6)
