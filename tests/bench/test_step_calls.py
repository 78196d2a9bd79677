"""The calls of a step, noted and timed, and what CUPTI tells of its kernels."""

import contextlib
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import gpunn.kernels
from gpunn.bench import step_calls, step_kernel_tables, step_kernels, step_profiles
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.timing import Contestant
from gpunn.bench.training_jobs import mlp
from gpunn.device import Device
from gpunn.profiling.chips import CHIPS, as_measured

CPU, H200 = Device("cpu"), CHIPS["h200"]
SMALL = mlp((6, 5, 3), 4)
DEEP = mlp((5, 5, 5, 3), 4)


# ---- calls ---------------------------------------------------------------------------------------


def test_every_call_of_a_step_has_a_time_and_a_floor():
    row = step_calls.measure(DEEP, CPU, samples=1)
    assert json.loads(json.dumps(row))["calls"][0]["primitive"] == row["calls"][0]["primitive"]
    found = {(c["primitive"], c["phase"], c["layer"]): c for c in row["calls"]}
    hidden = found["matmul", "forward", "*"]  # two layers of 5 by 5 with ReLU
    assert (hidden["count"], hidden["shapes"], hidden["dtype"]) == (2, "4x5 5x5", "float32")
    assert [one["source"] for one in hidden["kernels"]] == ["matmul.cu"]
    assert hidden["flops"] == 2 * 4 * 5 * 5
    assert hidden["floor"] == pytest.approx(hidden["bytes"] / H200.bandwidth)
    assert found["matmul", "forward", "4"]["count"] == 1
    assert all(c["seconds"] > 0 and c["mode"] == "cpu" for c in row["calls"])
    losses = [step_calls.lost(call) for call in row["calls"]]
    assert losses == sorted(losses, reverse=True)
    total = sum(call["count"] * call["seconds"] for call in row["calls"])
    assert row["sum_seconds"] == row["cold_sum_seconds"] == pytest.approx(total)
    assert row["floor_seconds"] < 1e-7 < row["step_seconds"]
    assert row["primitives"] == sorted({name for name, _, _ in found})
    assert "graph_seconds" not in row  # a CPU has none


def test_on_the_emulator_kernels_are_those_that_were_predicted():
    row = step_calls.measure(SMALL, Device("emulator"), samples=1)
    expected = step_calls.predicted(SMALL, H200)
    assert row["graph_seconds"] > 0 and row["calls"][0]["mode"] == "emulator"
    assert launches(row) == launches(expected)
    assert sum(len(call["kernels"]) for call in row["calls"]) > len(row["calls"])
    assert all("seconds" not in call for call in expected["calls"])
    assert expected["floor_seconds"] == pytest.approx(row["floor_seconds"])
    assert "the floors together are" in step_kernel_tables.title(expected)


def launches(row):
    found = [
        (call["primitive"], call["shapes"], one["kernel"], *one["grid"])
        for call in row["calls"]
        for one in call["kernels"]
    ]
    return sorted(found)


def test_where_no_time_is_left_floors_remain():
    row = step_calls.measure(SMALL, CPU, seconds=0, samples=1)
    assert {call["reason"] for call in row["calls"]} == {"no time was left"}
    floors = [call["count"] * call["floor"] for call in row["calls"]]
    assert floors == sorted(floors, reverse=True) and row["sum_seconds"] == 0


def test_floors_are_by_what_was_measured():
    ceilings = Ceilings(
        "cuda:0", 4e12, {"bfloat16": 800e12, "float32": 50e12, "float64": 60e12}, {}
    )
    chip = as_measured(H200, ceilings)
    assert chip.bandwidth == 4e12 and chip.rate("bfloat16", True) == 800e12
    assert chip.rate("float32", False) == 50e12 and chip.rate("float32", True) == 800e12 / 6
    assert chip.rates["tf32"] == pytest.approx(494.7e12 * 800 / 989.4)
    assert (chip.rates["float64"], chip.rates["float64 tensor"]) == (34e12, 60e12)
    assert step_calls.chip_for(CPU, ceilings.to_json()) == chip


class VirtualGpu:
    """A clock, and work that takes time on it."""

    kind = "cuda"
    now = 0.0

    def time(self, run, first, inner):
        before = self.now
        for i in range(first, first + inner):
            run(i)
        return self.now - before

    def call(self, warm, cold=0.0, nbytes=100):
        """A call that takes longer behind a flush."""
        gpu = self

        def run(call, args):
            gpu.now += cold if gpu.flushed else warm
            gpu.flushed = False

        array = SimpleNamespace(nbytes=nbytes)
        return step_calls.Noted(None, SimpleNamespace(primitive=SimpleNamespace(run=run)), (array,))

    def flush(self, i):
        self.now, self.flushed = self.now + 30e-6, True

    flushed = False


@pytest.fixture
def timer(monkeypatch):
    gpu = VirtualGpu()

    def captured(contestant, clock, calls):
        if contestant.name == "warm" and not gpu.captures:
            raise RuntimeError("it waits")

        def run(i):
            for _ in range(calls):
                contestant.run(i)
            gpu.flushed = False

        return Contestant(contestant.name, run, calls)

    gpu.captures = True
    monkeypatch.setattr(step_calls, "captured", captured)
    found = step_calls.CallTimer(SimpleNamespace(type="cuda", index=0), gpu, 3)
    found._flush, found._cache = gpu.flush, 1000
    return found


