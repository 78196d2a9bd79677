"""Precision, recall, areas, probabilities: against scikit-learn, over batches, on the edges."""

import math

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.autograd.tensor import Tensor
from gpunn.train import Trainer, metrics
from gpunn.train.metrics import (
    ROCAUC,
    Accuracy,
    AveragePrecision,
    BalancedAccuracy,
    BrierScore,
    CalibrationError,
    ConfusionMatrix,
    FBeta,
    LogLoss,
    MatthewsCorrelation,
    MultilabelAccuracy,
    Perplexity,
    Precision,
    Recall,
    TopKAccuracy,
    as_metric,
)

oracle = pytest.importorskip("sklearn.metrics")
SEEDS = range(6)


def in_batches(metric, prediction, target, cuts=(5, 6, 20)):
    metric.reset()
    for p, t in zip(np.split(prediction, cuts), np.split(target, cuts), strict=True):
        if len(p):
            metric.update(p, t)
    return metric.compute()


def sample(seed, classes, samples=37):
    """Scores with ties, labels that leave out a class now and then."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(2, classes - seed % 2), samples)
    shape = samples if classes == 2 and seed % 3 == 0 else (samples, classes)
    return np.round(rng.normal(0, 2, shape), 1), labels


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("average", ["binary", "micro", "macro", "weighted", None])
def test_precision_recall_f(average):
    for seed in SEEDS:
        classes = 2 if average == "binary" else 2 + seed
        scores, labels = sample(seed, classes)
        predicted = scores > 0 if scores.ndim == 1 else scores.argmax(axis=1)
        known = range(classes) if average is None else None
        for metric, function, options in (
            (Precision(average), oracle.precision_score, {}),
            (Recall(average), oracle.recall_score, {}),
            (FBeta(1.0, average), oracle.f1_score, {}),
            (FBeta(0.5, average), oracle.fbeta_score, {"beta": 0.5}),
        ):
            expected = function(
                labels, predicted, average=average, zero_division=0, labels=known, **options
            )
            assert in_batches(metric, scores, labels) == pytest.approx(expected, abs=1e-14)
        options = {"average": average, "labels": known, "zero_division": np.nan}
        found = in_batches(Precision(average, zero_division=math.nan), scores, labels)
        expected = oracle.precision_score(labels, predicted, **options)
        assert found == pytest.approx(expected, abs=1e-14, nan_ok=True)


def test_balanced_accuracy_and_correlation():
    for seed in SEEDS:
        scores, labels = sample(seed, 2 + seed)
        predicted = scores > 0 if scores.ndim == 1 else scores.argmax(axis=1)
        found = in_batches(MatthewsCorrelation(), scores, labels)
        assert found == pytest.approx(oracle.matthews_corrcoef(labels, predicted), abs=1e-14)
        shares = oracle.recall_score(labels, predicted, average=None, labels=np.unique(labels))
        assert in_batches(BalancedAccuracy(), scores, labels) == pytest.approx(shares.mean())
    assert metrics.matthews_correlation([1.0, 2.0], [1, 1]) == 0.0  # as scikit-learn
    assert metrics.balanced_accuracy([1.0, -2.0], [1, 1]) == 0.5


def test_several_labels_a_sample():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        scores, true = np.round(rng.normal(size=(37, 4)), 1), rng.integers(0, 2, (37, 4))
        true[:5], scores[:3] = 0, -1.0
        found = (scores > 0).astype(int)
        for average in ("micro", "macro", "weighted", None):
            ours = in_batches(Precision(average, multilabel=True), scores, true)
            expected = oracle.precision_score(true, found, average=average, zero_division=0)
            assert ours == pytest.approx(expected)
        for kind, expected in (
            ("exact", oracle.accuracy_score(true, found)),
            ("hamming", 1 - oracle.hamming_loss(true, found)),
            ("jaccard", oracle.jaccard_score(true, found, average="samples", zero_division=1)),
        ):
            assert in_batches(MultilabelAccuracy(kind), scores, true) == pytest.approx(expected)
        for kind, function in (
            (ROCAUC, oracle.roc_auc_score),
            (AveragePrecision, oracle.average_precision_score),
        ):
            for average in ("macro", "weighted", None):
                ours = in_batches(kind(average, multilabel=True), scores, true)
                assert ours == pytest.approx(function(true, scores, average=average))


def test_areas_with_ties():
    for seed in SEEDS:
        scores, labels = sample(seed, 2)
        one = scores if scores.ndim == 1 else scores[:, 1] - scores[:, 0]
        found = in_batches(ROCAUC(), scores, labels)
        assert found == pytest.approx(oracle.roc_auc_score(labels, one), abs=1e-14)
        found = in_batches(AveragePrecision(), scores, labels)
        assert found == pytest.approx(oracle.average_precision_score(labels, one), abs=1e-14)
        curve = metrics.roc_curve(scores, labels)
        expected = oracle.roc_curve(labels, one, drop_intermediate=False)
        for ours, theirs in zip(curve, expected, strict=True):
            np.testing.assert_allclose(ours, theirs)
        curve = metrics.precision_recall_curve(scores, labels)
        for ours, theirs in zip(curve, oracle.precision_recall_curve(labels, one), strict=True):
            np.testing.assert_allclose(ours, theirs)
        scores = np.random.default_rng(seed).normal(size=(60, 4))
        labels = np.arange(60) % 4
        for average in ("macro", "weighted"):
            expected = oracle.roc_auc_score(
                labels, softmax(scores), multi_class="ovr", average=average
            )
            assert metrics.roc_auc(scores, labels, average=average) == pytest.approx(expected)
            given = metrics.roc_auc(softmax(scores), labels, average=average, from_logits=False)
            assert given == pytest.approx(expected)


def test_areas_of_one_class_are_nan_and_left_out():
    scores = np.random.default_rng(0).normal(size=(20, 3))
    assert math.isnan(metrics.roc_auc([1.0, 2.0], [1, 1]))
    assert math.isnan(metrics.roc_auc([1.0, 2.0], [0, 0]))
    assert metrics.average_precision([1.0, 2.0], [1, 1]) == 1.0
    assert math.isnan(metrics.average_precision([1.0, 2.0], [0, 0]))
    assert math.isnan(metrics.roc_auc(scores, np.zeros(20, int)))
    assert math.isnan(metrics.roc_auc([1.0, math.nan], [0, 1]))
    labels = np.arange(20) % 2  # the third class does not occur
    each = metrics.roc_auc(scores, labels, average=None)
    assert math.isnan(each[2]) and metrics.roc_auc(scores, labels) == pytest.approx(each[:2].mean())
    assert math.isnan(metrics.roc_auc(scores, np.full(20, -1), ignore_index=-1))
    with pytest.raises(ValueError, match=r"add up to 1.*use ROCAUC\(from_logits=False\)"):
        metrics.roc_auc(softmax(scores), labels)
    with pytest.raises(ValueError, match="auc: 10 samples have a class outside 0 … 2"):
        metrics.roc_auc(scores, labels * 5)
    with pytest.raises(ValueError, match="1 scores are NaN"):
        metrics.roc_curve([1.0, math.nan], [0, 1])


def test_log_loss_perplexity_and_brier():
    for seed in SEEDS:
        scores, labels = sample(seed, 2 + seed)
        if scores.ndim == 1:
            p = 1 / (1 + np.exp(-scores))
            brier = oracle.brier_score_loss(labels, p)
        else:
            p = softmax(scores)
            brier = oracle.brier_score_loss(labels, p, labels=range(p.shape[1]))
        expected = oracle.log_loss(labels, p, labels=range(2 + seed))
        for logits, given in ((True, scores), (False, p)):
            assert in_batches(LogLoss(logits), given, labels) == pytest.approx(expected)
            found = in_batches(Perplexity(logits), given, labels)
            assert found == pytest.approx(math.exp(expected))
            assert in_batches(BrierScore(logits), given, labels) == pytest.approx(brier)
    with pytest.raises(ValueError, match=r"use LogLoss\(from_logits=False\)"):
        metrics.log_loss(np.float32([[0.25, 0.75], [0.5, 0.5]]), [0, 1])
    certain = metrics.log_loss(np.array([[0.0, 1.0]]), [0], from_logits=False)
    assert certain == pytest.approx(-math.log(np.finfo(float).eps))
    assert metrics.perplexity(np.zeros((3, 50), np.float32), [1, 2, 3]) == pytest.approx(50)
    assert metrics.perplexity([[0.0, 1e6]], [0]) == math.inf


def test_tokens_weigh_alike_and_padding_counts_nothing():
    rng = np.random.default_rng(1)
    scores, tokens = rng.normal(size=(3, 7, 5)), rng.integers(0, 5, (3, 7))
    tokens[0, 2:], tokens[2, 5:] = -100, -100
    kept = tokens != -100
    rows = softmax(scores[kept])[np.arange(kept.sum()), tokens[kept]]
    metric = Perplexity()
    for one in range(3):  # batches with 2, 7 and 5 tokens
        metric.update(scores[one : one + 1], tokens[one : one + 1])
    assert metric.compute() == pytest.approx(math.exp(-np.log(rows).mean()))
    image = np.moveaxis(scores, 2, 1)  # (B, classes, places)
    assert metrics.perplexity(image, tokens) == pytest.approx(metric.compute())
    flat, wanted = scores[kept], tokens[kept]
    for name in ("accuracy", "f1", "balanced_accuracy", "matthews_correlation", "auc"):
        kind = type(as_metric(name))
        masked = kind(ignore_index=-100)
        masked.update(scores, tokens)
        plain = as_metric(name)
        plain.update(flat, wanted)
        assert masked.compute() == pytest.approx(plain.compute()), name
    top, plain = TopKAccuracy(2, ignore_index=-100), TopKAccuracy(2)
    matrix, whole = ConfusionMatrix(ignore_index=-100), ConfusionMatrix()
    for masked, unmasked in ((top, plain), (matrix, whole)):
        masked.update(scores, tokens)
        unmasked.update(flat, wanted)
        np.testing.assert_allclose(masked.compute(), unmasked.compute())
    nothing = np.full((3, 7), -100)
    for kind in (Accuracy, TopKAccuracy, FBeta, BalancedAccuracy, LogLoss, CalibrationError):
        metric = kind(ignore_index=-100)
        metric.update(scores, nothing)
        assert math.isnan(metric.compute())
    with pytest.raises(ValueError, match="axis 1 or the last; say which by class_axis"):
        metrics.accuracy(np.zeros((2, 4, 4)), np.zeros((2, 4), int))
    both = np.arange(32.0).reshape(2, 4, 4)
    last = Accuracy(class_axis=-1)
    last.update(both, np.full((2, 4), 3))
    assert last.compute() == 1.0
    with pytest.raises(ValueError, match="without the axis of the classes"):
        metrics.accuracy(np.zeros((2, 4, 3)), np.zeros((2, 5), int))


def test_calibration():
    calibration = pytest.importorskip("sklearn.calibration")
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        p = np.round(rng.random(500), 2)  # on the borders of bins, too
        labels = (rng.random(500) < p**2).astype(int)
        frequency, confidence = calibration.calibration_curve(labels, p, n_bins=10)
        curve = metrics.calibration_curve(p, labels, from_logits=False)
        np.testing.assert_allclose(curve.frequency, frequency)
        np.testing.assert_allclose(curve.confidence, confidence)
        error = (curve.samples * abs(frequency - confidence)).sum() / 500
        assert curve.samples.sum() == 500
        ours = in_batches(CalibrationError(10, from_logits=False), p, labels, (100, 170))
        assert ours == pytest.approx(error)
        logits = np.log(p[p > 0][p[p > 0] < 1] / (1 - p[p > 0][p[p > 0] < 1]))
        assert 0 <= metrics.calibration_error(logits, labels[: len(logits)]) <= 1
    # Two of three are right where the model says 0.9, one of two where it says 0.6.
    rows = np.array([[0.9, 0.1]] * 3 + [[0.4, 0.6]] * 2)
    error = metrics.calibration_error(rows, [0, 0, 1, 1, 0], from_logits=False)
    assert error == pytest.approx((3 * (0.9 - 2 / 3) + 2 * (0.6 - 0.5)) / 5)


def test_nan_predicts_nothing():
    scores = np.array([[math.nan, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, math.nan]])
    labels = [0, 1, 0, 1]
    assert metrics.recall(scores, labels, average=None).tolist() == [0.5, 0.5]
    assert metrics.precision(scores, labels, average=None).tolist() == [1.0, 1.0]
    assert metrics.balanced_accuracy(scores, labels) == 0.5
    assert metrics.matthews_correlation(scores, labels) == pytest.approx(
        oracle.matthews_corrcoef(labels, [2, 1, 0, 2])
    )
    assert math.isnan(metrics.log_loss(scores, labels)) and math.isnan(
        metrics.calibration_error(scores, labels)
    )


def test_what_is_refused():
    scores = np.random.default_rng(0).normal(size=(6, 3))
    for name in ("f1", "auc", "log_loss", "exact_match", "accuracy"):
        with pytest.raises(ValueError, match="no samples were given"):
            as_metric(name).compute()
    with pytest.raises(ValueError, match="precision: 2 samples have a class outside 0 … 2"):
        metrics.precision(scores, [0, 1, 2, 3, 4, 0])
    with pytest.raises(ValueError, match="'binary' is for two classes, and there are 3"):
        metrics.f1_score(scores, [0, 1, 2, 0, 1, 2], average="binary")
    with pytest.raises(ValueError, match="average is 'sum'; expected one of 'auto'"):
        Precision("sum")
    with pytest.raises(ValueError, match="both must be"):
        metrics.multilabel_accuracy(scores, [0, 1, 2, 0, 1, 2])
    metric = Precision()
    metric.update(scores, [0, 1, 2, 0, 1, 2])
    with pytest.raises(ValueError, match="2 classes in this batch, 3 before"):
        metric.update(scores[:, :2], [0, 1, 0, 0, 1, 0])
    with pytest.raises(TypeError, match="class Precision: add parentheses"):
        as_metric(Precision)
    with pytest.raises(ValueError, match="beta must be"):
        FBeta(-1.0)


NAMES = [
    "accuracy", "top_2_accuracy", "precision", "recall", "f1_macro", "f2", "balanced_accuracy",
    "matthews_correlation", "log_loss", "perplexity", "brier", "calibration_error", "auc",
    "average_precision", "precision_per_class", "confusion_matrix",
]  # fmt: skip


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_in_a_compiled_training(precision):
    """Captured steps on the emulator count as the CPU does, and ignored labels nothing."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((22, 6)).astype(np.float32), rng.integers(0, 3, 22)

    def records(device, compiled):
        gpunn.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(device)
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), NAMES, seed=1,
            compile=compiled, precision=precision,
        )  # fmt: skip
        history = trainer.fit((x, y), (x, y), epochs=3, batch_size=8, verbose=False)
        assert "precision_per_class" not in history
        assert trainer.evaluate((x, y))["precision_per_class"].shape == (3,)
        last = history.records[-1]
        assert last["perplexity"] == pytest.approx(math.exp(last["log_loss"]))
        assert last["log_loss"] == pytest.approx(last["loss"], rel=1e-5 if not precision else 1e-2)
        return [{k: v for k, v in record.items() if k != "seconds"} for record in history]

    plain, compiled = records("emulator", False), records("emulator", True)
    assert plain == compiled
    if precision is None:
        for one, other in zip(records("cpu", False), plain, strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_ignored_labels_in_a_compiled_training():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6)).astype(np.float32), rng.integers(0, 2, 24)
    y[::4] = -100
    gpunn.manual_seed(3)
    model = nn.Linear(6, 2).to("emulator")  # "auto" has to see in replays that there are two
    every = [kind(ignore_index=-100) for kind in (Accuracy, Precision, LogLoss, BrierScore)]
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.0), every, compile=True
    )
    history = trainer.fit((x, y), (x, y), epochs=4, batch_size=8, verbose=False)
    assert max(v.captures for v in trainer.step.compiled._variants.values()) == 1
    for metric in every:  # the learning rate is 0: every epoch sees the same model
        values = history[metric.name] + history[f"validation_{metric.name}"]
        assert values == pytest.approx([values[0]] * 8, rel=1e-6)


