"""Metrics against scikit-learn, over unequal batches, and against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpunn.autograd.tensor import Tensor
from gpunn.train.metrics import (
    METRICS,
    Accuracy,
    ConfusionMatrix,
    FunctionMetric,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    PinballLoss,
    R2Score,
    TopKAccuracy,
    accuracy,
    as_metric,
    confusion_matrix,
    interval_coverage,
    mean_absolute_error,
    mean_squared_error,
    pinball_loss,
    r2_score,
    top_k_accuracy,
)

oracle = pytest.importorskip("sklearn.metrics")


def in_batches(metric, prediction, target, cuts):
    for p, t in zip(np.split(prediction, cuts), np.split(target, cuts), strict=True):
        if len(p):
            metric.update(p, t)
    return metric.compute()


cuts = st.lists(st.integers(1, 36), max_size=5).map(sorted)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), cuts=cuts, classes=st.integers(2, 7))
def test_classification_over_any_batches(seed, cuts, classes):
    rng = np.random.default_rng(seed)
    scores, labels = rng.random((37, classes)), rng.integers(0, classes, 37)
    predicted = scores.argmax(axis=1)
    expected = oracle.accuracy_score(labels, predicted)
    assert in_batches(Accuracy(), scores, labels, cuts) == pytest.approx(expected, abs=1e-15)
    matrix = oracle.confusion_matrix(labels, predicted, labels=range(classes))
    assert np.array_equal(in_batches(ConfusionMatrix(), scores, labels, cuts), matrix)
    k = int(rng.integers(1, classes + 1))
    ours = in_batches(TopKAccuracy(k), scores, labels, cuts)
    if k == classes or classes == 2:  # scikit-learn warns, or asks for another form, there
        best = scores.argsort(axis=1)[:, -k:]
        expected = np.mean((best == labels[:, None]).any(axis=1))
    else:
        expected = oracle.top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
    assert ours == pytest.approx(expected, abs=1e-15)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    cuts=cuts,
    columns=st.integers(1, 3),
    shift=st.sampled_from([0.0, 1e3, 1e6]),
)
def test_regression_over_any_batches(seed, cuts, columns, shift):
    rng = np.random.default_rng(seed)
    y = rng.normal(shift, 2.0, (37, columns))
    p = y + rng.normal(0, 1.0, y.shape)
    for metric, function in (
        (MeanAbsoluteError(), oracle.mean_absolute_error),
        (MeanSquaredError(), oracle.mean_squared_error),
        (R2Score(), oracle.r2_score),
    ):
        assert in_batches(metric, p, y, cuts) == pytest.approx(function(y, p), rel=1e-9)


def test_functions_and_tensors():
    scores = Tensor(np.float32([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]))
    labels = Tensor(np.array([1, 0, 0]))
    assert accuracy(scores, labels) == pytest.approx(2 / 3)
    assert top_k_accuracy(scores, labels, k=2) == 1.0
    assert confusion_matrix(scores, labels).tolist() == [[1, 1], [0, 1]]
    assert confusion_matrix(scores, labels, classes=3).shape == (3, 3)
    assert mean_absolute_error([1.0, 2.0], [2.0, 4.0]) == 1.5
    assert mean_squared_error([1.0, 2.0], [2.0, 4.0]) == 2.5
    assert r2_score([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0
    assert r2_score([[2.0], [2.0], [2.0]], [1.0, 2.0, 3.0]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_errors_quantiles_and_intervals(seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(2, 1, 37)
    p = y[:, None] + rng.normal(0, 0.5, (37, 3))
    q = (0.1, 0.5, 0.9)
    losses = [oracle.mean_pinball_loss(y, p[:, c], alpha=a) for c, a in enumerate(q)]
    cuts = [3, 20]
    assert in_batches(PinballLoss(q), p, y, cuts) == pytest.approx(np.mean(losses))
    assert in_batches(as_metric("pinball_0.9"), p[:, 2:], y, cuts) == pytest.approx(losses[2])
    inside = (p[:, 0] <= y) & (y <= p[:, 2])
    assert in_batches(as_metric("interval_coverage"), p, y, cuts) == inside.mean()
    assert in_batches(as_metric("interval_width"), p, y[:, None], cuts) == pytest.approx(
        (p[:, 2] - p[:, 0]).mean()
    )
    for name, function in (
        ("rmse", oracle.root_mean_squared_error),
        ("mape", oracle.mean_absolute_percentage_error),
    ):
        assert in_batches(as_metric(name), p[:, 1], y, cuts) == pytest.approx(function(y, p[:, 1]))
    y[0] = 0.0
    assert in_batches(as_metric("mape"), p[:, 1], y, cuts) > 1e10
    with pytest.raises(ValueError, match=r"shape \(37, 3\); expected .* with 2 columns"):
        pinball_loss(p, y, quantile=(0.1, 0.9))
    with pytest.raises(ValueError, match="with a column 3"):
        interval_coverage(p, y, upper=3)
    with pytest.raises(ValueError, match="quantiles must be from 0 to 1"):
        PinballLoss(1.5)


def test_large_float32_data_do_not_lose_digits():
    y = np.full(4096, 2.0**20, np.float32)
    assert mean_absolute_error(y + np.float32(0.125), y) == 0.125
    y[::2] += 1
    assert r2_score(y, y) == 1.0
    assert r2_score(np.full_like(y, y.mean()), y) == pytest.approx(0.0, abs=1e-12)


def test_constant_target_as_in_scikit_learn():
    constant = np.ones((4, 2))
    other = np.array([[1, 1], [1, 2], [1, 1], [1, 1.0]])
    for prediction in (constant, other):
        assert r2_score(prediction, constant) == oracle.r2_score(constant, prediction)
    tenth = np.full(37, 0.1)  # whose mean is another number
    assert in_batches(R2Score(), tenth + 1, tenth, [5, 20]) == 0.0
    assert in_batches(R2Score(), tenth, tenth, [5, 20]) == 1.0


def test_infinity_is_a_result_and_no_warning():
    far, y = np.array([-np.inf, 1.0]), np.array([0.0, 1.0])
    assert pinball_loss(far, y) == np.inf == mean_squared_error(far, y)
    assert np.isnan(mean_squared_error(far, far)) and r2_score(far, y) == -np.inf


def test_binary_forms():
    logits, labels = np.array([-1.0, 2.0, 0.5, 0.0]), np.array([0, 1, 0, 0])
    assert accuracy(logits, labels) == 0.75
    assert accuracy(logits[:, None], labels) == 0.75
    assert accuracy(logits[:, None], labels[:, None].astype(np.float32)) == 0.75
    assert accuracy([0.4, 0.6], [0, 1], threshold=0.5) == 1.0
    assert confusion_matrix(logits, labels).tolist() == [[2, 1], [0, 1]]


def test_probability_targets_and_ties():
    target = np.array([[0.2, 0.8], [0.6, 0.4]])
    assert accuracy(np.array([[0.0, 1.0], [0.0, 1.0]]), target) == 0.5
    ties = np.zeros((3, 4))
    assert accuracy(ties, [0, 1, 3]) == pytest.approx(1 / 3)
    assert [top_k_accuracy(ties, [0, 1, 3], k=k) for k in (1, 2, 3, 4)] == pytest.approx(
        [1 / 3, 2 / 3, 2 / 3, 1.0]
    )


def test_nan_scores_are_never_right():
    assert top_k_accuracy(np.full((2, 3), np.nan), [0, 2], k=3) == 0.0


def test_reset_forgets():
    for metric in (Accuracy(), TopKAccuracy(1), ConfusionMatrix()):
        metric.update(np.array([[0.0, 1.0]]), np.array([0]))
        metric.reset()
        metric.update(np.array([[0.0, 1.0]]), np.array([1]))
        assert np.sum(metric.compute()) == 1.0
    for metric in (MeanAbsoluteError(), MeanSquaredError(), R2Score()):
        metric.update(np.array([9.0, 9.0]), np.array([0.0, 1.0]))
        metric.reset()
        metric.update(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
        assert metric.compute() in (0.0, 1.0)


def test_what_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        Accuracy().compute()
    for metric in (ConfusionMatrix(), MeanAbsoluteError(), R2Score(), FunctionMetric(max)):
        with pytest.raises(ValueError, match="no samples"):
            metric.compute()
    with pytest.raises(ValueError, match="single sample"):
        r2_score([1.0], [1.0])
    with pytest.raises(ValueError, match=r"\(3, 2\) and target \(4,\)"):
        accuracy(np.zeros((3, 2)), np.zeros(4, int))
    with pytest.raises(ValueError, match="must be equal"):
        mean_squared_error(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="must be equal"):
        mean_squared_error(np.zeros((3, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="1 samples have a class outside 0 … 1"):
        confusion_matrix(np.zeros((2, 2)), [0, 2])
    with pytest.raises(ValueError, match="k must be"):
        TopKAccuracy(0)
    with pytest.raises(ValueError, match="needs scores"):
        top_k_accuracy([1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match="'acuracy' is not known; known are accuracy"):
        as_metric("acuracy")
    with pytest.raises(TypeError, match="got int"):
        as_metric(3)


def test_as_metric():
    assert all(isinstance(as_metric(name), Metric) for name in METRICS)

    def spread(prediction, target):
        return float(np.max(prediction) - np.max(target))

    metric = as_metric(spread)
    metric.update(np.array([1.0, 5.0]), np.array([0.0, 0.0]))
    metric.update(np.array([9.0]), np.array([2.0]))
    assert metric.name == "spread" and metric.compute() == 7.0
