"""The layers as functions, with PyTorch's names: ``import gpunn.nn.functional as F``."""

from __future__ import annotations

import math

from gpunn.autograd.functions.activation import (
    activate,
    dropout,
    log_softmax,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from gpunn.autograd.functions.arithmetic import maximum, where
from gpunn.autograd.functions.indexing import one_hot
from gpunn.autograd.functions.linalg import linear
from gpunn.autograd.functions.linear_cross_entropy import linear_cross_entropy
from gpunn.autograd.functions.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from gpunn.autograd.functions.reduction import norm
from gpunn.autograd.functions.shape import flatten
from gpunn.autograd.tensor import Tensor

__all__ = [
    "activate",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout",
    "elu",
    "flatten",
    "gelu",
    "hardswish",
    "huber_loss",
    "l1_loss",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "logsigmoid",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x, or negative_slope x below zero. `inplace` makes a new tensor all the same."""
    return activate(input, "leaky_relu", negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x, or alpha (e^x - 1) below zero"""
    return activate(input, "elu", alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """1.0507 (x, or 1.6733 (e^x - 1) below zero)"""
    return activate(input, "selu")


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """x Phi(x), Phi the normal distribution, or its approximation by tanh (approximate="tanh")"""
    return activate(input, gelu_kernel(approximate))


def gelu_kernel(approximate: str) -> str:
    """The kernel's name for GELU's `approximate`."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate {approximate!r} is not known; use 'none' or 'tanh'")
    return "gelu" if approximate == "none" else "gelu_tanh"


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x)"""
    return activate(input, "silu")


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(log(1 + e^x))"""
    return activate(input, "mish")


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x clamp(x + 3, 0, 6) / 6"""
    return activate(input, "hard_swish")


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta; x itself where beta x > threshold.

    The kernel is stable without the threshold, which matters only where it is below 20.
    """
    out = activate(input, "softplus", float(beta))
    return out if threshold >= 20 else where(input * beta > threshold, input, out)


def logsigmoid(input: Tensor) -> Tensor:
    """log(1 / (1 + e^-x))"""
    return -activate(-input, "softplus")


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """`input` divided by its p-norm along `dim`, or by `eps` where that is larger."""
    if not math.isfinite(eps) or eps < 0:
        raise ValueError(f"normalize: eps is {eps}; expected a small positive number")
    return input / maximum(norm(input, p, dim, True), eps)