def test_tensors_and_modes():
    scores = Tensor(np.float32([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]))
    labels = Tensor(np.array([1, 0, 0]))
    assert metrics.precision(scores, labels) == 0.5 and metrics.recall(scores, labels) == 1.0
    assert metrics.f1_score(scores, labels) == pytest.approx(2 / 3)
    assert metrics.fbeta_score(scores, labels, beta=0) == 0.5
    assert metrics.roc_auc(scores, labels) == 1.0
    from gpunn.train.history import resolve_mode

    down = {
        "mae", "mse", "rmse", "mape", "mean_absolute_error", "mean_squared_error", "log_loss",
        "perplexity", "brier", "calibration_error", "interval_width", "wer", "cer",
    }  # fmt: skip
    for name in (*metrics.METRICS, "f0.5", "top_3_accuracy", "pinball_0.9", "accuracy_loss"):
        lower = name in down or name.startswith("pinball") or name == "accuracy_loss"
        if name != "confusion_matrix":
            assert resolve_mode(f"validation_{name}") == ("min" if lower else "max"), name


def test_nan_infinity_and_labels_of_no_class():
    scores = np.float64([[np.nan, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert metrics.accuracy(scores, [0, 0, 2]) == pytest.approx(2 / 3)
    assert metrics.accuracy(np.full(2, np.nan), [0, 1]) == 0.0
    assert metrics.confusion_matrix(scores, [0, 0, 2]).tolist() == [[1, 0, 0], [0] * 3, [0, 0, 1]]
    # Equal infinities are one threshold.
    ends, labels = np.array([np.inf, np.inf, 0, 1, -np.inf, -np.inf]), [1, 0, 0, 1, 0, 1]
    finite = ends.clip(-9, 9)
    expected = oracle.average_precision_score(labels, finite)
    assert metrics.average_precision(ends, labels) == pytest.approx(expected)
    for ours, theirs in zip(
        metrics.roc_curve(ends, labels)[:2],
        oracle.roc_curve(labels, finite, drop_intermediate=False),
        strict=False,
    ):
        np.testing.assert_allclose(ours, theirs)
    # Probabilities of class 1 too small for a difference from 1 to tell apart.
    small = np.array([1e-20, 1e-25, 1e-30, 0.3])
    both = np.stack([1 - small, small], axis=1)
    assert metrics.roc_auc(both, [1, 0, 0, 1], from_logits=False) == 1.0
    assert metrics.top_k_accuracy(np.zeros((3, 2)), [0, 1, 5], k=2) == pytest.approx(2 / 3)
    for kind in (BrierScore, CalibrationError):
        metric = kind()
        metric.update(np.zeros((3, 2)), np.array([0, 1, 5]))
        assert math.isnan(metric.compute())


def test_empty_batches_and_nothing_but_ignored():
    scores, labels = np.eye(4, 3), np.array([0, 1, 2, 0])
    several = np.eye(4, 3)
    for average in ("macro", "micro", None):
        metric = FBeta(1, average, ignore_index=-1)
        metric.update(scores, np.full(4, -1))
        assert np.isnan(metric.compute()).all()
        metric = FBeta(1, average, ignore_index=-1, multilabel=True)
        metric.update(scores, np.full((4, 3), -1))
        assert np.isnan(metric.compute()).all()
    for metric in (FBeta(1, multilabel=True), MultilabelAccuracy(), MultilabelAccuracy("jaccard")):
        metric.update(scores[:0], several[:0])
        metric.update(scores, several)
        assert metric.compute() == 1.0
    places = np.array([[[-1.0], [2.0]]])  # one score at each place of a sequence
    assert metrics.accuracy(places, places > 0) == 1.0
    with pytest.raises(ValueError, match=r"on axis 1 the target must be \(2, 3, 4\)"):
        Accuracy(class_axis=1).update(np.zeros((2, 5, 3, 4)), np.zeros((2, 4, 3), int))
    with pytest.raises(ValueError, match="there is no axis class_axis=7"):
        Accuracy(class_axis=7).update(np.zeros((2, 5, 3)), labels)


def test_probabilities_taken_for_logits_are_told_in_compiled_steps():
    x = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
    y = np.arange(24) % 3
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    trainer = Trainer(
        model, lambda p, t: (p * p).sum(), optim.SGD(model.parameters(), lr=0.1), ["log_loss"],
        compile=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"use LogLoss\(from_logits=False\)"):
        trainer.fit((x, y), epochs=2, batch_size=8, verbose=False)


def test_integers_are_classes_not_scores():
    predicted, true = np.array([0, 1, 2, 3, 1]), np.array([0, 1, 2, 3, 2])
    expected = oracle.confusion_matrix(true, predicted)
    np.testing.assert_array_equal(metrics.confusion_matrix(predicted, true, classes=4), expected)
    assert metrics.accuracy(predicted, true) == 0.8
    with pytest.raises(ValueError, match="give classes="):
        metrics.confusion_matrix(predicted, true)
    with pytest.raises(ValueError, match="3 samples have a class outside 0 … 1"):
        metrics.f1_score(predicted, true)
