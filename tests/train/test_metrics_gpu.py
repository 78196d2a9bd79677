"""Metrics, watches and the finder on a GPU, in compiled steps: the same as on the CPU."""

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.train import (
    GradientWatch,
    NaNWatch,
    Trainer,
    TrainingError,
    WeightAverage,
    find_learning_rate,
)

pytestmark = pytest.mark.gpu

NAMES = [
    "accuracy", "top_2_accuracy", "precision", "recall_micro", "f1_weighted", "balanced_accuracy",
    "matthews_correlation", "log_loss", "perplexity", "brier", "calibration_error", "auc",
    "average_precision", "confusion_matrix",
]  # fmt: skip
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((72, 6)).astype(np.float32), rng.integers(0, 3, 72)


def make(device, *callbacks, names=(), lr=0.1, model=None, **options):
    gpunn.manual_seed(3)
    model = model or nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    optimizer = optim.AdamW(model.to(device).parameters(), lr=lr)
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, names, callbacks, seed=1, **options)


def fit(trainer, epochs=6):
    history = trainer.fit((X, Y), (X, Y), epochs=epochs, batch_size=16, verbose=False)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_metrics_in_captured_steps():
    expected = fit(make("cpu", names=NAMES))
    captured = make("cuda", names=NAMES, compile=True)
    for one, other in zip(expected, fit(captured), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-3)
    assert captured.way.startswith("compiled")  # and why not by one kernel


def test_watches():
    watches = [GradientWatch(every=3, bins=8) for _ in range(2)]
    averages = [WeightAverage(0.9) for _ in range(2)]
    for device, watch, average in zip(("cpu", "cuda"), watches, averages, strict=True):
        fit(make(device, watch, average, lr=1e-3))
    np.testing.assert_allclose(watches[0].values, watches[1].values, rtol=2e-3, atol=1e-4)
    assert watches[1].look(-1, "0.weight").counts.sum() == 54

    class Root(nn.Module):
        def forward(self, x):
            return x**0.5

    model = nn.Sequential(nn.Linear(6, 9), Root(), nn.Linear(9, 3))
    with pytest.raises(TrainingError, match=r"step 1 \(forward\) .* output of 1 \(Root\); its in"):
        fit(make("cuda", NaNWatch(), model=model))


def test_the_finder_leaves_no_trace():
    plain, searched = make("cuda"), make("cuda")
    found = find_learning_rate(searched, (X, Y), steps=20, batch_size=16)
    assert found.suggestion > 0
    for trainer in (plain, searched):
        fit(trainer, 3)
    for one, other in zip(plain.model.parameters(), searched.model.parameters(), strict=True):
        np.testing.assert_array_equal(
            one.detach().to("cpu").numpy(), other.detach().to("cpu").numpy()
        )
