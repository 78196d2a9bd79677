"""Planned memory on the CPU: equal values, none given out twice, no new one after a while."""

import contextlib
import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("numba")

import gpunn
from gpunn import nn, optim
from gpunn.bench import training, training_jobs
from gpunn.device import cpu_memory_handler
from gpunn.device.cpu_memory import CpuStepMemory
from gpunn.device.device import Device
from gpunn.errors import DeviceError
from gpunn.primitives import cpu_threads

handler_of = np._core.multiarray.get_handler_name
OURS = "gpunn step"


def planned(step, *args):
    """A memory with the plan of step(*args)."""
    memory = CpuStepMemory()
    with memory.recording():
        result = step(*args)
    memory.make_plan()
    del result  # it outlives the step
    return memory


def outside(memory):
    """What the latest run took that was not in the plan, and what was new."""
    return memory.unplanned, memory.fresh


def work(x, weight):
    """Temporaries, zeros, a result that grows, and an output."""
    hidden = np.maximum(x @ weight, 0)
    zeros = np.zeros(x.shape, x.dtype)
    zeros[::2] += 1
    grown = np.arange(5.0)
    grown.resize(4000, refcheck=False)
    return hidden.sum(0) + (x * zeros).sum() + grown.sum()


X = np.random.default_rng(0).standard_normal((60, 40))
WEIGHT = np.random.default_rng(1).standard_normal((40, 30))


def transformer():
    """step(i) of a small GPT: the tokens of each batch are others, and so are some sizes."""
    gpunn.manual_seed(5)
    config = gpunn.models.GPTConfig(
        vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1
    )
    model = gpunn.models.GPT(config).to("cpu")
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    tokens = np.random.default_rng(2).integers(0, 50, (4, 2, 4, 16))
    batches = [[gpunn.tensor(part, device="cpu") for part in pair] for pair in tokens]

    def step(i):
        optimizer.zero_grad()
        loss = model.loss(*batches[i % 4])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def small_cnn():
    def network(nn):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(8 * 5 * 5, 10),
        )  # fmt: skip

    job = training_jobs.Job("cnn", 16, (1, 12, 12), 10, (0,), network)
    return training.our_step(job, Device("cpu"), job.data(4))


def small_mlp():
    job = training_jobs.mlp((20, 30, 40, 10), 16)
    return training.our_step(job, Device("cpu"), job.data(4))


@pytest.mark.parametrize("make", [small_mlp, small_cnn, transformer])
def test_training_steps_from_the_arena(make):
    """Same losses bit for bit, an arena near its bound, and after some steps nothing new."""
    eager, step, memory = make(), make(), CpuStepMemory()
    gpunn.manual_seed(9)  # dropout draws the same numbers in both
    expected = [eager(i).item() for i in range(24)]
    gpunn.manual_seed(9)
    with memory.recording():
        loss = step(0)
    memory.make_plan()
    got, new = [loss.item()], []
    for i in range(1, 24):
        with memory.serving():
            loss = step(i)
        got.append(loss.item())
        new.append(memory.fresh[0])
    assert got == expected
    assert memory.plan.size <= 1.25 * memory.plan.peak and memory.plan.size > 0
    assert memory.served[0] > 50 and new[-4:] == [0, 0, 0, 0]
    if make is not transformer:  # there some sizes depend on the tokens
        assert memory.unplanned == (0, 0)


def test_values_and_counts():
    memory = planned(work, X, WEIGHT)
    expected = work(X, WEIGHT)
    for run in range(5):
        with memory.serving():
            got = work(X, WEIGHT)
        assert np.array_equal(got, expected) and handler_of(got) == OURS
        assert handler_of(np.empty(3)) == "default_allocator"
        assert memory.unplanned == (0, 0) and memory.served[0] >= 6
        assert (memory.fresh == (0, 0)) == (run >= 2)  # two results are alive at one time
    assert "share an arena" in memory.report() and "0 allocations, 0 B" in memory.report()


def test_zeros_are_zeros_and_places_are_used_again():
    def step():
        dirty = np.full(5000, 7.0)
        place = dirty.ctypes.data
        del dirty
        zeros = np.zeros(5000)
        assert not zeros.any()
        return place, zeros.ctypes.data

    memory = planned(step)
    seen = set()
    for _ in range(3):
        with memory.serving():
            seen.add(step())
    assert len(seen) == 1 and len(set(seen.pop())) == 1
    assert memory.plan.size < 1.1 * 40_000


