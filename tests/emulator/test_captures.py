"""Every primitive captured on the emulator as a compiled step on a GPU is: its memory recorded and
planned, captured, replayed on memory full of NaN. And what a capture on a GPU refuses."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import gpunn
from gpunn import kernels
from gpunn.bench.cases import Case, Inputs, workload
from gpunn.device import Device, probe, synchronize, to_device
from gpunn.device.emulated import emulator_numpy as xp
from gpunn.device.emulated import plain
from gpunn.device.emulated_step import EmulatorGraph
from gpunn.device.graph import step_memory
from gpunn.errors import StepError
from gpunn.primitives import mlp_launch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reached import compile_source

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

TABLE = kernels.table()
EMULATOR = Device("emulator")
LARGEST = 16  # of each length of the shape for benchmarks: kernels that the samples reach, too


def arrays_of(inputs: Inputs, result=None) -> list[np.ndarray]:
    """The memory of all arrays of a call, and of what it gave."""
    results = result if isinstance(result, tuple) else (result,)
    values = (*inputs.args, *inputs.kwargs.values(), inputs.out, *results)
    return [plain(value) for value in values if isinstance(value, np.ndarray)]


def two_equal_sets(name: str) -> list[Inputs]:
    """Primitives that work in place change the one that they are given."""
    shape = tuple(min(n, LARGEST) for n in TABLE[name].bench_shapes[0])
    first, second = workload(Case(name, shape, "float32"), EMULATOR, copies=2).sets
    for target, source in zip(arrays_of(second), arrays_of(first), strict=True):
        target[...] = source
    return [first, second]


def captured(call, restore):
    """(graph, what the captured call gave, the memory); `restore` undoes what a call changed."""
    memory, using = step_memory(EMULATOR)
    with memory.recording(), using(memory):
        call()
    memory.make_plan()
    restore()
    graph = EmulatorGraph()
    with memory.serving(), using(memory):
        result = graph.capture(call)
    return graph, result, memory


def test_every_primitive_has_a_shape_to_be_captured_with():
    assert all(made.bench_shapes for made in TABLE.values())


@pytest.mark.parametrize("name", [name for name in TABLE if name != "mlp_train"])
def test_a_replay_does_bit_for_bit_what_the_call_does(name):
    made = TABLE[name]
    problems = [compile_source(source, False) for source in made.cuda_sources]
    assert not any(problems), problems
    first, second = two_equal_sets(name)
    start = [array.copy() for array in arrays_of(second)]

    def restore():
        for array, value in zip(arrays_of(second), start, strict=True):
            array[...] = value

    direct = [array.tobytes() for array in arrays_of(first, first.call(made))]
    graph, result, memory = captured(lambda: second.call(made), restore)
    assert graph.calls
    count, size = memory.unplanned
    assert not count, f"{count} allocations of {size} bytes were not recorded"
    restore()
    for array in arrays_of(Inputs((), {}), result):
        if not any(np.shares_memory(array, one) for one in arrays_of(second)):
            array.reshape(-1).view(np.uint8)[...] = 0xFF
    if memory.plan.size:
        memory.arena_owner[...] = 0xFF
    graph.replay()
    assert [array.tobytes() for array in arrays_of(second, result)] == direct


def test_the_table_of_mlp_train_is_not_brought_over_in_a_capture():
    """A GPU has it from an earlier call; the emulator makes it anew, and refuses here."""
    (first, second), made = two_equal_sets("mlp_train"), TABLE["mlp_train"]
    with pytest.raises(StepError, match="copies values of the host to the device"):
        EmulatorGraph().capture(lambda: first.call(made))
    second.call(made)


class OnGpu:
    """Stands for an array on a GPU, which holds what was uploaded to it."""


class GpuLauncher:
    @staticmethod
    def empty(shape, dtype):
        return OnGpu()


def test_a_gpu_keeps_the_table_of_mlp_train(monkeypatch):
    """So that a capture finds it there: the first H100 saw an upload at each call."""
    uploads = []

    class Uploads:
        def upload(self, host, out):
            uploads.append(host.copy())
            return out

    monkeypatch.setattr(mlp_launch, "_tables", {})
    monkeypatch.setattr(mlp_launch, "device_of", lambda array: Device("cpu"))
    monkeypatch.setattr(mlp_launch, "uploader", lambda device: Uploads())
    table = np.arange(6)
    kept = mlp_launch._on_device(GpuLauncher(), table)
    assert mlp_launch._on_device(GpuLauncher(), table.copy()) is kept
    assert len(uploads) == 1
    assert mlp_launch._on_device(GpuLauncher(), table + 1) is not kept
    assert len(uploads) == 2


X = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x.get(),
        lambda x: x.item(2),
        lambda x: float(x[0]),
        lambda x: complex(x[0]),
        lambda x: f"{x[0]}",
        lambda x: repr(x),
        lambda x: bool(x.any()),
        lambda x: x.tobytes(),
        lambda x: pickle.dumps(x),
        lambda x: to_device(x, "cpu"),
        lambda x: [1, 2, 3][x.argmin()],
        lambda x: to_device(X, "emulator"),
        lambda x: x.set(X),
        lambda x: xp.asarray([1.0, 2.0]),
        lambda x: x.__setitem__(slice(None), X),
        lambda x: x.take([0, 1]),
        lambda x: x.put([0, 1], 2),
        lambda x: xp.searchsorted(x, (0.5, 1.5)),
        lambda x: x[x > 2],
        lambda x: xp.unique(x),
        lambda x: x @ x,
        lambda x: synchronize("emulator"),
    ],
)
def test_what_a_gpu_cannot_capture_is_refused(what):
    x = to_device(X, "emulator")
    what(x)  # it is the capture that refuses
    with pytest.raises(StepError, match="reads a value|values of the host|depends on|have to wait"):
        EmulatorGraph().capture(lambda: what(x))


def test_what_a_gpu_captures_is_not_refused():
    x = to_device(X, "emulator")

    def step():
        y = copy.deepcopy(x) + xp.asarray(3.0) * xp.linspace(0, 1, 6)
        y[0] = 2
        return y.take(xp.arange(3)), y[1:].sum(), gpunn.kernels.softmax_forward(y[None])

    graph = EmulatorGraph()
    found = graph.capture(step)
    assert graph.launches == 1 and [array.shape for array in found] == [(3,), (), (1, 6)]
    x[...] = X[::-1]
    graph.replay()
    for again, wanted in zip(found, step(), strict=True):
        np.testing.assert_array_equal(again.get(), wanted.get())
