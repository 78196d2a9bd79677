"""`TrainStep`: all that is done with one batch, as one function that can be compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpunn.autograd.random import get_rng_state, set_rng_state
from gpunn.device import Device
from gpunn.errors import StepError
from gpunn.train.carried import Carried
from gpunn.train.inputs import check_labels, match_target
from gpunn.train.metrics import Metric
from gpunn.train.precision import Precision
from gpunn.train.regularization import Regularization
from gpunn.train.running import LossMean

_FETCH_EVERY = 64  # steps between two looks at the loss on a GPU; on the CPU it costs nothing


class TrainStep:
    """Forward, loss, backward, penalties and clipping, update, metrics.

    Parameters
    ----------
    model, loss, optimizer, metrics, regularization, precision : the parts, as the Trainer has them
    device : where they are
    compiled : replay the step (see `gpunn.compile`); None: on a GPU, and if it cannot be compiled,
        say why and go on without
    profiler : a `gpunn.profiling.StepProfiler`, or None; steps that it looks at are not replayed,
        so that it sees their kernels

    Attributes
    ----------
    mean : the running mean of the loss
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[..., Any],
        optimizer: Any,
        metrics: Sequence[Metric],
        regularization: Regularization,
        precision: Precision,
        device: Device,
        compiled: bool | None,
        profiler: Any = None,
    ):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.regularization, self.precision = regularization, precision
        self._on_cpu = device.type == "cpu"
        self.mean = LossMean(is_summed(loss), 1 if self._on_cpu else _FETCH_EVERY, device)
        self._inside = [(metric, Carried(metric)) for metric in metrics if metric.in_step]
        self._outside = [metric for metric in metrics if not metric.in_step]
        self.may_fail, self.profiler = compiled is None, profiler
        self.compiled: Any = None
        if self._wanted(device, compiled):
            self._compile()
        self._loader: Any = None  # while its labels are still to be checked

    @staticmethod
    def _wanted(device: Device, compiled: bool | None) -> bool:
        return device.type == "cuda" if compiled is None else compiled

    def _compile(self) -> None:
        from gpunn.compiled import CompiledStep  # not needed by those who do not compile

        # Four parts of an update and a last batch of another size make eight kinds of calls.
        self.compiled = CompiledStep(
            self._batch,
            uses=(self.model, self.optimizer, self.loss, self.regularization),
            max_signatures=16,
            copy_outputs=False,
            name="of the Trainer",
        )

    def check(self, loader: Any) -> None:
        """At the next step, compare the loader's labels with the model's classes."""
        self._loader = loader

    def __call__(
        self, inputs: Sequence[Any], target: Any, first: bool = True, parts: int = 1,
        last: bool = True,
    ) -> None:  # fmt: skip
        """Train on one batch, or one of `parts` whose gradients are added up.

        `first` forgets the gradients before, `last` updates the weights after.
        """
        prediction = self._run(first, parts, last, *inputs, target)
        for metric in self._outside:
            metric.update(prediction.array, target.array)
        if not self._on_cpu:
            self.mean.tick()

    def _run(self, *arguments: Any) -> Any:
        if self.profiler is not None and self.profiler.report is None:
            with self.profiler.around_step():
                return self._batch(*arguments)
        if self.compiled is None or self._loader is not None:  # labels are read on the host
            return self._batch(*arguments)
        if not self.may_fail:
            return self.compiled(*arguments)
        random, metrics = get_rng_state(), [dict(vars(metric)) for metric, _ in self._inside]
        try:
            return self.compiled(*arguments)
        except StepError as error:
            warnings.warn(f"Trainer: goes on without compiling: {error}", stacklevel=4)
            self.compiled = None
            if error.completed:
                return error.result
            set_rng_state(random)
            for (metric, _), values in zip(self._inside, metrics, strict=True):
                vars(metric).update(values)  # what was counted before the step broke off
            return self._batch(*arguments)

    def _batch(self, first: bool, parts: int, last: bool, *fields: Any) -> Any:
        inputs, target = fields[:-1], fields[-1]
        if first:
            self.optimizer.zero_grad()
        with self.precision.products():
            prediction, loss = self._forward(inputs, target)
            self.mean.add(loss.array, target.shape[0])
            if self._on_cpu:
                self.mean.tick()  # a NaN ends the training before it gets into the weights
            if parts > 1 and not self.mean.summed:
                loss = loss / parts
            self.precision.scaled(loss).backward()
        if last:
            self.precision.unscale()
            self.regularization.apply()
            self.optimizer.step()
            self.precision.update()
        for metric, carried in self._inside:
            carried.update(partial(metric.update, prediction.array, target.array))
        return prediction.detach()

    def _forward(self, inputs: Sequence[Any], target: Any) -> tuple[Any, Any]:
        with self.precision.forward():
            prediction = self.model(*inputs)
            if self._loader is not None:
                check_labels(self._loader, self.loss, prediction)
                self._loader = None
            return prediction, scalar_loss(self.loss, prediction, target)


def scalar_loss(loss: Callable[..., Any], prediction: Any, target: Any) -> Any:
    """The loss of a batch, a Tensor of shape (). ValueError if it has another shape."""
    found = loss(prediction, match_target(loss, prediction, target))
    if found.shape != ():
        raise ValueError(
            f"Trainer: the loss has shape {found.shape}, expected (); "
            "use reduction='mean' or 'sum'"
        )
    return found


def is_summed(loss: Any) -> bool:
    """Whether a loss is a sum over the samples of its batch, not a mean."""
    return getattr(loss, "reduction", "mean") == "sum"


def updates(batches: int, parts: int) -> int:
    """How many weight updates an epoch of so many batches makes."""
    return math.ceil(batches / parts)
