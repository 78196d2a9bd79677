"""`gpunn.profile`: what it writes down, to which layer it belongs, and that it leaves no trace."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpunn
import gpunn.nn.functional as F
from gpunn import kernels, nn, optim
from gpunn.autograd import function
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.tables import seconds_text
from gpunn.device import Device
from gpunn.primitives import registry
from gpunn.profiling import paused, profile, region
from gpunn.profiling.hooks import _places
from gpunn.profiling.memory import MIB
from gpunn.profiling.recording import Recording


class Shared(nn.Module):
    """A fused pair of layers, then one layer used twice, then a sum that no kernel makes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(self.twice(self.twice(x)) + x)


def made(model=None, rows=5):
    gpunn.manual_seed(0)
    model = model or Shared()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x, y = gpunn.randn(rows, 6), gpunn.randint(0, 3, (rows,))

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, step


def test_each_kernel_belongs_to_its_layer():
    model, step = made()
    plain = step().item()
    model, step = made()
    with gpunn.profile(model=model) as report:
        loss = step()
    assert loss.item() == plain
    found = [(k.name, k.layer, k.what, k.phase) for k in report.kernels]
    forward = [
        ("matmul", "first.0", "Linear + relu", "forward"),
        ("matmul", "twice", "Linear", "forward"),
        ("matmul", "twice", "Linear", "forward"),
        ("matmul", "head", "Linear", "forward"),
        ("cross_entropy_forward_backward", "(CrossEntropy)", "", "forward"),
    ]
    assert found[:5] == forward
    update = ("sgd_update", "SGD", "optimizer", "update")
    assert found[-1] == update
    backward = [row[1:] for row in found[5:-1]]
    order = [row for i, row in enumerate(backward) if i == 0 or row != backward[i - 1]]
    assert order == [
        ("head", "Linear", "backward"),
        ("twice", "Linear", "backward"),
        ("first.0", "Linear + relu", "backward"),
    ]
    assert report.kernels[0].shapes.startswith("5x6 6x8") and report.kernels[0].dtype == "float32"
    sums = [e for e in report.entries if e.name == "Add"]
    assert [(e.kind, e.layer, e.phase) for e in sums] == [
        ("operation", "Shared", "forward"), ("operation", "Shared", "backward"),
    ]  # fmt: skip


def test_names_are_learned_from_the_outermost_module():
    _, step = made()
    encoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    x, y = gpunn.randn(2, 6), gpunn.randn(2)
    with profile() as report:
        step()
        encoder(x)
        nn.MSELoss()(y, y)
    layers = dict.fromkeys(k.layer for k in report.kernels if k.phase == "forward")
    assert list(layers) == ["first.0", "twice", "head", "(CrossEntropy)", "Sequential.0", "MSELoss"]


def test_times_add_up_and_costs_are_those_of_the_table():
    model, step = made()
    step()
    with profile(model=model, steps=2) as report:
        step()
        step()
    assert sum(e.own for e in report.entries) == pytest.approx(report.seconds, rel=1e-9)
    assert 0 < report.kernel_seconds < report.seconds == report.host_seconds
    assert report.overhead > 0
    for entry in report.entries[1:]:
        around = report.entries[entry.parent]
        assert around.start <= entry.start
        assert entry.start + entry.seconds <= around.start + around.seconds + 1e-9
    x, w, b = np.ones((5, 6), "f"), np.ones((8, 6), "f"), np.ones(8, "f")
    cost = kernels.matmul.cost_of(x, w, transpose_b=True, bias=b, activation="relu")
    assert (report.kernels[0].flops, report.kernels[0].read) == (cost.flops, cost.read)

    lines = report.table().splitlines()
    row = next(line for line in lines if line.startswith("sgd_update")).split()
    assert row[1] == "1" and "mean of 2 steps" in lines[-1]
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[2:] if "%" in line
              and not line.startswith("  ")]  # fmt: skip
    assert sum(shares) == pytest.approx(100, abs=0.5)
    by_layer = report.table("layer", depth=1)
    assert "\nfirst " in by_layer and "first.0" not in by_layer
    assert max(map(len, (by_layer + "\n" + report.table("call")).splitlines())) <= 100
    assert report.table("call").count("\n") == len(report.kernels) + 3
    with pytest.raises(ValueError, match="by is 'model'; expected one of kernel, layer, call"):
        report.table("model")


def test_percent_of_the_limit():
    x = np.ones(1000, "f")
    with profile(ceilings=Ceilings("here", 1e9, {"float32": 1e30}, {"copy": "a guess"})) as report:
        kernels.activation_forward(x, activation="relu")
    (entry,) = report.kernels
    text = report.table()
    assert "of limit" in text and "(a guess)" in text
    share = float(text.splitlines()[2].split()[-1].rstrip("%"))
    assert share == pytest.approx(100 * 8000 / 1e9 / entry.seconds, rel=0.1)


def objects():
    return [(owner, name, vars(owner)[name]) for owner, name, _ in _places()]


