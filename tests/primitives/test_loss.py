"""Elementwise losses: values from closed forms, gradients by finite differences, wrong inputs."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpunn.primitives import loss as losses
from gpunn.primitives.loss import (
    binary_cross_entropy_backward,
    binary_cross_entropy_forward,
    huber_backward,
    huber_forward,
    l1_backward,
    l1_forward,
    mse_backward,
    mse_forward,
)

PAIRS = {
    "mse": (mse_forward, mse_backward, {}),
    "l1": (l1_forward, l1_backward, {}),
    "huber": (huber_forward, huber_backward, {"delta": 0.7}),
    "binary_cross_entropy": (
        binary_cross_entropy_forward,
        binary_cross_entropy_backward,
        {"weight": np.array([0.5, 2.0, 1.0]), "pos_weight": np.array([1.0, 3.0, 0.2])},
    ),
}


def one(function, p, t, **options):
    return float(function(np.array([p]), np.array([t]), reduction="sum", **options))


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "p", "t", "options", "expected"),
    [
        (mse_forward, 1.5, -0.5, {}, 4.0),
        (l1_forward, 1.5, -0.5, {}, 2.0),
        (huber_forward, 1.5, 1.0, {}, 0.125),
        (huber_forward, 3.0, 1.0, {}, 1.5),
        (huber_forward, -3.0, 1.0, {"delta": 2.0}, 2.0 * (4.0 - 1.0)),
        (binary_cross_entropy_forward, 0.0, 0.3, {}, math.log(2)),
        (binary_cross_entropy_forward, 2.0, 1.0, {}, math.log1p(math.exp(-2))),
        (binary_cross_entropy_forward, 2.0, 0.0, {}, 2 + math.log1p(math.exp(-2))),
        (binary_cross_entropy_forward, 2.0, 1.0, {"weight": 3.0}, 3 * math.log1p(math.exp(-2))),
        (binary_cross_entropy_forward, 2.0, 1.0, {"pos_weight": 5.0}, 5 * math.log1p(math.exp(-2))),
        (binary_cross_entropy_forward, 2.0, 0.0, {"pos_weight": 5.0}, 2 + math.log1p(math.exp(-2))),
        (binary_cross_entropy_forward, 1e6, 0.0, {}, 1e6),
        (binary_cross_entropy_forward, -1e6, 0.0, {}, 0.0),
        (binary_cross_entropy_forward, math.inf, 1.0, {}, 0.0),
        (binary_cross_entropy_forward, -math.inf, 0.0, {}, 0.0),
        (binary_cross_entropy_forward, -math.inf, 1.0, {}, math.inf),
        (binary_cross_entropy_forward, math.inf, 0.5, {}, math.inf),
    ],
)
def test_known_values(function, p, t, options, expected):
    options = {name: np.array(v) if "weight" in name else v for name, v in options.items()}
    assert one(function, p, t, **options) == pytest.approx(expected, rel=1e-14, abs=1e-300)


def test_known_gradients_at_the_kinks():
    p, t = np.array([-2.0, 0.0, 0.5, 2.0]), np.zeros(4)
    ones = np.ones(4)
    assert l1_backward(ones, p, t, reduction="none").tolist() == [-1, 0, 1, 1]
    assert huber_backward(ones, p, t, reduction="none").tolist() == [-1, 0, 0.5, 1]
    np.testing.assert_allclose(
        binary_cross_entropy_backward(ones, p, t, reduction="none"), 1 / (1 + np.exp(-p))
    )


def test_binary_gradient_keeps_its_digits_far_out():
    """At t = 1 and a large logit the gradient is -exp(-x), which 1 - sigmoid(x) would lose."""
    x = np.array([30.0, 80.0], np.float32)
    grad = binary_cross_entropy_backward(np.ones_like(x), x, np.ones_like(x), reduction="none")
    np.testing.assert_allclose(grad, -np.exp(-x.astype(float)), rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_reductions_agree(name):
    forward, backward, options = PAIRS[name]
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=(4, 3)), rng.random((4, 3))
    each = forward(p, t, reduction="none", **options)
    assert each.shape == (4, 3) and each.dtype == np.float64
    assert float(forward(p, t, reduction="sum", **options)) == pytest.approx(each.sum())
    assert float(forward(p, t, **options)) == pytest.approx(each.mean())
    slopes = backward(np.ones((4, 3)), p, t, reduction="none", **options)
    total = backward(np.array(2.0), p, t, reduction="sum", **options)
    mean = backward(np.array(2.0), p, t, **options)
    np.testing.assert_allclose(total, 2 * slopes, rtol=1e-14)
    np.testing.assert_allclose(mean, 2 * slopes / 12, rtol=1e-14)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (4, 3), (4, 1), (1, 1)])
def test_weights_broadcast(shape):
    rng = np.random.default_rng(2)
    x, t, weight = rng.normal(size=(4, 3)), rng.random((4, 3)), rng.uniform(0.5, 2, shape)
    grad = np.ones((4, 3))
    for name in ("weight", "pos_weight"):
        small, full = {name: weight}, {name: np.broadcast_to(weight, (4, 3)).copy()}
        for function, args in (
            (binary_cross_entropy_forward, (x, t)),
            (binary_cross_entropy_backward, (grad, x, t)),
        ):
            np.testing.assert_array_equal(
                function(*args, reduction="none", **small),
                function(*args, reduction="none", **full),
            )


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", PAIRS)
def test_gradient_by_finite_differences(name, reduction):
    forward, backward, options = PAIRS[name]
    rng = np.random.default_rng(3)
    p, t = rng.uniform(-2, 2, (50, 3)), rng.random((50, 3))
    d = np.abs(p - t)
    p[(d < 1e-3) | (np.abs(d - 0.7) < 1e-3)] += 0.01  # away from the kinks
    h = 1e-6
    each = {"reduction": "none", **options}
    slope = (forward(p + h, t, **each) - forward(p - h, t, **each)) / (2 * h)
    grad = rng.normal(size=p.shape if reduction == "none" else ())
    scale = grad / p.size if reduction == "mean" else grad
    actual = backward(np.asarray(grad), p, t, reduction=reduction, **options)
    np.testing.assert_allclose(actual, scale * slope, rtol=1e-7, atol=1e-9)


# ---- dtypes, shapes, memory ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes_of_results(name, dtype):
    forward, backward, _ = PAIRS[name]
    p = np.ones((2, 2), dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    assert forward(p, p).dtype == forward(p, p, reduction="sum").dtype == wide
    assert forward(p, p).shape == ()
    assert forward(p, p, reduction="none").dtype == dtype
    assert backward(np.array(1, wide), p, p).dtype == dtype
    assert backward(p, p, p, reduction="none").dtype == dtype


def test_half_precision_is_summed_in_float32():
    p = np.full(100_000, 0.1, np.float16)
    loss = mse_forward(p, np.zeros_like(p), reduction="sum")
    assert float(loss) == pytest.approx(100_000 * float(p[0]) ** 2, rel=1e-6)


def test_a_large_sum_in_float32_stays_exact():
    p = np.full(3_000_000, 0.1, np.float32)
    loss = mse_forward(p, np.zeros_like(p))
    assert float(loss) == pytest.approx(float(p[0]) ** 2, rel=3e-7)


@pytest.mark.parametrize("name", PAIRS)
def test_nothing(name):
    forward, backward, _ = PAIRS[name]
    p = np.zeros((0, 3), np.float32)
    assert math.isnan(forward(p, p)) and float(forward(p, p, reduction="sum")) == 0
    assert forward(p, p, reduction="none").shape == (0, 3)
    assert backward(np.float32(1), p, p).shape == (0, 3)


@pytest.mark.parametrize("name", PAIRS)
@given(data=st.data())
def test_any_shape_and_strides(name, data):
    forward, backward, _ = PAIRS[name]
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    p, t = rng.normal(size=shape[::-1]).T, np.asarray(rng.random(shape))
    each = forward(p, t, reduction="none")
    assert each.shape == shape
    one_by_one = [forward(a, b, reduction="sum") for a, b in zip(p.flat, t.flat, strict=True)]
    np.testing.assert_allclose(each, np.reshape(one_by_one, shape), rtol=1e-12)
    grad = backward(each, p, t, reduction="none")
    assert grad.shape == shape and grad.flags.c_contiguous


@pytest.mark.parametrize("name", PAIRS)
def test_out_may_be_an_input(name):
    forward, backward, options = PAIRS[name]
    rng = np.random.default_rng(4)
    p, t, g = rng.normal(size=(2, 3)), rng.random((2, 3)), rng.normal(size=(2, 3))
    values = forward(p, t, reduction="none", **options)
    slopes = backward(g, p, t, reduction="none", **options)
    for index in range(2):
        arrays = [p.copy(), t.copy()]
        out = arrays[index]
        assert forward(*arrays, reduction="none", out=out, **options) is out
        np.testing.assert_array_equal(out, values)
    for index in range(3):
        arrays = [g.copy(), p.copy(), t.copy()]
        out = arrays[index]
        assert backward(*arrays, reduction="none", out=out, **options) is out
        np.testing.assert_array_equal(out, slopes)
    out = np.empty(())
    assert forward(p, t, out=out, **options) is out and out == pytest.approx(values.mean())


def test_inputs_are_not_changed_and_may_be_read_only():
    p, t = np.array([1.0, -2.0]), np.array([0.0, 1.0])
    p.flags.writeable = t.flags.writeable = False
    for forward, backward, _ in PAIRS.values():
        forward(p, t)
        backward(np.array(1.0), p, t)
    assert p.tolist() == [1, -2] and t.tolist() == [0, 1]


def test_not_a_number_travels():
    p, t = np.array([np.nan, 1.0]), np.array([0.0, 1.0])
    for forward, backward, _ in PAIRS.values():
        assert np.isnan(forward(p, t, reduction="none")).tolist() == [True, False]
        assert np.isnan(backward(t, p, t, reduction="none")).tolist() == [True, False]
        assert np.isnan(forward(p, t))


def test_cost_counts_each_byte_once():
    p = np.ones((10, 10), np.float32)
    cost = mse_forward.cost_of(p, p)
    assert (cost.read, cost.written) == (800, 4)
    cost = mse_backward.cost_of(np.float32(1), p, p)
    assert (cost.read, cost.written) == (804, 400)
    cost = binary_cross_entropy_forward.cost_of(p, p, weight=p[0], reduction="none")
    assert (cost.read, cost.written) == (840, 400)


# ---- wrong inputs --------------------------------------------------------------------------------

P = np.ones((2, 3), np.float32)
G = np.float32(1)


@pytest.mark.parametrize(
    ("function", "args", "options", "error", "text"),
    [
        (mse_forward, (P, P[:1]), {}, ValueError,
         r"mse_forward: target has shape \(1, 3\).*expected the shape of prediction, \(2, 3\)"),
        (mse_forward, (P, P.astype(float)), {}, TypeError,
         r"target has .*float64 on cpu; expected the dtype of prediction, float32. .*'float32'"),
        (l1_forward, (P.astype(int), P), {}, TypeError,
         "prediction has .*int64 on cpu; expected dtype float16, bfloat16, float32 or float64"),
        (l1_forward, (P, P > 0), {}, TypeError, "target has .*bool"),
        (mse_forward, (P, None), {}, TypeError, "target is None; expected an array"),
        (mse_forward, (P, P), {"reduction": "avg"}, ValueError,
         "reduction is 'avg'; expected one of 'mean', 'sum', 'none'"),
        (mse_forward, (P, P), {"out": np.empty(1, np.float32)}, ValueError,
         r"out has shape \(1,\).*expected shape \(\)"),
        (mse_forward, (P, P), {"out": np.empty(())}, TypeError, "out has .*expected dtype float32"),
        (mse_forward, (P, P), {"reduction": "none", "out": np.empty((), np.float32)}, ValueError,
         r"expected shape \(2, 3\)"),
        (mse_backward, (P, P, P), {}, ValueError,
         r"mse_backward: grad_output has shape \(2, 3\).*expected shape \(\)"),
        (mse_backward, (G, P, P), {"reduction": "none"}, ValueError,
         r"grad_output has shape \(\).*expected shape \(2, 3\)"),
        (mse_backward, (1.0, P, P), {}, TypeError, "grad_output has .*expected dtype float32"),
        (mse_backward, (None, P, P), {}, TypeError, "grad_output is None"),
        (huber_forward, (P, P), {"delta": 0}, ValueError, "delta is 0.0; give a finite number"),
        (huber_forward, (P, P), {"delta": math.inf}, ValueError, "delta is inf"),
        (huber_forward, (P, P), {"delta": math.nan}, ValueError, "delta is nan; expected a number"),
        (huber_backward, (G, P, P), {"delta": "one"}, TypeError, "delta is 'one'; expected"),
        (binary_cross_entropy_forward, (P, P), {"weight": P[:, :2]}, ValueError,
         r"weight has shape \(2, 2\).*a shape that broadcasts to that of the logits, \(2, 3\)"),
        (binary_cross_entropy_forward, (P, P), {"weight": np.array([[P]])}, ValueError,
         "weight has shape .*expected a shape that broadcasts"),
        (binary_cross_entropy_forward, (P, P), {"weight": np.array([P, P])}, ValueError,
         "weight has shape .*expected a shape that broadcasts"),
        (binary_cross_entropy_backward, (G, P, P), {"pos_weight": np.ones(3)}, TypeError,
         "binary_cross_entropy_backward: pos_weight has .*float64.*expected dtype float32"),
        (binary_cross_entropy_forward, (P, P.astype(int)), {}, TypeError, "target has .*int64"),
    ],
)  # fmt: skip
def test_what_is_refused(function, args, options, error, text):
    with pytest.raises(error, match=text):
        function(*args, **options)


def test_nothing_is_written_when_a_check_fails():
    out = np.full((2, 3), 7, np.float32)
    with pytest.raises(ValueError):
        mse_forward(P, P[:1], reduction="none", out=out)
    assert (out == 7).all()


def test_the_module_lists_what_it_offers():
    assert all(hasattr(losses, name) for name in losses.__all__) and len(losses.__all__) == 10
