"""Connect-four on bitboards, an opponent that thinks ahead, and matches; connect4.py learns it.

A position is two numbers, the stones of the player to move and those of the other one: `mine` and
`theirs`. Cell (row, column), from the bottom left, is bit ``column * (rows + 1) + row``; the bit
above each column stays empty, so that no line of shifted bits runs from one column into the next.
The same lines of code work on one position (whole numbers of Python) and on many (int64 arrays).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# Which column each of these positions plays: (mine, theirs), int64 of shape (games,), to (games,).
Player = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rules:
    """The board's size and how many stones in a row win, in any of the four directions."""

    rows: int = 6
    columns: int = 7
    in_a_row: int = 4

    @cached_property
    def bottom(self) -> int:
        """The lowest cell of every column."""
        return sum(1 << column * (self.rows + 1) for column in range(self.columns))

    @cached_property
    def board(self) -> int:
        """All cells."""
        return self.bottom * ((1 << self.rows) - 1)

    @cached_property
    def column_cells(self) -> np.ndarray:
        """The cells of each column, (columns,)."""
        cells = [((1 << self.rows) - 1) << c * (self.rows + 1) for c in range(self.columns)]
        return np.array(cells, dtype=np.int64)

    @cached_property
    def directions(self) -> tuple[int, ...]:
        """How far apart the bits of neighbours are: up, along a row, along both diagonals."""
        return (1, self.rows + 1, self.rows + 2, self.rows)

    def wins(self, stones: Any) -> Any:
        """Whether these stones of one player hold a line."""
        lines = stones & 0
        for step in self.directions:
            line = stones
            for _ in range(self.in_a_row - 1):
                line = line & (line >> step)
            lines = lines | line
        return lines != 0

    def playable(self, occupied: Any) -> Any:
        """The cells into which a stone can fall: one in each column that is not full."""
        return (occupied + self.bottom) & self.board

    def legal(self, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """(games, columns): which columns are not full."""
        return (self.playable(mine | theirs)[:, None] & self.column_cells) != 0

    def play(self, mine: Any, theirs: Any, column: Any) -> tuple[Any, Any]:
        """The position after a stone in that column, seen by the other player.

        ValueError for a column that there is not or that is full.
        """
        if np.any((column < 0) | (column >= self.columns)):
            raise ValueError(f"there is no column {np.max(column) + 1} of {self.columns}")
        stone = self.playable(mine | theirs) & self.column_cells[column]
        if np.any(stone == 0):
            raise ValueError("a stone into a column that is full")
        return theirs, mine | stone

    def ended(self, mine: Any, theirs: Any) -> tuple[Any, Any]:
        """(whether the last move ended the game, the result for the player to move: -1 or 0)."""
        lost = self.wins(theirs)
        return lost | ((mine | theirs) == self.board), np.where(lost, -1.0, 0.0).astype(np.float32)

    def completing(self, stones: Any) -> Any:
        """The cells that would complete a line of these stones, free or not, reachable or not."""
        cells, others = stones & 0, self.in_a_row - 1
        for step in self.directions:
            below, above = [self.board], [self.board]  # k stones in a row just beside the cell
            for k in range(1, others + 1):
                below.append(below[-1] & (stones << k * step))
                above.append(above[-1] & (stones >> k * step))
            for k in range(others + 1):
                cells |= below[k] & above[others - k]
        return cells

    def planes(self, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """(games, 3, rows, columns) float32: the stones of the player to move, of the other one,
        and the cells into which one can fall now; the lowest row comes first."""
        row, column = np.mgrid[: self.rows, : self.columns]
        cells = np.stack([mine, theirs, self.playable(mine | theirs)], axis=1)[:, :, None, None]
        return ((cells >> (column * (self.rows + 1) + row)) & 1).astype(np.float32)

    def position(self, moves: str) -> tuple[int, int]:
        """The position after moves such as "4 4 3", columns from 1. ValueError for a wrong one."""
        mine, theirs = 0, 0
        for number, move in enumerate(moves.replace(",", " ").split(), 1):
            if not move.isdecimal() or not 1 <= int(move) <= self.columns:
                raise ValueError(f"move {number}, {move!r}, is no column from 1 to {self.columns}")
            if self.ended(mine, theirs)[0]:
                raise ValueError(f"move {number} comes after the end of the game")
            try:
                mine, theirs = (int(s) for s in self.play(mine, theirs, int(move) - 1))
            except ValueError:
                raise ValueError(f"move {number}: column {move} is full") from None
        return mine, theirs

    def random_positions(
        self, count: int, plies: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions after so many random moves, none of which ended the game.

        ValueError if hardly any game lasts so long.
        """
        found: list[np.ndarray] = []
        for _ in range(1000):
            games = np.zeros((2, count), dtype=np.int64)
            for _ in range(plies):
                games = np.array(self.play(*games, random_moves(self, rng)(*games)))
                games = games[:, ~self.ended(*games)[0]]
                if not games.size:
                    break
            found.append(games)
            if sum(part.shape[1] for part in found) >= count:
                mine, theirs = np.concatenate(found, axis=1)[:, :count]
                return mine, theirs
        raise ValueError(f"random games on {self} seldom last {plies} moves: take fewer")


def random_moves(rules: Rules, rng: np.random.Generator) -> Player:
    """The player who plays any legal move."""

    def play(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        legal = rules.legal(mine, theirs)
        return np.where(legal, rng.random(legal.shape), -1).argmax(axis=1)

    return play


class Minimax:
    """Negamax with alpha-beta, a memory of positions, and replies to threats before all else.

    It looks `depth` moves ahead (None: to the end). A win counts 1000 and one for each move that it
    comes earlier; else a position at the horizon counts the free cells that would complete a line,
    own ones less those of the opponent; a full board counts 0. Among equal moves it takes the one
    nearest the middle.
    """

    WIN, INFINITE = 1000, 10_000

    def __init__(self, rules: Rules, depth: int | None):
        self.rules, self.depth = rules, rules.rows * rules.columns if depth is None else depth
        middle = sorted(range(rules.columns), key=lambda c: abs(2 * c + 1 - rules.columns))
        self._columns = [(column, int(rules.column_cells[column])) for column in middle]
        self._memory: dict[tuple[int, int, int], tuple[int, int]] = {}

    def __call__(self, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """A `Player`."""
        positions = zip(mine.tolist(), theirs.tolist(), strict=True)
        return np.array([self.move(*position) for position in positions])

    def move(self, mine: int, theirs: int) -> int:
        """The best column."""
        best, chosen = -self.INFINITE, -1
        for column, cells in self._columns:
            if cell := self.rules.playable(mine | theirs) & cells:
                value = self._after(mine, theirs, cell, self.depth, best, self.INFINITE)
                if value > best:
                    best, chosen = value, column
        return chosen

    def outcomes(self, mine: int, theirs: int) -> dict[int, int]:
        """1, 0 or -1 for each legal column: a win, a draw, a loss, if the depth reaches the end."""
        found = {}
        for column, cells in self._columns:
            if cell := self.rules.playable(mine | theirs) & cells:
                value = self._after(mine, theirs, cell, self.depth, -1, 1)
                found[column] = (value > 0) - (value < 0)
        return found

    def _after(
        self, mine: int, theirs: int, cell: int, depth: int, alpha: int, beta: int
    ) -> int:  # fmt: skip
        """What it is worth to the player of `mine` to play `cell`."""
        if self.rules.wins(mine | cell):
            return self.WIN + depth
        return -self.search(theirs, mine | cell, depth - 1, -beta, -alpha)

    def search(self, mine: int, theirs: int, depth: int, alpha: int, beta: int) -> int:
        """The value of a position that is not lost already, exact between `alpha` and `beta`."""
        rules, occupied = self.rules, mine | theirs
        playable = rules.playable(occupied)
        if not playable:
            return 0
        own, other = rules.completing(mine), rules.completing(theirs)
        if depth == 0:
            free = rules.board & ~occupied
            return (own & free).bit_count() - (other & free).bit_count()
        if own & playable:
            return self.WIN + depth
        if len(self._memory) > 1_000_000:
            self._memory.clear()
        key = (mine, theirs, depth)
        low, high = self._memory.get(key, (-self.INFINITE, self.INFINITE))
        if low >= beta or low == high:
            return low
        if high <= alpha:
            return high
        alpha, beta = max(alpha, low), min(beta, high)
        if depth > 1 and other & playable:
            playable &= other  # any other move loses at once
        best, bound = -self.INFINITE, alpha
        for _, cells in self._columns:
            if cell := playable & cells:
                value = -self.search(theirs, mine | cell, depth - 1, -beta, -bound)
                best, bound = max(best, value), max(bound, value)
                if best >= beta:
                    break
        self._memory[key] = (low if best <= alpha else best, high if best >= beta else best)
        return best


def match(rules: Rules, player: Player, other: Player, openings: Any) -> np.ndarray:
    """The score of `player` in each game, 1, 0.5 or 0: every opening twice, with either colour.

    `openings` are positions ``(mine, theirs)``; in the first half of the games `player` moves next.
    """
    mine, theirs = (np.concatenate([stones, stones]) for stones in openings)
    score, turn = np.full(len(mine), 0.5), np.arange(len(mine)) < len(mine) // 2
    going = np.arange(len(mine))
    while len(going):
        moves = np.zeros(len(going), dtype=np.int64)
        for who, playing in ((turn[going], player), (~turn[going], other)):
            if who.any():
                moves[who] = playing(mine[going][who], theirs[going][who])
        mine[going], theirs[going] = rules.play(mine[going], theirs[going], moves)
        over, result = rules.ended(mine[going], theirs[going])
        won = going[over & (result < 0)]  # by the one who just moved
        score[won] = turn[won]
        turn[going] = ~turn[going]
        going = going[~over]
    return score


def solved_endings(
    rules: Rules, positions: Any, count: int
) -> tuple[Any, list[dict[int, int]]]:  # fmt: skip
    """Positions solved to the end: (those that are left, `Minimax.outcomes` of each).

    Looked at are the first `count` of `positions` in which nobody can win at once; left are those
    of them in which it matters what one plays.
    """
    mine, theirs = positions
    lines = rules.completing(mine) | rules.completing(theirs)
    quiet = np.flatnonzero((lines & rules.playable(mine | theirs)) == 0)[:count]
    mine, theirs = mine[quiet], theirs[quiet]
    solver = Minimax(rules, None)
    outcomes = [
        solver.outcomes(*position) for position in zip(mine.tolist(), theirs.tolist(), strict=True)
    ]
    matters = np.array([len(set(outcome.values())) > 1 for outcome in outcomes], dtype=bool)
    left = [outcome for outcome, kept in zip(outcomes, matters, strict=True) if kept]
    return (mine[matters], theirs[matters]), left


def right_moves(player: Player, positions: Any, outcomes: list[dict[int, int]]) -> float:
    """The share of solved positions in which the player's move keeps what can be had of them."""
    moves = zip(player(*positions).tolist(), outcomes, strict=True)
    return float(np.mean([outcome[move] == max(outcome.values()) for move, outcome in moves]))
