"""Softmax and log-softmax: closed forms, finite differences, masks, and every wrong argument."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpunn.device import probe
from gpunn.device.emulator_launch import emulated_chip
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.registry import using
from gpunn.primitives.softmax import (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)

FORWARD = (softmax_forward, log_softmax_forward)
BACKWARD = (softmax_backward, log_softmax_backward)
PAIRS = ((softmax_forward, softmax_backward), (log_softmax_forward, log_softmax_backward))

# A few columns go down a transposed copy, many along rows, and many elements in chunks.
SHAPES = [(1, 1), (4, 3), (2, 3, 32), (3, 33), (2, 700), (7,), (9000, 10), (3, 40_000)]


def float64_softmax(x):
    x = x.astype(np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_known_values():
    x = np.log(np.array([[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]]))
    y = [[0.125, 0.25, 0.625], [1 / 3] * 3]
    np.testing.assert_allclose(softmax_forward(x), y, rtol=1e-15)
    np.testing.assert_allclose(log_softmax_forward(x), np.log(y), rtol=1e-15)
    # d y_i / d x_j = y_i (delta_ij - y_j)
    grad = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [[0.125 * 0.875, -0.125 * 0.25, -0.125 * 0.625], [0.0] * 3]
    np.testing.assert_allclose(softmax_backward(grad, softmax_forward(x)), expected, rtol=1e-14)
    expected = [[1 - 0.125, -0.25, -0.625], [0.0] * 3]
    np.testing.assert_allclose(
        log_softmax_backward(grad, log_softmax_forward(x)), expected, rtol=1e-14
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_way_through_the_reference(shape, dtype):
    x = (3 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    bound = {2: 4e-3, 4: 1e-6, 8: 1e-14}[x.itemsize]
    y, log_y = softmax_forward(x), log_softmax_forward(x)
    assert y.dtype == log_y.dtype == x.dtype and y.shape == log_y.shape == shape
    expected = float64_softmax(x)
    np.testing.assert_allclose(y.astype(float), expected, rtol=5 * bound, atol=1e-7)
    np.testing.assert_allclose(log_y.astype(float), np.log(expected), rtol=5 * bound, atol=bound)


@pytest.mark.parametrize(("forward", "backward"), PAIRS, ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(4, 5), (3, 50)], ids=str)
def test_derivative_by_finite_differences(forward, backward, shape):
    rng = np.random.default_rng(1)
    x, grad = rng.normal(size=(2, *shape))
    h, expected = 1e-6, np.empty(shape)
    for at in np.ndindex(shape):
        step = np.zeros(shape)
        step[at] = h
        expected[at] = (grad * (forward(x + step) - forward(x - step))).sum() / (2 * h)
    np.testing.assert_allclose(backward(grad, forward(x)), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_far_out_nothing_overflows(dtype):
    x = np.array([[6e4, 0.0, -6e4], [6e4, 6e4, 6e4]], dtype)
    y = softmax_forward(x).astype(float)
    np.testing.assert_allclose(y, [[1, 0, 0], [1 / 3] * 3], rtol=4e-3)
    assert log_softmax_forward(x)[0, 0] == 0


@pytest.mark.parametrize("columns", [6, 50])
def test_masked_columns_have_no_probability(columns):
    x = np.random.default_rng(2).normal(size=(2, columns))
    x[:, 1::2] = -np.inf
    y, log_y = softmax_forward(x), log_softmax_forward(x)
    np.testing.assert_allclose(y[:, ::2], float64_softmax(x[:, ::2]), rtol=1e-14)
    assert (y[:, 1::2] == 0).all() and (log_y[:, 1::2] == -np.inf).all()
    grad = np.ones_like(x)
    assert (softmax_backward(grad, y)[:, 1::2] == 0).all()
    assert (log_softmax_backward(grad, log_y)[:, 1::2] == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("forward", FORWARD, ids=lambda f: f.name)
@pytest.mark.parametrize("columns", [5, 40])
def test_one_bad_element_spoils_its_row_alone(forward, bad, columns):
    x = np.zeros((3, columns), np.float32)
    x[1, 3] = bad
    y = forward(x)
    assert np.isnan(y[1]).any() and np.isfinite(y[[0, 2]]).all()
    x[1] = -np.inf
    assert np.isnan(forward(x)[1]).all()


@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=9),
        elements=st.floats(-50, 50, width=32),
    )
)
def test_rows_sum_to_one_whatever_the_shape(x):
    y = softmax_forward(x)
    np.testing.assert_allclose(y.sum(axis=-1, dtype=np.float64), 1, rtol=2e-6)
    np.testing.assert_allclose(np.exp(log_softmax_forward(x)), y, rtol=2e-5, atol=1e-30)
    # The gradient is orthogonal to a constant shift of the row.
    grad = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    for value in (softmax_backward(grad, y), log_softmax_backward(grad, log_softmax_forward(x))):
        assert np.abs(value.sum(axis=-1, dtype=np.float64)).max(initial=0) < 1e-5 * x.shape[-1]


@given(shift=st.floats(-100, 100), columns=st.integers(1, 60))
def test_a_shift_of_the_row_changes_nothing(shift, columns):
    x = np.random.default_rng(columns).normal(size=(2, columns))
    np.testing.assert_allclose(softmax_forward(x + shift), softmax_forward(x), rtol=1e-12)


@pytest.mark.parametrize("columns", [4, 100])
def test_out_and_in_place(columns):
    rng = np.random.default_rng(3)
    x, grad = rng.normal(size=(2, 6, columns)).astype(np.float32)
    for forward, backward in PAIRS:
        y = forward(x)
        out = np.empty_like(x)
        assert forward(x, out=out) is out
        np.testing.assert_array_equal(out, y)
        own = x.copy()
        np.testing.assert_array_equal(forward(own, out=own), y)
        expected = backward(grad, y)
        for arguments in ((grad.copy(), y), (grad, y.copy())):
            target = arguments[0] if arguments[1] is y else arguments[1]
            np.testing.assert_array_equal(backward(*arguments, out=target), expected)


def test_views_and_read_only_inputs():
    x = np.random.default_rng(4).normal(size=(8, 12))
    for view in (x[:, ::2], x.T, x[::-1], x[2:, 1:]):
        np.testing.assert_array_equal(softmax_forward(view), softmax_forward(view.copy()))
    x.flags.writeable = False
    assert np.isfinite(log_softmax_forward(x)).all()


def test_no_rows():
    x = np.empty((0, 5), np.float32)
    assert softmax_forward(x).shape == log_softmax_backward(x, x).shape == (0, 5)


@pytest.mark.parametrize("forward", FORWARD, ids=lambda f: f.name)
def test_wrong_arguments_forward(forward):
    name, x = forward.name, np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match=rf"{name}: x has shape \(2, 3\) and dtype int64 on cpu"):
        forward(x.astype(np.int64))
    with pytest.raises(ValueError, match=f"{name}: x .*expected at least 1 dimension"):
        forward(np.float32(1))
    with pytest.raises(ValueError, match=rf"{name}: x has shape \(2, 0\) with an empty last axis"):
        forward(x[:, :0])
    with pytest.raises(TypeError, match=f"{name}: x is None"):
        forward(None)
    with pytest.raises(ValueError, match=rf"{name}: out .*expected shape \(2, 3\)"):
        forward(x, out=np.empty((3, 2), np.float32))
    with pytest.raises(TypeError, match=f"{name}: out .*expected dtype float32"):
        forward(x, out=np.empty((2, 3)))
    with pytest.raises(ValueError, match=f"{name}: out .*C-contiguous"):
        forward(x, out=np.empty((3, 2), np.float32).T)
    locked = np.empty((2, 3), np.float32)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match=f"{name}: out .*read-only"):
        forward(x, out=locked)


@pytest.mark.parametrize("backward", BACKWARD, ids=lambda f: f.name)
def test_wrong_arguments_backward(backward):
    name, y = backward.name, np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=rf"{name}: y .*the shape of grad_output, \(2, 4\)"):
        backward(np.zeros((2, 4), np.float32), y)
    with pytest.raises(TypeError, match=f"{name}: y .*the dtype of grad_output, float64"):
        backward(np.zeros((2, 3)), y)
    with pytest.raises(TypeError, match=f"{name}: grad_output .*dtype int32"):
        backward(y.astype(np.int32), y)
    with pytest.raises(ValueError, match=f"{name}: y .*empty last axis"):
        backward(y[:, :0], y[:, :0])
    with pytest.raises(ValueError, match=f"{name}: out .*expected shape"):
        backward(y, y, out=np.empty(6, np.float32))


# ---- which kernels run ---------------------------------------------------------------------------


def launched(made, arguments: int, shape, dtype=np.float32, **chip) -> set[str]:
    """The kernels that a call on such arrays would launch."""
    x = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0, 0))  # no memory for it
    launcher = RecordingLauncher("softmax.cu", **chip)
    made.run_cuda(launcher, (x,) * arguments)
    return {name for _, name in launcher.launches}


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((4, 10), {"softmax_forward<float, 2, false>"}),
        ((4, 1024), {"softmax_forward<float, 8, false>"}),
        ((1000, 12_000), {"softmax_forward_held<float, false, 1>"}),
        ((1000, 20_000), {"softmax_forward_held<float, false, 2>"}),
        ((1000, 50_000), {"softmax_forward_held<float, false, 4>"}),
        ((1000, 100_000), {"softmax_forward_held<float, false, 8>"}),
        ((1000, 1_000_000), {"softmax_forward_held<float, false, 8>"}),
        ((1, 9_000), {"softmax_forward_held<float, false, 2>"}),
        ((1, 400_000), {"softmax_forward_held<float, false, 8>"}),
        ((1, 10**6), {"softmax_forward_part<float>", "softmax_forward_finish<float, false>"}),
        ((99, 2**30 + 1), {"softmax_forward_part<float>", "softmax_forward_finish<float, false>"}),
    ],
)
def test_longer_rows_take_more_threads(shape, kernels):
    assert launched(softmax_forward, 2, shape) == kernels


def test_below_sm_90_there_are_no_clusters():
    chip = {"arch": "sm_80", "multiprocessors": 108, "shared_limit": 163 * 1024}
    for cols in (9_000, 100_000, 10**6):
        assert launched(softmax_forward, 2, (1000, cols), **chip) == {
            "softmax_forward_held<float, false, 1>"
        }
    assert launched(softmax_backward, 3, (1, 100_000), **chip) == {
        "softmax_backward_part<float, false>", "softmax_backward_finish<float, false>"
    }  # fmt: skip


def test_log_softmax_backward_keeps_one_array_and_softmax_backward_two():
    """Twice as much is kept for the same row, so twice as many blocks share it."""
    shape = (1000, 20_000)
    assert launched(log_softmax_backward, 3, shape) == {"softmax_backward_held<float, true, 2>"}
    assert launched(softmax_backward, 3, shape) == {"softmax_backward_held<float, false, 4>"}


# ---- rows longer than what is kept ---------------------------------------------------------------


@pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_shared_memory_does_not_hold_is_read_again(arch, dtype):
    x, grad = np.random.default_rng(5).normal(size=(2, 5, 30_001)).astype(dtype)
    rtol = 2e-6 if dtype == np.float32 else 1e-13
    # 34 KB of shared memory: a cluster of 8 keeps most of a row, a single block little.
    with emulated_chip(arch=arch, multiprocessors=4, shared_limit=34 * 1024), using("emulator"):
        results = [(forward(x), backward) for forward, backward in PAIRS]
        gradients = [backward(grad, y) for y, backward in results]
    for (y, backward), gradient, (forward, _) in zip(results, gradients, PAIRS, strict=True):
        np.testing.assert_allclose(y, forward(x.astype(np.float64)), rtol=rtol)
        expected = backward(grad.astype(np.float64), y.astype(np.float64))
        np.testing.assert_allclose(gradient, expected, rtol=rtol, atol=rtol * np.abs(y).max())
