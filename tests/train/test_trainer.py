"""The Trainer against arithmetic done by hand, its promises on seeds, and what it refuses."""

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.autograd.tensor import Tensor
from gpunn.data import DataLoader, TensorDataset
from gpunn.train import Callback, EarlyStopping, History, MeanSquaredError, Trainer, TrainingError


def linear(weight, bias):
    model = nn.Linear(len(weight), 1)
    state = {"weight": np.float32([weight]), "bias": np.float32([bias])}
    model.load_state_dict(state)
    return model


def weights(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def sgd(rate=0.1):
    return lambda parameters: optim.SGD(parameters, lr=rate)


X = np.float32([[1, 2], [3, -1], [0, 1], [2, 2], [-1, 1]])
Y = np.float32([[1], [2], [3], [4], [5]])


def gradient(w, b, x, y):
    error = 2 * (x @ w + b - y[:, 0]) / len(x)
    return x.T @ error, error.sum()


def test_fit_takes_the_steps_of_gradient_descent():
    model = linear([0.5, -0.25], 0.1)
    w, b = np.array([0.5, -0.25]), 0.1
    losses = []
    trainer = Trainer(model, nn.MSELoss(), sgd(), metrics=["mse"])
    history = trainer.fit((X, Y), epochs=3, batch_size=2, shuffle=False, verbose=False)
    for _ in range(3):
        total = 0.0
        for start in (0, 2, 4):  # the last batch has one sample, and counts as one
            x, y = X[start : start + 2].astype(float), Y[start : start + 2].astype(float)
            total += ((x @ w + b - y[:, 0]) ** 2).sum()
            dw, db = gradient(w, b, x, y)
            w, b = w - 0.1 * dw, b - 0.1 * db
        losses.append(total / 5)
    assert np.allclose(weights(model), [*w, b], rtol=1e-5)
    assert np.allclose(history["loss"], losses, rtol=1e-5)
    assert np.allclose(history["mse"], losses, rtol=1e-5)
    assert history["epoch"] == [1, 2, 3] and history["learning_rate"] == [0.1] * 3
    assert trainer.history is history and isinstance(history, History) and trainer.epoch == 3


def test_penalties_enter_the_gradient_and_not_the_reported_loss():
    model = linear([0.5, -0.25], 0.1)
    trainer = Trainer(model, nn.MSELoss(), sgd(), l1=0.3, l2=0.2)
    history = trainer.fit((X, Y), batch_size=5, shuffle=False, verbose=False)
    w, b = np.array([0.5, -0.25]), 0.1
    dw, db = gradient(w, b, X, Y)
    expected = [*(w - 0.1 * (dw + 0.3 * np.sign(w) + 0.4 * w)), b - 0.1 * db]  # no bias penalty
    assert np.allclose(weights(model), expected, rtol=1e-5)
    assert history["loss"][0] == pytest.approx(np.mean((X @ w + b - Y[:, 0]) ** 2), rel=1e-5)


def test_gradient_clipping():
    dw, db = gradient(np.array([0.5, -0.25]), 0.1, X, Y)
    full = np.array([*dw, db])

    def step(**arguments):
        model = linear([0.5, -0.25], 0.1)
        Trainer(model, nn.MSELoss(), sgd(), **arguments).fit((X, Y), batch_size=5, verbose=False)
        return (np.array([0.5, -0.25, 0.1]) - weights(model)) / 0.1

    assert np.allclose(step(), full, rtol=1e-4)
    by_norm = step(gradient_clip_norm=0.5)
    assert np.linalg.norm(by_norm) == pytest.approx(0.5, rel=1e-4)
    assert np.allclose(by_norm / np.linalg.norm(by_norm), full / np.linalg.norm(full), atol=1e-4)
    assert np.allclose(step(gradient_clip_norm=1e6), full, rtol=1e-4)
    assert np.allclose(step(gradient_clip_value=1.0), np.clip(full, -1, 1), rtol=1e-4)
    both = np.clip(full, -1, 1)
    both *= 0.5 / np.linalg.norm(both)
    assert np.allclose(step(gradient_clip_value=1.0, gradient_clip_norm=0.5), both, atol=1e-4)


def classification(seed=0, samples=90, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, samples)
    return (rng.normal(size=(samples, 6)) + 2 * np.eye(classes, 6)[y]).astype(np.float32), y


def classifier(seed, **arguments):
    gpunn.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    return Trainer(
        model,
        nn.CrossEntropyLoss(),
        lambda parameters: optim.AdamW(parameters, lr=0.01),
        metrics=["accuracy"],
        seed=seed,
        **arguments,
    )


def without_time(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_same_seed_same_bits():
    train, validation = classification(0), classification(1)

    def run(seed):
        trainer = classifier(seed)
        history = trainer.fit(train, validation, epochs=4, batch_size=16, verbose=False)
        return weights(trainer.model).tobytes(), without_time(history)

    first = run(7)
    gpunn.manual_seed(999)
    assert run(7) == first
    assert run(8)[0] != first[0]


def test_two_calls_of_fit_equal_one():
    train = classification()
    one, two = classifier(3), classifier(3)
    whole = one.fit(train, epochs=6, batch_size=16, verbose=False)
    parts = [two.fit(train, epochs=n, batch_size=16, verbose=False) for n in (2, 4)]
    assert weights(one.model).tobytes() == weights(two.model).tobytes()
    assert without_time(whole) == without_time([*parts[0], *parts[1]])
    assert parts[1]["epoch"] == [3, 4, 5, 6]


def test_it_learns_and_reports_what_evaluate_gives():
    train, validation = classification(0, 300), classification(1)
    trainer = classifier(1)
    history = trainer.fit(train, validation, epochs=12, batch_size=32, verbose=False)
    measured = trainer.evaluate(validation)
    assert measured["accuracy"] == history["validation_accuracy"][-1] > 0.8
    assert measured["loss"] == history["validation_loss"][-1] < 0.6
    assert history["loss"][-1] < history["loss"][0]
    scores = trainer.predict(validation[0], batch_size=7)
    assert scores.shape == (90, 3) and scores.dtype == np.float32
    assert np.mean(scores.argmax(axis=1) == validation[1]) == measured["accuracy"]


def test_evaluate_does_not_depend_on_the_batches():
    data = classification()
    trainer = classifier(0)
    whole = trainer.evaluate(data, batch_size=90)
    for size in (1, 7, 64):
        assert trainer.evaluate(data, batch_size=size) == pytest.approx(whole, rel=1e-6)


def test_measuring_changes_nothing():
    trainer = classifier(0)
    before = weights(trainer.model).tobytes()
    trainer.model.train()
    data = classification()
    assert np.array_equal(trainer.predict(data[0]), trainer.predict(data[0]))  # no dropout
    trainer.evaluate(data)
    assert weights(trainer.model).tobytes() == before and trainer.model.training
    trainer.model.eval()
    trainer.fit(data, verbose=False)
    assert not trainer.model.training and weights(trainer.model).tobytes() != before


def test_forms_of_data():
    x, y = classification()
    loader = DataLoader((x, y), 90)
    expected = classifier(0).evaluate((x, y))["loss"]
    forms = [
        (Tensor(x), Tensor(y)),
        TensorDataset(x, y),
        loader,
        (batch for batch in [(x[:50], y[:50]), (x[50:], y[50:])]),
        (x.astype(np.float64), y.astype(np.int32)),
        (x.tolist(), y.astype(np.uint8)),
        [(x[i], y[i]) for i in range(90)],
    ]
    for form in forms:
        assert classifier(0).evaluate(form)["loss"] == pytest.approx(expected, rel=1e-5)
    trainer = classifier(0)
    scores = trainer.predict(x)
    for form in (Tensor(x), x.tolist(), TensorDataset(x), TensorDataset(x, y), loader, (x, y)):
        assert np.allclose(trainer.predict(form), scores, atol=1e-6)


def test_regression_targets_of_shape_samples_fit_one_output():
    model = linear([0.5, -0.25], 0.1)
    two = linear([0.5, -0.25], 0.1)
    Trainer(model, nn.MSELoss(), sgd()).fit((X, Y), batch_size=2, shuffle=False, verbose=False)
    flat = Y[:, 0].astype(np.int64)  # and integers are taken for numbers
    Trainer(two, nn.MSELoss(), sgd()).fit((X, flat), batch_size=2, shuffle=False, verbose=False)
    assert np.array_equal(weights(model), weights(two))


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, a, b):
            return self.layer(a + b)

    trainer = Trainer(Two(), nn.MSELoss(), sgd())
    trainer.fit((X, X, Y), batch_size=2, verbose=False)
    expected = trainer.model.layer(Tensor(2 * X)).detach().numpy()
    assert np.allclose(trainer.predict(TensorDataset(X, X, Y)), expected, atol=1e-6)


def test_sum_reduction_is_reported_by_sample():
    data = classification()
    trainer = classifier(0)
    mean = trainer.evaluate(data, 32)["loss"]
    trainer.loss = nn.CrossEntropyLoss(reduction="sum")
    assert trainer.evaluate(data, 32)["loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_data_are_named(value):
    x = X.copy()
    x[3, 1] = value
    trainer = Trainer(linear([0.5, -0.25], 0.1), nn.MSELoss(), sgd())
    with pytest.raises(TrainingError, match=r"(nan|inf) in epoch 1, step 2 of 3; field 0 of the"):
        trainer.fit((x, Y), batch_size=2, shuffle=False, verbose=False)


def test_divergence_names_epoch_step_and_remedies():
    trainer = Trainer(linear([0.5, -0.25], 0.1), nn.MSELoss(), sgd(1e9))
    with (
        np.errstate(all="ignore"),
        pytest.raises(
            TrainingError,
            match=r"epoch 1, step \d of 5; use a smaller learning rate \(it is 1e\+09\)",
        ),
    ):
        trainer.fit((X, Y), batch_size=1, epochs=50, shuffle=False, verbose=False)


def test_divergence_still_restores_the_best_weights():
    class Break(Callback):
        def on_epoch_begin(self, trainer, epoch):
            if epoch == 3:
                trainer.optimizer.param_groups[0]["lr"] = 1e30

    stopping = EarlyStopping("loss")
    model = linear([0.0, 0.0], 0.0)
    trainer = Trainer(model, nn.MSELoss(), sgd(0.01), callbacks=[Break(), stopping])
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="epoch 3"):
        trainer.fit((X, Y), batch_size=1, epochs=9, verbose=False)
    assert np.isfinite(weights(trainer.model)).all() and stopping.best_epoch == 2


def test_measuring_nan_gives_nan():
    trainer = Trainer(linear([np.nan, 0.0], 0.0), nn.MSELoss(), sgd(), metrics=[MeanSquaredError()])
    result = trainer.evaluate((X, Y))
    assert np.isnan(result["loss"]) and np.isnan(result["mse"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2, 3], "run from 1 to 3, .* classes 0 to 2; subtract 1"),
        ([0, 1, 7], "run from 0 to 7, .* has 3 outputs"),
        ([-1, 0, 1], "run from -1 to 1"),
        ([-100, -100, -100], "every label is ignore_index"),
    ],
)
def test_labels_outside_the_classes(labels, words):
    trainer = classifier(0)
    before = weights(trainer.model).tobytes()
    data = (np.zeros((3, 6), np.float32), np.array(labels))
    with pytest.raises(ValueError, match=words):
        trainer.fit(data, verbose=False)
    assert weights(trainer.model).tobytes() == before
    with pytest.raises(ValueError, match=words):
        trainer.evaluate(data)


