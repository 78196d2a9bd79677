"""Uploads, on a GPU that is made of Python: streams whose work is done late and in any order.

`LazyDriver` queues copies, events and waits as a GPU does and runs them, at random, only as far as
someone waits; memory is NumPy's. So a buffer that is filled too early, memory that is given away
while a kernel still reads it, or a missing wait shows as wrong numbers.
"""

from __future__ import annotations

import contextlib
import gc
import threading

import ml_dtypes
import numpy as np
import pytest

from gpunn.device import probe, to_device
from gpunn.device.transfer import SMALL_BUFFERS, Uploader, free_memory

emulated = pytest.mark.skipif(not probe.find_emulator().passed, reason=probe.find_emulator().remedy)


class Stream:
    def __init__(self, name):
        self.name, self.queue, self.recording = name, [], False


class Event:
    come = False


class Memory:
    def __init__(self, size):
        self.bytes = np.full(size, 0xEE, np.uint8)


class GpuArray:
    """What CuPy gives: shape, dtype, flags; it and its views hold the owner of the memory."""

    def __init__(self, place, owner=None):
        self.place, self.owner = place, owner
        self.shape, self.dtype, self.flags = place.shape, place.dtype, place.flags

    def __getitem__(self, key):
        return GpuArray(self.place[key], self.owner)


class LazyDriver:
    """As `CupyTransfers`; `log` has the names of what was asked for."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.compute, self.copies, self.log = Stream("compute"), None, []
        self.made_pinned = self.made_memory = self.waited = 0
        self.lock = threading.RLock()

    def activate(self):
        return contextlib.nullcontext()

    def stream(self):
        self.copies = Stream("copies")
        return self.copies

    def current(self):
        return self.compute

    def capturing(self, stream):
        return stream.recording

    def record(self, stream):
        event = Event()
        self.queue(stream, "record", lambda: setattr(event, "come", True))
        return event

    def wait(self, stream, event):
        self.queue(stream, "wait", event)

    def synchronize(self, event):
        with self.lock:
            self.waited += not event.come
            self.advance(lambda: event.come)

    def done(self, event):
        with self.lock:
            if self.rng.random() < 0.5:
                self.advance(lambda: self.rng.random() < 0.3, all_of_it=False)
            return event.come

    def pinned(self, size):
        self.made_pinned += 1
        return np.full(size, 0xDD, np.uint8)

    def memory(self, size):
        self.made_memory += 1
        return Memory(size)

    def array(self, memory, shape, dtype, owner):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return GpuArray(memory.bytes[:size].view(dtype).reshape(shape), owner)

    def copy(self, target, source, stream):
        place = target.place.reshape(-1).view(np.uint8)
        self.queue(stream, "copy", lambda: np.copyto(place, source))

    # ---- the machine ----

    def queue(self, stream, name, work):
        with self.lock:
            self.log.append(f"{name} on {stream.name}")
            stream.queue.append(work)

    def kernel(self, work):
        """A kernel on the computing stream."""
        self.queue(self.compute, "kernel", work)

    def advance(self, enough, all_of_it=True):
        """Run queued work, always the next of some stream that need not wait, until `enough()`."""
        while not enough():
            ready = [
                stream
                for stream in (self.compute, self.copies)
                if stream.queue and getattr(stream.queue[0], "come", True)
            ]
            if not ready:
                assert not all_of_it, "waits for an event that never comes"
                return
            work = ready[self.rng.integers(len(ready))].queue.pop(0)
            if not isinstance(work, Event):
                work()

    def finish(self):
        with self.lock:
            self.advance(lambda: not (self.compute.queue or self.copies.queue))


def reads(driver, array, expected, seen):
    """Queue a kernel that notes whether the array has its values when the kernel runs."""
    place = array.place
    driver.kernel(lambda: seen.append(np.array_equal(place, expected)))


@pytest.mark.parametrize("seed", range(12))
def test_every_kernel_sees_its_batch(seed):
    """Batches of changing size, prefetched by 0 to 3, some kept for long, in one place or in new
    memory; the host's arrays are changed as soon as they are given away."""
    rng = np.random.default_rng(seed)
    driver = LazyDriver(seed)
    uploader = Uploader("cpu", depth=int(rng.integers(1, 4)), driver=driver)
    fixed = GpuArray(np.zeros(9000, np.float32))
    ahead, kept, under_way, seen = int(rng.integers(0, 4)), [], [], []
    for step in range(60):
        values = rng.normal(size=int(rng.choice([9000, 9000, 9000, 100, 5001]))).astype(np.float32)
        under_way.append((values.copy(), uploader.start(values)))
        values[:] = np.nan
        if rng.random() < 0.3:
            values = np.full(9000, step, np.float32)
            assert uploader.upload(values, out=fixed) is fixed
            reads(driver, fixed, values.copy(), seen)
            values[:] = np.nan
        if len(under_way) <= ahead:
            continue
        expected, upload = under_way.pop(0)
        array = upload.take()
        for _ in range(int(rng.integers(1, 4))):
            reads(driver, array, expected, seen)
        if rng.random() < 0.1:
            kept.append((expected, array[10:]))
        if kept and rng.random() < 0.2:
            expected, view = kept.pop()
            reads(driver, view, expected[10:], seen)
        del array, upload
    driver.finish()
    assert len(seen) > 60 and all(seen)
    # No new memory for each batch, with a handful of sizes.
    assert driver.made_memory < 40 and driver.made_pinned < 40


