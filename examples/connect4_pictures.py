"""Pictures for connect4.py: its games against minimax, and what it thinks of some positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from connect4_rules import Rules
from connect4_search import Trees

from gpunn.train import History
from gpunn.train.plots import new_figure


def score_figure(history: History, scores: dict[str, np.ndarray], blank: str) -> Any:
    """How the score grew with the iterations, and how the games of each player ended."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    left.plot(history["epoch"], history["score"], "o-", color="#4477aa", label="network and search")
    level = scores[blank].mean()
    left.axhline(level, color="#cc6677", ls="--", label="untrained, in the test")
    left.set(xlabel="iteration of self-play", ylabel="score against minimax", ylim=(-0.03, 1.03),
        title="While it learned, 20 games each")  # fmt: skip
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=9, loc="best")
    start = np.zeros(len(scores))
    ends = ((1, "won", "#4477aa"), (0.5, "drawn", "#bbbbbb"), (0, "lost", "#cc6677"))
    for result, name, color in ends:
        shares = np.array([(score == result).mean() for score in scores.values()])
        right.barh(list(scores), shares, left=start, color=color, label=name)
        start += shares
    right.invert_yaxis()
    right.set(xlim=(0, 1), xlabel="share of the games", title="Games against minimax, as measured")
    right.legend(fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def positions_figure(rules: Rules, trees: Trees, value: np.ndarray) -> Any:
    """The boards of some trees, with what the network and the search think of each column."""
    from matplotlib.patches import Circle

    mine, theirs = trees.mine[trees.roots], trees.theirs[trees.roots]
    figure = new_figure(3 * len(mine), 5)
    grid = figure.subplots(2, len(mine), height_ratios=(1.4, 1), squeeze=False)
    boards = rules.planes(mine, theirs)
    columns = np.arange(rules.columns)
    for place, (board, bars) in enumerate(grid.T):
        for stones, color in zip(boards[place, :2], ("#4477aa", "#ccbb44"), strict=True):
            for row, column in np.argwhere(stones):
                board.add_patch(Circle((column, row), 0.4, facecolor=color, edgecolor="#555555"))
        board.set(xlim=(-0.6, rules.columns - 0.4), ylim=(-0.6, rules.rows - 0.4), yticks=[],
            xticks=columns, xticklabels=columns + 1, aspect="equal")  # fmt: skip
        said, found = np.round([value[place], trees.root_values[place]], 2) + 0.0  # no -0.00
        board.set_title(f"value: network {said:+.2f},\nsearch {found:+.2f}", fontsize=10)
        visits = trees.root_visits[place] / trees.root_visits[place].sum()
        bars.bar(columns - 0.27, trees.first[place], 0.27, color="#bbbbbb", label="network")
        bars.bar(columns, visits, 0.27, color="#66ccee", label="visits of the search")
        bars.bar(columns + 0.27, trees.root_policy[place], 0.27, color="#4477aa",
            label="after the search")  # fmt: skip
        bars.set(xticks=columns, xticklabels=columns + 1, ylim=(0, 1.02), xlabel="column")
    grid[1, 0].set_ylabel("share")
    grid[1, 0].legend(fontsize=8, loc="upper left")
    figure.suptitle("Blue is to move: how likely is each column the best one?", fontsize=11)
    return figure
