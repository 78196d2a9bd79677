"""The pictures and the text of translations that translation.py puts into its run folder."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpunn.train.metrics import bleu, chrf
from gpunn.train.plots import new_figure


def as_text(found: dict[str, list[str]], truths: list[list[str]]) -> str:
    """All of the test texts with the translations, for reading."""
    lines = []
    for number, true in enumerate(truths):
        lines.append(f"English      {found['the English text'][number]}")
        lines.append(f"reference    {' | '.join(true)}")
        lines.append(f"network      {found['network'][number]}")
        lines.append(f"dictionary   {found['word-by-word dictionary'][number]}")
        lines.append(f"memory       {found['translation memory'][number]}")
        lines.append("")
    return "\n".join(lines)


def length_figure(found: dict[str, list[str]], truths: list[list[str]]) -> Any:
    """BLEU and chrF by the number of words of the English text."""
    counts = np.array([len(text.split()) for text in found["the English text"]])
    bounds = [(1, 2), (3, 4), (5, 8), (9, int(max(counts.max(), 9)))]
    groups = [np.flatnonzero((counts >= low) & (counts <= high)) for low, high in bounds]
    sized = zip(bounds, groups, strict=True)
    labels = [f"{low} to {high}\n({len(group)})" for (low, high), group in sized]
    figure = new_figure(9.5, 4.2)
    panels = figure.subplots(1, 2)
    names = [name for name in found if name != "the English text"]
    measures = (("BLEU", partial(bleu, effective_order=True)), ("chrF", chrf))
    for axes, (title, measure) in zip(panels, measures, strict=True):
        for place, name in enumerate(names):
            values = [
                measure([found[name][at] for at in group], [truths[at] for at in group])
                if len(group) else 0.0
                for group in groups
            ]  # fmt: skip
            at = np.arange(len(groups)) + (place - 1) * 0.27
            axes.bar(at, values, 0.25, label=name, color=("#4477aa", "#ccbb44", "#999999")[place])
        axes.set_xticks(range(len(groups)), labels)
        axes.set(xlabel="words of the English text (how many texts)", ylabel=title, ylim=(0, 100))
        axes.grid(True, axis="y", color="#dddddd", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(fontsize=9, frameon=False)
    figure.suptitle("Translations of the test texts, by length", fontsize=12, fontweight="bold")
    return figure
