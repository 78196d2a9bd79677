"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.optimizer import sgd_update


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum, Nesterov's form and weight decay.

    Formulas: `gpunn.kernels.sgd_update`; arguments as in `torch.optim.SGD`. `foreach` and `fused`
    are accepted and change nothing: every update is one fused launch.

    Raises ValueError for lr, momentum or weight_decay below 0, and for Nesterov's form without
    momentum or with dampening.
    """

    rule = "sgd"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._require_number(group, "momentum", low=0)
        self._require_number(group, "dampening")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"{self._name}: nesterov needs momentum above 0 and no dampening; momentum is "
                f"{group['momentum']}, dampening {group['dampening']}"
            )

    def hyper_values(self, group: dict[str, Any]) -> tuple[float, ...]:
        names = ("lr", "momentum", "dampening", "weight_decay")
        return tuple(float(group[name]) for name in names)

    def state_names(self, group: dict[str, Any]) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] != 0 else {}

    def counts_steps(self, group: dict[str, Any]) -> bool:
        return group["momentum"] != 0  # only the first step with a buffer differs from the others

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Any],
        gradients: list[Any],
        state: dict[str, Any],
        hyper: dict[str, Any],
    ) -> None:
        sgd_update(
            parameters,
            gradients,
            state.get("momentum_buffer"),
            hyper,
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            skip=self.skip_flag,
        )
