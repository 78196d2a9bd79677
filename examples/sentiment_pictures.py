"""The pictures that sentiment.py puts into its run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from sentiment_texts import SPLIT_SEED, Texts, words_of

import gpunn
from gpunn import data
from gpunn.train import Run
from gpunn.train.metrics import confusion_matrix
from gpunn.train.plots import (
    confusion_matrix_figure,
    plot_precision_recall,
    plot_top_words,
    plot_word_weights,
)

SHOWN = 40  # words of a text, so that a picture holds several
FREQUENT = slice(2, 2000)  # of the vocabulary, which begins with <pad> and <unk>


@gpunn.no_grad()
def draw(
    run: Run, texts: Texts, shares: np.ndarray, model: Any, vocabulary: data.Vocabulary
) -> None:
    """Confusion, precision and recall, which words attention weighs, which speak for themselves."""
    (held, true), names = texts.part(2), texts.classes
    counts = confusion_matrix(shares, true)
    run.figure("confusion", lambda: confusion_matrix_figure(counts, names))
    run.figure("precision-recall", lambda: plot_precision_recall(shares, true, names))
    rng, chosen = np.random.default_rng(SPLIT_SEED), []
    for label in range(len(names)):  # drawn by lot, not the best ones
        chosen += [*rng.permutation(np.flatnonzero(true == label))[:3]]
    words = [words_of(held[index])[: run.config.words] or ["<unk>"] for index in chosen]
    padded, lengths = data.pad_sequences([vocabulary.encode(text) for text in words])
    weights = model.attention(
        gpunn.tensor(padded, device=run.device), gpunn.tensor(lengths, device=run.device)
    ).numpy()
    captions = [
        f"judged {names[shares[index].argmax()]} ({shares[index].max():.0%}), by people "
        f"{names[true[index]]}"
        for index in chosen
    ]
    words = [text[:SHOWN] for text in words]
    rows = [row[: len(text)] for row, text in zip(weights, words, strict=True)]
    run.figure("attention", lambda: plot_word_weights(
        words, rows, captions, title="What attention weighs: the darker, the heavier"))  # fmt: skip
    tokens = vocabulary.tokens[FREQUENT]
    if model.wide is not None and tokens:
        said = model.wide.words.weight.detach().numpy()[FREQUENT]
        said = said - said.mean(1, keepdims=True)  # what speaks for all alike decides nothing
        run.figure("words", lambda: plot_top_words(
            tokens, said, names, xlabel="weight for the class",
            title="Frequent words that speak for a class by themselves"))  # fmt: skip