def test_what_is_kept_is_never_overwritten():
    """A step that keeps a temporary now and then: later runs go around it."""
    rng, kept = np.random.default_rng(3), []

    def step(keep):
        for size in (100, 3000, 100, 50_000, 3000):
            value = rng.random()
            part = np.full(size, value)
            twice = part * 2
            if rng.random() < keep:
                kept.append((part, value, twice))

    memory = planned(step, 0.0)
    for run in range(60):
        with memory.serving():
            step(0.3)
        if run % 7 == 0 and kept:
            del kept[:: 1 + run % 3]
        assert all((a == v).all() and (b == 2 * v).all() for a, v, b in kept)
    kept.clear()
    with memory.serving():
        step(0.0)
    assert memory.served[0] == len(memory.plan.blocks) and outside(memory) == ((0, 0), (0, 0))


def test_branches_that_allocate_otherwise():
    """More, fewer, other and reordered allocations are served where they fit, and always right."""
    rng = np.random.default_rng(4)

    def step(sizes):
        arrays, sums = [], 0.0
        for i, size in enumerate(sizes):
            arrays.append(np.full(size, float(i)))
            if len(arrays) > 3:
                arrays.pop(int(size) % 3)
            sums += sum(float(a.sum()) / a.size for a in arrays)
        return sums

    sizes = rng.integers(1, 3000, 60)
    memory = planned(step, sizes)
    memory._settling = 0  # the plan stays as it is
    for run in range(50):
        other = sizes.copy()
        if run % 5 == 1:
            other = np.delete(other, rng.integers(0, 60, 3))
        elif run % 5 == 2:
            other = np.insert(other, 20, rng.integers(1, 3000, 4))
        elif run % 5 == 3:
            rng.shuffle(other)
        elif run % 5 == 4:
            other[rng.integers(0, 60, 5)] = 0
        other = np.maximum(other, 1)
        expected = step(other)
        with memory.serving():
            got = step(other)
        assert got == expected
        if run % 5 == 0:
            assert memory.unplanned == (0, 0) and memory.served[0] == len(memory.plan.blocks)
        if run % 5 in (1, 2):  # it finds back to the plan
            assert memory.served[0] > 0.8 * len(memory.plan.blocks)


def test_a_first_step_that_is_special_is_planned_again():
    state = {}

    def step():
        if not state:
            state.update({i: np.zeros(200 + i) for i in range(100)})
        parts = [np.full(1000 + i, 1.0) for i in range(100)]
        return sum(part.sum() for part in parts)

    memory = planned(step)
    with memory.serving():
        step()
    assert memory.unplanned[0] > 0  # the hundred of the first step are too many to skip
    with memory.serving():
        step()
    assert memory.unplanned == (0, 0) and memory.plan.escaping == 0
    assert all(not value.any() and handler_of(value) == OURS for value in state.values())


