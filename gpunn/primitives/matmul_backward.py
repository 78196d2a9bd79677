"""What the backward pass of ``y = activation(x W^T + b)`` needs, each as one product.

The gradient that arrives at a layer's output is multiplied by the activation's derivative, and then
goes three ways: to the input (times W), to W (times x), and to b (summed over the rows).

    matmul_activation_backward   the product with W of one layer, the derivative of the layer below
                                 and the gradient of its bias
    linear_weight_gradient       the gradients of W and b, which read the same array
    bias_gradient                that of b alone
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import (
    ACTIVATIONS,
    DEFAULT_ALPHA,
    activation_backward,
    resolve_alpha,
)
from gpunn.primitives.matmul import bytes_of, numba_product, product
from gpunn.primitives.matmul_checks import SOURCES, fold, like_out, operands, refuse_overlap
from gpunn.primitives.matmul_launch import multiply
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.matmul_samples import (
    activation_backward_samples,
    bias_gradient_samples,
    weight_gradient_samples,
)
from gpunn.primitives.matmul_simt import column_sums, whole
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING

# ---- specification -------------------------------------------------------------------------------


@primitive(family="matmul", **SOURCES)
def matmul_activation_backward(
    call,
    a,
    b,
    preactivation,
    *,
    activation: str,
    alpha: float | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    out=None,
    bias_gradient=None,
    keep_bias_gradient: bool = False,
):
    """A product times an activation's derivative: ``out = (a @ b) * f'(preactivation)``.

    With ``a`` the gradient at a layer's output before its activation and ``b`` its weight (rows:
    outputs), `out` is the gradient before the activation of the layer below, and `bias_gradient`
    that of its bias.

    Parameters
    ----------
    a, b, transpose_a, transpose_b : as in `matmul`
    preactivation : array (..., M, N) of the same dtype, what the activation was applied to
        (or its output, where the derivative follows from the sign: relu, leaky_relu with alpha > 0)
    activation, alpha : one of `ACTIVATIONS` and its parameter, as in `activation_backward`
    out : array like `preactivation` to write; shares no memory with an input
    bias_gradient : array (N,) that receives the sum of `out` over all its rows
    keep_bias_gradient : return ``(out, bias_gradient)``, made if it is not given

    Returns
    -------
    `out`, or ``(out, bias_gradient)`` with `keep_bias_gradient`

    Sums are made in float32 (float64 for float64) in a fixed order, and rounded once.

    Raises
    ------
    TypeError, ValueError : as `matmul`, and for a `preactivation` of another shape or dtype
    """
    left, right, shape = operands(call, a, b, transpose_a, transpose_b)
    dtype = left.dtype
    call.choice("activation", activation, ACTIVATIONS)
    alpha = resolve_alpha(call, activation, alpha)
    saved = call.array("preactivation", preactivation, dtypes=(dtype,), shape=shape)
    inputs = {"a": left, "b": right, "preactivation": saved}
    out = like_out(call, "out", out, shape, dtype, True, **inputs)
    inputs["out"] = out
    sums = like_out(
        call, "bias_gradient", bias_gradient, shape[-1:], dtype, keep_bias_gradient, **inputs
    )
    left, right, out_, saved = fold(left, right, out, saved)
    call.run(
        left,
        right,
        Finish(out_, activation=activation, alpha=alpha, saved=saved, column_sums=sums),
    )
    return (out, sums) if keep_bias_gradient else out


@primitive(family="matmul", **SOURCES)
def linear_weight_gradient(call, grad_output, x, *, out=None, bias_gradient=None):
    """The gradients of W and b of ``y = x W^T + b``: ``grad_output^T x``, and its column sums.

    Parameters
    ----------
    grad_output : array (rows, outputs), float16, bfloat16, float32 or float64
    x : array (rows, inputs) of the same dtype
    out : array (outputs, inputs) of the same dtype to write
    bias_gradient : array (outputs,) of the same dtype to write

    Views of any strides are read in place. No rows give zeros. Sums are made in float32 (float64
    for float64) in a fixed order, and rounded once.

    Returns
    -------
    ``(out, bias_gradient)``

    Raises
    ------
    TypeError, ValueError : as `matmul`, and for operands that have not 2 dimensions
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, ndim=2, strided=True)
    x = call.array("x", x, dtypes=(grad_output.dtype,), ndim=2, strided=True)
    rows, outputs = grad_output.shape
    if x.shape[0] != rows:
        call.refuse("x", x, f"{rows} rows, one for each row of grad_output")
    dtype, inputs = x.dtype, {"grad_output": grad_output, "x": x}
    out = like_out(call, "out", out, (outputs, x.shape[1]), dtype, True, **inputs)
    inputs["out"] = out
    sums = like_out(call, "bias_gradient", bias_gradient, (outputs,), dtype, True, **inputs)
    call.run(grad_output.T, x, Finish(out, row_sums=sums))
    return out, sums


