"""Callbacks that end a training, average its weights, or are made of functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpunn.autograd.dtypes import wide
from gpunn.device import device_of, to_device
from gpunn.train.callbacks import Callback, Monitor, copy_weights, restore_weights


class TimeLimit(Callback):
    """End the training, after a whole epoch, before it takes longer than so many seconds.

    It ends when the next epoch, if it takes as long as the longest so far, would not be done in
    time; one epoch is always trained. A run that goes on from a checkpoint counts what was trained
    before.

    Parameters
    ----------
    seconds : above 0
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"TimeLimit: seconds must be above 0, got {seconds}")
        self.seconds = float(seconds)
        self._before, self._longest = 0.0, 0.0
        self._begun: float | None = None

    def on_train_begin(self, trainer: Any) -> None:
        self._begun = time.monotonic()
        self._before, self._longest = 0.0, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds trained so far."""
        return self._before + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        self._epoch_begun = self.elapsed

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        now = self.elapsed
        self._longest = max(self._longest, now - self._epoch_begun)
        if now + self._longest > self.seconds:
            trainer.stop(
                f"the time limit of {self.seconds:g} s: {now:.3g} s were trained, and another "
                f"epoch takes {self._longest:.3g} s"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "longest": self._longest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begun = time.monotonic()
        self._before, self._longest = float(state["elapsed"]), float(state["longest"])
        self._epoch_begun = self._before


class TerminateOnTarget(Monitor):
    """End the training when the monitored value has come to `target`.

    Parameters
    ----------
    target : the value to reach; equal is enough
    monitor : an entry of the record, such as "validation_accuracy"
    mode : "min", "max", or "auto" by the name of the metric
    """

    def __init__(self, target: float, monitor: str = "validation_accuracy", mode: str = "auto"):
        super().__init__(monitor, mode)
        self.target = float(target)

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        value = self.value(record)
        self.improved(value)
        if value >= self.target if self.mode == "max" else value <= self.target:
            trainer.stop(f"{self.monitor} is {value:.6g} and has reached {self.target:g}")


class LambdaCallback(Callback):
    """A callback of functions, each with the arguments of the event it is named after.

    >>> LambdaCallback(on_epoch_end=lambda trainer, epoch, record: print(epoch, record["loss"]))

    Parameters
    ----------
    on_train_begin, on_epoch_begin, on_batch_end, on_epoch_end, on_train_end : what to call; None
        for nothing. With `on_batch_end` the training runs step by step or compiled, not as one
        kernel
    """

    def __init__(
        self,
        on_train_begin: Callable[..., Any] | None = None,
        on_epoch_begin: Callable[..., Any] | None = None,
        on_batch_end: Callable[..., Any] | None = None,
        on_epoch_end: Callable[..., Any] | None = None,
        on_train_end: Callable[..., Any] | None = None,
    ):
        events = {
            "on_train_begin": on_train_begin, "on_epoch_begin": on_epoch_begin,
            "on_batch_end": on_batch_end, "on_epoch_end": on_epoch_end,
            "on_train_end": on_train_end,
        }  # fmt: skip
        for name, function in events.items():
            if function is not None and not callable(function):
                raise TypeError(
                    f"LambdaCallback: {name} is {type(function).__name__}; expected a function"
                )
            if function is not None:
                setattr(self, name, function)
        self.wants_steps = on_batch_end is not None


class WeightAverage(Callback):
    """Keep an exponential moving average of the weights, and put it into the model at the end.

    After each step ``average += (1 - decay)·(weights - average)``, on the device, with the decay
    min(decay, (1 + t) / (10 + t)) in step t, so that the first steps do not linger. Parameters are
    averaged (those of 16 bits in float32, where small steps still count); buffers, such as running
    means, are taken as they are. Validation while training measures the weights themselves.

    Parameters
    ----------
    decay : from 0 to below 1; the average reaches over about 1 / (1 - decay) steps
    apply : at the end of the training, also an interrupted one, put the average into the model
    """

    wants_steps = True

    def __init__(self, decay: float = 0.999, apply: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: decay must be from 0 to below 1, got {decay}")
        self.decay, self.apply = float(decay), bool(apply)
        self.average: dict[str, Any] | None = None
        self._step = 0

    def on_train_begin(self, trainer: Any) -> None:
        if not getattr(trainer, "resumed", False):
            self.average, self._step = _wide_weights(trainer.model), 0

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        self._step += 1
        if self.average is None:  # it goes on from a checkpoint of a run without it
            self.average = _wide_weights(trainer.model)
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        for name, parameter in trainer.model.named_parameters():
            average = self.average[name]
            if device_of(average) != device_of(parameter.array):  # from a checkpoint
                average = self.average[name] = to_device(average, parameter.device)
            average += (parameter.array - average) * average.dtype.type(1 - decay)

    def copy_to(self, model: Any) -> None:
        """Put the average of the parameters into `model`."""
        if self.average is None:
            raise ValueError("WeightAverage: no training has begun yet")
        state = copy_weights(model)
        for name, parameter in model.named_parameters():
            if name not in self.average:
                raise ValueError(f"WeightAverage: there is no average of {name}: another model?")
            average = to_device(self.average[name], parameter.device)
            state[name] = average.astype(parameter.dtype)
        restore_weights(model, state)

    def on_train_end(self, trainer: Any) -> None:
        if self.apply and self._step:
            self.copy_to(trainer.model)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        average = state["average"]
        self._step, self.average = int(state["step"]), None if average is None else dict(average)


def _wide_weights(model: Any) -> dict[str, Any]:
    """Copies of the parameters' arrays, where they are."""
    copies = {name: parameter.array.copy() for name, parameter in model.named_parameters()}
    return {name: wide(array) for name, array in copies.items()}
