"""Penalties on the weights and limits on the gradients."""

from __future__ import annotations

import math
from typing import Any

from gpunn.optim.clip import add_penalty_gradient_, clip_grad_norm_, clip_grad_value_


class Regularization:
    """``l1·Σ|w| + l2·Σw²`` over weights, and clipping of gradients by value, then by norm.

    Weights are the parameters with two axes or more; biases and scales are left alone.
    ValueError for a negative penalty, or a limit that is not above 0.
    """

    def __init__(
        self,
        model: Any,
        l1: float = 0.0,
        l2: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ):
        for name, value in (("l1", l1), ("l2", l2)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name, limit in (
            ("gradient_clip_norm", clip_norm),
            ("gradient_clip_value", clip_value),
        ):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0, or None for no limit, got {limit}")
        self.model, self.l1, self.l2 = model, float(l1), float(l2)
        self.clip_norm, self.clip_value = clip_norm, clip_value

    def apply(self) -> None:
        """Add the penalties' gradients to those that `backward` left, then limit them all."""
        if self.l1 or self.l2:
            weights = (p for p in self.model.parameters() if p.ndim >= 2)
            add_penalty_gradient_(weights, self.l1, self.l2)
        if self.clip_value is not None:
            clip_grad_value_(self.model.parameters(), self.clip_value)
        if self.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.clip_norm)
