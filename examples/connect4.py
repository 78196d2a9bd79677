"""Connect-four learnt from the rules alone, by self-play in the manner of AlphaZero.

A residual network looks at a board and says how likely each column is to be the best move and who
will win. A tree search (PUCT) uses it to look ahead and plays better than the network alone; from
the games that it plays against itself the network learns to say at once what the search found and
what came of it; with the better network the search is better again. (Silver et al., "Mastering
Chess and Shogi by Self-Play with a General Reinforcement Learning Algorithm", 2017.)

The rules are the data: nothing is learnt from games of people or of another player. How good it is
is measured against minimax, which looks four moves ahead. The same search without a network plays
it as well: what lies between the two is what was learnt. In two minutes on a CPU that is enough to
play far better than the search alone, not to beat minimax; in endings, where the search alone sees
the end, the network adds little or nothing.

    python examples/connect4.py          or: gpunn train connect4
    gpunn train connect4 --set rows=4 --set columns=5 --set in_a_row=3        a small board,
                                         which the search alone plays as well
    gpunn predict RUN "4 4 3"            what to play after these moves

The rules, minimax and the matches are in connect4_rules.py, the search in connect4_search.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from connect4_pictures import positions_figure, score_figure
from connect4_rules import Minimax, Player, Rules, match, random_moves, right_moves, solved_endings
from connect4_search import Evaluate, Trees, by_network, by_nothing, by_policy, by_search

import gpunn
import gpunn.nn.functional as F
from gpunn import nn, optim
from gpunn.train import History, Job, Outcome, Run, check, device_setting, setting


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the weights, the games and the openings", low=0)
    device: str = device_setting()
    rows: int = setting(6, "rows of the board", low=2)
    columns: int = setting(7, "columns of the board", low=2)
    in_a_row: int = setting(4, "stones in a row that win", low=2)
    channels: int = setting(24, "channels of the network", low=1)
    blocks: int = setting(2, "residual blocks of the network", low=1)
    iterations: int = setting(6, "rounds of games and of learning from them", low=1)
    games: int = setting(160, "games of self-play in an iteration, all at the same time", low=1)
    simulations: int = setting(32, "positions that the search looks at before a move", low=2)
    first_games: int = setting(500, "games of the first iteration, which asks no network yet",
        low=1)  # fmt: skip
    first_simulations: int = setting(200, "positions that its search looks at before a move",
        low=2)  # fmt: skip
    passes: float = setting(5.0, "how often a new position is learnt from, about", above=0)
    batch_size: int = setting(192, "positions of a training step", low=1)
    learning_rate: float = setting(4e-3, "of AdamW at the start; falls towards a tenth", above=0)
    weight_decay: float = setting(1e-3, "weight decay of AdamW", low=0)
    memory: int = setting(14_000, "positions that are kept to learn from, the latest ones", low=1)
    exploration: float = setting(2.0, "how much the search trusts the network's first impression "
        "rather than what it has seen below a move", above=0)  # fmt: skip
    noise: float = setting(0.25, "share of random moves in the first impression at the root, for "
        "the curious moves", low=0, below=1)  # fmt: skip
    opening: int = setting(6, "random moves at most before a game begins", low=0)
    curious: int = setting(6, "moves of self-play drawn by what the search thinks of them; then "
        "the likeliest is played", low=0)  # fmt: skip
    foresight: float = setting(0.9, "share of what came after a move in what a position is said to "
        "be worth; the rest is what the search expected", low=0, below=1.0)  # fmt: skip
    test_simulations: int = setting(64, "positions that the search looks at when it is measured",
        low=2)  # fmt: skip
    test_openings: int = setting(40, "openings played against minimax, each with both colours",
        low=1)  # fmt: skip
    test_endings: int = setting(200, "endings that are solved to the end to compare with", low=1)
    empty_cells: int = setting(16, "free cells in those endings; over 20 take long to solve", low=2)
    minimax_depth: int = setting(4, "moves that the opponent looks ahead", low=1)

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together, for `check`."""
        cells = self.rows * self.columns
        if self.columns * (self.rows + 1) > 62:
            yield "columns", f"{self.columns} columns of {self.rows} rows do not fit into 62 bits"
        if self.in_a_row > max(self.rows, self.columns):
            yield "in_a_row", "the board is smaller than a line that wins"
        for name in ("opening", "empty_cells"):
            if getattr(self, name) >= cells:
                yield name, f"the board has only {cells} cells"

    @property
    def rules(self) -> Rules:
        """The game."""
        return Rules(self.rows, self.columns, self.in_a_row)

    def player(self, evaluate: Evaluate, simulations: int) -> Player:
        """The player who searches."""
        return by_search(self.rules, evaluate, simulations, self.exploration)

    def late_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Random positions with `empty_cells` left, more than `test_endings`: not all will do.

        ValueError if hardly any random game lasts so long.
        """
        plies = self.rows * self.columns - self.empty_cells
        return self.rules.random_positions(
            4 * self.test_endings, plies, np.random.default_rng((self.seed, 3))
        )


# ---- the network ---------------------------------------------------------------------------------


class Block(nn.Module):
    """relu(x + f(x)): two convolutions learn what to add to what is seen in the board so far."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, activation="relu")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, activation="relu")

    def forward(self, x: gpunn.Tensor) -> gpunn.Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))), residual=x)


