"""Connect-four: the rules, the opponent and the search against arrays and plain recursion."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gpunn
from gpunn.train import History, TrainingError, find_job
from gpunn.train.run import Run

JOB = find_job("connect4")
RULES, SEARCH = sys.modules["connect4_rules"], sys.modules["connect4_search"]
CONNECT4 = sys.modules[JOB.train.__module__]
FOUR, TINY = RULES.Rules(), RULES.Rules(rows=3, columns=4, in_a_row=3)


def as_arrays(*position):
    return tuple(np.array([stones], dtype=np.int64) for stones in position)


def line_on(board, length):
    """Whether an array of cells holds a line, looked for cell by cell."""
    rows, columns = board.shape
    for r in range(rows):
        for c in range(columns):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                cells = [(r + k * down, c + k * right) for k in range(length)]
                if all(0 <= y < rows and 0 <= x < columns and board[y, x] for y, x in cells):
                    return True
    return False


def column_moves(rules, mine, theirs):
    """(column, the stones that then move, those that just moved) for each legal column."""
    for column in range(rules.columns):
        if rules.playable(mine | theirs) & int(rules.column_cells[column]):
            yield column, *(int(stones) for stones in rules.play(mine, theirs, column))


def brute_force(rules, mine, theirs, depth):
    """The same value as `Minimax`, by trying everything."""
    if not rules.playable(mine | theirs):
        return 0
    if depth == 0:
        free = rules.board & ~(mine | theirs)
        own, other = rules.completing(mine) & free, rules.completing(theirs) & free
        return own.bit_count() - other.bit_count()
    values = []
    for _, mover, moved in column_moves(rules, mine, theirs):
        won = line_on(rules.planes(*as_arrays(moved, mover))[0, 0], rules.in_a_row)
        values.append(1000 + depth if won else -brute_force(rules, mover, moved, depth - 1))
    return max(values)


@pytest.mark.parametrize(
    ("moves", "ends"),
    [
        ("1 2 1 2 1 2 1", True),  # upwards
        ("1 1 2 2 3 3 4", True),  # along a row
        ("1 2 2 3 3 4 3 4 4 6 4", True),  # rising
        ("7 6 6 5 5 4 5 4 4 2 4", True),  # falling
        ("1 1 2 2 3 3 5", False),
        ("1 2 1 2 1 2 3", False),
        ("1 1 1 1 1 1 7 7 7 7 7 7", False),
    ],
)
def test_a_game_ends_with_a_line_in_any_direction(moves, ends):
    over, result = FOUR.ended(*FOUR.position(moves))
    assert bool(over) is ends
    assert result == (-1 if ends else 0)  # of the one who would move next


def test_lines_are_those_found_cell_by_cell():
    rng = np.random.default_rng(0)
    for rules in (FOUR, TINY):
        boards = rng.random((60, rules.rows, rules.columns)) < 0.4
        bits = np.array([
            sum(
                1 << c * (rules.rows + 1) + r
                for r, c in zip(*(axis.tolist() for axis in np.nonzero(board)), strict=True)
            )
            for board in boards
        ])  # fmt: skip
        expected = [line_on(board, rules.in_a_row) for board in boards]
        assert 0 < sum(expected) < len(expected)
        assert rules.wins(bits).tolist() == expected
        np.testing.assert_array_equal(rules.planes(bits, bits)[:, 1], boards)
        for board, stones in zip(boards[:10], bits.tolist(), strict=False):
            for r, c in np.ndindex(board.shape):
                if not board[r, c]:
                    board[r, c] = True
                    ends = line_on(board, rules.in_a_row) and not rules.wins(stones)
                    board[r, c] = False
                    there = rules.completing(stones) >> int(c * (rules.rows + 1) + r) & 1
                    assert there or not ends
                    assert not there or ends or rules.wins(stones)


def test_a_full_board_is_a_draw():
    rules = RULES.Rules(rows=2, columns=3, in_a_row=3)
    position = rules.position("1 2 3 1 2 3")
    over, result = rules.ended(*position)
    assert over and result == 0
    assert not rules.legal(*as_arrays(*position)).any()


@pytest.mark.parametrize(
    ("moves", "says"),
    [
        ("1 8", "move 2, '8', is no column from 1 to 7"),
        ("x", "move 1, 'x', is no column"),
        ("1 1 1 1 1 1 1", "move 7: column 1 is full"),
        ("1 2 1 2 1 2 1 3", "move 8 comes after the end"),
    ],
)
def test_wrong_moves_are_named(moves, says):
    with pytest.raises(ValueError, match=says):
        FOUR.position(moves)


def test_an_illegal_stone_is_refused():
    position = as_arrays(*FOUR.position("1 1 1 1 1 1"))
    with pytest.raises(ValueError, match="full"):
        FOUR.play(*position, np.array([0]))
    with pytest.raises(ValueError, match="no column"):
        FOUR.play(*position, np.array([7]))


def test_random_positions_have_so_many_stones_and_go_on():
    mine, theirs = FOUR.random_positions(50, 9, np.random.default_rng(1))
    stones = FOUR.planes(mine, theirs).sum(axis=(2, 3))
    assert (stones[:, :2] == [4, 5]).all()
    assert not FOUR.ended(mine, theirs)[0].any()
    with pytest.raises(ValueError, match="seldom last"):
        RULES.Rules(2, 2, 2).random_positions(1, 3, np.random.default_rng(0))


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 12])
def test_minimax_is_brute_force(depth):
    for plies in (0 if depth < 5 else 5, 6):
        positions = TINY.random_positions(4, plies, np.random.default_rng(depth))
        player = RULES.Minimax(TINY, depth)
        for position in zip(*(stones.tolist() for stones in positions), strict=True):
            expected = brute_force(TINY, *position, depth)
            assert player.search(*position, depth, -10_000, 10_000) == expected
            chosen = {column: after for column, *after in column_moves(TINY, *position)}
            mover, moved = chosen[player.move(*position)]
            won = TINY.wins(moved)
            value = 1000 + depth if won else -brute_force(TINY, mover, moved, depth - 1)
            assert value == expected


def test_outcomes_are_those_of_brute_force():
    mine, theirs = TINY.random_positions(6, 5, np.random.default_rng(3))
    solver = RULES.Minimax(TINY, None)
    for position in zip(mine.tolist(), theirs.tolist(), strict=True):
        expected = {}
        for column, mover, moved in column_moves(TINY, *position):
            expected[column] = (
                1 if TINY.wins(moved) else -int(np.sign(brute_force(TINY, mover, moved, 12)))
            )
        assert solver.outcomes(*position) == expected


def test_endings_are_quiet_and_what_one_plays_matters():
    positions = TINY.random_positions(60, 6, np.random.default_rng(2))
    (mine, theirs), outcomes = RULES.solved_endings(TINY, positions, 20)
    assert 3 < len(outcomes) == len(mine) <= 20
    solver = RULES.Minimax(TINY, None)
    for stones, others, outcome in zip(mine.tolist(), theirs.tolist(), outcomes, strict=True):
        after = {column: moves for column, *moves in column_moves(TINY, stones, others)}
        assert not any(TINY.wins(moved) for _, moved in after.values())
        assert not any(TINY.wins(moved) for _, _, moved in column_moves(TINY, others, stones))
        assert outcome.keys() == after.keys() and len(set(outcome.values())) > 1
        assert outcome == solver.outcomes(stones, others)

    def worst(*_):
        return np.array([min(outcome, key=outcome.get) for outcome in outcomes])

    assert RULES.right_moves(solver, (mine, theirs), outcomes) == 1
    assert RULES.right_moves(worst, (mine, theirs), outcomes) == 0


@pytest.mark.parametrize(
    ("moves", "column"),
    [
        ("1 7 1 7 1 7", 1),  # a win
        ("1 1 2 2 3 3", 4),
        ("7 1 6 1 7 1", 1),  # else lost
        ("4 5 4 5 6 5", 5),
    ],
)
def test_the_search_wins_in_one_and_blocks_without_a_network(moves, column):
    # Both games at once, beside another: trees do not touch each other.
    other = FOUR.position("4 4")
    mine, theirs = (np.array(pair) for pair in zip(FOUR.position(moves), other, strict=True))
    trees = SEARCH.Trees(FOUR, SEARCH.by_nothing(FOUR), mine, theirs, 100, 2.0)
    assert trees.root_visits[0].argmax() == column - 1
    assert trees.root_policy[0].argmax() == column - 1
    assert (trees.root_visits.sum(axis=1) == 100).all()
    alone = SEARCH.Trees(FOUR, SEARCH.by_nothing(FOUR), mine[:1], theirs[:1], 100, 2.0)
    np.testing.assert_array_equal(alone.root_visits[0], trees.root_visits[0])
    np.testing.assert_array_equal(alone.root_values[0], trees.root_values[0])


def test_the_search_believes_its_network():
    def evaluate(mine, theirs):
        prior = np.full((len(mine), 7), 0.02, dtype=np.float32)
        prior[:, 5] = 0.88
        prior[~FOUR.legal(mine, theirs)] = 0
        return prior, np.zeros(len(mine), dtype=np.float32)

    trees = SEARCH.Trees(FOUR, evaluate, *as_arrays(0, 0), 30, 2.0)
    assert trees.root_visits[0].argmax() == 5
    np.testing.assert_allclose(trees.root_policy[0, 5], 0.88, rtol=1e-6)


def test_policies_are_of_legal_moves_and_values_follow_who_moved():
    config = JOB.configure(**JOB.quick | {"curious": 0, "noise": 0.0})
    learnt = CONNECT4.self_play(
        config, SEARCH.by_nothing(config.rules), 8, 60, np.random.default_rng(0)
    )
    legal = config.rules.legal(learnt["mine"], learnt["theirs"])
    np.testing.assert_allclose(learnt["policy"].sum(axis=1), 1, rtol=1e-5)
    assert (learnt["policy"][~legal] == 0).all()
    rows = (learnt[name].tolist() for name in ("mine", "theirs", "value"))
    for mine, theirs, value in zip(*rows, strict=True):
        if config.rules.completing(mine) & config.rules.playable(mine | theirs):
            assert value > 0.5  # it can win at once, and 60 simulations find that


def test_the_latest_positions_are_kept():
    memory = CONNECT4.Memory(5, 2)

    def add(numbers):
        policy = np.array([numbers, numbers], dtype=np.float32).T
        values = np.array(numbers)
        memory.add({"mine": values, "theirs": values, "policy": policy, "value": values})

    def kept():
        drawn = memory.sample(200, np.random.default_rng(0))
        for column in (drawn["theirs"], *drawn["policy"].T, drawn["value"]):
            np.testing.assert_array_equal(column, drawn["mine"])
        return set(drawn["mine"].tolist())

    add([1, 2, 3])
    assert kept() == {1, 2, 3}
    add([4, 5, 6, 7])
    assert kept() == {3, 4, 5, 6, 7}
    copy = CONNECT4.Memory(5, 2)
    copy.load_state_dict(memory.state_dict())
    add([8])
    assert kept() == {4, 5, 6, 7, 8}
    add(list(range(10, 22)))
    assert kept() == {17, 18, 19, 20, 21}
    assert set(copy.arrays["mine"].tolist()) == {3, 4, 5, 6, 7} and copy.seen == 7


def test_a_network_that_diverged_is_named():
    config = JOB.configure(**JOB.quick)
    network = CONNECT4.Network(config)
    learnt = SEARCH.by_network(network, config.rules, "cpu")
    mine, theirs = as_arrays(*config.rules.position("1 1 1 1"))  # a full column
    prior, value = learnt(mine, theirs)
    assert prior[0, 0] == 0 and (prior[0, 1:] > 0).all() and -1 < value[0] < 1
    with gpunn.no_grad():
        network.policy.bias.fill_(np.nan)
    with pytest.raises(TrainingError, match="smaller learning_rate"):
        SEARCH.by_network(network, config.rules, "cpu")(mine, theirs)


def test_the_mirrored_board_is_the_mirrored_position():
    boards = FOUR.planes(*as_arrays(*FOUR.position("1 2 2 7 3")))
    mirrored = FOUR.planes(*as_arrays(*FOUR.position("7 6 6 1 5")))
    np.testing.assert_array_equal(boards[..., ::-1], mirrored)


def test_matches_count_both_colours():
    rules = RULES.Rules(rows=4, columns=4, in_a_row=2)  # the first to move wins with the second
    best = RULES.Minimax(rules, 3)
    opening = tuple(np.zeros(3, dtype=np.int64) for _ in range(2))
    assert RULES.match(rules, best, best, opening).tolist() == [1, 1, 1, 0, 0, 0]


def trained(folder, **changes):
    """The run of a quick training in a new folder."""
    folder.mkdir(exist_ok=True)
    config = JOB.configure(**JOB.quick | {"device": "cpu"} | changes)
    run = Run(JOB, config, folder, verbose=False)
    JOB.train(run)
    return run


def test_a_resumed_loop_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(History, "plot", lambda *_: None)  # not what is tested here
    whole = trained(tmp_path / "whole", iterations=3)
    plain, calls = CONNECT4.self_play, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(CONNECT4, "self_play", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", iterations=3)
    resumed = trained(tmp_path / "stopped", iterations=3)
    first, second = ((run.folder / "model.safetensors").read_bytes() for run in (whole, resumed))
    assert first == second
    histories = [History.from_csv(run.folder / "history.csv") for run in (whole, resumed)]
    for name in ("policy_loss", "value_loss", "score"):
        assert histories[0][name] == histories[1][name]


def test_what_cannot_be_played_is_refused(tmp_path):
    run = trained(tmp_path / "run", iterations=1)
    rows = list(JOB.predict(run, "3 3"))
    assert sorted(row["column"] for row in rows) == [1, 2, 3, 4, 5]
    assert sum(row["visits"] for row in rows) == run.config.test_simulations
    with pytest.raises(ValueError, match="the game is over"):
        list(JOB.predict(run, "1 2 1 2 1"))
    late = JOB.configure(**JOB.quick | {"in_a_row": 2, "empty_cells": 2, "test_endings": 1})
    with pytest.raises(ValueError, match="seldom last 18 moves"):
        JOB.train(Run(JOB, late, tmp_path, verbose=False))  # before it has trained
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ValueError, match="do not fit into 62 bits"):
        JOB.configure(columns=9)
    with pytest.raises(ValueError, match="smaller than a line"):
        JOB.configure(in_a_row=8)