@primitive(family="matmul", **SOURCES)
def bias_gradient(call, grad_output, *, out=None):
    """The gradient of a bias: ``out[n] = sum over all rows of grad_output[..., n]``.

    Parameters
    ----------
    grad_output : array (..., N), float16, bfloat16, float32 or float64; no rows give zeros
    out : array (N,) of the same dtype to write; shares no memory with `grad_output`

    Sums are made in float32 (float64 for float64) over blocks of rows and then over the blocks, in
    a fixed order, and rounded once.

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, a 0-d array, an `out` that does not fit
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=1)
    columns = grad_output.shape[-1]
    rows = grad_output.reshape(math.prod(grad_output.shape[:-1]), columns)
    if out is None:
        out = call.empty((columns,), rows.dtype)
    else:
        out = call.output("out", out, shape=(columns,), dtype=rows.dtype)
        refuse_overlap(call, "out", out, grad_output=rows)
    call.run(rows, out)
    return out


# ---- reference -----------------------------------------------------------------------------------


@matmul_activation_backward.reference
def _(a, b, finish):
    with quiet():
        total = product(a, b)
        saved = finish.saved.astype(total.dtype, copy=False)
        activation_backward._reference(total, saved, total, finish.activation, finish.alpha)
        finish.out[...] = total
        if finish.column_sums is not None:
            finish.column_sums[...] = _column_sums(total.reshape(-1, total.shape[-1]))


@linear_weight_gradient.reference
def _(a, b, finish):
    out = finish.out
    with quiet():
        total = product(a, b, out)
        if total is not out:
            out[...] = total
        finish.row_sums[...] = _column_sums(a.T.astype(total.dtype, copy=False))


@bias_gradient.reference
def _(grad_output, out):
    wide = np.float32 if out.dtype.itemsize == 2 else out.dtype
    with quiet():
        out[...] = _column_sums(grad_output.astype(wide, copy=False))


# Rows that one sum runs over before the next is begun: bounds the rounding error of long sums.
_ROWS = 512


@functools.lru_cache(maxsize=64)
def _ones(count: int, dtype) -> np.ndarray:
    return np.ones(count, dtype)


def _column_sums(rows) -> np.ndarray:
    """Column sums as products with a row of ones: BLAS makes them faster than `add.reduce`, and
    with smaller errors."""
    with quiet():
        while len(rows) > _ROWS:
            blocks, rest = divmod(len(rows), _ROWS)
            sums = np.empty((blocks + (rest > 0), rows.shape[1]), rows.dtype)
            stacked = rows[: blocks * _ROWS].reshape(blocks, _ROWS, rows.shape[1])
            np.matmul(_ones(_ROWS, rows.dtype), stacked, out=sums[:blocks])
            if rest:
                np.dot(_ones(rest, rows.dtype), rows[blocks * _ROWS :], sums[blocks])
            rows = sums
        return np.dot(_ones(len(rows), rows.dtype), rows)


# ---- launch --------------------------------------------------------------------------------------


@matmul_activation_backward.cuda
def _(launch, a, b, finish):
    if finish.out.size == 0:
        if finish.column_sums is not None and finish.column_sums.size:
            finish.column_sums[...] = 0
        return
    multiply(launch, a, b, finish)


@linear_weight_gradient.cuda
def _(launch, a, b, finish):
    if finish.out.size == 0:
        if finish.row_sums.size:  # no inputs
            column_sums(launch, whole(launch, a.T), finish.row_sums)
        return
    multiply(launch, a, b, finish)


@bias_gradient.cuda
def _(launch, grad_output, out):
    if out.size:
        column_sums(launch, grad_output, out)


@matmul_activation_backward.numba
def _(launch, a, b, finish):
    out = finish.out
    if out.size:
        total = launch.empty(out.shape, out.dtype)
        numba_product(launch, a, b, total)
        alpha = finish.alpha if finish.activation in DEFAULT_ALPHA else None
        activation_backward(
            total, finish.saved, activation=finish.activation, alpha=alpha, out=out
        )
    if finish.column_sums is not None:
        bias_gradient(out, out=finish.column_sums)


@linear_weight_gradient.numba
def _(launch, a, b, finish):
    if finish.out.size:
        numba_product(launch, a, b, finish.out)
    bias_gradient(whole(launch, a.T), out=finish.row_sums)


@bias_gradient.numba
def _(launch, grad_output, out):
    if out.size == 0:
        return
    kernel, across = f"column_sums_{out.dtype}", -(-out.size // 32)
    # Few columns are too few blocks: then blocks share the rows, 128 each at the least.
    parts = max(1, min(-(-grad_output.shape[0] // 128), 1024 // across))
    if parts > 1:
        partial = launch.empty((parts, out.size), out.dtype)
        launch(kernel, (across, parts), (32, 8), (grad_output, partial))
        grad_output = partial
    launch(kernel, (across, 1), (32, 8), (grad_output, out[None]))


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@matmul_activation_backward.cost
def _(a, b, finish):
    return Cost(
        flops=2 * finish.out.size * a.shape[-1],
        read=bytes_of(a, b, finish.saved),
        written=bytes_of(finish.out, finish.column_sums),
    )


@linear_weight_gradient.cost
def _(a, b, finish):
    return Cost(
        flops=2 * finish.out.size * a.shape[-1] + a.size,
        read=bytes_of(a, b),
        written=bytes_of(finish.out, finish.row_sums),
    )


@bias_gradient.cost
def _(grad_output, out):
    return Cost(flops=grad_output.size, read=grad_output.nbytes, written=out.nbytes)


matmul_activation_backward.samples(activation_backward_samples)
linear_weight_gradient.samples(weight_gradient_samples)
bias_gradient.samples(bias_gradient_samples)


@matmul_activation_backward.inputs
def _(rng, shape):
    M, N, K = shape
    a, b, saved = (rng.standard_normal(s, np.float32) for s in ((M, K), (K, N), (M, N)))
    return (a, b, saved), {"activation": "gelu", "keep_bias_gradient": True}


@linear_weight_gradient.inputs
def _(rng, shape):
    M, N, K = shape
    return (rng.standard_normal((K, M), np.float32), rng.standard_normal((K, N), np.float32)), {}


@bias_gradient.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32),), {}


matmul_activation_backward.bench_shapes = ((4096, 4096, 4096), (128, 784, 256))
linear_weight_gradient.bench_shapes = ((4096, 4096, 4096), (256, 784, 128))
bias_gradient.bench_shapes = ((128, 256), (65536, 1024))
