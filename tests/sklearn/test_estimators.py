"""The estimators as people use them: in pipelines, with weights, against scikit-learn's own."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import sklearn.neural_network as peers
from joblib import parallel_config
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpunn
from gpunn import models, nn, optim
from gpunn.sklearn import MLPClassifier, MLPRegressor, NeuralClassifier, NeuralRegressor
from gpunn.train import EarlyStopping

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def small():
    """90 samples of three classes that a network learns in a moment."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return rng.normal(size=(90, 4)) + 3 * np.eye(3, 4)[y], y


# ---- against scikit-learn ------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_digits, load_breast_cancer], ids=["digits", "cancer"])
def test_as_accurate_as_scikit_learn(load):
    x, y = load(return_X_y=True)
    parts = train_test_split(StandardScaler().fit_transform(x), y, random_state=0, stratify=y)
    scores = [
        kind((32,), max_iter=30, learning_rate_init=0.01, random_state=0)
        .fit(*parts[::2])
        .score(*parts[1::2])
        for kind in (MLPClassifier, peers.MLPClassifier)
    ]
    assert scores[0] > 0.95 and scores[0] > scores[1] - 0.015


def test_regression_as_good_as_scikit_learn():
    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    parts = train_test_split(x * 20, y, random_state=0)
    scores = [
        kind(hidden_layer_sizes=(16,), max_iter=60, learning_rate_init=0.01, random_state=0)
        .fit(*parts[::2])
        .score(*parts[1::2])
        for kind in (MLPRegressor, peers.MLPRegressor)
    ]
    assert scores[0] > 0.25 and scores[0] > scores[1] - 0.06


def test_one_step_is_scikit_learns(small):
    """From the same weights a step of SGD leads to the same weights, penalty included."""
    x, y = small
    options = {"hidden_layer_sizes": (5,), "solver": "sgd", "alpha": 3.0, "activation": "tanh"}
    theirs = peers.MLPClassifier(**options, random_state=0)
    theirs.partial_fit(x, y, classes=[0, 1, 2])
    ours = MLPClassifier(**options, random_state=1).partial_fit(x, y, classes=[0, 1, 2])
    for linear, weight, bias in zip(
        (p for p in ours.module_ if isinstance(p, nn.Linear)), theirs.coefs_, theirs.intercepts_,
        strict=True,
    ):  # fmt: skip
        linear.load_state_dict({"weight": weight.T, "bias": 0 * bias})
    theirs.intercepts_[0][:] = theirs.intercepts_[1][:] = 0  # whose penalty only we have
    for optimizer in (theirs._optimizer,):
        optimizer.velocities = [0 * velocity for velocity in optimizer.velocities]
    ours._optimizer = ours._trainer = None
    theirs.partial_fit(x, y)
    ours.partial_fit(x, y)
    for got, want in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_,
                         strict=True):  # fmt: skip
        np.testing.assert_allclose(got, want, atol=2e-6)
    assert ours.loss_curve_[-1] < ours.loss_curve_[0]


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_a_weight_is_a_repetition(small, kind):
    x, y = small
    weights = np.arange(90) % 4
    if kind == "numbers":
        y, make = x @ np.ones((4, 2)), MLPRegressor
    else:
        y, make = (y if kind == "classes" else np.eye(3, dtype=int)[y]), MLPClassifier
    model = make(hidden_layer_sizes=(8,), max_iter=25, random_state=0, batch_size=200)
    with_weights = clone(model).fit(x, y, 0.5 * weights)
    repeated = clone(model).fit(x.repeat(weights, 0), y.repeat(weights, 0))
    np.testing.assert_allclose(
        with_weights.coefs_[0], clone(model).set_params(alpha=1e-4).fit(x, y, weights).coefs_[0],
        atol=1e-4,
    )  # fmt: skip
    again = clone(model).fit(x, y, weights)
    for got, want in zip(again.coefs_, repeated.coefs_, strict=True):
        np.testing.assert_array_equal(got, want)
    ignored = clone(model).fit(x, y)
    assert not np.array_equal(ignored.coefs_[0], again.coefs_[0])


def test_weights_in_small_batches(small):
    """Of contradicting samples the heavier ones win, also one sample at a time."""
    x = np.zeros((40, 1))
    y = np.array(["no", "yes"] * 20)
    weights = np.where(y == "yes", 9.0, 1.0)
    model = MLPClassifier((), max_iter=60, batch_size=1, learning_rate_init=0.05, random_state=0)
    found = model.fit(x, y, weights).predict_proba([[0.0]])[0]
    np.testing.assert_allclose(found, [0.1, 0.9], atol=0.06)
    balanced = clone(model).set_params(class_weight={"yes": 1, "no": 9}).fit(x, y)
    np.testing.assert_allclose(balanced.predict_proba([[0.0]])[0], [0.9, 0.1], atol=0.06)


