"""Parity: hold an implementation of a primitive to the NumPy reference in float64.

Used by the tests, by `gpunn doctor` and by the run on hardware. The reference is computed from the
same inputs, already rounded to the dtype under test, so that only the implementation's own
rounding is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.primitives.registry import Primitive, using
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FLOATING, Sample

# Relative error in the Frobenius norm that an implementation may make, by the outputs' dtype: a few
# roundings of float32 and float64, one rounding of the 16-bit types.
TOLERANCE = {FLOAT64: 1e-13, FLOAT32: 1e-6, FLOAT16: 6e-4, BFLOAT16: 4e-3}


@dataclass(frozen=True)
class Result:
    """One comparison: what was compared, the worst relative error, the bound, why it failed."""

    primitive: str
    sample: str
    dtype: str
    implementation: str
    error: float
    bound: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the implementation agrees with the reference."""
        return not self.reason

    def __str__(self) -> str:
        state = "ok" if self.passed else f"FAILED: {self.reason}"
        return f"{self.primitive} [{self.implementation}, {self.dtype}, {self.sample}] {state}"


def check(
    made: Primitive,
    sample: Sample,
    dtype,
    implementation: str | None = None,
    device: Device | str = "cpu",
    context=None,
) -> Result:
    """Run `made` on a sample and compare every array that it returned or changed.

    `context` is a context manager to run the implementation in; by default the one that forces
    `implementation` ("numpy", "cuda", "numba", "emulator"; None: the device's own). The emulator
    also runs on the CPU, where the arrays keep their addresses and strides.
    """
    dtype = np.dtype(dtype)
    bound = 0.0 if sample.exact else sample.tolerance.get(dtype, TOLERANCE[dtype])
    args, kwargs = (sample.cast if sample.exact else sample.cast_reference)(dtype)
    with using("numpy"):
        expected = _outcome(made(*args, **kwargs), args, kwargs)
    args, kwargs = sample.cast(dtype)
    if Device(device).type != "cpu":
        args = [_move(value, device) for value in args]
        kwargs = {name: _move(value, device) for name, value in kwargs.items()}
    with context if context is not None else using(implementation):
        actual = _outcome(made(*args, **kwargs), args, kwargs)
    error, reason = 0.0, ""
    for place, want in expected.items():
        one, why = (compare_bits if sample.exact else compare)(actual[place], want, bound)
        error = max(error, one)
        reason = reason or (f"{place}: {why}" if why else "")
    label = implementation or str(device)
    return Result(made.name, sample.name, dtype.name, label, error, bound, reason)


def _move(value, device):
    if not isinstance(value, np.ndarray):
        return value
    moved, offset = arrays.to_device(value, device), value.ctypes.data % 16 // value.itemsize
    if offset and value.size:  # memory of a GPU starts at a multiple of 16: keep what is not there
        longer = arrays.empty((value.size + offset,), value.dtype, device)
        longer[offset:] = moved.reshape(-1)
        moved = longer[offset:].reshape(value.shape)
    return moved


def _outcome(returned, args, kwargs) -> dict[str, np.ndarray]:
    """Every array that a call returned or may have changed, by where it is."""
    returned = returned if isinstance(returned, tuple) else (returned,)
    found = {f"result {i}": value for i, value in enumerate(returned)}
    found |= {f"argument {i}": value for i, value in enumerate(args)}
    found |= {f"argument {name}": value for name, value in kwargs.items()}
    return {name: arrays.to_numpy(v) for name, v in found.items() if hasattr(v, "shape")}


def compare(actual: np.ndarray, expected: np.ndarray, bound: float) -> tuple[float, str]:
    """The relative error of `actual`, and a sentence if it is too large.

    NaN and inf must stand where the rounded reference has them; the Frobenius norm of the
    difference must stay below `bound` times that of the reference; and no single element may be
    off by more than 8 times the bound relative to itself and to the root mean square.
    """
    if actual.shape != expected.shape:
        return np.inf, f"shape {actual.shape}, expected {expected.shape}"
    if actual.dtype not in FLOATING:
        wrong = np.count_nonzero(actual != expected)
        return (np.inf, f"{wrong} of {expected.size} integers differ") if wrong else (0.0, "")
    bound = max(bound, TOLERANCE[actual.dtype])
    with np.errstate(all="ignore"):
        rounded = expected.astype(actual.dtype).astype(np.float64)
    got = actual.astype(np.float64)
    finite = np.isfinite(rounded)
    if not np.array_equal(got[~finite], rounded[~finite], equal_nan=True):
        at = np.flatnonzero((got != rounded) & ~finite & ~(np.isnan(got) & np.isnan(rounded)))[0]
        return np.inf, f"{got.flat[at]} at {at}, expected {rounded.flat[at]}"
    if not np.isfinite(got[finite]).all():
        at = np.flatnonzero(finite & ~np.isfinite(got))[0]
        return np.inf, f"{got.flat[at]} at {at}, expected {rounded.flat[at]}"
    wanted, got = expected[finite].astype(np.float64), got[finite]
    if wanted.size == 0:
        return 0.0, ""
    # Scaled first, so that squares of very large or very small numbers stay finite.
    scale = np.abs(wanted).max() or 1.0
    difference, size = np.abs(got - wanted) / scale, np.abs(wanted) / scale
    smallest = float(np.finfo(np.float32).tiny if actual.itemsize >= 4 else 6e-8) / scale
    norm = np.sqrt((size**2).sum())
    error = float(np.sqrt((difference**2).sum()) / norm) if norm else float(difference.max())
    if error > bound and difference.max() > smallest:
        return error, f"relative error {error:.2e}, allowed {bound:.1e}"
    limit = 8 * bound * (size + np.sqrt((size**2).mean())) + smallest
    if (difference > limit).any():
        at = int(np.argmax(difference - limit))
        return error, f"{got[at]!r} at finite element {at}, expected {wanted[at]!r}"
    return error, ""


def compare_bits(actual: np.ndarray, expected: np.ndarray, bound: float = 0.0) -> tuple[float, str]:
    """Like `compare`, but every element must be the same, the sign of zero included."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return np.inf, (
            f"shape {actual.shape} and dtype {actual.dtype}, "
            f"expected {expected.shape} and {expected.dtype}"
        )
    if actual.dtype in FLOATING:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
        wrong = (actual != expected) | (np.signbit(actual) != np.signbit(expected))
        wrong &= ~(np.isnan(actual) & np.isnan(expected))  # the payload of a NaN is not compared
    else:
        wrong = actual != expected
    count = np.count_nonzero(wrong)
    if not count:
        return 0.0, ""
    at = int(np.argmax(wrong))
    return np.inf, (
        f"{count} of {wrong.size} differ, the first at {at}: "
        f"{actual.flat[at]!r}, expected {expected.flat[at]!r}"
    )


def cases(made: Primitive, implementation: str):
    """(sample, dtype) pairs on which `implementation` of `made` is to be checked."""
    for sample in made.sample_list():
        for dtype in map(np.dtype, sample.dtypes):
            if implementation == "numba" and (not sample.numba or dtype not in made.numba_dtypes):
                continue
            yield sample, dtype
