"""The conformance cases: one tiny kernel for each function of ``ptx.cuh``, with what it must give.

The kernels are in ``kernels/cuda/conformance``. What they must give is computed with NumPy from the
words of NVIDIA's documents, not with the emulator's code. Numbers are small integers, so that sums
are exact and a GPU must give the same bits. `run` runs a case wherever its launch leads: on the
emulator today, on a GPU as soon as there is one; then a layout that all of us have misread shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpunn.emulator.conformance_cases import Case, Problem
from gpunn.emulator.conformance_tensor import CASES
from gpunn.emulator.tensor_map import TensorMap

__all__ = ["CASES", "Case", "Outcome", "Problem", "cuda_launch", "emulator_launch", "get", "run"]


@dataclass(frozen=True)
class Outcome:
    """What a case gave: `passed`, pairs (actual, expected), and words on the first difference."""

    case: Case
    passed: bool
    outputs: Sequence[tuple[np.ndarray, np.ndarray]] = field(repr=False)
    message: str = ""


Launch = Callable[[Case, Sequence[Any]], None]


def run(case: Case, launch: Launch, seed: int = 0) -> Outcome:
    """Make the case's problem, launch it (arrays are changed in place) and compare bit for bit."""
    problem = case.make(np.random.default_rng(seed))
    launch(case, problem.arguments)
    outputs = [(actual.copy(), expected) for actual, expected in problem.expected]
    for number, (actual, expected) in enumerate(outputs):
        wrong = _different(actual, expected)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            message = (
                f"{case.name}: {int(wrong.sum())} of {wrong.size} elements of output {number} "
                f"differ, the first at {first}: {actual[first]} instead of {expected[first]}"
            )
            return Outcome(case, False, outputs, message)
    return Outcome(case, True, outputs)


def _different(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ValueError(
            f"expected {expected.dtype} {expected.shape}, not {actual.dtype} {actual.shape}"
        )
    different = actual != expected
    if actual.dtype.kind in "fV":  # any NaN is as good as another; V is bfloat16
        different &= ~(np.isnan(actual) & np.isnan(expected))
    return different


def emulator_launch(**settings) -> Launch:
    """Launches on the emulator; `settings` go to RawModule (check, schedule, seed …)."""

    def launch(case: Case, arguments: Sequence[Any]) -> None:
        module = _emulated(case.source, tuple(sorted(settings.items())))
        kernel = module.get_function(case.expression)
        kernel((case.grid,), (case.block,), tuple(arguments), shared_mem=case.shared)

    return launch


@functools.cache
def _emulated(source: str, settings: tuple):
    from gpunn import emulator
    from gpunn.device import sources

    expressions = sorted({case.expression for case in CASES if case.source == source})
    path = sources.kernels_folder() / "cuda" / source
    return emulator.RawModule(path=path, name_expressions=expressions, **dict(settings))


def cuda_launch(device) -> Launch:
    """Launches on a GPU (a gpunn Device) through CudaLauncher; arrays travel there and back."""
    from gpunn.device.cuda_launch import cuda_launcher
    from gpunn.device.probe import import_cupy

    cupy = import_cupy()

    def launch(case: Case, arguments: Sequence[Any]) -> None:
        moved: dict[int, tuple[np.ndarray, Any]] = {}  # by identity: an array, and its bytes there

        def there(array: np.ndarray):
            """The device's bytes from the array's first element on."""
            owner = array if array.base is None else array.base
            if id(owner) not in moved:
                moved[id(owner)] = owner, cupy.asarray(owner.view(np.uint8).reshape(-1))
            return moved[id(owner)][1][array.ctypes.data - owner.ctypes.data :]

        def argument(value):
            if isinstance(value, TensorMap):
                return value.as_argument(there(value.array).data.ptr)
            return there(value) if isinstance(value, np.ndarray) else value

        with device.activate():
            launcher = cuda_launcher(case.source, device)
            values = tuple(argument(value) for value in arguments)
            launcher(case.expression, (case.grid,), (case.block,), values, case.shared)
            for owner, bytes_there in moved.values():
                owner.view(np.uint8).reshape(-1)[:] = cupy.asnumpy(bytes_there)

    return launch


def get(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)
