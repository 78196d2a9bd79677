"""Correct kernels with subtle synchronisation: right results and not one report, over many seeds.

GPUNN_EMULATOR_SEEDS says how many; change it after work on the checks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from correct_kernels import CASES, FOLDER, Case

from gpunn import emulator

SEEDS = range(int(os.environ.get("GPUNN_EMULATOR_SEEDS", "10")))


def run(one: Case, seed: int, **settings) -> None:
    """One launch; raises if there is a report or the result is wrong."""
    module = emulator.RawModule(path=FOLDER / f"correct_{one.file}.cu", **one.module)
    function = module.get_function(one.function)
    function.max_dynamic_shared_size_bytes = max(48 * 1024, one.shared_mem)
    grid = one.grid if isinstance(one.grid, tuple) else (one.grid,)
    arguments, expected = one.prepare(np.random.default_rng(seed))
    function(grid, (one.block,), arguments, shared_mem=one.shared_mem, seed=seed, **settings)
    for got, right in expected:
        got = np.asarray(got() if callable(got) else got, np.float64)
        right = np.broadcast_to(np.asarray(right, np.float64), got.shape)
        np.testing.assert_allclose(got, right, one.tolerance, 0.0, err_msg=f"seed {seed}")


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.file}-{one.function}")
def test_a_correct_kernel_is_never_reported(one):
    for seed in SEEDS:
        run(one, seed, check=True, schedule="random")


@pytest.mark.parametrize("schedule", ["in order", "reverse", "random"])
@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.file}-{one.function}")
def test_it_is_right_in_fast_mode_and_other_orders(one, schedule):
    for check in (False, True):
        run(one, 1, check=check, schedule=schedule)


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.file}-{one.function}")
def test_it_is_not_reported_when_interrupted_anywhere(one):
    for seed in range(5):
        run(one, seed, check=True, schedule="random", preempt=7)


def test_there_are_enough_kernels():
    assert len({one.file for one in CASES}) >= 22
