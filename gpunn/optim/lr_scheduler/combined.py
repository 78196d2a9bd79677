"""Schedules made of schedules: one after the other, or all at once."""

from __future__ import annotations

import bisect
from typing import Any

from gpunn.optim.lr_scheduler.base import LRScheduler
from gpunn.optim.lr_scheduler.plateau import ReduceLROnPlateau
from gpunn.optim.optimizer import Optimizer


class _Combined(LRScheduler):
    """Common ground: the same optimizer for all, and the states of the parts."""

    _schedulers: list[LRScheduler]

    def _check_parts(self, schedulers: list[LRScheduler], optimizer: Optimizer | None) -> Optimizer:
        if not schedulers:
            raise ValueError(f"{self._name}: got no schedules")
        optimizer = optimizer or schedulers[0].optimizer
        for i, scheduler in enumerate(schedulers):
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"{self._name}: schedule {i} belongs to another optimizer")
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"{self._name}: schedule {i} is ReduceLROnPlateau, whose step needs a metric; "
                    "step it by itself"
                )
        return optimizer

    @property
    def _name(self) -> str:
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        own = {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("optimizer", "_optimizer_steps", "_schedulers")
        }
        return own | {"_schedulers": [part.state_dict() for part in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        for part, state in zip(self._schedulers, own.pop("_schedulers"), strict=True):
            part.load_state_dict(state)
        super().load_state_dict(own)


class SequentialLR(_Combined):
    """One schedule after the other: schedule i takes over at step ``milestones[i - 1]``.

    Warm-up and then a cosine:

    >>> warm_up = LinearLR(optimizer, 0.01, total_iters=10)
    >>> cosine = CosineAnnealingLR(optimizer, T_max=90)
    >>> schedule = SequentialLR(optimizer, [warm_up, cosine], milestones=[10])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ):
        self.optimizer = self._check_parts(schedulers, optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedules need {len(schedulers) - 1} milestones, "
                f"got {len(milestones)}"
            )
        self._schedulers, self._milestones = list(schedulers), list(milestones)
        self.last_epoch = last_epoch + 1
        self._optimizer_steps, self._step_count = optimizer._steps_made, 1
        # Each part set its first rate when it was made; only the first one's counts.
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for part in schedulers:
            part.last_epoch -= 1
            part._step_count -= 1
        schedulers[0]._advance()
        self._last_lr = schedulers[0].get_last_lr()

    def _advance(self, epoch: int | None = None) -> None:
        self._step_count += 1
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        i = bisect.bisect_right(self._milestones, self.last_epoch)
        begins = i > 0 and self._milestones[i - 1] == self.last_epoch
        self._schedulers[i]._advance(0 if begins else None)
        self._last_lr = self._schedulers[i].get_last_lr()


class ChainedScheduler(_Combined):
    """All schedules at once: each goes on from the rates that the one before it left."""

    def __init__(self, schedulers: list[LRScheduler], optimizer: Optimizer | None = None):
        self.optimizer = self._check_parts(schedulers, optimizer)
        self._schedulers = list(schedulers)
        self.last_epoch = schedulers[-1].last_epoch
        self._optimizer_steps, self._step_count = self.optimizer._steps_made, 1
        self._last_lr = self._rates()

    def _advance(self, epoch: int | None = None) -> None:
        self._step_count += 1
        for part in self._schedulers:
            part._advance(epoch)
        self.last_epoch = self._schedulers[-1].last_epoch
        self._last_lr = self._rates()
