"""The pictures of training: what they draw is what they were given."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn import metrics

import gpunn
from gpunn import nn
from gpunn.train import History, plots
from gpunn.train.plots import scores
from gpunn.train.plots.images import as_images

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 90)
SCORES = np.round(RNG.standard_normal((90, 3)) + 1.5 * np.eye(3)[LABELS], 1)  # with ties
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)


def overfitted():
    epochs = np.arange(1, 21)
    return History(
        [
            {"epoch": int(e), "loss": 3 * 0.6**e, "validation_loss": 1 + 0.1 * abs(e - 8.0),
             "accuracy": 1 - 0.5**e, "validation_accuracy": 0.9}
            for e in epochs
        ]
    )  # fmt: skip


def test_learning_curves_show_the_gap():
    history = overfitted()
    gap = plots.overfitting_gap(history)
    assert (gap.epoch, gap.metric) == (8, "loss")
    assert gap.at_best == pytest.approx(1 - 3 * 0.6**8)
    assert gap.at_end == pytest.approx(2.2 - 3 * 0.6**20)
    accuracy = plots.overfitting_gap(history, "accuracy")  # larger is better: the sign turns
    assert accuracy.at_end == pytest.approx(1 - 0.5**20 - 0.9)
    figure = history.plot()
    loss, right = figure.axes
    assert loss.get_yscale() == "log" and right.get_yscale() == "linear"
    assert len(loss.collections) == 1  # the shade
    assert "gap +0.95 at epoch 8, +2.2 at the end" in [t.get_text() for t in loss.texts]
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss")
    assert plots.overfitting_gap(History([{"epoch": 1, "loss": 1.0}])) is None
    broken = {"epoch": 3, "loss": 1.0, "validation_loss": float("nan")}
    assert plots.overfitting_gap(History([broken])) is None
    gap = plots.overfitting_gap(
        History(
            [{"epoch": 1, "loss": 1.0, "validation_loss": 1.5}, {"epoch": 2, "loss": 0.5}, broken]
        )
    )
    assert (gap.epoch, gap.at_best, gap.at_end) == (1, 0.5, 0.5)


def test_smoothed_curves(tmp_path):
    values = [1.0, 3.0, np.nan, 2.0]
    # weights 0.25, 0.5, 1 of the values seen so far
    expected = [1.0, (0.5 * 1 + 3) / 1.5, (0.5 * 1 + 3) / 1.5, (0.25 * 1 + 0.5 * 3 + 2) / 1.75]
    np.testing.assert_allclose(plots.smoothed(values, 0.5), expected)
    np.testing.assert_array_equal(plots.smoothed([4.0, 2.0], 0.0), [4.0, 2.0])
    figure = plots.plot_batches({"a": gpunn.tensor([1.0, 3.0]), "b": [2.0, 2.0]}, 0.5)
    raw, line = figure.axes[0].lines[:2]
    assert raw.get_ydata().tolist() == [1.0, 3.0]
    np.testing.assert_allclose(line.get_ydata(), [1.0, 3.5 / 1.5])
    with pytest.raises(ValueError, match="smoothing is 1"):
        plots.smoothed([1.0], 1.0)
    with pytest.raises(ValueError, match="no value"):
        plots.plot_batches([])
    for suffix, head in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        plots.plot_batches([1.0, 0.5], path=tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").read_bytes().startswith(head)
    assert len(list(tmp_path.iterdir())) == 3


def test_filters_are_the_weights():
    convolution = nn.Conv2d(1, 4, 3, bias=False)
    weight = convolution.weight.detach().numpy()[:, 0]
    figure = plots.plot_filters(nn.Sequential(nn.Identity(), convolution))
    order = np.argsort(-np.linalg.norm(weight.reshape(4, 9), axis=1), kind="stable")
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(np.array(drawn), weight[order])
    largest = np.abs(weight).max()
    assert figure.axes[0].images[0].get_clim() == (-largest, largest)

    dense = nn.Linear(12, 5)
    figure = plots.plot_filters(dense, (3, 4), limit=2)
    shown = [axes for axes in figure.axes if axes.images]
    rows = dense.weight.detach().numpy()
    first = rows[np.linalg.norm(rows, axis=1).argmax()].reshape(3, 4)
    np.testing.assert_array_equal(np.asarray(shown[0].images[0].get_array()), first)
    assert "2 of 5" in figure.get_suptitle()
    colour = plots.plot_filters(nn.Conv2d(3, 2, 5)).axes[0].images[0].get_array()
    assert colour.shape == (5, 5, 3) and colour.min() >= 0 and colour.max() <= 1
    many = plots.plot_filters(nn.Conv2d(2, 2, 3)).axes[0].images[0].get_array()
    assert many.shape == (3, 6)  # both input channels side by side
    assert plots.plot_filters(nn.Conv1d(6, 2, 3)).axes[0].images[0].get_array().shape == (6, 3)
    with pytest.raises(ValueError, match="needs shape="):
        plots.plot_filters(dense)
    with pytest.raises(ValueError, match="does not have the layer's 12 inputs"):
        plots.plot_filters(dense, (5, 5))
    with pytest.raises(ValueError, match="no layer with a weight"):
        plots.plot_filters(nn.ReLU())


def test_embedding_by_principal_components():
    vectors = RNG.standard_normal((60, 5)) * [4, 2, 1, 0.5, 0.1]
    points, shares = plots.principal_components(vectors, 3)
    covariance = np.cov(vectors.T)
    eigenvalues = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(shares, (eigenvalues / eigenvalues.sum())[:3])
    np.testing.assert_allclose(points.var(axis=0, ddof=1), eigenvalues[:3])
    labels = np.repeat([0, 1, 2], 20)
    figure = plots.plot_embedding(vectors, labels, names=["a", "b", "c"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.collections[1].get_offsets(), points[20:40, :2])
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]
    assert f"({shares[0]:.0%} of the variance)" in axes.get_xlabel()
    figure = plots.plot_embedding(vectors[:20], method="tsne", words=list("abcdefghijklmnopqrst"))
    assert len(figure.axes[0].texts) == 20 and "no unit" in figure.axes[0].get_xlabel()
    with pytest.raises(ValueError, match="3 names for 2 classes|2 names for 3 classes"):
        plots.plot_embedding(vectors, labels, names=["a", "b"])
    with pytest.raises(ValueError, match="method must be"):
        plots.plot_embedding(vectors, method="umap")
    with pytest.raises(ValueError, match="labels have shape"):
        plots.plot_embedding(vectors, labels[:5])


def test_misclassified_worst_first():
    images = np.arange(5 * 4, dtype=np.float32).reshape(5, 4)
    labels, predictions = np.array([0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 0])
    sure = np.array([0.9, 0.6, 0.8, 0.95, 0.7])
    figure = plots.plot_misclassified(images, labels, predictions, sure, shape=(2, 2), limit=2,
                                      names=["cat", "dog"])  # fmt: skip
    assert figure.get_suptitle() == "3 of 5 misclassified, the worst 2"
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["taken for dog (95%)", "taken for cat (70%)"]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), images[3].reshape(2, 2))
    assert "is cat" in shown[0].get_xlabel() and "#3" in shown[0].get_xlabel()
    two = np.stack([1 - sure, sure], axis=1)
    order, confidence = scores.worst_first(labels, predictions, two)
    np.testing.assert_allclose(confidence, two[np.arange(5), predictions])
    assert order.tolist() == [3, 1, 4]
    figure = plots.plot_misclassified(images, labels, labels, shape=(2, 2))
    assert figure.get_suptitle() == "0 of 5 misclassified"
    assert as_images(np.zeros((2, 3, 5, 6))).shape == (2, 5, 6, 3)
    assert as_images(np.zeros((2, 5, 6, 1))).shape == (2, 5, 6)
    with pytest.raises(ValueError, match="pass shape="):
        plots.plot_misclassified(images, labels, predictions)
    with pytest.raises(ValueError, match="probabilities have shape"):
        plots.plot_misclassified(images, labels, predictions, sure[:3], shape=(2, 2))


def test_roc_and_precision_recall_agree_with_scikit_learn():
    roc = plots.plot_roc(SCORES, LABELS, ["a", "b", "c"]).axes[0].lines
    precision_recall = plots.plot_precision_recall(SCORES, LABELS).axes[0].lines
    for number, name in enumerate("abc"):
        score, positive = SCORES[:, number], LABELS == number
        expected = metrics.roc_curve(positive, score, drop_intermediate=False)
        np.testing.assert_allclose(roc[number].get_xdata(), expected[0])
        np.testing.assert_allclose(roc[number].get_ydata(), expected[1])
        area = metrics.roc_auc_score(positive, score)
        assert roc[number].get_label() == f"{name}: area {area:.3f}"
        precision, recall, _ = metrics.precision_recall_curve(positive, score)
        np.testing.assert_allclose(precision_recall[number].get_xdata(), recall)
        np.testing.assert_allclose(precision_recall[number].get_ydata(), precision)
        average = metrics.average_precision_score(positive, score)
        assert precision_recall[number].get_label() == f"{number}: average {average:.3f}"
    figure = plots.plot_precision_recall(SCORES[:, 1], LABELS == 1)
    assert len(figure.axes[0].lines) == 1
    with pytest.raises(ValueError, match="samples of the class and samples of the others"):
        plots.plot_roc([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="NaN"):
        plots.plot_roc([0.1, np.nan], [0, 1])


def test_calibration_and_class_figures():
    found = scores.calibration(PROBABILITIES, LABELS, bins=5)
    sure, right = PROBABILITIES.max(axis=1), PROBABILITIES.argmax(axis=1) == LABELS
    error = 0.0
    for low in np.arange(5) / 5:
        mine = (sure >= low) & (sure < low + 0.2)
        if mine.any():
            error += mine.sum() / 90 * abs(sure[mine].mean() - right[mine].mean())
    assert found.error == pytest.approx(error) and found.counts.sum() == 90
    figure = plots.plot_calibration(PROBABILITIES, LABELS, 5)
    assert f"error {error:.3f}" in figure.axes[0].get_title()
    with pytest.raises(ValueError, match="between 0 and 1"):
        plots.plot_calibration([0.5, 1.5], [0, 1])
    matrix = metrics.confusion_matrix(LABELS, SCORES.argmax(axis=1))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        LABELS, SCORES.argmax(axis=1)
    )
    for number, row in enumerate(scores.class_report(matrix)):
        expected = precision[number], recall[number], f1[number], support[number]
        assert tuple(row.values()) == pytest.approx(expected)
    low, high = scores.wilson_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # the interval of the literature


def test_histograms_of_layers():
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = gpunn.tensor(RNG.standard_normal((16, 4)).astype(np.float32))
    outputs = plots.layer_outputs(model, x)
    assert {name: value.shape for name, value in outputs.items()} == {
        "0": (16, 8), "1": (16, 8), "2": (16, 2)}  # fmt: skip
    np.testing.assert_array_equal(outputs["1"], np.maximum(outputs["0"], 0))
    figure = plots.plot_histograms(outputs, "activations", bins=10)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    np.testing.assert_array_equal(heights, np.histogram(outputs["0"], 10)[0])
    zero = np.mean(outputs["1"] == 0)
    assert f"{zero:.0%} zero" in figure.axes[1].get_xlabel()
    with pytest.raises(ValueError, match="after a backward pass"):
        plots.plot_histograms(model, "gradients")
    model(x).sum().backward()
    assert len(plots.plot_histograms(model, "gradients").axes) >= 4
    figure = plots.plot_histograms({"w": np.array([1.0, np.nan, np.inf])})
    assert "2 not finite" in figure.axes[0].get_xlabel()


def test_regression_forecast_and_attention(tmp_path):
    true, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[1.5], [2.0], [2.5], [5.0]])
    figure = plots.plot_regression(true, predicted, unit="m")
    error = predicted[:, 0] - true
    r2 = metrics.r2_score(true, predicted[:, 0])
    assert f"R² {r2:.3f}, mean absolute error {np.abs(error).mean():.3g} m" in figure.get_suptitle()
    offsets = figure.axes[1].collections[0].get_offsets()
    np.testing.assert_allclose(offsets[:, 1], error)
    assert figure.axes[0].get_xlabel() == "true, m"
    with pytest.raises(ValueError, match="predicted has shape"):
        plots.plot_regression(true, predicted[:2])

    times = np.arange(10)
    figure = plots.plot_forecast(times, times * 1.0, times[6:], times[6:] + 0.5,
                                 times[6:] - [0.1, -0.1, 0.1, 0.1], times[6:] + 1.0)  # fmt: skip
    assert "90 % interval, holds 3 of 4" in [
        text.get_text() for text in figure.axes[0].get_legend().get_texts()
    ]
    with pytest.raises(ValueError, match="both low and high"):
        plots.plot_forecast(times, times, times, times, low=times)

    weights = RNG.random((2, 3, 3))
    figure = plots.plot_attention(weights, list("abc"))
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), weights[1])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    plots.plot_attention(weights[0], ["$$", "$^$", "$"], path=tmp_path / "x.svg")  # no formulas
    assert "$^$" in (tmp_path / "x.svg").read_text("utf-8")
    with pytest.raises(ValueError, match="2 queries"):
        plots.plot_attention(weights, ["a", "b"])


def test_words():
    words = [["so", "$bad$"], ["x" * 60, "y" * 60]]
    figure = plots.plot_word_weights(words, [[0, 2], [1, 1]], ["said", "said"])
    texts = {text.get_text(): text for text in figure.axes[0].texts if text.get_text() != "said"}
    grounds = [text.get_bbox_patch().get_alpha() for text in texts.values()]
    assert [*texts] == ["so", r"\$bad\$", *words[1]] and grounds == [0, 0.75, 0.75, 0.75]
    first, second = (texts[word].get_position() for word in words[1])
    assert second[0] == first[0] and second[1] > first[1]  # in a line further down
    with pytest.raises(ValueError, match="for 2 words"):
        plots.plot_word_weights([["a", "b"]], [[1.0]])
    with pytest.raises(ValueError, match="0 or more"):
        plots.plot_word_weights([["a", "b"]], [[1.0, np.nan]])
    with pytest.raises(ValueError, match="1 texts, 2 weights"):
        plots.plot_word_weights([["a"]], [[1], [2]])

    weights = np.array([[1.0, 0.0], [3.0, 1.0], [2.0, 5.0]])
    figure = plots.plot_top_words(["a", "b", "c"], weights, ["no", "yes"], count=2)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert [label.get_text() for label in panels["no"].get_yticklabels()] == ["c", "b"]
    assert [bar.get_width() for bar in panels["yes"].patches] == [1, 5]
    with pytest.raises(ValueError, match="2 words"):
        plots.plot_top_words(["a", "b"], weights)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.plot_regression([1.0, 2.0], [1.0, 2.0])
