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
from gpunn.autograd.functions.attention import packed_attention, scaled_dot_product_attention
from gpunn.autograd.functions.channel_norm import (
    batch_norm,
    group_norm,
    instance_norm,
    local_response_norm,
)
from gpunn.autograd.functions.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from gpunn.autograd.functions.ctc import ctc_loss
from gpunn.autograd.functions.embedding import embedding, embedding_bag, rotary_embedding
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
    quantile_loss,
    smooth_l1_loss,
)
from gpunn.autograd.functions.padding import pad
from gpunn.autograd.functions.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from gpunn.autograd.functions.reduction import norm
from gpunn.autograd.functions.resizing import interpolate
from gpunn.autograd.functions.row_norm import (
    add_layer_norm,
    add_rms_norm,
    layer_norm,
    rms_norm,
)
from gpunn.autograd.functions.sequence import masked_mse_loss, sequence_cross_entropy, sequence_mask
from gpunn.autograd.functions.shape import flatten
from gpunn.autograd.tensor import Tensor

__all__ = [
    "activate",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "add_layer_norm",
    "add_rms_norm",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "ctc_loss",
    "dropout",
    "elu",
    "embedding",
    "embedding_bag",
    "flatten",
    "gelu",
    "group_norm",
    "hardswish",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "masked_mse_loss",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "packed_attention",
    "pad",
    "quantile_loss",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "selu",
    "sequence_cross_entropy",
    "sequence_mask",
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
