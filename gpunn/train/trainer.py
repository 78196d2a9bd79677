"""`Trainer`: fit, evaluate and predict."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunn.autograd.mode import no_grad
from gpunn.autograd.random import initial_seed
from gpunn.device import Device, as_device, to_numpy
from gpunn.distributed import Group
from gpunn.train.alike import same_data
from gpunn.train.callbacks import Callback, CallbackList
from gpunn.train.checkpoint import Checkpoints
from gpunn.train.checkpointing import Checkpointing
from gpunn.train.history import History
from gpunn.train.inputs import (
    as_loader,
    check_labels,
    input_batches,
    model_device,
    model_dtype,
    split_batch,
)
from gpunn.train.loop import Loop
from gpunn.train.metrics import as_metric
from gpunn.train.parts import check_parts, is_made, make_profiler, make_schedule
from gpunn.train.precision import Precision
from gpunn.train.progress import ProgressBar
from gpunn.train.ranks import (
    as_group,
    begin_together,
    check_alone,
    end_together,
    join,
    set_batch_norm,
    with_rows,
)
from gpunn.train.regularization import Regularization
from gpunn.train.running import LossMean, NonFiniteLoss
from gpunn.train.step import TrainStep, is_summed, scalar_loss, updates


class Trainer:
    """Train a model, measure it, and predict with it.

    Parameters
    ----------
    model : an `nn.Module`; called as ``model(x)``, or ``model(x1, x2, …)`` for batches of several
        inputs
    loss : ``loss(prediction, target)`` giving a Tensor of shape (), such as `nn.CrossEntropyLoss()`
    optimizer : an optimizer of `gpunn.optim`, or a function ``parameters -> optimizer``
    metrics : names ("accuracy", "f1", "auc", "perplexity", "mse" …, all in
        `gpunn.train.metrics.METRICS`), `Metric` objects, or functions of (prediction, target) NumPy
        arrays
    callbacks : `Callback` objects
    device : where to train; None leaves the model where it is
    l1, l2 : adds ``l1·Σ|w| + l2·Σw²`` over the weights (parameters of two axes or more, so not the
        biases) to what is minimised; the reported loss is without it
    gradient_clip_norm : scale all gradients together so that their norm is at most this
    gradient_clip_value : clip each gradient element to ± this (before the norm)
    scheduler : a schedule of `gpunn.optim.lr_scheduler`, a function ``optimizer -> schedule``, or a
        `LearningRateScheduler` that says how often it steps
    seed : makes a run repeatable: shuffling and the random numbers of each epoch (dropout) depend
        on (seed, epoch) alone, so that ``fit(epochs=5)`` twice equals ``fit(epochs=10)``. It calls
        `gpunn.manual_seed`. None goes on from the global random state. The initial weights are
        those the model was given: call `gpunn.manual_seed` before making it.
    precision : "fp32"; "tf32" (operands of float32 products rounded to TF32, on a GPU); "bf16" or
        "fp16": products and convolutions in 16 bits, with float32 weights, losses and norms, and
        for fp16 a loss scale that adapts itself (see `gpunn.amp`). None: as it is set outside
    accumulate : batches whose gradients are added up for one weight update; a step is an update.
        The loss of each counts 1 / accumulate (a mean over all, if they are of one size)
    compile : trace the step once and replay it, see `gpunn.compile`. None: on a GPU, and where a
        step cannot be compiled a warning says why; True raises StepError then
    fused : train small multilayer perceptrons by one kernel for many steps (`gpunn.train.fused`).
        None: on a GPU, where it can be done; True raises ValueError where not, with the reason.
        The result is that of single steps to rounding.
    profile : True, or a folder: profile five steps of the first epoch, and print where their time
        goes or write it there (`gpunn.profiling.StepProfiler`, which may also be given)
    distributed : "auto": where mpirun, srun or torchrun started several processes, they train
        together, each on its rows of every batch, with the result of one process to rounding; see
        docs/distributed.md. True: RuntimeError if there is one alone. False: each for itself. Or a
        `gpunn.distributed.Group`
    sync_batch_norm : together, the statistics of batch norm are those of the whole batch, not of
        each rank's rows
    zero : 1: together, each rank keeps the optimizer's states of its part of the parameters only
        (ZeRO, stage 1); 0: every rank keeps all

    Attributes
    ----------
    history : the `History` of the latest `fit`
    epoch : epochs trained so far, over all calls of `fit`
    way : how the latest `fit` trained: "one kernel", "compiled" or "step by step", and why
    resumed : whether the latest `fit` went on from a checkpoint
    group : the ranks that train together; None alone
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[..., Any],
        optimizer: Any,
        metrics: Sequence[Any] = (),
        callbacks: Sequence[Callback] = (),
        device: Any = None,
        l1: float = 0.0,
        l2: float = 0.0,
        gradient_clip_norm: float | None = None,
        gradient_clip_value: float | None = None,
        scheduler: Any = None,
        seed: int | None = None,
        precision: str | None = None,
        accumulate: int = 1,
        compile: bool | None = None,
        fused: bool | None = None,
        profile: Any = False,
        distributed: Any = "auto",
        sync_batch_norm: bool = False,
        zero: int = 0,
    ):
        check_parts(model, loss, optimizer)
        if accumulate < 1:
            raise ValueError(f"Trainer: accumulate must be 1 or more, got {accumulate}")
        if zero not in (0, 1) or isinstance(zero, bool):
            raise ValueError(f"Trainer: zero is {zero!r}; expected 0, or 1 for stage 1 of ZeRO")
        self.model, self.loss = model, loss
        self.group = as_group(distributed)
        self.device = model_device(model) or as_device(None) if device is None else Device(device)
        if self.group is not None and self.device.type == "cuda":
            device = self.device = self.group.gpu()  # the model was made before there was a group
        if device is not None:
            model.to(self.device)  # an optimizer that was made before follows its parameters
        if hasattr(loss, "to"):
            loss.to(self.device)  # class weights
        self.optimizer = optimizer if is_made(optimizer) else optimizer(model.parameters())
        self.metrics = [as_metric(metric) for metric in metrics]
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"Trainer: two metrics have the same name: {', '.join(names)}")
        self.callbacks = list(callbacks)
        CallbackList(self.callbacks)  # refuses what is not a Callback, now rather than in fit
        self.regularization = Regularization(model, l1, l2, gradient_clip_norm, gradient_clip_value)
        self.scheduler = make_schedule(scheduler, self.optimizer)
        self.seed = None if seed is None else int(seed)
        self.epoch, self.history = 0, History()
        self.epochs, self.first_epoch = 0, 1
        self.steps: int | None = None
        self.resumed, self.steps_before = False, 0  # steps of this fit that were made before
        if self.group is not None:
            join(self.group, self, zero)
        else:
            check_alone(self.optimizer)
        self._sync_batch_norm = bool(sync_batch_norm)
        set_batch_norm(model, self.group, self._sync_batch_norm)
        self.precision = Precision(precision, self.device, self.optimizer)
        self.accumulate = int(accumulate)
        self.step = TrainStep(
            model, loss, self.optimizer, self.metrics, self.regularization, self.precision,
            self.device, compile, make_profiler(profile, model) if self._main else None, self.group,
        )  # fmt: skip
        self.fused, self.way = fused, "not trained yet"
        self._stop: str | None = None

    # ---- training -------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        validation: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        verbose: bool = True,
        shuffle: bool = True,
        transform: Callable[..., Any] | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
        resume: bool | str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for `epochs` epochs and return what was measured.

        Parameters
        ----------
        train, validation : ``(x, y)`` of arrays or Tensors, a dataset, a `DataLoader`, or another
            iterable of ``(x, y)`` batches. Arrays are moved to the device once; floating ones are
            given to the model in its own dtype.
        epochs : how many more epochs to train; of a run that is resumed, how many in all
        batch_size, shuffle, transform : for data that are not batches yet; `transform` changes
            training batches only (see `DataLoader`)
        verbose : show a progress bar
        checkpoint : a folder for checkpoints of this run, one after each epoch and every ten
            minutes; or `Checkpoints`, to say how often. Ctrl-C (or SIGTERM) then ends the training
            after the step under way, with a checkpoint; a second one at once. What it takes to go
            on exactly is kept: see docs/checkpoints.md
        resume : "auto": go on from the newest checkpoint in that folder, or begin if it has none;
            True: there must be one; a path: go on from that file; None or False: begin

        Returns
        -------
        History with one record an epoch: ``loss`` (the mean over samples, measured while training,
        so with dropout and before each update), the metrics, and the same of the validation data
        with the prefix ``validation_``. Ctrl-C ends the training after restoring what callbacks
        kept; then ``history.interrupted`` is True.

        Raises
        ------
        TrainingError if the loss becomes NaN or infinite; ValueError for empty data, shapes that do
        not match or labels outside the model's classes; FileExistsError if a run is begun in the
        checkpoint folder of another; FileFormatError for a checkpoint that is damaged or foreign,
        CheckpointError for one of another training; RuntimeError if ranks that train together have
        different models or data.
        """
        if epochs < 1:
            raise ValueError(f"fit: epochs must be 1 or more, got {epochs}")
        seed = initial_seed() if self.seed is None else self.seed
        set_batch_norm(self.model, self.group, self._sync_batch_norm)
        if self.group is not None:
            model, loss, optimizer = self.model, self.loss, self.optimizer
            seed = begin_together(self.group, model, loss, optimizer, seed, self.seed)
        loader = as_loader(
            train, "train", batch_size, self.device, shuffle=shuffle, seed=seed, transform=transform
        )
        if hasattr(loader, "set_epoch") and loader is not train:
            loader.set_epoch(self.epoch)
        if validation is not None:
            validation = as_loader(validation, "validation", max(batch_size, 256), self.device)
        for data, name in ((loader, "training"), (validation, "validation")):
            if self.group is not None and data is not None:
                same_data(self.group, data, name)
        self.epochs, self.first_epoch = int(epochs), self.epoch + 1
        known = hasattr(loader, "__len__")
        self.steps = updates(len(loader), self.accumulate) if known else None
        self.history, self._stop = History(), None
        self.resumed, self.steps_before = False, 0
        own = [self.scheduler] if self.scheduler else []
        shown = [ProgressBar()] if verbose else []
        callbacks = CallbackList([*own, *self.callbacks, *shown], self._main)
        say = print if verbose and self._main else _silent
        saver = Checkpointing(checkpoint, resume, say, self.group)
        Loop(self, loader, validation, callbacks, saver).run()
        if self.group is not None:
            end_together(self.group)
        return self.history

    @property
    def _main(self) -> bool:
        """Whether this process writes and prints."""
        return self.group is None or self.group.main

    def _reset_metrics(self) -> None:
        for metric in self.metrics:
            metric.reset()

    def running(self, collected: bool = True) -> dict[str, float]:
        """The loss and the scalar metrics of the running epoch so far; waits for the device.

        Of ranks that train together, while the epoch runs, each knows its own part. `collected`
        False leaves out metrics that go through all samples each time, as "auc" does.
        """
        if self.step.mean.empty:
            return {}
        values = {"loss": self.step.mean.value()}
        if not math.isnan(values["loss"]):
            values.update(
                (metric.name, metric.compute())
                for metric in self.metrics
                if metric.scalar and (collected or not metric.collects)
            )
        return values

    def summary(self) -> str:
        """How the latest `fit` trained, and, where steps are compiled, their kinds and memory."""
        compiled = self.step.compiled
        return "\n".join([f"way: {self.way}", *([compiled.summary()] if compiled else [])])

    def stop(self, reason: str) -> None:
        """End the training after the current epoch; `reason` goes into the history.

        Of ranks that train together one may say so for all.
        """
        self._stop = reason

    # ---- measuring and predicting ---------------------------------------------------------

    def evaluate(self, data: Any, batch_size: int = 256) -> dict[str, Any]:
        """The loss and every metric on `data`, without dropout and without learning.

        `data` as in `fit`. Returns ``{"loss": …, metric: …}``; the loss is the mean over samples.
        ValueError as in `fit`.
        """
        loader = as_loader(data, "evaluate", batch_size, self.device)
        was_training = self.model.training
        try:
            return self._measure(loader, "evaluate")
        finally:
            self.model.train(was_training)

    def _measure(
        self, loader: Any, name: str, after_batch: Callable[[], None] = lambda: None,
        group: Group | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The loss and all metrics; of the ranks of `group`, which take their rows of each batch"""
        self.model.eval()
        # A NaN is a result here, not the end of a training: nothing is fetched before the end.
        mean = LossMean(is_summed(self.loss), every=2**62, device=self.device, group=group)
        self._reset_metrics()
        dtype, samples = model_dtype(self.model), 0
        with no_grad():
            for batch, rows in with_rows(loader, group):
                inputs, target = split_batch(batch, self.device, dtype, name)
                with self.precision.forward():
                    prediction = self.model(*inputs)
                    if samples == 0:
                        check_labels(loader, self.loss, prediction)
                    loss = scalar_loss(self.loss, prediction, target, rows, group)
                own, whole = rows or (target.shape[0], target.shape[0])
                mean.add(loss.array, own, whole)
                for metric in self.metrics if own else ():
                    metric.update(prediction.array, target.array)
                samples += whole
                after_batch()
        if samples == 0:
            raise ValueError(f"{name}: the data gave no batches")
        for metric in self.metrics if group else ():
            metric.merge(group)
        try:
            mean.merge()
            loss = mean.value()
        except NonFiniteLoss as error:
            loss = error.value
        return {"loss": loss, **{metric.name: metric.compute() for metric in self.metrics}}

    def predict(self, x: Any, batch_size: int = 256) -> np.ndarray:
        """What the model gives for `x`, without dropout: a NumPy array (samples, …).

        `x` is an array or Tensor (samples, …), a dataset, or a loader; where their samples have
        several fields the last one is taken for the target and left out. ValueError for empty
        data; the model's own errors for shapes that do not match.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with no_grad():
                parts = [
                    to_numpy(self.model(*inputs).array)
                    for inputs in input_batches(x, batch_size, self.device, model_dtype(self.model))
                ]
        finally:
            self.model.train(was_training)
        if not parts:
            raise ValueError("predict: the data gave no batches")
        return np.concatenate(parts)


def _silent(text: str) -> None:
    """What is said where nothing shall be."""
