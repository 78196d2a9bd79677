"""`LRScheduler`: what all schedules share."""

from __future__ import annotations

import warnings
from typing import Any

from gpunn.optim.optimizer import Optimizer


class LRScheduler:
    """Base of the schedules. A subclass gives `get_lr`, and `closed_form` if there is one.

    Parameters
    ----------
    optimizer : its groups' ``lr`` are changed; their first values are kept as ``initial_lr``
    last_epoch : number of the last step made, to resume; -1 to start

    Attributes
    ----------
    last_epoch : how many steps were made
    base_lrs : the initial learning rate of each group
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}: optimizer is {type(optimizer).__name__}; expected an "
                "optimizer of gpunn.optim"
            )
        self.optimizer = optimizer
        for k, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"{type(self).__name__}: last_epoch is {last_epoch} but group {k} of the "
                    "optimizer has no initial_lr. Load the optimizer's state first."
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._optimizer_steps = optimizer._steps_made
        self._step_count = 0
        self._advance()

    def get_lr(self) -> list[float]:
        """The rates for `last_epoch`, from those that the groups had for the step before."""
        raise NotImplementedError

    def closed_form(self, base_lr: float) -> float | None:
        """The rate at `last_epoch` of a group that began with `base_lr`; None without a formula."""
        return None

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step, or to step `epoch`, and set the rates."""
        if self._step_count == 1 and self.optimizer._steps_made == self._optimizer_steps:
            warnings.warn(
                f"{type(self).__name__}: step() was called before optimizer.step(); the first "
                "learning rate is skipped. Call optimizer.step() first.",
                stacklevel=2,
            )
        self._advance(epoch)

    def get_last_lr(self) -> list[float]:
        """The rates now in use, one for each group."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on; functions are not part of it."""
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in self.__dict__.items()
            if name not in ("optimizer", "_optimizer_steps") and not _holds_functions(value)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.__dict__.update(state_dict)
        self._optimizer_steps = -1  # who saved it may have made a step that this optimizer has not

    def _advance(self, epoch: int | None = None) -> None:
        self._step_count += 1
        if epoch is None:
            self.last_epoch += 1
            rates = self.get_lr()
        else:
            self.last_epoch = epoch
            closed = [self.closed_form(base) for base in self.base_lrs]
            rates = [rate for rate in closed if rate is not None]
            if len(rates) < len(closed):
                rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _rates(self) -> list[float]:
        """The rates of the groups as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]


def per_group(name: str, value: Any, optimizer: Optimizer) -> list[Any]:
    """`value` for each group: a list of the right length, or one value repeated."""
    count = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} has {len(value)} values; the optimizer has {count} parameter groups"
        )
    return list(value)


def _holds_functions(value: Any) -> bool:
    return callable(value) or (isinstance(value, list) and any(map(callable, value)))
