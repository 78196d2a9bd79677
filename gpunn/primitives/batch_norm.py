"""Batch norm: each channel normalised over all samples and places, forward and backward.

    h = (x - mean[c]) / sqrt(variance[c] + eps),  z = h weight[c] + bias[c] + residual,  y = act(z)

In training the mean and the variance are those of x, and the gradient of x goes through them:

    d = g act'(z),  dbias = sum d,  dweight = sum d h,
    dx = weight / sqrt(variance + eps) (d - mean of d - h mean of (d h))

In evaluation both are given, and dx = weight d / sqrt(variance + eps). Ioffe & Szegedy, Batch
normalization, 2015. Computed in float32 (float64 for float64) and rounded once.
"""

from __future__ import annotations

import math

from gpunn.primitives import channel_norm, channel_norm_reference
from gpunn.primitives import channel_norm_samples as samples
from gpunn.primitives.activation import resolve_alpha
from gpunn.primitives.channel_norm import FUSED, Problem
from gpunn.primitives.layer_norm import gradient_output, nbytes, same_or_wide, weights
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype

SOURCES = {"cuda": "channel_norm.cu", "numba": "channel_norm.py"}
BACKWARD = {"cuda": "channel_norm_backward.cu", "numba": "channel_norm.py"}

# ---- specification -------------------------------------------------------------------------------


def image_shape(x, channels_last: bool) -> tuple[int, int, int]:
    """(samples, channels, places) of an array (N, …, C) or (N, C, …)."""
    if channels_last:
        return x.shape[0], x.shape[-1], math.prod(x.shape[1:-1])
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def fused(call, activation, alpha) -> tuple[str, float]:
    """The checked activation and its parameter."""
    call.choice("activation", activation, FUSED)
    return activation, resolve_alpha(call, activation, alpha)


def running_statistics(call, dtype, channels, running_mean, running_var):
    """Both, checked; in one dtype, that of x or its accumulator's; written in place."""
    call.require(
        (running_mean is None) == (running_var is None), "running_var",
        "and running_mean must be given together", "give both or neither",
    )  # fmt: skip
    allowed, checked = same_or_wide(dtype), []
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if value is not None:
            value = call.inplace(name, value, dtypes=allowed, shape=(channels,))
            allowed = (value.dtype,)
        checked.append(value)
    return checked


def batches_and_momentum(call, batches, momentum):
    """The counter, checked, and the momentum as a number or None."""
    if batches is not None:
        batches = call.inplace("num_batches_tracked", batches, dtypes=("int64",), shape=())
    if momentum is not None:
        return batches, call.number("momentum", momentum, 0.0, 1.0)
    call.require(
        batches is not None, "momentum", "is None, for the average of all batches, without a count",
        "give num_batches_tracked",
    )  # fmt: skip
    return batches, None


def check_length(call, name, x, columns, length) -> None:
    """Refuse channels whose places a kernel could not count."""
    if not columns and length > 2**30:
        call.refuse(name, x, "at most 2^30 places of a channel", "Put the channels last.")


def enough(call, name, x, count) -> None:
    """Refuse statistics of fewer than two values."""
    if count < 2:
        each = "1 value" if count == 1 else "no value"
        call.refuse(
            name, x, "more than 1 value per channel in training",
            f"It has {each} for each. Give a larger batch or evaluate.",
        )  # fmt: skip


def _problem(call, name, x, channels_last, computed, eps, activation, alpha, momentum=0.0):
    outer, channels, length = image_shape(x, channels_last)
    if channels < 1:
        call.refuse(name, x, "one channel or more")
    activation, alpha = fused(call, activation, alpha)
    columns = channels_last or length == 1
    outer, length = (1, outer * length) if columns else (outer, length)
    check_length(call, name, x, columns, length)
    if computed:
        enough(call, name, x, outer * length)
    eps = call.number("eps", eps, 0.0, 1e30)
    return Problem(
        outer, channels, length, columns, 0, computed, eps, activation, alpha, momentum
    )  # fmt: skip


@primitive(family="batch_norm", **SOURCES)
def batch_norm_forward(
    call, x, weight=None, bias=None, *, residual=None, running_mean=None, running_var=None,
    num_batches_tracked=None, training: bool = True, momentum: float | None = 0.1,
    eps: float = 1e-5, activation: str = "identity", alpha: float | None = None,
    channels_last: bool = True, out=None,
):  # fmt: skip
    """Batch norm, with an addition and an activation behind it.

    Parameters
    ----------
    x : array (N, …, C), or (N, C, …) without `channels_last`; float16, bfloat16, float32 or float64
    weight, bias : arrays (C,) of the dtype of `x` or, beside 16-bit ones, float32; None for 1 and 0
    residual : array like `x`, added before the activation
    running_mean, running_var : arrays (C,) of the dtype of `x` or its accumulator. In training they
        are moved towards the mean and the unbiased variance of `x`, in place; in evaluation they
        are the statistics.
    num_batches_tracked : int64 array of shape (), counted up in training
    momentum : how far the running statistics move; None for the average of all batches, which
        needs `num_batches_tracked`
    activation, alpha : identity, relu, leaky_relu, silu or hard_swish, as in `activation_forward`
    out : array like `x` to write; may be `x` or `residual` itself

    Returns
    -------
    ``(out, mean, reciprocal)`` with ``1 / sqrt(variance + eps)``, both (C,) and float32 (float64
    for float64); in evaluation None for both. Statistics of NaN or inf are NaN.

    Raises
    ------
    TypeError, ValueError : dtypes or shapes that do not fit, one value per channel in training,
        evaluation without running statistics, an activation that is not computed along
    """
    x = call.array("x", x, dtypes=FLOATING, min_ndim=2)
    batches, momentum = batches_and_momentum(call, num_batches_tracked, momentum)
    settings = (channels_last, bool(training), eps, activation, alpha, momentum)
    problem = _problem(call, "x", x, *settings)
    weight, bias = weights(call, x.dtype, problem.channels, weight=weight, bias=bias)
    if residual is not None:
        residual = call.array("residual", residual, dtypes=(x.dtype,), shape=x.shape)
    running = running_statistics(call, x.dtype, problem.channels, running_mean, running_var)
    call.require(
        training or running[0] is not None, "running_mean", "is None in evaluation",
        "give the running statistics, or training=True for those of x",
    )  # fmt: skip
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    if not training:
        call.run(x, residual, weight, bias, out, *running, (None, None), None, problem)
        return out, None, None
    accumulator = accumulator_dtype(x.dtype)
    mean, reciprocal = (call.empty((problem.channels,), accumulator) for _ in range(2))
    call.run(x, residual, weight, bias, out, mean, reciprocal, running, batches, problem)
    return out, mean, reciprocal


