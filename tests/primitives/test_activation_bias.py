"""The gradient through an activation and of the bias: against its two halves, and its errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.primitives import activation_bias
from gpunn.primitives.activation import ACTIVATIONS


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_gradient_of_both(activation):
    """By finite differences of sum(w * f(x + b)) in float64."""
    rng = np.random.default_rng(3)
    x, w, b, h = rng.uniform(0.1, 2.5, (6, 4)), rng.normal(size=(6, 4)), rng.normal(size=4), 1e-6
    x = x - b * 0.05  # no kink of any function within h

    def total(x, b):
        return (w * kernels.activation_forward(x + 0.05 * b, activation=activation)).sum()

    z = x + 0.05 * b
    out, sums = kernels.activation_bias_backward(w, z, activation=activation)
    for n in range(4):
        step = np.eye(4)[n] * h / 0.05
        slope = (total(x, b + step) - total(x, b - step)) / (2 * h)
        assert abs(sums[n] - slope) < 1e-7 * (1 + abs(slope))
    expected = kernels.activation_backward(w, z, activation=activation)
    np.testing.assert_array_equal(out, expected)


def test_sums_are_taken_before_rounding():
    """10000 gradients of 1 + 2^-9 with a slope of 1: rounded to bfloat16 each is 1."""
    grad = np.full((10_000, 1), 1, ml_dtypes.bfloat16)
    x = np.full((10_000, 1), 0.01, ml_dtypes.bfloat16)
    options = {"activation": "leaky_relu", "alpha": 0.5}
    out, sums = kernels.activation_bias_backward(grad, -x, **options)
    assert out.dtype == sums.dtype == ml_dtypes.bfloat16
    assert float(sums[0]) == float(ml_dtypes.bfloat16(5000))


def test_any_number_of_axes_and_into_arrays():
    rng = np.random.default_rng(0)
    grad, x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), np.ones((3, 4, 5), np.float32)
    out, sums = np.empty((3, 4, 5), np.float32), np.empty(5, np.float32)
    made = kernels.activation_bias_backward(
        grad[0], x, activation="relu", out=out, bias_gradient=sums
    )
    assert made[0] is out and made[1] is sums
    np.testing.assert_array_equal(out, grad[0])
    np.testing.assert_allclose(sums, grad[0].astype(float).sum(axis=(0, 1)), rtol=1e-6)
    inplace, _ = kernels.activation_bias_backward(out, x, activation="relu", out=out)
    assert inplace is out


def test_no_rows_give_zeros():
    out, sums = kernels.activation_bias_backward(
        np.zeros((0, 3)), np.zeros((0, 3)), activation="relu", bias_gradient=np.full(3, 7.0)
    )
    assert out.shape == (0, 3) and sums.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "grad, x, options, message",
    [
        (np.zeros(()), np.zeros(()), {}, "grad_output .* expected at least 1 dimension"),
        (np.zeros((2, 3)), np.zeros((3, 2)), {}, "x .* expected the shape of grad_output"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.float32), {}, "x .* the dtype of grad_output"),
        (np.zeros((2, 3), int), np.zeros((2, 3)), {}, "grad_output .* expected dtype float16"),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"bias_gradient": np.zeros(2)}, "shape .3,."),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"alpha": 2.0}, "relu has no parameter"),
    ],
)
def test_errors_name_the_argument(grad, x, options, message):
    with pytest.raises((TypeError, ValueError), match=f"activation_bias_backward: .*{message}"):
        kernels.activation_bias_backward(grad, x, activation="relu", **options)


@pytest.mark.parametrize("itemsize, vector", [(2, True), (2, False), (4, True), (8, True)])
def test_plans_cover_all_rows_and_columns(itemsize, vector):
    width = 16 // itemsize if vector else 1
    for rows in (0, 1, 7, 1000, 65536, 10**9):
        for packs in (1, 3, 32, 33, 4096):
            cols = packs * width
            plan = activation_bias._plan(rows, cols, itemsize, vector, 132)
            tiles, across, runs, each = plan
            assert across & (across - 1) == 0 and 1 <= across <= 32
            assert tiles * across >= packs > (tiles - 1) * across
            assert runs * each >= rows and (runs - 1) * each <= max(rows - 1, 0)
            assert 1 <= runs <= 65535 and tiles < 2**31
