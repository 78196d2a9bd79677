"""The 1cycle policy."""

from __future__ import annotations

import bisect
import math
from typing import Any

from gpunn.optim.lr_scheduler.base import LRScheduler, per_group
from gpunn.optim.optimizer import Optimizer


class OneCycleLR(LRScheduler):
    """lr rises from max_lr / div_factor to max_lr, then falls to almost 0; momentum the other way.

    Parameters
    ----------
    max_lr : the highest rate, one or one for each group
    total_steps : number of steps in all; or give `epochs` and `steps_per_epoch`
    pct_start : the part of the steps in which the rate rises
    anneal_strategy : "cos" or "linear"
    cycle_momentum : also move momentum (or beta1) from `max_momentum` to `base_momentum` and back
    div_factor, final_div_factor : first rate is max_lr / div_factor, the last one that divided by
        final_div_factor
    three_phase : fall to the first rate as long as it rose, and only then to the last

    Raises ValueError when stepped more than `total_steps` times.

    Source: Smith & Topin 2018, Super-Convergence; arguments as in PyTorch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        self.total_steps = _total(total_steps, epochs, steps_per_epoch)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: pct_start is {pct_start}; expected from 0 to 1")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"OneCycleLR: anneal_strategy is {anneal_strategy!r}; expected 'cos' or 'linear'"
            )
        self.anneal_strategy, self.cycle_momentum = anneal_strategy, cycle_momentum
        self._phases = self._make_phases(pct_start, three_phase)
        max_lrs = per_group("OneCycleLR: max_lr", max_lr, optimizer)
        if last_epoch == -1:
            for group, rate in zip(optimizer.param_groups, max_lrs, strict=True):
                group["initial_lr"] = rate / div_factor
                group["max_lr"] = rate
                group["min_lr"] = group["initial_lr"] / final_div_factor
            if cycle_momentum:
                self._start_momentum(optimizer, base_momentum, max_momentum)
        super().__init__(optimizer, last_epoch)

    def _make_phases(self, pct_start: float, three_phase: bool) -> list[tuple[Any, ...]]:
        """(last step, first rate, last rate, first momentum, last momentum): names in a group."""
        rise = (pct_start * self.total_steps - 1, "initial_lr", "max_lr")
        last = self.total_steps - 1
        if not three_phase:
            return [
                (*rise, "max_momentum", "base_momentum"),
                (last, "max_lr", "min_lr", "base_momentum", "max_momentum"),
            ]
        fallen = 2 * pct_start * self.total_steps - 2
        return [
            (*rise, "max_momentum", "base_momentum"),
            (fallen, "max_lr", "initial_lr", "base_momentum", "max_momentum"),
            (last, "initial_lr", "min_lr", "max_momentum", "max_momentum"),
        ]

    def _start_momentum(self, optimizer: Optimizer, base: Any, highest: Any) -> None:
        bases = per_group("OneCycleLR: base_momentum", base, optimizer)
        highests = per_group("OneCycleLR: max_momentum", highest, optimizer)
        for group, low, high in zip(optimizer.param_groups, bases, highests, strict=True):
            if "betas" not in group and "momentum" not in group:
                raise ValueError(
                    f"OneCycleLR: {type(optimizer).__name__} has neither momentum nor betas; "
                    "set cycle_momentum=False"
                )
            group["base_momentum"], group["max_momentum"] = low, high
            _set_momentum(group, high)

    def get_lr(self) -> list[float]:
        t = self.last_epoch
        if t > self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {t} of {self.total_steps}; give a larger total_steps or make a "
                "new schedule"
            )
        # The phase that t falls into, and how far on in it t is.
        ends = [phase[0] for phase in self._phases]
        i = min(bisect.bisect_left(ends, t), len(ends) - 1)
        start, (end, *names) = (ends[i - 1] if i else 0.0), self._phases[i]
        part = (t - start) / (end - start)
        rates = []
        for group in self.optimizer.param_groups:
            values: Any = [group.get(name) for name in names]  # None where none is cycled
            first, last, first_momentum, last_momentum = values
            rates.append(self._anneal(first, last, part))
            if self.cycle_momentum:
                _set_momentum(group, self._anneal(first_momentum, last_momentum, part))
        return rates

    def _anneal(self, first: float, last: float, part: float) -> float:
        if self.anneal_strategy == "linear":
            return first + (last - first) * part
        return last + (first - last) / 2 * (1 + math.cos(math.pi * part))


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "betas" in group:
        group["betas"] = (value, *group["betas"][1:])
    else:
        group["momentum"] = value


def _total(total_steps: Any, epochs: Any, steps_per_epoch: Any) -> int:
    """The number of steps, from either way to give it."""
    if total_steps is not None:
        given = {"total_steps": total_steps}
    elif epochs is None or steps_per_epoch is None:
        raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
    else:
        given = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    for name, value in given.items():
        if value != int(value) or value < 1:
            raise ValueError(f"OneCycleLR: {name} is {value}; expected a whole number above 0")
    return math.prod(int(value) for value in given.values())
