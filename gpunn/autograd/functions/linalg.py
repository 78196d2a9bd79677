"""Matrix products: `matmul`, and `linear` with bias and activation in one kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.autocast import lowered
from gpunn.autograd.dtypes import is_float
from gpunn.autograd.function import Function, check_devices
from gpunn.autograd.functions.activation import needs_only_output
from gpunn.autograd.functions.common import operands, sum_to
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.primitives import activation as activation_primitives
from gpunn.primitives import matmul as primitives
from gpunn.primitives.activation_bias import activation_bias_backward
from gpunn.primitives.matmul_backward import (
    bias_gradient,
    linear_weight_gradient,
    matmul_activation_backward,
)


class Matmul(Function):
    """a b for matrices and stacks of them; the gradients are g b^T and a^T g"""

    def forward(self, a, b):
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        self.shapes = a.shape, b.shape
        return primitives.matmul(a, b)

    def backward(self, grad):
        a, b = self.saved
        grad_a = grad_b = None
        shape_a, shape_b = self.shapes
        if self.needs[0]:
            grad_a = sum_to(primitives.matmul(grad, b, transpose_b=True), shape_a)
        if self.needs[1]:
            if len(shape_b) == 2 and len(shape_a) > 2:  # one long product instead of many and a sum
                rows = math.prod(shape_a[:-1])
                a, grad = a.reshape(rows, a.shape[-1]), grad.reshape(rows, grad.shape[-1])
            grad_b = sum_to(primitives.matmul(a, grad, transpose_a=True), shape_b)
        return grad_a, grad_b


class Linear(Function):
    """act(x W^T + b) in one kernel; gradients by x, W and b

    relu and leaky_relu find their derivative from the output; the others keep the pre-activation.
    The gradients by W and b are written straight into the optimizer's arena where there is one.
    Where the input comes from such a layer and goes nowhere else, the product with W also does the
    first step of that layer's backward: times its activation's derivative, summed for its bias.
    """

    def forward(self, x, weight, bias, activation, alpha):
        inputs, outputs = x.shape[-1], weight.shape[0]
        rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), inputs)
        kept = None
        if activation == "identity":
            out = primitives.matmul(rows, weight, transpose_b=True, bias=bias)
        elif needs_only_output(activation, alpha) or not any(self.needs):
            out = kept = primitives.matmul(
                rows, weight, transpose_b=True, bias=bias, activation=activation, alpha=alpha
            )
        else:
            out, kept = primitives.matmul(
                rows, weight, transpose_b=True, bias=bias, activation=activation, alpha=alpha,
                keep_preactivation=True,
            )  # fmt: skip
        if x.ndim != 2:
            same = kept is out
            out = out.reshape(*x.shape[:-1], outputs)
            kept = out if same else kept
        self.activation, self.alpha = activation, alpha
        self.save(x if self.needs[1] else None, weight if self.needs[0] else None, kept)
        return out

    def backward(self, grad):
        x, weight, _ = self.saved
        shape, outputs = grad.shape[:-1], grad.shape[-1]
        rows = math.prod(shape)
        grad, grad_bias = self._through_activation(grad.reshape(rows, outputs))
        grad_x = grad_weight = None
        if self.needs[0]:
            grad_x = self._to_input(grad, weight).reshape(*shape, weight.shape[1])
        if self.needs[1]:
            inputs = x.reshape(rows, x.shape[-1])
            if self.needs[2] and grad_bias is None:
                grad_weight, grad_bias = linear_weight_gradient(
                    grad, inputs, out=self.slot(1), bias_gradient=self.slot(2)
                )
            else:
                grad_weight = primitives.matmul(grad, inputs, transpose_a=True, out=self.slot(1))
        elif self.needs[2] and grad_bias is None:
            grad_bias = bias_gradient(grad, out=self.slot(2))
        return grad_x, grad_weight, grad_bias

    def _through_activation(self, grad):
        """(the gradient before the activation, that of the bias if it came with it)"""
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            return grad, ahead.bias_gradient
        if self.activation == "identity":
            return grad, None
        kept = self.saved[2].reshape(grad.shape)
        how = {"activation": self.activation, "alpha": self.alpha}
        if not self.needs[2]:
            return activation_primitives.activation_backward(grad, kept, **how), None
        return activation_bias_backward(grad, kept, **how, bias_gradient=self.slot(2))

    def _to_input(self, grad, weight):
        """The gradient by the input, or what is `_Ahead` of it for the layer below."""
        below = self.edges[0]
        if (
            not isinstance(below, Linear)
            or below.activation == "identity"
            or below.saved is None
            or not self.only_user_of(0)
        ):
            return primitives.matmul(grad, weight)
        kept, how = below.saved[2], {"activation": below.activation, "alpha": below.alpha}
        kept, below.walk = kept.reshape(len(grad), weight.shape[1]), self.walk
        if not below.needs[2]:
            below.ahead = _Ahead(None)
            return matmul_activation_backward(grad, weight, kept, **how)
        # Straight into the arena only if nobody else writes there before the layer's own turn.
        slot = below.slot(2) if below.only_user_of(2) else None
        out, sums = matmul_activation_backward(
            grad, weight, kept, **how, bias_gradient=slot, keep_bias_gradient=True
        )
        below.ahead = _Ahead(sums)
        return out


class _Ahead(NamedTuple):
    """A `Linear` whose gradient has come through its activation already."""

    bias_gradient: Any


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product ``input @ other`` with PyTorch's rules.

    (M, K) @ (K, N) -> (M, N); leading dimensions are a batch and broadcast; a vector counts as a
    row on the left and a column on the right, and its dimension vanishes from the result.

    Raises ValueError where the inner sizes differ, TypeError for an operand that is no tensor.
    """
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        a, b = (v if isinstance(v, Tensor) else None for v in (input, other))
        reference = a if a is not None else b
        if not all(isinstance(v, Tensor) or hasattr(v, "dtype") for v in (input, other)):
            raise TypeError(
                f"matmul: cannot multiply {type(input).__name__} and {type(other).__name__} as "
                "matrices; expected two tensors. Use * for a number."
            )
        input, other = (
            v if isinstance(v, Tensor) else wrap(reference._xp.asarray(v)) for v in (input, other)
        )
    if state.low is not None:
        input, other = lowered(input, other)
    a, b = operands("matmul", input, other)
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape} do not fit; the last size of input must equal "
            "the last but one of other (for a vector its only one)"
        )
    if not is_float(a.dtype):
        product = a._array @ b._array
        return wrap(np.asarray(product) if isinstance(product, np.generic) else product)
    row, column = a.ndim == 1, b.ndim == 1
    left = reshape(a, 1, a.shape[0]) if row else a
    right = reshape(b, b.shape[0], 1) if column else b
    out = Matmul.apply(left, right)
    if row or column:
        shape = out.shape[:-2] + (() if row else out.shape[-2:-1])
        out = reshape(out, shape + (() if column else out.shape[-1:]))
    return out


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    alpha: float | None = None,
) -> Tensor:
    """``act(input @ weight.T + bias)`` in one kernel.

    Parameters
    ----------
    input : (..., in_features), floating
    weight : (out_features, in_features), bias : (out_features,) or None, of the same dtype
    activation, alpha : one of `gpunn.kernels.ACTIVATIONS` and its parameter (beyond PyTorch)

    Returns (..., out_features). Raises ValueError where the sizes or devices differ, TypeError
    where the dtypes do.
    """
    if state.low is not None:
        input, weight, bias = lowered(input, weight, bias)
    x, w = input._array, weight._array
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"linear: input has shape {x.shape} and weight {w.shape}; expected input (..., "
            "in_features) and weight (out_features, in_features)"
        )
    if x.dtype != w.dtype or (bias is not None and bias._array.dtype != w.dtype):
        raise TypeError(
            f"linear: input has dtype {x.dtype} and weight {w.dtype}"
            f"{'' if bias is None else f', bias {bias.dtype}'}; they must be equal. "
            f"Convert the input with .to({w.dtype.name!r}), or the model."
        )
    if type(x) is not np.ndarray or type(w) is not np.ndarray:
        check_devices("linear", *(t for t in (input, weight, bias) if t is not None))
    return Linear.apply(input, weight, bias, activation, alpha)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """A batch of products: (B, M, K) @ (B, K, N) -> (B, M, N)."""
    return matmul(input, mat2)


def dot(input: Tensor, other: Tensor) -> Tensor:
    """The sum of products of two vectors of one length."""
    if input.ndim != 1 or other.ndim != 1:
        raise ValueError(f"dot: expected two vectors, got shapes {input.shape} and {other.shape}")
    return matmul(input, other)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of two vectors: (N,), (M,) -> (N, M)."""
    if input.ndim != 1 or vec2.ndim != 1:
        raise ValueError(f"outer: expected two vectors, got shapes {input.shape} and {vec2.shape}")
    return reshape(input, -1, 1) * vec2