def test_errors_in_a_step_leave_numpy_as_it_was():
    memory = CpuStepMemory()
    with pytest.raises(RuntimeError, match="no recorded step"):
        memory.make_plan()
    with pytest.raises(RuntimeError, match="record a step first"), memory.serving():
        pass
    with pytest.raises(ZeroDivisionError), memory.recording():
        np.ones(10) / (1 // 0)
    assert handler_of(np.empty(3)) == "default_allocator"
    with pytest.raises(RuntimeError, match="no recorded step"):
        memory.make_plan()
    memory = planned(work, X, WEIGHT)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), memory.serving():
            np.ones(10) / (1 // 0)
        assert handler_of(np.empty(3)) == "default_allocator"
        with memory.serving():
            work(X, WEIGHT)
    assert memory.unplanned == (0, 0)
    with memory.serving(), pytest.raises(MemoryError):
        np.empty(1 << 61, np.int8)
    with memory.serving(), pytest.raises(MemoryError):
        np.zeros(1 << 62, np.int8)


def test_a_step_within_itself_is_refused_and_another_memory_is_not():
    memory, inner = planned(work, X, WEIGHT), planned(work, X, WEIGHT)
    memory._settling = 0  # the plan stays, whatever is done instead
    for enter in (memory.serving, memory.recording):
        with memory.serving():
            with pytest.raises(RuntimeError, match=r"entered inside serving\(\) of the same"):
                with enter():
                    pass
            with pytest.raises(RuntimeError, match=r"make_plan was called inside serving"):
                memory.make_plan()
            assert handler_of(np.empty(3)) == OURS
    with memory.serving():
        with inner.serving():
            work(X, WEIGHT)
        work(X, WEIGHT)
    assert memory.unplanned == inner.unplanned == (0, 0)
    with memory.recording():
        np.empty(9)
    assert memory.make_plan().total == 128


def test_two_threads_with_a_memory_each():
    expected, failures = work(X, WEIGHT), []

    def train():
        memory = planned(work, X, WEIGHT)
        for _ in range(200):
            with memory.serving():
                got = work(X, WEIGHT)
            if not np.array_equal(got, expected) or memory.unplanned[0]:
                failures.append(memory.unplanned)

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_threads_that_share_out_pieces(monkeypatch):
    """What they allocate in any order leaves the plan alone, and is not new after a while."""
    monkeypatch.setattr(cpu_threads, "thread_count", lambda: 3)
    monkeypatch.setattr(cpu_threads, "_blas", lambda: (lambda: 1, lambda count: None))
    owners = set()

    def step():
        out = np.zeros((12, 500))

        def piece(i):
            scratch = np.full(500, float(i))
            owners.add(handler_of(scratch))
            out[i] = scratch * 2

        cpu_threads.for_each(piece, range(12))
        return (out + 1).sum(), out

    expected = step()[0]
    owners.clear()
    memory = planned(step)
    assert len(memory.plan.blocks) <= 6  # out, its sum and what NumPy needs, and no piece
    for _ in range(20):
        with memory.serving():
            assert step()[0] == expected
    assert owners == {OURS} and memory.unplanned == (0, 0)
    with memory.serving(), pytest.raises(ZeroDivisionError):
        cpu_threads.for_each(lambda i: 1 // (i - 5), range(12))
    with memory.serving():
        step()
    assert memory.unplanned == (0, 0)


def test_arrays_outlive_the_memory_and_are_freed_by_other_threads():
    def step():
        return [np.full(size, 3.0) for size in (10, 2000, 70_000)], np.full(9, 4.0).sum()

    kept = []
    for _ in range(3):
        memory = planned(lambda: step()[1])
        with memory.serving():
            kept.append(step()[0])
        kept.append([np.resize(array, 2 * array.size) for array in kept[-1]])
        kept[-2][0].resize(50, refcheck=False)  # its handler, long after the step
        del memory
        gc.collect()
    assert all((array[:10] == 3.0).all() for arrays in kept for array in arrays)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert not kept


def test_arrays_alive_at_the_end_of_the_program():
    program = """
import numpy as np, sys
from gpunn.device.cpu_memory import CpuStepMemory
assert "numba" not in sys.modules
memory = CpuStepMemory()
with memory.recording():
    recorded = np.ones(1000)
memory.make_plan()
with memory.serving():
    sys.kept = [np.ones(1000), np.ones(77), recorded]
class Cycle: pass
cycle = Cycle(); cycle.own = cycle; cycle.array = sys.kept[0]; cycle.memory = memory
print(sum(a.sum() for a in sys.kept))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "2077.0\n", "")


def test_the_words_that_every_step_writes():
    code = cpu_memory_handler.compiled()
    for name in ("MODE", "LOGGED", "NEXT", "MISSED", "IN_USE"):
        assert 8 * getattr(cpu_memory_handler, name) == getattr(code, name)
    counters = range(code.UNPLANNED, code.SERVED_BYTES + 8, 8)
    assert list(counters) == [8 * n for n in range(*cpu_memory_handler.COUNTERS.indices(99))]
    flags = cpu_memory_handler.LOGGING, cpu_memory_handler.SERVING, cpu_memory_handler.SCATTERED
    assert flags == (code.LOGGING, code.SERVING, code.SCATTERED)


def test_why_there_can_be_none(monkeypatch):
    assert CpuStepMemory.available() and CpuStepMemory.why_not() is None
    ask = cpu_memory_handler.why_not.__wrapped__
    monkeypatch.setenv("GPUNN_CPU_COMPILED", "0")
    assert "GPUNN_CPU_COMPILED is 0" in ask()
    monkeypatch.delenv("GPUNN_CPU_COMPILED")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        assert "pip install numba" in ask()
    with monkeypatch.context() as patch, contextlib.suppress(ImportError):
        patch.setattr("numba.config.DISABLE_JIT", 1)
        assert "NUMBA_DISABLE_JIT" in ask()
    monkeypatch.setattr(cpu_memory_handler, "why_not", lambda: "not here")
    with pytest.raises(DeviceError, match="CpuStepMemory: not here"):
        CpuStepMemory()
