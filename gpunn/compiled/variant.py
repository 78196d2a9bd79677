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

import contextlib
import functools
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.autograd.autocast import forget as forget_low_copies
from gpunn.autograd.random import default_generator
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.compiled.signature import check_result, detached, map_tensors, rebuild
from gpunn.device import cpu_memory, device_of, empty, graph, tracing
from gpunn.device.quiet import quietly
from gpunn.device.transfer import uploader
from gpunn.errors import GpunnError, StepError
from gpunn.primitives.random import advance_counter
from gpunn.text import bytes_text

if TYPE_CHECKING:
    from gpunn.compiled.step import CompiledStep


class _Counter:
    """The state of `gpunn.random` in device memory, and what it is known to be."""

    def __init__(self, device: Any):
        self.array = empty((2,), np.uint64, device)
        self._upload = uploader(device).upload
        self._known: tuple[int, int] | None = None

    def follow(self) -> None:
        """Make the device's state that of the generator.

        It counts as unknown until `advanced`: if that does not come, the run was broken off.
        """
        state = default_generator.get_state()
        now = (state["seed"], state["offset"])
        if now != self._known:
            self._upload(default_generator.counter_values(), out=self.array)
        self._known = None

    def advanced(self, draws: int) -> None:
        """The device has counted `draws`; so does the generator."""
        seed, offset = default_generator.take(draws)
        self._known = (seed, offset + draws)


_counter = functools.cache(_Counter)  # one for each device


