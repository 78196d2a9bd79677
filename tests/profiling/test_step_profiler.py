"""`StepProfiler`: which steps are profiled, and the files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpunn import kernels
from gpunn.profiling import StepProfiler
from gpunn.profiling.hooks import running


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


def test_a_step_that_breaks_off_ends_the_profile():
    profiler = StepProfiler(first=1, steps=2)
    with pytest.raises(KeyError), profiler.around_step():
        raise KeyError
    assert running.profile is None and profiler.finish() is None
    with pytest.raises(ValueError, match="steps is 0; expected 1 or more"):
        StepProfiler(steps=0)
