"""Callbacks that end a training, average weights, or are functions."""

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.train import (
    Callback,
    LambdaCallback,
    TerminateOnTarget,
    TimeLimit,
    Trainer,
    WeightAverage,
    limits,
)

X = np.float32([[1.0], [2.0], [3.0], [4.0]])
Y = 2 * X


def fit(*callbacks, epochs=6, trainer=None, **options):
    gpunn.manual_seed(0)
    model = nn.Linear(1, 1)
    trainer = trainer or Trainer(
        model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.01), seed=1,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.fit((X, Y), epochs=epochs, batch_size=2, verbose=False, **options)
    return trainer


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(limits.time, "monotonic", lambda: self.now)


def test_time_limit(monkeypatch, tmp_path):
    clock = Clock(monkeypatch)

    def slow(trainer, epoch, step):
        clock.now += 2.0  # an epoch takes 4 s

    history = fit(LambdaCallback(on_batch_end=slow), TimeLimit(13)).history
    assert len(history) == 3
    assert history.stop_reason == (
        "the time limit of 13 s: 12 s were trained, and another epoch takes 4 s"
    )
    assert len(fit(LambdaCallback(on_batch_end=slow), TimeLimit(1)).history) == 1
    keep = {"checkpoint": tmp_path, "resume": "auto"}
    fit(LambdaCallback(on_batch_end=slow), TimeLimit(13), epochs=2, **keep)
    again = fit(LambdaCallback(on_batch_end=slow), TimeLimit(13), epochs=6, **keep)
    assert len(again.history) == 3  # two of them before
    with pytest.raises(ValueError, match="seconds must be above 0"):
        TimeLimit(0)


def test_terminate_on_target():
    whole = fit().history["loss"]
    history = fit(TerminateOnTarget(whole[3], "loss")).history
    assert len(history) == 4 and "has reached" in history.stop_reason
    assert len(fit(TerminateOnTarget(0.0, "loss")).history) == 6
    assert len(fit(TerminateOnTarget(0.0, "loss", "max")).history) == 1
    with pytest.raises(ValueError, match="no 'validation_accuracy', only epoch, loss"):
        fit(TerminateOnTarget(0.9))


def test_lambda_callback():
    events = []
    names = ("on_train_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_train_end")
    every = {name: lambda *a, name=name: events.append((name, *a[1:2])) for name in names}
    fit(LambdaCallback(**every), epochs=1)
    assert events == [
        ("on_train_begin",), ("on_epoch_begin", 1), ("on_batch_end", 1), ("on_batch_end", 1),
        ("on_epoch_end", 1), ("on_train_end",),
    ]  # fmt: skip
    with pytest.raises(TypeError, match="on_epoch_end is int; expected a function"):
        LambdaCallback(on_epoch_end=3)


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_weight_average(device, tmp_path):
    class Note(Callback):
        def __init__(self):
            self.weights = []

        def on_batch_end(self, trainer, epoch, step):
            self.weights.append(trainer.model.weight.item())

    def trained(epochs, note, average, **options):
        gpunn.manual_seed(0)
        model = nn.Linear(1, 1).to(device)
        note.first = model.weight.item()
        trainer = Trainer(
            model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.01), seed=1,
            callbacks=[note, average],
        )  # fmt: skip
        return fit(epochs=epochs, trainer=trainer, **options)

    note = Note()
    trainer = trained(3, note, WeightAverage(0.6))
    mean = note.first
    for step, weight in enumerate(note.weights, start=1):
        mean += (1 - min(0.6, (1 + step) / (10 + step))) * (weight - mean)
    assert len(note.weights) == 6
    assert trainer.model.weight.item() == pytest.approx(mean, rel=1e-5)
    kept = WeightAverage(0.6, apply=False)
    trainer = trained(3, Note(), kept)
    assert trainer.model.weight.item() == note.weights[-1]
    other = nn.Linear(1, 1)
    kept.copy_to(other)
    assert other.weight.item() == pytest.approx(mean, rel=1e-5)
    keep = {"checkpoint": tmp_path, "resume": "auto"}
    trained(2, Note(), WeightAverage(0.6, apply=False), **keep)
    again = trained(3, Note(), WeightAverage(0.6), **keep)
    assert again.model.weight.item() == pytest.approx(mean, rel=1e-5)
    with pytest.raises(ValueError, match="there is no average of 0.weight"):
        kept.copy_to(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="decay must be"):
        WeightAverage(1.0)
    with pytest.raises(ValueError, match="no training has begun"):
        WeightAverage().copy_to(other)


def test_small_steps_count_in_the_average_of_16_bit_weights():
    average = WeightAverage(0.999)
    model = nn.Linear(1, 1).to(gpunn.bfloat16)
    model.weight.detach()[...] = 1.0
    trainer = Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.0), seed=1)
    average.on_train_begin(trainer)
    model.weight.detach()[...] = 2.0
    for step in range(1, 200):
        average.on_batch_end(trainer, 1, step)
    # The decays (1 + t) / (10 + t) multiply to 9! 200! / 209! · …, as good as nothing is left of 1.
    assert average.average["weight"].dtype == np.float32
    average.copy_to(model)
    assert model.weight.dtype == gpunn.bfloat16 and model.weight.item() == 2.0