def test_ignored_labels_are_not_outside():
    trainer = classifier(0)
    assert np.isfinite(trainer.evaluate((np.zeros((3, 6), np.float32), [0, -100, 2]))["loss"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((np.zeros((0, 6)), np.zeros(0, int)), "train: .*no samples"),
        ((np.zeros((3, 6)), np.zeros(4, int)), r"train: .*\[3, 4\] samples"),
        (np.zeros((3, 6)), "train: a batch must be .x, y., got 1 field; give targets"),
        ([], "train: .*no samples"),
        (iter([]), "epoch 1 gave no batches"),
        (iter([(np.zeros((0, 6)), np.zeros(0, int))]), "a batch is empty"),
        (iter([(np.zeros((2, 6)), np.zeros(3, int))]), "different lengths"),
        (iter([np.zeros((2, 6))]), "got ndarray"),
    ],
)
def test_data_refused(data, words):
    with pytest.raises(ValueError, match=words):
        classifier(0).fit(data, verbose=False)


def test_more_refusals():
    trainer = classifier(0)
    with pytest.raises(TypeError, match="train: expected"):
        trainer.fit(3, verbose=False)
    with pytest.raises(ValueError, match="validation: .*samples"):
        trainer.fit(classification(), (np.zeros((2, 6)), np.zeros(3, int)), verbose=False)
    with pytest.raises(ValueError, match="epochs"):
        trainer.fit(classification(), epochs=0)
    with pytest.raises(ValueError, match="batch_size"):
        trainer.fit(classification(), batch_size=0, verbose=False)
    with pytest.raises(ValueError, match="gives its batches only once"):
        x, y = classification()
        trainer.fit(iter([(x, y)]), epochs=2, verbose=False)
    with pytest.raises(ValueError, match="give transform to the DataLoader"):
        trainer.fit(iter([]), transform=lambda fields, rng: fields, verbose=False)
    with pytest.raises(ValueError, match="gave no batches"):
        trainer.evaluate(iter([]))
    with pytest.raises(ValueError, match="predict: .*no samples"):
        trainer.predict(np.zeros((0, 6), np.float32))
    with pytest.raises(ValueError):
        trainer.predict(np.zeros((2, 5), np.float32))  # the layer says what it expects


