"""Batch norm by the values of several ranks: its passes over x, between which ranks meet.

With h, z and d as in `gpunn.primitives.batch_norm`, and all means over the values of all ranks:

=======================  ===========================================================================
name                     what this rank computes
=======================  ===========================================================================
sync_batch_norm_moments  count, mean and sum of squared differences of its own values: (C, 3)
                         — those of all ranks are gathered: (ranks, C, 3) —
sync_batch_norm_forward  their mean and variance (Chan's formula), running statistics, y
sync_batch_norm_sums     dweight and dbias of its own values, and its shares in the means of
                         d weight and of d weight h: (C, 2)
                         — the shares are added up over the ranks —
sync_batch_norm_backward dx = (d weight - first mean - h second mean) / sqrt(variance + eps)
=======================  ===========================================================================

The kernels that go over x are those of batch norm: x is read twice forward, grad and x twice
backward, as by one rank alone. `gpunn.autograd.functions.channel_norm` puts the four together.
Computed in float32 (float64 for float64) and rounded once.
"""

from __future__ import annotations

from gpunn.primitives import sync_batch_norm_implementation as implementation
from gpunn.primitives import sync_batch_norm_samples as samples
from gpunn.primitives.batch_norm import (
    batches_and_momentum,
    check_length,
    fused,
    image_shape,
    running_statistics,
)
from gpunn.primitives.channel_norm import Problem
from gpunn.primitives.layer_norm import gradient_output, nbytes, weights
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype

FORWARD = {
    "cuda": "sync_batch_norm.cu", "numba": "channel_norm.py", "siblings": ("channel_norm.cu",)
}  # fmt: skip
BACKWARD = {**FORWARD, "siblings": ("channel_norm_backward.cu",)}

# ---- specification -------------------------------------------------------------------------------


def _problem(
    call, x, channels_last, eps=0.0, activation="identity", alpha=None, momentum=0.0
) -> Problem:
    """What x is to the kernels, whose statistics are given as in evaluation."""
    outer, channels, length = image_shape(x, channels_last)
    if channels < 1:
        call.refuse("x", x, "one channel or more")
    activation, alpha = fused(call, activation, alpha)
    columns = channels_last or length == 1
    outer, length = (1, outer * length) if columns else (outer, length)
    check_length(call, "x", x, columns, length)
    eps = call.number("eps", eps, 0.0, 1e30)
    return Problem(
        outer, channels, length, columns, 0, False, eps, activation, alpha, momentum
    )  # fmt: skip


@primitive(family="sync_batch_norm", **FORWARD)
def sync_batch_norm_moments(call, x, *, channels_last: bool = True, out=None):
    """Count, mean and sum of squared differences from it, of the values of each channel.

    Parameters
    ----------
    x : array (N, …, C), or (N, C, …) without `channels_last`; float16, bfloat16, float32 or
        float64. It may have no values: then all three are 0.
    out : array (C, 3) to write, such as this rank's part of what is gathered; float32 (float64 for
        float64)

    Returns
    -------
    `out`. Where a value is NaN or infinite, the sum of squares is NaN.
    """
    x = call.array("x", x, dtypes=FLOATING, min_ndim=2)
    problem = _problem(call, x, channels_last)
    shape = (problem.channels, 3)
    out = call.output("out", out, shape=shape, dtype=accumulator_dtype(x.dtype))
    call.run(x, out, problem)
    return out


@primitive(family="sync_batch_norm", **FORWARD)
def sync_batch_norm_forward(
    call, x, moments, weight=None, bias=None, *, residual=None, running_mean=None, running_var=None,
    num_batches_tracked=None, momentum: float | None = 0.1, eps: float = 1e-5,
    activation: str = "identity", alpha: float | None = None, channels_last: bool = True, out=None,
):  # fmt: skip
    """Batch norm in training, by the moments of all ranks; all get the same statistics.

    Parameters
    ----------
    x : array (N, …, C), or (N, C, …) without `channels_last`; float16, bfloat16, float32 or
        float64. It may have no values: then this rank has only the statistics.
    moments : array (ranks, C, 3) of what `sync_batch_norm_moments` gave on each; those of `x` are
        among them
    weight, bias, residual, eps, activation, alpha, out : as in `batch_norm_forward`
    running_mean, running_var, num_batches_tracked, momentum : likewise; they move towards the mean
        and the unbiased variance of all ranks' values

    Returns
    -------
    ``(out, mean, variance, count)``, the last three (C,) and float32 (float64 for float64): of the
    values of all ranks. Statistics of NaN or inf are NaN, and so are those of fewer than two
    values.

    Raises
    ------
    TypeError, ValueError : dtypes or shapes that do not fit, an activation that is not computed
        along
    """
    x = call.array("x", x, dtypes=FLOATING, min_ndim=2)
    batches, momentum = batches_and_momentum(call, num_batches_tracked, momentum)
    problem = _problem(call, x, channels_last, eps, activation, alpha, momentum)
    channels, accumulator = problem.channels, accumulator_dtype(x.dtype)
    moments = call.array("moments", moments, dtypes=(accumulator,), ndim=3)
    if moments.shape[0] < 1 or moments.shape[1:] != (channels, 3):
        call.refuse("moments", moments, f"shape (ranks, {channels}, 3)")
    weight, bias = weights(call, x.dtype, channels, weight=weight, bias=bias)
    if residual is not None:
        residual = call.array("residual", residual, dtypes=(x.dtype,), shape=x.shape)
    running = running_statistics(call, x.dtype, channels, running_mean, running_var)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    made = [call.empty((channels,), accumulator) for _ in range(3)]
    call.run(x, moments, residual, weight, bias, out, *made, running, batches, problem)
    return out, *made


