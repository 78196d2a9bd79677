"""The profile of a GPU: CuPy's part with a CuPy that only takes notes, and on a real one."""

from __future__ import annotations

import contextlib
import types

import numpy as np
import pytest

import gpunn
from gpunn import nn
from gpunn.device import probe
from gpunn.profiling import profile
from gpunn.profiling.clock import CupyEvents


class Event:
    def record(self, stream):
        self.stream = stream

    def synchronize(self):
        self.waited = True


def test_events_go_to_the_current_stream_of_the_device(monkeypatch):
    entered = []
    stream = types.SimpleNamespace(is_capturing=lambda: False)
    cuda = types.SimpleNamespace(
        Event=Event,
        get_current_stream=lambda: stream,
        get_elapsed_time=lambda first, second: 2.5,
    )
    pool = types.SimpleNamespace(used_bytes=lambda: 4096)
    cupy = types.SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)
    monkeypatch.setattr(probe, "import_cupy", lambda: cupy)

    @contextlib.contextmanager
    def activate():
        entered.append("device")
        yield

    events = CupyEvents(types.SimpleNamespace(activate=activate))
    first = events.record()
    assert first.stream is stream and entered == ["device"]
    events.synchronize(first)
    assert first.waited and events.elapsed(first, events.record()) == 2.5e-3
    assert events.used_bytes() == 4096 and len(entered) == 3
    stream.is_capturing = lambda: True
    assert events.record() is None


@pytest.mark.gpu
def test_a_step_on_a_gpu(tmp_path):
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).to("cuda")
    x, y = gpunn.randn(4096, 1024).to("cuda"), gpunn.randint(0, 10, (4096,)).to("cuda")

    def step():
        nn.functional.cross_entropy(model(x), y).backward()

    step()
    with profile(model=model, memory=True, nvtx=True) as report:
        step()
    assert report.device == "cuda:0"
    assert all(entry.seconds > 0 for entry in report.kernels)
    starts = [entry.start for entry in report.kernels]
    assert starts == sorted(starts)
    assert report.kernel_seconds <= report.seconds * 1.001
    # 8.6 GFLOP take some microseconds on any GPU: the time is that of the device, not of the launch
    assert report.kernels[0].seconds > report.kernels[0].flops / 2e15
    assert report.memory.peak >= 4 * (4096 * 1024 + 1024 * 1024)
    report.save_trace(tmp_path / "trace.json")
    assert np.isfinite(report.overhead)