def test_constructor_refuses():
    model = linear([1.0], 0.0)
    with pytest.raises(TypeError, match="loss must be callable"):
        Trainer(model, "mse", sgd())
    with pytest.raises(ValueError, match="'acc' is not known"):
        Trainer(model, nn.MSELoss(), sgd(), metrics=["acc"])
    with pytest.raises(ValueError, match="same name"):
        Trainer(model, nn.MSELoss(), sgd(), metrics=["mse", "mse"])
    with pytest.raises(TypeError, match="a class: add parentheses"):
        Trainer(model, nn.MSELoss(), sgd(), callbacks=[EarlyStopping])
    for arguments in ({"l1": -1}, {"l2": float("nan")}, {"gradient_clip_norm": 0}):
        with pytest.raises(ValueError, match="must be"):
            Trainer(model, nn.MSELoss(), sgd(), **arguments)
    with pytest.raises(ValueError, match=r"shape \(5, 1\), expected \(\)"):
        Trainer(linear([0.0, 0.0], 0.0), nn.MSELoss("none"), sgd()).fit((X, Y), verbose=False)


def test_transform_only_touches_training():
    def zero(fields, rng):
        return (np.zeros_like(fields[0]), *fields[1:])

    trainer = Trainer(linear([3.0, 3.0], 0.0), nn.MSELoss(), sgd(1e-12))
    history = trainer.fit((X, Y), (X, Y), batch_size=5, transform=zero, verbose=False)
    assert history["loss"][0] == pytest.approx(np.mean(Y**2))
    assert history["validation_loss"][0] == pytest.approx(np.mean((X.sum(1) * 3 - Y[:, 0]) ** 2))


def test_what_is_no_model_loss_or_optimizer_is_named():
    model = nn.Linear(3, 2)
    for bad, match in (
        ((3, nn.MSELoss(), optim.SGD), "model must be an nn.Module, got int"),
        ((nn.Linear, nn.MSELoss(), optim.SGD), "model must be an nn.Module, got the class Linear"),
        ((model, nn.MSELoss, optim.SGD), "loss must be callable, .* got the class MSELoss"),
        ((model, nn.MSELoss(), "adam"), "optimizer must be an optimizer .* got 'adam'"),
    ):
        with pytest.raises(TypeError, match=match):
            Trainer(*bad)
    assert isinstance(Trainer(model, nn.MSELoss(), optim.SGD).optimizer, optim.SGD)
