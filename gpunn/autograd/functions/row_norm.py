"""Layer norm and RMS norm over the last dimensions, each over its pair of kernels."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np

from gpunn.autograd.aliases import Size
from gpunn.autograd.autocast import widened
from gpunn.autograd.dtypes import is_low
from gpunn.autograd.function import Function, check_devices, converted
from gpunn.autograd.functions.common import as_float, operands
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor
from gpunn.primitives import layer_norm as primitives
from gpunn.primitives.layer_norm_implementation import MIXED_COLUMNS
from gpunn.primitives.samples import accumulator_dtype


def flat(weight):
    """A weight in one dimension; None stays None."""
    return weight if weight is None or weight.ndim == 1 else weight.reshape(-1)


class _RowNorm(Function):
    """Normalised rows: the last dimensions, as one

    Where the input is used elsewhere as well, as in a residual network, what comes back from there
    has already arrived; it is then added in the kernel and not in a launch of its own.
    """

    def rows(self, array):
        return array.reshape(*array.shape[: array.ndim - self.dims], self.size)

    def prepare(self, x, dims):
        self.dims, self.size = dims, math.prod(x.shape[x.ndim - dims :])
        return self.rows(x)

    def sums(self, *positions):
        """For each weight: False, True, or where its gradient is to go."""
        found = []
        for position in positions:
            slot = self.slot(position) if self.needs[position] else None
            found.append(self.needs[position] if slot is None else slot.reshape(-1))
        return found

    def gradients(self, made, wanted):
        """Those of the weights in the weights' shape; a slot as it is."""
        shape = self.saved[0].shape[self.saved[0].ndim - self.dims :]
        for position, (grad, want) in enumerate(zip(made, wanted, strict=True), 1):
            if grad is None:
                yield None
            else:
                yield grad.reshape(shape) if want is True else self.slot(position)

    def arrived(self):
        """The gradient that the input has from elsewhere, taken away from it; else None."""
        edge = self.edges[0]
        if not isinstance(edge, Function) or edge.grad is None:
            return None
        x, grad = self.saved[0], edge.grad
        if grad.shape != x.shape or grad.dtype != x.dtype:
            return None
        edge.grad = None
        return self.rows(grad)


