"""The pictures of text.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.train import History, plots

BLUE, RED, GREEN = "#4477aa", "#cc6677", "#228833"
SIGNS = {" ": "␣", "\n": "↵", "\t": "→", "<unk>": "?", "$": r"\$"}


def learning_picture(history: History, whole: float, counted: float, order: int) -> Any:
    """Perplexity by epoch, on the training and the validation text, and that of n-grams.

    While it trains the network is measured on pieces, at whose beginning it knows nothing yet;
    `whole` is its perplexity at the end, with all the context that the n-grams have and more.
    """
    figure = plots.new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    epochs = history["epoch"]
    axes.plot(epochs, history["perplexity"], "o-", ms=4, color=BLUE, label="network, in training")
    axes.plot(epochs, history["validation_perplexity"], "s--", ms=4, color=RED,
              label="network, validation text in pieces")  # fmt: skip
    axes.plot(epochs[-1], whole, "*", ms=11, color=RED, label="network, validation text as a whole")
    axes.axhline(counted, color=GREEN, label=f"{order}-grams, validation text")
    axes.set(xlabel="epoch", ylabel="perplexity of a character", yscale="log",
             title="Learning, and what counting reaches")  # fmt: skip
    low, high = axes.dataLim.intervaly
    low, high = min(low, counted, whole) * 0.93, max(high, counted) * 1.07
    ticks = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.minorticks_off()
    axes.set_ylim(low, high)
    axes.set_xlim(0.5, epochs[-1] + 0.5)
    axes.grid(color="#dddddd")
    axes.legend()
    return figure


def context_picture(by_known: np.ndarray, counted: Sequence[float], name: str) -> Any:
    """Perplexity on the held-out text by how many characters before are known.

    Parameters
    ----------
    by_known : the network's mean loss where 1, 2, … characters are known
    counted : the perplexity of n-grams of 2, 3, … characters
    """
    length = len(by_known)
    # There are few samples of each place: means over places that lie near each other.
    edges = np.unique(np.geomspace(1, length + 1, 25).astype(int))
    spans = list(zip(edges, edges[1:], strict=False))
    means = [math.exp(by_known[low - 1 : high - 1].mean()) for low, high in spans]
    figure = plots.new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.plot([(low + high - 1) / 2 for low, high in spans], means, "o-", ms=4, color=RED,
              label=f"network ({name})")  # fmt: skip
    axes.plot(range(1, len(counted) + 1), counted, "s--", ms=4, color=GREEN, label="n-grams")
    axes.set(xscale="log", xlabel="characters known before (logarithmic)",
             ylabel="perplexity of a character", title="What the context is worth, held-out text",
             ylim=(0, None))  # fmt: skip
    ticks = [2**n for n in range(20) if 2**n <= length]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#dddddd")
    axes.legend()
    return figure


def next_picture(chances: np.ndarray, came: np.ndarray, characters: Sequence[str]) -> Any:
    """The likeliest characters at each place of a text, and which one came."""
    best = np.argsort(-chances, axis=1, kind="stable")[:, :5]
    label = [SIGNS.get(character, character) for character in characters]
    shades = np.take_along_axis(chances, best, 1).T
    figure = plots.new_figure(0.26 * len(came) + 1.8, 2.9)
    axes = figure.add_subplot()
    image = axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for place, numbers in enumerate(best):
        for rank, number in enumerate(numbers):
            dark = shades[rank, place] > 0.55
            right = number == came[place]
            colour = ("#ffcc66" if dark else "#cc3311") if right else "white" if dark else "#333333"
            axes.text(place, rank, label[number], ha="center", va="center", fontsize=9,
                      fontweight="bold" if right else "normal", color=colour)  # fmt: skip
    axes.set_xticks(range(len(came)), [label[number] for number in came])
    axes.set_yticks(range(best.shape[1]), ["likeliest", *map(str, range(2, best.shape[1] + 1))])
    axes.set(xlabel="the held-out text, as it goes on",
             title="What the network expected at each place; red or yellow: what came")  # fmt: skip
    figure.colorbar(image, label="probability", pad=0.01)
    return figure
