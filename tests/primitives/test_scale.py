"""An array times a number on the device, and sums that take in narrower parts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import intercepting, using

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LOW = [np.dtype(np.float16), BFLOAT16]
DTYPES = [*LOW, np.dtype(np.float32), np.dtype(np.float64)]
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


def number(value, dtype=np.float32):
    return np.array(value, np.float64 if dtype == np.float64 else np.float32)


# ---- scale ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_new_array_and_in_place(dtype):
    x = np.arange(-3, 9).reshape(3, 4).astype(dtype)
    y = kernels.scale(x, number(0.5, dtype))
    assert y is not x and y.dtype == dtype and (x[0, 0], y[0, 0]) == (-3, -1.5)
    assert kernels.scale(x, number(0.5, dtype), out=x) is x
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_it_is_rounded_once(dtype):
    """The factor in 16 bits would give another product."""
    x = np.linspace(0.5, 2, 999).astype(dtype)
    factor = number(1.0009)
    exact = x.astype(np.float64) * np.float64(factor)
    np.testing.assert_array_equal(kernels.scale(x, factor), exact.astype(dtype))
    wide = np.linspace(0.5, 2, 999, dtype=np.float32)
    out = np.empty(999, dtype)
    assert kernels.scale(wide, factor, out=out) is out
    np.testing.assert_array_equal(out, (wide * factor).astype(dtype))
    kernels.scale(wide, out=out)
    np.testing.assert_array_equal(out, wide.astype(dtype))


def test_shapes_and_values_at_the_edge():
    assert kernels.scale(np.zeros((0, 3), np.float32), number(2)).shape == (0, 3)
    assert kernels.scale(np.array(3.0), number(2, np.float64)) == 6
    x = np.array([1, 0, np.nan, -np.inf], np.float32)
    np.testing.assert_array_equal(kernels.scale(x, number(0)), [0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(kernels.scale(x, number(np.inf))[:2], [np.inf, np.nan])
    strided = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(kernels.scale(strided, number(2)), 2 * strided)


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 1])
def test_in_place_in_the_emulator(dtype, start):
    memory = np.random.default_rng(0).normal(size=5003).astype(dtype)
    x = memory[start:]
    expected = kernels.scale(x, number(0.3, dtype))
    with using("emulator"):
        assert kernels.scale(x, number(0.3, dtype), out=x) is x
    np.testing.assert_array_equal(x, expected)


# ---- accumulate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_part_is_added_or_begins_the_sum(dtype):
    wide = np.float64 if dtype == np.float64 else np.float32
    total, part = np.array([[1.0, 1e5]], wide), np.array([[0.25, 2]], dtype)
    assert kernels.accumulate(total, part) is total
    np.testing.assert_array_equal(total, [[1.25, 1e5 + 2]])
    kernels.accumulate(total, part, scale=16)
    np.testing.assert_array_equal(total, [[5.25, 1e5 + 34]])
    total[:] = np.nan
    kernels.accumulate(total, part, scale=-2, add=False)
    np.testing.assert_array_equal(total, [[-0.5, -4]])


@given(st.integers(0, 200_000), st.sampled_from(LOW), st.sampled_from([1.0, 16.0]))
@settings(max_examples=20, deadline=None)
def test_parts_add_up_as_in_float64(size, dtype, scale):
    rng = np.random.default_rng(size)
    parts = rng.normal(size=(3, size)).astype(dtype)
    total = np.empty(size, np.float32)
    for place, part in enumerate(parts):
        kernels.accumulate(total, part, scale=scale, add=place > 0)
    exact = scale * parts.astype(np.float64).sum(0)
    np.testing.assert_allclose(total, exact, rtol=3e-7, atol=1e-6 * scale)


# ---- cost, launches, errors ----------------------------------------------------------------------


def test_bytes_of_an_element():
    """What the two were made for: 4 and 6 to scale, 10 and 6 to add."""

    def moved(made, *args, **kwargs):
        cost = made.cost_of(*args, **kwargs)
        return (cost.read + cost.written) / 1000

    low, wide = np.ones(1000, BFLOAT16), np.ones(1000, np.float32)
    factor = number(2)
    assert moved(kernels.scale, low, factor) == pytest.approx(4, abs=0.01)
    assert moved(kernels.scale, wide, factor, out=low) == pytest.approx(6, abs=0.01)
    assert moved(kernels.accumulate, wide, low) == 10
    assert moved(kernels.accumulate, wide, low, add=False) == 6


def test_memory_that_is_not_aligned_goes_by_single_elements():
    def launched(made, *args, **kwargs):
        launcher = RecordingLauncher("scale.cu")
        with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
            made(*args, **kwargs)
        return [name for _, name in launcher.launches]

    wide, low = np.zeros(100, np.float32), np.zeros(100, np.float16)
    f = number(1)
    assert launched(kernels.scale, wide, f, out=low) == ["scaled<float, __half, false, true>"]
    assert launched(kernels.scale, wide[1:], f, out=low[1:]) == [
        "scaled<float, __half, false, false>"
    ]
    assert launched(kernels.scale, low[1:], f, out=low[1:]) == [
        "scaled<__half, __half, false, true>"
    ]
    assert launched(kernels.accumulate, wide[1:], wide[:-1]) == [
        "scaled<float, float, true, false>"
    ]
    assert launched(kernels.accumulate, wide, low) == ["scaled<__half, float, true, true>"]
    assert launched(kernels.scale, wide[:0], f) == []


X, LOW_X, WIDE_X = np.ones(3, np.float32), np.ones(3, np.float16), np.ones(3)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: kernels.scale(np.ones(3, int), number(1)), TypeError, "scale: x has"),
        (lambda: kernels.scale(X, np.array(1.0)), TypeError, "scale: factor .*float32"),
        (lambda: kernels.scale(X, np.ones(1, np.float32)), ValueError, r"scale: factor .*\(\)"),
        (lambda: kernels.scale(X, number(1), out=WIDE_X), TypeError, "scale: out has"),
        (lambda: kernels.scale(LOW_X, number(1), out=X), TypeError, "scale: out has"),
        (lambda: kernels.scale(X, number(1), out=X[:2]), ValueError, r"scale: out .*\(3,\)"),
        (lambda: kernels.accumulate(LOW_X, LOW_X), TypeError, "accumulate: total has"),
        (lambda: kernels.accumulate(X, WIDE_X), TypeError, "accumulate: part has"),
        (lambda: kernels.accumulate(WIDE_X, X), TypeError, "accumulate: part has"),
        (lambda: kernels.accumulate(X, X[:2]), ValueError, r"accumulate: part .*\(3,\)"),
        (lambda: kernels.accumulate(X, X.copy(), scale=None), TypeError, "accumulate: scale"),
    ],
)
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()
