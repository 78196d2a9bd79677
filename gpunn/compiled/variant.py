"""`Variant`: a compiled step for one kind of call, from the first run to the replay.

========  =============================  ===========================================
state     on a GPU and on the emulator   on the CPU
========  =============================  ===========================================
new       run as it is, under a trace    the same
warm      run; its memory is recorded    the same
planned   run in planned memory and      run in planned memory, each time
          captured
captured  replayed
========  =============================  ===========================================

The first run makes what is made once: kernels are compiled, optimizers make their state.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.autograd.autocast import forget as forget_low_copies
from gpunn.autograd.random import default_generator
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.compiled.signature import detached, map_tensors, rebuild
from gpunn.device import cpu_memory, device_of, empty, graph, tracing
from gpunn.device.transfer import Uploader
from gpunn.errors import GpunnError, StepError
from gpunn.primitives.random import advance_counter
from gpunn.text import bytes_text

if TYPE_CHECKING:
    from gpunn.compiled.step import CompiledStep

_uploader = functools.cache(Uploader)  # one for each device


class _Counter:
    """The state of `gpunn.random` in device memory, and what it is known to be."""

    def __init__(self, device: Any):
        self.array = empty((2,), np.uint64, device)
        self._upload = _uploader(device).upload
        self.known: tuple[int, int] | None = None

    def follow(self) -> None:
        """Make the device's state that of the generator."""
        state = default_generator.get_state()
        now = (state["seed"], state["offset"])
        if now != self.known:
            self._upload(np.array(now, np.uint64), out=self.array)
            self.known = now

    def advanced(self, draws: int) -> None:
        """The device has counted `draws`; so does the generator."""
        default_generator.take(draws)
        seed, offset = self.known
        self.known = (seed, offset + draws)


_counter = functools.cache(_Counter)  # one for each device


