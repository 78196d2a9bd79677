"""Training on the device "emulator": the same numbers as on the CPU, by our CUDA kernels."""

from __future__ import annotations

import numpy as np
import pytest

import gpunn
from gpunn import io, nn, optim
from gpunn.cli.main import main
from gpunn.data import DataLoader, Normalizer, RandomAffine, TensorDataset
from gpunn.device import probe, to_device
from gpunn.device.emulated import EmulatorArray
from gpunn.optim.clip import add_penalty_gradient_, clip_grad_norm_, clip_grad_value_
from gpunn.train import Trainer, metrics

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)


def classes(samples=96, dtype=np.float32):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, samples)
    return (rng.normal(size=(samples, 6)) + 2 * np.eye(3, 6)[y]).astype(dtype), y


# ---- networks trained side by side ---------------------------------------------------------------


class Classifier:
    """GELU, dropout, label smoothing, clipping by norm and by value, AdamW."""

    def __init__(self, dtype):
        self.model = nn.Sequential(
            nn.Linear(6, 24), nn.GELU(), nn.Dropout(0.2), nn.Linear(24, 12), nn.SiLU(),
            nn.Linear(12, 3),
        )  # fmt: skip
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.x, self.y = classes(dtype=dtype)

    def optimizer(self):
        return optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.1)

    def clip(self):
        clip_grad_value_(self.model.parameters(), 0.2)
        clip_grad_norm_(self.model.parameters(), 0.5)


class Regression:
    """A line through points: squared error, SGD with momentum and weight decay."""

    def __init__(self, dtype):
        self.model, self.loss = nn.Linear(6, 2), nn.MSELoss()
        self.x = classes(dtype=dtype)[0]
        self.y = (self.x @ np.linspace(-1, 1, 12).reshape(6, 2)).astype(dtype)

    def optimizer(self):
        return optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def clip(self):
        pass


class Binary:
    """Two classes from logits: tanh, RMSprop, penalties on the weights."""

    def __init__(self, dtype):
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.loss = nn.BCEWithLogitsLoss()
        self.x, y = classes(dtype=dtype)
        self.y = (y[:, None] > 0).astype(dtype)

    def optimizer(self):
        return optim.RMSprop(self.model.parameters(), lr=1e-3, momentum=0.5)

    def clip(self):
        add_penalty_gradient_(self.model.parameters(), l1=1e-4, l2=1e-3)


def trained(make, device, dtype, steps=12):
    """Losses and weights of a few steps of 32 samples, from one seed."""
    gpunn.manual_seed(1)
    job = make(dtype)
    job.model.to("cpu", dtype).to(device)
    optimizer, losses = job.optimizer(), []
    loader = DataLoader((job.x, job.y), 32, shuffle=True, seed=2, device=device)
    batches = [batch for _ in range(-(-steps // len(loader))) for batch in loader][:steps]
    for x, y in batches:
        optimizer.zero_grad()
        loss = job.loss(job.model(x), y)
        loss.backward()
        job.clip()
        optimizer.step()
        assert loss.device == device
        losses.append(loss.item())
    parameters = list(job.model.parameters())
    assert all(p.device == device and p.grad.device == device for p in parameters)
    return np.array(losses), [p.detach().cpu().numpy() for p in parameters]


# The two differ by the order of their sums, so by roundings: 1e-16 in float64, 6e-8 in float32.
# Over 12 steps that grew to 7e-16 and 5e-7 in the losses; the bounds leave room for other BLAS
# libraries. Any step left out, doubled or out of place would move the losses by 1e-2 and more. Adam
# divides the gradient by its own size, so that rounding decides where a weight goes whose gradient
# is nearly 0: hence the wider bound for weights, a thousandth of one step.
@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_weights"), [(np.float64, 1e-13, 1e-12), (np.float32, 3e-6, 1e-5)]
)
@pytest.mark.parametrize("make", [Classifier, Regression, Binary])
def test_training_agrees_with_the_cpu(make, dtype, of_loss, of_weights):
    losses, weights = trained(make, "emulator", dtype)
    expected, expected_weights = trained(make, "cpu", dtype)
    assert losses[-3:].mean() < losses[:3].mean()  # it learns
    np.testing.assert_allclose(losses, expected, rtol=of_loss, atol=of_loss)
    for one, two in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=of_weights, atol=of_weights)


def test_training_repeats_bit_for_bit():
    one, two = (trained(Classifier, "emulator", np.float32, steps=4) for _ in range(2))
    assert np.array_equal(one[0], two[0])
    assert all(np.array_equal(a, b) for a, b in zip(one[1], two[1], strict=True))


# ---- the Trainer, data, metrics ------------------------------------------------------------------


def fitted(device):
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(weight=gpunn.tensor([1.0, 2.0, 1.0], device="cpu")),
        lambda parameters: optim.AdamW(parameters, lr=0.01),
        metrics=["accuracy", "confusion_matrix"],
        device=device,
        seed=0,
        l2=1e-4,
        gradient_clip_norm=1.0,
        gradient_clip_value=0.5,
    )
    history = trainer.fit(classes(), classes(40), epochs=2, batch_size=32, verbose=False)
    return trainer, history


