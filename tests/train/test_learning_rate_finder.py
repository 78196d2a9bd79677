"""The learning-rate finder: what it finds, and that it leaves no trace."""

import math

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader, TensorDataset
from gpunn.train import Trainer, find_learning_rate

rng = np.random.default_rng(0)
X = rng.standard_normal((64, 6)).astype(np.float32)
Y = (X @ rng.standard_normal((6, 3))).argmax(1)


def make(optimizer=lambda p: optim.SGD(p, lr=0.1), device="cpu", **options):
    gpunn.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )
    return Trainer(model.to(device), nn.CrossEntropyLoss(), optimizer, ["accuracy"], **options)


def fit(trainer, epochs=2):
    history = trainer.fit((X, Y), epochs=epochs, batch_size=16, verbose=False)
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in history]
    return records, [v.to("cpu").numpy().copy() for v in trainer.model.state_dict().values()]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": lambda p: optim.Adam(p, lr=0.01)},
        {"optimizer": lambda p: optim.SGD(p, lr=0.1, momentum=0.9), "precision": "bf16"},
        {"optimizer": lambda p: optim.AdamW(p, lr=0.01), "device": "emulator", "compile": True},
        {"optimizer": lambda p: optim.AdamW(p, lr=0.01), "device": "emulator", "precision": "fp16"},
    ],
    ids=["adam", "bf16", "compiled", "fp16"],
)
@pytest.mark.parametrize("before", [0, 2])
def test_everything_is_put_back(options, before):
    """A run with the finder in between is that without, bit for bit; dropout included."""
    plain, searched = make(**options), make(**options)
    results = []
    for trainer in (plain, searched):
        gpunn.manual_seed(7)
        if before:
            fit(trainer, before)
        if trainer is searched:
            trainer.model.eval()
            found = find_learning_rate(trainer, (X, Y), steps=12, batch_size=16)
            assert len(found.rates) <= 12 and not trainer.model.training
            trainer.model.train()
        results.append(fit(trainer))
    assert results[0][0] == results[1][0]
    for one, other in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_rates_losses_and_suggestion(tmp_path):
    """Least squares with one weight: the loss after each step is known in closed form."""
    x, y = np.ones((8, 1), np.float32), np.full((8, 1), 3.0, np.float32)
    model = nn.Linear(1, 1, bias=False)
    model.weight.data = np.float32([[0.0]])
    trainer = Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.5))
    found = find_learning_rate(
        trainer, (x, y), minimum=1e-4, maximum=10, steps=40, batch_size=8, smoothing=0.5
    )
    rates = np.geomspace(1e-4, 10, 40)[: len(found.rates)]
    np.testing.assert_allclose(found.rates, rates)
    weight, mean, losses, smoothed = 0.0, 0.0, [], []
    for number, rate in enumerate(rates, start=1):
        losses.append((weight - 3) ** 2)
        mean = 0.5 * mean + 0.5 * losses[-1]
        smoothed.append(mean / (1 - 0.5**number))
        weight -= rate * 2 * (weight - 3)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.smoothed, smoothed, rtol=1e-4, atol=1e-9)
    slope = np.gradient(found.smoothed[: found.lowest + 1], np.log(rates[: found.lowest + 1]))
    assert found.suggestion == rates[slope.argmin()] and 0.02 < found.suggestion < 0.5
    assert found.tenth_of_lowest == pytest.approx(rates[np.argmin(smoothed)] / 10)
    assert "the loss grew to" in found.stopped and len(rates) < 40
    assert model.weight.item() == 0.0 and trainer.optimizer.param_groups[0]["lr"] == 0.5
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 5000


def test_groups_loaders_and_divergence():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[2].parameters(), "lr": 0.01},
    ]
    seen = []

    class Watched(optim.SGD):
        def step(self, closure=None):
            seen.append(tuple(group["lr"] for group in self.param_groups))
            return super().step(closure)

    trainer = Trainer(model, nn.CrossEntropyLoss(), Watched(groups, lr=0.1))
    loader = DataLoader(TensorDataset(X, Y), 16, shuffle=True, seed=3)
    place = loader.state_dict()
    found = find_learning_rate(trainer, loader, 1e-3, 1e6, steps=30)
    assert loader.state_dict() == place
    assert len(seen) >= 10 and all(b == pytest.approx(a / 10) for a, b in seen)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.1, 0.01]
    assert found.stopped is not None and len(found.losses) == len(found.rates) < 30
    bad = X.copy()
    bad[:] = np.nan
    with pytest.raises(ValueError, match="the loss became nan at the rate 1e-07, the first"):
        find_learning_rate(make(), (bad, Y))
    assert all(math.isfinite(float(p.detach().sum())) for p in model.parameters())


def test_weights_of_the_loss_stay_too():
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(np.ones(1, np.float32))

        def forward(self, prediction, target):
            fit = nn.functional.cross_entropy(prediction, target)
            return (fit * self.weight + self.weight**2).sum()

    loss, model = Weighed(), nn.Linear(6, 3)
    trainer = Trainer(model, loss, optim.SGD([*model.parameters(), loss.weight], lr=0.1))
    find_learning_rate(trainer, (X, Y), steps=20)
    assert loss.weight.item() == 1.0 and loss.weight.grad is None


def test_what_is_refused():
    trainer = make()
    with pytest.raises(ValueError, match="0 < minimum < maximum, got 1 and 0.1"):
        find_learning_rate(trainer, (X, Y), 1, 0.1)
    with pytest.raises(TypeError, match="expected a Trainer, got Sequential"):
        find_learning_rate(trainer.model, (X, Y))
    with pytest.raises(ValueError, match="steps must be 3 or more"):
        find_learning_rate(trainer, (X, Y), steps=2)
    with pytest.raises(ValueError, match="a generator gives its batches only once"):
        find_learning_rate(trainer, (batch for batch in [(X[:8], Y[:8])] * 2), steps=5)