def test_class_weight_balanced(small):
    x, y = np.zeros((40, 2)), np.arange(40) < 30
    model = MLPClassifier((), class_weight="balanced", learning_rate_init=0.02).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x[:1]), [[0.5, 0.5]], atol=0.04)
    with pytest.raises(ValueError, match="balanced"):
        model.partial_fit(x, y)


# ---- in scikit-learn's tools ---------------------------------------------------------------------


def test_pipeline_search_and_validation(small):
    x, y = small
    names = np.array(["ant", "bee", "cat"])[y]
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=40, random_state=0))
    search = GridSearchCV(pipeline, {"mlpclassifier__learning_rate_init": [1e-5, 0.03]}, cv=3)
    search.fit(x, names)
    assert search.best_params_ == {"mlpclassifier__learning_rate_init": 0.03}
    assert search.score(x, names) > 0.9 and set(search.predict(x)) == set(names)
    general = NeuralClassifier(module__hidden=(8,), lr=0.03, random_state=0)
    assert cross_val_score(general, x, names, cv=3).min() > 0.85
    search = GridSearchCV(general, {"module__hidden": [(2,), (8, 8)], "optimizer": ["sgd"]}, cv=2)
    assert search.fit(x, y).best_params_["module__hidden"] in [(2,), (8, 8)]


def test_labels_and_numbers(small):
    x, y = small
    labels = np.stack([y == 0, y < 2], axis=1).astype(int)
    model = MLPClassifier((8,), learning_rate_init=0.03, random_state=0, max_iter=60)
    model.fit(x, labels)
    assert model.predict(x).shape == (90, 2) and (model.predict(x) == labels).mean() > 0.9
    p = model.predict_proba(x)
    np.testing.assert_allclose(model.predict_log_proba(x), np.log(p), atol=1e-5)
    assert ((p > 0.5) == model.predict(x)).all()
    target = x @ [[1.0, 2], [0, -1], [1, 0], [0.5, 0]]
    model = MLPRegressor(learning_rate_init=0.01, random_state=0).fit(x, target)
    assert model.predict(x).shape == (90, 2) and r2_score(target, model.predict(x)) > 0.95
    with pytest.raises(ValueError, match="MultiOutputClassifier"):
        MLPClassifier().fit(x, np.stack([y, y], 1))


def test_sparse_in_small_batches(small):
    x, y = small
    x = np.where(np.abs(x) > 1, x, 0)
    model = NeuralClassifier(batch_size=16, random_state=0, lr=0.01, validation_fraction=0.2)
    full, sparse = clone(model).fit(x, y), clone(model).fit(scipy.sparse.csc_array(x), y)
    p = full.predict_proba(x)
    np.testing.assert_allclose(sparse.predict_proba(scipy.sparse.csr_array(x)), p, atol=1e-6)


# ---- training again, stopping --------------------------------------------------------------------


def test_partial_fit_goes_on(small):
    """Three calls, one of them after a pickle, are what they are without it."""
    x, y = small
    model = MLPClassifier((8,), random_state=0, batch_size=30)
    with pytest.raises(ValueError, match="classes must be passed"):
        clone(model).partial_fit(x, y)
    one = clone(model).partial_fit(x[:60], y[:60], classes=[0, 1, 2])
    other = pickle.loads(pickle.dumps(one))
    for estimator in (one, other):
        estimator.partial_fit(x[60:], y[60:]).partial_fit(x, y, np.arange(90) + 1.0)
    np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])
    assert len(one.loss_curve_) == 3 and one.n_iter_ == 1
    with pytest.raises(ValueError, match="not in `self.classes_`"):
        one.partial_fit(x, y + 1)
    with pytest.raises(ValueError, match="early_stopping"):
        MLPClassifier(early_stopping=True).partial_fit(x, y, classes=[0, 1, 2])


