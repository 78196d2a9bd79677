"""What a capture on a GPU asks of CuPy, in which order; with a CuPy that only writes it down."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpunn.device import Device, probe
from gpunn.device.emulated_step import EmulatorGraph, host_memory, new, using_memory
from gpunn.device.graph import CudaGraph, CupyGraphs, step_memory
from gpunn.device.step_memory import SharedArena, StepMemory


class Outside:
    """The stream that is current outside of captures."""

    ptr, depth = 7, 0

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *exception):
        self.depth -= 1


class Cupy:
    """The parts of CuPy that captures use. `log` has the calls."""

    def __init__(self):
        self.log = log = []
        outer = self

        class Stream:
            ptr = 7

            def __init__(self, non_blocking):
                assert non_blocking

            def __enter__(self):
                log.append("enter stream")

            def __exit__(self, *exception):
                log.append("leave stream")

            def begin_capture(self):
                log.append("begin")
                if outer.refuses:
                    raise RuntimeError("cannot capture now")

            def end_capture(self):
                log.append("end")
                return SimpleNamespace(launch=lambda: log.append("launch"))

        self.refuses = False
        self._outside = Outside()
        self.pool_calls = []
        self.allocator = lambda size: self._allocated(size)
        self.cuda = SimpleNamespace(
            Stream=Stream,
            get_allocator=lambda: self.allocator,
            using_allocator=self._using,
            UnownedMemory=lambda ptr, size, owner, device: SimpleNamespace(ptr=ptr, owner=owner),
            MemoryPointer=lambda memory, offset: SimpleNamespace(
                ptr=memory.ptr + offset, mem=memory
            ),
            get_current_stream=lambda index: self._outside,
            runtime=SimpleNamespace(
                memcpyAsync=lambda *args: log.append(("copy", *args)), memcpyDeviceToDevice=3
            ),
        )

    def get_default_memory_pool(self):
        return SimpleNamespace(free_all_blocks=lambda: self.log.append("free all blocks"))

    def _allocated(self, size):
        self.pool_calls.append(size)
        assert self._outside.depth == 1 or size == 0
        return SimpleNamespace(ptr=1 << 20 if size > 5000 else 4096 * len(self.pool_calls))

    def _using(self, function):
        outer, before = self, self.allocator

        class Using:
            def __enter__(self):
                outer.allocator = function

            def __exit__(self, *exception):
                outer.allocator = before

        return Using()


@pytest.fixture
def cupy(monkeypatch):
    made = Cupy()
    monkeypatch.setattr(probe, "import_cupy", lambda: made)
    return made


def graph(cupy):
    device = Device("cpu")  # stands for a GPU: only its number is asked
    return CudaGraph(device, CupyGraphs(device))


def test_capture_runs_between_begin_and_end_and_replay_launches(cupy):
    made = graph(cupy)
    assert made.capture(lambda: cupy.log.append("step") or 5) == 5
    made.replay()
    made.replay()
    assert cupy.log == [
        "enter stream", "begin", "step", "end", "leave stream", "launch", "launch",
    ]  # fmt: skip


def test_a_step_that_fails_ends_its_capture_and_its_error_is_told(cupy):
    def fails():
        raise ZeroDivisionError("of the step")

    with pytest.raises(ZeroDivisionError, match="of the step"):
        graph(cupy).capture(fails)
    assert cupy.log == ["enter stream", "begin", "end", "leave stream"]


def test_a_capture_that_cannot_begin_leaves_the_stream(cupy):
    cupy.refuses = True
    with pytest.raises(RuntimeError, match="cannot capture now"):
        graph(cupy).capture(lambda: None)
    assert cupy.log == ["enter stream", "begin", "leave stream"]


def test_cupys_memory_is_recorded_planned_and_served(cupy):
    memory, using = step_memory(Device("cpu"), CupyGraphs(Device("cpu")))

    def step():
        a = cupy.allocator(2000)
        b = cupy.allocator(1000)
        del a
        c = cupy.allocator(1500)  # fits where a was
        assert cupy.allocator(0) is not None
        return b.ptr, c.ptr, cupy.allocator(700)  # the last outlives the step

    with memory.recording(), using(memory):
        kept = step()
    assert cupy.pool_calls[:3] == [2000, 1000, 1500]
    plan = memory.make_plan()
    assert plan.size == 2048 + 1024 == cupy.pool_calls[-1]
    with memory.serving(), using(memory):
        b, c, kept = step()
    base = memory._arena[0]
    assert memory.unplanned == (0, 0) and cupy.pool_calls[-1] == 700
    assert {b - base, c - base} in ({0, 2048}, {0, 1024})
    assert not base <= kept.ptr < base + plan.size


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_arguments_are_copied_as_one_piece_where_they_are_one(cupy, order):
    def on_gpu(array, address):
        return SimpleNamespace(
            strides=array.strides, shape=array.shape, flags=array.flags, itemsize=4,
            nbytes=array.nbytes, data=SimpleNamespace(ptr=address),
        )  # fmt: skip

    array = np.empty((3, 5), np.float32).transpose(order)
    graph(cupy).copy(on_gpu(array, 100), on_gpu(array, 200))
    assert cupy.log == [("copy", 100, 200, 60, 3, 7)]


# ---- the memory of a step ------------------------------------------------------------------------


def served(step, again):
    """The memory after `step` was recorded and `again` served."""
    memory = StepMemory(host_memory)
    with memory.recording(), using_memory(memory):
        kept = step()
    memory.make_plan()
    with memory.serving(), using_memory(memory):
        other = again()
    return memory, kept, other


def test_an_allocation_that_is_not_as_recorded_gets_memory_of_its_own():
    memory, _, _ = served(
        lambda: [new((4,), np.float32), None][1:], lambda: [new((5,), np.float32), None][1:]
    )
    assert memory.unplanned == (1, 20)


def test_memory_in_use_is_never_given_out_again():
    def frees():
        first = new((64,), np.float32)
        first[:] = 1
        del first
        second = new((64,), np.float32)
        second[:] = 2

    def keeps():
        first = new((64,), np.float32)
        first[:] = 1
        second = new((64,), np.float32)
        second[:] = 2
        return first, second

    memory, _, (first, second) = served(frees, keeps)
    assert memory.unplanned == (1, 256) and first[0] == 1 and second[0] == 2
    memory, _, _ = served(frees, frees)
    assert memory.unplanned == (0, 0) and memory.plan.size == 256 and memory.plan.total == 512


def test_what_outlives_a_step_has_memory_of_its_own_and_plans_share_an_arena():
    def step(size):
        new((size,), np.uint8)
        return new((size // 2,), np.uint8)

    shared, memories, kept = SharedArena(), [], []
    for size in (1000, 3000, 2000):
        memory = StepMemory(host_memory, arena=shared)
        with memory.recording(), using_memory(memory):
            recorded = step(size)
        del recorded
        memory.make_plan()
        with memory.serving(), using_memory(memory):
            kept.append(step(size))
        memories.append(memory)
    sizes = [memory.plan.size for memory in memories]
    assert sizes == [1024, 3072, 2048] and shared.size == 3072
    assert memories[1]._arena is memories[2]._arena is not memories[0]._arena
    for memory, array in zip(memories, kept, strict=True):
        assert memory.unplanned == (0, 0) and memory.arena_view(array) is None
        start = memory._arena[0]
        assert not start <= array.ctypes.data < start + memory.plan.size


def test_memory_is_used_by_one_step_at_a_time():
    memory = StepMemory(host_memory)
    with memory.recording(), pytest.raises(RuntimeError, match="is recording already"):
        with memory.serving():
            pass


# ---- the emulator's graph ------------------------------------------------------------------------


def test_the_emulators_graph_repeats_every_kind_of_arithmetic():
    from gpunn.device import to_device
    from gpunn.device.emulated import emulator_numpy as xp

    x = to_device(np.arange(12, dtype=np.float32).reshape(3, 4), "emulator")
    index = to_device(np.array([2, 0]), "emulator")

    def step():
        y = x * 2 + xp.ones((3, 4), np.float32)
        y[1:, 0] = 7
        y += x
        rows = y[index]
        parts = [
            y.sum(axis=0), y.T.copy(), rows, y.reshape(4, 3), xp.where(y > 9, y, 0), y.max(),
            y.astype(np.float64), xp.take_along_axis(y, y.argmax(1)[:, None], 1), y.T.reshape(12),
            np.divmod(y, 3)[1], xp.clip(y, 1, 9), y.mean(), xp.arange(3) * y[:, 0], y.ravel(),
        ]  # fmt: skip
        y.fill(3)
        return parts, y

    graph = EmulatorGraph()
    parts, y = graph.capture(step)
    first = [np.array(part.get()) for part in parts]
    for part in (*parts, y):
        if part.base is None or part.flags.owndata:
            part[...] = -1
    x *= -1  # what a replay reads is what is there then
    graph.replay()
    again = [np.array(part.get()) for part in parts]
    x *= -1
    graph.replay()
    for one, other, part in zip(first, again, parts, strict=True):
        np.testing.assert_array_equal(one, part.get())
        assert np.shares_memory(part, y) or not np.array_equal(one, other)
