"""Cross-entropy: values from closed forms, gradients by finite differences, wrong inputs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpunn.primitives.cross_entropy import cross_entropy_backward, cross_entropy_forward

INF = math.inf


def plain(logits, target, weight=None, smoothing=0.0, ignore_index=-100):
    """(losses, what each adds to the mean's divisor) from the definition, in float64."""
    rows, classes = logits.shape
    weight = np.ones(classes) if weight is None else np.asarray(weight)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    if target.ndim == 1:
        kept = target != ignore_index
        safe = np.where(kept, target, 0)
        q, own = (safe[:, None] == np.arange(classes)) * kept[:, None], weight[safe] * kept
    else:
        kept, q, own = np.ones(rows, bool), target, np.ones(rows)
    q = q * (1 - smoothing) + smoothing / classes * kept[:, None]
    return -(weight * q * log_p).sum(axis=1), own


def case(kind: str, rows: int = 7, classes: int = 5, seed: int = 0):
    """(logits, target, options) with every option that goes with the kind of target."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, classes))
    if kind == "probabilities":
        return logits, rng.random((rows, classes)), {}
    if kind == "probabilities, all":
        options = {"weight": rng.uniform(0.5, 2, classes), "label_smoothing": 0.2}
        return logits, rng.random((rows, classes)), options
    target, options = rng.integers(0, classes, rows), {}
    if "ignore" in kind or "all" in kind:
        target[::3] = 2
        options["ignore_index"] = 2
    if "weight" in kind or "all" in kind:
        options["weight"] = rng.uniform(0.5, 2, classes)
    if "smoothing" in kind or "all" in kind:
        options["label_smoothing"] = 0.3
    return logits, target, options


KINDS = (
    "labels", "ignore", "weight", "smoothing", "weight and smoothing", "all", "probabilities",
    "probabilities, all",
)  # fmt: skip


def backward(grad, logits, target, **options):
    _, normalizer, total = cross_entropy_forward(logits, target, **options)
    grad = np.asarray(grad, total.dtype if np.ndim(grad) == 0 else logits.dtype)
    return cross_entropy_backward(grad, logits, target, normalizer, total, **options)


# ---- values --------------------------------------------------------------------------------------


def test_known_values():
    loss, normalizer, total = cross_entropy_forward(np.zeros((2, 4)), np.array([0, 3]))
    assert float(loss) == pytest.approx(math.log(4), rel=1e-15)
    assert normalizer.tolist() == pytest.approx([math.log(4)] * 2) and float(total) == 2
    loss, _, _ = cross_entropy_forward(np.array([[1.0, 3.0]]), np.array([0]))
    assert float(loss) == pytest.approx(2 + math.log1p(math.exp(-2)), rel=1e-14)
    loss, _, _ = cross_entropy_forward(np.array([[5.0]]), np.array([0]))
    assert float(loss) == 0


@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_the_definition(kind, classes):
    logits, target, options = case(kind, 7, classes)
    weight, smoothing = options.get("weight"), options.get("label_smoothing", 0.0)
    each, own = plain(logits, target, weight, smoothing, options.get("ignore_index", -100))
    loss, normalizer, total = cross_entropy_forward(logits, target, reduction="none", **options)
    np.testing.assert_allclose(loss, each, rtol=1e-12, atol=1e-14)
    assert float(total) == pytest.approx(own.sum(), rel=1e-14)
    kept = target != options.get("ignore_index", -100) if target.ndim == 1 else slice(None)
    np.testing.assert_allclose(normalizer[kept], np.log(np.exp(logits).sum(axis=1))[kept])
    loss, _, _ = cross_entropy_forward(logits, target, reduction="sum", **options)
    assert float(loss) == pytest.approx(each.sum(), rel=1e-12)
    loss, _, _ = cross_entropy_forward(logits, target, **options)
    assert float(loss) == pytest.approx(each.sum() / own.sum(), rel=1e-12)


def test_an_offset_of_the_logits_changes_nothing():
    logits, target, _ = case("labels")
    for shift in (1e4, -1e4):
        loss, _, _ = cross_entropy_forward(logits + shift, target)
        expected, _, _ = cross_entropy_forward(logits, target)
        assert float(loss) == pytest.approx(float(expected), rel=1e-11)
    large = np.array([[3e38, -3e38, 0.0]], np.float32)
    assert cross_entropy_forward(large, np.array([0]))[0] == 0
    assert cross_entropy_forward(large, np.array([2]))[0] == np.float32(3e38)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(reduction):
    logits, target = np.ones((3, 4)), np.full(3, -100)
    loss, normalizer, total = cross_entropy_forward(logits, target, reduction=reduction)
    expected = {"mean": math.nan, "sum": 0.0, "none": np.zeros(3)}[reduction]
    np.testing.assert_array_equal(loss, expected)
    assert float(total) == 0 and normalizer.tolist() == [0, 0, 0]
    grad = np.ones(loss.shape)
    gradient = cross_entropy_backward(grad, logits, target, normalizer, total, reduction=reduction)
    assert (gradient == 0).all()


def test_ignored_rows_are_not_looked_at():
    logits = np.array([[1.0, 2.0], [np.nan, INF]])
    loss, normalizer, _ = cross_entropy_forward(logits, np.array([0, 7]), ignore_index=7)
    assert float(loss) == pytest.approx(1 + math.log1p(math.exp(-1)))
    gradient = backward(1.0, logits, np.array([0, 7]), ignore_index=7)
    assert gradient[1].tolist() == [0, 0] and np.isfinite(gradient).all()


@pytest.mark.parametrize("ignore_index", [-1, 0, 3, 10**15, -(2**63), np.int64(1)])
def test_ignore_index_may_be_any_integer(ignore_index):
    dtype = np.int64 if abs(int(ignore_index)) > 2**31 else np.int32
    target = np.array([2, ignore_index, 2], dtype)
    _, _, total = cross_entropy_forward(np.zeros((3, 4)), target, ignore_index=ignore_index)
    assert float(total) == 2


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_masked_classes(smoothing):
    """-inf takes a class out; what has no share in it does not feel it."""
    logits = np.array([[1.0, -INF, 2.0]])
    target = np.array([[0.25, 0.0, 0.75]])
    loss, normalizer, _ = cross_entropy_forward(logits, target)
    log_sum = 2 + math.log1p(math.exp(-1))
    assert float(normalizer[0]) == pytest.approx(log_sum)
    assert float(loss) == pytest.approx(0.25 * (log_sum - 1) + 0.75 * (log_sum - 2))
    assert cross_entropy_forward(logits, np.array([1]))[0] == INF
    # Smoothing gives the masked class a share, and with it an infinite loss; no weight, none.
    loss, _, _ = cross_entropy_forward(logits, np.array([0]), label_smoothing=smoothing)
    assert float(loss) == (INF if smoothing else pytest.approx(log_sum - 1))
    weight = np.array([1.0, 0.0, 1.0])
    options = {"weight": weight, "label_smoothing": smoothing}
    assert np.isfinite(cross_entropy_forward(logits, np.array([0]), **options)[0])
    assert np.isfinite(backward(1.0, logits, np.array([0]), **options)).all()


def test_what_is_not_a_number():
    logits = np.array([[np.nan, 0.0], [INF, 0.0], [-INF, -INF], [0.0, 1.0]])
    target = np.array([1, 0, 0, 0])
    for labels in (target, np.eye(2)[target]):
        loss, normalizer, _ = cross_entropy_forward(logits, labels, reduction="none")
        assert np.isnan(loss).tolist() == [True, True, True, False]
        assert normalizer[2] == -INF
        gradient = backward(np.ones(4), logits, labels, reduction="none")
        assert np.isnan(gradient).all(axis=1).tolist() == [True, True, True, False]


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind, reduction):
    logits, target, options = case(kind)
    rng = np.random.default_rng(5)
    each = {**options, "reduction": reduction}
    grad = rng.normal(size=7 if reduction == "none" else ())
    h, expected = 1e-6, np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = h
        difference = (
            cross_entropy_forward(logits + step, target, **each)[0]
            - cross_entropy_forward(logits - step, target, **each)[0]
        )
        expected[index] = (grad * difference).sum() / (2 * h)
    actual = backward(grad, logits, target, **each)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


def test_known_gradient():
    logits, target = np.array([[0.0, math.log(3)]]), np.array([0])
    np.testing.assert_allclose(backward(2.0, logits, target), [[-1.5, 1.5]], rtol=1e-14)


# ---- dtypes, shapes, memory ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("labels", [np.int32, np.int64, None])
def test_dtypes_of_results(dtype, labels):
    logits = np.ones((2, 3), dtype)
    target = np.ones((2, 3), dtype) if labels is None else np.array([0, 2], labels)
    wide = np.float64 if dtype == np.float64 else np.float32
    for weight in (None, np.ones(3, dtype), np.ones(3, wide)):
        loss, normalizer, total = cross_entropy_forward(logits, target, weight=weight)
        assert (loss.dtype, normalizer.dtype, total.dtype) == (wide, wide, wide)
        assert (loss.shape, normalizer.shape, total.shape) == ((), (2,), ())
        each, _, _ = cross_entropy_forward(logits, target, weight=weight, reduction="none")
        assert (each.dtype, each.shape) == (dtype, (2,))
        options = {"weight": weight, "reduction": "none"}
        assert backward(each, logits, target, **options).dtype == dtype


@pytest.mark.parametrize("target", [np.zeros(0, np.int64), np.zeros((0, 3))])
def test_no_rows(target):
    logits = np.zeros((0, 3))
    assert math.isnan(cross_entropy_forward(logits, target)[0])
    assert cross_entropy_forward(logits, target, reduction="sum")[0] == 0
    assert cross_entropy_forward(logits, target, reduction="none")[0].shape == (0,)
    assert backward(1.0, logits, target).shape == (0, 3)


@given(
    rows=st.integers(1, 40), classes=st.integers(1, 90), kind=st.sampled_from(KINDS),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(rows, classes, kind, seed):
    logits, target, options = case(kind, rows, max(classes, 3), seed)
    weight, smoothing = options.get("weight"), options.get("label_smoothing", 0.0)
    each, own = plain(logits, target, weight, smoothing, options.get("ignore_index", -100))
    loss, _, total = cross_entropy_forward(logits, target, reduction="none", **options)
    np.testing.assert_allclose(loss, each, rtol=1e-11, atol=1e-13)
    gradient = backward(np.ones(rows), logits, target, reduction="none", **options)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-13 * classes)


def test_many_rows_and_many_classes_are_done_in_pieces():
    for rows, classes in ((3000, 30), (2, 70_001)):
        logits, target, _ = case("labels", rows, classes)
        each, _ = plain(logits, target)
        loss, normalizer, total = cross_entropy_forward(logits.astype(np.float32), target)
        assert float(loss) == pytest.approx(each.mean(), rel=1e-6) and float(total) == rows
        gradient = backward(1.0, logits, target, reduction="sum")
        p = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        p[np.arange(rows), target] -= 1
        np.testing.assert_allclose(gradient, p, atol=1e-12)


def test_views_and_read_only_inputs():
    logits, target, options = case("all", 6, 8)
    wide, labels = np.repeat(logits, 2, axis=1)[:, ::2], np.repeat(target, 3)[::3]
    wide.flags.writeable = labels.flags.writeable = False
    loss, _, _ = cross_entropy_forward(wide, labels, **options)
    assert loss == cross_entropy_forward(logits, target, **options)[0]
    np.testing.assert_array_equal(
        backward(1.0, wide.T.copy().T, labels, **options), backward(1.0, logits, target, **options)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_out(kind):
    logits, target, options = case(kind)
    loss, normalizer, total = cross_entropy_forward(logits, target, **options)
    given_ = {"out": np.empty(()), "log_normalizer": np.empty(7), "total_weight": np.empty(())}
    returned = cross_entropy_forward(logits, target, **options, **given_)
    assert all(a is b for a, b in zip(returned, given_.values(), strict=True))
    assert returned[0] == loss and returned[2] == total
    expected = backward(1.0, logits, target, **options)
    args = np.array(1.0), logits, target, normalizer, total
    assert cross_entropy_backward(*args, out=logits, **options) is logits  # in place
    np.testing.assert_array_equal(logits, expected)


def test_cost_counts_each_byte_once():
    logits, target = np.ones((4, 8), np.float32), np.zeros(4, np.int64)
    cost = cross_entropy_forward.cost_of(logits, target)
    assert (cost.read, cost.written) == (128 + 32, 4 + 16 + 4)
    _, normalizer, total = cross_entropy_forward(logits, target)
    cost = cross_entropy_backward.cost_of(np.float32(1), logits, target, normalizer, total)
    assert (cost.read, cost.written) == (128 + 32 + 4 + 16 + 4, 128)


# ---- wrong inputs --------------------------------------------------------------------------------

X, T = np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0])
Q = np.full((4, 3), 1 / 3, np.float32)


@pytest.mark.parametrize(
    ("logits", "target", "options", "error", "text"),
    [
        (X, np.array([0, 1, 3, 9]), {}, ValueError,
         r"target has label 3 in row 2; expected 0 to 2 for logits of 3 classes, or ignore_index "
         r"\(-100\)"),
        (X, np.array([0, -1, 0, 0], np.int32), {}, ValueError, "target has label -1 in row 1"),
        (X, np.array([0, 0, 0, -100]), {"ignore_index": 0}, ValueError,
         "target has label -100 in row 3"),
        (X, T[:3], {}, ValueError,
         r"target has shape \(3,\).*expected a label for each of the 4 rows of logits"),
        (X, T.astype(np.float32), {}, TypeError,
         r"target has shape \(4,\) and dtype float32 on cpu; expected int32 or int64 labels of "
         r"shape \(4,\), or float32 probabilities of shape \(4, 3\). .*astype\('int64'\)"),
        (X, T > 0, {}, TypeError, r"target .*dtype bool.*expected int32 or int64"),
        (X, T.astype(np.uint8), {}, TypeError, "target .*dtype uint8 on cpu; expected int32 or"),
        (X, T[:, None], {}, ValueError, r"target .*\(4, 1\).*expected .*reshape\(4\)"),
        (X, np.eye(3, dtype=int)[T], {}, TypeError, r"target .*\(4, 3\) and dtype int64.*probabil"),
        (X, Q[:, :2], {}, ValueError, r"target has shape \(4, 2\)"),
        (X, Q.astype(float), {}, TypeError, "target has .*expected the dtype of logits, float32"),
        (X, Q, {"ignore_index": 1}, ValueError, "ignore_index is 1 but target holds probabilities"),
        (X, None, {}, TypeError, "target is None; expected an array"),
        (X[:, :0], T, {}, ValueError, "logits have no classes; give them at least one column"),
        (X[0], T, {}, ValueError, r"logits has shape \(3,\).*expected 2 dimensions"),
        (X.astype(int), T, {}, TypeError, "logits has .*int64 on cpu; expected dtype float16"),
        (X, T, {"weight": np.ones(4, np.float32)}, ValueError,
         r"weight has shape \(4,\).*expected shape \(3,\)"),
        (X, T, {"weight": np.ones(3)}, TypeError, "weight has .*float64.*expected dtype float32"),
        (X, T, {"weight": np.ones(3, int)}, TypeError, "weight has .*int64"),
        (X, T, {"label_smoothing": 1.5}, ValueError,
         "label_smoothing is 1.5; expected a number from 0.0 to 1.0"),
        (X, T, {"label_smoothing": -0.1}, ValueError, "label_smoothing is -0.1"),
        (X, T, {"label_smoothing": "a"}, TypeError, "label_smoothing is 'a'; expected a number"),
        (X, T, {"ignore_index": 1.5}, TypeError, "ignore_index is 1.5; expected an integer"),
        (X, T, {"ignore_index": 2**63}, ValueError, "ignore_index is 9223372036854775808;"),
        (X, T, {"reduction": "avg"}, ValueError, "reduction is 'avg'; expected one of 'mean'"),
    ],
)  # fmt: skip
def test_what_is_refused(logits, target, options, error, text):
    with pytest.raises(error, match=f"cross_entropy_forward: {text}"):
        cross_entropy_forward(logits, target, **options)
    ones = np.ones(4, np.float32)
    with pytest.raises(error, match=f"cross_entropy_backward: {text}"):
        cross_entropy_backward(ones[0], logits, target, ones, ones[0], **options)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"out": np.empty(1, np.float32)}, ValueError, r"out .*\(1,\).*expected shape \(\)"),
        ({"out": np.empty(())}, TypeError, "out has .*expected dtype float32"),
        ({"log_normalizer": np.empty(3, np.float32)}, ValueError, r"log_normalizer .*\(4,\)"),
        ({"total_weight": np.empty(1, np.float32)}, ValueError, r"total_weight .*shape \(\)"),
    ],
)
def test_what_forward_refuses_to_write(change, error, text):
    with pytest.raises(error, match=text):
        cross_entropy_forward(X, T, **change)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"grad_output": np.ones(4, np.float32)}, ValueError, r"grad_output .*expected shape \(\)"),
        ({"grad_output": np.float64(1)}, TypeError, "grad_output .*expected dtype float32"),
        ({"reduction": "none"}, ValueError, r"grad_output .*expected shape \(4,\)"),
        ({"log_normalizer": np.ones(3, np.float32)}, ValueError, r"log_normalizer .*\(4,\)"),
        ({"log_normalizer": None}, TypeError, "log_normalizer is None"),
        ({"total_weight": np.ones(())}, TypeError, "total_weight .*expected dtype float32"),
        ({"out": np.empty((4, 2), np.float32)}, ValueError, r"out .*expected shape \(4, 3\)"),
        ({"out": np.empty((3, 4), np.float32).T}, ValueError, "out .*a C-contiguous array"),
    ],
)
def test_what_backward_refuses(change, error, text):
    one = np.float32(1)
    arguments = {"grad_output": one, "logits": X, "target": T, "total_weight": one}
    arguments |= {"log_normalizer": np.ones(4, np.float32)} | change
    with pytest.raises(error, match=text):
        cross_entropy_backward(**arguments)


def test_nothing_is_written_when_a_label_is_wrong():
    out = np.full((), 7, np.float32)
    with pytest.raises(ValueError):
        cross_entropy_forward(X, T + 1, out=out)
    assert out == 7


# ---- labels out of range where nobody looks ------------------------------------------------------

IN_SIMULATOR = """
import json
import numpy as np
from gpunn.device import Device
from gpunn.device.launch import numba_launcher
from gpunn.primitives.cross_entropy import cross_entropy_backward, cross_entropy_forward
launch = numba_launcher("cross_entropy.py", Device("cpu"))
logits, target = np.ones((5, 3), np.float32), np.array([0, 3, -1, 2**40, -100])
loss, normalizer, total, grad, out = (np.ones(s, np.float32) for s in (5, 5, (), 5, (5, 3)))
shared = logits, target, None, None, -100, 0.0, "none"
cross_entropy_forward._numba(launch, *shared, loss, normalizer, total)
cross_entropy_backward._numba(launch, *shared, grad, normalizer, total, out)
print(json.dumps([a.tolist() for a in (loss, normalizer, total, out)]))
"""


def check_poisoned(loss, normalizer, total, gradient):
    """Of the labels 0, 3, -1, 2^40, -100 of three classes, three are wrong and one is ignored."""
    wrong = [False, True, True, True, False]
    assert np.isnan(loss).tolist() == np.isnan(normalizer).tolist() == wrong
    assert loss[0] == pytest.approx(math.log(3), rel=1e-6) and loss[4] == normalizer[4] == 0
    assert np.isnan(gradient).tolist() == [[flag] * 3 for flag in wrong]
    assert (gradient[4] == 0).all() and total == 1


def test_wrong_labels_become_nan_in_the_numba_kernel():
    pytest.importorskip("numba")
    run = subprocess.run(
        [sys.executable, "-c", IN_SIMULATOR], capture_output=True, text=True, check=True,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    check_poisoned(*map(np.array, json.loads(run.stdout)))


@pytest.mark.gpu
@pytest.mark.parametrize("classes_of_padding", [0, 5000])
def test_wrong_labels_become_nan_on_the_gpu(classes_of_padding):
    import cupy

    logits = np.ones((5, 3 + classes_of_padding), np.float32)
    logits[:, 3:] = -INF
    target = np.array([0, logits.shape[1], -1, 2**40, -100])
    logits, target = cupy.asarray(logits), cupy.asarray(target)
    loss, normalizer, total = cross_entropy_forward(logits, target, reduction="none")
    grad = cupy.ones(5, cupy.float32)
    args = grad, logits, target, normalizer, total
    gradient = cross_entropy_backward(*args, reduction="none")
    check_poisoned(loss.get(), normalizer.get(), total.get(), gradient.get()[:, :3])