def _statistics(call, x, channels, **named):
    """Arrays (C,) of the accumulator's dtype."""
    dtypes = (accumulator_dtype(x.dtype),)
    return [call.array(name, a, dtypes=dtypes, shape=(channels,)) for name, a in named.items()]


def _gradient_and_input(call, grad_output, x):
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=2)
    x = call.array("x", x, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, x=x)
    call.same_dtype(grad_output=grad_output, x=x)
    return grad_output, x


@primitive(family="sync_batch_norm", **BACKWARD)
def sync_batch_norm_sums(
    call, grad_output, x, mean, variance, count, weight=None, bias=None, *, residual=None,
    eps: float = 1e-5, activation: str = "identity", alpha: float | None = None,
    weight_gradient=True, bias_gradient=True, channels_last: bool = True,
):  # fmt: skip
    """The first half of the backward: sums over the channels of this rank's values.

    Parameters
    ----------
    grad_output : array like `x`
    mean, variance, count : what the forward call returned
    x, weight, bias, residual, eps, activation, alpha, channels_last : as in the forward call
    weight_gradient, bias_gradient : whether to make these, or the array to write one to

    Returns
    -------
    ``(means, dweight, dbias, grad_residual)``: `means` (C, 2), to be added up over all ranks and
    given to `sync_batch_norm_backward`; the gradients of this rank's values, in the dtype of the
    weights (of `x` without any) and None where not wanted; and the gradient of the residual, None
    without one, and `grad_output` itself without an activation.
    """
    grad_output, x = _gradient_and_input(call, grad_output, x)
    problem = _problem(call, x, channels_last, eps, activation, alpha)
    channels = problem.channels
    mean, variance, count = _statistics(
        call, x, channels, mean=mean, variance=variance, count=count
    )  # fmt: skip
    weight, bias = weights(call, x.dtype, channels, weight=weight, bias=bias)
    written = grad_residual = None
    if residual is not None:
        residual = call.array("residual", residual, dtypes=(x.dtype,), shape=x.shape)
        grad_residual = grad_output
        if problem.activation != "identity":
            written = grad_residual = call.empty(x.shape, x.dtype)
    like = weight if weight is not None else bias if bias is not None else x
    wanted = {"weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
    gradients = [
        gradient_output(call, name, want, channels, like.dtype) for name, want in wanted.items()
    ]
    means = call.empty((channels, 2), mean.dtype)
    if written is None:
        residual = None  # its value does not matter
    call.run(
        grad_output, x, residual, weight, bias, mean, variance, count, written, means, *gradients,
        problem,
    )  # fmt: skip
    return means, *gradients, grad_residual


@primitive(family="sync_batch_norm", **BACKWARD)
def sync_batch_norm_backward(
    call, grad_output, x, mean, variance, means, weight=None, bias=None, *, eps: float = 1e-5,
    activation: str = "identity", alpha: float | None = None, channels_last: bool = True, out=None,
):  # fmt: skip
    """The second half of the backward: the gradient of x, by the sums over all ranks.

    Parameters
    ----------
    grad_output : array like `x`; where `sync_batch_norm_sums` has made a gradient of the residual,
        that, without an activation
    mean, variance : what the forward call returned
    means : array (C, 2), those of `sync_batch_norm_sums` added up over all ranks
    x, weight, bias, eps, activation, alpha, channels_last : as in the forward call
    out : array like `x` to write

    Returns
    -------
    `out`
    """
    grad_output, x = _gradient_and_input(call, grad_output, x)
    problem = _problem(call, x, channels_last, eps, activation, alpha)
    mean, variance = _statistics(call, x, problem.channels, mean=mean, variance=variance)
    means = call.array("means", means, dtypes=(mean.dtype,), shape=(problem.channels, 2))
    weight, bias = weights(call, x.dtype, problem.channels, weight=weight, bias=bias)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(grad_output, x, mean, variance, means, weight, bias, out, problem)
    return out


# ---- implementations, cost, samples, benchmark inputs --------------------------------------------

_MADE = {
    "moments": sync_batch_norm_moments, "forward": sync_batch_norm_forward,
    "sums": sync_batch_norm_sums, "backward": sync_batch_norm_backward,
}  # fmt: skip
for _name, _made in _MADE.items():
    _made.reference(getattr(implementation, f"{_name}_reference"))
    _made.cuda(getattr(implementation, f"{_name}_cuda"))
    _made.numba(getattr(implementation, f"{_name}_numba"))
    _made.samples(getattr(samples, f"{_name}_samples"))
    _made.inputs(getattr(samples, f"{_name}_inputs"))
    _made.bench_shapes = samples.BATCH_SHAPES


@sync_batch_norm_moments.cost
def _(x, moments, problem):
    return Cost(flops=7 * x.size, read=x.nbytes, written=moments.nbytes)


@sync_batch_norm_forward.cost
def _(
    x, moments, residual, weight, bias, out, mean, variance, count, running, batches, problem
):  # fmt: skip
    read = nbytes(x, moments, residual, weight, bias, *running)
    written = nbytes(out, mean, variance, count, *running)
    return Cost(flops=3 * x.size + 10 * moments.size, read=read, written=written)


@sync_batch_norm_sums.cost
def _(
    grad, x, residual, weight, bias, mean, variance, count, grad_z, means, dweight, dbias, problem
):  # fmt: skip
    read = nbytes(grad, x, residual, weight, bias, mean, variance, count)
    return Cost(flops=6 * x.size, read=read, written=nbytes(grad_z, means, dweight, dbias))


@sync_batch_norm_backward.cost
def _(grad, x, mean, variance, means, weight, bias, out, problem):
    read = nbytes(grad, x, mean, variance, means, weight, bias)
    return Cost(flops=6 * x.size, read=read, written=out.nbytes)
