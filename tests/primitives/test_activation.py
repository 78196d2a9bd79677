"""Activation functions: values from closed forms, derivatives by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpunn.primitives import activation_cpu
from gpunn.primitives.activation import ACTIVATIONS, activation_backward, activation_forward

KNOWN = {  # (x, f(x)) from the closed forms, evaluated in Python's own float64
    "identity": [(-2.5, -2.5)],
    "sigmoid": [(0.0, 0.5), (2.0, 1 / (1 + math.exp(-2))), (-800.0, 0.0), (800.0, 1.0)],
    "tanh": [(0.5, math.tanh(0.5))],
    "relu": [(-1.0, 0.0), (0.0, 0.0), (2.0, 2.0)],
    "leaky_relu": [(-2.0, -0.02), (3.0, 3.0)],
    "elu": [(-1.0, math.exp(-1) - 1), (-900.0, -1.0), (2.0, 2.0)],
    "selu": [
        (1.0, 1.0507009873554805),
        (-1.0, 1.0507009873554805 * 1.6732632423543772 * math.expm1(-1)),
    ],
    "gelu": [(1.0, 0.5 * (1 + math.erf(math.sqrt(0.5)))), (-40.0, 0.0)],
    "gelu_tanh": [(1.0, 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))), (1e30, 1e30)],
    "silu": [(1.0, 1 / (1 + math.exp(-1))), (-800.0, 0.0)],
    "softplus": [(0.0, math.log(2)), (800.0, 800.0), (-800.0, 0.0)],
    "mish": [(1.0, math.tanh(math.log1p(math.e))), (-800.0, 0.0), (800.0, 800.0)],
    "hard_swish": [(-3.0, 0.0), (1.0, 4 / 6), (3.0, 3.0)],
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_known_values(activation):
    x, expected = np.array(KNOWN[activation]).T
    np.testing.assert_allclose(
        activation_forward(x, activation=activation), expected, rtol=1e-14, atol=1e-300
    )


@pytest.mark.parametrize("activation", ["gelu_tanh", "leaky_relu"])
def test_a_large_array_is_made_of_its_parts(activation):
    size = 2 * activation_cpu._PART + 5
    x, grad = np.random.default_rng(2).normal(size=(2, size, 1)).astype(np.float32)
    out = activation_forward(x, activation=activation)
    back = activation_backward(grad, x, activation=activation)
    for some in (slice(0, 1000), slice(activation_cpu._PART - 3, activation_cpu._PART + 3),
                 slice(size - 7, size)):  # fmt: skip
        part = activation_forward(x[some], activation=activation)
        np.testing.assert_allclose(out[some], part, rtol=1e-6)
        part = activation_backward(grad[some], x[some], activation=activation)
        np.testing.assert_allclose(back[some], part, rtol=1e-6)
    activation_backward(grad, x, activation=activation, out=grad)
    np.testing.assert_array_equal(grad, back)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative_by_finite_differences(activation):
    rng = np.random.default_rng(1)
    x = rng.uniform(-4, 4, 400)
    x = x[np.min([np.abs(x - kink) for kink in (-3, 0, 3)], axis=0) > 1e-3]
    h = 1e-6
    slope = (
        activation_forward(x + h, activation=activation)
        - activation_forward(x - h, activation=activation)
    ) / (2 * h)
    grad = rng.normal(size=x.size)
    np.testing.assert_allclose(
        activation_backward(grad, x, activation=activation), grad * slope, rtol=2e-8, atol=2e-9
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stable_far_out(activation, dtype):
    x = np.array([-1e30, -1e5, -700, -89, 89, 700, 1e5, 1e30], dtype)
    value = activation_forward(x, activation=activation)
    slope = activation_backward(np.ones_like(x), x, activation=activation)
    assert np.isfinite(value).all() and np.isfinite(slope).all()
    assert np.abs(slope).max() <= 1.8


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_travels(activation):
    x = np.array([np.nan, 1.0], np.float32)
    assert np.isnan(activation_forward(x, activation=activation)[0])


def test_relu_needs_only_the_output_to_go_back():
    x = np.random.default_rng(0).normal(size=100)
    y = activation_forward(x, activation="relu")
    one = activation_backward(np.ones(100), x, activation="relu")
    np.testing.assert_array_equal(one, activation_backward(np.ones(100), y, activation="relu"))


@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements=st.floats(-50, 50, width=32),
    ),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_any_shape_and_bounds(x, activation):
    y = activation_forward(x, activation=activation)
    assert y.shape == x.shape and y.dtype == x.dtype
    low = {"sigmoid": 0, "relu": 0, "softplus": 0, "elu": -1, "selu": -1.7581, "tanh": -1}
    if activation in low:
        assert (y >= low[activation]).all()
    assert (y <= np.maximum(np.abs(x) * 1.0508, 1) + 0.7).all()
