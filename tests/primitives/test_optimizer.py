"""Weight updates: known values, formulas written out element by element, wrong inputs."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn import kernels
from gpunn.primitives import optimizer as updates
from gpunn.primitives.optimizer import HYPER, hyper_array
from gpunn.primitives.optimizer_reference import BLOCK

STATES = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "rmsprop": ("square_avg", "momentum_buffer", "grad_avg"),
    "adagrad": ("state_sum",),
    "lion": ("exp_avg",),
}
VALUES = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.05},
    "adam": {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.05},
    "rmsprop": {"lr": 0.1, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.05, "momentum": 0.7},
    "adagrad": {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05, "eps": 1e-6},
    "lion": {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.05},
}
RULES = tuple(STATES)


def update(rule, parameters, gradients, states, hyper, **switches):
    """One step of a rule."""
    kernels.advance_step(hyper, rule=rule)
    primitive = getattr(kernels, f"{rule}_update")
    return primitive(parameters, gradients, *states, hyper, **switches)


def arena(rule, size, dtype=np.float32):
    """Parameters and zero states."""
    accumulator = np.float64 if dtype == np.float64 else np.float32
    rng = np.random.default_rng(size)
    return rng.normal(size=size).astype(dtype), [np.zeros(size, accumulator) for _ in STATES[rule]]


# ---- one element in plain Python, from the papers' formulas ------------------------------------


def sgd(w, g, s, t, v):
    g += v["weight_decay"] * w
    s[0] = g if t == 1 else v["momentum"] * s[0] + (1 - v["dampening"]) * g
    return w - v["lr"] * s[0]


def adam(w, g, s, t, v):
    g += v["weight_decay"] * w
    s[0] = v["beta1"] * s[0] + (1 - v["beta1"]) * g
    s[1] = v["beta2"] * s[1] + (1 - v["beta2"]) * g**2
    mean, square = s[0] / (1 - v["beta1"] ** t), s[1] / (1 - v["beta2"] ** t)
    return w - v["lr"] * mean / (math.sqrt(square) + v["eps"])


def rmsprop(w, g, s, t, v):
    g += v["weight_decay"] * w
    s[0] = v["alpha"] * s[0] + (1 - v["alpha"]) * g**2
    s[2] = v["alpha"] * s[2] + (1 - v["alpha"]) * g
    s[1] = v["momentum"] * s[1] + g / (math.sqrt(s[0] - s[2] ** 2) + v["eps"])
    return w - v["lr"] * s[1]


def adagrad(w, g, s, t, v):
    g += v["weight_decay"] * w
    s[0] += g**2
    return w - v["lr"] / (1 + (t - 1) * v["lr_decay"]) * g / (math.sqrt(s[0]) + v["eps"])


def lion(w, g, s, t, v):
    direction = math.copysign(1, v["beta1"] * s[0] + (1 - v["beta1"]) * g)
    s[0] = v["beta2"] * s[0] + (1 - v["beta2"]) * g
    return w - v["lr"] * (direction + v["weight_decay"] * w)


@pytest.mark.parametrize("rule", RULES)
def test_many_steps_follow_the_formula(rule):
    parameters, states = arena(rule, 7, np.float64)
    hyper, rng = hyper_array(rule, **VALUES[rule]), np.random.default_rng(0)
    plain, plain_states = parameters.tolist(), [[0.0] * len(states) for _ in parameters]
    for t in range(1, 31):
        gradients = rng.normal(size=7) * t
        update(rule, parameters, gradients, states, hyper)
        assert hyper[HYPER[rule].index("step")] == t
        formula = globals()[rule]
        plain = [
            formula(w, g, s, t, VALUES[rule])
            for w, g, s in zip(plain, gradients.tolist(), plain_states, strict=True)
        ]
        np.testing.assert_allclose(parameters, plain, rtol=1e-11)
    np.testing.assert_allclose(np.array(states).T, plain_states, rtol=1e-11)


def test_known_values():
    """First steps by hand."""
    w, g = np.array([1.0, -2.0], np.float32), np.array([0.5, -4.0], np.float32)
    hyper = hyper_array("sgd", lr=0.1, weight_decay=0.5)
    kernels.sgd_update(w, g, None, hyper)
    np.testing.assert_allclose(w, [0.9, -1.5], rtol=1e-6)
    # Adam's first step is lr times the sign of the gradient.
    w = np.array([1.0, -2.0, 3.0])
    g = np.array([0.5, -4.0, 1e-3])
    states = [np.zeros(3), np.zeros(3)]
    hyper = hyper_array("adam", lr=0.01, beta1=0.9, beta2=0.999)
    update("adam", w, g, states, hyper)
    np.testing.assert_allclose(w, [0.99, -1.99, 2.99], rtol=1e-12)
    np.testing.assert_allclose(hyper[-2:], [0.1, math.sqrt(0.001)], rtol=1e-12)


def test_decoupled_weight_decay_does_not_enter_the_mean():
    w, states = arena("adam", 5)
    before = w.copy()
    hyper = hyper_array("adam", lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.5)
    update("adam", w, np.zeros(5, np.float32), states, hyper, decoupled=True)
    np.testing.assert_allclose(w, before * 0.95, rtol=1e-6)
    assert not states[0].any() and not states[1].any()


def test_amsgrad_keeps_the_largest():
    w, states = arena("adam", 4, np.float64)
    largest, hyper = np.zeros(4), hyper_array("adam", **VALUES["adam"])
    for scale in (5.0, 0.1, 0.1):
        before = largest.copy()
        update("adam", w, np.full(4, scale), states, hyper, max_exp_avg_sq=largest)
        np.testing.assert_array_equal(largest, np.maximum(before, states[1]))
    assert (largest > states[1]).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_dtype(rule, dtype):
    """The state is float32 for 16-bit parameters, and the result is rounded once."""
    w, states = arena(rule, 50, dtype)
    g = np.random.default_rng(1).normal(size=50).astype(dtype)
    wide, wide_states = w.astype(np.float64), [s.astype(np.float64) for s in states]
    hyper, wide_hyper = (hyper_array(rule, **VALUES[rule]) for _ in range(2))
    update(rule, w, g, states, hyper)
    update(rule, wide, g.astype(np.float64), wide_states, wide_hyper)
    assert w.dtype == dtype
    step = float(np.finfo(np.float32).eps if dtype != np.float64 else 1e-15)
    np.testing.assert_allclose(states[0], wide_states[0], rtol=8 * step)
    ulp = {2: 2**-7.9 if dtype != np.float16 else 2**-10.9, 4: 1e-6, 8: 1e-14}[w.itemsize]
    np.testing.assert_allclose(w.astype(np.float64), wide, rtol=ulp, atol=ulp / 10)


@pytest.mark.parametrize("rule", RULES)
def test_blocks_and_views_do_not_matter(rule):
    """Over several blocks, a strided gradient and an odd start: the same numbers."""
    size = 2 * BLOCK + 3
    w, states = arena(rule, size + 1)
    g = np.random.default_rng(2).normal(size=2 * size).astype(np.float32)[::2]
    whole, whole_states = w[1:].copy(), [s[1:].copy() for s in states]
    update(rule, w[1:], g, [s[1:] for s in states], hyper_array(rule, **VALUES[rule]))
    for start in (0, BLOCK - 1, size - 4):
        part = slice(start, start + 4)
        small = [s[part] for s in whole_states]
        hyper = hyper_array(rule, **VALUES[rule])
        update(rule, whole[part], g[part], small, hyper)
        np.testing.assert_array_equal(whole[part], w[1:][part])


@given(size=st.integers(0, 70), steps=st.integers(1, 3), rule=st.sampled_from(RULES))
@settings(max_examples=40, deadline=None)
def test_any_length(size, steps, rule):
    """Every element is updated, each by itself."""
    w, states = arena(rule, size)
    g = np.random.default_rng(3).normal(size=size).astype(np.float32)
    reversed_w, reversed_states = w[::-1].copy(), [s.copy() for s in states]
    hyper, other = (hyper_array(rule, **VALUES[rule]) for _ in range(2))
    for _ in range(steps):
        update(rule, w, g, states, hyper)
        update(rule, reversed_w, g[::-1].copy(), reversed_states, other)
    np.testing.assert_array_equal(w[::-1], reversed_w)


@pytest.mark.parametrize("rule", RULES)
def test_any_shape_and_nothing(rule):
    w, states = arena(rule, 12)
    flat, flat_states = w.copy(), [s.copy() for s in states]
    g = np.ones(12, np.float32)
    grid = w.reshape(3, 4)
    shaped = [s.reshape(3, 4) for s in states]
    update(rule, grid, g.reshape(3, 4), shaped, hyper_array(rule, **VALUES[rule]))
    update(rule, flat, g, flat_states, hyper_array(rule, **VALUES[rule]))
    np.testing.assert_array_equal(w, flat)
    empty = np.zeros(0, np.float32)
    nothing = [empty.copy() for _ in states]
    update(rule, empty, empty.copy(), nothing, hyper_array(rule, **VALUES[rule]))


def test_maximize_is_the_negative_gradient():
    for rule in RULES:
        w, states = arena(rule, 9)
        other, other_states = w.copy(), [s.copy() for s in states]
        g = np.random.default_rng(4).normal(size=9).astype(np.float32)
        update(rule, w, g, states, hyper_array(rule, **VALUES[rule]), maximize=True)
        update(rule, other, -g, other_states, hyper_array(rule, **VALUES[rule]))
        np.testing.assert_array_equal(w, other)


@pytest.mark.parametrize("rule", RULES)
def test_a_zero_stays_zero(rule):
    """Gaps of an arena: no parameter, no gradient, no state."""
    w, states = np.zeros(8, np.float32), [np.zeros(8, np.float32) for _ in STATES[rule]]
    hyper = hyper_array(rule, **VALUES[rule])
    for _ in range(3):
        update(rule, w, np.zeros(8, np.float32), states, hyper)
    assert not w.any() and not any(s.any() for s in states)


def test_infinite_weights_do_not_meet_a_decay_of_zero():
    w, g = np.array([np.inf, -np.inf]), np.ones(2)
    kernels.sgd_update(w, g, None, hyper_array("sgd", lr=0.1))
    np.testing.assert_array_equal(w, [np.inf, -np.inf])


def test_the_centered_variance_is_not_below_zero():
    """A constant gradient has no variance; rounding must not make its root NaN."""
    w = np.ones(300, np.float32)
    g = np.linspace(0.1, 3, 300, dtype=np.float32)
    states = [np.zeros(300, np.float32) for _ in range(3)]
    hyper = hyper_array("rmsprop", lr=1e-3, alpha=0.5, eps=1.0)
    for _ in range(60):
        update("rmsprop", w, g, states, hyper)
    assert np.isfinite(w).all()


def test_the_step_is_exact_beyond_float32():
    hyper = hyper_array("adagrad", lr=1.0, lr_decay=1.0, step=2**24)
    kernels.advance_step(hyper, rule="adagrad")
    assert hyper[4] == 2**24 + 1 and hyper[5] == 1 / (1 + 2**24)


def test_cost_is_28_bytes_a_parameter_for_adamw():
    w, states = arena("adam", 100)
    hyper = hyper_array("adam", step=1)
    cost = updates.adam_update.cost_of(w, w.copy(), *states, hyper, decoupled=True)
    assert cost.bytes == 2800


def test_fast_enough_on_a_cpu():
    """A generous bound: 235,000 parameters take well below a millisecond on an idle core."""
    import time

    w, states = arena("adam", 235_000)
    g, hyper, times = w.copy(), hyper_array("adam", **VALUES["adam"]), []
    for _ in range(12):
        began = time.perf_counter()
        update("adam", w, g, states, hyper, decoupled=True)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.010


# ---- wrong inputs ------------------------------------------------------------------------------


def call(**changed):
    """adam_update on good arguments, some replaced."""
    w, states = arena("adam", 6)
    given_args = {
        "parameters": w,
        "gradients": w.copy(),
        "exp_avg": states[0],
        "exp_avg_sq": states[1],
        "hyper": hyper_array("adam", step=1, bias_correction1=1, bias_correction2_sqrt=1),
    }
    return kernels.adam_update(**{**given_args, **changed})


def read_only(size):
    array = np.zeros(size, np.float32)
    array.flags.writeable = False
    return array


ZEROS = np.zeros(6, np.float32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"gradients": np.zeros(5, np.float32)}, ValueError, r"gradients has shape \(5,\)"),
        ({"gradients": np.zeros(6, np.float64)}, TypeError, "gradients .*the dtype of parameters"),
        ({"exp_avg": np.zeros(7, np.float32)}, ValueError, r"exp_avg has shape \(7,\)"),
        ({"exp_avg": np.zeros(6, np.float16)}, TypeError, "exp_avg .* expected dtype float32"),
        ({"exp_avg_sq": None}, ValueError, "exp_avg_sq is None"),
        ({"exp_avg": ZEROS, "exp_avg_sq": ZEROS}, ValueError, "exp_avg_sq is the same array"),
        ({"parameters": np.zeros(6, np.int32)}, TypeError, "parameters .* int32"),
        ({"parameters": read_only(6)}, ValueError, "parameters .*read-only"),
        ({"parameters": np.zeros(12, np.float32)[::2]}, ValueError, "parameters .*contiguous"),
        ({"exp_avg": read_only(6)}, ValueError, "exp_avg .*read-only"),
        ({"hyper": np.zeros(5)}, ValueError, r"hyper has shape \(5,\); adam needs 8 slots: lr, "),
        ({"hyper": np.zeros(8, np.float32)}, TypeError, "hyper .* float64"),
        ({"hyper": np.zeros(8)}, ValueError, "hyper is at step 0; call advance_step"),
        ({"parameters": [1.0] * 6}, ValueError, "parameters is .*an array to write into"),
        ({"gradients": None}, TypeError, "gradients is None"),
    ],
)
def test_wrong_inputs(changed, error, message):
    with pytest.raises(error, match=f"adam_update: {message}"):
        call(**changed)


def test_nothing_is_written_when_an_argument_is_wrong():
    w = np.ones(6, np.float32)
    with pytest.raises(ValueError):
        call(parameters=w, hyper=np.zeros(5))
    np.testing.assert_array_equal(w, 1)


def test_wrong_steps():
    with pytest.raises(ValueError, match="advance_step: rule is 'adamw'; expected one of 'sgd'"):
        kernels.advance_step(np.zeros(8), rule="adamw")
    with pytest.raises(ValueError, match="sgd needs 6 slots: lr, momentum"):
        kernels.advance_step(np.zeros(8), rule="sgd")
    with pytest.raises(ValueError, match="read-only"):
        hyper = np.zeros(5)
        hyper.flags.writeable = False
        kernels.advance_step(hyper, rule="lion")
    with pytest.raises(ValueError, match="hyper_array: lion has no eps; it has"):
        hyper_array("lion", eps=1.0)
