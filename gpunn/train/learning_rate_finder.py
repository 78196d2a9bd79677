"""`find_learning_rate`: the range test of learning rates, without a trace in the model."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.autograd.tensor import wrap
from gpunn.distributed import Group
from gpunn.train.alike import same_data
from gpunn.train.checkpoint import random_state, restore_random
from gpunn.train.inputs import as_loader, model_dtype, split_batch
from gpunn.train.ranks import broadcast_state, with_rows
from gpunn.train.resume import other_parameters
from gpunn.train.running import NonFiniteLoss
from gpunn.train.step import TrainStep


@dataclass(frozen=True)
class LearningRates:
    """What `find_learning_rate` measured.

    Attributes
    ----------
    rates, losses : (steps,) learning rates and the loss of the batch each was used for, before
        the update
    smoothed : (steps,) the losses, smoothed
    suggestion : where the smoothed loss falls fastest against the logarithm of the rate; NaN if
        it never falls
    steepest, lowest : numbers of the steps of the suggestion and of the smallest smoothed loss
    stopped : why it ended before its last step, or None
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float
    steepest: int | None
    lowest: int
    stopped: str | None = None

    @property
    def tenth_of_lowest(self) -> float:
        """A tenth of the rate at the smallest loss: the other common, more careful choice."""
        return float(self.rates[self.lowest]) / 10

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The loss against the learning rate, as a matplotlib Figure, written to `path` if given.

        ImportError, saying what to install, without matplotlib.
        """
        from gpunn.train.plots import new_figure, save_figure

        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="#bbbbbb", lw=1.0, label="loss of each batch")
        axes.plot(self.rates, self.smoothed, color="#4477aa", lw=2.0, label="smoothed")
        if self.steepest is not None:
            axes.axvline(self.suggestion, color="#cc6677", ls="--", lw=1.4)
            axes.plot(
                [self.suggestion], [self.smoothed[self.steepest]], "o", color="#cc6677", ms=7,
                mec="white", label=f"steepest, {self.suggestion:.2g}",
            )  # fmt: skip
        axes.set_xscale("log")
        low, start = float(np.nanmin(self.smoothed)), float(self.smoothed[0])
        room = max(abs(start - low), 1e-12)
        axes.set_ylim(low - 0.15 * room, start + 0.6 * room)  # what diverges would hide the rest
        axes.set(xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
        axes.grid(True, color="#dddddd", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, framealpha=0.9, edgecolor="none")
        if path is not None:
            save_figure(figure, path)
        return figure


def find_learning_rate(
    trainer: Any,
    data: Any,
    minimum: float = 1e-7,
    maximum: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    seed: int = 0,
) -> LearningRates:
    """Train a little with rates that grow exponentially, and see where the loss falls fastest.

    L. Smith, "Cyclical learning rates for training neural networks", 2017. Afterwards the model and
    the loss, their modes, the optimizer with all that it trains, the loss scale and the random
    state are, bit for bit, what they were. Of a Trainer that trains with others (`distributed`) all
    ranks call it, and come to the same rates.

    Parameters
    ----------
    trainer : a `Trainer`, whose model, loss, optimizer, precision and penalties are used; its
        metrics, callbacks and schedule are not
    data : what `Trainer.fit` takes; it is begun again where it ends
    minimum, maximum : the first and the last rate. Groups of parameters that have another rate keep
        their ratio to the first group
    steps : how many rates, at most
    batch_size : for data that are not batches yet
    smoothing : from 0 to below 1, of the running mean of the loss, corrected for its beginning
    divergence : ends where the smoothed loss exceeds so many times its smallest value (which must
        be above 0), or is not finite
    seed : of the order of the samples

    Raises TypeError for something else than a Trainer, ValueError for limits that are not
    0 < minimum < maximum, fewer than 3 steps, and data without a batch.
    """
    if not hasattr(trainer, "optimizer"):
        raise TypeError(
            f"find_learning_rate: expected a Trainer, got {type(trainer).__name__}; make one of "
            "the model, the loss and the optimizer"
        )
    if not 0 < minimum < maximum < math.inf:
        raise ValueError(
            f"find_learning_rate: expected 0 < minimum < maximum, got {minimum} and {maximum}"
        )
    if steps < 3 or not 0 <= smoothing < 1 or not divergence > 1:
        raise ValueError(
            "find_learning_rate: steps must be 3 or more, smoothing from 0 to below 1 and "
            f"divergence above 1, got {steps}, {smoothing} and {divergence}"
        )
    rates = np.geomspace(minimum, maximum, steps)
    loader = as_loader(
        data, "find_learning_rate", batch_size, trainer.device, shuffle=True, seed=seed
    )
    losses: list[float] = []
    smoothed: list[float] = []
    mean, stopped = 0.0, None
    with _untouched(trainer), _loader_kept(loader, data):
        if trainer.group is not None:
            broadcast_state(trainer.group, trainer.model, trainer.loss, trainer.optimizer)
            same_data(trainer.group, loader, "learning rate finder's")
        for number, loss in enumerate(_losses(trainer, loader, rates)):
            losses.append(loss)
            if not math.isfinite(loss):
                stopped = f"the loss became {loss} at the rate {rates[number]:.3g}"
                smoothed.append(math.nan)
                break
            mean = smoothing * mean + (1 - smoothing) * loss
            smoothed.append(mean / (1 - smoothing ** (number + 1)))
            low = min(smoothed)
            if number and low > 0 and smoothed[-1] > divergence * low:
                stopped = (
                    f"the loss grew to {smoothed[-1] / low:.3g} times its smallest value at the "
                    f"rate {rates[number]:.3g}"
                )
                break
    return _result(rates, np.array(losses), np.array(smoothed), stopped)


def _result(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, stopped: str | None
) -> LearningRates:
    rates = rates[: len(losses)]
    finite = int(np.isfinite(smoothed).sum())
    if not finite:
        raise ValueError(
            f"find_learning_rate: {stopped}, the first; look at the data and the model, for "
            "example with the callback NaNWatch"
        )
    lowest = int(np.argmin(smoothed[:finite]))
    steepest = None
    if lowest >= 2:  # only before the lowest point does a fall mean learning
        slope = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1]))
        steepest = int(np.argmin(slope))
    suggestion = math.nan if steepest is None else float(rates[steepest])
    return LearningRates(rates, losses, smoothed, suggestion, steepest, lowest, stopped)


def _losses(trainer: Any, loader: Any, rates: np.ndarray) -> Iterator[float]:
    """Train a batch with each rate, and give its loss; one that is not finite is the last."""
    groups = trainer.optimizer.param_groups
    first = float(groups[0]["lr"])
    ratios = [float(group["lr"]) / first if first else 1.0 for group in groups]
    batches = _endless(loader, trainer.group)
    step, dtype = _step_of(trainer), model_dtype(trainer.model)
    trainer.model.train()
    for rate in rates:
        for group, ratio in zip(groups, ratios, strict=True):
            group["lr"] = float(rate) * ratio
        batch, rows = next(batches)
        inputs, target = split_batch(batch, trainer.device, dtype, "find_learning_rate")
        step.mean.reset()
        try:
            step(inputs, target, rows=rows)
            step.mean.merge()
            loss = step.mean.value()
        except NonFiniteLoss as error:
            yield error.value
            return
        yield loss


def _step_of(trainer: Any) -> TrainStep:
    """A step like the trainer's, without its metrics and the mean of its loss."""
    return TrainStep(
        trainer.model, trainer.loss, trainer.optimizer, [], trainer.regularization,
        trainer.precision, trainer.device, compiled=False, group=trainer.group,
    )  # fmt: skip


