"""Tree search guided by a network, for many games at a time; connect4.py plays and learns by it.

Each simulation goes down from a position along the moves that look best so far, to one that was
not looked at before; what the network thinks of that one is told to all above. The move that most
simulations went through is played. (PUCT: Silver et al., "Mastering the game of Go without human
knowledge", 2017.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from connect4_rules import Player, Rules

import gpunn
from gpunn import nn
from gpunn.train import TrainingError

# (mine, theirs) -> probabilities of the columns (games, columns), and how the game will end for
# the player to move, from -1 to 1 (games,).
Evaluate = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

SHARPNESS = 4.0  # by how much, on a logarithmic scale, a sure win is likelier than an even game
# A network that learns from searches which began at its own opinion becomes too sure of it: its
# logits are divided by this before a search (as Leela Chess Zero does).
SOFTNESS = 1.5


def by_nothing(rules: Rules) -> Evaluate:
    """The opinion of a network that has learnt nothing: any legal move, and nobody is ahead."""

    def evaluate(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        legal = rules.legal(mine, theirs).astype(np.float32)
        return legal / legal.sum(axis=1, keepdims=True), np.zeros(len(mine), dtype=np.float32)

    return evaluate


def by_network(network: nn.Module, rules: Rules, device: Any) -> Evaluate:
    """The opinion of a network, boards to (logits, values).

    It is remembered: a position comes up again move after move. Make a new one when the network has
    learnt. TrainingError if what the network says is NaN or infinite.
    """
    known: dict[tuple[int, int], tuple[np.ndarray, np.float32]] = {}

    def evaluate(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys = list(zip(mine.tolist(), theirs.tolist(), strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in known]
        if new:
            positions = np.array(new, dtype=np.int64).T
            network.eval()
            with gpunn.no_grad():
                boards = gpunn.tensor(rules.planes(*positions), device=device)
                logits, value = (output.numpy() for output in network(boards))
            if not (np.isfinite(logits).all() and np.isfinite(value).all()):
                raise TrainingError(
                    "the network says NaN or infinity: its training diverged; begin a new run with "
                    "a smaller learning_rate or weight_decay"
                )
            legal = rules.legal(*positions)
            logits = np.where(legal, logits / SOFTNESS, -np.inf)
            share = np.exp(logits - logits.max(axis=1, keepdims=True))
            share = np.where(legal, share / share.sum(axis=1, keepdims=True) + 1e-6, 0)
            known.update(zip(new, zip(share, value, strict=True), strict=True))
        shares, values = zip(*(known[key] for key in keys), strict=True)
        return np.array(shares, dtype=np.float32), np.array(values, dtype=np.float32)

    return evaluate


class Trees:
    """Search trees of many games, grown together, so that the network sees their leaves as a batch.

    All nodes of all trees lie in the same arrays: tree t has the nodes from ``t * nodes``, its root
    first. Row n holds, for the columns of node n, what the network thought of them (`prior`), how
    often the search went there (`visits`), what came of it for the player to move (`total`), and
    the node there (`child`, 0: none yet).
    """

    def __init__(
        self, rules: Rules, evaluate: Evaluate, mine: np.ndarray, theirs: np.ndarray,
        simulations: int, exploration: float, noise: float = 0.0,
        rng: np.random.Generator | None = None,
    ):  # fmt: skip
        self.rules, self.evaluate, self.exploration = rules, evaluate, exploration
        self.roots = np.arange(len(mine)) * (simulations + 1)
        nodes = len(mine) * (simulations + 1)
        self.mine, self.theirs, self.over = (np.zeros(nodes, dtype=np.int64) for _ in range(3))
        self.result = np.zeros(nodes, dtype=np.float32)
        self.prior, self.visits, self.total = (
            np.zeros((nodes, rules.columns), dtype=np.float32) for _ in range(3)
        )
        self.child = np.zeros((nodes, rules.columns), dtype=np.int64)
        self.mine[self.roots], self.theirs[self.roots] = mine, theirs
        prior, _ = evaluate(mine, theirs)
        self.first = prior  # before the noise
        if rng is not None and noise:
            # A few columns at random get a second look, whatever the network thinks of them.
            drawn = rng.gamma(1.0, size=prior.shape) * (prior > 0)
            prior = (1 - noise) * prior + noise * drawn / drawn.sum(axis=1, keepdims=True)
        self.prior[self.roots] = prior
        for number in range(1, simulations + 1):
            self._simulate(number)

    def _simulate(self, number: int) -> None:
        """In each tree: go down to a position not seen yet, judge it, tell those above."""
        trees, nodes = np.arange(len(self.roots)), self.roots
        value = np.zeros(len(trees), dtype=np.float32)
        path, leaves = [], []
        while len(trees):
            columns = self._best(nodes)
            path.append((trees, nodes, columns))
            below = self.child[nodes, columns]
            fresh = below == 0
            if fresh.any():
                made = self.roots[trees[fresh]] + number
                self._add(made, nodes[fresh], columns[fresh])
                leaves.append((trees[fresh], made))
                below[fresh] = made
            ended = self.over[below] != 0
            value[trees[ended]] = self.result[below[ended]]
            onward = ~(fresh | ended)
            trees, nodes = trees[onward], below[onward]
        self._judge(leaves, value)
        for trees, nodes, columns in reversed(path):
            value[trees] *= -1  # what is good for one is bad for the other
            self.visits[nodes, columns] += 1
            self.total[nodes, columns] += value[trees]

    def _best(self, nodes: np.ndarray) -> np.ndarray:
        """PUCT: the mean of what was seen below a column, and what it may yet be good for."""
        prior, visits = self.prior[nodes], self.visits[nodes]
        tried = np.sqrt(visits.sum(axis=1, keepdims=True) + 1)
        score = self.total[nodes] / np.maximum(visits, 1)
        score += self.exploration * prior * tried / (1 + visits)
        score[prior == 0] = -np.inf
        return score.argmax(axis=1)

    def _add(self, made: np.ndarray, parents: np.ndarray, columns: np.ndarray) -> None:
        """New nodes below their parents; who can complete a line has won, as the rules have it."""
        self.child[parents, columns] = made
        mine, theirs = self.rules.play(self.mine[parents], self.theirs[parents], columns)
        self.mine[made], self.theirs[made] = mine, theirs
        over, result = self.rules.ended(mine, theirs)
        won = ~over & (self.rules.completing(mine) & self.rules.playable(mine | theirs) != 0)
        self.over[made], self.result[made] = over | won, np.where(won, 1, result)

    def _judge(self, leaves: list[tuple[np.ndarray, np.ndarray]], value: np.ndarray) -> None:
        """Ask the network about the new nodes where the game goes on."""
        if not leaves:
            return
        trees, nodes = (np.concatenate(part) for part in zip(*leaves, strict=True))
        going = self.over[nodes] == 0
        trees, nodes = trees[going], nodes[going]
        if len(nodes):
            self.prior[nodes], value[trees] = self.evaluate(self.mine[nodes], self.theirs[nodes])

    @property
    def root_visits(self) -> np.ndarray:
        """(games, columns): how often each move was looked into."""
        return self.visits[self.roots]

    @property
    def root_policy(self) -> np.ndarray:
        """(games, columns): what the network should have thought: better than its opinion.

        A column becomes likelier by what was found below it, as in Danihelka et al., "Policy
        improvement by planning with Gumbel", 2022. Of few simulations that says more than how many
        went there; a column not looked into counts as the others do together.
        """
        visits, values = self.root_visits, self.root_values[:, None]
        found = np.where(visits > 0, self.total[self.roots] / np.maximum(visits, 1), values)
        share = self.first * np.exp(SHARPNESS * (found - found.max(axis=1, keepdims=True)))
        return share / share.sum(axis=1, keepdims=True)

    @property
    def root_values(self) -> np.ndarray:
        """(games,): what the search expects for the player to move."""
        return self.total[self.roots].sum(axis=1) / self.root_visits.sum(axis=1)


def by_search(rules: Rules, evaluate: Evaluate, simulations: int, exploration: float) -> Player:
    """The player who plays the move that the search looked into most."""

    def play(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        trees = Trees(rules, evaluate, mine, theirs, simulations, exploration)
        return trees.root_visits.argmax(axis=1)

    return play


def by_policy(evaluate: Evaluate) -> Player:
    """The player who does not look ahead: the move that the network thinks most likely."""
    return lambda mine, theirs: evaluate(mine, theirs)[0].argmax(axis=1)
