"""The activations of 16-bit elements by quick.cuh, in the emulator, element by element.

The emulator's exponential and division are accurate ones, so this holds the formulas to their
bounds, and not the GPU's approximate instructions: CUDA's documents have their errors, a few ulp.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.primitives.activation import ACTIVATIONS

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)
HALF, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
HALF_ULP = {HALF: 2.0**-11, BFLOAT16: 2.0**-8}
# Where two terms cancel, as in 1 + tanh(x) for x far below zero, float32 leaves this much.
CANCELLED = 2e-6


def all_values(dtype) -> np.ndarray:
    """Every finite number of the type up to 1000 in size."""
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        return values[np.abs(values.astype(np.float64)) <= 1000]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_number_gives_the_function_rounded_once(activation, dtype):
    x = all_values(dtype)
    wide = x.astype(np.float64)
    with kernels.using("emulator"):
        value = kernels.activation_forward(x, activation=activation)
        slope = kernels.activation_backward(np.ones_like(x), x, activation=activation)
    wanted = kernels.activation_forward(wide, activation=activation)
    check(value, wanted, dtype, x)
    check(slope, kernels.activation_backward(np.ones_like(wide), wide, activation=activation),
          dtype, x)  # fmt: skip


def check(got, wanted, dtype, x) -> None:
    smallest = 2.0**-25 if dtype == HALF else 2.0**-134  # half of the smallest subnormal number
    allowed = 1.1 * HALF_ULP[dtype] * np.abs(wanted) + smallest + CANCELLED
    off = np.abs(got.astype(np.float64) - wanted) - allowed
    worst = int(np.argmax(off))
    assert off[worst] <= 0, f"f({x[worst]}) = {got[worst]}, not {wanted[worst]}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_travel_as_in_numpy(activation):
    x = np.array([np.nan, np.inf, -np.inf], HALF)
    expected = kernels.activation_forward(x, activation=activation)
    with kernels.using("emulator"):
        np.testing.assert_array_equal(
            kernels.activation_forward(x, activation=activation), expected
        )


def test_softplus_divides_exactly_by_a_huge_beta():
    x = np.array([2.0, -2.0], HALF)
    with kernels.using("emulator"):
        found = kernels.activation_forward(x, activation="softplus", alpha=1.2e38)
    np.testing.assert_array_equal(found, kernels.activation_forward(x, activation="relu"))
