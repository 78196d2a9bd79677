"""Norm, clipping and penalties: known values, extreme sizes, wrong inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn import kernels

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


# ---- norm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_a_triangle(dtype):
    norm = kernels.global_norm(np.array([3, 0, -4], dtype))
    assert norm.shape == () and norm == 5
    assert norm.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_norm_of_nothing_and_of_any_shape():
    assert kernels.global_norm(np.zeros((0, 3), np.float32)) == 0
    assert kernels.global_norm(np.ones((2, 2, 4), np.float32)) == 4
    assert kernels.global_norm(np.float32(-2.0).reshape(())) == 2
    out = np.empty((), np.float32)
    assert kernels.global_norm(np.ones((4, 8), np.float32)[:, ::2], out=out) is out and out == 4


@given(st.integers(0, 20000), st.floats(-35, 35))
@settings(max_examples=25, deadline=None)
def test_norm_is_accurate_at_every_size(size, exponent):
    """Also where squares overflow or vanish in float32."""
    x = (np.random.default_rng(size).normal(size=size) * 10.0**exponent).astype(np.float32)
    expected = np.linalg.norm(x.astype(np.float64))
    np.testing.assert_allclose(kernels.global_norm(x), np.float32(expected), rtol=5e-7)


def test_norm_of_many_does_not_drift():
    """A float32 running sum would stop growing at 2^24 ones."""
    assert kernels.global_norm(np.ones(1 << 25, np.float32)) == np.float32((1 << 25) ** 0.5)


def test_nan_and_inf_travel():
    assert np.isnan(kernels.global_norm(np.array([1, np.nan], np.float32)))
    assert np.isinf(kernels.global_norm(np.array([1, -np.inf], np.float32)))
    assert np.isinf(kernels.global_norm(np.full(4, 3e38, np.float32)))  # 6e38 is no float32


# ---- clipping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_by_norm(dtype):
    g = np.array([3, 0, -4], dtype)
    norm = kernels.global_norm(g)
    assert kernels.clip_by_norm(g, norm, max_norm=1.0) is g
    np.testing.assert_allclose(
        g.astype(float), [0.6, 0, -0.8], rtol=1e-2 if g.itemsize < 4 else 1e-5
    )


def test_small_gradients_are_left_alone_bit_by_bit():
    g = np.random.default_rng(0).normal(size=100).astype(np.float32)
    before = g.copy()
    kernels.clip_by_norm(g, kernels.global_norm(g), max_norm=1000)
    kernels.clip_by_value(g, limit=1000)
    kernels.penalty_gradient(before, g)
    np.testing.assert_array_equal(g, before)


def test_a_norm_that_is_not_finite():
    g = np.array([1, 0, -2], np.float32)
    np.testing.assert_array_equal(
        kernels.clip_by_norm(g.copy(), np.float32(np.inf).reshape(()), max_norm=1), [0, 0, 0]
    )
    clipped = kernels.clip_by_norm(g.copy(), np.float32(np.nan).reshape(()), max_norm=1)
    np.testing.assert_array_equal(clipped, [np.nan, 0, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_by_value(dtype):
    g = np.array([3, 0.25, -4, np.nan, np.inf, -np.inf], dtype)
    kernels.clip_by_value(g, limit=0.5)
    np.testing.assert_array_equal(g.astype(float), [0.5, 0.25, -0.5, np.nan, 0.5, -0.5])


# ---- penalties ---------------------------------------------------------------------------------


def test_penalty_gradient_is_the_derivative():
    rng, step = np.random.default_rng(1), 1e-6
    w, l1, l2 = rng.normal(size=20), 0.3, 0.7

    def penalty(w):
        return l1 * np.abs(w).sum() + l2 * np.square(w).sum()

    numeric = [(penalty(w + step * e) - penalty(w - step * e)) / (2 * step) for e in np.eye(20)]
    g = rng.normal(size=20)
    added = kernels.penalty_gradient(w, g.copy(), l1=l1, l2=l2) - g
    np.testing.assert_allclose(added, numeric, rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_penalty_at_the_kink_and_at_infinity(dtype):
    w = np.array([0, -0.0, np.inf, -2], dtype)
    g = kernels.penalty_gradient(w, np.zeros(4, dtype), l1=0.5)
    np.testing.assert_array_equal(g.astype(float), [0, 0, 0.5, -0.5])


# ---- wrong inputs ------------------------------------------------------------------------------

G = np.ones(4, np.float32)
NORM = np.ones((), np.float32)


def frozen():
    array = np.ones(4, np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "error", "message"),
    [
        ("global_norm", (np.arange(3),), {}, TypeError, "gradients .* int64"),
        ("global_norm", (None,), {}, TypeError, "gradients is None"),
        ("global_norm", (G,), {"out": np.ones(1, np.float32)}, ValueError, r"out .* shape \(\)"),
        ("global_norm", (G,), {"out": np.ones(())}, TypeError, "out .* float32"),
        ("clip_by_norm", (G, np.ones(())), {"max_norm": 1}, TypeError, "norm .* float32"),
        ("clip_by_norm", (G, np.ones(1, np.float32)), {"max_norm": 1}, ValueError, r"norm .*\(\)"),
        ("clip_by_norm", (G, NORM), {"max_norm": -1}, ValueError, "max_norm is -1"),
        ("clip_by_norm", (G, NORM), {"max_norm": "a"}, TypeError, "max_norm is 'a'"),
        ("clip_by_norm", (frozen(), NORM), {"max_norm": 1}, ValueError, "read-only"),
        ("clip_by_norm", (G[::2], NORM), {"max_norm": 1}, ValueError, "contiguous"),
        ("clip_by_value", (G,), {"limit": -0.5}, ValueError, "limit is -0.5"),
        ("clip_by_value", (G,), {"limit": np.nan}, ValueError, "limit is nan"),
        ("clip_by_value", (np.arange(3),), {"limit": 1}, TypeError, "gradients .* int64"),
        ("penalty_gradient", (G, G[:3].copy()), {}, ValueError, r"gradients has shape \(3,\)"),
        ("penalty_gradient", (G, G.astype(float)), {}, TypeError, "the dtype of parameters"),
        ("penalty_gradient", (G, frozen()), {}, ValueError, "read-only"),
        ("penalty_gradient", (G, G.copy()), {"l1": -1}, ValueError, "l1 is -1"),
    ],
)
def test_wrong_inputs(name, args, kwargs, error, message):
    with pytest.raises(error, match=f"{name}: .*{message}"):
        getattr(kernels, name)(*args, **kwargs)
