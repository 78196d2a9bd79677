"""Lion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.optimizer import lion_update


class Lion(Optimizer):
    """Lion (evolved sign momentum): every parameter moves by lr in each step.

    Formulas: `gpunn.kernels.lion_update` (Chen et al. 2023). The authors advise a learning rate 3
    to 10 times smaller than AdamW's, and a weight decay larger by as much.

    Raises ValueError for lr or weight_decay below 0 and betas outside [0, 1).
    """

    rule = "lion"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ):
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._require_betas(group)

    def hyper_values(self, group: dict[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        return float(group["lr"]), float(beta1), float(beta2), float(group["weight_decay"])

    def state_names(self, group: dict[str, Any]) -> dict[str, float]:
        return {"exp_avg": 0.0}

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Any],
        gradients: list[Any],
        state: dict[str, Any],
        hyper: dict[str, Any],
    ) -> None:
        how = {"maximize": group["maximize"], "skip": self.skip_flag}
        lion_update(parameters, gradients, state["exp_avg"], hyper, **how)
