"""Schedules with a formula: constant, linear, stepwise, exponential, polynomial, cosine, any.

With t = `last_epoch`. Each `get_lr` goes on from the rates as they are, so that schedules can be
combined on one optimizer; `closed_form` is the same as a function of t alone.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Iterable

from gpunn.optim.lr_scheduler.base import LRScheduler, per_group
from gpunn.optim.optimizer import Optimizer

_Functions = Callable[[int], float] | list[Callable[[int], float]]


class LambdaLR(LRScheduler):
    """lr = initial lr · lr_lambda(t); one function, or one for each group."""

    def __init__(self, optimizer: Optimizer, lr_lambda: _Functions, last_epoch: int = -1):
        self.lr_lambdas = per_group("LambdaLR: lr_lambda", lr_lambda, optimizer)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * function(self.last_epoch) for base, function in pairs]


class MultiplicativeLR(LRScheduler):
    """lr is multiplied by lr_lambda(t) at each step; one function, or one for each group."""

    def __init__(self, optimizer: Optimizer, lr_lambda: _Functions, last_epoch: int = -1):
        self.lr_lambdas = per_group("MultiplicativeLR: lr_lambda", lr_lambda, optimizer)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch <= 0:
            return self._rates()
        pairs = zip(self._rates(), self.lr_lambdas, strict=True)
        return [rate * function(self.last_epoch) for rate, function in pairs]


class _Scaled(LRScheduler):
    """A schedule that multiplies the rate by `factor()` when it comes to step t."""

    def factor(self) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        factor = self.factor()
        return [rate * factor for rate in self._rates()]


class StepLR(_Scaled):
    """lr is multiplied by `gamma` every `step_size` steps."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ):
        _positive("StepLR", "step_size", step_size)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def factor(self) -> float:
        due = self.last_epoch > 0 and self.last_epoch % self.step_size == 0
        return self.gamma if due else 1.0

    def closed_form(self, base_lr: float) -> float:
        return base_lr * self.gamma ** (self.last_epoch // self.step_size)


class MultiStepLR(_Scaled):
    """lr is multiplied by `gamma` at each of the steps `milestones`."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        self.milestones, self.gamma = Counter(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def factor(self) -> float:
        return self.gamma ** self.milestones[self.last_epoch]

    def closed_form(self, base_lr: float) -> float:
        passed = bisect.bisect_right(sorted(self.milestones.elements()), self.last_epoch)
        return base_lr * self.gamma**passed


class ConstantLR(_Scaled):
    """lr is multiplied by `factor` for the first `total_iters` steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 <= factor <= 1:
            raise ValueError(f"ConstantLR: factor is {factor}; expected a number from 0 to 1")
        self._factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def factor(self) -> float:
        if self.last_epoch == 0:
            return self._factor
        return 1 / self._factor if self.last_epoch == self.total_iters else 1.0

    def get_lr(self) -> list[float]:
        if self._factor == 0 and self.last_epoch == self.total_iters:
            return self.base_lrs  # there is no way back from 0
        return super().get_lr()

    def closed_form(self, base_lr: float) -> float:
        return base_lr * (1.0 if self.last_epoch >= self.total_iters else self._factor)


class LinearLR(_Scaled):
    """Linear warm-up: lr · a factor that goes from `start_factor` to `end_factor`.

    It takes `total_iters` steps and then stays.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 < start_factor <= 1:
            raise ValueError(
                f"LinearLR: start_factor is {start_factor}; expected above 0, at most 1"
            )
        if not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: end_factor is {end_factor}; expected from 0 to 1")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _at(self, t: int) -> float:
        part = min(t, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * part

    def factor(self) -> float:
        if self.last_epoch == 0:
            return self.start_factor
        if self.last_epoch > self.total_iters:
            return 1.0
        return self._at(self.last_epoch) / self._at(self.last_epoch - 1)

    def closed_form(self, base_lr: float) -> float:
        return base_lr * self._at(self.last_epoch)


class ExponentialLR(_Scaled):
    """lr is multiplied by `gamma` at each step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def factor(self) -> float:
        return self.gamma if self.last_epoch > 0 else 1.0

    def closed_form(self, base_lr: float) -> float:
        return base_lr * self.gamma**self.last_epoch


class PolynomialLR(_Scaled):
    """lr = initial lr · (1 - t / total_iters)^power, 0 afterwards."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ):
        _positive("PolynomialLR", "total_iters", total_iters)
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def factor(self) -> float:
        t, total = self.last_epoch, self.total_iters
        if t == 0 or t > total:
            return 1.0
        return ((total - t) / (total - t + 1)) ** self.power

    def closed_form(self, base_lr: float) -> float:
        rest = 1 - min(self.last_epoch, self.total_iters) / self.total_iters
        return base_lr * rest**self.power


class CosineAnnealingLR(LRScheduler):
    """lr falls from its initial value to `eta_min` in `T_max` steps on half a cosine, then rises.

    lr = eta_min + (initial lr - eta_min) (1 + cos(pi t / T_max)) / 2. Source: Loshchilov & Hutter
    2017, SGDR, without the restarts.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        _positive("CosineAnnealingLR", "T_max", T_max)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return self._rates()
        if self._step_count == 1:  # resumed: the rates may be of any step
            return [self.closed_form(base) for base in self.base_lrs]
        now, before = self._height(self.last_epoch), self._height(self.last_epoch - 1)
        pairs = zip(self._rates(), self.base_lrs, strict=True)
        if (self.last_epoch - 1) % (2 * self.T_max) == self.T_max:  # `before` is 0
            return [rate + (base - self.eta_min) * now for rate, base in pairs]
        return [self.eta_min + (rate - self.eta_min) * now / before for rate, _ in pairs]

    def _height(self, t: int) -> float:
        return (1 + math.cos(math.pi * t / self.T_max)) / 2

    def closed_form(self, base_lr: float) -> float:
        return self.eta_min + (base_lr - self.eta_min) * self._height(self.last_epoch)


class CosineAnnealingWarmRestarts(LRScheduler):
    """lr falls to `eta_min` on half a cosine and jumps back, in `T_0` steps, then T_0 · T_mult, …

    Source: Loshchilov & Hutter 2017, SGDR.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        _positive("CosineAnnealingWarmRestarts", "T_0", T_0)
        _positive("CosineAnnealingWarmRestarts", "T_mult", T_mult)
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [self.closed_form(base) for base in self.base_lrs]

    def closed_form(self, base_lr: float) -> float:
        period, t = self.T_0, self.last_epoch
        if self.T_mult == 1:
            t %= period
        while t >= period:
            t, period = t - period, period * self.T_mult
        height = (1 + math.cos(math.pi * t / period)) / 2
        return self.eta_min + (base_lr - self.eta_min) * height


def _positive(schedule: str, name: str, value: int) -> None:
    if not value >= 1:
        raise ValueError(f"{schedule}: {name} is {value}; expected 1 or more")
