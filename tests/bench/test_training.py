"""The benchmark of whole steps: equal losses, rows with their targets, the picture."""

import dataclasses

import numpy as np
import pytest

from gpunn.bench import step_host, step_parity, step_stages, training, training_tables
from gpunn.bench.training_jobs import BATCHES, JOBS, Target, airbench, gpt, language_model, mlp
from gpunn.device import Device

CPU = Device("cpu")
SMALL = mlp((6, 5, 3), 4, targets=(Target("gpunn fused", 2, ("torch",)),))
OURS = ["gpunn", "gpunn compiled", "gpunn fused"]


@pytest.fixture(scope="module", autouse=True)
def without_torch():
    """PyTorch's side is compared in tests/oracle, and timed by the dry run of the stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "has_torch", lambda: False)
        yield


@pytest.fixture(scope="module")
def rows(without_torch):
    return training.run_job(SMALL, CPU, 2, (), threads=1, seconds=1e-4, curve=24)


def test_all_of_ours_go_through_the_same_losses(rows):
    found = {row["contestant"]: row for row in rows}
    assert list(found)[:3] == OURS
    for name in OURS:
        row = found[name]
        assert "reason" not in row and len(row["curve"]) == 24 and row["median"] > 0
        np.testing.assert_allclose(row["curve"], found["gpunn"]["curve"], rtol=1e-5)
    assert found["gpunn compiled"]["curve"] == found["gpunn"]["curve"]
    assert found["gpunn"]["curve"][16] < found["gpunn"]["curve"][0]  # the same batch
    assert found["gpunn"]["primitives"] == found["gpunn compiled"]["primitives"]
    assert {"adam_update", "matmul"} < set(found["gpunn"]["primitives"])
    assert found["gpunn fused"]["primitives"] == ["mlp_train"]
    assert found["gpunn fused"]["inner"] % training.FUSED_STEPS == 0


def test_rows_bear_targets_which_only_a_gpu_reaches(rows):
    assert [row["target"] for row in rows[:3]] == ["", "", ">= 2 x torch"]
    assert all(row["reached"] is None for row in rows)
    made = [{"contestant": name, "median": seconds, "device": "cuda:0"}
            for name, seconds in (("gpunn fused", 1.0), ("torch", 1.9))]  # fmt: skip
    assert training.judged(SMALL, made[0], made)["reached"] is False
    made[1]["median"] = 2.0
    assert training.judged(SMALL, made[0], made)["reached"] is True
    two = (*SMALL.targets, Target("gpunn fused", 1, ("torch reduce-overhead",)))
    both = dataclasses.replace(SMALL, targets=two)
    assert training.judged(both, made[0], made)["reached"] is None  # one was not timed
    made[1]["median"] = 1.0
    assert training.judged(both, made[0], made)["reached"] is False


def test_of_several_peers_the_fastest_counts():
    job = dataclasses.replace(SMALL, targets=(Target("gpunn", 2, ("torch", "torch fused")),))
    times = {"gpunn": 1.0, "torch": 3.0, "torch fused": 1.5}
    made = [{"contestant": c, "median": s, "device": "cuda"} for c, s in times.items()]
    assert training.judged(job, made[0], made) == {
        "target": ">= 2 x torch and torch fused", "reached": False,
    }  # fmt: skip


def test_what_differs_is_not_timed(monkeypatch):
    def wrong(job, device):
        return training.Racer(lambda i: None, lambda steps: [1.0] * steps, 1)

    monkeypatch.setattr(training, "our_fused", wrong)
    rows = training.run_job(SMALL, CPU, 2, (), threads=1, seconds=1e-4, curve=5)
    fused = next(row for row in rows if row["contestant"] == "gpunn fused")
    assert "the losses differ from ours by" in fused["reason"] and "median" not in fused
    assert fused["reason"] in training_tables.table_of(rows)


@pytest.mark.parametrize(
    "job",
    [
        dataclasses.replace(airbench(3, 3, (8, 12, 16)), precision="fp32"),
        gpt("gpt", 2, (11, 6, 1, 2, 8)),  # in bfloat16
        language_model(2, steps=4, hidden=8),
    ],
    ids=lambda job: job.name,
)
def test_compiled_jobs_train_as_they_do(job):
    plain = training.losses(training.our_step(job, CPU), 5)
    compiled = training.losses(training.our_step(job, CPU, compiled=True), 5)
    assert plain == compiled and all(np.isfinite(plain))


def test_jobs_have_the_batch_that_fits():
    gpu = type("Gpu", (), {"type": "cuda"})
    sizes = {}
    for memory in (16e9, 80e9, None):
        found = {(job.name, job.batch) for job in training.jobs_on(gpu, memory)}
        sizes[memory] = next(batch for name, batch in found if name == "gpt-2-124M")
        assert ("cnn-airbench", 1024) in found and ("cnn-32-64", 64) not in found
    assert sizes == {16e9: 2, 80e9: 8, None: 8}
    assert {job.precision for job in training.jobs_on(gpu)} == {"fp32", "bf16"}
    assert {job.precision for job in training.jobs_on(CPU)} == {"fp32"}
    assert len({(job.name, job.batch) for job in JOBS}) == len(JOBS)


def test_the_run_on_hardware_asks_torch_compile_for_what_targets_name():
    asked = {job.name: step_stages.compiled_peers(job) for job in JOBS}
    assert asked["mlp-784-256-128-10"] == ("torch reduce-overhead",)
    assert asked["cnn-airbench"] == asked["gpt-2-124M"] == ("torch.compile",)
    assert asked["lstm-32-128"] == asked["mlp-64-128-128-10"] == ()


def test_labels_follow_from_the_inputs():
    x, y = language_model(3).data()
    assert x.shape == y.shape == (BATCHES, 3, 64)
    table = dict(zip(x.flat, y.flat, strict=True))
    assert all(table[token] == label for token, label in zip(x.flat, y.flat, strict=True))
    x, y = SMALL.data(2)
    assert x.shape == (2, 4, 6) and y.shape == (2, 4) and set(y.flat) <= {0, 1, 2}


def test_the_curves_are_drawn(tmp_path, rows):
    pytest.importorskip("matplotlib")
    more = [{**row, "job": f"job {i}"} for i in range(4) for row in rows]
    assert training_tables.draw(more, tmp_path / "curves.png") == 4
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no row has a loss curve"):
        training_tables.draw([{"job": "x", "curve": []}], tmp_path / "none.png")


# ---- compiled steps, bit for bit -----------------------------------------------------------------


def test_differences_are_named():
    one = step_parity.train("perceptron", CPU, compiled=False)
    other = step_parity.train("perceptron", CPU, compiled=False)
    assert step_parity.differences(one, other) == []
    other.state["0.weight"][2, :3] += 1
    other.losses[3] = (0.0, 0.0)
    other.random = {**other.random, "offset": 0}
    first, second, third = step_parity.differences(one, other)
    assert first.startswith("step 4: (") and third.startswith("gpunn.random: ")
    assert second == "0.weight: 3 of 117 numbers differ"


# ---- what a replay costs the host ----------------------------------------------------------------


def test_the_parts_of_a_replay_are_those_of_a_captured_step():
    count, times = step_host.of_replay("mlp", samples=2, seconds=1e-4)
    assert count == 6
    assert {"whole", "signature", "launch", "outputs", "with a schedule"} < set(times)
    assert all(timing.median > 0 for timing in times.values())
    step, arguments, change = step_host.captured("mlp")
    calls = step.summary().split("captured")[1].split()[0]
    change()
    step(*arguments)
    assert step.summary().split("captured")[1].split()[0] == str(int(calls) + 1)  # replayed


def test_eager_and_compiled_steps_on_the_cpu():
    found = step_host.on_cpu(SMALL, samples=2, seconds=1e-4)
    assert found["eager"]["timing"].median > 0 and found["compiled"]["timing"].median > 0
    assert found["compiled"]["grown"] == 0
    if "arena" in found["compiled"]:  # Numba is there
        assert found["compiled"]["served"][0] > 10 and found["compiled"]["fresh"] == (0, 0)
