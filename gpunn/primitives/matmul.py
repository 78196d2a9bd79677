"""Matrix products with transposes, batches, bias and activation, and the gradient of a bias.

Letters: ``out (M, N) = activation(a (M, K) @ b (K, N) + bias (N,))``, for each matrix of a batch.

Transposing makes a view and batches are broadcast by strides of zero, so no operand is ever copied:
the implementations take arrays of any strides. Every sum over K is made in a fixed order: the same
input gives the same bits.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.primitives.activation import (
    ACTIVATIONS,
    DEFAULT_ALPHA,
    activation_forward,
    resolve_alpha,
)
from gpunn.primitives.matmul_plan import batch_dimensions, choose, how_to_load
from gpunn.primitives.matmul_samples import bias_gradient_samples, matmul_samples
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype

# ---- specification -------------------------------------------------------------------------------


@primitive(family="matmul", cuda="matmul.cu", numba="matmul.py")
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
    out=None,
    preactivation=None,
    keep_preactivation: bool = False,
):
    """A matrix product with bias and activation: ``out = activation(a @ b + bias)``.

    Parameters
    ----------
    a : array (..., M, K), or (..., K, M) with `transpose_a`; float16, bfloat16, float32 or float64
    b : array (..., K, N), or (..., N, K) with `transpose_b`, of the dtype of `a`
        The batch dimensions ``...`` broadcast as in NumPy. Views of any strides are read in place.
        K may be 0: the product is then zero.
    bias : array (N,) of the same dtype, added to every row, or None
    activation, alpha : one of `ACTIVATIONS` and its parameter, as in `activation_forward`
    out : array (..., M, N) of the same dtype to write; shares no memory with an input
    preactivation : array like `out` that receives ``a @ b + bias``
    keep_preactivation : return ``(out, preactivation)``, made if it is not given

    Returns
    -------
    `out`, or ``(out, preactivation)`` with `keep_preactivation`

    Notes
    -----
    Sums are made in float32 (float64 for float64), bias and activation are applied to the sum, and
    the result is rounded once. For float32 the relative error ``‖out - exact‖ / ‖exact‖`` of random
    operands is below ``1e-6 max(1, sqrt(K) / 32)``.

    Raises
    ------
    TypeError : a dtype that is not floating, or not the same for all
    ValueError : inner dimensions that differ, batches that do not broadcast, a 1-D operand, a bias
        or an output of another shape, an output that overlaps an input
    """
    a = call.array("a", a, dtypes=FLOATING, strided=True)
    b = call.array("b", b, dtypes=FLOATING, strided=True)
    if a.dtype != b.dtype:
        call.same_dtype(a=a, b=b)
    if a.ndim < 2 or b.ndim < 2:
        _refuse_vector(call, a, b)
    left = a.swapaxes(-1, -2) if transpose_a else a
    right = b.swapaxes(-1, -2) if transpose_b else b
    columns = right.shape[-1]
    if left.shape[-1] != right.shape[-2]:
        _refuse_inner(call, a, b, transpose_a, transpose_b)
    if bias is not None:
        bias = call.array("bias", bias, dtypes=(a.dtype,))
        if bias.shape != (columns,):
            call.refuse("bias", bias, f"shape ({columns},), one value for each column of a @ b")
    if activation == "identity" and alpha is None:
        alpha = 0.0
    else:
        call.choice("activation", activation, ACTIVATIONS)
        alpha = resolve_alpha(call, activation, alpha)

    if left.ndim == 2 and right.ndim == 2:
        shape = (left.shape[0], columns)
    else:
        shape = (*_batch_shape(call, a, b), left.shape[-2], columns)
    if preactivation is not None:
        preactivation = call.output("preactivation", preactivation, shape=shape, dtype=a.dtype)
        _refuse_overlap(call, "preactivation", preactivation, a=a, b=b, bias=bias)
    elif keep_preactivation:
        preactivation = call.empty(shape, a.dtype)
    if out is None:
        out = call.empty(shape, a.dtype)
    else:
        out = call.output("out", out, shape=shape, dtype=a.dtype)
        _refuse_overlap(call, "out", out, a=a, b=b, bias=bias, preactivation=preactivation)

    if len(shape) > 2:
        call.run(*_folded(left, right, bias, out, preactivation), activation, alpha)
    else:
        call.run(left, right, bias, out, preactivation, activation, alpha)
    return (out, preactivation) if keep_preactivation else out


@primitive(family="matmul", cuda="matmul.cu", numba="matmul.py")
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
        _refuse_overlap(call, "out", out, grad_output=rows)
    call.run(rows, out)
    return out


def _refuse_vector(call, a, b) -> None:
    name, value = ("a", a) if a.ndim < 2 else ("b", b)
    if value.ndim == 0:
        call.refuse(name, value, "a matrix (at least 2 dimensions)", "Multiply by a number with *.")
    make = "a row with a[None, :]" if name == "a" else "a column with b[:, None]"
    call.refuse(name, value, "a matrix (at least 2 dimensions)", f"Make it {make}.")


def _refuse_inner(call, a, b, transpose_a, transpose_b) -> None:
    rows_a, columns_a = a.shape[-2:]
    rows_b, columns_b = b.shape[-2:]
    k_a, other_a = (rows_a, columns_a) if transpose_a else (columns_a, rows_a)
    k_b, other_b = (columns_b, rows_b) if transpose_b else (rows_b, columns_b)
    if k_a == other_b:
        remedy = f"pass transpose_b={not transpose_b}"
    elif other_a == k_b:
        remedy = f"pass transpose_a={not transpose_a}"
    elif other_a == other_b:
        remedy = f"pass transpose_a={not transpose_a} and transpose_b={not transpose_b}"
    else:
        remedy = "no transpose makes them fit"
    turned = [f"transpose_{n}=True" for n, t in (("a", transpose_a), ("b", transpose_b)) if t]
    given = f" with {' and '.join(turned)}" if turned else ""
    raise ValueError(
        f"matmul: a has shape {a.shape} and b {b.shape}{given}: the inner dimensions are {k_a} and "
        f"{k_b}, expected equal ones; {remedy}."
    )


def _batch_shape(call, a, b) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(
            f"matmul: a has shape {a.shape} and b {b.shape}: the batch dimensions {a.shape[:-2]} "
            f"and {b.shape[:-2]} do not broadcast; make each pair equal, or one of it 1."
        ) from None


def _refuse_overlap(call, name, out, **inputs) -> None:
    on_cpu = type(out) is np.ndarray
    overlap = np.may_share_memory if on_cpu else call.xp.may_share_memory  # compares bounds: quick
    for other, value in inputs.items():
        if value is None or not overlap(out, value):
            continue
        if not on_cpu or np.shares_memory(out, value):
            call.refuse(name, out, f"memory of its own, but it overlaps {other}", "Leave it out.")


def _folded(a, b, bias, out, preactivation):
    """Many matrices times the same one are one tall matrix times that, where `a` has no gaps."""
    if b.ndim == 2 and a.flags.c_contiguous and out.size > 0:
        rows = math.prod(a.shape[:-1])  # not -1: K may be 0
        a, out = a.reshape(rows, a.shape[-1]), out.reshape(rows, out.shape[-1])
        preactivation = None if preactivation is None else preactivation.reshape(out.shape)
    return a, b, bias, out, preactivation


# ---- reference -----------------------------------------------------------------------------------


@matmul.reference
def _(a, b, bias, out, preactivation, activation, alpha):
    if a.dtype.itemsize == 2:
        a, b = a.astype(np.float32), b.astype(np.float32)
        bias = None if bias is None else bias.astype(np.float32)
        total = np.empty(out.shape, np.float32)
    else:
        total = out if preactivation is None else preactivation
    with np.errstate(all="ignore"):
        if out.ndim == 2:
            np.dot(a, b, total)  # BLAS, transposed views as such; less to set up than matmul
        else:
            np.matmul(a, b, out=total)
        if bias is not None:
            np.add(total, bias, out=total)
    if preactivation is not None and preactivation is not total:
        preactivation[...] = total
    if activation != "identity":
        activation_forward._reference(total, out, activation, alpha)
    elif out is not total:
        out[...] = total


# Rows that one sum runs over before the next is begun: bounds the rounding error of long sums.
_ROWS = 512


@functools.lru_cache(maxsize=64)
def _ones(count: int, dtype) -> np.ndarray:
    return np.ones(count, dtype)


@bias_gradient.reference
def _(grad_output, out):
    if out.dtype.itemsize == 2:
        total = np.empty(out.shape, np.float32)
        _column_sums(grad_output.astype(np.float32), total)
        out[...] = total
    else:
        _column_sums(grad_output, out)


def _column_sums(rows, out) -> None:
    """Column sums as products with a row of ones: BLAS makes them faster than `add.reduce`, and
    with smaller errors."""
    with np.errstate(all="ignore"):
        while len(rows) > _ROWS:
            blocks, rest = divmod(len(rows), _ROWS)
            sums = np.empty((blocks + (rest > 0), out.size), out.dtype)
            stacked = rows[: blocks * _ROWS].reshape(blocks, _ROWS, out.size)
            np.matmul(_ones(_ROWS, out.dtype), stacked, out=sums[:blocks])
            if rest:
                np.dot(_ones(rest, out.dtype), rows[blocks * _ROWS :], sums[blocks])
            rows = sums
        np.dot(_ones(len(rows), out.dtype), rows, out)


# ---- launch --------------------------------------------------------------------------------------


@matmul.cuda
def _(launch, a, b, bias, out, preactivation, activation, alpha):
    if out.size == 0:
        return
    dims = batch_dimensions(a, b, out.shape[:-2])
    if len(dims) > 2:  # the kernel knows two batch dimensions: one launch for each of the others
        for i in range(out.shape[0]):
            matmul._cuda(
                launch, _item(a, i, out.ndim), _item(b, i, out.ndim), bias, out[i],
                None if preactivation is None else preactivation[i], activation, alpha,
            )  # fmt: skip
        return
    _launch(launch, a, b, bias, out, preactivation, activation, alpha, dims)


def _item(x, index: int, ndim: int):
    """Matrix block `index` of the first dimension of `x` broadcast to `ndim` dimensions."""
    return x if x.ndim < ndim else x[index if x.shape[0] > 1 else 0]


def _launch(launch, a, b, bias, out, preactivation, activation, alpha, dims):
    M, N, K = out.shape[-2], out.shape[-1], a.shape[-1]
    (outer, a_outer, b_outer), (inner, a_inner, b_inner) = [(1, 0, 0)] * (2 - len(dims)) + dims
    a_m, a_k = (stride // a.itemsize for stride in a.strides[-2:])
    b_k, b_n = (stride // b.itemsize for stride in b.strides[-2:])
    accumulator = accumulator_dtype(out.dtype)
    width = 16 // accumulator.itemsize
    pack = width * a.itemsize
    load_a = how_to_load(M, a_m, a_k, K, (a_outer, a_inner), width, launch.aligned(pack, a))
    load_b = how_to_load(N, b_n, b_k, K, (b_outer, b_inner), width, launch.aligned(pack, b))
    if "STRIDED" in (load_a, load_b):  # one kernel for all mixtures
        load_a = load_b = "STRIDED"
    batch = outer * inner
    tile, parts, length = choose(
        M, N, K, batch, out.dtype.itemsize, load_a != "STRIDED", launch.multiprocessors
    )
    partial = launch.empty((parts, *out.shape), accumulator) if parts > 1 else None
    vector = N % width == 0 and launch.aligned(pack, out, preactivation)
    number, alpha = np.int32(ACTIVATIONS.index(activation)), accumulator.type(alpha)
    sizes = map(np.int64, (M, N, K, a_m, a_k, b_n, b_k))
    strides = map(np.int64, (a_outer, a_inner, b_outer, b_inner, length))
    launch(
        tile.expression(launch.ctype(out.dtype), load_a, load_b),
        grid=(-(-M // tile.rows) * -(-N // tile.columns) * batch * parts,),
        block=(tile.threads,),
        args=(
            a, b, bias, out, preactivation, partial, *sizes, np.uint32(batch), np.uint32(inner),
            *strides, number, alpha, np.bool_(vector),
        ),
    )  # fmt: skip
    if parts > 1:
        width = width if vector else 1
        launch(
            f"matmul_combine<{launch.ctype(out.dtype)}, {width}>",
            grid=(min(-(-out.size // (width * 256)), 16 * launch.multiprocessors),),
            block=(256,),
            args=(
                partial, bias, out, preactivation, np.int64(out.size), np.int64(N),
                np.int32(parts), number, alpha,
            ),
        )  # fmt: skip


@bias_gradient.cuda
def _(launch, grad_output, out):
    if out.size == 0:
        return
    rows, columns = grad_output.shape
    accumulator = accumulator_dtype(out.dtype)
    # Blocks of 256 rows and more, as many as give every multiprocessor four blocks.
    wide = -(-columns * out.itemsize // 512)
    parts = max(1, min(rows // 256, 4 * launch.multiprocessors // wide))
    if parts == 1:
        _column_sum(launch, grad_output, out, 1)
        return
    sums = launch.empty((parts, columns), accumulator)
    _column_sum(launch, grad_output, sums, parts)
    _column_sum(launch, sums, out, 1)


def _column_sum(launch, rows, out, parts: int) -> None:
    count, columns = rows.shape
    width = 16 // rows.itemsize
    if columns % width or not launch.aligned(16, rows):
        width = 1
    lanes = min(32, 1 << (max(1, columns // width) - 1).bit_length())
    launch(
        f"column_sum<{launch.ctype(rows.dtype)}, {launch.ctype(out.dtype)}, {width}>",
        grid=(-(-columns // (lanes * width)), parts),
        block=(256,),
        args=(
            rows, out, np.int64(count), np.int64(columns), np.int64(-(-count // parts)),
            np.int32(lanes),
        ),
    )  # fmt: skip


@matmul.numba
def _(launch, a, b, bias, out, preactivation, activation, alpha):
    if out.size == 0:
        return
    total = out if preactivation is None else preactivation
    if out.ndim > 3:  # the kernel knows one batch dimension: one launch for each of the others
        for i in range(out.shape[0]):
            matmul._numba(
                launch, _item(a, i, out.ndim), _item(b, i, out.ndim), bias, total[i], None,
                "identity", alpha,
            )  # fmt: skip
    else:
        one = (slice(None),) if out.ndim == 3 else (None,)
        a, b = (_dense(launch, x if x.ndim == 3 else x[None]) for x in (a, b))
        batch, rows, columns = total[one].shape
        bias = total.reshape(-1)[:0] if bias is None else bias  # an empty one is none
        grid = (-(-rows // 16), -(-columns // 16), min(batch, 65535))
        launch(f"matmul_{out.dtype}", grid, (16, 16), (a, b, bias, total[one]))
    if total is not out or activation != "identity":
        activation_forward(total, activation=activation, alpha=_given(activation, alpha), out=out)


def _dense(launch, x):
    """`x`, copied if it has gaps: Numba's simulator takes no such arrays."""
    if x.flags.c_contiguous or x.flags.f_contiguous:
        return x
    copy = launch.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def _given(activation: str, alpha: float) -> float | None:
    """The alpha to pass on: None where the activation has no parameter."""
    return alpha if activation in DEFAULT_ALPHA else None


@bias_gradient.numba
def _(launch, grad_output, out):
    if out.size == 0:
        return
    launch(f"bias_gradient_{out.dtype}", (-(-out.size // 32),), (32, 8), (grad_output, out))


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@matmul.cost
def _(a, b, bias, out, preactivation, activation, alpha):
    extra = 0 if bias is None else bias.nbytes
    written = out.nbytes if preactivation is None else 2 * out.nbytes
    return Cost(
        flops=2 * out.size * a.shape[-1], read=a.nbytes + b.nbytes + extra, written=written
    )


@bias_gradient.cost
def _(grad_output, out):
    return Cost(flops=grad_output.size, read=grad_output.nbytes, written=out.nbytes)


matmul.samples(matmul_samples)
bias_gradient.samples(bias_gradient_samples)


@matmul.inputs
def _(rng, shape):
    M, N, K = shape
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    return (a, b), {}


@bias_gradient.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32),), {}


matmul.bench_shapes = ((4096, 4096, 4096), (1024, 1024, 1024), (128, 256, 784), (512, 512, 512))
bias_gradient.bench_shapes = ((128, 256), (65536, 1024))
