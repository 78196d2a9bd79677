"""Casts between floating types, and the loss scale that lives on the device."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpunn import kernels
from gpunn.device import probe
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.cast import _edges
from gpunn.primitives.optimizer import HYPER, hyper_array
from gpunn.primitives.registry import intercepting, using

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)
X = np.ones(3, np.float32)


# ---- cast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_casts_are_those_of_numpy(source, target):
    """NumPy's own, or for 16 bits ml_dtypes'; from float64 to bfloat16 these round twice."""
    with np.errstate(all="ignore"):
        x = np.concatenate([_edges(), np.random.default_rng(0).normal(size=1000)]).astype(source)
        expected = x.astype(target)
        if (source, target) == (np.float64, BFLOAT16):
            expected = _nearest_bfloat16(x)
    y = kernels.cast(x, target)
    assert y is not x and y.dtype == target
    out = np.empty(x.shape, target)
    assert kernels.cast(x, out=out) is out
    for found in (y, out):
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))
    assert (np.signbit(y.astype(float)) == np.signbit(x.astype(float)))[~np.isnan(x)].all()


def _nearest_bfloat16(x):
    """By looking at all of them: the nearest, between two the one with an even last bit."""
    bits = np.arange(0x7F81, dtype=np.uint16)  # 0 to infinity, where 2^128 would be
    values = bits.view(BFLOAT16).astype(np.float64)
    values[-1] = 2.0**128
    at = np.searchsorted(values, np.minimum(np.abs(x), 2.0**128)).clip(1, 0x7F80)
    down, up = np.abs(x) - values[at - 1], values[at] - np.abs(x)
    nearest = np.where(down < up, at - 1, np.where(down > up, at, at - at % 2)).astype(np.uint16)
    found = nearest.view(BFLOAT16).astype(np.float64)
    return np.where(np.isnan(x), np.nan, np.copysign(found, x))


def test_shapes_and_launches_of_casts():
    assert kernels.cast(np.zeros((0, 3), np.float32), "float16").shape == (0, 3)
    assert kernels.cast(np.array(1.5), "bfloat16").shape == ()
    strided = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(kernels.cast(strided, "float64"), strided)

    def launched(*args, **kwargs):
        launcher = Noting("cast.cu")
        with intercepting(lambda call, args: call.primitive.run_cuda(launcher, args)):
            kernels.cast(*args, **kwargs)
        return launcher.noted

    memory, low = np.zeros(4097, np.float32), np.zeros(4104, np.float16)
    assert launched(memory[:4096], out=low[:4096]) == [("cast<float, __half>", (1,), True)]
    assert launched(memory[:4096], out=low[4:4100]) == [("cast<float, __half>", (1,), True)]
    assert launched(memory[1:], out=low[:4096]) == [("cast<float, __half>", (4,), False)]
    assert launched(memory[:0], "float64") == []
    assert kernels.cast.cost_of(memory, "bfloat16").bytes == 6 * memory.size


class Noting(RecordingLauncher):
    """Notes the kernel, the grid and whether it moves packs."""

    def __init__(self, source):
        super().__init__(source)
        self.noted = []

    def __call__(self, expression, grid, block, args, shared=0):
        self.noted.append((expression, grid, bool(args[-1])))


LOW, STATE = np.ones(3, np.float16), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (lambda: kernels.cast(np.ones(3, int), "float16"), TypeError, "cast: x has"),
        (lambda: kernels.cast(X, "int32"), TypeError, "cast: dtype is 'int32'; expected one of"),
        (lambda: kernels.cast(X, np.int64), TypeError, "cast: dtype is"),
        (lambda: kernels.cast(X), ValueError, "cast: dtype is None"),
        (lambda: kernels.cast(X, "float16", out=X.copy()), TypeError, "cast: out has"),
        (lambda: kernels.cast(X, out=LOW[:2]), ValueError, r"cast: out .*\(3,\)"),
        (lambda: kernels.unscale_gradients(LOW, STATE), TypeError, "float32 or float64"),
        (lambda: kernels.unscale_gradients(X, STATE[:3]), ValueError, r"state .*\(4,\)"),
        (lambda: kernels.update_loss_scale(STATE, growth_interval=0), ValueError, "from 1"),
    ],
)
def test_errors(action, error, text):
    with pytest.raises(error, match=text):
        action()


# ---- the loss scale ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unscaling(bad, dtype):
    gradients = np.linspace(-3, 3, 1000).astype(dtype)
    if bad is not None:
        gradients[777] = bad
    expected = gradients * np.dtype(dtype).type(1 / 1024)
    state = np.array([1024, 5, 0, 2], np.float32)
    assert kernels.unscale_gradients(gradients, state) is gradients
    np.testing.assert_array_equal(gradients, expected)
    assert state.tolist() == [1024, 5, bad is not None, 2]
    flag = np.zeros(1, np.float32)
    kernels.unscale_gradients(gradients, np.array([1, 0, 0, 0], np.float32), found_inf=flag)
    assert flag[0] == (bad is not None)
    np.testing.assert_array_equal(gradients, expected)


def test_the_scale_grows_and_backs_off():
    state = np.array([8, 0, 0, 0], np.float32)
    found = []
    for overflow in (0, 0, 0, 1, 0, 1, 0, 0, 0):
        state[2] = overflow
        kernels.update_loss_scale(state, growth_interval=3)
        found.append(state.tolist())
    assert [row[0] for row in found] == [8, 8, 16, 8, 8, 4, 4, 4, 8]
    assert [row[1] for row in found] == [1, 2, 0, 0, 1, 0, 1, 2, 0]
    assert found[-1][2:] == [0, 2]


# ---- steps that are left out ---------------------------------------------------------------------


def _updates(rng):
    """(name, arrays, hyper) of every rule before its first step."""
    w, g = rng.normal(size=(2, 37)).astype(np.float32)
    zeros = lambda: np.zeros(37, np.float32)  # noqa: E731
    how = {"lr": 0.1, "momentum": 0.9, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "alpha": 0.9}
    for rule, states in (("sgd", 1), ("adam", 2), ("rmsprop", 1), ("adagrad", 1), ("lion", 1)):
        arrays = [w.copy(), g.copy(), *(zeros() for _ in range(states))]
        rest = (None, None) if rule == "rmsprop" else ()
        hyper = hyper_array(rule, **{k: v for k, v in how.items() if k in HYPER[rule]})
        yield rule, arrays, rest, hyper


@emulated
@pytest.mark.parametrize("implementation", ["numpy", "emulator"])
def test_a_flag_skips_the_update_and_the_count(implementation):
    for rule, arrays, rest, hyper in _updates(np.random.default_rng(0)):
        update = getattr(kernels, f"{rule}_update")
        before = [array.copy() for array in (*arrays, hyper)]
        with using(implementation):
            for flag in (1.0, 0.0):
                skip = np.array([flag], np.float32)
                kernels.advance_step(hyper, rule=rule, skip=skip)
                update(*arrays, *rest, hyper, skip=skip)
                if flag:
                    for array, old in zip((*arrays, hyper), before, strict=True):
                        np.testing.assert_array_equal(array, old)
        kernels.advance_step(before[-1], rule=rule)
        update(*before[:-1], *rest, before[-1])
        for array, wanted in zip((*arrays, hyper), before, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=2e-6, atol=1e-6, err_msg=rule)
