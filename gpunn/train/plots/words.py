"""Pictures for texts: the words of a text by weight, and the words that weigh most."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.train.plots.figures import TRAINING, class_names, finished, literal, new_figure, plain
from gpunn.train.plots.figures import values_of as values

_WIDE = 100  # characters in a line of words


def plot_word_weights(
    texts: Sequence[Sequence[str]],
    weights: Sequence[Any],
    captions: Sequence[str] | None = None,
    *,
    title: str = "What is weighed: the darker a word's ground, the heavier",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Texts with each word on a ground that is the darker the more it weighs.

    Parameters
    ----------
    texts : the words of each
    weights : of each text a weight of 0 or more for each of its words, such as those of attention;
        within a text the heaviest is darkest
    captions : a line above each text

    Returns the Figure. ValueError for no texts, or numbers of weights, captions and words that do
    not match.
    """
    texts = [list(words) for words in texts]
    captions = [""] * len(texts) if captions is None else list(captions)
    if not texts or not len(texts) == len(weights) == len(captions):
        raise ValueError(
            f"{len(texts)} texts, {len(weights)} weights and {len(captions)} captions; expected "
            "one of each for one text or more"
        )
    drawn, height = [], 0.0  # (line, column, text, weight or None)
    for words, given, caption in zip(texts, weights, captions, strict=True):
        row = values(given, "weights").astype(float)
        if row.shape != (len(words),) or not (row >= 0).all():  # NaN neither
            raise ValueError(
                f"weights of shape {row.shape} for {len(words)} words; expected one of 0 or more "
                "for each"
            )
        if caption:
            drawn.append((height, 0, caption, None))
            height += 1
        column, top = 0, row.max(initial=0) or 1.0
        for word, weight in zip(words, row / top, strict=True):
            if column and column + len(word) > _WIDE:
                height, column = height + 1.15, 0
            drawn.append((height, column, word, weight))
            column += len(word) + 1
        height += 1.7
    figure = new_figure(0.082 * _WIDE + 0.5, 0.21 * height + 0.6)
    axes = figure.subplots()
    for line, column, text, weight in drawn:
        if weight is None:
            axes.text(column, line, literal(text), fontsize=9, fontweight="bold", va="center")
            continue
        ground = {"boxstyle": "square,pad=0.2", "lw": 0, "fc": TRAINING, "alpha": 0.75 * weight}
        axes.text(column, line, literal(text), fontsize=9, family="monospace", va="center",
                  bbox=ground)  # fmt: skip
    axes.set(xlim=(-0.5, _WIDE + 1), ylim=(height - 1, -0.8))
    axes.set_axis_off()
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return finished(figure, path)


def plot_top_words(
    words: Sequence[str],
    weights: Any,
    names: Sequence[str] | None = None,
    *,
    count: int = 15,
    xlabel: str = "weight",
    title: str = "Words that weigh most",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """The words with the largest weights, a panel for each class.

    Parameters
    ----------
    words : all of them
    weights : (words, classes), or (words,) for one panel
    names : of the classes
    count : how many words a panel shows

    Returns the Figure. ValueError for shapes that do not match.
    """
    table = values(weights, "weights").astype(float)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) != len(words) or not table.size or count < 1:
        raise ValueError(
            f"weights have shape {np.shape(weights)} and there are {len(words)} words; expected "
            "(words, classes), and a count of 1 or more"
        )
    names = class_names(names, table.shape[1]) if names is not None or table.shape[1] > 1 else [""]
    shown = min(count, len(words))
    figure = new_figure(max(4.0, 3.2 * len(names)), 0.24 * shown + 1.4)
    for axes, column, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], table.T, names, strict=True
    ):
        top = np.argsort(-column, kind="stable")[:shown][::-1]
        axes.barh(range(shown), column[top], color=TRAINING)
        axes.set_yticks(range(shown), [literal(words[index]) for index in top])
        axes.set_title(literal(name), fontsize=11)
        axes.set_xlabel(xlabel, fontsize=9)
        plain(axes, "x")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return finished(figure, path)