def test_the_order_of_events():
    driver = LazyDriver()
    driver.done = lambda event: event.come
    uploader = Uploader("cpu", driver=driver)
    first = uploader.start(np.ones(9000, np.float32))
    assert driver.log == [
        "record on compute",  # whoever had the memory before computed there
        "wait on copies",
        "copy on copies",
        "record on copies",
    ]
    driver.log.clear()
    second = uploader.start(np.ones(9000, np.float32))
    assert "wait on compute" not in driver.log  # nothing waits for a batch that nobody took
    driver.log.clear()
    first.take(), first.take()
    assert driver.log == ["wait on compute"]
    driver.log.clear()
    uploader.upload(np.ones(3), out=GpuArray(np.zeros(3)))
    assert driver.log == ["copy on compute", "record on compute"]
    second.take()
    uploader.close()


def test_the_ring_waits_for_the_oldest_copy_alone():
    driver = LazyDriver()
    driver.done = lambda event: event.come
    uploader = Uploader("cpu", depth=2, driver=driver)
    big = np.ones(9000, np.float32)
    for number in range(5):
        uploader.start(big)
        assert driver.made_pinned == min(number + 1, 2) and driver.waited == max(0, number - 1)
    small, out = np.ones(4, np.float32), GpuArray(np.zeros(4, np.float32))
    for _ in range(SMALL_BUFFERS):  # hyperparameters: the host may be far ahead
        uploader.upload(small, out=out)
    assert driver.waited == 3
    uploader.upload(small, out=out)
    assert driver.waited == 4


def test_staging_by_threads_never_waits_for_what_is_only_staged():
    driver = LazyDriver()
    uploader = Uploader("cpu", depth=1, driver=driver)
    staged, seen = {}, []

    def work(worker):
        for number in range(worker, 20, 4):
            staged[number] = uploader.stage(np.full(9000, number, np.float32))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for number in range(0, 20, 2):
        reads(driver, uploader.start(staged.pop(number)).take(), np.full(9000, number), seen)
    driver.finish()
    assert seen == [True] * 10
    made = driver.made_pinned
    staged.clear()  # what was staged in vain is free again
    gc.collect()
    for number in range(10):
        staged[number] = uploader.stage(np.full(9000, number, np.float32))
    assert driver.made_pinned == made == 20


def test_memory_of_many_kept_batches_is_given_back():
    driver = LazyDriver()
    uploader = Uploader("cpu", depth=2, driver=driver)
    kept = [uploader.upload(np.full(9000, i, np.float32)) for i in range(30)]
    driver.finish()
    assert [int(array.place[0]) for array in kept] == list(range(30))
    del kept
    uploader.upload(np.zeros(9000, np.float32))
    assert len(uploader._link.free[_size(9000 * 4)]) < 6
    driver.finish()


