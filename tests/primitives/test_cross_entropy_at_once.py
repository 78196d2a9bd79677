"""Cross-entropy with its gradient in one pass: the same as the two calls, also over the logits."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from gpunn.device import probe
from gpunn.device.emulator_launch import emulated_chip, emulator_launcher
from gpunn.device.launch import RecordingLauncher
from gpunn.primitives.cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
)
from gpunn.primitives.registry import intercepting, using

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KINDS = ("labels", "labels, all", "smoothing", "probabilities", "probabilities, all")


def case(kind: str, rows: int, classes: int, seed: int = 0):
    """(logits, target, options) of one kind of target."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, classes))
    options = {}
    if "all" in kind:
        options["weight"] = rng.uniform(0.5, 2, classes)
    if "smoothing" in kind or kind == "probabilities, all":
        options["label_smoothing"] = 0.3
    if "probabilities" in kind:
        return logits, rng.random((rows, classes)) / classes, options
    target = rng.integers(0, classes, rows)
    if "all" in kind:
        target[::3] = 2
        options["ignore_index"] = 2
    return logits, target, options


def two_calls(logits, target, **options):
    loss, normalizer, total = cross_entropy_forward(logits, target, **options)
    one = np.ones_like(loss)
    gradient = cross_entropy_backward(one, logits, target, normalizer, total, **options)
    return loss, normalizer, total, gradient


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [5, 100])
def test_it_is_the_two_calls(kind, reduction, classes):
    logits, target, options = case(kind, 7, classes)
    expected = two_calls(logits, target, reduction=reduction, **options)
    found = cross_entropy_forward_backward(logits, target, reduction=reduction, **options)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind):
    logits, target, options = case(kind, 4, 6)
    gradient = cross_entropy_forward_backward(logits, target, **options)[3]
    expected, h = np.empty_like(logits), 1e-6
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = h
        above, _, _ = cross_entropy_forward(logits + step, target, **options)
        below, _, _ = cross_entropy_forward(logits - step, target, **options)
        expected[index] = (above - below) / (2 * h)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
def test_over_the_logits(dtype):
    logits, target, options = case("labels, all", 50, 80)
    logits, options["weight"] = logits.astype(dtype), options["weight"].astype(dtype)
    expected = cross_entropy_forward_backward(logits, target, **options)
    found = cross_entropy_forward_backward(logits, target, gradient=logits, **options)
    assert found[3] is logits
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_logits_cost_no_accuracy():
    """The gradient uses max and sum, not L = max + log(sum), which float32 rounds at 6e4."""
    x = np.array([[6e4, 6e4 - 1, 0]], np.float32)
    gradient = cross_entropy_forward_backward(x, np.array([0]))[3]
    p = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(gradient, [[p - 1, 1 - p, 0]], rtol=1e-6)


def test_rows_without_a_say():
    logits = np.array([[1.0, 2.0], [np.nan, math.inf], [0.0, 0.0]])
    loss, normalizer, total, gradient = cross_entropy_forward_backward(
        logits, np.array([0, -100, 1]), reduction="sum"
    )
    assert float(loss) == pytest.approx(1 + math.log1p(math.exp(-1)) + math.log(2))
    assert normalizer[1] == 0 and float(total) == 2 and (gradient[1] == 0).all()
    np.testing.assert_allclose(gradient[2], [0.5, -0.5])
    nothing = cross_entropy_forward_backward(np.ones((2, 3)), np.full(2, -100))
    assert math.isnan(nothing[0]) and (nothing[3] == 0).all()
    empty = cross_entropy_forward_backward(np.ones((0, 3)), np.zeros(0, np.int64))
    assert math.isnan(empty[0]) and empty[3].shape == (0, 3)


def test_cost_is_that_of_one_pass():
    logits, target = np.ones((4, 8), np.float32), np.zeros(4, np.int64)
    cost = cross_entropy_forward_backward.cost_of(logits, target)
    assert (cost.read, cost.written) == (128 + 32, 4 + 16 + 4 + 128)


