"""Callbacks: what happens around training besides the training itself."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from gpunn import io
from gpunn.autograd.tensor import Tensor
from gpunn.device import device_of
from gpunn.train.history import resolve_mode


class Callback:
    """Base of callbacks: override what you need. `trainer` is the running `Trainer`.

    A callback may read `trainer.model`, `trainer.optimizer`, `trainer.history` and
    `trainer.running()` (the means of the epoch so far; it waits for the device), and may end the
    training after the current epoch by ``trainer.stop("why")``.

    A run that goes on from a checkpoint calls ``on_train_begin``, and if it stood within an epoch
    ``on_epoch_begin`` of that, then `load_state_dict`. ``trainer.resumed`` is True then from the
    beginning, for callbacks that would otherwise begin a file anew.

    Where several processes train together (docs/distributed.md) each has the callbacks, and all get
    the same records. Callbacks that write or print set `main_only`: they are called on rank 0.
    """

    main_only = False
    reads_gradients = False  # which ranks that shard the optimizer's states have in parts only

    def on_train_begin(self, trainer: Any) -> None:
        """Before the first epoch; `trainer.epochs` and `trainer.steps` say how much will come."""

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        """Before epoch number `epoch` (from 1)."""

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        """After the weight update of step number `step` (from 1) of the epoch."""

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        """After validation; `record` is in the history. Changing it changes the history."""

    def on_train_end(self, trainer: Any) -> None:
        """After the last epoch, also when the training was interrupted or failed."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint shall keep of it: numbers, texts, None, arrays, lists, dictionaries."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; arrays come as NumPy arrays. Not called for {}."""


class Monitor(Callback):
    """Base of callbacks that follow one entry of the epoch's record and know when it got better."""

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0):
        if min_delta < 0:
            raise ValueError(f"{type(self).__name__}: min_delta must be 0 or more, got {min_delta}")
        self.monitor, self.mode = monitor, resolve_mode(monitor, mode)
        self.min_delta = float(min_delta)
        self.best = math.nan

    def value(self, record: dict[str, float]) -> float:
        """The monitored value. ValueError, naming what there is, if the record lacks it."""
        if self.monitor not in record:
            hint = "; pass validation= to fit" if self.monitor.startswith("validation_") else ""
            raise ValueError(
                f"{type(self).__name__}: the epoch's record has no {self.monitor!r}, only "
                f"{', '.join(record)}{hint}"
            )
        return float(record[self.monitor])

    def improved(self, value: float) -> bool:
        """Whether `value` beats the best so far by more than `min_delta`; then it is the best."""
        sign = 1.0 if self.mode == "min" else -1.0
        better = math.isnan(self.best) or sign * value < sign * self.best - self.min_delta
        if better and not math.isnan(value):
            self.best = value
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = float(state["best"])


class EarlyStopping(Monitor):
    """Stop when the monitored value has not improved for `patience` epochs.

    Parameters
    ----------
    monitor : an entry of the record, such as "validation_loss" or "validation_accuracy"
    patience : how many epochs without improvement end the training (0 counts as 1)
    min_delta : a smaller change does not count as an improvement
    mode : "min", "max", or "auto" by the name of the metric
    restore_best_weights : at the end put back the weights of the best epoch, also if the training
        came to its last epoch or was interrupted

    Attributes
    ----------
    best, best_epoch : the best value and its epoch (from 1)
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = True,
    ):
        super().__init__(monitor, mode, min_delta)
        if patience < 0:
            raise ValueError(f"EarlyStopping: patience must be 0 or more, got {patience}")
        self.patience, self.restore_best_weights = int(patience), bool(restore_best_weights)
        self.best_epoch: int | None = None
        self._weights: dict[str, Any] | None = None
        self._waited = 0

    def on_train_begin(self, trainer: Any) -> None:
        self.best, self.best_epoch, self._weights = math.nan, None, None
        self._waited = 0

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        if self.improved(self.value(record)):
            self.best_epoch, self._waited = epoch, 0
            if self.restore_best_weights:
                self._weights = copy_weights(trainer.model, self._weights)
            return
        self._waited += 1
        if self._waited >= max(1, self.patience):
            trainer.stop(f"{self.monitor} has not improved for {self._waited} epochs")

    def on_train_end(self, trainer: Any) -> None:
        if self._weights is not None:
            restore_weights(trainer.model, self._weights)
            trainer.history.best_epoch = self.best_epoch
            self._weights = None

    def state_dict(self) -> dict[str, Any]:
        own = {"best_epoch": self.best_epoch, "waited": self._waited, "weights": self._weights}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best_epoch, self._waited = state["best_epoch"], state["waited"]
        self._weights = state["weights"]


def copy_weights(model: Any, into: dict[str, Any] | None = None) -> dict[str, Any]:
    """The arrays of the model's state, copied where they are (into the arrays of `into`)."""
    state = {name: value.array for name, value in model.state_dict().items()}
    if into is None or {n: device_of(a) for n, a in into.items()} != {
        n: device_of(a) for n, a in state.items()
    }:
        return {name: array.copy() for name, array in state.items()}
    for name, array in state.items():
        into[name][...] = array
    return into


def restore_weights(model: Any, weights: dict[str, Any]) -> None:
    """Put arrays from `copy_weights` back into the model."""
    model.load_state_dict({name: Tensor(array) for name, array in weights.items()})