class LayerNorm(_RowNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias"""

    def forward(self, x, weight, bias, dims, eps, made):
        rows = self.prepare(x, dims)
        if made is None:
            made = primitives.layer_norm_forward(
                rows, flat(weight), flat(bias), eps=eps, keep_statistics=any(self.needs)
            )
        out, mean, reciprocal = made
        self.save(x, weight, mean, reciprocal)
        return out.reshape(x.shape)

    def backward(self, grad):
        x, weight, mean, reciprocal = self.saved
        wanted = self.sums(1, 2)
        out, *made = primitives.layer_norm_backward(
            self.rows(grad), self.rows(x), mean, reciprocal, flat(weight),
            weight_gradient=wanted[0], bias_gradient=wanted[1], grad_residual=self.arrived(),
        )  # fmt: skip
        return (out.reshape(x.shape), *self.gradients(made, wanted))


class RMSNorm(_RowNorm):
    """x / sqrt(mean of x^2 + eps) * weight"""

    def forward(self, x, weight, dims, eps, made):
        rows = self.prepare(x, dims)
        if made is None:
            made = primitives.rms_norm_forward(
                rows, flat(weight), eps=eps, keep_statistics=any(self.needs)
            )
        out, reciprocal = made
        self.save(x, weight, reciprocal)
        return out.reshape(x.shape)

    def backward(self, grad):
        x, weight, reciprocal = self.saved
        wanted = self.sums(1)
        out, *made = primitives.rms_norm_backward(
            self.rows(grad), self.rows(x), reciprocal, flat(weight), weight_gradient=wanted[0],
            grad_residual=self.arrived(),
        )  # fmt: skip
        return (out.reshape(x.shape), *self.gradients(made, wanted))


class AddForNorm(Function):
    """x + residual, from the kernel that normalises it, whose other results go into `found`"""

    def forward(self, x, residual, norm, dims, options, found):
        shape, self.dtype = x.shape, x.dtype
        rows = (*shape[: len(shape) - dims], math.prod(shape[len(shape) - dims :]))
        *made, total = norm(x.reshape(rows), residual=residual.reshape(rows), **options)
        found.append(tuple(made))
        return total.reshape(shape)

    def backward(self, grad):
        return grad if grad.dtype == self.dtype else converted(grad, self.dtype), grad


# ---- public functions ----------------------------------------------------------------------------


def _dims(name: str, input: Tensor, normalized_shape, **named: Tensor | None) -> int:
    """How many of the last dimensions are normalised; the errors for shapes that do not fit."""
    if isinstance(normalized_shape, Integral):
        normalized_shape = (normalized_shape,)
    shape = tuple(normalized_shape)
    dims = len(shape)
    if dims < 1 or input.ndim < dims or input.shape[input.ndim - dims :] != shape:
        raise ValueError(
            f"{name}: input has shape {input.shape}; its last dimensions must be normalized_shape "
            f"{shape}"
        )
    for argument, tensor in named.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name}: {argument} has shape {tensor.shape}; expected normalized_shape {shape}"
            )
    check_devices(name, *(t for t in (input, *named.values()) if t is not None))
    return dims


def layer_norm(
    input: Tensor, normalized_shape: Size, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimensions.

    `normalized_shape` is their sizes, an int for one; `weight` and `bias` have that shape. float32
    weights go with 16-bit inputs as well. Where `input` is used elsewhere too, what comes back from
    there is added in this function's backward kernel.
    """
    input = as_float(input)
    dims = _dims("layer_norm", input, normalized_shape, weight=weight, bias=bias)
    weight, bias = _beside(input, weight, bias)
    return LayerNorm.apply(input, weight, bias, dims, eps, None)


def rms_norm(
    input: Tensor, normalized_shape: Size, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * weight over the last dimensions.

    `eps` None stands for the resolution of the dtype that is computed in: float32 (float64 for
    float64). The rest as in `layer_norm`.
    """
    input = as_float(input)
    dims = _dims("rms_norm", input, normalized_shape, weight=weight)
    (weight,) = _beside(input, weight)
    return RMSNorm.apply(input, weight, dims, _eps(input, eps), None)


def _eps(input: Tensor, eps: float | None) -> float:
    return float(np.finfo(accumulator_dtype(input.dtype)).eps) if eps is None else eps


def _beside(stream: Tensor, *weights: Tensor | None) -> tuple[Any, ...]:
    """Weights as the kernel takes them; inside `autocast` those of a 16-bit model are widened."""
    if state.low is None or stream.dtype == np.float64:
        return weights
    alike = all(weight is None or weight.dtype == stream.dtype for weight in weights)
    return weights if alike else tuple(map(widened, weights))


def _summands(name: str, input: Tensor, residual: Tensor, dims: int):
    """Both as the kernel adds them; inside `autocast` in the wider of their dtypes.

    There a float32 stream stays one, and what a product in 16 bits adds to it is widened on the
    way, if the kernel has all of a row in registers.
    """
    if state.low is None or input.dtype == residual.dtype:
        return input, residual
    cols = math.prod(input.shape[input.ndim - dims :])
    if is_low(input.dtype) and residual.dtype == np.float32 and cols <= MIXED_COLUMNS:
        return input, residual
    return operands(name, input, residual)


def _added(name, input, residual, dims, norm, **options):
    """(the tensor x + residual, what the kernel has made of it)"""
    mixed = state.low is not None and residual.dtype == np.float32 and is_low(input.dtype)
    if residual.shape != input.shape or (residual.dtype != input.dtype and not mixed):
        raise ValueError(
            f"{name}: residual has shape {residual.shape} and dtype {residual.dtype}, input "
            f"{input.shape} and {input.dtype}; they must be equal"
        )
    check_devices(name, input, residual)
    found: list = []
    options = {
        key: value._array.reshape(-1) if isinstance(value, Tensor) else value
        for key, value in options.items()
    }
    return AddForNorm.apply(input, residual, norm, dims, options, found), found[0]


def add_layer_norm(
    input: Tensor, residual: Tensor, normalized_shape: Size, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(layer_norm(input + residual), input + residual)``, in one kernel.

    The step of a residual network: the first goes into the next block, the second is the stream
    that the block's output is added to. Shapes as in `layer_norm`; `residual` is like `input`.
    """
    input = as_float(input)
    dims = _dims("add_layer_norm", input, normalized_shape, weight=weight, bias=bias)
    input, residual = _summands("add_layer_norm", input, residual, dims)
    weight, bias = _beside(residual, weight, bias)
    options = {"weight": weight, "bias": bias, "eps": eps}
    norm = primitives.layer_norm_forward
    total, made = _added("add_layer_norm", input, residual, dims, norm, **options)
    return LayerNorm.apply(total, weight, bias, dims, eps, made), total


def add_rms_norm(
    input: Tensor, residual: Tensor, normalized_shape: Size, weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(rms_norm(input + residual), input + residual)``, in one kernel; see `add_layer_norm`."""
    input = as_float(input)
    dims, eps = _dims("add_rms_norm", input, normalized_shape, weight=weight), _eps(input, eps)
    input, residual = _summands("add_rms_norm", input, residual, dims)
    (weight,) = _beside(residual, weight)
    norm = primitives.rms_norm_forward
    total, made = _added("add_rms_norm", input, residual, dims, norm, weight=weight, eps=eps)
    return RMSNorm.apply(total, weight, dims, eps, made), total