@pytest.mark.parametrize(
    ("gradient", "error", "text"),
    [
        (np.empty((4, 2), np.float32), ValueError, r"gradient .*expected shape \(4, 3\)"),
        (np.empty((4, 3)), TypeError, "gradient has .*expected dtype float32"),
        (np.empty((3, 4), np.float32).T, ValueError, "gradient .*a C-contiguous array"),
    ],
)
def test_what_is_refused(gradient, error, text):
    x, t = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
    with pytest.raises(error, match=f"cross_entropy_forward_backward: {text}"):
        cross_entropy_forward_backward(x, t, gradient=gradient)
    with pytest.raises(ValueError, match="target has label 3 in row 1"):
        cross_entropy_forward_backward(x, np.array([0, 3, 0, 0]))


# ---- which kernels run ---------------------------------------------------------------------------


def launched(made, logits, target, **options) -> list[str]:
    names = []

    def record(call, args):
        launcher = RecordingLauncher("cross_entropy.cu")
        call.primitive.run_cuda(launcher, args)
        names.extend(name for _, name in launcher.launches)

    with intercepting(record):
        made(logits, target, **options)
    return names


def test_the_mean_asks_for_the_weights_first_where_there_are_many():
    logits = np.zeros((3000, 4), np.float32)
    target = np.zeros(3000, np.int64)
    names = ["cross_entropy_forward<float, LABELS, 1>", "cross_entropy_finish<float>"]
    assert launched(cross_entropy_forward_backward, logits, target) == [
        "cross_entropy_weights<float>", *names
    ]  # fmt: skip
    assert launched(cross_entropy_forward_backward, logits, target, reduction="sum") == names
    assert launched(cross_entropy_forward, logits, target) == names
    few = cross_entropy_forward_backward, logits[:500], target[:500]
    assert launched(*few) == names[:1]


def test_few_long_rows_take_clusters():
    logits = np.zeros((4, 200_000), np.float32)
    target = np.zeros(4, np.int64)
    name = "cross_entropy_forward<float, LABELS, 8>"
    for made in (cross_entropy_forward, cross_entropy_forward_backward):
        assert launched(made, logits, target)[0] == name


# ---- in the emulator -----------------------------------------------------------------------------

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


@emulated
@pytest.mark.parametrize("shape", [(300, 10), (5, 1021), (3, 9001), (2, 40_003)], ids=str)
@pytest.mark.parametrize("kind", ["labels", "smoothing", "probabilities"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_kernels_over_the_logits(arch, kind, shape):
    """Groups, blocks and clusters; with little shared memory most of a long row is read again."""
    logits, target, options = case(kind, *shape)
    logits = logits.astype(np.float32)
    if target.ndim == 2:
        target = target.astype(np.float32)
    expected = cross_entropy_forward_backward(
        logits.astype(np.float64), target.astype(np.float64) if target.ndim == 2 else target,
        **options,
    )  # fmt: skip
    for limit in (227, 20):
        own = logits.copy()
        with emulated_chip(arch=arch, multiprocessors=8, shared_limit=limit * 1024):
            with using("emulator"):
                found = cross_entropy_forward_backward(own, target, gradient=own, **options)
        assert found[3] is own
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-5, atol=1e-6 / shape[0])


@emulated
@pytest.mark.parametrize("classes", [3, 9000])
def test_wrong_labels_become_nan(classes):
    logits = np.ones((5, classes), np.float32)
    target = np.array([0, classes, -1, 2**40, -100])
    losses, normalizer = np.empty((2, 5), np.float32)
    total, gradient = np.empty((), np.float32), np.empty_like(logits)
    args = (logits, target, None, None, -100, 0.0, "none", losses, normalizer, total, gradient)
    cross_entropy_forward_backward.run_cuda(emulator_launcher("cross_entropy.cu"), args)
    wrong = [False, True, True, True, False]
    assert np.isnan(losses).tolist() == np.isnan(normalizer).tolist() == wrong
    assert (
        np.isnan(gradient).all(axis=1).tolist() == np.isnan(gradient).any(axis=1).tolist() == wrong
    )
    assert losses[0] == pytest.approx(math.log(classes), rel=1e-6) and losses[4] == 0
    assert (gradient[4] == 0).all() and total == 1