def test_nothing_is_left_behind():
    before = objects()
    _, step = made()
    with pytest.raises(KeyError), profile() as report:
        assert vars(function)["_step_back"] is not before[-3][2]
        step()
        raise KeyError
    assert report.kernels
    for (_, name, old), (_, _, now) in zip(before, objects(), strict=True):
        assert old is now, name
    assert not registry._choice.special
    step()
    count = len(report.entries)
    assert count == len(report.entries)


def test_one_profile_in_a_thread_and_other_threads_are_not_seen():
    _, step = made()
    with profile() as report:
        with pytest.raises(RuntimeError, match="this thread has a profile already"):
            with profile():
                pass
        other = threading.Thread(target=step)
        other.start()
        other.join()
    assert len(report.entries) == 1
    with profile(layers=False) as report:
        step()
    assert {entry.kind for entry in report.entries[1:]} == {"kernel"}


def test_regions_and_pauses():
    x = np.ones(4, "f")
    with profile() as report:
        with region("loading"):
            kernels.activation_forward(x, activation="relu")
        with paused():
            kernels.activation_forward(x, activation="relu")
        kernels.activation_forward(x, activation="tanh")
    with region("nobody looks"):
        pass
    names = [entry.name for entry in report.entries]
    assert names == ["profile", "loading", "activation_forward", "activation_forward"]
    assert [entry.parent for entry in report.entries] == [-1, 0, 1, 0]
    assert "loading" in report.table()
    forward = seconds_text(report.kernel_seconds)
    assert forward in report.table(by="layer").splitlines()[2]  # not as time between kernels


def test_regions_that_overlap_or_outlive_the_profile():
    def stretch(name):
        with region(name):
            yield

    first, second, late = stretch("first"), stretch("second"), stretch("late")
    with profile() as report:
        next(first), next(second)
        next(first, None)  # and second with it, which lies inside
        next(second, None)
        next(late)
    late.close()
    assert [(entry.name, entry.parent) for entry in report.entries[1:]] == [
        ("first", 0), ("second", 1), ("late", 0),
    ]  # fmt: skip
    assert sum(entry.own for entry in report.entries) == pytest.approx(report.seconds)


def test_memory_timeline_shows_a_known_array(tmp_path):
    pytest.importorskip("matplotlib")
    size = 8 << 20
    with profile(memory=True) as report:
        with region("work"):
            held = np.zeros(size, np.uint8)
            kernels.activation_forward(np.ones(4, "f"), activation="relu")
            del held
        kernels.activation_forward(np.ones(4, "f"), activation="relu")
    assert abs(report.memory.peak - size) < 64 << 10
    assert report.memory.peak_at[1] in ("activation_forward", "work")
    assert abs(report.memory.bytes[-1]) < 64 << 10
    assert report.memory.times == sorted(report.memory.times)
    assert "Memory: peak memory 8.0" in report.table() and MIB == 2**20
    report.plot_memory(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 5000

    def passing():  # an array that comes and goes between two looks
        np.zeros(size, np.uint8)

    with profile(memory=True) as report:
        passing()
    assert abs(report.memory.peak - size) < 64 << 10 and max(report.memory.bytes) < 64 << 10
    with profile() as report:
        pass
    with pytest.raises(ValueError, match=r"profile\(memory=True\)"):
        report.plot_memory(tmp_path / "none.png")


class StubEvents:
    """Events that happen a millisecond apart, in the order in which they are recorded."""

    def __init__(self, log):
        self.log, self.count = log, 0

    def record(self):
        self.count += 1
        self.log.append(f"event {self.count}")
        return self.count

    def synchronize(self, event):
        self.log.append(f"wait {event}")

    def elapsed(self, first, second):
        return (second - first) * 1e-3

    def used_bytes(self):
        return 1000 * self.count


class StubRanges:
    def __init__(self, log):
        self.push, self.pop = lambda name: log.append(f"push {name}"), lambda: log.append("pop")


def test_events_stand_around_each_kernel_and_nothing_waits(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(
        profile,
        "_recording",
        lambda self: Recording(
            Device("cpu"), memory=True, events=lambda device: StubEvents(log),
            ranges=StubRanges(log), always_events=True,
        ),
    )  # fmt: skip
    with profile() as report:
        log.append("block")
        for _ in range(2):
            kernels.activation_forward(np.ones(4, "f"), activation="relu")
        log.append("end")
    assert log == [
        "event 1", "push profile", "event 2", "block",
        "push activation_forward", "event 3", "event 4", "pop",
        "push activation_forward", "event 5", "event 6", "pop",
        "end", "event 7", "pop", "event 8", "wait 8",
    ]  # fmt: skip
    assert [k.seconds for k in report.kernels] == pytest.approx([1e-3, 1e-3])
    assert report.seconds == pytest.approx(5e-3)
    assert report.entries[0].own == pytest.approx(3e-3)
    assert report.memory.bytes[-1] == 7000


def test_the_emulator_is_a_device_as_others():
    from gpunn.device import probe, to_device

    if not probe.find_emulator().passed:
        pytest.skip("no host compiler")
    x = to_device(np.ones(8, "f"), "emulator")
    with profile(device="emulator", memory=True) as report:
        kernels.activation_forward(x, activation="relu")
    (entry,) = report.kernels
    assert entry.device == "emulator" and entry.seconds > 0
