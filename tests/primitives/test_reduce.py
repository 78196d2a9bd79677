"""Reductions: against NumPy in float64, accuracy of long sums, and every wrong argument."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpunn.primitives.reduce import reduce_argmax, reduce_max, reduce_mean, reduce_sum
from gpunn.primitives.reduce_plan import passes

ALL = (reduce_sum, reduce_mean, reduce_max, reduce_argmax)
FLOATING = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def subsets(ndim):
    for count in range(ndim + 1):
        yield from itertools.combinations(range(ndim), count)


def test_known_values():
    x = np.array([[1.0, 2.0, 6.0], [5.0, 4.0, 3.0]], np.float32)
    assert reduce_sum(x) == 21 and reduce_mean(x) == 3.5 and reduce_max(x) == 6
    assert reduce_argmax(x) == 2
    np.testing.assert_array_equal(reduce_sum(x, axis=0), [6, 6, 9])
    np.testing.assert_array_equal(reduce_mean(x, axis=1), [3, 4])
    np.testing.assert_array_equal(reduce_max(x, axis=-1), [6, 5])
    np.testing.assert_array_equal(reduce_argmax(x, axis=0), [1, 1, 0])
    for function in ALL:
        assert function(x).shape == () and function(x, keepdims=True).shape == (1, 1)
        assert function(x, axis=0, keepdims=True).shape == (1, 3)


@pytest.mark.parametrize("axes", list(subsets(4)), ids=str)
def test_every_set_of_axes(axes):
    x = np.random.default_rng(0).normal(size=(3, 1, 4, 5))
    for keepdims in (False, True):
        options = {"axis": axes, "keepdims": keepdims}
        close = {"rtol": 1e-13, "atol": 1e-14}
        np.testing.assert_allclose(reduce_sum(x, **options), x.sum(**options), **close)
        np.testing.assert_allclose(reduce_mean(x, **options), x.mean(**options), **close)
        np.testing.assert_array_equal(reduce_max(x, **options), x.max(**options))


@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=6),
        elements=st.floats(-100, 100, width=32),
    ),
    data=st.data(),
)
def test_any_shape_and_axis(x, data):
    axes = tuple(data.draw(st.sets(st.integers(0, x.ndim - 1)))) if x.ndim else ()
    wide = x.astype(np.float64)
    np.testing.assert_allclose(reduce_sum(x, axis=axes), wide.sum(axis=axes), rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(reduce_max(x, axis=axes), x.max(axis=axes))
    np.testing.assert_array_equal(reduce_argmax(x), x.argmax())
    if x.ndim:
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        np.testing.assert_array_equal(reduce_argmax(x, axis=axis), x.argmax(axis=axis))


@given(shape=hnp.array_shapes(min_dims=1, max_dims=5, max_side=5), data=st.data())
def test_passes_multiply_to_the_whole(shape, data):
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1)))))
    found = passes(shape, axes)
    assert all(n > 0 for _, n, _ in found)
    left = int(np.prod(shape))
    for outer, n, inner in found:
        assert outer * n * inner == left
        left = outer * inner
    assert left == int(np.prod([s for a, s in enumerate(shape) if a not in axes]))


@pytest.mark.parametrize("dtype", FLOATING)
def test_dtypes_of_results(dtype):
    x = np.array([[1, 2, 3], [4, 5, 7]], dtype)
    for function in (reduce_sum, reduce_mean, reduce_max):
        assert function(x, axis=1).dtype == dtype
    assert reduce_argmax(x).dtype == np.int64
    assert float(reduce_sum(x)) == 22


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64])
def test_integers_are_summed_in_int64(dtype):
    x = np.random.default_rng(1).integers(0, 2 if dtype == np.bool_ else 200, (40, 5)).astype(dtype)
    assert reduce_sum(x).dtype == np.int64 and reduce_sum(x) == x.sum(dtype=np.int64)
    big = np.full(100, np.iinfo(np.int32).max, np.int32)
    assert reduce_sum(big) == 100 * (2**31 - 1)
    assert reduce_max(x, axis=0).dtype == dtype
    np.testing.assert_array_equal(reduce_max(x, axis=0), x.max(axis=0))
    np.testing.assert_array_equal(reduce_argmax(x, axis=1), x.argmax(axis=1))


@pytest.mark.parametrize("shape", [(1_000_000, 2), (2, 1_000_000)], ids=str)
def test_long_float32_sums_keep_their_digits(shape):
    # One by one in float32, a million numbers near 0.1 lose four digits.
    x = np.random.default_rng(2).uniform(0.09, 0.11, shape).astype(np.float32)
    axis = int(np.argmax(shape))
    expected = x.sum(axis=axis, dtype=np.float64)
    np.testing.assert_allclose(reduce_sum(x, axis=axis), expected, rtol=5e-7)
    np.testing.assert_allclose(reduce_mean(x, axis=axis), expected / 1e6, rtol=5e-7)


def test_half_is_summed_in_float32():
    x = np.ones((3, 5000), np.float16)  # one by one, float16 would stop at 2048
    np.testing.assert_array_equal(reduce_sum(x, axis=1), np.float16([5000] * 3))
    x = np.full(100, 1000, np.float16)
    assert reduce_sum(x) == np.inf and reduce_mean(x) == 1000  # 100000 is beyond float16


def test_not_a_number_is_the_largest():
    x = np.array([[1.0, np.nan, 3.0, np.nan], [1.0, np.inf, np.inf, -np.inf]])
    np.testing.assert_array_equal(reduce_max(x, axis=1), [np.nan, np.inf])
    np.testing.assert_array_equal(reduce_argmax(x, axis=1), [1, 1])
    assert reduce_argmax(np.full(4, -np.inf)) == 0
    assert np.isnan(reduce_sum(x, axis=1)).all()


def test_nothing():
    x = np.empty((3, 0, 2), np.float32)
    np.testing.assert_array_equal(reduce_sum(x, axis=1), np.zeros((3, 2)))
    assert np.isnan(reduce_mean(x, axis=1)).all() and np.isnan(reduce_mean(x))
    assert reduce_sum(x, axis=0).shape == reduce_max(x, axis=0).shape == (0, 2)
    assert reduce_argmax(x, axis=2).shape == (3, 0)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.name)
def test_out_views_and_read_only_inputs(function):
    x = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
    expected = function(x, axis=1)
    out = np.empty_like(expected)
    assert function(x, axis=1, out=out) is out
    np.testing.assert_array_equal(out, expected)
    for view in (x[:, ::2], x.T, x[::-1, 1:]):
        np.testing.assert_array_equal(function(view, axis=0), function(view.copy(), axis=0))
    x.flags.writeable = False
    np.testing.assert_array_equal(function(x, axis=1), expected)


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.name)
def test_wrong_arguments(function):
    name, x = function.name, np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=f"{name}: axis is 2 but x has 2 dimensions; give -2 to 1"):
        function(x, axis=2)
    with pytest.raises(ValueError, match=f"{name}: axis is 0 but x has 0 .*; leave axis out"):
        function(np.float32(1), axis=0)
    with pytest.raises(TypeError, match=f"{name}: axis is 1.0; expected an int"):
        function(x, axis=1.0)
    with pytest.raises(TypeError, match=f"{name}: x has shape .* complex64.*Convert it"):
        function(x.astype(np.complex64))
    with pytest.raises(TypeError, match=f"{name}: x is None"):
        function(None)
    with pytest.raises(ValueError, match=rf"{name}: out .*expected shape \(2,\)"):
        function(x, axis=1, out=np.empty((2, 1), function(x).dtype))
    with pytest.raises(TypeError, match=f"{name}: out .*expected dtype"):
        function(x, axis=1, out=np.empty(2, np.float16))
    locked = np.empty(2, function(x).dtype)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match=f"{name}: out .*read-only"):
        function(x, axis=1, out=locked)


def test_axes_named_twice_and_sums_of_one_kind_only():
    x = np.zeros((2, 3), np.float32)
    for function in (reduce_sum, reduce_mean, reduce_max):
        with pytest.raises(ValueError, match=rf"{function.name}: axis is \(0, -2\), .* one twice"):
            function(x, axis=(0, -2))
    with pytest.raises(TypeError, match=r"reduce_argmax: axis is \(0, 1\); expected"):
        reduce_argmax(x, axis=(0, 1))
    with pytest.raises(TypeError, match="reduce_mean: x .*int64"):
        reduce_mean(x.astype(np.int64))


@pytest.mark.parametrize("function", [reduce_max, reduce_argmax], ids=lambda f: f.name)
def test_nothing_has_no_largest(function):
    name = function.name
    with pytest.raises(ValueError, match=rf"{name}: x has shape \(3, 0\) and no element"):
        function(np.empty((3, 0)), axis=1)
    with pytest.raises(ValueError, match="no element along axis"):
        function(np.empty((0, 2)))


@pytest.mark.parametrize(
    ("shape", "axis", "kernels"),
    [
        ((65536, 1024), 1, ["reduce_rows"]),
        ((1, 10**7), 1, ["reduce_rows", "reduce_merge"]),
        ((4096, 4096), 0, ["reduce_columns", "reduce_merge"]),
        ((64, 128, 100_000), 1, ["reduce_columns"]),
        ((256, 64, 3136), (0, 2), ["reduce_rows", "reduce_merge"]),
        ((10**5, 64, 2), (0, 2), ["reduce_columns", "reduce_merge", "reduce_merge"]),
        ((64, 10**5, 8, 64), (1, 3), ["reduce_columns", "reduce_merge", "reduce_merge"]),
        ((5000, 3, 5001), (0, 2), ["reduce_rows", "reduce_merge", "reduce_merge"]),
        ((5, 6), (), ["reduce_rows"]),
    ],
)
def test_which_kernels_run(shape, axis, kernels):
    from gpunn.device.launch import RecordingLauncher

    # An array of any size without the memory.
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))
    axes = (axis,) if isinstance(axis, int) else axis
    kept = [size for place, size in enumerate(shape) if place not in axes]
    launcher = RecordingLauncher("reduce.cu")
    reduce_sum.run_cuda(launcher, (x, np.empty(kept, np.float32), axes))
    assert [name.split("<")[0] for _, name in launcher.launches] == kernels
