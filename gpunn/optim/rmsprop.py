"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.optimizer import rmsprop_update


class RMSprop(Optimizer):
    """RMSprop, with momentum, and centered (the variance in place of the mean square).

    Formulas: `gpunn.kernels.rmsprop_update`; arguments as in `torch.optim.RMSprop`. `foreach` and
    `capturable` are accepted and change nothing.

    Raises ValueError for lr, alpha, eps, momentum or weight_decay below 0.
    """

    rule = "rmsprop"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("alpha", "eps", "momentum"):
            self._require_number(group, name, low=0)

    def hyper_values(self, group: dict[str, Any]) -> tuple[float, ...]:
        names = ("lr", "alpha", "eps", "weight_decay", "momentum")
        return tuple(float(group[name]) for name in names)

    def state_names(self, group: dict[str, Any]) -> dict[str, float]:
        names = {"square_avg": 0.0}
        if group["momentum"] > 0:
            names["momentum_buffer"] = 0.0
        if group["centered"]:
            names["grad_avg"] = 0.0
        return names

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Any],
        gradients: list[Any],
        state: dict[str, Any],
        hyper: dict[str, Any],
    ) -> None:
        rmsprop_update(
            parameters,
            gradients,
            state["square_avg"],
            state.get("momentum_buffer"),
            state.get("grad_avg"),
            hyper,
            maximize=group["maximize"],
            skip=self.skip_flag,
        )