def test_short_calls_are_timed_in_a_graph_warm_and_cold(timer):
    found = timer.time(timer.clock.call(2e-6, 3e-6))
    assert found["mode"] == "graph"
    assert found["seconds"] == pytest.approx(2e-6)
    assert found["cold_seconds"] == pytest.approx(3e-6)
    assert found["cold_spread"] == pytest.approx(0, abs=1e-9)
    large = timer.time(timer.clock.call(2e-6, nbytes=2000))
    assert large == {"mode": "graph", "seconds": pytest.approx(2e-6)}


def test_long_calls_and_those_that_wait_are_launched_one_by_one(timer):
    assert timer.time(timer.clock.call(2e-3)) == {"mode": "stream", "seconds": pytest.approx(2e-3)}
    timer.clock.captures = False
    found = timer.time(timer.clock.call(2e-6))
    assert found["note"] == "not captured into a graph: RuntimeError: it waits"
    assert (found["mode"], found["seconds"]) == ("stream", pytest.approx(2e-6))


# ---- CUPTI ---------------------------------------------------------------------------------------


def test_what_torch_records_is_behind_a_call_that_only_warms_up(monkeypatch):
    def schedule(wait, warmup, active, repeat):
        assert (wait, warmup, active, repeat) == (0, 1, 1, 1)

    class Profile(contextlib.nullcontext):
        """Calls `on_trace_ready` when the one active step is over, as `torch.profiler` does."""

        def __init__(self, activities, schedule, on_trace_ready):
            super().__init__(self)
            self.ready, self.begin = on_trace_ready, 0

        def step(self):
            if calls[-1]:
                self.ready(self)
            self.begin = len(calls)

        def export_chrome_trace(self, path):
            events = [event(f"call {i}", 0, 1) for i in calls[self.begin :]]
            with open(path, "w") as file:
                json.dump({"traceEvents": events}, file)

    fake = SimpleNamespace(profile=Profile, schedule=schedule)
    monkeypatch.setitem(sys.modules, "torch.profiler", fake)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(profiler=fake))
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    calls = []
    events = step_profiles.traced(calls.append, 2, ["CUDA"], lambda: None)
    assert calls == [0, 0, 1] and [one["name"] for one in events] == ["call 0", "call 1"]
    assert os.environ["TEARDOWN_CUPTI"] == "0"


def event(name, ts, dur, cat="kernel"):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {}}


def test_events_are_summed_by_kernel():
    found = step_profiles.summed([
        event("void at::native::add<float>(float*, int)", 0, 10),
        event("void at::native::add<float>(float*, int)", 30, 12),
        event("Memset (Device)", 45, 5, "gpu_memset"),
        event("Optimizer.step", 0, 50, "gpu_user_annotation"),
        event("cudaLaunchKernel", 0, 50, "cuda_runtime"),
        {"ph": "M", "name": "process_name"},
    ], 2)  # fmt: skip
    assert found["kernels"] == [
        {"name": "add<float>", "count": 1.0, "seconds": pytest.approx(11e-6)},
        {"name": "fill: Memset", "count": 0.5, "seconds": pytest.approx(2.5e-6)},
    ]
    assert found["gpu_seconds"] == pytest.approx(13.5e-6)
    assert found["span_seconds"] == pytest.approx(25e-6)


def test_many_kernels_end_in_one_row_and_none_is_a_reason():
    found = step_profiles.summed([event(f"k{i}", i, 1 + i) for i in range(50)], 1)
    assert len(found["kernels"]) == step_profiles.KEPT + 1
    assert found["kernels"][-1] == {
        "name": "10 others", "count": 10, "seconds": pytest.approx(55e-6)
    }  # fmt: skip
    assert found["gpu_seconds"] == pytest.approx(1275e-6)
    with pytest.raises(step_profiles.NoProfile, match="CUPTI told of no kernel"):
        step_profiles.summed([event("x", 0, 1, "cpu_op")], 1)


def test_without_pytorch_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(step_profiles.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(step_profiles.NoProfile, match="PyTorch is not installed"):
        step_profiles.kernel_times(lambda i: None, 1)


def test_a_profile_that_fails_leaves_a_reason(monkeypatch):
    def contestants(job, device, compiled):
        assert compiled == ["torch.compile"]  # of the others PyTorch makes none

        def losses(steps):
            gpunn.kernels.scale(np.ones(2), 1.0)

        racer = SimpleNamespace(run=None, losses=losses, calls=7, library="gpunn")
        return {"gpunn compiled": lambda: racer, "torch fused": lambda: 1 / 0}

    def told(run, runs, steps):
        return {"kernels": [], "steps": runs * steps}

    monkeypatch.setattr(step_kernels.training, "contestants", contestants)
    monkeypatch.setattr(step_kernels, "kernel_times", told)
    monkeypatch.setattr(step_kernels, "clock_for", contextlib.nullcontext)
    monkeypatch.setattr(step_kernels.training, "torch_as_fast_as_exact", contextlib.nullcontext)
    monkeypatch.setattr(step_kernels.stages, "release", lambda device: None)
    names = ["gpunn compiled", "torch fused", "torch.compile"]
    found = step_kernels.profiles(SMALL, SimpleNamespace(type="cuda"), names)
    assert found["primitives"] == ["scale"]
    assert found["profiles"] == [
        {"by": "gpunn compiled", "kernels": [], "steps": 21},
        {"by": "torch fused", "reason": "ZeroDivisionError: division by zero"},
        {"by": "torch.compile", "reason": "LookupError: PyTorch is not there, or sees no GPU"},
    ]
    on_cpu = step_kernels.profiles(SMALL, CPU, names)
    reasons = {one["reason"] for one in on_cpu["profiles"]}
    assert reasons == {"CUPTI tells of NVIDIA GPUs, and this is cpu"}
