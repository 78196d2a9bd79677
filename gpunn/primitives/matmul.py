"""Matrix products with transposes, batches, bias, activation, scale and residual.

Letters: ``out (M, N) = activation(scale * a (M, K) @ b (K, N) + bias (N,)) + residual (M, N)``, for
each matrix of a batch. What backward needs stands in `matmul_backward`; which kernel makes a
product in `matmul_plan`.

Transposing makes a view and batches are broadcast by strides of zero, so no operand is ever copied
but for the tensor cores, where they cannot read it as it is. Every sum over K is made in a fixed
order: the same input gives the same bits.
"""

from __future__ import annotations

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import (
    ACTIVATIONS,
    DEFAULT_ALPHA,
    activation_forward,
    resolve_alpha,
)
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.matmul_checks import SOURCES, fold, like_out, operands, refuse_overlap
from gpunn.primitives.matmul_launch import item, multiply
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.matmul_samples import matmul_samples
from gpunn.primitives.registry import Cost, primitive

# ---- specification -------------------------------------------------------------------------------


@primitive(family="matmul", **SOURCES)
def matmul(
    call,
    a,
    b,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias=None,
    activation: str = "identity",
    alpha: float | None = None,
    scale: float = 1.0,
    residual=None,
    out=None,
    preactivation=None,
    keep_preactivation: bool = False,
):
    """A matrix product: ``out = activation(scale * a @ b + bias) + residual``.

    Parameters
    ----------
    a : array (..., M, K), or (..., K, M) with `transpose_a`; float16, bfloat16, float32 or float64
    b : array (..., K, N), or (..., N, K) with `transpose_b`, of the dtype of `a`
        The batch dimensions ``...`` broadcast as in NumPy. Views of any strides are read in place.
        K may be 0: the product is then zero.
    bias : array (N,) of the same dtype, added to every row, or None
    activation, alpha : one of `ACTIVATIONS` and its parameter, as in `activation_forward`
    scale : a number
    residual : array (..., M, N) of the same dtype, or None; may be `out` itself, which is then
        added to
    out : array (..., M, N) of the same dtype to write; shares no memory with another input
    preactivation : array like `out` that receives ``scale * a @ b + bias``
    keep_preactivation : return ``(out, preactivation)``, made if it is not given

    Returns
    -------
    `out`, or ``(out, preactivation)`` with `keep_preactivation`

    Notes
    -----
    Sums are made in float32 (float64 for float64), all the rest is applied to the sum, and the
    result is rounded once. For float32 the relative error ``‖out - exact‖ / ‖exact‖`` of random
    operands is below ``1e-6 max(1, sqrt(K) / 32)``; on a GPU that depends on
    `gpunn.set_matmul_precision`.

    Raises
    ------
    TypeError : a dtype that is not floating, or not the same for all
    ValueError : inner dimensions that differ, batches that do not broadcast, a 1-D operand, a bias,
        residual or output of another shape, an output that overlaps an input
    """
    left, right, shape = operands(call, a, b, transpose_a, transpose_b)
    dtype = left.dtype
    if bias is not None:
        bias = call.array("bias", bias, dtypes=(dtype,))
        if bias.shape != shape[-1:]:
            call.refuse("bias", bias, f"shape ({shape[-1]},), one value for each column of a @ b")
    if activation == "identity" and alpha is None:
        alpha = 0.0
    else:
        call.choice("activation", activation, ACTIVATIONS)
        alpha = resolve_alpha(call, activation, alpha)
    if scale != 1.0:
        scale = call.number("scale", scale)
    inputs = {"a": left, "b": right, "bias": bias}
    adds_to_itself = residual is not None and residual is out
    preactivation = like_out(
        call, "preactivation", preactivation, shape, dtype, keep_preactivation, **inputs
    )
    if residual is not None:
        residual = call.array("residual", residual, dtypes=(dtype,), shape=shape)
        if not adds_to_itself:
            inputs["residual"] = residual
        if preactivation is not None:
            refuse_overlap(call, "preactivation", preactivation, residual=residual)
    out = like_out(
        call, "out", out, shape, dtype, True, **inputs, preactivation=preactivation
    )
    if adds_to_itself:
        residual = out

    left, right, out_, preactivation_, residual = fold(left, right, out, preactivation, residual)
    call.run(
        left, right, Finish(out_, bias, preactivation_, activation, alpha, scale, residual)
    )
    return (out, preactivation) if keep_preactivation else out


# ---- reference -----------------------------------------------------------------------------------


@matmul.reference
def _(a, b, finish):
    with quiet():
        _multiply(a, b, finish)