class Variant:
    """One kind of call of a compiled step. It knows its step only while it runs, as `step`.

    Attributes
    ----------
    state : "new", "warm", "planned" or "captured"
    calls : how often it ran
    captures : how often it was captured; more than once where arrays were replaced
    """

    def __init__(self, device: Any):
        self.device = device
        self.state, self.calls, self.captures = "new", 0, 0
        self.memory: Any = None
        self._on_cpu = device.type == "cpu"
        self.graph: Any = None if self._on_cpu else graph.step_graph(device)
        self.inputs: list[Tensor] = []

    def run(
        self,
        step: CompiledStep,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """One call."""
        with graph.on(self.device):
            return self._run(step, args, kwargs, tensors)

    def _run(
        self,
        step: CompiledStep,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        self.calls += 1
        if self.state == "captured":
            if self._holds(step):
                return self._replay(step, tensors)
            self.state = "new"  # arrays were replaced: begin again with these
        if self._on_cpu:
            return self._run_on_cpu(step, args, kwargs, tensors)
        self._place(step, tensors)
        args, kwargs = rebuild(args, kwargs, self.inputs)
        if self.state == "new":
            self.state, result = "warm", self._traced(step, args, kwargs)
            return result
        if self.state == "warm":
            return self._record(step, args, kwargs)
        return self._capture(step, args, kwargs)

    # ---- runs of the step's Python ---------------------------------------------------------------

    def _traced(self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function under a new trace, which is kept; results without their history."""
        self.trace = tracing.Trace(step.name)
        forget_low_copies()  # one in 16 bits that was made before would not be made again
        with tracing.tracing(self.trace):
            result = step.function(*args, **kwargs)
        forget_low_copies()  # and one that was made inside lies in the step's memory
        return map_tensors(result, detached)

    def _watched(
        self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Any]
    ) -> Any:
        """As `_traced`, and see what the function changed that a replay would not."""
        before, places = step.reach.snapshot(), self._places(step)
        registered = step.reach.registered()
        versions = [tensor._cell[0] for tensor in tensors]
        result = self._traced(step, args, kwargs)
        try:
            check_result(step.name, result)
            self._check_places(step, places)
            for name, tensor in step.reach.registered().items():
                if registered.get(name) is not tensor:
                    self._refuse_replacing(step, name)
            self._check_arguments(step, tensors, versions)
            if step.side_effects != "allow":
                self._tell_side_effects(step, step.reach.changes(before, step.reach.snapshot()))
        except StepError as error:
            error.completed, error.result = True, result
            raise
        return result

    @staticmethod
    def _check_arguments(step: CompiledStep, tensors: list[Tensor], versions: list[int]) -> None:
        for number, (tensor, version) in enumerate(zip(tensors, versions, strict=True)):
            if tensor._cell[0] != version:
                raise StepError(
                    f"compiled step {step.name}: it writes into its argument Tensor {number}, of "
                    f"shape {tensor.shape}, and a replay has a copy of that; write into a .clone() "
                    "and return it, or let the step reach the tensor by its closure"
                )

    @staticmethod
    def _tell_side_effects(step: CompiledStep, changed: list[str]) -> None:
        problems = [f"it changes {', '.join(changed)} outside itself"] if changed else []
        problems += [f"in a replay {call}" for call in step.reach.side_calls]
        if not problems:
            return
        text = (
            f"compiled step {step.name}: {'; '.join(problems)}. A replay repeats the work on the "
            "device, not the Python: return values from the step and use them outside, or pass "
            "side_effects='allow'"
        )
        if step.side_effects == "error":
            raise StepError(text)
        warnings.warn(text, stacklevel=8)

    def _run_on_cpu(
        self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Any]
    ) -> Any:
        if self.state == "planned":
            memory = contextlib.nullcontext() if self.memory is None else self.memory.serving()
            with quietly(), memory:
                return map_tensors(step.function(*args, **kwargs), detached)
        if self.state == "new":
            self.state, result = "warm", self._traced(step, args, kwargs)
            return result
        if not cpu_memory.CpuStepMemory.available():
            self.state, result = "planned", self._watched(step, args, kwargs, tensors)
            return result
        memory = cpu_memory.CpuStepMemory()
        with memory.recording():
            result = self._watched(step, args, kwargs, tensors)
        memory.make_plan()
        self.state, self.memory = "planned", memory
        return result

    def _record(self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.memory, self._using = graph.step_memory(self.device, arena=step.arena)
        with self.memory.recording(), self._using(self.memory):
            result = self._watched(step, args, kwargs, self.inputs)
        self.graph.make_room()
        self.memory.make_plan()
        self.state = "planned"
        return result

    def _capture(self, step: CompiledStep, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for prepare in self.trace.before:
            prepare()
        counter = _counter(self.device)
        counter.follow()
        parameters = step.parameters
        had, places = [parameter.grad for parameter in parameters], self._places(step)
        versions = [tensor._cell[0] for tensor in step.fixed]
        with (
            self.memory.serving(),
            self._using(self.memory),
            default_generator.capturing(counter.array) as captured,
        ):

            def run() -> Any:
                result = self._traced(step, args, kwargs)
                if captured.draws:
                    advance_counter(counter.array, draws=captured.draws)
                return result

            try:
                self.outputs = self._captured(step, run)
                self._check_places(step, places)
            except BaseException:
                if not self.graph.runs_while_capturing:  # no gradient was computed
                    for parameter, grad in zip(parameters, had, strict=True):
                        parameter.grad = grad
                raise
        self._draws, self._counter = captured.draws, counter
        if self._draws:
            counter.advanced(self._draws)
        self._note_gradients(parameters, had)
        self._fixed = places
        self._written = [  # beside what optimizers write, who count themselves
            tensor._cell
            for tensor, version in zip(step.fixed, versions, strict=True)
            if tensor._cell[0] != version and tensor not in step.optimized
        ]
        self.state = "captured"
        self.captures += 1
        if not self.graph.runs_while_capturing:
            self.graph.replay()
        return self._results(step)

    def _captured(self, step: CompiledStep, run: Any) -> Any:
        try:
            return self.graph.capture(run)
        except GpunnError:
            raise
        except Exception as error:
            if self.device.type != "cuda":
                raise
            raise StepError(
                f"compiled step {step.name}: it cannot be captured: {error}"
                f"{tracing.place_of(error)}. Something in it waits for the GPU, or copies from the "
                "host, or is not ours; do that outside the step"
            ) from error

    # ---- what a capture refers to ----------------------------------------------------------------

    @staticmethod
    def _places(step: CompiledStep) -> list[Any]:
        """The arrays that a capture refers to and that others might replace."""
        return [tensor._array for tensor in step.fixed]

    def _holds(self, step: CompiledStep) -> bool:
        """Whether a replay works on the arrays that there are now."""
        for tensor, array in zip(step.fixed, self._fixed, strict=True):
            if tensor._array is not array:
                return False
        return self.trace.holds() and self._take_gradients()

    def _check_places(self, step: CompiledStep, before: list[Any]) -> None:
        """Refuse a step that gives a parameter other memory, which a replay would not read."""
        for tensor, array in zip(step.fixed, before, strict=True):
            if tensor._array is not array:
                self._refuse_replacing(step, step.reach.name_of(tensor))

    @staticmethod
    def _refuse_replacing(step: CompiledStep, name: str) -> None:
        raise StepError(
            f"compiled step {step.name}: it puts another array or Tensor in the place of {name}, "
            "and a replay would go on with the old one; write into it inside no_grad(), for "
            "example p -= rate * p.grad or mean.mul_(0.9).add_(x)"
        )

    def _note_gradients(self, parameters: list[Tensor], had: list[Any]) -> None:
        """Which gradients the capture adds to, and which it leaves to the parameters."""
        self._given = [
            (parameter, grad._array)
            for parameter, grad in zip(parameters, had, strict=True)
            if grad is not None
        ]
        self._left = [
            (parameter, parameter.grad)
            for parameter, grad in zip(parameters, had, strict=True)
            if parameter.grad is not grad
        ]

    def _take_gradients(self) -> bool:
        """Bring gradients that others assigned to where the capture has them, if they fit."""
        for parameter, array in self._given:
            grad: Any = parameter.grad
            if grad._array is array:
                continue
            given = grad._array
            if given.shape != array.shape or given.dtype != array.dtype:
                return False
            if device_of(given) != self.device:
                return False
            self.graph.copy(array, given)
            parameter.grad = wrap(array)
        return True

    # ---- replays ---------------------------------------------------------------------------------

    def _replay(self, step: CompiledStep, tensors: list[Tensor]) -> Any:
        self._place(step, tensors)
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
        for parameter, gradient in self._left:
            parameter.grad = gradient
        for cell in self._written:
            cell[0] += 1  # a graph that saved the old value must not be used
        return self._results(step)

    def _results(self, step: CompiledStep) -> Any:
        if not step.copy_outputs:
            return self.outputs
        return map_tensors(self.outputs, lambda tensor: wrap(tensor._array.copy(order="K")))

    def _place(self, step: CompiledStep, tensors: list[Tensor]) -> None:
        """Copy the given Tensors into the step's own, which are made at the first call."""
        if not self.inputs and tensors:
            self.inputs = [self._input_like(step, tensor) for tensor in tensors]
        for own, given in zip(self.inputs, tensors, strict=True):
            target, source = own._array, given._array
            if target is source:
                continue
            if type(source) is np.ndarray:
                order = _order(target)
                uploader(self.device).upload(source.transpose(order), out=target.transpose(order))
            else:
                self.graph.copy(target, source)

    def _input_like(self, step: CompiledStep, tensor: Tensor) -> Tensor:
        array = tensor._array
        if type(array) is not np.ndarray and device_of(array) != self.device:
            raise StepError(
                f"compiled step {step.name}: an argument of shape {tensor.shape} is on "
                f"{tensor.device}, but the step is on {self.device}; move it with "
                f".to({str(self.device)!r})"
            )
        order = _order(array)
        own = empty(tuple(array.shape[axis] for axis in order), array.dtype, self.device)
        return wrap(own.transpose(np.argsort(order).tolist()) if array.ndim > 1 else own)

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
