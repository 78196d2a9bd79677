"""Every primitive's CUDA kernels, run by the emulator, against the NumPy reference in float64.

Three times, by the emulator's own pytest fixture: as compiled, with the threads in order, as a
small GPU would be launched; as compiled, with the threads in a random order, launched as on an
H200; and with every access checked. The rows come from the kernel table and the samples from
`parity.cases`: a new primitive is in by itself.

A sample of both 16-bit types runs in float16 only the second time, one of float32 and float64 in
float64 only the first two times, unless it reaches a kernel of another make: what the others look
at, the launch for another GPU, addresses and barriers, is the same for both.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.emulator_launch import H200, emulated_chip
from gpunn.emulator import EmulatorError
from gpunn.emulator.pytest_plugin import modes
from gpunn.primitives import parity
from gpunn.primitives.registry import kernels_of
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOAT64

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reached import CHECKED, SMALL, compile_source, reachable, without_twins

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

TABLE = kernels.table()
# What the launch code sees, and how many elements a sample may have, by the mode's name. Larger
# ones are left out, unless they reach a kernel that no smaller sample of the primitive reaches.
CHIPS = {"fast-in-order": SMALL, "fast-random": H200, "checked-random": H200}
BOTH_TYPES = "fast-random"
LIMITS = {"fast-in-order": 50_000, "fast-random": 300_000, "checked-random": 25_000}


def elements(sample) -> int:
    """The elements of all arrays of a sample."""
    values = (getattr(value, "array", value) for value in (*sample.args, *sample.kwargs.values()))
    return sum(value.size for value in values if isinstance(value, np.ndarray))


@functools.cache
def needed(mode: str) -> set[tuple[str, str]]:
    """The kernels that must run in a mode."""
    found = reachable(CHIPS[mode])
    return {(source, one) for source in found for one in without_twins(found[source], mode)}


@functools.cache
def chosen(name: str, mode: str) -> tuple[list, int]:
    """The cases of a primitive to run, smallest first, and how many are left out."""
    kept, left_out, reached = [], 0, set()
    cases = parity.cases(TABLE[name], "emulator")
    if mode != BOTH_TYPES:
        cases = [
            (sample, dtype) for sample, dtype in cases
            if dtype != FLOAT16 or BFLOAT16 not in sample.dtypes
        ]  # fmt: skip
    for sample, dtype in sorted(cases, key=lambda case: elements(case[0])):
        found = kernels_of([(TABLE[name], sample, dtype)], *looks(mode))
        found = {(source, expression) for source in found for expression in found[source]}
        new = found - reached
        if mode == CHECKED and dtype == FLOAT64 and FLOAT32 in sample.dtypes:
            new &= needed(mode)
            if not new:
                continue
        if elements(sample) <= LIMITS[mode] or new:
            kept.append((sample, dtype))
        else:
            left_out += 1
        reached |= found
    return kept, left_out


def looks(mode: str) -> tuple[str, int]:
    """The architecture and the number of multiprocessors that the launch code sees."""
    return CHIPS[mode].arch, CHIPS[mode].multiprocessors


# All modes of one primitive follow each other, and primitives of one source: so processes that
# share the tests mostly compile different sources. Where they meet, one waits for the other.
@pytest.mark.parametrize("name", TABLE)
def test_parity(name, emulator_mode, count_parity):
    cases, left_out = chosen(name, emulator_mode.name)
    failed = []
    with emulated_chip(**CHIPS[emulator_mode.name]._asdict()):
        for source in TABLE[name].cuda_sources:
            problem = compile_source(source, emulator_mode.check)
            assert not problem, problem
        for sample, dtype in cases:
            try:
                result = parity.check(TABLE[name], sample, dtype, "emulator")
            except EmulatorError as error:
                failed.append(f"{name} [{dtype}, {sample.name}] {error}")
            else:
                failed += [] if result.passed else [str(result)]
    assert cases, f"{name} has no samples"
    assert not failed, "\n".join(failed)
    count_parity(name, f"emulator {emulator_mode}", len(cases), left_out)


@pytest.mark.parametrize("mode", [mode.name for mode in modes()])
def test_every_kernel_runs(mode):
    """What is left out reaches nothing more: every kernel that a sample reaches runs."""
    kept = [(TABLE[name], *case) for name in TABLE for case in chosen(name, mode)[0]]
    run = kernels_of(kept, *looks(mode))
    for source, expressions in reachable(CHIPS[mode]).items():
        expected = expressions if mode == BOTH_TYPES else without_twins(expressions, mode)
        assert set(expected) <= set(run.get(source, ())), source
