"""`StepProfiler`: which steps are profiled, and the files."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

import gpunn
from gpunn import kernels, nn, optim
from gpunn.profiling import StepProfiler
from gpunn.profiling.hooks import running
from gpunn.train import Trainer


def run(profiler, steps):
    for _ in range(steps):
        with profiler.around_step():
            kernels.activation_forward(np.ones(4, "f"), activation="relu")


def test_the_third_to_fifth_step(tmp_path):
    profiler = StepProfiler(first=3, steps=3, folder=tmp_path / "run")
    run(profiler, 2)
    assert running.profile is None
    run(profiler, 2)
    assert running.profile is not None and profiler.report is None
    run(profiler, 3)
    assert running.profile is None
    report = profiler.report
    assert report.steps == 3 and len(report.kernels) == 3
    assert [e.name for e in report.entries if e.kind == "region"] == ["profile", *["step"] * 3]
    text = (tmp_path / "run" / "profile.txt").read_text()
    assert "activation_forward" in text and "mean of 3 steps" in text
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["otherData"]["steps"] == 3
    assert profiler.finish() is report


def test_fewer_steps_than_asked_for(capsys):
    profiler = StepProfiler(first=2, steps=5)
    assert profiler.finish() is None
    run(profiler, 3)
    report = profiler.finish()
    assert report.steps == 2 and "activation_forward" in capsys.readouterr().out
    run(profiler, 4)
    assert profiler.report is report and running.profile is None


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_loader_that_fails_between_steps_ends_the_profile(error):
    def batches():
        for number in range(9):
            if number == 4:
                raise error
            yield gpunn.zeros(2, 3), gpunn.zeros(2, dtype="int64")

    class Loader:
        __iter__ = staticmethod(batches)

    model = nn.Linear(3, 2)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters()), profile=True)
    with contextlib.suppress(KeyError):
        trainer.fit(Loader(), epochs=1, verbose=False)
    assert running.profile is None and trainer.step.profiler.report.steps == 2


def test_the_profile_changes_nothing_in_a_training(tmp_path):
    def weights(profile):
        gpunn.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, profile=profile, seed=0)
        x = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
        trainer.fit((x, np.arange(70) % 3), epochs=2, batch_size=8, verbose=False)
        return [value.detach().numpy().tobytes() for value in model.parameters()]

    assert weights(False) == weights(tmp_path) and (tmp_path / "trace.json").exists()


def test_a_step_that_breaks_off_ends_the_profile():
    profiler = StepProfiler(first=1, steps=2)
    with pytest.raises(KeyError), profiler.around_step():
        raise KeyError
    assert running.profile is None and profiler.finish() is None
    with pytest.raises(ValueError, match="steps is 0; expected 1 or more"):
        StepProfiler(steps=0)
