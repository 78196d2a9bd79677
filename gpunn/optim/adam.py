"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpunn.optim.optimizer import Optimizer
from gpunn.primitives.optimizer import adam_update


class Adam(Optimizer):
    """Adam, with weight decay added to the gradient.

    Formulas: `gpunn.kernels.adam_update`; arguments as in `torch.optim.Adam`. `foreach`, `fused`
    and `capturable` are accepted and change nothing: every update is one fused launch, and the
    step count lives on the device.

    Raises ValueError for lr, eps or weight_decay below 0 and betas outside [0, 1).
    """

    rule = "adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._require_betas(group)
        self._require_number(group, "eps", low=0)

    def hyper_values(self, group: dict[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        values = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
        return tuple(map(float, values))

    def state_names(self, group: dict[str, Any]) -> dict[str, float]:
        names = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        if group["amsgrad"]:
            names["max_exp_avg_sq"] = 0.0
        return names

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Any],
        gradients: list[Any],
        state: dict[str, Any],
        hyper: dict[str, Any],
    ) -> None:
        adam_update(
            parameters,
            gradients,
            state["exp_avg"],
            state["exp_avg_sq"],
            hyper,
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            skip=self.skip_flag,
            max_exp_avg_sq=state.get("max_exp_avg_sq"),
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: each step first scales w by 1 - lr weight_decay.

    As `Adam`, with PyTorch's default weight_decay of 0.01.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
        )
