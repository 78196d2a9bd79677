"""Samples: the inputs on which every implementation of a primitive is held to its reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
FLOATING = (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)
INTEGERS = (np.dtype(np.int32), np.dtype(np.int64))


# Benchmark shapes of what treats every element alike: from a launch's cost to memory's bandwidth.
ELEMENTWISE_SHAPES = tuple((1 << power,) for power in (20, 12, 14, 16, 18, 22, 24, 26))


def accumulator_dtype(dtype) -> np.dtype:
    """The dtype that values of `dtype` are computed in: float32, but float64 for float64."""
    return FLOAT64 if dtype is FLOAT64 or np.dtype(dtype) == FLOAT64 else FLOAT32


@dataclass(frozen=True)
class Accumulator:
    """Marks an array of a sample that has the accumulator's dtype (float32, or float64 for float64
    inputs) and not the dtype under test: optimizer state, log-normalizers, hyperparameters."""

    array: np.ndarray


@dataclass(frozen=True)
class Fixed:
    """Marks an array of a sample that keeps its dtype, whatever the dtype under test."""

    array: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One call of a primitive for parity tests.

    `args` and `kwargs` hold what the primitive takes; floating arrays are given in float64 and are
    rounded to each of `dtypes` in turn (arrays in `Accumulator` to the accumulator's dtype),
    integer arrays and numbers stay. `tolerance` maps a dtype to a relative error that replaces the
    usual bound. `numba=False` leaves out Numba's simulator, a thousand times slower, for big ones.
    With `unaligned` the arrays start one element past a multiple of 16 bytes. With `exact` an
    implementation must give the very bits of the NumPy reference in the dtype under test.
    """

    name: str
    args: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple = (FLOAT32,)
    tolerance: dict = field(default_factory=dict)
    numba: bool = True
    unaligned: bool = False
    exact: bool = False

    def cast(self, dtype) -> tuple[list, dict]:
        """Fresh copies of the arguments with the floating arrays rounded to `dtype`."""
        place = _one_element_on if self.unaligned else lambda value: value
        return (
            [place(_cast(value, dtype)) for value in self.args],
            {name: place(_cast(value, dtype)) for name, value in self.kwargs.items()},
        )

    def cast_reference(self, dtype) -> tuple[list, dict]:
        """The same values, widened to float64 after the rounding to `dtype`."""
        args, kwargs = self.cast(dtype)
        return [_widen(value) for value in args], {n: _widen(v) for n, v in kwargs.items()}


def _cast(value, dtype):
    if isinstance(value, Accumulator):
        return _cast(value.array, accumulator_dtype(dtype))
    if isinstance(value, Fixed):
        return value.array.copy()
    if isinstance(value, np.ndarray):
        with np.errstate(
            all="ignore"
        ):  # extreme values become inf in a narrow type
            target = dtype if value.dtype == FLOAT64 else value.dtype
            return _like(value, target)
    return value


def _like(value: np.ndarray, dtype) -> np.ndarray:
    """A copy in `dtype` that keeps the strides' nature: a strided view stays one."""
    if value.flags.c_contiguous:
        return value.astype(dtype)
    if value.T.flags.c_contiguous:
        return value.T.astype(dtype).T
    padded = np.zeros((*value.shape[:-1], 2 * value.shape[-1]), dtype)
    view = padded[..., ::2]
    view[...] = value
    return view


def _one_element_on(value):
    """A copy of a contiguous array that starts one element behind where NumPy would place it."""
    if not isinstance(value, np.ndarray):
        return value
    longer = np.empty(value.size + 1, value.dtype)
    longer[1:] = value.reshape(-1)
    return longer[1:].reshape(value.shape)


def _widen(value):
    if isinstance(value, np.ndarray) and value.dtype in FLOATING:
        return _like(value, FLOAT64)
    return value