def _endless(loader: Any, group: Group | None) -> Iterator[Any]:
    """Batches with their rows, as of `with_rows`."""
    while True:
        empty = True
        for batch in with_rows(loader, group):
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "find_learning_rate: the data gave no (more) batches; a generator gives its "
                "batches only once: pass a list or a DataLoader"
            )


@contextlib.contextmanager
def _loader_kept(loader: Any, data: Any) -> Iterator[None]:
    """A loader of the user's own stands afterwards where it stood."""
    own = loader is data and hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    state = loader.state_dict() if own else None
    try:
        yield
    finally:
        if own:
            loader.load_state_dict(state)


@contextlib.contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """All that a step changes is put back; arrays in place, so that compiled steps still hold."""
    model, optimizer = trainer.model, trainer.optimizer
    owners = [model, *([trainer.loss] if hasattr(trainer.loss, "parameters") else [])]
    parameters = [p for owner in owners for p in owner.parameters()] + other_parameters(trainer)
    tensors = [*parameters, *(buffer for owner in owners for buffer in owner.buffers())]
    arrays = [tensor.array.copy() for tensor in tensors]
    gradients = [None if p.grad is None else p.grad.array.copy() for p in parameters]
    modes = [(module, module.training) for owner in owners for module in owner.modules()]
    state, made = optimizer.state_dict(), getattr(optimizer, "_steps_made", None)
    precision, random = trainer.precision.state_dict(), random_state(model)
    try:
        yield
    finally:
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.detach()[...] = wrap(array)
        optimizer.load_state_dict(state)
        if made is not None:
            optimizer._steps_made = made  # schedules ask whether a step was made
        trainer.precision.load_state_dict(precision)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else wrap(gradient)
        for module, training in modes:
            module.training = training
        restore_random(random, model)
