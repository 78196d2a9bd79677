"""The networks of the training benchmark: ours and PyTorch's go through the same losses."""

import dataclasses

import pytest

from gpunn.bench import training
from gpunn.bench.training_jobs import airbench, cnn, gpt, language_model, lstm, mlp
from gpunn.device import Device

CPU = Device("cpu")
JOBS = [
    mlp((6, 5, 3), 4), cnn(2), lstm(3), airbench(3, 3, (8, 12, 16)),
    language_model(2, steps=5, hidden=8), gpt("gpt", 2, (11, 6, 2, 2, 8)),
]  # fmt: skip


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_both_libraries_train_alike(job):
    job = dataclasses.replace(job, precision="fp32")
    ours = training.losses(training.our_step(job, CPU), 4)
    theirs = training.losses(training.torch_step(job, CPU, "torch"), 4)
    assert training.disagreement(ours, theirs) <= 2e-5
    assert len({round(loss, 4) for loss in ours}) == 4


def test_in_bfloat16_they_stay_within_the_benchmarks_tolerance():
    job = gpt("gpt", 2, (65, 16, 2, 2, 32))
    assert job.precision == "bf16"
    ours = training.losses(training.our_step(job, CPU), 8)
    theirs = training.losses(training.torch_step(job, CPU, "torch"), 8)
    assert 0 < training.disagreement(ours, theirs) <= 1e-3 < training.LOSS_TOLERANCE["bf16"]