def test_stopping_and_rates(small):
    x, y = small
    still = MLPRegressor((4,), solver="sgd", tol=10.0, n_iter_no_change=3, random_state=0)
    assert still.set_params(hidden_layer_sizes=(4,), loss="huber").fit(x, y).n_iter_ == 5
    early = MLPClassifier((8,), early_stopping=True, n_iter_no_change=4, learning_rate_init=0.05,
                          random_state=0, max_iter=100).fit(x, y)  # fmt: skip
    assert early.n_iter_ == len(early.validation_scores_) < 100
    assert early.best_validation_score_ == max(early.validation_scores_)
    slow = MLPClassifier((4,), solver="sgd", learning_rate="invscaling", max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        slow.fit(x, y)
    (group,) = slow._optimizer.param_groups
    assert group["lr"] == pytest.approx(0.001 / (2 * 90 + 1) ** 0.5)
    adaptive = MLPRegressor(hidden_layer_sizes=(4,), solver="sgd", learning_rate="adaptive",
                            tol=1e3, n_iter_no_change=1, random_state=0).fit(x, y)  # fmt: skip
    assert adaptive._optimizer.param_groups[0]["lr"] <= 1e-6 < 5e-6 and adaptive.n_iter_ < 40
    before = early.coefs_[0]
    early.set_params(warm_start=True, max_iter=1, learning_rate_init=1e-9).fit(x, y)
    np.testing.assert_allclose(early.coefs_[0], before, atol=1e-7)


def test_class_weights_of_a_part_of_the_classes(small):
    """`partial_fit` need not see every class that has a weight."""
    x, y = small
    model = MLPClassifier((8,), class_weight={0: 2.0, 1: 1.0}, random_state=0, batch_size=90)
    given = clone(model).partial_fit(x[y != 1], y[y != 1], classes=[0, 1, 2])
    by_hand = clone(model).set_params(class_weight=None)
    by_hand.partial_fit(x[y != 1], y[y != 1], 2.0 - (y[y != 1] == 2), classes=[0, 1, 2])
    np.testing.assert_array_equal(given.coefs_[0], by_hand.coefs_[0])


def test_threads_draw_their_own_numbers(small):
    model = MLPClassifier((8,), max_iter=15, dropout=0.3, random_state=0)
    with parallel_config(backend="threading", n_jobs=2):
        found = cross_val_predict(model, *small, cv=4, n_jobs=2, method="predict_proba")
    alone = cross_val_predict(model, *small, cv=4, method="predict_proba")
    np.testing.assert_array_equal(found, alone)


def test_arguments_that_change_after_fit(small, tmp_path):
    """What is fitted stays what it is in copies, pickles and files, and so does its optimizer."""
    x, y = small
    model = MLPClassifier((8,), max_iter=3, random_state=0).fit(x, y)
    p = model.predict_proba(x)
    model.set_params(hidden_layer_sizes=(5,), activation="tanh", solver="sgd")
    model.save(tmp_path / "m.safetensors")
    twice = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model))))
    found = [model, copy.deepcopy(model), twice, MLPClassifier.load(tmp_path / "m.safetensors")]
    for estimator in found:
        np.testing.assert_array_equal(estimator.predict_proba(x), p)
        estimator.partial_fit(x, y)
        np.testing.assert_array_equal(estimator.coefs_[0], model.coefs_[0])
    assert [c.shape[1] for c in found[-1].fit(x, y).coefs_] == [5, 3]


# ---- any module ----------------------------------------------------------------------------------


def test_images_callbacks_and_a_module_of_ones_own(small):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, 1, 8, 8)) + y[:, None, None, None]

    def network(in_channels, n_outputs, width=4):
        return nn.Sequential(
            nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_outputs), nn.LogSoftmax(1),
        )  # fmt: skip

    model = NeuralClassifier(
        network, module__width=6, loss=nn.NLLLoss, optimizer=optim.Adam, lr=0.02, epochs=30,
        batch_size=20, validation_fraction=0.2, callbacks=[EarlyStopping(patience=3)],
        trainer__gradient_clip_norm=1.0, random_state=0,
    )  # fmt: skip
    model.set_params(trainer__metrics=["accuracy"]).fit(x, y, np.ones(60) + y)
    assert 0.5 < model.history_[-1]["validation_accuracy"] <= 1
    assert model.score(x, y) > 0.9 and model.module_[0].out_channels == 6
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1, rtol=1e-5)
    assert {"validation_loss", "loss"} <= set(model.history_[0])
    with pytest.raises(ValueError, match="samples of shape"):
        model.predict(x[..., :7])
    given = models.MLP(4, (5,), 1)
    before = given.state_dict()["0.weight"].numpy().copy()
    NeuralRegressor(given, lr=0.1, random_state=0).fit(small[0], small[1])
    np.testing.assert_array_equal(given.state_dict()["0.weight"].numpy(), before)


def of_tokens(n_outputs):
    return nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, n_outputs))


