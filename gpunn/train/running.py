"""Means of the loss over an epoch without waiting for the device at every step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.device import Device, device_of, empty, to_device, to_numpy
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
        self._fetched = (0.0, 0)
        self._waiting: list[Any] = []

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
        state = to_numpy(self._state)
        if state[BAD_STEP]:
            raise NonFiniteLoss(int(state[BAD_STEP]), float(state[BAD_VALUE]))
        self._fetch()
        total, count = self._fetched  # an epoch may be begun in one way and ended in another
        total, count = total + float(state[TOTAL]), count + int(state[COUNT])
        return total / count if count else math.nan

    def _fetch(self) -> None:
        """Take in what waits, step by step: the sum must not depend on how steps are grouped."""
        total, count = self._fetched
        first = self._steps - sum(len(counts) for _, counts in self._waiting)
        for losses, counts in self._waiting:
            values = to_numpy(losses).astype(np.float64)
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise NonFiniteLoss(first + int(bad[0]) + 1, float(values[bad[0]]))
            first += len(values)
            total = float(np.add.accumulate([total, *(values * counts)])[-1])
            count += int(counts.sum())
        self._fetched, self._waiting = (total, count), []

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with the same mean; waits for the device."""
        self.value()
        return {"state": self._state, "steps": self._steps, "fetched": self._fetched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in the array that is there."""
        self._state[...] = to_device(state["state"], device_of(self._state))
        self._steps, self._waiting = int(state["steps"]), []
        total, count = state["fetched"]
        self._fetched = (float(total), int(count))

    @property
    def empty(self) -> bool:
        """Whether no step was made since `reset`."""
        return self._steps == 0
