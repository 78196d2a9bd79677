"""What a profile asks of a GPU: events around the kernels, the memory in use, ranges for Nsight.

An event is a mark in the queue of the GPU: recording one costs the host about a microsecond and the
GPU nothing to speak of, and its time is read when all work is done. So nothing waits in between.
"""

from __future__ import annotations

from typing import Any, Protocol

from gpunn.device import Device, probe


class Events(Protocol):
    """The few things that a profile needs; tests have others than CuPy."""

    def record(self) -> Any:
        """Put an event into the current stream; None where there can be none."""

    def synchronize(self, event: Any) -> None:
        """Wait until the event has come to pass."""

    def elapsed(self, first: Any, second: Any) -> float:
        """Seconds between two events that have come to pass."""

    def used_bytes(self) -> int:
        """Bytes that arrays hold on the GPU."""


class CupyEvents:
    """The events of one GPU, recorded on the stream that is CuPy's current one."""

    def __init__(self, device: Device):
        self._cupy, self._device = probe.import_cupy(), device

    def record(self):
        """Put an event into the current stream; None while that is captured into a graph."""
        cuda = self._cupy.cuda
        with self._device.activate():
            stream = cuda.get_current_stream()
            if stream.is_capturing():
                return None
            event = cuda.Event()
            event.record(stream)
            return event

    def synchronize(self, event) -> None:
        """Wait until the event has come to pass."""
        event.synchronize()

    def elapsed(self, first, second) -> float:
        """Seconds between two events; CUDA resolves half a microsecond."""
        return self._cupy.cuda.get_elapsed_time(first, second) * 1e-3

    def used_bytes(self) -> int:
        """Bytes that arrays hold in CuPy's pool."""
        with self._device.activate():
            return self._cupy.get_default_memory_pool().used_bytes()


class CupyRanges:
    """NVTX ranges, which Nsight Systems shows above the kernels that were launched inside them."""

    def __init__(self):
        from cupy.cuda import nvtx

        self.push, self.pop = nvtx.RangePush, nvtx.RangePop
