"""`NaNWatch`: which layer made the first NaN or infinity, in which step, and from what."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import is_float, wide
from gpunn.autograd.tensor import Tensor
from gpunn.device import array_module, device_of, to_numpy
from gpunn.device.quiet import quietly
from gpunn.train.callbacks import Callback
from gpunn.train.running import TrainingError


@dataclass
class _Seen:
    """One tensor of a step: where it stood, and its extremes on the device."""

    where: str  # "forward", "backward" or "update"
    name: str
    extremes: Any = None  # (2,), minimum and maximum; None if the tensor has no elements
    inputs: Any = None  # (2,) of what the module was given
    weights: dict[str, Any] = field(default_factory=dict)  # (2,) of each of its own parameters
    output: Any = None  # the Tensor whose gradient is looked at after the step


@dataclass
class _Step:
    epoch: int
    step: int
    seen: list[_Seen] = field(default_factory=list)


class NaNWatch(Callback):
    """End the training at the first NaN or infinity, and say where it arose.

    The `TrainingError` names, in the order in which things happen in a step, the first of:

    - forward: the first module whose output is not finite, with the smallest and the largest of
      its inputs and its weights; then the loss function
    - backward: the module, counted from the loss, whose output's gradient is not finite: the
      operation behind it made that; then the first parameter whose gradient is not
    - update: the first parameter that is not finite afterwards

    It looks at every module of the model by forward hooks, so the training runs step by step: not
    as one kernel, and a compiled step is set aside while `fit` runs. Every output is read twice
    more, and gradients of outputs are kept until the end of the step: for finding a fault, not for
    everyday. The results are the same. On a GPU all is fetched every `every` steps, and the first
    fault among them is told; the weights have moved on by then.

    With precision "fp16" a gradient that overflows is ordinary (the step is skipped and the scale
    lowered), so gradients are not looked at there. Infinities that a module makes on purpose, such
    as masks of attention, are passed over where `allow_infinity` is set; then only NaN counts.

    Parameters
    ----------
    every : fetch from a GPU every so many steps; on the CPU each module is looked at at once
    gradients : look at gradients, too
    allow_infinity : only NaN counts

    Attributes
    ----------
    finding : the sentence that the error has, None while nothing was found
    """

    def __init__(self, every: int = 16, gradients: bool = True, allow_infinity: bool = False):
        if every < 1:
            raise ValueError(f"NaNWatch: every must be 1 or more, got {every}")
        self.every = int(every)
        self.gradients = self.reads_gradients = bool(gradients)
        self.allow_infinity = bool(allow_infinity)
        self.finding: str | None = None
        self._handles: list[Any] = []
        self._steps: list[_Step] = []
        self._epoch = self._step = 1
        self._compiled: Any = None
        self._watching = False

    # ---- when -----------------------------------------------------------------------------------

    def on_train_begin(self, trainer: Any) -> None:
        self.finding, self._steps = None, []
        self._trainer, self._epoch, self._step = trainer, trainer.epoch + 1, 1
        self._at_once = trainer.device.type == "cpu"
        self._compiled, trainer.step.compiled = trainer.step.compiled, None
        self._watching = True
        trainer.way = "step by step (NaNWatch looks into every step)"
        self._model = f"the model ({type(trainer.model).__name__})"
        for name, module in trainer.model.named_modules():
            self._listen(module, f"{name} ({type(module).__name__})" if name else self._model)
        if hasattr(trainer.loss, "register_forward_hook"):
            self._listen(trainer.loss, f"the loss ({type(trainer.loss).__name__})")

    def _listen(self, module: Any, name: str) -> None:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            # While it is validated the model is not in training.
            if self._trainer.model.training:
                self._see(name, module, inputs, output)

        self._handles.append(module.register_forward_hook(hook))

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        self._epoch, self._step = epoch, 1

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        self._see_update(trainer, epoch, step)
        self._epoch, self._step = epoch, step + 1
        last = step == trainer.steps  # then the Trainer itself will look at the loss
        if self._at_once or last or len(self._steps) >= self.every:
            self._judge()

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        self._judge()

    def on_train_end(self, trainer: Any) -> None:
        if not self._watching:  # another callback failed before this one's turn came
            return
        self._watching = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        trainer.step.compiled = self._compiled
        error = sys.exc_info()[1]
        if isinstance(error, TrainingError) and self.finding is None:
            self._explain(error)
        self._steps = []

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])  # a run may go on within an epoch

    def _explain(self, error: TrainingError) -> None:
        """Add to the Trainer's own error what is known."""
        try:
            self._judge()
            self.finding = (
                "NaNWatch: the outputs of all modules were finite up to there, so the loss "
                "function made it"
            )
            error.add_note(self.finding)
        except TrainingError as found:
            error.add_note(str(found))

    # ---- looking --------------------------------------------------------------------------------

    def _now(self) -> _Step:
        if not self._steps or (self._steps[-1].epoch, self._steps[-1].step) != (
            self._epoch,
            self._step,
        ):
            self._steps.append(_Step(self._epoch, self._step))
        return self._steps[-1]

    def _see(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        for tensor in _tensors(output):
            seen = _Seen("forward", name, _extremes(tensor.array))
            if self._at_once:
                if self._bad(seen.extremes):
                    seen.inputs, seen.weights = _extremes_of(inputs), _weights(module)
                    self._tell(seen, self._now())
            else:  # by the time it is known the weights have moved on
                seen.inputs, seen.weights = _extremes_of(inputs), _weights(module)
            if self.gradients and tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
                seen.output = tensor
            self._now().seen.append(seen)

    def _see_update(self, trainer: Any, epoch: int, step: int) -> None:
        self._epoch, self._step = epoch, step
        now = self._now()
        outputs = [seen for seen in now.seen if seen.output is not None]
        if self.gradients and trainer.precision.name != "fp16":
            for seen in reversed(outputs):
                if seen.output.grad is not None:
                    found = _extremes(seen.output.grad.array)
                    now.seen.append(_Seen("backward", seen.name, found))
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    found = _extremes(parameter.grad.array)
                    now.seen.append(_Seen("backward", f"the parameter {name}", found))
        for seen in outputs:
            seen.output = None
        for name, parameter in trainer.model.named_parameters():
            if is_float(parameter.dtype):
                now.seen.append(_Seen("update", name, _extremes(parameter.array)))

    # ---- judging --------------------------------------------------------------------------------

    def _bad(self, extremes: Any) -> bool:
        if extremes is None:
            return False
        low, high = (float(edge) for edge in to_numpy(extremes))
        if self.allow_infinity:
            return math.isnan(low) or math.isnan(high)
        return not (math.isfinite(low) and math.isfinite(high))

    def _judge(self) -> None:
        """Look at the steps that are kept, and forget them. TrainingError at the first fault."""
        steps, self._steps = self._steps, []
        flat = [(step, seen) for step in steps for seen in step.seen if seen.extremes is not None]
        if not flat:
            return
        xp = array_module(device_of(flat[0][1].extremes))
        extremes = to_numpy(xp.stack([seen.extremes for _, seen in flat]))
        for (step, seen), found in zip(flat, extremes, strict=True):
            if self._bad(found):
                seen.extremes = found
                self._tell(seen, step)

    def _tell(self, seen: _Seen, step: _Step) -> None:
        low, high = (float(edge) for edge in to_numpy(seen.extremes))
        kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinity"
        place = f"epoch {step.epoch}, step {step.step}"
        if seen.where == "forward":
            text = f"the first {kind} is in the output of {seen.name}"
            if seen.inputs is not None:
                text += f"; its inputs lay from {_span(seen.inputs)}"
            for name, extremes in seen.weights.items():
                text += f", its {name} from {_span(extremes)}"
        elif seen.where == "backward":
            text = f"every output was finite, and the first {kind} is in the gradient "
            if seen.name.startswith("the parameter"):
                text += f"of {seen.name}"
            else:
                last = seen.name == self._model
                maker = "the loss function" if last else "what follows it"
                text += f"at the output of {seen.name}: {maker} made that"
        else:
            text = (
                f"outputs and gradients were finite, and the update made {kind} of the parameter "
                f"{seen.name}; use a smaller learning rate, or a larger eps of the optimizer"
            )
        self.finding = f"NaNWatch: in {place} ({seen.where}) {text}"
        raise TrainingError(self.finding)


def _weights(module: Any) -> dict[str, Any]:
    """(2,) for each of a module's own parameters."""
    return {
        name: _extremes(parameter.array)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.array.size
    }


def _span(extremes: Any) -> str:
    low, high = to_numpy(extremes)
    return f"{float(low):.4g} to {float(high):.4g}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating Tensors in what a module is given or gives."""
    if isinstance(value, Tensor):
        if is_float(value.dtype) and value.array.size:
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _extremes(array: Any) -> Any:
    """(2,) minimum and maximum; NaN if there is one. None of an empty array."""
    if not array.size:
        return None
    xp = array_module(device_of(array))
    with quietly():
        array = wide(array)
        return xp.stack([array.min(), array.max()])


def _extremes_of(values: Any) -> Any:
    """(2,) over all floating Tensors in `values`; None if there are none."""
    found = [_extremes(tensor.array).astype(np.float64) for tensor in _tensors(values)]
    if not found:
        return None
    xp = array_module(device_of(found[0]))
    both = xp.stack(found)
    return xp.stack([both[:, 0].min(), both[:, 1].max()])
