"""`explain`: which kernels a training step launches on a GPU, and what each takes at the least.

The step runs once, but its kernels do not: each primitive's own launch code chooses grid and kernel
for the chip and a launcher takes notes instead of launching. No GPU is needed for that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunn.device import Device
from gpunn.device.cuda_launch import cuda_launcher
from gpunn.device.emulator_launch import emulator_launcher
from gpunn.device.launch import Launcher, RecordingLauncher
from gpunn.primitives.optimizer import advance_step
from gpunn.primitives.registry import listening
from gpunn.profiling import hooks
from gpunn.profiling.advice import advice, as_one_kernel
from gpunn.profiling.chips import CHIPS, LAUNCH_SECONDS, Chip, find_chip
from gpunn.profiling.explanation import Explanation, Launch, Row
from gpunn.profiling.hooks import LayerNames, running
from gpunn.profiling.ready import one_step
from gpunn.profiling.recording import Entry, Recording
from gpunn.train.precision import Precision

# The files whose kernels multiply on tensor cores, and those that do so in 16 bits only.
_TENSOR_CORES, _IN_16_BITS = re.compile(r"mma"), re.compile(r"recurrent")


class NotingLauncher(RecordingLauncher):
    """Launches nothing and notes grid and block as well, in the list ``noted``."""

    noted: list[Launch]

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        super().__call__(expression, grid, block, args, shared)
        self.noted.append(Launch(self.source, expression, tuple(grid), tuple(block), shared))


class HearingLauncher(Launcher):
    """Passes launches on to another launcher and notes them as `NotingLauncher` does.

    It says that it launches nothing, so that nobody keeps it to repeat what was launched.
    """

    launches_nothing = True

    def __init__(self, real: Any, noted: list[Launch]):
        self._real, self.noted, self.source = real, noted, real.source
        self.arch, self.multiprocessors = real.arch, real.multiprocessors
        self.shared_limit = real.shared_limit
        self.device = getattr(real, "device", None)  # as the tuner of products asks

    @property
    def plain(self) -> Launcher:
        return self._real.plain

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        self.noted.append(Launch(self.source, expression, tuple(grid), tuple(block), shared))
        self._real(expression, grid, block, args, shared)

    def empty(self, shape, dtype):
        """Scratch memory where the other launcher has it."""
        return self._real.empty(shape, dtype)

    def sibling(self, source: str) -> HearingLauncher:
        """The same of another source file, noting in the same list."""
        return HearingLauncher(self._real.sibling(source), self.noted)


def explain(
    model: Any,
    loss: Callable,
    optimizer: Any,
    inputs: Any,
    target: Any,
    *,
    chip: Chip | str = CHIPS["h200"],
    precision: str | None = None,
    name: str | None = None,
) -> Explanation:
    """Explain a training step: forward, loss, backward, update.

    Parameters
    ----------
    model, loss, optimizer : as for `gpunn.train.Trainer`; model and optimizer are copied first and
        stay as they are
    inputs : a Tensor or a sequence of Tensors, what ``model(*inputs)`` takes
    target : what ``loss(prediction, target)`` takes
    chip : "h200", "h100", "a100", or a `gpunn.profiling.chips.Chip`
    precision : "fp32", "tf32", "bf16" or "fp16", as of the Trainer; None leaves all as it is set
    name : of the step, for the text; else the model's class

    What the step computes has no meaning, because no kernel runs: a step that chooses its way by
    computed values cannot be explained.
    """
    chip = find_chip(chip) if isinstance(chip, str) else chip
    inputs = tuple(inputs) if isinstance(inputs, Sequence) else (inputs,)
    if not hasattr(optimizer, "step") or isinstance(optimizer, type):
        optimizer = optimizer(model.parameters())
    own, update = copy.deepcopy((model, optimizer))
    how = Precision(precision, inputs[0].device, update)
    with how.products():
        entries = note(lambda: one_step(own, loss, update, inputs, target, how), own, chip)
        rows = list(rows_of(entries, chip).values())
    batch = inputs[0].shape[0]
    fused, refusal = as_one_kernel(model, loss, optimizer, batch, precision, chip)
    found = Explanation(name or type(model).__name__, chip, rows, _plain(entries), fused)
    found.advice = advice(found, precision, refusal)
    return found


def note(
    step: Callable[[], Any],
    model: Any,
    chip: Chip,
    heard: Callable[[Entry, Any, tuple], None] | None = None,
) -> list[Entry]:
    """Run `step` without its kernels; its entries, with the launches of the kernels.

    With `heard` the kernels run as well, where the step's arrays are, and each call of a primitive
    is told as ``heard(entry, call, args)`` when it is done. Names of layers are as in `model`, or,
    if that is None, as in the outermost module that the step calls.
    """
    recording = Recording(Device("cpu"), clock=False)

    def take_notes(call, args) -> None:
        made, launches = call.primitive, recording.innermost.launches
        recording.remember(args)
        if heard is not None and call.device.type != "cpu":
            made.run_cuda(HearingLauncher(_real_launcher(made, call.device), launches), args)
            return
        launcher = NotingLauncher(
            made.cuda_source, chip.arch, chip.multiprocessors, chip.shared_limit
        )
        launcher.noted = launches
        made.run_cuda(launcher, args)
        # Of a step that is only noted the update still looks at the number on the CPU.
        if heard is not None or (made is advance_step and call.device.type == "cpu"):
            made._reference(*args)

    def listener(call, args, run) -> None:
        number = len(recording.entries)
        recording.kernel(call, args, take_notes)
        if heard is not None:
            heard(recording.entries[number], call, args)

    hooks.install()
    before = running.profile, running.recording, running.names
    running.profile = running.recording = recording
    running.names = LayerNames(model)
    try:
        with listening(listener), np.errstate(all="ignore"):  # nothing that is computed has meaning
            step()
    finally:
        running.profile, running.recording, running.names = before
        hooks.remove()
    recording.finish()
    return recording.entries


def _real_launcher(made: Any, device: Device) -> Launcher:
    if device.type == "cuda":
        return cuda_launcher(made.cuda_source, device)
    return emulator_launcher(made.cuda_source)


def kind_of(entry: Entry) -> tuple[str, ...]:
    """What kernels have in common that are alike but for the numbers in their layers' names."""
    pattern = re.sub(r"\d+", "*", entry.layer)
    return entry.name, entry.shapes, entry.dtype, entry.phase, pattern, entry.what