def test_tokens_and_the_emulator():
    x, y = np.arange(24).reshape(12, 2) % 5, np.arange(12) % 2 * 1.0

    options = {"input_dtype": "int64", "epochs": 2, "random_state": 0, "batch_size": 5}
    host = NeuralRegressor(of_tokens, **options).fit(x, y, y + 1)
    emulated = NeuralRegressor(of_tokens, device="emulator", **options).fit(x, y, y + 1)
    assert emulated.module_[2].weight.device.type == "emulator"
    np.testing.assert_allclose(emulated.predict(x), host.predict(x), rtol=1e-5)
    back = pickle.loads(pickle.dumps(emulated))
    np.testing.assert_array_equal(back.predict(x), emulated.predict(x))


# ---- files and errors ----------------------------------------------------------------------------


def test_save_and_load(small, tmp_path):
    x, y = small
    names = np.array(["ant", "bee", "cat"])[y]
    model = MLPClassifier((8, 3), max_iter=5, random_state=0, class_weight={"ant": 2.0, "bee": 1})
    with pytest.raises(NotFittedError):
        model.save(tmp_path / "m.safetensors")
    model.fit(x, names).save(tmp_path / "m.safetensors")
    back = MLPClassifier.load(tmp_path / "m.safetensors", device="cpu")
    assert back.get_params() == {**model.get_params(), "device": "cpu"}
    np.testing.assert_array_equal(back.predict_proba(x), model.predict_proba(x))
    assert back.predict(x).tolist() == model.predict(x).tolist()
    assert back.loss_curve_ == model.loss_curve_
    for estimator in (model, back):
        estimator.partial_fit(x, names)
    np.testing.assert_array_equal(back.coefs_[1], model.coefs_[1])
    with pytest.raises(ValueError, match="holds a MLPClassifier"):
        MLPRegressor.load(tmp_path / "m.safetensors")
    general = NeuralRegressor(nn.Linear, module__bias=False, random_state=0, epochs=1).fit(x, x)
    general.save(tmp_path / "n.safetensors")
    with pytest.raises(ValueError, match="could not keep module"):
        NeuralRegressor.load(tmp_path / "n.safetensors")
    back = NeuralRegressor.load(tmp_path / "n.safetensors", module=nn.Linear)
    np.testing.assert_array_equal(back.predict(x), general.predict(x))
    assert back.history_ == general.history_
    gpunn.save({"w": np.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no estimator"):
        MLPRegressor.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"solver": "lbfgs"}, "lbfgs"),
        ({"activation": "step"}, "activation is 'step'; expected one of identity"),
        ({"hidden_layer_sizes": (3, 0)}, r"hidden_layer_sizes must be > 0, got \[3, 0\]"),
        ({"alpha": -1}, "alpha is -1; expected a number of at least 0"),
        ({"max_iter": 2.5}, "max_iter is 2.5; expected an integer"),
        ({"dropout": 1}, "below 1"),
        ({"learning_rate_init": 0}, "above 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments(small, change, text):
    with pytest.raises(ValueError, match=text):
        MLPClassifier(**change).fit(*small)


def test_wrong_parts_and_data(small):
    x, y = small
    with pytest.raises(TypeError, match="no argument 'epoch'"):
        NeuralClassifier(epoch=3).fit(x, y)
    with pytest.raises(ValueError, match=r"\(2, 3\): a logit for each class"):
        NeuralClassifier(lambda n_features: nn.Linear(n_features, 5)).fit(x, y)
    with pytest.raises(TypeError, match="optimizer is 3; expected a name or a class"):
        NeuralClassifier(optimizer=3).fit(x, y)
    with pytest.raises(ValueError, match="too large for dtype.'float32'"):
        MLPRegressor().fit(x, y * 1e39)
    with pytest.raises(TypeError, match="module made a int"):
        NeuralClassifier(lambda: 3).fit(x, y)
    broken = NeuralRegressor(loss=lambda p, t: ((p - t) ** 2).mean())
    with pytest.raises(TypeError, match="no `reduction`"):
        broken.fit(x, y, y + 1)
    with pytest.raises(NotFittedError):
        broken.predict(x)
    assert broken.fit(x, y).predict(x).shape == (90,)
    with pytest.raises(ValueError, match="Negative values"):
        MLPClassifier().fit(x, y, y - 1.0)
    with pytest.raises(ValueError, match="4 features as input"):
        MLPRegressor(max_iter=1).fit(x, y).predict(x[:, :3])
    with pytest.raises(ValueError, match="validation set is too small"):
        MLPRegressor(early_stopping=True, validation_fraction=0.01).fit(x, y)


def test_the_global_random_state_stays(small):
    gpunn.manual_seed(7)
    before = gpunn.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MLPClassifier(max_iter=2, dropout=0.2, random_state=0).fit(*small).predict(small[0])
    assert gpunn.get_rng_state() == before