def _multiply(a, b, finish) -> None:
    out, preactivation, residual = finish.out, finish.preactivation, finish.residual
    total = product(a, b, out if preactivation is None and residual is None else preactivation)
    if finish.scale != 1.0:
        np.multiply(total, total.dtype.type(finish.scale), out=total)
    if finish.bias is not None:
        np.add(total, finish.bias.astype(total.dtype, copy=False), out=total)
    if preactivation is not None and preactivation is not total:
        preactivation[...] = total
    if residual is None:
        target = out
    else:  # one rounding at the end, so not straight into `out`
        target = np.empty(out.shape, total.dtype)
    if finish.activation != "identity":
        activation_forward._reference(total, target, finish.activation, finish.alpha)
    elif target is not total:
        target[...] = total
    if residual is not None:
        out[...] = target + residual.astype(total.dtype, copy=False)


_LARGE = 1 << 25  # multiply-adds from which a product is shared out among threads


def product(a, b, total=None):
    """``a @ b`` in the accumulator's dtype: in `total` where it is given and has that dtype.

    A large one is cut into four along its longer side, each made by BLAS on one of our threads:
    BLAS's own go on waiting when a product has ended, in the way of whoever comes after.
    """
    if a.dtype.itemsize == 2:
        a, b, total = a.astype(np.float32), b.astype(np.float32), None
    with quiet():
        if a.ndim != 2 or b.ndim != 2:
            return np.matmul(a, b, out=total)
        rows, columns = a.shape[0], b.shape[1]
        if rows * columns * a.shape[1] < _LARGE:
            return np.dot(a, b, total)  # BLAS, transposed views as such; less to set up
        if total is None:
            total = np.empty((rows, columns), a.dtype)
        step = -(-max(rows, columns) // 64) * 16

        def part(start: int) -> None:
            some = slice(start, start + step)
            if rows >= columns:
                np.matmul(a[some], b, out=total[some])
            else:
                np.matmul(a, b[:, some], out=total[:, some])

        for_each(part, range(0, max(rows, columns), step))
        return total


# ---- launch --------------------------------------------------------------------------------------


@matmul.cuda
def _(launch, a, b, finish):
    multiply(launch, a, b, finish)


@matmul.numba
def _(launch, a, b, finish):
    out, plain = finish.out, finish.scale == 1.0
    if out.size == 0:
        return
    total = finish.preactivation
    if total is None:
        total = out if finish.residual is None else launch.empty(out.shape, out.dtype)
    numba_product(launch, a, b, total, finish.bias if plain else None)
    if not plain:
        total *= total.dtype.type(finish.scale)
        if finish.bias is not None:
            total += finish.bias
    value = total
    if finish.activation != "identity" or (value is not out and finish.residual is None):
        value = out if finish.residual is None else launch.empty(out.shape, out.dtype)
        alpha = finish.alpha if finish.activation in DEFAULT_ALPHA else None
        activation_forward(total, activation=finish.activation, alpha=alpha, out=value)
    if finish.residual is not None:
        out[...] = value + finish.residual


def numba_product(launch, a, b, out, bias=None) -> None:
    """``out = a @ b + bias`` by the Numba kernel."""
    if out.ndim > 3:  # the kernel knows one batch dimension: one launch for each of the others
        for i in range(out.shape[0]):
            numba_product(launch, item(a, i, out.ndim), item(b, i, out.ndim), out[i], bias)
        return
    one = (slice(None),) if out.ndim == 3 else (None,)
    a, b = (_dense(launch, x if x.ndim == 3 else x[None]) for x in (a, b))
    batch, rows, columns = out[one].shape
    bias = out.reshape(-1)[:0] if bias is None else bias  # an empty one is none
    high, wide = launch.module.TILE[out.dtype.name]
    grid = (-(-rows // high), -(-columns // wide), min(batch, 65535))
    launch(f"matmul_{out.dtype}", grid, (16, 16), (a, b, bias, out[one]))


def _dense(launch, x):
    """`x`, copied if it has gaps: Numba's simulator takes no such arrays."""
    if x.flags.c_contiguous or x.flags.f_contiguous:
        return x
    copy = launch.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


def bytes_of(*arrays) -> int:
    """The bytes of some arrays, None among them."""
    return sum(0 if x is None else x.nbytes for x in arrays)


@matmul.cost
def _(a, b, finish):
    return Cost(
        flops=2 * finish.out.size * a.shape[-1],
        read=bytes_of(a, b, finish.bias, finish.residual),
        written=bytes_of(finish.out, finish.preactivation),
    )


matmul.samples(matmul_samples)


@matmul.inputs
def _(rng, shape):
    M, N, K = shape
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    return (a, b), {}


matmul.bench_shapes = ((4096, 4096, 4096), (1024, 1024, 1024), (128, 256, 784), (512, 512, 512))
