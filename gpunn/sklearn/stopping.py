"""When an MLP has learned enough, and how its learning rate goes down, as in scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpunn.train.callbacks import Callback, copy_weights, restore_weights


class Stopping(Callback):
    """Stop when the loss, or a score of held-out samples, no longer improves by `tol`.

    Parameters
    ----------
    tol, patience : more than `patience` epochs in a row that improve by less than `tol` are enough
    score : gives a score of held-out samples, the larger the better; then the weights of the best
        epoch are put back at the end. None: the training loss decides
    rate : "constant"; "invscaling", rate / (samples seen + 1)^power; or "adaptive": where the
        training would stop, the rate is divided by 5 instead, until it is 1e-6
    initial, power, samples : the first rate, the exponent, the samples of an epoch
    seen : samples seen before

    Attributes
    ----------
    scores : the score of each epoch
    best : the best loss or score
    stopped : whether the training was ended here
    """

    def __init__(
        self, tol: float, patience: float, score: Callable[[], float] | None = None,
        rate: str = "constant", initial: float = 0.0, power: float = 0.5, samples: int = 0,
        seen: int = 0,
    ):  # fmt: skip
        self.tol, self.patience, self.score = tol, patience, score
        self.rate, self.initial, self.power = rate, initial, power
        self.samples, self.seen = samples, seen
        self.scores: list[float] = []
        self.best = -math.inf if score else math.inf
        self.stopped, self._waited = False, 0
        self._weights: dict[str, Any] | None = None

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        self.seen += self.samples
        if self.score is None:
            value = record["loss"]
            good, better = value <= self.best - self.tol, value < self.best
        else:
            value = self.score()
            self.scores.append(value)
            good, better = value >= self.best + self.tol, value > self.best
            if better:
                self._weights = copy_weights(trainer.model, self._weights)
        if better:
            self.best = value
        self._waited = 0 if good else self._waited + 1
        (group,) = trainer.optimizer.param_groups
        if self.rate == "invscaling":
            group["lr"] = self.initial / (self.seen + 1) ** self.power
        if self._waited > self.patience:
            if self.rate == "adaptive" and group["lr"] > 1e-6:
                group["lr"], self._waited = group["lr"] / 5, 0
            else:
                what = "training loss" if self.score is None else "validation score"
                self.stopped = True
                trainer.stop(f"the {what} has not improved by {self.tol:g} for {self.patience}"
                             " epochs")  # fmt: skip

    def on_train_end(self, trainer: Any) -> None:
        if self._weights is not None:
            restore_weights(trainer.model, self._weights)
            self._weights = None
