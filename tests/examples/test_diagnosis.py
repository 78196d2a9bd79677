"""The diagnosis example: honest folds, and figures held to scikit-learn's."""

import re
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, recall_score, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpunn.data import load_breast_cancer
from gpunn.train import find_job
from gpunn.train.run import Run

JOB = find_job("diagnosis")
example = sys.modules[JOB.config.__module__]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis")
    run = Run(JOB, JOB.configure(device="cpu", folds=2, epochs=2, hidden=(4,)), folder, False)
    run.figure = lambda name, draw: None
    JOB.train(run)
    return run, JOB.evaluate(run)


def test_every_case_is_held_out_once():
    _, y = load_breast_cancer()
    for seed in (0, 1):
        folds = example.folds_of(y, JOB.configure(seed=seed))
        assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), range(569))
        for fold in folds:
            assert np.array_equal(np.sort(np.concatenate(fold)), range(569))
            assert abs(y[fold.test].sum() - 212 / 5) < 1 and abs(len(fold.test) - 569 / 5) < 1
            assert abs(y[fold.validation].mean() - y.mean()) < 0.02
    other = example.folds_of(y, JOB.configure(seed=0))[0].test
    assert not np.array_equal(other, folds[0].test)


def test_the_scaling_is_that_of_the_training_cases(trained):
    run, _ = trained
    x, y = load_breast_cancer()
    for number, fold in enumerate(example.folds_of(y, run.config), start=1):
        saved, seen = run.load(f"scaling-{number}"), x[fold.train].astype(np.float64)
        np.testing.assert_allclose(saved["mean"], seen.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(saved["scale"], seen.std(axis=0), rtol=1e-9)


def test_figures_are_those_of_scikit_learn(trained):
    run, outcome = trained
    x, y = load_breast_cancer()
    folds = example.folds_of(y, run.config)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    places = [(np.concatenate(fold[:2]), fold.test) for fold in folds]
    expected = cross_val_score(pipeline, x, y, cv=places, scoring="roc_auc").mean()
    assert outcome.baselines["logistic regression"] == pytest.approx(expected, abs=1e-6)
    p = np.zeros(569)
    for number, fold in enumerate(folds, start=1):
        p[fold.test] = example.network(run, number)(x[fold.test])
    areas = [roc_auc_score(y[fold.test], p[fold.test]) for fold in folds]
    assert outcome.value == pytest.approx(np.mean(areas), abs=1e-9)
    more = outcome.more
    assert more["accuracy, majority class"] == pytest.approx(357 / 569)
    assert more["accuracy, network"] == np.mean((p > 0.5) == y)
    assert more["sensitivity, network"] == pytest.approx(recall_score(y, p > 0.5))
    assert more["specificity, network"] == pytest.approx(recall_score(y, p > 0.5, pos_label=0))
    assert more["Brier score, network"] == pytest.approx(brier_score_loss(y, p), abs=1e-6)


def test_a_prediction_is_the_mean_of_the_networks(trained, tmp_path):
    run, _ = trained
    x, _ = load_breast_cancer()
    lines = [",".join(example.FEATURES), *(",".join(map(str, row.tolist())) for row in x[:3])]
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    rows = list(JOB.predict(run, str(tmp_path / "cases.csv")))
    each = np.stack([example.network(run, number)(x[:3]) for number in (1, 2)])
    np.testing.assert_allclose([row["malignant"] for row in rows], each.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose([row["highest"] for row in rows], each.max(axis=0), rtol=1e-6)
    said = ["malignant" if p > 0.5 else "benign" for p in each.mean(axis=0)]
    assert [row["diagnosis"] for row in rows] == said


def test_a_measurement_that_decides_is_important():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 30)).astype(np.float32)
    y = (x[:, 4] > 0).astype(np.int64)
    harm = example.importance(lambda cases: np.where(cases[:, 4] > 0, 0.9, 0.1), x, y, 0)
    assert np.array_equal(np.flatnonzero(np.abs(harm) > 1e-12), [4])
    # Shuffled, half of the cases are taken for the other: the loss grows by log(9) for each.
    assert harm[4] == pytest.approx(0.5 * np.log(9), abs=0.1)


@pytest.mark.parametrize(
    ("difference", "error", "words"),
    [
        (0.001, 0.001, "cannot be told apart.*[+]0.0010 ± 0.0010"),
        (0.01, 0.001, "The network is better"),
        (-0.01, 0.001, "The network is worse.*-0.0100"),
        (0.0, 0.0, "cannot be told apart"),
    ],
)
def test_the_verdict(difference, error, words):
    assert re.search(words, example.verdict(difference, error))
