"""The trace: events as the format asks for them, in rows where each lies inside another."""

from __future__ import annotations

import json

import gpunn
import gpunn.nn.functional as F
from gpunn import nn
from gpunn.device import Device
from gpunn.profiling import profile
from gpunn.profiling.recording import Recording
from gpunn.profiling.report import Report


def profiled(**options) -> Report:
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = gpunn.randn(6, 4), gpunn.randint(0, 3, (6,))
    with profile(model=model, **options) as report:
        F.cross_entropy(model(x), y).backward()
    return report


def test_events_of_the_trace(tmp_path):
    report = profiled(memory=True)
    report.save_trace(tmp_path / "trace.json")
    whole = json.loads((tmp_path / "trace.json").read_text())
    events = whole["traceEvents"]
    assert whole["displayTimeUnit"] == "ms" and {e["ph"] for e in events} == {"M", "X", "C"}
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == len(report.entries)
    for event in complete:
        assert set(event) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
        assert event["ts"] >= 0 and event["dur"] >= 0
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(rows.values()) == ["layers", "forward", "backward", "update"]
    kernels = [event for event in complete if event["cat"] == "kernel"]
    assert [rows[e["tid"]] for e in kernels] == [k.phase for k in report.kernels]
    first = kernels[0]
    assert first["args"]["layer"] == "0" and first["args"]["flops"] == report.kernels[0].flops
    assert first["args"]["bytes"] == report.kernels[0].bytes
    counters = [event for event in events if event["ph"] == "C"]
    assert [c["args"]["bytes"] for c in counters] == report.memory.bytes
    for row in rows:
        spans = sorted(
            (e["ts"], -e["ts"] - e["dur"]) for e in complete if e["tid"] == row
        )
        ends: list[float] = []
        for start, end in spans:
            while ends and ends[-1] <= start + 1e-6:
                ends.pop()
            assert not ends or -end <= ends[-1] + 1e-6
            ends.append(-end)


def test_on_a_gpu_host_and_device_are_two_processes():
    report = profiled()
    report.device = "cuda:0"
    from gpunn.profiling.trace import events

    found = events(report)
    names = {e["pid"]: e["args"]["name"] for e in found if e["name"] == "process_name"}
    assert list(names.values()) == ["host", "cuda:0"]
    kernels = [e for e in found if e.get("cat") == "kernel"]
    assert len(kernels) == 2 * len(report.kernels)  # the launch on the host, the run on the device
    assert {names[e["pid"]] for e in kernels} == {"host", "cuda:0"}
    assert all(names[e["pid"]] == "host" for e in found if e.get("cat") == "layer")


def test_json_has_everything():
    report = profiled(memory=True)
    found = json.loads(json.dumps(report.to_json()))
    assert len(found["entries"]) == len(report.entries)
    assert found["entries"][2]["layer"] == "0" and len(found["memory"]["bytes"]) > 4
    assert Recording(Device("cpu"), clock=False).finish() >= 0
