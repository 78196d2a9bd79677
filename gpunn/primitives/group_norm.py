"""Group norm and, with a channel a group, instance norm: forward and backward.

The channels of each sample are cut into groups, and each group is normalised over its channels and
places; otherwise as `batch_norm`. Wu & He, Group normalization, 2018; Ulyanov, Vedaldi & Lempitsky,
Instance normalization, 2016.
"""

from __future__ import annotations

from gpunn.primitives import channel_norm_samples as samples
from gpunn.primitives.batch_norm import (
    BACKWARD,
    SOURCES,
    batches_and_momentum,
    check_length,
    enough,
    fused,
    image_shape,
    implement,
    run_backward,
    running_statistics,
)
from gpunn.primitives.channel_norm import Problem
from gpunn.primitives.layer_norm import weights
from gpunn.primitives.registry import primitive
from gpunn.primitives.samples import FLOATING, accumulator_dtype


def _problem(call, x, num_groups, channels_last, eps, activation, alpha, momentum=0.0):
    outer, channels, length = image_shape(x, channels_last)
    if num_groups < 1 or channels < 1 or channels % num_groups:
        call.refuse(
            "x", x, f"channels ({channels}) that num_groups ({num_groups}) divides",
            "Choose another number of groups.",
        )  # fmt: skip
    activation, alpha = fused(call, activation, alpha)
    eps = call.number("eps", eps, 0.0, 1e30)
    columns = channels_last or length == 1
    check_length(call, "x", x, columns, length)
    problem = Problem(
        outer, channels, length, columns, int(num_groups), True, eps, activation, alpha, momentum
    )  # fmt: skip
    enough(call, "x", x, problem.count)
    return problem


@primitive(family="group_norm", **SOURCES)
def group_norm_forward(
    call, x, num_groups: int, weight=None, bias=None, *, residual=None, running_mean=None,
    running_var=None, num_batches_tracked=None, momentum: float | None = 0.1, eps: float = 1e-5,
    activation: str = "identity", alpha: float | None = None, channels_last: bool = True, out=None,
):  # fmt: skip
    """Group norm, with an addition and an activation behind it.

    Parameters
    ----------
    x : array (N, …, C), or (N, C, …) without `channels_last`; float16, bfloat16, float32 or float64
    num_groups : into how many groups the channels are cut; it divides C. C for instance norm.
    running_mean, running_var, num_batches_tracked, momentum : of instance norm alone: the running
        statistics move towards the averages, over the samples, of the means and the unbiased
        variances
    weight, bias, residual, activation, alpha, out : as in `batch_norm_forward`

    Returns
    -------
    ``(out, mean, reciprocal)``; the statistics have shape (N, num_groups)

    Raises
    ------
    TypeError, ValueError : dtypes or shapes that do not fit, groups that do not divide the
        channels, one value per group, running statistics of groups of several channels
    """
    x = call.array("x", x, dtypes=FLOATING, min_ndim=2)
    batches, momentum = batches_and_momentum(call, num_batches_tracked, momentum)
    problem = _problem(call, x, num_groups, channels_last, eps, activation, alpha, momentum)
    weight, bias = weights(call, x.dtype, problem.channels, weight=weight, bias=bias)
    if residual is not None:
        residual = call.array("residual", residual, dtypes=(x.dtype,), shape=x.shape)
    running = running_statistics(call, x.dtype, problem.channels, running_mean, running_var)
    call.require(
        running[0] is None or problem.group == 1, "running_mean",
        f"is given for groups of {problem.group} channels", "only instance norm keeps statistics",
    )  # fmt: skip
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    accumulator, shape = accumulator_dtype(x.dtype), (problem.outer, problem.groups)
    mean, reciprocal = (call.empty(shape, accumulator) for _ in range(2))
    call.run(x, residual, weight, bias, out, mean, reciprocal, running, batches, problem)
    return out, mean, reciprocal


@primitive(family="group_norm", **BACKWARD)
def group_norm_backward(
    call, grad_output, x, mean, reciprocal, num_groups: int, weight=None, bias=None, *,
    residual=None, activation: str = "identity", alpha: float | None = None,
    weight_gradient=True, bias_gradient=True, channels_last: bool = True, out=None,
):  # fmt: skip
    """The gradients of group norm, in two passes.

    Arguments, results and errors are those of `batch_norm_backward`; `mean` and `reciprocal` are
    what the forward call returned.
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=2)
    x = call.array("x", x, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, x=x)
    call.same_dtype(grad_output=grad_output, x=x)
    problem = _problem(call, x, num_groups, channels_last, 0.0, activation, alpha)
    kind = {"dtypes": (accumulator_dtype(x.dtype),), "shape": (problem.outer, problem.groups)}
    mean = call.array("mean", mean, **kind)
    reciprocal = call.array("reciprocal", reciprocal, **kind)
    return run_backward(
        call, grad_output, x, residual, weight, bias, mean, reciprocal, weight_gradient,
        bias_gradient, out, problem,
    )  # fmt: skip


implement(group_norm_forward, group_norm_backward)
group_norm_forward.samples(samples.group_forward_samples)
group_norm_backward.samples(samples.group_backward_samples)
group_norm_forward.inputs(samples.group_forward_inputs)
group_norm_backward.inputs(samples.group_backward_inputs)
group_norm_forward.bench_shapes = group_norm_backward.bench_shapes = samples.GROUP_SHAPES
