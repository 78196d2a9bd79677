"""`profile`: the context in which a profile runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from gpunn.bench.ceilings import Ceilings
from gpunn.device import Device, as_device
from gpunn.primitives.registry import listening
from gpunn.profiling import chips, hooks
from gpunn.profiling.clock import CupyRanges
from gpunn.profiling.hooks import LayerNames, running
from gpunn.profiling.recording import Recording
from gpunn.profiling.report import Report


class profile:
    """``with gpunn.profile() as report:`` measures what this thread runs inside the block.

    On the CPU and the emulator times are those of the host's clock. On a GPU events are recorded
    before and after each kernel, layer and operation and read at the end, so that the GPU never
    waits for the profile; a kernel that ends sooner than the host launches the next shows the time
    of that launch. For times without any of that: ``nvtx=True`` under Nsight Systems.

    Parameters
    ----------
    memory : keep a timeline of the memory: of CuPy's pool on a GPU, else by `tracemalloc` of arrays
        and Python's objects made in the block, which makes Python slower
    layers : whether modules, operations and optimizers are seen; without, only kernels are
    model : an `nn.Module` that gives the layers their names; else the outermost module called does
    device : where most kernels run; else the model's device, else the default one
    nvtx : also push and pop NVTX ranges by layer and kernel
    steps : how many steps the block holds; tables show times of one
    ceilings : what tables hold rates against; a known GPU has those of its data sheet

    Raises
    ------
    RuntimeError : in a thread that has a profile already
    """

    def __init__(
        self,
        memory: bool = False,
        layers: bool = True,
        *,
        model: Any = None,
        device: Device | str | None = None,
        nvtx: bool = False,
        steps: int = 1,
        ceilings: Ceilings | None = None,
    ):
        self._memory, self._layers, self._model, self._nvtx = memory, layers, model, nvtx
        self._device = _device(device, model)
        if steps < 1:
            raise ValueError(f"profile: steps is {steps}; expected 1 or more")
        self.report = Report(steps, ceilings)
        self._listening: Any = None

    def _recording(self) -> Recording:
        ranges = CupyRanges() if self._nvtx else None
        return Recording(self._device, self._memory, ranges=ranges)

    def __enter__(self) -> Report:
        if running.profile is not None:
            raise RuntimeError(
                "profile: this thread has a profile already; end it first, or name a part of it "
                "with gpunn.profiling.region"
            )
        if self.report.ceilings is None and self._device.type == "cuda":
            self.report.ceilings = chips.ceilings_of(self._device)
        names = LayerNames(self._model)
        self._recording_now = recording = self._recording()
        running.profile = recording
        if self._layers:
            hooks.install()
            running.recording, running.names = recording, names
        self._listening = listening(recording.kernel)
        self._listening.__enter__()
        return self.report

    def __exit__(self, *exception) -> None:
        self._listening.__exit__(*exception)
        running.profile = running.recording = running.names = None
        if self._layers:
            hooks.remove()
        self.report._fill(self._recording_now)


def _device(device: Device | str | None, model: Any) -> Device:
    if device is None and model is not None:
        for parameter in model.parameters():
            return parameter.device
    return as_device(device)


@contextlib.contextmanager
def region(name: str) -> Iterator[None]:
    """Give a part of the running profile a name; nothing happens while none runs."""
    recording = running.profile
    if recording is None:
        yield
        return
    entry = recording.begin("region", name)
    try:
        yield
    finally:
        recording.end(entry)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """A stretch that the running profile takes as one piece, without looking inside."""
    before = running.recording, running.names
    running.recording = running.names = None
    try:
        with listening(None):
            yield
    finally:
        running.recording, running.names = before
