"""Which kernels make a recurrent network, and each of them where the parity samples do not go."""

from __future__ import annotations

import contextlib
import types

import numpy as np
import pytest

from gpunn import emulator, kernels
from gpunn.device import cuda_launch, probe, sources
from gpunn.device.device import Device
from gpunn.device.emulator_launch import prepare
from gpunn.primitives import recurrent_launch, recurrent_plan
from gpunn.primitives.recurrent_plan import GATES, block_bytes, choose
from gpunn.primitives.registry import reachable_kernels, using
from gpunn.primitives.rows import Chip

H200 = Chip("sm_90a", 132, 227 * 1024)
A100 = Chip("sm_80", 108, 163 * 1024)
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def way(plan) -> str:
    if plan is None:
        return "steps"
    return "grid" if plan.vectors else "cluster" if plan.members > 1 else "block"


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chip, shape, itemsize, forward, backward",
    [
        (H200, (50, 64, 64), 2, "block", "block"),
        (H200, (128, 64, 512), 2, "cluster", "cluster"),
        (A100, (128, 64, 512), 2, "grid", "grid"),  # no clusters before sm_90
        (H200, (50, 16, 128), 4, "cluster", "cluster"),
        (H200, (50, 16, 512), 4, "grid", "grid"),  # 4 MB of weights: more than a cluster holds
        (H200, (64, 16, 1024), 2, "grid", "grid"),
        (H200, (50, 64, 2048), 2, "steps", "steps"),
        (H200, (1, 64, 64), 2, "steps", "steps"),  # weights are not worth loading for one step
        (H200, (50, 4096, 512), 2, "steps", "steps"),  # a product of the whole chip is better
        (H200, (50, 16, 512), 8, "steps", "steps"),
    ],
)
def test_the_way_by_chip_shape_and_dtype(chip, shape, itemsize, forward, backward):
    assert way(choose(chip, shape, itemsize, "lstm", False)) == forward
    assert way(choose(chip, shape, itemsize, "lstm", True)) == backward


def test_every_plan_fits_the_chip_and_covers_the_work():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(2000):
        chip = (H200, A100, Chip("sm_90a", 14, 227 * 1024))[rng.integers(3)]
        hidden, batch = (int(2 ** rng.uniform(0, top)) for top in (11, 9))
        itemsize, mode = int(rng.choice([2, 4, 8])), str(rng.choice(list(GATES)))
        back = bool(rng.integers(2))
        plan = choose(chip, (int(rng.integers(1, 100)), batch, hidden), itemsize, mode, back)
        seen.add(way(plan))
        if plan is None:
            continue
        assert plan.units % 8 == 0 and plan.members * plan.units >= hidden
        assert plan.teams * plan.tiles * 8 >= batch > (plan.teams - 1) * plan.tiles * 8
        assert plan.shared <= chip.shared_limit
        if plan.vectors:  # all blocks must be there at once
            assert plan.members * plan.teams <= chip.multiprocessors
        else:
            assert plan.members == 1 or (plan.members == 8 and chip.arch == "sm_90a")
    assert seen == {"block", "cluster", "grid", "steps"}


def test_the_weights_are_counted():
    """In float32 they lie in shared memory, in 16 bits the first 128 KB in registers."""
    small, large = (block_bytes(units, 1, 1, 4, 4, False, False)[0] for units in (32, 64))
    assert large - small > 4 * (64 * 64 - 32 * 32) * 4
    assert block_bytes(128, 1, 1, 2, 4, False, False)[0] < 4 * 128 * 128 * 2
    assert block_bytes(136, 1, 1, 2, 4, False, False) is None  # 544 rows, 8 warps own 512


# ---- kernels -------------------------------------------------------------------------------------


@contextlib.contextmanager
def only(kind: str, monkeypatch, tiles: int = 1):
    """Choose the first plan of a kind with so many tiles, whatever it is estimated at."""

    def chosen(launch, shape, itemsize, mode, back):
        chip = Chip(launch.arch, launch.multiprocessors, launch.shared_limit)
        plans = recurrent_plan._plans(chip, *shape[1:], itemsize, GATES[mode], back)
        plans = (plan for plan in plans if way(plan) == kind and plan.tiles == tiles)
        return next(plans, None)

    with monkeypatch.context() as patch:
        patch.setattr(recurrent_launch, "choose", chosen)
        yield


def layer(rng, mode, steps, batch, hidden, dtype):
    columns = GATES[mode] * hidden
    made = [rng.normal(size=(steps, batch, columns)), rng.normal(size=(columns, hidden)) / hidden]
    made += [rng.normal(size=columns), *rng.normal(size=(2, batch, hidden)) / 2]
    arrays = [array.astype(dtype) for array in made]
    return (*arrays[:4], arrays[4] if mode == "lstm" else None)


