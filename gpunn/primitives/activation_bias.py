"""The gradient through an activation together with the gradient of the bias before it.

For y = act(x + b) with a row of biases b: what a Linear layer's backward needs of both, from one
pass over the gradient.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import (
    _DERIVATIVE,
    _FLOPS,
    ACTIVATIONS,
    BLOCK,
    _struct,
    resolve_alpha,
)
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOAT32, FLOATING, Sample, accumulator_dtype

# ---- specification -------------------------------------------------------------------------------


@primitive(family="activation", cuda="activation_bias.cu", numba="activation.py")
def activation_bias_backward(
    call,
    grad_output,
    x,
    *,
    activation: str,
    alpha: float | None = None,
    out=None,
    bias_gradient=None,
):
    """The gradient through an activation, and its sums over the rows.

    ``out = grad_output * f'(x)`` and ``bias_gradient[n] = sum over all rows of out[..., n]``: the
    gradients of x and of b for ``f(x + b)`` by rows. The sums are taken in float32 (float64 for
    float64) of the values before `out` is rounded, always in the same order.

    Parameters
    ----------
    grad_output, x : arrays (..., N) of one shape and one floating dtype; `x` is what
        `activation_backward` takes: the activation's input, or its output for relu and for
        leaky_relu with a positive slope
    activation, alpha : as in `activation_forward`
    out : array like `grad_output` to write; may be `grad_output` itself
    bias_gradient : array (N,) of the same dtype to write

    Returns
    -------
    ``(out, bias_gradient)``

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, shapes or dtypes that differ, no axis, an
        unknown activation, outputs that do not fit
    """
    call.choice("activation", activation, ACTIVATIONS)
    alpha = resolve_alpha(call, activation, alpha)
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=1)
    x = call.array("x", x, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, x=x)
    call.same_dtype(grad_output=grad_output, x=x)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    bias_gradient = call.output("bias_gradient", bias_gradient, shape=x.shape[-1:], dtype=x.dtype)
    call.run(grad_output, x, out, bias_gradient, activation, alpha)
    return out, bias_gradient


# ---- reference -----------------------------------------------------------------------------------


_RUN = 1 << 14  # elements at a time: what is computed in between stays in the first cache
_PARTS = 32  # at most so many sums are begun side by side


@activation_bias_backward.reference
def _(grad_output, x, out, bias_gradient, activation, alpha):
    cols = bias_gradient.size
    rows = x.size // cols if cols else 0
    if rows == 0:
        bias_gradient[...] = 0
        return
    accumulator = accumulator_dtype(x.dtype)
    grad_output, x, out = (array.reshape(rows, cols) for array in (grad_output, x, out))
    step = max(1, _RUN // cols)
    starts = range(0, rows, step)
    each = -(-len(starts) // _PARTS)
    sums = np.zeros((-(-len(starts) // each), cols), accumulator)
    ones = np.ones(min(step, rows), accumulator)

    def work(part: int) -> None:
        for start in starts[part * each : (part + 1) * each]:
            some = slice(start, start + step)
            slope = _DERIVATIVE[activation](x[some].astype(accumulator, copy=False), alpha)
            slope = slope.astype(accumulator, copy=False)  # faster than to multiply by a mask
            value = np.multiply(grad_output[some].astype(accumulator, copy=False), slope, slope)
            out[some] = value
            sums[part] += ones[: len(value)] @ value

    for_each(work, range(len(sums)))
    with quiet():
        bias_gradient[...] = np.add.reduce(sums, axis=0)


# ---- launch --------------------------------------------------------------------------------------

_BLOCKS_EACH = 4  # blocks for each multiprocessor, where there are rows enough for them
_SUM_COLUMNS = 32  # columns of a block of activation_bias_sums


@functools.lru_cache(256)
def _plan(rows: int, cols: int, itemsize: int, vector: bool, multiprocessors: int) -> tuple:
    """(tiles of columns, threads across, runs of rows, rows of a run), for the first kernel.

    A block takes at most 32 packs of columns, so that a warp reads whole lines of a row. Rows are
    cut into as many runs as occupy the chip, but none is shorter than what a block has under way.
    """
    packs = cols // (16 // itemsize) if vector else cols
    across = min(32, 1 << max(0, packs - 1).bit_length())
    tiles = -(-packs // across)
    at_once = BLOCK // across * (2 if itemsize == 8 else 4)  # as AHEAD in activation_bias.cu
    runs = max(1, min(_BLOCKS_EACH * multiprocessors // tiles, -(-rows // at_once)))
    each = max(1, -(-rows // runs))
    return tiles, across, max(1, -(-rows // each)), each


@functools.cache
def _expression(ctype: str, activation: str, vector: bool) -> str:
    return f"activation_bias_backward<{ctype}, {_struct(activation)}, {str(vector).lower()}>"


@activation_bias_backward.cuda
def _(launch, grad_output, x, out, bias_gradient, activation, alpha):
    cols = bias_gradient.size
    if cols == 0:
        return
    rows, accumulator = x.size // cols, accumulator_dtype(x.dtype)
    vector = cols % (16 // x.itemsize) == 0 and launch.aligned(16, grad_output, x, out)
    tiles, across, runs, each = _plan(rows, cols, x.itemsize, vector, launch.multiprocessors)
    partial = launch.empty((runs, cols), accumulator) if runs > 1 else None
    sizes = (launch.int64(rows), launch.int64(cols), launch.int64(each), launch.int32(across))
    launch(
        _expression(launch.ctype(x.dtype), activation, vector),
        (tiles, runs),
        (BLOCK,),
        (grad_output, x, out, partial, bias_gradient, *sizes, accumulator.type(alpha)),
    )
    if runs > 1:
        launch(
            f"activation_bias_sums<{launch.ctype(x.dtype)}>",
            (-(-cols // _SUM_COLUMNS),),
            (BLOCK,),
            (partial, bias_gradient, launch.int32(runs), launch.int64(cols)),
        )


@activation_bias_backward.numba
def _(launch, grad_output, x, out, bias_gradient, activation, alpha):
    cols = bias_gradient.size
    if cols == 0:
        return
    rows = x.size // cols
    arrays = (array.reshape(rows, cols) for array in (grad_output, x, out))
    launch(
        f"activation_bias_backward_{x.dtype.name}_{activation}",
        (-(-cols // 32),),
        (32, 8),
        (*arrays, bias_gradient, x.dtype.type(alpha)),
    )


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@activation_bias_backward.cost
def _(grad_output, x, out, bias_gradient, activation, alpha):
    flops = (_FLOPS.get(activation, 15) + 2) * x.size
    read = grad_output.nbytes + x.nbytes
    return Cost(flops=flops, read=read, written=out.nbytes + bias_gradient.nbytes)


_ONE = (FLOAT32,)
# One row and many, odd and whole packs, one run of rows and several, one tile of columns and more.
_SHAPES = (
    ((1,), _ONE), ((7, 13), FLOATING), ((2, 3, 24), FLOATING), ((300, 8), FLOATING),
    ((33, 264), FLOATING), ((1025, 3), _ONE), ((2000, 16), FLOATING), ((600, 40), FLOATING),
    ((1, 1000), _ONE), ((0, 4), _ONE), ((4, 0), _ONE),
)  # fmt: skip


@activation_bias_backward.samples
def _(rng):
    for activation in ACTIVATIONS:
        options = {"activation": activation}
        for shape, dtypes in (((65, 16), FLOATING), ((9, 5), FLOATING)):
            args = tuple(3 * rng.normal(size=(2, *shape)))
            yield Sample(f"{activation}, {shape[0]}x{shape[1]}", args, options, dtypes)
    relu = {"activation": "relu"}
    for shape, dtypes in _SHAPES:
        args, name = tuple(rng.normal(size=(2, *shape))), "x".join(map(str, shape))
        yield Sample(name, args, relu, dtypes, numba=math.prod(shape) < 3000)
    for activation, alpha in (("leaky_relu", 0.2), ("elu", 0.5), ("softplus", 3.0)):
        args, options = tuple(rng.normal(size=(2, 9, 11))), {"activation": activation}
        yield Sample(f"{activation}, alpha {alpha}", args, {**options, "alpha": alpha})
    yield Sample("transposed views", (rng.normal(size=(8, 6)).T, rng.normal(size=(8, 6)).T), relu)
    yield Sample("not aligned", tuple(rng.normal(size=(2, 40, 8))), relu, unaligned=True)
    into = {"out": np.zeros((5, 4)), "bias_gradient": np.zeros(4)}
    yield Sample("into arrays", tuple(rng.normal(size=(2, 5, 4))), {**relu, **into}, FLOATING)
    broken = np.array([[np.inf, 1.0, np.nan, 1.0], [-np.inf, 2.0, 1.0, 3.0]])
    yield Sample("not finite", (broken, np.ones((2, 4))), {"activation": "silu"}, FLOATING)


@activation_bias_backward.inputs
def _(rng, shape):
    x = rng.standard_normal((2, *shape), dtype=np.float32)
    return (x[0], x[1]), {"activation": "gelu"}


activation_bias_backward.bench_shapes = (
    (128, 256), (512, 1024), (1024, 4096), (4096, 1024), (4096, 4096), (8192, 4096),
    (65536, 1024), (16384, 8192),
)  # fmt: skip