def test_fit_evaluate_and_predict():
    (host, expected), (trainer, history) = fitted("cpu"), fitted("emulator")
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-5)
    assert history["accuracy"] == expected["accuracy"]
    assert all(p.device == "emulator" for p in trainer.model.parameters())
    x = classes(20)[0]
    found = trainer.predict(x)
    assert type(found) is np.ndarray
    np.testing.assert_allclose(found, host.predict(x), atol=1e-4)
    measured = trainer.evaluate(classes(40))
    assert measured["loss"] == pytest.approx(host.evaluate(classes(40))["loss"], rel=1e-5)
    assert type(measured["confusion_matrix"]) is np.ndarray


def test_a_loss_that_is_no_number_ends_the_training():
    trainer = Trainer(nn.Linear(6, 3), nn.CrossEntropyLoss(), optim.SGD, device="emulator")
    x, y = classes(32)
    x[3, 2] = np.nan
    with pytest.raises(gpunn.train.TrainingError, match="field 0 .*holds NaN"):
        trainer.fit((x, y), verbose=False)


def test_data_and_metrics_stay_where_they_are():
    x, y = classes(50)
    host = DataLoader((x, y), 16, shuffle=True, seed=3)
    moved = DataLoader((x, y), 16, shuffle=True, seed=3, device="emulator")
    resident = DataLoader(TensorDataset(x, y).to("emulator"), 16, shuffle=True, seed=3)
    for here, *there in zip(host, moved, resident, strict=True):
        for batch in there:
            for one, two in zip(here, batch, strict=True):
                assert two.device == "emulator" and np.array_equal(one.numpy(), two.numpy())
    images = np.random.default_rng(0).random((9, 64), np.float32)
    there = to_device(images, "emulator")
    turned = RandomAffine((8, 8)).images(there, np.random.default_rng(1))
    scaled = Normalizer().fit(there).transform(there)
    assert type(turned) is EmulatorArray and type(scaled) is EmulatorArray
    expected = RandomAffine((8, 8)).images(images, np.random.default_rng(1))
    np.testing.assert_array_equal(turned.get(), expected)
    scores, labels = np.random.default_rng(0).random((50, 4)), y % 4
    for name in ("accuracy", "top_k_accuracy", "confusion_matrix"):
        function = getattr(metrics, name)
        found = function(to_device(scores, "emulator"), to_device(labels, "emulator"))
        assert not isinstance(found, EmulatorArray)
        np.testing.assert_array_equal(found, function(scores, labels))
    found = metrics.r2_score(to_device(scores, "emulator"), to_device(scores[::-1], "emulator"))
    assert found == pytest.approx(metrics.r2_score(scores, scores[::-1]))


# ---- models, files, the command ------------------------------------------------------------------


def test_a_model_moves_with_its_optimizer_and_its_state(tmp_path):
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    x, y = classes(16)

    def step(device):
        optimizer.zero_grad()
        inputs, target = gpunn.tensor(x, device=device), gpunn.tensor(y, device=device)
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()

    step("cpu")
    model.to("emulator")
    step("emulator")  # the optimizer follows
    assert all(p.device == "emulator" for p in model.parameters())
    state = optimizer.state_dict()
    assert all(type(state["state"][0][name]) is np.ndarray for name in ("exp_avg", "exp_avg_sq"))
    io.save(model, tmp_path / "model.safetensors")
    for device in ("emulator", "cpu"):
        other = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to(device)
        other.load_state_dict(io.load(tmp_path / "model.safetensors", device))
        follower = optim.Adam(other.parameters(), lr=0.5)
        follower.load_state_dict(state)
        assert follower.param_groups[0]["lr"] == 0.01
        for one, two in zip(other.parameters(), model.parameters(), strict=True):
            assert one.device == device
            assert np.array_equal(one.detach().numpy(), two.detach().numpy())
        entries = follower.state[next(iter(other.parameters()))]
        assert entries["exp_avg"].device == device and entries["step"] == 2
    other.load_state_dict(model.state_dict())  # from another device
    assert next(other.parameters()).device == "cpu"
    model.cpu()
    step("cpu")


def test_the_command_trains_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    run = str(tmp_path / "run")
    small = ["--limit", "100", "--epochs", "2", "--hidden", "32", "--output", run]
    assert main(["train", "digits", "--device", "emulator", *small]) == 0
    text = capsys.readouterr().out
    assert "on emulator" in text and "test accuracy" in text
    for command in (["evaluate", run], ["predict", run, "digits-test"]):
        assert main([*command, "--device", "emulator"]) == 0
        there = capsys.readouterr().out
        assert main([*command, "--device", "cpu"]) == 0
        accuracy = [line for line in there.splitlines() if line.startswith("accuracy")]
        assert accuracy and accuracy[0] in capsys.readouterr().out


def test_the_doctor_checks_kernels_on_the_emulator(capsys, monkeypatch):
    table = gpunn.kernels.table()
    few = {name: table[name] for name in ("clip_by_value", "softmax_forward")}
    monkeypatch.setattr(gpunn.kernels, "table", lambda: few)
    assert main(["doctor", "--device", "emulator"]) == 0
    text = capsys.readouterr().out
    assert "for the emulator" in text and "device used: emulator" in text
    assert "2 of 2 passed on emulator" in text
