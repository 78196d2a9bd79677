"""Layer norm and RMS norm over the last axis, forward and backward.

An array of shape (..., C) is a set of rows of C columns; each is normalised by itself. With h the
normalised row, before the weight:

==========  ==========================================  ==========================================
name        forward                                     backward, u = g weight
==========  ==========================================  ==========================================
layer_norm  h = (x - mean) / sqrt(mean (x - mean)^2     dx = (u - mean u - h mean (u h)) / sqrt(...)
            + eps), y = h weight + bias
rms_norm    h = x / sqrt(mean x^2 + eps),               dx = (u - h mean (u h)) / sqrt(...)
            y = h weight
==========  ==========================================  ==========================================

and for both dweight = sum over the rows of g h, dbias = sum over the rows of g. Ba, Kiros & Hinton,
Layer normalization, 2016; Zhang & Sennrich, Root mean square layer normalization, 2019.

The variance is taken of the differences from the mean, so it is right where the mean is large. All
is computed in float32 (float64 for float64) and rounded once. A row with NaN or inf becomes NaN.
"""

from __future__ import annotations

from gpunn.primitives import layer_norm_implementation as implementation
from gpunn.primitives import layer_norm_samples as samples
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype

FORWARD = {"cuda": "layer_norm.cu", "numba": "layer_norm.py"}
BACKWARD = {"cuda": "layer_norm_backward.cu", "numba": "layer_norm.py"}
_MAX_COLUMNS = 2**30

# ---- specification -------------------------------------------------------------------------------


def _rows(call, name, x, dtypes=FLOATING):
    x = call.array(name, x, dtypes=dtypes, min_ndim=1)
    if not 1 <= x.shape[-1] <= _MAX_COLUMNS:
        call.refuse(name, x, f"a last axis of 1 to {_MAX_COLUMNS} elements")
    return x


def same_or_wide(dtype) -> tuple:
    """`dtype` and, where it is another, that of its accumulator."""
    wide = accumulator_dtype(dtype)
    return (dtype,) if wide == dtype else (dtype, wide)


def weights(call, dtype, size, **named):
    """Vectors of `size` weights, all of `dtype` or all of its accumulator's; None stays None."""
    allowed, checked = same_or_wide(dtype), []
    for name, value in named.items():
        if value is not None:
            value = call.array(name, value, dtypes=allowed, shape=(size,))
            allowed = (value.dtype,)
        checked.append(value)
    return checked


def gradient_output(call, name, wanted, size, dtype):
    """The array for a gradient of weights: a new one for True, none for False, else `wanted`."""
    if wanted is True or wanted is False:
        return call.empty((size,), dtype) if wanted else None
    return call.output(name, wanted, shape=(size,), dtype=dtype)


def _eps(call, eps):
    return call.number("eps", eps, 0.0, 1e30)


def _statistics(call, x, keep):
    return call.empty(x.shape[:-1], accumulator_dtype(x.dtype)) if keep else None


def _forward(call, x, weight, bias, residual, eps, keep_statistics, out, centred):
    x = _rows(call, "x", x)
    dtype, summed = x.dtype, None
    if residual is not None:
        short = x.shape[-1] <= implementation.MIXED_COLUMNS
        dtypes = same_or_wide(dtype) if short else (dtype,)
        residual = call.array("residual", residual, dtypes=dtypes, shape=x.shape)
        dtype = residual.dtype
        summed = call.empty(x.shape, dtype)
    names = {"weight": weight, "bias": bias} if centred else {"weight": weight}
    weight, bias = (*weights(call, dtype, x.shape[-1], **names), None)[:2]
    out = call.output("out", out, shape=x.shape, dtype=dtype)
    mean = _statistics(call, x, keep_statistics and centred)
    reciprocal = _statistics(call, x, keep_statistics)
    call.run(
        x, residual, weight, bias, out, summed, mean, reciprocal, _eps(call, eps), centred
    )  # fmt: skip
    kept = (mean, reciprocal) if centred else (reciprocal,)
    return (out, *kept) if residual is None else (out, *kept, summed)


def _backward(call, grad_output, x, statistics, weight, wanted, grad_residual, out):
    grad_output = _rows(call, "grad_output", grad_output)
    x = call.array("x", x, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, x=x)
    call.same_dtype(grad_output=grad_output, x=x)
    accumulator, cols = accumulator_dtype(x.dtype), x.shape[-1]
    mean, reciprocal = (
        value if name == "mean" and value is None  # of RMS norm
        else call.array(name, value, dtypes=(accumulator,), shape=x.shape[:-1])
        for name, value in statistics.items()
    )  # fmt: skip
    (weight,) = weights(call, x.dtype, cols, weight=weight)
    if grad_residual is not None:
        grad_residual = call.array(
            "grad_residual", grad_residual, dtypes=(x.dtype,), shape=x.shape
        )  # fmt: skip
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    dtype = x.dtype if weight is None else weight.dtype
    sums = [
        gradient_output(call, name, want, cols, dtype)
        for name, want in zip(("weight_gradient", "bias_gradient"), wanted, strict=True)
    ]
    call.run(grad_output, x, mean, reciprocal, weight, grad_residual, out, *sums)
    return out, *sums