class Variant:
    """One kind of call of a compiled step.

    Attributes
    ----------
    state : "new", "warm", "planned" or "captured"
    calls : how often it ran
    captures : how often it was captured; more than once where arrays were replaced
    """

    def __init__(self, step: CompiledStep):
        self.step, self.device = step, step.device
        self.state, self.calls, self.captures = "new", 0, 0
        self.memory: Any = None
        self._on_cpu = step.device.type == "cpu"
        self.graph = None if self._on_cpu else graph.step_graph(self.device)
        self.inputs: list[Tensor] = []

    def run(self, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Any:
        """One call."""
        self.calls += 1
        if self.state == "captured":
            if self.trace.holds():
                return self._replay(tensors)
            self.state = "new"  # arrays were replaced: begin again with these
        if self._on_cpu:
            return self._run_on_cpu(args, kwargs)
        self._place(tensors)
        args, kwargs = rebuild(args, kwargs, self.inputs)
        if self.state == "new":
            self.state, result = "warm", self._traced(args, kwargs)
            return result
        if self.state == "warm":
            return self._record(args, kwargs)
        return self._capture(args, kwargs)

    # ---- runs of the step's Python ---------------------------------------------------------------

    def _traced(self, args: tuple, kwargs: dict) -> Any:
        """Run the function under a new trace, which is kept; results without their history."""
        self.trace = tracing.Trace(self.step.name)
        forget_low_copies()  # one in 16 bits that was made before would not be made again
        with tracing.tracing(self.trace):
            return map_tensors(self.step.function(*args, **kwargs), detached)

    def _watched(self, args: tuple, kwargs: dict) -> Any:
        """As `_traced`, and see what the function changed by Python alone."""
        step = self.step
        if step.side_effects == "allow":
            return self._traced(args, kwargs)
        before = step.reach.snapshot()
        result = self._traced(args, kwargs)
        changed = step.reach.changes(before, step.reach.snapshot())
        problems = [f"it changes {', '.join(changed)} outside itself"] if changed else []
        problems += [f"in a replay {call}" for call in step.reach.side_calls]
        if problems:
            text = (
                f"compiled step {step.name}: {'; '.join(problems)}. A replay repeats the work on "
                "the device, not the Python: return values from the step and use them outside, or "
                "pass side_effects='allow'"
            )
            if step.side_effects == "error":
                raise StepError(text)
            warnings.warn(text, stacklevel=5)
        return result

    def _run_on_cpu(self, args: tuple, kwargs: dict) -> Any:
        if self.state == "planned":
            if self.memory is None:
                return map_tensors(self.step.function(*args, **kwargs), detached)
            with self.memory.serving():
                return map_tensors(self.step.function(*args, **kwargs), detached)
        if self.state == "new":
            self.state, result = "warm", self._traced(args, kwargs)
            return result
        if not cpu_memory.CpuStepMemory.available():
            self.state, result = "planned", self._watched(args, kwargs)
            return result
        memory = cpu_memory.CpuStepMemory()
        with memory.recording():
            result = self._watched(args, kwargs)
        memory.make_plan()
        self.state, self.memory = "planned", memory
        return result

    def _record(self, args: tuple, kwargs: dict) -> Any:
        self.memory, self._using = graph.step_memory(self.device)
        with self.memory.recording(), self._using(self.memory):
            result = self._watched(args, kwargs)
        self.memory.make_plan()
        self.state = "planned"
        return result

    def _capture(self, args: tuple, kwargs: dict) -> Any:
        for prepare in self.trace.before:
            prepare()
        counter = _counter(self.device)
        counter.follow()
        had = [parameter.grad for parameter in self.step.parameters]
        with (
            self.memory.serving(),
            self._using(self.memory),
            default_generator.capturing(counter.array) as captured,
        ):

            def run() -> Any:
                result = self._traced(args, kwargs)
                if captured.draws:
                    advance_counter(counter.array, draws=captured.draws)
                return result

            self.outputs = self._captured(run)
        self._draws, self._counter = captured.draws, counter
        if self._draws:
            counter.advanced(self._draws)
        self._gradients = [
            (parameter, parameter.grad)
            for parameter, before in zip(self.step.parameters, had, strict=True)
            if (parameter.grad is None) != (before is None)
        ]
        self.trace.hold(self._places)
        self.state = "captured"
        self.captures += 1
        if not self.graph.runs_while_capturing:
            self.graph.replay()
        return self._results()

    def _captured(self, run: Any) -> Any:
        try:
            return self.graph.capture(run)
        except GpunnError:
            raise
        except Exception as error:
            if self.device.type != "cuda":
                raise
            raise StepError(
                f"compiled step {self.step.name}: it cannot be captured: {error}. Something in it "
                "waits for the GPU or is not ours; run that outside the step"
            ) from error

    # ---- replays ---------------------------------------------------------------------------------

    def _places(self) -> list:
        """The arrays that the capture refers to and that others might replace."""
        return [tensor._array for tensor in self.step.fixed]

    def _replay(self, tensors: list[Tensor]) -> Any:
        self._place(tensors)
        trace = self.trace
        for prepare in trace.before:
            prepare()
        if self._draws:
            self._counter.follow()
        self.graph.replay()
        if self._draws:
            self._counter.advanced(self._draws)
        for finish in trace.after:
            finish()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._results()

    def _results(self) -> Any:
        if not self.step.copy_outputs:
            return self.outputs
        return map_tensors(self.outputs, lambda tensor: wrap(tensor._array.copy(order="K")))

    def _place(self, tensors: list[Tensor]) -> None:
        """Copy the given Tensors into the step's own, which are made at the first call."""
        if not self.inputs and tensors:
            self.inputs = [self._input_like(tensor) for tensor in tensors]
        for own, given in zip(self.inputs, tensors, strict=True):
            target, source = own._array, given._array
            if target is source:
                continue
            if type(source) is np.ndarray:
                order = _order(target)
                _uploader(self.device).upload(
                    source.transpose(order), out=target.transpose(order)
                )
            else:
                self.graph.copy(target, source)

    def _input_like(self, tensor: Tensor) -> Tensor:
        array = tensor._array
        if type(array) is not np.ndarray and device_of(array) != self.device:
            raise StepError(
                f"compiled step {self.step.name}: an argument of shape {tensor.shape} is on "
                f"{tensor.device}, but the step is on {self.device}; move it with "
                f".to({str(self.device)!r})"
            )
        order = _order(array)
        own = empty(tuple(array.shape[axis] for axis in order), array.dtype, self.device)
        made = wrap(own.transpose(np.argsort(order)) if array.ndim > 1 else own)
        made._requires_grad = tensor._requires_grad
        return made

    # ---- for the summary -------------------------------------------------------------------------

    def row(self) -> list[str]:
        """Its line of the table, without the arguments."""
        kernels = str(self.graph.launches) if getattr(self.graph, "launches", None) else ""
        plan = getattr(self.memory, "plan", None)
        sizes = [""] * 3 if plan is None else map(bytes_text, (plan.size, plan.peak, plan.total))
        return [self.state, str(self.calls), *sizes, kernels]

    def notes(self) -> list[str]:
        """What the user may want to know."""
        found = []
        if self._on_cpu and not cpu_memory.CpuStepMemory.available():
            found.append(f"memory is not planned: {cpu_memory.CpuStepMemory.why_not()}")
        count, size = getattr(self.memory, "unplanned", (0, 0))
        if count:
            found.append(f"{count} allocations ({bytes_text(size)}) were not as recorded")
        if self.captures > 1:
            found.append(f"captured {self.captures} times, because arrays were replaced")
        return found


def _order(array: Any) -> list[int]:
    """The axes in the order in which they lie in memory, the outermost first."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