def both_ways(given, lengths, mode, reverse, rng, in_place=False):
    """All that recurrent_forward returns, and recurrent_backward for random gradients."""
    kwargs = {"mode": mode, "reverse": reverse}
    gates = given[0].copy()
    where = {"activated": gates} if in_place and GATES[mode] > 1 else {}
    made = kernels.recurrent_forward(gates, *given[1:], lengths, **kwargs, **where)
    output, h_n, c_n, activated, inner = made
    grads = [rng.normal(size=x.shape).astype(output.dtype) for x in (output, h_n, h_n)]
    forward = [None if x is None else x.copy() for x in made]
    where = {"grad_gates": activated} if in_place and GATES[mode] > 1 else {}
    args = (*grads[:2], grads[2] if mode == "lstm" else None, output, activated, inner)
    back = kernels.recurrent_backward(*args, given[1], *given[3:], lengths, **kwargs, **where)
    return [*forward, *back]


@pytest.fixture
def compiled():
    """The kernels, not checked, in the batches in which the parity tests compile them."""
    primitives = [kernels.table()[f"recurrent_{way}"] for way in ("forward", "backward")]
    reached = reachable_kernels(primitives=primitives)
    with emulator.settings(check=False):
        prepare({name: reached[name] for name in ("recurrent.cu", "recurrent_grid.cu")})


@emulated
@pytest.mark.parametrize("kind", ["block", "grid", "steps"])
def test_every_mode_in_every_way(kind, monkeypatch, compiled):
    """More sequences than a tile and a team take, ended early, both directions, in place."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 5, size=20)
    for number, mode in enumerate(GATES):
        dtype = (np.float32, np.float16)[number % 2]
        bound = 1e-6 if dtype == np.float32 else 3e-3
        given = layer(rng, mode, 4, 20, 11, dtype)
        for reverse in (False, True):
            with using("numpy"):
                wide = [None if x is None else x.astype(np.float64) for x in given]
                expected = both_ways(wide, lengths, mode, reverse, np.random.default_rng(2))
            with using("emulator"), only(kind, monkeypatch), emulator.settings(check=False):
                got = both_ways(given, lengths, mode, reverse, np.random.default_rng(2), True)
            for one, two in zip(got, expected, strict=True):
                assert (one is None) == (two is None)
                if one is not None:
                    error = np.linalg.norm(one - two) / np.linalg.norm(two)
                    assert error < bound, (mode, reverse, error)


@emulated
@pytest.mark.parametrize("kind", ["cluster", "grid"])
def test_several_tiles(kind, monkeypatch, compiled):
    """50 sequences for two teams of four tiles each, the last of them not full."""
    rng = np.random.default_rng(3)
    given = layer(rng, "gru", 3, 50, 40, np.float32)
    expected = both_ways(given, None, "gru", False, np.random.default_rng(2))
    for dtype, bound in ((np.float32, 2e-6), (np.float16, 6e-3)):
        given = [None if x is None else x.astype(dtype) for x in given]
        with using("emulator"), only(kind, monkeypatch, 4), emulator.settings(check=False):
            got = both_ways(given, None, "gru", False, np.random.default_rng(2))
        for one, two in zip(got, expected, strict=True):
            if one is not None:
                np.testing.assert_allclose(one, two, rtol=bound * 50, atol=bound)


@emulated
def test_lengths_outside_count_as_the_nearest():
    """A GPU's lengths are not looked at on the host."""
    rng = np.random.default_rng(4)
    given = layer(rng, "lstm", 3, 2, 4, np.float32)
    moved = [emulator_array(x) for x in given]
    wild, tame = (emulator_array(np.array(x)) for x in ([-5, 99], [0, 3]))
    got = kernels.recurrent_forward(*moved, wild, mode="lstm")
    expected = kernels.recurrent_forward(*moved, tame, mode="lstm")
    for one, two in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def emulator_array(x):
    from gpunn.device import arrays

    return arrays.to_device(x, "emulator")


# ---- the launch of a grid ------------------------------------------------------------------------


def test_a_grid_is_launched_with_all_its_blocks_at_once(monkeypatch):
    calls = []
    driver = types.SimpleNamespace(
        launch="plain", launch_together="together", stream=None, current=None,
        properties=lambda index: {
            "arch": "sm_90a", "multiProcessorCount": 132, "sharedMemPerBlockOptin": 232448
        },
    )  # fmt: skip
    cpu = Device("cpu")  # only its number is looked at
    assert "recurrent_grid.cu" in sources.COOPERATIVE
    assert cuda_launch.CudaLauncher("recurrent_grid.cu", cpu, driver)._launch == "together"
    assert cuda_launch.CudaLauncher("recurrent.cu", cpu, driver)._launch == "plain"
    real = object.__new__(cuda_launch.CupyDriver)
    real._together = lambda *arguments: calls.append(arguments)
    real.launch_together(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0)
    assert calls == [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)]
