"""Means of the loss over an epoch without waiting for the device at every step."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.device import array_module, device_of, to_numpy
from gpunn.errors import GpunnError


class TrainingError(GpunnError, ArithmeticError):
    """The loss became NaN or infinite."""


class NonFiniteLoss(Exception):
    """Internal: the loss of step number `step` (from 1) was `value`."""

    def __init__(self, step: int, value: float):
        super().__init__(step, value)
        self.step, self.value = step, value


class LossMean:
    """The mean of a loss over samples: batches weigh by their number of samples, in float64.

    Losses stay on the device and are fetched together, every `every` steps: then, too, it is seen
    whether one was NaN or infinite, and which. `summed` says that the loss is a sum over the
    samples of its batch, not a mean.
    """

    def __init__(self, summed: bool, every: int):
        self.summed, self.every = summed, every
        self.total, self.count, self.steps = 0.0, 0, 0
        self._waiting: list[tuple[Any, int]] = []

    def add(self, loss: Any, samples: int) -> None:
        """Take in the loss of a batch (an array of shape ()). NonFiniteLoss if a fetched one is."""
        self._waiting.append((loss, samples))
        if len(self._waiting) >= self.every:
            self.fetch()

    def fetch(self) -> None:
        """Bring the waiting losses to the host. NonFiniteLoss if one is not finite."""
        if not self._waiting:
            return
        losses = [loss for loss, _ in self._waiting]
        if isinstance(losses[0], np.ndarray):
            values = [float(loss) for loss in losses]
        else:
            xp = array_module(device_of(losses[0]))
            values = to_numpy(xp.stack(losses)).astype(np.float64).tolist()
        waiting, self._waiting = self._waiting, []
        for value, (_, samples) in zip(values, waiting, strict=True):
            self.steps += 1
            if not np.isfinite(value):
                raise NonFiniteLoss(self.steps, value)
            self.total += value * (1 if self.summed else samples)
            self.count += samples

    def value(self) -> float:
        """The mean so far; NaN before the first batch."""
        self.fetch()
        return self.total / self.count if self.count else float("nan")