def rows_of(entries: list[Entry], chip: Chip) -> dict[tuple[str, ...], Row]:
    """Kernels of one kind as one row, in the order in which they first run."""
    found: dict[tuple[str, ...], Row] = {}
    for entry in entries:
        if entry.kind != "kernel":
            continue
        key = kind_of(entry)
        row = found.get(key)
        if row is None:
            floor, limit = _floor(entry, chip)
            found[key] = Row(
                entry.layer, entry.what, entry.phase, entry.name, entry.shapes, entry.dtype, 1,
                entry.launches, entry.flops, entry.bytes, floor, limit,
            )  # fmt: skip
        else:
            row.count += 1
            row.layer = _common(row.layer, entry.layer)
    return found


def _common(first: str, second: str) -> str:
    """Two names of layers as one, with "*" for the parts that differ."""
    parts = zip(first.split("."), second.split("."), strict=True)
    return ".".join(a if a == b else "*" for a, b in parts)


def _floor(entry: Entry, chip: Chip) -> tuple[float, str]:
    low = entry.dtype in ("float16", "bfloat16")
    tensor = any(
        _TENSOR_CORES.search(launch.source) or (low and _IN_16_BITS.match(launch.source))
        for launch in entry.launches
    )
    memory = entry.bytes / chip.bandwidth
    compute = entry.flops / chip.rate(entry.dtype, tensor)
    floor = max(memory, compute)
    if floor < LAUNCH_SECONDS:
        return floor, "launch"
    return floor, "memory" if memory >= compute else "compute"


def _plain(entries: list[Entry]) -> dict[str, int]:
    """Operations whose forward makes an array without a kernel of ours."""
    with_kernel = {entry.parent for entry in entries if entry.kind == "kernel"}
    found: dict[str, int] = {}
    for number, entry in enumerate(entries):
        forward = entry.kind == "operation" and entry.phase == "forward"
        if forward and number not in with_kernel:
            found[entry.name] = found.get(entry.name, 0) + 1
    return found