@primitive(family="layer_norm", **FORWARD)
def layer_norm_forward(
    call, x, weight=None, bias=None, *, residual=None, eps: float = 1e-5,
    keep_statistics: bool = True, out=None,
):  # fmt: skip
    """Layer norm over the last axis: ``out = (x - mean) / sqrt(variance + eps) * weight + bias``.

    Parameters
    ----------
    x : array (..., C), 1 <= C <= 2^30; float16, bfloat16, float32 or float64
    weight, bias : arrays (C,) of the dtype of `out` or, beside 16-bit ones, float32; None for 1 and
        0
    residual : array like `x` that is added first: ``x + residual``, rounded to their dtype, is
        normalised and returned. Beside a 16-bit `x` of at most 8192 columns it may be float32, as
        the stream of a residual network in mixed precision; so are then the sum and `out`.
    eps : added to the variance (the mean of the squared differences, not the unbiased one)
    keep_statistics : whether to return what the backward call needs
    out : array like `x`, or like the residual, to write; may be `x` itself where it is like it

    Returns
    -------
    ``(out, mean, reciprocal)``, and with a residual ``(out, mean, reciprocal, x + residual)``; the
    statistics, ``1 / sqrt(variance + eps)`` among them, have shape (...) and dtype float32 (float64
    for float64), or are None

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, an empty last axis, weights, a residual or
        an `out` that do not fit, a negative eps
    """
    return _forward(call, x, weight, bias, residual, eps, keep_statistics, out, True)


@primitive(family="layer_norm", **BACKWARD)
def layer_norm_backward(
    call, grad_output, x, mean, reciprocal, weight=None, *, weight_gradient=True,
    bias_gradient=True, grad_residual=None, out=None,
):  # fmt: skip
    """The gradients of layer norm, from one pass over `grad_output` and `x`.

    Parameters
    ----------
    grad_output, x : arrays (..., C) of one shape and dtype; `x` is the forward call's (with a
        residual, the sum that it returned)
    mean, reciprocal, weight : as in the forward call, and what it returned
    weight_gradient, bias_gradient : whether to make these sums over the rows, or the array to write
        one to
    grad_residual : array like `x` that is added to the gradient: what comes back to ``x +
        residual`` from elsewhere
    out : array like `x` to write; may be `grad_output` or `x` itself

    Returns
    -------
    ``(out, dweight, dbias)``, the sums of the dtype of `weight` (of `x` without one), None where
    not wanted. They are always added in the same order.
    """
    statistics = {"mean": mean, "reciprocal": reciprocal}
    if mean is None:
        raise TypeError("layer_norm_backward: mean is None; give what the forward call returned")
    wanted = (weight_gradient, bias_gradient)
    return _backward(call, grad_output, x, statistics, weight, wanted, grad_residual, out)


@primitive(family="layer_norm", **FORWARD)
def rms_norm_forward(
    call, x, weight=None, *, residual=None, eps: float = 1e-6, keep_statistics: bool = True,
    out=None,
):  # fmt: skip
    """RMS norm over the last axis: ``out = x / sqrt(mean(x^2) + eps) * weight``.

    Arguments and errors are those of `layer_norm_forward`. Returns ``(out, reciprocal)``, and with
    a residual ``(out, reciprocal, x + residual)``.
    """
    return _forward(call, x, weight, None, residual, eps, keep_statistics, out, False)


@primitive(family="layer_norm", **BACKWARD)
def rms_norm_backward(
    call, grad_output, x, reciprocal, weight=None, *, weight_gradient=True,
    grad_residual=None, out=None,
):  # fmt: skip
    """The gradients of RMS norm: ``(out, dweight)``; the rest as in `layer_norm_backward`."""
    statistics = {"mean": None, "reciprocal": reciprocal}
    wanted = (weight_gradient, False)
    return _backward(call, grad_output, x, statistics, weight, wanted, grad_residual, out)[:2]


# ---- implementations, cost, samples, benchmark inputs --------------------------------------------

for _made in (layer_norm_forward, rms_norm_forward):
    _made.reference(implementation.forward_reference)
    _made.cuda(implementation.forward_cuda)
    _made.numba(implementation.forward_numba)
for _made in (layer_norm_backward, rms_norm_backward):
    _made.reference(implementation.backward_reference)
    _made.cuda(implementation.backward_cuda)
    _made.numba(implementation.backward_numba)


def nbytes(*arrays) -> int:
    """The bytes of all arrays that are given."""
    return sum(array.nbytes for array in arrays if array is not None)


@layer_norm_forward.cost
@rms_norm_forward.cost
def _(x, residual, weight, bias, out, summed, mean, reciprocal, eps, centred):
    read = nbytes(x, residual, weight, bias)
    flops = (8 if centred else 5) * x.size
    return Cost(flops=flops, read=read, written=nbytes(out, summed, mean, reciprocal))


@layer_norm_backward.cost
@rms_norm_backward.cost
def _(grad_output, x, mean, reciprocal, weight, grad_residual, out, dweight, dbias):
    read = nbytes(grad_output, x, mean, reciprocal, weight, grad_residual)
    return Cost(flops=14 * x.size, read=read, written=nbytes(out, dweight, dbias))


layer_norm_forward.samples(samples.forward_samples(centred=True))
rms_norm_forward.samples(samples.forward_samples(centred=False))
layer_norm_backward.samples(samples.backward_samples(centred=True))
rms_norm_backward.samples(samples.backward_samples(centred=False))

layer_norm_forward.inputs(samples.forward_inputs(centred=True))
rms_norm_forward.inputs(samples.forward_inputs(centred=False))
layer_norm_backward.inputs(samples.backward_inputs(centred=True))
rms_norm_backward.inputs(samples.backward_inputs(centred=False))

for _made in (layer_norm_forward, rms_norm_forward, layer_norm_backward, rms_norm_backward):
    _made.bench_shapes = samples.BENCH_SHAPES
