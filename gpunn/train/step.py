"""`TrainStep`: all that is done with one batch, as one function that can be compiled."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpunn.autograd.random import get_rng_state, set_rng_state
from gpunn.device import Device
from gpunn.distributed import GradientSync, Group
from gpunn.distributed.loss import Divisor, begin_divisor, global_mean
from gpunn.errors import StepError
from gpunn.train.carried import Carried
from gpunn.train.inputs import check_labels, match_target
from gpunn.train.metrics import Metric
from gpunn.train.precision import Precision
from gpunn.train.ranks import raise_together
from gpunn.train.regularization import Regularization
from gpunn.train.running import LossMean, NonFiniteLoss

_FETCH_EVERY = 64  # steps between two looks at the loss on a GPU; on the CPU it costs nothing
_NEVER = 2**62  # on the CPU the ranks tell each other with the gradients


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
    group : ranks that train together; each gives its rows of every batch, and the sum over ranks
        is the loss, and the gradient, of the whole batch

    Attributes
    ----------
    mean : the running mean of the loss
    sync : the `GradientSync`; None without a group
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
        group: Group | None = None,
    ):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.regularization, self.precision = regularization, precision
        self._on_cpu = device.type == "cpu"
        self.group, self.sync = group, None if group is None else GradientSync(optimizer, group)
        self._bad: NonFiniteLoss | None = None  # on the CPU, of this rank's part of a batch
        every = _FETCH_EVERY if not self._on_cpu else 1 if group is None else _NEVER
        self.mean = LossMean(is_summed(loss), every, device, group)
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
        last: bool = True, rows: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Train on one batch, or one of `parts` whose gradients are added up.

        `first` forgets the gradients before, `last` updates the weights after. `rows`: with other
        ranks, how many this one has of the batch, and how many the whole batch has; of 0 it has one
        in their place, which does not count.
        """
        prediction = self._run(first, parts, last, rows, *inputs, target)
        if rows is None or rows[0]:
            for metric in self._outside:
                metric.update(prediction.array, target.array)
        if self.group is not None:
            self.group.check()  # whether the GPUs have lost each other
        if not self._on_cpu or self.group is not None:
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

    def _batch(
        self, first: bool, parts: int, last: bool, rows: tuple[int, int] | None, *fields: Any
    ) -> Any:
        inputs, target = fields[:-1], fields[-1]
        if first:
            self.optimizer.zero_grad()
        counting = contextlib.nullcontext() if self.group is None else self.group.counting(rows)
        with self.precision.products(), counting:
            prediction, loss = self._forward(inputs, target, rows)
            self._measure(loss, target, rows)
            if parts > 1 and not self.mean.summed:
                loss = loss / parts
            self._backward(loss, last)
        if last:
            self.precision.unscale()
            self.regularization.apply()
            self.optimizer.step()
            self.precision.update()
        if rows is None or rows[0]:
            for metric, carried in self._inside:
                carried.update(partial(metric.update, prediction.array, target.array))
        return prediction.detach()

    def _forward(
        self, inputs: Sequence[Any], target: Any, rows: tuple[int, int] | None
    ) -> tuple[Any, Any]:
        begun = None
        if rows is not None and self.group is not None:
            begun = begin_divisor(self.loss, target, rows[0], self.group)
        with self.precision.forward():
            prediction = self.model(*inputs)
            if self._loader is not None:
                check_labels(self._loader, self.loss, prediction)
                self._loader = None
            loss = scalar_loss(self.loss, prediction, target, rows, self.group, begun)
            return prediction, loss

    def _measure(self, loss: Any, target: Any, rows: tuple[int, int] | None) -> None:
        """Add to the mean of the loss; on the CPU a NaN ends the training before the update."""
        if rows is None:
            self.mean.add(loss.array, target.shape[0])
            if self._on_cpu:
                self.mean.tick()
            return
        self.mean.add(loss.array, *rows)
        if self._on_cpu and self._bad is None and not math.isfinite(value := float(loss.array)):
            self._bad = NonFiniteLoss(self.mean.steps + 1, value)

    def _backward(self, loss: Any, last: bool) -> None:
        if self.sync is None or self.group is None:
            self.precision.scaled(loss).backward()
            return
        bad = self._bad is not None
        quiet = np.errstate(all="ignore") if bad else contextlib.nullcontext()
        with self.sync.backward(failed=bad) if last else contextlib.nullcontext(), quiet:
            self.precision.scaled(loss).backward()  # if bad, too: others wait in its batch norms
        if last and self.sync.failed:
            error, self._bad = self._bad, None
            raise_together(self.group, error)


def scalar_loss(
    loss: Callable[..., Any], prediction: Any, target: Any,
    rows: tuple[int, int] | None = None, group: Group | None = None, begun: Divisor | None = None,
) -> Any:  # fmt: skip
    """The loss of a batch, a Tensor of shape (). ValueError if it has another shape.

    With the ranks of a group, of which this one has ``rows[0]`` of the ``rows[1]`` rows of the
    batch, it is what this one adds to the loss of the whole batch; `begun` from `begin_divisor`.
    """
    target = match_target(loss, prediction, target)
    if rows is None or group is None:
        found = loss(prediction, target)
    else:
        found = global_mean(loss, prediction, target, *rows, group, begun)
    if found.shape != ():
        raise ValueError(
            f"Trainer: the loss has shape {found.shape}, expected (); use reduction='mean' or 'sum'"
        )
    return found


def is_summed(loss: Any) -> bool:
    """Whether a loss is a sum over the samples of its batch, not a mean."""
    return getattr(loss, "reduction", "mean") == "sum"


def updates(batches: int, parts: int) -> int:
    """How many weight updates an epoch of so many batches makes."""
    return math.ceil(batches / parts)
