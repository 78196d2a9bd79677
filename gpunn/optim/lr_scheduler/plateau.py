"""Reducing the rate when a metric stops improving."""

from __future__ import annotations

import math
from typing import Any

from gpunn.optim.lr_scheduler.base import LRScheduler, per_group
from gpunn.optim.optimizer import Optimizer


class ReduceLROnPlateau(LRScheduler):
    """lr is multiplied by `factor` when a metric has not improved for more than `patience` steps.

    Parameters
    ----------
    mode : "min" if a smaller metric is better, "max" if a larger one
    patience : steps without improvement that are let pass
    threshold, threshold_mode : an improvement is one by the part ("rel") or amount ("abs") given
    cooldown : steps after a reduction in which none are counted
    min_lr : rates are not reduced below this; one or one for each group
    eps : smaller changes of a rate are not made

    Arguments as in PyTorch. `step` takes the metric: a number or a Tensor with one element.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
    ):
        if not factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor is {factor}; expected below 1")
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: mode is {mode!r}; expected 'min' or 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"ReduceLROnPlateau: threshold_mode is {threshold_mode!r}; expected 'rel' or 'abs'"
            )
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.eps = cooldown, eps
        self.min_lrs = per_group("ReduceLROnPlateau: min_lr", min_lr, optimizer)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return self._rates()

    def step(  # type: ignore[override]  # as in PyTorch, the metric comes first
        self, metrics: Any, epoch: int | None = None
    ) -> None:
        """Take note of the metric and reduce the rates if it is time."""
        value = float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self._better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = self._rates()

    def _better(self, value: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "abs":
            return sign * value > sign * self.best + self.threshold
        return sign * value > sign * self.best * (1 + sign * self.threshold)

    def _reduce(self) -> None:
        pairs = zip(self.optimizer.param_groups, self.min_lrs, strict=True)
        for group, lowest in pairs:
            rate = max(group["lr"] * self.factor, lowest)
            if group["lr"] - rate > self.eps:
                group["lr"] = rate