@primitive(family="batch_norm", **BACKWARD)
def batch_norm_backward(
    call, grad_output, x, mean, spread, weight=None, bias=None, *, residual=None,
    training: bool = True, eps: float = 1e-5, activation: str = "identity",
    alpha: float | None = None, weight_gradient=True, bias_gradient=True,
    channels_last: bool = True, out=None,
):  # fmt: skip
    """The gradients of batch norm, in two passes: sums over the channels, then that of x.

    Parameters
    ----------
    grad_output : array like `x`
    x, weight, bias, residual, eps, activation, alpha, channels_last : as in the forward call
    mean, spread : in training what the forward call returned; in evaluation the running mean and
        the running variance
    weight_gradient, bias_gradient : whether to make these, or the array to write one to
    out : array like `x` to write

    Returns
    -------
    ``(out, dweight, dbias, grad_residual)``; the sums have the dtype of the weights (of `x` without
    any), None where not wanted. `grad_residual` is None without a residual, and `grad_output`
    itself without an activation.
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=2)
    x = call.array("x", x, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, x=x)
    call.same_dtype(grad_output=grad_output, x=x)
    problem = _problem(
        call, "x", x, channels_last, bool(training), eps, activation, alpha
    )  # fmt: skip
    allowed = (accumulator_dtype(x.dtype),) if training else same_or_wide(x.dtype)
    mean = call.array("mean", mean, dtypes=allowed, shape=(problem.channels,))
    spread = call.array("spread", spread, dtypes=(mean.dtype,), shape=(problem.channels,))
    return run_backward(
        call, grad_output, x, residual, weight, bias, mean, spread, weight_gradient, bias_gradient,
        out, problem,
    )  # fmt: skip


def run_backward(
    call, grad_output, x, residual, weight, bias, mean, spread, weight_gradient, bias_gradient, out,
    problem,
):  # fmt: skip
    """What the backward of batch norm and of group norm share: the other checks, and the run."""
    weight, bias = weights(call, x.dtype, problem.channels, weight=weight, bias=bias)
    written = grad_residual = None
    if residual is not None:
        residual = call.array("residual", residual, dtypes=(x.dtype,), shape=x.shape)
        grad_residual = grad_output
        if problem.activation != "identity":
            written = grad_residual = call.empty(x.shape, x.dtype)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    like = weight if weight is not None else bias if bias is not None else x
    wanted = {"weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    sums = [
        gradient_output(call, name, want, problem.channels, like.dtype)
        for name, want in wanted.items()
    ]
    if written is None:
        residual = None  # its value does not matter
    call.run(
        grad_output, x, residual, weight, bias, mean, spread, written, out, *sums, problem
    )  # fmt: skip
    return out, *sums, grad_residual


# ---- implementations, cost, samples, benchmark inputs --------------------------------------------


def forward_cost(x, residual, weight, bias, out, mean, spread, running, batches, problem):
    """x once, though it is read twice where the cache does not hold it."""
    small = nbytes(mean, spread, *running)
    flops = (10 if problem.computed else 3) * x.size
    read = nbytes(x, residual, weight, bias, *running)
    return Cost(flops=flops, read=read, written=out.nbytes + small)


def backward_cost(
    grad, x, residual, weight, bias, mean, spread, grad_z, out, dweight, dbias, problem
):
    """Each array once, as for `forward_cost`."""
    read = nbytes(grad, x, residual, weight, bias, mean, spread)
    return Cost(flops=12 * x.size, read=read, written=nbytes(grad_z, out, dweight, dbias))


def implement(forward, backward) -> None:
    """Register what batch norm and group norm share."""
    forward.reference(channel_norm_reference.forward_reference)
    backward.reference(channel_norm_reference.backward_reference)
    forward.cuda(channel_norm.forward_cuda)
    backward.cuda(channel_norm.backward_cuda)
    forward.numba(channel_norm.forward_numba)
    backward.numba(channel_norm.backward_numba)
    forward.cost(forward_cost)
    backward.cost(backward_cost)


implement(batch_norm_forward, batch_norm_backward)
batch_norm_forward.samples(samples.batch_forward_samples)
batch_norm_backward.samples(samples.batch_backward_samples)
batch_norm_forward.inputs(samples.batch_forward_inputs)
batch_norm_backward.inputs(samples.batch_backward_inputs)
batch_norm_forward.bench_shapes = batch_norm_backward.bench_shapes = samples.BATCH_SHAPES