class ModelCheckpoint(Monitor):
    """Save the model after an epoch, as safetensors, with the record in the file's metadata.

    Parameters
    ----------
    path : the file; may hold entries of the record: ``"model-{epoch:03d}.safetensors"``. Its folder
        is made if it is missing.
    monitor, mode : what is followed with save_best_only
    save_best_only : save only when the monitored value is the best so far
    """

    main_only = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "validation_loss",
        mode: str = "auto",
        save_best_only: bool = True,
    ):
        super().__init__(monitor, mode)
        self.path, self.save_best_only = str(path), bool(save_best_only)
        self.last_saved: Path | None = None

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        if self.save_best_only and not self.improved(self.value(record)):
            return
        try:
            path = Path(self.path.format(**record))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"ModelCheckpoint: the path {self.path!r} asks for {error}; the record has "
                f"{', '.join(record)}"
            ) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        io.save(trainer.model, path, metadata=record)
        self.last_saved = path

    def state_dict(self) -> dict[str, Any]:
        last = None if self.last_saved is None else str(self.last_saved)
        return super().state_dict() | {"last_saved": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.last_saved = None if state["last_saved"] is None else Path(state["last_saved"])


class CSVLogger(Callback):
    """Write each epoch's record to a CSV file as soon as it is there.

    With `append`, rows are added to an existing file, whose header must be the same. A run that
    goes on from a checkpoint goes on with the file as it was then.
    """

    main_only = True

    def __init__(self, path: str | os.PathLike[str], append: bool = False):
        self.path, self.append = Path(path), bool(append)
        self._columns: list[str] | None = None

    def on_train_begin(self, trainer: Any) -> None:
        self._columns = None
        if not self.append and not getattr(trainer, "resumed", False):
            self.path.write_text("", encoding="utf-8")  # fails now rather than after an epoch

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        with open(self.path, "a+", encoding="utf-8", newline="") as file:
            if self._columns is None:
                self._columns = self._begin(file, record)
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(record)

    def _begin(self, file: IO[str], record: dict[str, float]) -> list[str]:
        """Write the header, or check the one that is there."""
        columns = list(record)
        file.seek(0)
        header = next(csv.reader(file), None)
        if header is None:
            csv.writer(file, lineterminator="\n").writerow(columns)
        elif header != columns:
            raise ValueError(
                f"CSVLogger: {self.path} has the columns {', '.join(header)}, this training has "
                f"{', '.join(columns)}; choose another file"
            )
        return columns

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size if self.path.is_file() else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.path.is_file() and self.path.stat().st_size > state["bytes"]:
            os.truncate(self.path, state["bytes"])  # epochs after the checkpoint come again


class LearningRateScheduler(Callback):
    """Step a schedule of `gpunn.optim` (or set the rate by a function) during training.

    Parameters
    ----------
    schedule : an object with ``step()``, or a function ``epoch -> learning rate`` (epoch from 0),
        applied before each epoch
    every : "epoch", "batch", or "auto": schedules that name themselves per-batch (one-cycle) step
        after each weight update, all others after each epoch
    monitor : the entry of the record that is given to schedules that react to a metric, such as
        ``ReduceLROnPlateau``; if the record lacks it, "loss" is
    """

    def __init__(self, schedule: Any, every: str = "auto", monitor: str = "validation_loss"):
        if every not in ("auto", "epoch", "batch"):
            raise ValueError("LearningRateScheduler: every must be auto, epoch or batch")
        if not hasattr(schedule, "step") and not callable(schedule):
            raise TypeError(
                "LearningRateScheduler: expected a schedule with step() or a function, got "
                f"{type(schedule).__name__}"
            )
        self.schedule, self.monitor = schedule, monitor
        name = type(schedule).__name__
        self.on_metric = "Plateau" in name
        self.every = ("batch" if "OneCycle" in name else "epoch") if every == "auto" else every

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        if not hasattr(self.schedule, "step"):
            for group in trainer.optimizer.param_groups:
                group["lr"] = float(self.schedule(epoch - 1))

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        if self.every == "batch" and hasattr(self.schedule, "step"):
            self.schedule.step()

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        if self.every == "batch" or not hasattr(self.schedule, "step"):
            return
        if self.on_metric:
            self.schedule.step(record.get(self.monitor, record["loss"]))
        else:
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        if not hasattr(self.schedule, "step"):
            return {}
        if not hasattr(self.schedule, "state_dict"):
            raise TypeError(
                f"checkpoint: the schedule {type(self.schedule).__name__} has no state_dict() and "
                "load_state_dict(), so a training with it cannot be continued exactly"
            )
        return {"schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state["schedule"])


class CallbackList:
    """Calls each callback in turn; not on rank 0, those alone that are not for it."""

    def __init__(self, callbacks: Sequence[Callback], main: bool = True):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callbacks: expected Callback objects, got {type(callback).__name__}"
                    + (" (a class: add parentheses)" if isinstance(callback, type) else "")
                )
        self.callbacks = list(callbacks)
        self.called = [one for one in self.callbacks if main or not one.main_only]

    def __call__(self, event: str, *arguments: Any) -> None:
        for callback in self.called:
            getattr(callback, event)(*arguments)
