"""Epochs of the Trainer in one kernel: when that may be, and the loop around it.

`FusedNetwork` trains for many steps in one call. What the Trainer does around each step still
holds: a schedule moves on after every step (it is asked for all rates beforehand), the loss and the
accuracy are kept, the progress bar counts, the loader knows which batches were given. Ctrl-C comes
between two calls, so that all of these agree on how many steps were made.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.autocast import is_autocast_enabled
from gpunn.autograd.tensor import raw_array
from gpunn.data import DataLoader, TensorDataset
from gpunn.primitives.matmul_precision import get_matmul_precision
from gpunn.train.callbacks import Callback, CallbackList, LearningRateScheduler
from gpunn.train.fused import FusedNetwork, Refusal, batches_of, fused_plan
from gpunn.train.metrics import Accuracy
from gpunn.train.progress import ProgressBar

STEPS = 512  # of one launch: some milliseconds of a GPU
FIRST_STEPS, SECONDS = 16, 0.1  # on the host: of the first call; what the others should take


def fused_epochs(trainer: Any, loader: Any, callbacks: CallbackList) -> FusedEpochs | Refusal:
    """Epochs of `trainer` over `loader` in one kernel, or why not."""
    reason = _why_not(trainer, loader, callbacks)
    if reason:
        return Refusal(reason)
    plan = fused_plan(
        trainer.model, trainer.loss, trainer.optimizer, trainer.regularization, loader.batch_size
    )
    if isinstance(plan, Refusal):
        return plan
    if trainer.metrics and not plan.classifies:
        return Refusal("it counts hits among classes, and accuracy means something else here")
    if not trainer.fused and not plan.pays():
        return Refusal("step by step is estimated to be faster for a network and batch this large")
    try:
        data = plan.prepare(*(raw_array(array) for array in loader.dataset.arrays))
    except ValueError as error:
        return Refusal(str(error))
    return FusedEpochs(trainer, plan, data, loader)


def _why_not(trainer: Any, loader: Any, callbacks: CallbackList) -> str:
    """What, besides the network, stands against one kernel; "" if nothing does."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, TensorDataset):
        return "the data are not arrays"
    if len(loader.dataset.arrays) != 2:
        return f"a sample has {len(loader.dataset.arrays)} fields, not 2"
    if loader.part != (0, 1):
        return "its loader gives a part of each batch"
    if loader.transform is not None or loader.collate_fn is not None:
        return "batches are transformed one by one"
    if trainer.accumulate > 1:
        return "gradients are accumulated"
    if trainer.group is not None:
        return "several processes train together"
    exact = get_matmul_precision() == "highest" and not is_autocast_enabled()
    if trainer.precision.name not in (None, "fp32") or not exact:
        return "it computes in float32"
    if trainer.step.profiler is not None:
        return "steps are profiled one by one"
    for metric in trainer.metrics:
        if type(metric) is not Accuracy or metric.ignore_index is not None:
            return f"the metric {metric.name} needs every prediction"
    for callback in callbacks.callbacks:
        own = type(callback).on_batch_end is not Callback.on_batch_end
        own = getattr(callback, "wants_steps", own)
        if own and type(callback) not in (ProgressBar, LearningRateScheduler):
            return f"{type(callback).__name__} wants to see every step"
    return ""


class FusedEpochs:
    """The loop over an epoch, some hundred steps at a time.

    Parameters
    ----------
    network, data : what `fused_plan` and its `prepare` gave
    """

    def __init__(
        self, trainer: Any, network: FusedNetwork, data: tuple[Any, Any], loader: DataLoader
    ):
        self.trainer, self.network, self.data, self.loader = trainer, network, data, loader

    def run(
        self,
        place: Any,
        callbacks: CallbackList,
        room: Callable[..., Any],
        after: Callable[..., Any],
    ) -> str:
        """Train one epoch, the rest of it if the loader stands in the middle.

        Parameters
        ----------
        place : of the `Loop`: which epoch, and how many of its steps were made before
        room : () -> steps that a call may make at most, or None; it is asked before each
        after : called with the number of steps after each call

        Returns "", or after training nothing why one kernel cannot do it any more: callbacks may
        have changed the model, the loss or the optimizer since the last epoch.
        """
        trainer, loader = self.trainer, self.loader
        plan = fused_plan(
            trainer.model, trainer.loss, trainer.optimizer, trainer.regularization,
            loader.batch_size,
        )  # fmt: skip
        if isinstance(plan, Refusal):
            return plan.reason
        self.network = plan
        stands = loader.state_dict()
        number, first = stands["epoch"], stands["batch"]
        order = loader.order(number)[first * loader.batch_size :]
        batches = batches_of(order, loader.batch_size, loader.drop_last)
        loader.given(number, first)
        done = 0
        for count in self._counts(len(batches), room):
            with whole():
                self._train(batches[done : done + count], place.number, place.step, callbacks)
                done += count
                loader.given(number, first + done)
            after(count)
        return ""

    def _counts(self, steps: int, room: Callable[..., Any]) -> Iterator[int]:
        """The steps of each call: on the host so many that Ctrl-C is heard soon."""
        on_gpu = self.trainer.device.type == "cuda"
        most = STEPS if on_gpu else min(FIRST_STEPS, STEPS)
        while steps:
            limit = room()
            count = min(most, steps, steps if limit is None else limit)
            begin = time.perf_counter()
            yield count
            steps -= count
            if not on_gpu:
                each = max(time.perf_counter() - begin, 1e-6) / count
                most = max(1, min(STEPS, int(SECONDS / each)))

    def _train(self, batches: np.ndarray, epoch: int, start: int, callbacks: CallbackList) -> None:
        """Train with these batches, of which the first is number `start` of this run."""
        trainer = self.trainer
        schedules = [c for c in callbacks.callbacks if isinstance(c, LearningRateScheduler)]
        others = [c for c in callbacks.callbacks if c not in schedules]
        values = list(self._values(schedules, epoch, start, len(batches)))
        losses, correct = self.network.run(*self.data, batches, values)
        counts = (batches >= 0).sum(axis=1)
        trainer.step.mean.add_steps(losses, counts)
        for metric in trainer.metrics:
            metric.add(correct.sum(), int(counts.sum()))
        for step in range(start, start + len(batches)):
            for callback in others:
                callback.on_batch_end(trainer, epoch, step + 1)

    def _values(
        self, schedules: list[Any], epoch: int, start: int, steps: int
    ) -> Iterator[tuple[Any, ...]]:
        """Hyperparameters of each of the next steps; the schedules move on as if after each."""
        optimizer = self.trainer.optimizer
        with _steps_counted(optimizer):
            for step in range(start, start + steps):
                yield optimizer.hyper_values(optimizer.param_groups[0])
                optimizer._steps_made += 1
                for schedule in schedules:
                    schedule.on_batch_end(self.trainer, epoch, step + 1)


@contextlib.contextmanager
def _steps_counted(optimizer: Any) -> Iterator[None]:
    """Steps that are counted inside, for schedules that look whether one was made, are not after"""
    before = optimizer._steps_made
    try:
        yield
    finally:
        optimizer._steps_made = before


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Ctrl-C inside comes at the end: what is done there is done whole."""
    handler, waiting = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # signals go to the main thread, and here nobody listens to them
        return
    signal.signal(signal.SIGINT, lambda *what: waiting.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])
