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

    With a `group` each rank adds its share of the loss (`gpunn.distributed.loss.global_mean`), and
    the mean is this rank's until `merge` makes it that of all. A loss that is not finite on one
    rank is an error on all, at the next look, so `every` must be the same for all of them.
    """

    def __init__(self, summed: bool, every: int, device: Device, group: Any = None):
        self.summed, self.every, self.group = summed, every, group
        self._state: Any = empty((5,), np.float64, device)
        self.reset()

    def reset(self) -> None:
        """Begin a new mean."""
        self._state[...] = 0
        self._steps = 0
        self._fetched = (0.0, 0)
        self._waiting: list[Any] = []
        self._merged: float | None = None

    def add(self, loss: Any, samples: int, whole: int | None = None) -> None:
        """Take in the loss of a batch (an array of shape ()). Nothing waits for it.

        `whole`: it is a share of the loss of a batch of so many samples, of which `samples` are
        this rank's.
        """
        weight = 1 if self.summed else samples if whole is None else whole
        add_loss(self._state, loss, weight=weight, count=samples)

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
            self._sums()

    def value(self) -> float:
        """The mean so far; NaN before the first batch. NonFiniteLoss if a loss was not finite.

        With a group it is this rank's, before `merge`, and NaN where the error is yet to come.
        """
        if self._merged is not None:
            return self._merged
        try:
            total, count = self._own_sums()
        except NonFiniteLoss:
            if self.group is None:
                raise
            return math.nan
        return total / count if count else math.nan

    def merge(self) -> None:
        """Make it the mean over the samples of all ranks, until `reset`; all of them call it.

        NonFiniteLoss on all if a loss was not finite on one: of the first such step. Without a
        group nothing changes.
        """
        total, count = self._sums()
        self._merged = total / count if count else math.nan

    def _own_sums(self) -> tuple[float, int]:
        """This rank's (total, count). NonFiniteLoss if a loss was not finite."""
        state = to_numpy(self._state)
        if state[BAD_STEP]:
            raise NonFiniteLoss(int(state[BAD_STEP]), float(state[BAD_VALUE]))
        self._fetch()
        total, count = self._fetched  # an epoch may be begun in one way and ended in another
        return total + float(state[TOTAL]), count + int(state[COUNT])

    def _sums(self) -> tuple[float, int]:
        """(total, count) over all ranks, which all ask. NonFiniteLoss on all or none."""
        if self.group is None:
            return self._own_sums()
        try:
            mine: list[Any] = [*self._own_sums(), None]
        except NonFiniteLoss as error:
            mine = [0.0, 0, [error.step, error.value]]
        ranks = self.group.exchange(mine)
        bad = [found for _, _, found in ranks if found is not None]
        if bad:
            raise NonFiniteLoss(*min(bad, key=lambda found: found[0]))
        return sum(total for total, _, _ in ranks), sum(count for _, count, _ in ranks)

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
        """What `load_state_dict` needs to go on with the same mean; waits for the device.

        With a group the sums of all ranks, which all ask for it.
        """
        sums, fetched = self._sums(), self._fetched
        state = self._state
        if self.group is not None:
            values = to_numpy(state).copy()
            values[TOTAL], values[COUNT] = sums
            state, fetched = to_device(values, device_of(state)), (0.0, 0)
        return {"state": state, "steps": self._steps, "fetched": fetched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in the array that is there.

        With a group rank 0 goes on from the sums of all, and the others add to nothing.
        """
        values = to_numpy(state["state"]).copy()
        total, count = state["fetched"]
        if self.group is not None and not self.group.main:
            values[TOTAL] = values[COUNT] = total = count = 0
        self._state[...] = to_device(values, device_of(self._state))
        self._steps, self._waiting, self._merged = int(state["steps"]), [], None
        self._fetched = (float(total), int(count))

    @property
    def steps(self) -> int:
        """The steps since `reset`, as `tick` counted them."""
        return self._steps

    @property
    def empty(self) -> bool:
        """Whether no step was made since `reset`."""
        return self._steps == 0
