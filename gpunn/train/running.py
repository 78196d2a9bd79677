"""Means of the loss over an epoch without waiting for the device at every step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.device import Device, empty, to_numpy
from gpunn.errors import GpunnError
from gpunn.primitives.running_loss import BAD_STEP, BAD_VALUE, COUNT, TOTAL, add_loss

_LAUNCHES = 16  # of `add_steps` between two looks


class TrainingError(GpunnError, ArithmeticError):
    """The loss became NaN or infinite."""


class NonFiniteLoss(Exception):
    """Internal: the loss of step number `step` (from 1) was `value`."""

    def __init__(self, step: int, value: float):
        super().__init__(step, value)
        self.step, self.value = step, value


class LossMean:
    """The mean of a loss over samples: batches weigh by their number of samples, in float64.

    The sums stay where the loss is, in an array that stays too, so that `add` may be part of a
    compiled step. They are fetched every `every` steps: then, too, it is seen whether a loss was
    NaN or infinite, and which. `summed` says that the loss is a sum over the samples of its batch,
    not a mean.
    """

    def __init__(self, summed: bool, every: int, device: Device):
        self.summed, self.every = summed, every
        self._state: Any = empty((5,), np.float64, device)
        self.reset()

    def reset(self) -> None:
        """Begin a new mean."""
        self._state[...] = 0
        self._steps = 0
        self._fetched, self._waiting = (0.0, 0), []

    def add(self, loss: Any, samples: int) -> None:
        """Take in the loss of a batch (an array of shape ()). Nothing waits for it."""
        add_loss(self._state, loss, weight=1 if self.summed else samples, count=samples)

    def add_steps(self, losses: Any, counts: Any) -> None:
        """Take in the losses of many steps, an array that nobody changes, and their samples."""
        self._waiting.append((losses, counts))
        self._steps += len(counts)
        if len(self._waiting) == _LAUNCHES:
            self.value()

    def tick(self) -> None:
        """To be called after every step. NonFiniteLoss if a loss that was not finite is seen."""
        self._steps += 1
        if self._steps % self.every == 0:
            self.value()

    def value(self) -> float:
        """The mean so far; NaN before the first batch. NonFiniteLoss if a loss was not finite."""
        if self._waiting or self._fetched[1]:
            return self._value_of_many()
        state = to_numpy(self._state)
        if state[BAD_STEP]:
            raise NonFiniteLoss(int(state[BAD_STEP]), float(state[BAD_VALUE]))
        return float(state[TOTAL] / state[COUNT]) if state[COUNT] else math.nan

    def _value_of_many(self) -> float:
        total, count = self._fetched
        first = self._steps - sum(len(counts) for _, counts in self._waiting)
        for losses, counts in self._waiting:
            values = to_numpy(losses).astype(np.float64)
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise NonFiniteLoss(first + int(bad[0]) + 1, float(values[bad[0]]))
            first += len(values)
            total += float(values @ counts)
            count += int(counts.sum())
        self._fetched, self._waiting = (total, count), []
        return total / count if count else math.nan

    @property
    def empty(self) -> bool:
        """Whether no step was made since `reset`."""
        return self._steps == 0
