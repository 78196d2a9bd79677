"""Capturing what a step launches as a CUDA graph, and replaying it.

Capture runs the step's Python once while the driver only notes the launches, with their arguments;
a replay is one call of the driver for all of them. CuPy captures in relaxed mode, on a stream of
its own, because the default stream cannot be captured.

Nothing may wait for the GPU or copy from the host meanwhile. CuPy itself refuses both, since
version 10 and by asking the driver whether its current stream captures; single numbers it gives to
kernels by value, so these are as they were at the capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from gpunn.device import probe
from gpunn.device.device import Device
from gpunn.device.emulated_step import EmulatorGraph, host_memory
from gpunn.device.emulated_step import using_memory as using_emulator_memory
from gpunn.device.step_memory import SharedArena, StepMemory

CUDA_ALIGNMENT = 512  # as CuPy's own pool


def on(device: Device) -> contextlib.AbstractContextManager:
    """A context in which CuPy uses `device`; tests have others than GPUs."""
    return device.activate() if device.type == "cuda" else contextlib.nullcontext()


class CupyGraphs:
    """The few functions of CuPy that captures need; a test and `gpunn bench` have others."""

    def __init__(self, device: Device):
        self.device = device

    def begin(self) -> Any:
        """Start to capture on a stream of its own, which becomes CuPy's current one."""
        stream = probe.import_cupy().cuda.Stream(non_blocking=True)
        stream.__enter__()
        try:
            stream.begin_capture()
        except BaseException:
            stream.__exit__(None, None, None)
            raise
        return stream

    def end(self, stream: Any) -> Any:
        """End the capture; gives the graph. Raises what CuPy raises if it was broken off."""
        try:
            return stream.end_capture()
        finally:
            stream.__exit__(None, None, None)

    def launch(self, graph: Any) -> None:
        """Replay on CuPy's current stream."""
        graph.launch()

    def make_room(self) -> None:
        """Give what CuPy's pool has idle back to the driver; an arena wants it in one piece."""
        probe.import_cupy().get_default_memory_pool().free_all_blocks()

    def copy(self, target: Any, source: Any) -> None:
        """Queue a copy between arrays of one shape and dtype on the GPU."""
        if target.strides != source.strides or not _is_dense(target):
            target[...] = source
            return
        cuda = probe.import_cupy().cuda
        cuda.runtime.memcpyAsync(
            target.data.ptr, source.data.ptr, target.nbytes, cuda.runtime.memcpyDeviceToDevice,
            cuda.get_current_stream(self.device.index).ptr,
        )  # fmt: skip

    def allocate(self, size: int) -> tuple[int, Any]:
        """(address, owner) of memory from CuPy's pool."""
        with on(self.device):
            memory = probe.import_cupy().cuda.get_allocator()(size)
        return memory.ptr, memory

    @contextlib.contextmanager
    def using_memory(self, memory: StepMemory) -> Iterator[None]:
        """A context in which this thread's CuPy takes memory from a `StepMemory`."""
        cuda = probe.import_cupy().cuda
        pool, stream = cuda.get_allocator(), cuda.get_current_stream(self.device.index)

        def take(size: int):
            if size == 0:
                return pool(0)
            block = memory.take(size)
            owned = cuda.UnownedMemory(block.ptr, size, block, self.device.index)
            return cuda.MemoryPointer(owned, 0)

        def fresh(size: int):
            # Not by `take`, and from the share of the pool of the stream outside: where the replays
            # run, and where it goes back to, whatever stream captures meanwhile.
            with on(self.device), stream:
                found = pool(size)
            return found.ptr, found

        memory.allocate_with(fresh)
        with cuda.using_allocator(take):
            yield


def _is_dense(array: Any) -> bool:
    """Whether the elements lie without gaps, in whatever order of the axes."""
    if array.flags.c_contiguous:
        return True
    steps = sorted(
        (step, size) for step, size in zip(array.strides, array.shape, strict=True) if size > 1
    )
    expected = array.itemsize
    for step, size in steps:
        if step != expected:
            return False
        expected *= size
    return True


class CudaGraph:
    """A captured step on a GPU."""

    runs_while_capturing = False

    def __init__(self, device: Device, driver: Any = None):
        self.device, self._driver = device, driver or CupyGraphs(device)
        self._graph: Any = None

    def make_room(self) -> None:
        """To be called before an arena is allocated."""
        self._driver.make_room()

    def capture(self, run: Callable[[], Any]) -> Any:
        """Run while the driver takes notes. Nothing is computed before `replay`."""
        with on(self.device):
            stream = self._driver.begin()
            try:
                result = run()
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self._driver.end(stream)
                raise
            self._graph = self._driver.end(stream)
        return result

    def replay(self) -> None:
        """Launch all of it."""
        self._driver.launch(self._graph)

    def copy(self, target: Any, source: Any) -> None:
        """Copy an argument of the step into its place."""
        self._driver.copy(target, source)


def step_memory(
    device: Device, driver: Any = None, arena: SharedArena | None = None
) -> tuple[StepMemory, Callable]:
    """(memory of a step on `device`, the context that makes its arrays use it)"""
    if device.type == "emulator":
        return StepMemory(host_memory, arena=arena), using_emulator_memory
    driver = driver or CupyGraphs(device)
    return StepMemory(driver.allocate, CUDA_ALIGNMENT, arena), driver.using_memory


def step_graph(device: Device, driver: Any = None) -> CudaGraph | EmulatorGraph:
    """What captures a step on `device`."""
    return EmulatorGraph() if device.type == "emulator" else CudaGraph(device, driver)
