"""Callbacks that write down a training: what loggers share, and JSON lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import is_array, to_numpy
from gpunn.io import atomic_path, check_target
from gpunn.train.callbacks import Callback


class StepLogger(Callback):
    """Base of loggers: counts steps over epochs, and knows which were written when a run goes on.

    Attributes
    ----------
    every : write something every so many steps; None: only after epochs
    step : weight updates counted so far
    """

    main_only = True

    def __init__(self, every: int | None):
        if every is not None and every < 1:
            raise ValueError(f"{type(self).__name__}: every must be 1 or more, got {every}")
        self.every = every
        self.step = 0
        self._epoch, self._epoch_step = 0, 0  # the last epoch that was written, and its last step
        self._from: dict[str, int] | None = None  # a place from a checkpoint, not yet gone back to

    @property
    def wants_steps(self) -> bool:
        """Whether every step must be made by itself; without, one kernel may train for many."""
        return self.every is not None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self._epoch, "epoch_step": self._epoch_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self._epoch = int(state["step"]), int(state["epoch"])
        self._epoch_step = int(state["epoch_step"])
        self._from = self.state_dict()

    def on_train_begin(self, trainer: Any) -> None:
        if getattr(trainer, "resumed", False):
            self.step, self._epoch = trainer.steps_before, trainer.epoch
            self._epoch_step = 0  # unless the checkpoint knows this logger
            return
        self._from = None
        if trainer.epoch == 0:
            self.step = self._epoch = self._epoch_step = 0
        self.begin(trainer)

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        self._go_back()
        self.step += 1
        if self.every is not None and self.step % self.every == 0:
            values = {"epoch": epoch, **trainer.running(collected=False)}
            values["learning_rate"] = float(trainer.optimizer.param_groups[0]["lr"])
            self.write_step(trainer, values)

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        self._go_back()
        self._epoch, self._epoch_step = epoch, self.step
        self.write_epoch(trainer, record)

    def _go_back(self) -> None:
        if self._from is not None:
            place, self._from = self._from, None
            self.go_back(place)

    def begin(self, trainer: Any) -> None:
        """A training begins that does not go on from a checkpoint."""

    def go_back(self, place: dict[str, int]) -> None:
        """Forget what was written after step ``place["step"]`` and epoch ``place["epoch"]``."""

    def write_step(self, trainer: Any, values: dict[str, float]) -> None:
        """Write what holds after step `self.step`."""

    def write_epoch(self, trainer: Any, record: dict[str, float]) -> None:
        """Write the record of an epoch."""


class JSONLinesLogger(StepLogger):
    """Write one JSON object a line: for each epoch, and every so many steps.

    ``{"kind": "epoch", "step": 120, "epoch": 2, "loss": …, "validation_loss": …, …}`` has the
    epoch's record; ``{"kind": "step", "step": 50, "epoch": 1, "loss": …, "learning_rate": …}`` the
    means of the epoch so far, but for metrics such as "auc" that need all samples. `step` counts
    weight updates over all epochs. NaN and infinity, which JSON does not know, are written as null.

    Each line is written by one call, so a run that is killed leaves whole lines. A run that goes on
    from a checkpoint cuts off what the lost part had written, so nothing stands there twice.

    Parameters
    ----------
    path : the file, in a folder that is there. It is begun anew by each `fit` that does not go on
        from a checkpoint
    every : also write every so many steps; asking for the loss waits for the device
    append : keep what is in the file; steps go on from its last line

    Raises FileNotFoundError if the folder is not there, ValueError for a file of something else.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int | None = None, append: bool = False
    ):
        super().__init__(every)
        self.path, self.append = Path(path), bool(append)

    def begin(self, trainer: Any) -> None:
        check_target(self.path)
        if not self.append:
            self.path.write_bytes(b"")
            return
        lines = self._kept(lambda line: True)
        self.step = int(lines[-1].get("step", 0)) if lines else 0

    def go_back(self, place: dict[str, int]) -> None:
        def before(line: dict[str, Any]) -> bool:
            if line.get("kind") == "epoch":
                return line["epoch"] <= place["epoch"]
            return line.get("step", 0) <= place["step"]

        self._kept(before)

    def _kept(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Cut the file down to the lines that are wanted, and give these."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()
        whole, _, torn = text.rpartition(b"\n")
        kept, lines = [], []
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            found = _parsed(self.path, number, line)
            if wanted(found):
                kept.append(line + b"\n")
                lines.append(found)
        if torn or b"".join(kept) != text:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(b"".join(kept))
        return lines

    def write_step(self, trainer: Any, values: dict[str, float]) -> None:
        self._write({"kind": "step", "step": self.step, **values})

    def write_epoch(self, trainer: Any, record: dict[str, float]) -> None:
        self._write({"kind": "epoch", "step": self.step, **record})

    def _write(self, values: dict[str, Any]) -> None:
        known = {name: _json_value(value) for name, value in values.items()}
        line = json.dumps(known, ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.encode())


def read_json_lines(path: str | os.PathLike[str], kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a `JSONLinesLogger`, of one kind ("epoch", "step") or all; null becomes NaN.

    A last line that was not written to its end is left out. ValueError, with the line's number, for
    what is not such a file.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    found = [_parsed(Path(path), number, line) for number, line in enumerate(lines, start=1)]
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in found
        if kind is None or line.get("kind") == kind
    ]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number}: not a JSON object; choose another file")
    return found


def _json_value(value: Any) -> Any:
    if isinstance(value, (Tensor, np.generic)) or is_array(value):
        value = to_numpy(raw_array(value)).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [_json_value(part) for part in value]
    return value