def _size(size):
    from gpunn.device.transfer import _rounded

    return _rounded(size)


def test_sizes_of_buffers():
    for size in (0, 1, 511, 512, 513, 5000, 123_457, 10**9 + 1):
        assert size <= _size(size) <= max(1024, size * 1.13) and _size(size) % 512 == 0


def test_close_waits_and_arrays_stay():
    driver = LazyDriver()
    uploader = Uploader("cpu", driver=driver)
    array = uploader.upload(np.arange(9000.0))
    lost = uploader.start(np.zeros(9000))
    uploader.close()
    assert not driver.copies.queue  # nothing is copied into memory that is free
    del lost
    seen = []
    reads(driver, array, np.arange(9000.0), seen)
    reads(driver, uploader.upload(np.ones(9000)), np.ones(9000), seen)  # it can be used again
    driver.finish()
    assert seen == [True, True]


@pytest.mark.parametrize(
    "values",
    [
        np.float32(3).reshape(()),
        np.zeros((0, 3)),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10, dtype=ml_dtypes.bfloat16)[::-2],
        np.array([True, False]),
    ],
    ids=["number", "nothing", "transposed", "strided", "bool"],
)
def test_kinds_of_arrays(values):
    driver = LazyDriver()
    array = Uploader("cpu", driver=driver).upload(values)
    driver.finish()
    assert array.shape == values.shape and array.dtype == values.dtype
    np.testing.assert_array_equal(array.place, values)


def test_not_inside_a_captured_step():
    driver = LazyDriver()
    uploader = Uploader("cpu", driver=driver)
    driver.compute.recording = True
    for act in (
        lambda: uploader.upload(np.ones(3)),
        lambda: uploader.upload(np.ones(3), out=GpuArray(np.ones(3))),
    ):
        with pytest.raises(RuntimeError, match="being captured"):
            act()


def test_on_the_cpu_it_is_the_array_itself():
    uploader, x = Uploader("cpu"), np.arange(3.0)
    assert uploader.upload(x) is x and uploader.start(uploader.stage(x)).take() is x
    out = np.zeros(3)
    assert uploader.upload(x, out=out) is out and out.tolist() == [0, 1, 2]
    uploader.close()
    assert free_memory("cpu") is None


@emulated
def test_on_the_emulator_it_is_a_copy():
    uploader, x = Uploader("emulator"), np.arange(3.0)
    y = uploader.upload(x)
    out = to_device(np.zeros(3), "emulator")
    assert uploader.upload(x, out=out) is out
    x[:] = 9
    assert y.get().tolist() == out.get().tolist() == [0, 1, 2]
    assert uploader.upload(y) is y
    assert uploader.upload(y, out=out[::1]).get().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="out is on cpu, and this uploader brings .* emulator"):
        uploader.upload(x, out=np.zeros(3))


def test_errors():
    uploader, x = Uploader("cpu"), np.arange(3.0)
    with pytest.raises(ValueError, match=r"out has shape \(4,\) and the array \(3,\)"):
        uploader.upload(x, out=np.zeros(4))
    with pytest.raises(TypeError, match="out has dtype float32 and the array float64; convert"):
        uploader.upload(x, out=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="gaps"):
        uploader.upload(x, out=np.zeros(6)[::2])
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        Uploader("cpu", depth=0)


@pytest.mark.gpu
def test_on_a_gpu():
    import cupy

    uploader = Uploader("cuda")
    total, batches = cupy.zeros(1 << 20, np.float32), []
    fixed = cupy.zeros(1 << 20, np.float32)
    for number in range(50):
        batches.append(uploader.start(np.full(1 << 20, number, np.float32)))
        if len(batches) > 2:
            total += batches.pop(0).take()
            uploader.upload(np.full(1 << 20, 1, np.float32), out=fixed)
            total += fixed
    while batches:
        total += batches.pop(0).take()
    np.testing.assert_array_equal(total.get(), sum(range(50)) + 48)
    assert free_memory("cuda") > 0