class Network(nn.Module):
    """Boards (B, 3, rows, columns) to logits of the columns (B, columns) and the winner (B,).

    What makes a cell a good one is the same all over the board: each gets a number by the same
    weights, and that of the cell where a stone would come to lie is the column's.
    """

    def __init__(self, config: Config):
        super().__init__()
        channels, cells = config.channels, config.rows * config.columns
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, activation="relu"),
            *(Block(channels) for _ in range(config.blocks)),
        )
        self.policy = nn.Conv2d(channels, 1, 1)
        self.value = nn.Sequential(
            nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(4 * cells, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, boards: gpunn.Tensor) -> tuple[gpunn.Tensor, gpunn.Tensor]:
        seen = self.body(boards)
        logits = (self.policy(seen).squeeze(1) * boards[:, 2]).sum(1)
        return logits, self.value(seen).squeeze(1)


# ---- self-play and what is learnt from it --------------------------------------------------------


class Memory:
    """The latest positions of self-play, with what the search and the end of the game said."""

    def __init__(self, size: int, columns: int):
        self.arrays = {
            "mine": np.zeros(size, dtype=np.int64),
            "theirs": np.zeros(size, dtype=np.int64),
            "policy": np.zeros((size, columns), dtype=np.float32),
            "value": np.zeros(size, dtype=np.float32),
        }
        self.size, self.seen = size, 0

    def add(self, new: dict[str, np.ndarray]) -> None:
        """Keep these, in the place of the oldest."""
        count = min(len(new["mine"]), self.size)
        places = (self.seen + np.arange(count)) % self.size
        for name, array in self.arrays.items():
            array[places] = new[name][-count:]
        self.seen += count

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Some of them at random."""
        places = rng.integers(0, min(self.seen, self.size), count)
        return {name: array[places] for name, array in self.arrays.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, **self.arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = int(state["seen"])
        self.arrays = {name: np.array(state[name]) for name in self.arrays}


def self_play(
    config: Config, evaluate: Evaluate, games: int, simulations: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Games of the search against itself; arrays as those of `Memory`, a row for each position."""
    rules, going, played = config.rules, np.arange(games), []
    starts = [rules.random_positions(1, int(rng.integers(config.opening + 1)), rng) for _ in going]
    mine, theirs = np.array(starts)[:, :, 0].T
    after = np.zeros(len(going), dtype=np.float32)  # what it is worth to the player to move next
    while len(going):
        curious = len(played) < config.curious
        trees = Trees(
            rules, evaluate, mine, theirs, simulations, config.exploration,
            config.noise if curious else 0, rng,
        )  # fmt: skip
        policy = trees.root_policy
        moves = policy.argmax(axis=1)
        played.append((going, mine, theirs, policy, trees.root_values))
        if curious:
            sums = policy.cumsum(axis=1)
            moves = (sums > rng.random((len(going), 1)) * sums[:, -1:]).argmax(axis=1)
        mine, theirs = rules.play(mine, theirs, moves)
        over, result = rules.ended(mine, theirs)
        after[going[over]] = result[over]
        going, mine, theirs = going[~over], mine[~over], theirs[~over]
    # What a position is worth: in part what the search expected there, else what it was worth after
    # the move, and so on to the end. How a long game ended says little of how it began.
    values = []
    for going, *_, expected in reversed(played):
        after[going] = (1 - config.foresight) * expected - config.foresight * after[going]
        values.append(after[going])
    _, mine, theirs, policy, _ = (np.concatenate(part) for part in zip(*played, strict=True))
    rows = {"mine": mine, "theirs": theirs, "policy": policy, "value": np.concatenate(values[::-1])}
    mixed = rng.permutation(len(mine))  # so that those forgotten first are of all parts of a game
    return {name: array[mixed] for name, array in rows.items()}


def train(run: Run) -> None:
    config, rules = run.config, run.config.rules
    network = Network(config).to(run.device)
    optimizer = optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    memory = Memory(config.memory, config.columns)
    openings = rules.random_positions(10, config.opening, np.random.default_rng((config.seed, 7)))
    config.late_positions()  # where there are none, say so now and not after the training

    @gpunn.compile
    def step(boards: gpunn.Tensor, policy: gpunn.Tensor, value: gpunn.Tensor) -> Any:
        optimizer.zero_grad()
        logits, guess = network(boards)
        losses = F.cross_entropy(logits, policy), F.mse_loss(guess, value)
        (losses[0] + losses[1]).backward()
        optimizer.step()
        return losses

    for number, record in run.loop(
        config.iterations, every=2, model=network, optimizer=optimizer, memory=memory
    ):
        rng = np.random.default_rng((config.seed, 1, number))
        if number == 0:  # an untrained network is of no use, but costs time
            how = by_nothing(rules), config.first_games, config.first_simulations
        else:
            learnt = by_network(network, rules, run.device)
            how = learnt, config.games, config.simulations
        new = self_play(config, *how, rng)
        memory.add(new)
        slower = 0.55 + 0.45 * np.cos(np.pi * number / config.iterations)
        optimizer.param_groups[0]["lr"] = config.learning_rate * slower
        network.train()
        losses = []
        for _ in range(math.ceil(config.passes * len(new["mine"]) / config.batch_size)):
            batch = memory.sample(config.batch_size, rng)
            boards, policy = rules.planes(batch["mine"], batch["theirs"]), batch["policy"]
            mirrored = rng.random(len(boards)) < 0.5  # the mirrored board has the mirrored answer
            boards[mirrored] = boards[mirrored, :, :, ::-1]
            policy[mirrored] = policy[mirrored, ::-1]
            arrays = boards, policy, batch["value"]
            losses.append(step(*(gpunn.tensor(array, device=run.device) for array in arrays)))
        for name, kind in (("policy_loss", 0), ("value_loss", 1)):
            record[name] = float(np.mean([pair[kind].item() for pair in losses]))
        player = config.player(by_network(network, rules, run.device), config.simulations)
        opponent = Minimax(rules, config.minimax_depth)
        record["score"] = float(match(rules, player, opponent, openings).mean())
    run.save("model", network)


# ---- what it is worth ----------------------------------------------------------------------------


def evaluate(run: Run) -> Outcome:
    config, rules = run.config, run.config.rules
    network = run.load("model", into=Network(config))
    # Each has its own numbers: what is measured on does not depend on how anyone plays.
    for_openings, for_play = (np.random.default_rng((config.seed, use)) for use in (2, 4))
    learnt = by_network(network, rules, run.device)
    searching = config.player(learnt, config.test_simulations)
    untrained = config.player(by_nothing(rules), config.test_simulations)
    players: dict[str, Player] = {
        "network and search": searching,
        "the same search, untrained": untrained,
        "random play": random_moves(rules, for_play),
        "network without search": by_policy(learnt),
    }
    opponent = Minimax(rules, config.minimax_depth)
    openings = rules.random_positions(config.test_openings, config.opening, for_openings)
    scores = {name: match(rules, player, opponent, openings) for name, player in players.items()}
    means = {name: float(score.mean()) for name, score in scores.items()}
    value = means.pop("network and search")
    against_random = match(rules, searching, random_moves(rules, for_play), openings)
    more = {
        "standard error": float(scores["network and search"].std() / len(against_random) ** 0.5),
        "score of the network without search": means.pop("network without search"),
        "score against random play": float(against_random.mean()),
    }
    endings, outcomes = solved_endings(rules, config.late_positions(), config.test_endings)
    asked = players | {f"minimax of depth {config.minimax_depth}": opponent}
    for name, player in asked.items() if outcomes else ():
        more[f"right moves in endings: {name}"] = right_moves(player, endings, outcomes)
    history = History.from_csv(run.folder / "history.csv")
    run.figure("score", lambda: score_figure(history, scores, "the same search, untrained"))
    shown = (
        np.concatenate([[0], first[:1], last[:2]])
        for first, last in zip(openings, endings, strict=True)
    )
    trees = Trees(rules, learnt, *shown, config.test_simulations, config.exploration)
    value_there = learnt(trees.mine[trees.roots], trees.theirs[trees.roots])[1]
    run.figure("positions", lambda: positions_figure(rules, trees, value_there))
    notes = [
        f"A win scores 1, a draw 1/2. Minimax looks {config.minimax_depth} moves ahead and counts "
        f"the cells that would complete a line; each of {config.test_openings} openings of "
        f"{config.opening} random moves is played with both colours.",
        f"Endings: {len(outcomes)} positions with {config.empty_cells} free cells in which nobody "
        "wins at once and some move gives away a win or a draw; they were solved to the end.",
    ]
    if value < 0.5:
        notes.append("Minimax wins more of these games than it loses.")
    return Outcome(
        metric=f"score against minimax of depth {config.minimax_depth}", value=value,
        baselines=means, samples=len(against_random), what="games", more=more, notes=notes,
    )  # fmt: skip


def predict(run: Run, data: str) -> Iterator[dict[str, Any]]:
    """What to play after these moves: a row for each legal column, the most visited first.

    "network" and "search" are how likely the column is the best one, before and after the search;
    "value" is what the search expects of it for the player to move, from -1 to 1, None where it
    never went. ValueError for moves that cannot be made and for a game that is over.
    """
    config, rules = run.config, run.config.rules
    mine, theirs = (np.array([stones], dtype=np.int64) for stones in rules.position(data))
    if rules.ended(mine, theirs)[0][0]:
        raise ValueError(f"the game is over after {data!r}: there is nothing to play")
    learnt = by_network(run.load("model", into=Network(config)), rules, run.device)
    trees = Trees(rules, learnt, mine, theirs, config.test_simulations, config.exploration)
    prior, policy, visits = learnt(mine, theirs)[0][0], trees.root_policy[0], trees.root_visits[0]
    for column in np.argsort(-visits, kind="stable"):
        if prior[column] > 0:
            yield {
                "column": int(column) + 1,
                "network": round(float(prior[column]), 4),
                "search": round(float(policy[column]), 4),
                "visits": int(visits[column]),
                "value": round(float(trees.total[0, column] / visits[column]), 4)
                if visits[column]
                else None,
            }


JOB = Job(
    name="connect4",
    title="Connect-four learnt by self-play",
    use="games",
    data="the rules of connect-four: no games but its own",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes='the moves so far, columns from 1: "4 4 3"',
    quick={
        "rows": 4, "columns": 5, "in_a_row": 3, "channels": 4, "blocks": 1, "iterations": 2,
        "games": 4, "simulations": 4, "first_games": 4, "first_simulations": 4, "passes": 1.0,
        "batch_size": 16, "memory": 100, "opening": 2,
        "test_simulations": 4, "test_openings": 2, "test_endings": 4, "empty_cells": 12,
        "minimax_depth": 2,
    },
)  # fmt: skip


if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "connect4", *sys.argv[1:]]))
