"""Normalisation on arrays: closed forms, extremes, what is launched, cost, errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import intercepting

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)


def launched(made, *args, **kwargs):
    """The kernels that a call launches on an H200, without their types."""
    launcher = RecordingLauncher(made.cuda_source)
    with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
        made(*args, **kwargs)
    return [name.split("<")[0] for _, name in launcher.launches]


# ---- values --------------------------------------------------------------------------------------


def test_closed_forms():
    x = np.array([[1.0, 3.0], [-2.0, -2.0]])
    y, mean, reciprocal = kernels.layer_norm_forward(x, np.array([2.0, 1.0]), np.ones(2), eps=0)
    np.testing.assert_array_equal(mean, [2, -2])
    np.testing.assert_array_equal(reciprocal, [1, np.inf])
    np.testing.assert_array_equal(y, [[-1, 2], [np.nan, np.nan]])
    y, reciprocal = kernels.rms_norm_forward(np.array([[3.0, 4.0]]), eps=0)
    np.testing.assert_allclose(y, np.array([[3, 4]]) / np.sqrt(12.5))
    y, mean, reciprocal = kernels.batch_norm_forward(np.array([[1.0, 5], [3, 5]]), eps=1e-4)
    np.testing.assert_allclose(y, np.array([[-1, 0], [1, 0]]) / np.sqrt(1.0001))
    np.testing.assert_allclose(reciprocal, [1 / np.sqrt(1.0001), 100])
    y, mean, _ = kernels.group_norm_forward(np.array([[1.0, 3, 5, 9]]), 2, eps=0)
    np.testing.assert_allclose(y, [[-1, 1, -1, 1]])
    np.testing.assert_allclose(mean, [[2, 7]])


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "float32"], ids=str)
def test_a_large_mean_and_a_small_deviation(dtype):
    """The variance of x as it is stored: to the last bits where a sum of squares has none left."""
    x = (1000 + RNG.normal(size=(500, 64))).astype(dtype)
    exact = x.astype(np.float64)
    for axis, made, options in (
        (-1, kernels.layer_norm_forward, {}),
        (0, kernels.batch_norm_forward, {}),
    ):
        _, mean, reciprocal = made(x, eps=1e-5, **options)
        np.testing.assert_allclose(mean, exact.mean(axis), rtol=2e-7)
        np.testing.assert_allclose(reciprocal, 1 / np.sqrt(exact.var(axis) + 1e-5), rtol=2e-5)


def test_running_statistics():
    x = RNG.normal(size=(6, 5, 3)).astype(np.float32)
    mean, variance, count = np.zeros(3, np.float32), np.ones(3, np.float32), np.array(0)
    running = {"running_mean": mean, "running_var": variance, "num_batches_tracked": count}
    kernels.batch_norm_forward(x, **running, momentum=0.25)
    np.testing.assert_allclose(mean, 0.25 * x.mean((0, 1)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(variance, 0.75 + 0.25 * x.var((0, 1), ddof=1), rtol=1e-6)
    assert count == 1
    before = mean.copy(), variance.copy()
    y, *none = kernels.batch_norm_forward(x, **running, training=False)
    assert none == [None, None] and count == 1
    np.testing.assert_array_equal(mean, before[0])
    np.testing.assert_allclose(y, (x - before[0]) / np.sqrt(before[1] + 1e-5), rtol=1e-5, atol=1e-6)
    count[...] = 0
    for _ in range(3):  # the average of three batches that are alike
        kernels.batch_norm_forward(x, **running, momentum=None)
    np.testing.assert_allclose(mean, x.mean((0, 1)), rtol=1e-5, atol=1e-7)
    assert count == 3


def test_layouts_and_views_agree():
    x = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
    first = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    for made, args in ((kernels.batch_norm_forward, ()), (kernels.group_norm_forward, (3,))):
        y, mean, reciprocal = made(x, *args, activation="silu")
        other, *statistics = made(first, *args, activation="silu", channels_last=False)
        np.testing.assert_allclose(other.transpose(0, 2, 3, 1), y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics[0], mean, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(
            made(x[:, ::2, 1:], *args)[0], made(x[:, ::2, 1:].copy(), *args)[0]
        )


def test_in_place():
    x = RNG.normal(size=(4, 8)).astype(np.float32)
    for made, args in (
        (kernels.layer_norm_forward, ()), (kernels.rms_norm_forward, ()),
        (kernels.batch_norm_forward, ()), (kernels.group_norm_forward, (2,)),
    ):  # fmt: skip
        expected, place = made(x, *args)[0], x.copy()
        assert made(place, *args, out=place)[0] is place
        np.testing.assert_array_equal(place, expected)


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
@pytest.mark.parametrize("columns", [24, 17001], ids=["registers", "held"])
def test_a_gradient_in_place_of_its_inputs(columns):
    """The sums over the rows are those of what stood there."""
    grad, x = RNG.normal(size=(2, 2, columns)).astype(np.float32)
    statistics = kernels.layer_norm_forward(x)[1:]
    expected = kernels.layer_norm_backward(grad, x, *statistics)
    for place in (0, 1):
        arrays = [grad.copy(), x.copy()]
        with kernels.using("emulator"):
            found = kernels.layer_norm_backward(*arrays, *statistics, out=arrays[place])
        assert found[0] is arrays[place]
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# ---- launches, cost ------------------------------------------------------------------------------


def test_what_is_launched():
    x, long = np.zeros((64, 768), np.float16), np.zeros((2, 100_000), np.float16)
    w, bias = np.zeros(768, np.float32), np.zeros(100_000, np.float16)
    statistics = np.zeros((2, 64), np.float32)
    assert launched(kernels.layer_norm_forward, x, w, w, residual=x) == ["row_norm_forward"]
    assert launched(kernels.layer_norm_forward, long, bias) == ["row_norm_forward_held"]
    backward = kernels.layer_norm_backward
    assert launched(backward, x, x, *statistics, w) == ["row_norm_backward", "row_norm_sums"]
    wanted = {"weight_gradient": False, "bias_gradient": False}
    assert launched(backward, x, x, *statistics, w, **wanted) == ["row_norm_backward"]
    assert launched(backward, long, long, *statistics[:, :2], bias) == [
        "row_norm_column_sums", "row_norm_backward_held", "row_norm_sums"
    ]  # fmt: skip
    image, c = np.zeros((4, 10, 10, 32), np.float16), np.zeros((2, 32), np.float32)
    assert launched(kernels.batch_norm_forward, image, *c) == [
        "channel_moments_columns", "channel_finish", "channel_apply_columns"
    ]  # fmt: skip
    running = {"running_mean": c[0], "running_var": c[1], "training": False}
    assert launched(kernels.batch_norm_forward, image, **running) == ["channel_apply_columns"]
    assert launched(kernels.batch_norm_forward, image, channels_last=False)[0].endswith("_rows")
    three = ["channel_sums_columns", "channel_totals", "channel_backward_columns"]
    assert launched(kernels.batch_norm_backward, image, image, *c, c[0]) == three
    more = {**wanted, "training": False}
    assert launched(kernels.batch_norm_backward, image, image, *c, **more) == three[2:]
    assert launched(kernels.batch_norm_forward, image[..., :0, :], training=False, **{
        name: value for name, value in running.items() if name != "training"
    }) == []  # fmt: skip


def test_cost_counts_each_array_once():
    x = np.ones((10, 100), np.float16)
    forward = kernels.layer_norm_forward.cost_of(x, residual=x)
    assert (forward.read, forward.written) == (4000, 4000 + 80)
    cost = kernels.batch_norm_forward.cost_of(x)
    assert (cost.read, cost.written) == (2000, 2000 + 800)


# ---- errors --------------------------------------------------------------------------------------

X, C4 = np.ones((3, 4), np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: kernels.layer_norm_forward(X, np.ones(3, np.float32)), ValueError, r"\(4,\)"),
        (lambda: kernels.layer_norm_forward(X, np.ones(4)), TypeError, "weight .*float32"),
        (
            lambda: kernels.layer_norm_forward(X.astype("f2"), C4, C4.astype("f2")),
            TypeError,
            "bias",
        ),
        (lambda: kernels.layer_norm_forward(X[:, :0]), ValueError, "last axis of 1 to"),
        (lambda: kernels.layer_norm_forward(X, eps=-1), ValueError, "eps"),
        (lambda: kernels.layer_norm_forward(X, residual=X[:2]), ValueError, r"residual .*\(3, 4\)"),
        (lambda: kernels.layer_norm_backward(X, X, None, C4[:3]), TypeError, "mean is None"),
        (lambda: kernels.rms_norm_backward(X, X, C4), ValueError, r"reciprocal .*\(3,\)"),
        (lambda: kernels.batch_norm_forward(X[:1]), ValueError, "more than 1 value per channel"),
        (lambda: kernels.batch_norm_forward(X, training=False), ValueError, "running_mean is None"),
        (lambda: kernels.batch_norm_forward(X, running_mean=C4), ValueError, "given together"),
        (lambda: kernels.batch_norm_forward(X, momentum=None), ValueError, "num_batches_tracked"),
        (lambda: kernels.batch_norm_forward(X, activation="gelu"), ValueError, "'silu'"),
        (lambda: kernels.batch_norm_forward(X[0]), ValueError, "2 dimensions"),
        (lambda: kernels.group_norm_forward(X, 3), ValueError, r"channels \(4\) .*groups \(3\)"),
        (lambda: kernels.group_norm_forward(X, 4), ValueError, "more than 1 value"),
        (
            lambda: kernels.group_norm_forward(X, 2, running_mean=C4, running_var=C4),
            ValueError,
            "groups of 2 channels",
        ),
    ],
)
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()
