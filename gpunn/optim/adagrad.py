"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.optimizer import adagrad_update


class Adagrad(Optimizer):
    """Adagrad: each parameter's rate falls with the sum of its squared gradients.

    Formulas: `gpunn.kernels.adagrad_update`; arguments as in `torch.optim.Adagrad`. `foreach` and
    `fused` are accepted and change nothing.

    Raises ValueError for any number below 0.
    """

    rule = "adagrad"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        fused: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("lr_decay", "eps", "initial_accumulator_value"):
            self._require_number(group, name, low=0)

    def hyper_values(self, group: dict[str, Any]) -> tuple[float, ...]:
        names = ("lr", "lr_decay", "weight_decay", "eps")
        return tuple(float(group[name]) for name in names)

    def state_names(self, group: dict[str, Any]) -> dict[str, float]:
        return {"sum": float(group["initial_accumulator_value"])}

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Any],
        gradients: list[Any],
        state: dict[str, Any],
        hyper: dict[str, Any],
    ) -> None:
        how = {"maximize": group["maximize"], "skip": self.skip_flag}
        adagrad_update(parameters, gradients, state["sum"], hyper, **how)
