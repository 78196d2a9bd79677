"""Every primitive's CUDA kernels, run by the emulator, against the NumPy reference in float64.

Three times, by the emulator's own pytest fixture: as compiled, with the threads in order, as a
small GPU would be launched; as compiled, with the threads in a random order, launched as on an
H200; and with every access checked. The rows come from the kernel table and the samples from
`parity.cases`: a new primitive is in by itself.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.emulator_launch import H200, Chip, emulated_chip, prepare
from gpunn.device.launch import RecordingLauncher
from gpunn.emulator import EmulatorError
from gpunn.emulator.pytest_plugin import modes
from gpunn.errors import CompileError
from gpunn.primitives import parity
from gpunn.primitives.matmul_parity import menu_kernels
from gpunn.primitives.registry import kernels_of, reachable_kernels

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

TABLE = kernels.table()
SMALL = Chip(arch="sm_80", multiprocessors=6, shared_limit=99 * 1024)
# What the launch code sees, and how many elements a sample may have, by the mode's name. Larger
# ones are left out, unless they reach a kernel that no smaller sample of the primitive reaches.
CHIPS = {"fast-in-order": SMALL, "fast-random": H200, "checked-random": H200}
LIMITS = {"fast-in-order": 300_000, "fast-random": 300_000, "checked-random": 100_000}


def elements(sample) -> int:
    """The elements of all arrays of a sample."""
    values = (getattr(value, "array", value) for value in (*sample.args, *sample.kwargs.values()))
    return sum(value.size for value in values if isinstance(value, np.ndarray))


@functools.cache
def chosen(name: str, mode: str) -> tuple[list, int]:
    """The cases of a primitive to run, smallest first, and how many are left out."""
    kept, left_out, reached = [], 0, set()
    cases = parity.cases(TABLE[name], "emulator")
    for sample, dtype in sorted(cases, key=lambda case: elements(case[0])):
        found = kernels_of([(TABLE[name], sample, dtype)], *looks(mode))
        found = {(source, expression) for source in found for expression in found[source]}
        if elements(sample) <= LIMITS[mode] or found - reached:
            kept.append((sample, dtype))
        else:
            left_out += 1
        reached |= found
    return kept, left_out


def looks(mode: str) -> tuple[str, int]:
    """The architecture and the number of multiprocessors that the launch code sees."""
    return CHIPS[mode].arch, CHIPS[mode].multiprocessors


@functools.cache
def compile_source(source: str, check: bool) -> str:
    """Compile all kernels of a source at once, tried once; the error, if there is one."""
    try:
        prepare({source: reachable_kernels()[source]})
    except CompileError as error:
        return str(error)
    return ""


# All modes of one primitive follow each other, and primitives of one source: so processes that
# share the tests mostly compile different sources. Where they meet, one waits for the other.
@pytest.mark.parametrize("name", TABLE)
def test_parity(name, emulator_mode, count_parity):
    cases, left_out = chosen(name, emulator_mode.name)
    failed = []
    with emulated_chip(**CHIPS[emulator_mode.name]._asdict()):
        problem = compile_source(TABLE[name].cuda_source, emulator_mode.check)
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
    assert kernels_of(kept, *looks(mode)) == reachable_kernels(*looks(mode))


def test_a_small_gpu_runs_no_kernel_that_is_not_compiled():
    compiled = reachable_kernels()
    menu = menu_kernels(RecordingLauncher("matmul.cu"))  # compiled by the tests of products
    for source, expressions in reachable_kernels(*looks("fast-in-order")).items():
        assert set(expressions) <= {*compiled.get(source, ()), *menu.get(source, ())}
