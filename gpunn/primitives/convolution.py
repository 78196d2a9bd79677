"""Convolutions of channels-last arrays with 1 to 3 spatial dimensions, and their gradients.

Letters, for each batch item n and group of channels: with stride s, dilation d and padding p,

    y[n, i, o] = f(sum over taps k and channels c of x[n, s i + d k - p, c] w[o, k, c] + bias[o])

where i and k have one number for each spatial dimension, and x is zero outside. It is a
cross-correlation, as in PyTorch. Each of the three passes is one matrix product whose operands are
gathered from the arrays as they lie; nothing is unfolded in memory.

    pass              result (rows, columns)             summed over
    forward           y (n, i; o)                        k, c
    input gradient    dx (n, place; c)                   k, o
    weight gradient   dw (o; k, c)                       n, i

Which kernel makes them stands in `convolution_plan`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from gpunn.primitives import convolution_cpu
from gpunn.primitives.activation import (
    ACTIVATIONS,
    DEFAULT_ALPHA,
    activation_forward,
    resolve_alpha,
)
from gpunn.primitives.convolution_plan import launch_input, launch_output, launch_weight
from gpunn.primitives.convolution_problem import each, geometry_of
from gpunn.primitives.convolution_samples import (
    BENCH_SHAPES,
    forward_inputs,
    forward_samples,
    input_gradient_inputs,
    input_gradient_samples,
    weight_gradient_inputs,
    weight_gradient_samples,
)
from gpunn.primitives.matmul import bytes_of
from gpunn.primitives.matmul_backward import bias_gradient
from gpunn.primitives.matmul_checks import like_out
from gpunn.primitives.matmul_problem import Finish
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING

# Where the kernels are, for `primitive`.
SOURCES = {
    "cuda": "convolution.cu",
    "numba": "convolution.py",
    "siblings": (
        "convolution_wgmma.cu", "convolution_mma.cu", "convolution_depthwise.cu", "matmul.cu",
        "matmul_wgmma.cu", "matmul_mma.cu", "matmul_prepare.cu",
    ),
}  # fmt: skip

# ---- specification -------------------------------------------------------------------------------


@primitive(family="convolution", **SOURCES)
def convolution_forward(
    call,
    x,
    weight,
    *,
    bias=None,
    activation: str = "identity",
    alpha: float | None = None,
    residual=None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    keep_preactivation: bool = False,
    out=None,
):
    """A convolution: ``out = activation(conv(x, weight) + bias) + residual``.

    ``conv(x, weight)[n, i, o] = sum over k, c of x[n, stride i + dilation k - padding, c]
    weight[o, k, c]``, with zeros outside of x; i and k stand for one number in each spatial
    dimension. With groups, output o sees only the channels of its group.

    Parameters
    ----------
    x : array (N, *spatial, C) with 1 to 3 spatial dimensions; float16, bfloat16, float32, float64
    weight : array (O, *kernel, C / groups) of the same dtype
    bias : array (O,) of the same dtype, or None
    activation, alpha : one of `ACTIVATIONS` and its parameter, as in `activation_forward`
    residual : array like the output, of the same dtype, or None; may be `out` itself
    stride, dilation : int, or one for each spatial dimension
    padding : int, one for each spatial dimension, or a pair (in front, behind) for each
    groups : a divisor of C and O
    keep_preactivation : return ``(out, preactivation)``, with what the activation was applied to
    out : array (N, *out, O) of the same dtype to write, where
        ``out = (spatial + padding in front and behind - dilation (kernel - 1) - 1) // stride + 1``

    Returns
    -------
    `out`, or ``(out, preactivation)`` with `keep_preactivation`

    Notes
    -----
    Sums are made in float32 (float64 for float64) in a fixed order, and rounded once. On a GPU the
    exactness of float32 products depends on `gpunn.set_matmul_precision`. NaN and infinity in x
    travel to every output that sees them. A weight that is not finite makes its products with the
    padding NaN or zero, as the implementation has it.

    Raises
    ------
    TypeError : a dtype that is not floating, or not the same for all
    ValueError : channels and groups that do not fit, a kernel larger than the padded input, an
        array of another shape, an output that overlaps an input
    """
    x = call.array("x", x, dtypes=FLOATING)
    _require_spatial(call, "x", x)
    weight = call.array("weight", weight, dtypes=(x.dtype,), ndim=x.ndim)
    shape = geometry_of(call, x.shape, weight.shape, stride, padding, dilation, groups)
    inputs = {"x": x, "weight": weight}
    out, finish = _finish(
        call, shape.output_shape, x.dtype, inputs, bias, activation, alpha, residual, out,
        keep_preactivation,
    )  # fmt: skip
    call.run(x, weight, shape, finish)
    return (out, finish.preactivation) if keep_preactivation else out


@primitive(family="convolution", **SOURCES)
def convolution_input_gradient(
    call,
    grad_output,
    weight,
    *,
    input_shape: Sequence[int],
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    bias=None,
    activation: str = "identity",
    alpha: float | None = None,
    out=None,
):
    """The gradient of a convolution's input, which is a transposed convolution.

    ``out[n, j, c] = activation(sum of grad_output[n, i, o] weight[o, k, c] over all i, k with
    stride i + dilation k - padding = j, and o of the group of c, + bias[c])``

    Parameters
    ----------
    grad_output : array (N, *out, O), float16, bfloat16, float32 or float64
    weight : array (O, *kernel, C / groups) of the same dtype
    input_shape : (N, *spatial, C), the shape of the input and of the result. As a transposed
        convolution: several sizes have the same number of strides, so it must be said.
    stride, padding, dilation, groups : as in `convolution_forward`
    bias : array (C,) of the same dtype, or None
    activation, alpha : one of `ACTIVATIONS` and its parameter
    out : array of shape `input_shape` to write

    Sums are made in float32 (float64 for float64) in a fixed order, and rounded once.

    Raises
    ------
    TypeError, ValueError : as `convolution_forward`, and for a `grad_output` that has not the shape
        of the output for `input_shape`
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING)
    _require_spatial(call, "grad_output", grad_output)
    dtype, ndim = grad_output.dtype, grad_output.ndim
    weight = call.array("weight", weight, dtypes=(dtype,), ndim=ndim)
    input_shape = _shape(call, "input_shape", input_shape, ndim)
    shape = geometry_of(call, input_shape, weight.shape, stride, padding, dilation, groups)
    _require_output(call, grad_output, shape)
    inputs = {"grad_output": grad_output, "weight": weight}
    out, finish = _finish(
        call, input_shape, dtype, inputs, bias, activation, alpha, None, out, False
    )
    call.run(grad_output, weight, shape, finish)
    return out


@primitive(family="convolution", **SOURCES)
def convolution_weight_gradient(
    call,
    grad_output,
    x,
    *,
    kernel_size,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    keep_bias_gradient: bool = False,
    out=None,
):
    """The gradient of a convolution's weight, and that of its bias if it is wanted.

    ``out[o, k, c] = sum over n, i of grad_output[n, i, o]
    x[n, stride i + dilation k - padding, c]``

    Parameters
    ----------
    grad_output : array (N, *out, O), float16, bfloat16, float32 or float64
    x : array (N, *spatial, C) of the same dtype
    kernel_size : int, or one for each spatial dimension
    stride, padding, dilation, groups : as in `convolution_forward`
    keep_bias_gradient : return ``(out, bias_gradient)`` with the sums (O,) of `grad_output`
    out : array (O, *kernel, C / groups) of the same dtype to write

    Sums are made in float32 (float64 for float64) in a fixed order, and rounded once. An empty
    batch gives zeros.

    Returns
    -------
    `out`, or ``(out, bias_gradient)`` with `keep_bias_gradient`

    Raises
    ------
    TypeError, ValueError : as `convolution_forward`, and for a `grad_output` that has not the shape
        of the output
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING)
    _require_spatial(call, "grad_output", grad_output)
    dtype, ndim = grad_output.dtype, grad_output.ndim
    x = call.array("x", x, dtypes=(dtype,), ndim=ndim)
    kernel = each(call, "kernel_size", kernel_size, ndim - 2, 1)
    (groups,) = each(call, "groups", groups, 1, 1)
    channels = x.shape[-1]
    call.require(
        channels % groups == 0, "groups",
        f"is {groups}, which does not divide the {channels} channels of x", "choose a divisor",
    )  # fmt: skip
    weight_shape = (grad_output.shape[-1], *kernel, channels // groups)
    shape = geometry_of(call, x.shape, weight_shape, stride, padding, dilation, groups)
    _require_output(call, grad_output, shape)
    inputs = {"grad_output": grad_output, "x": x}
    out = like_out(call, "out", out, weight_shape, dtype, True, **inputs)
    sums = call.empty(weight_shape[:1], dtype) if keep_bias_gradient else None
    call.run(grad_output, x, shape, out, sums)
    return (out, sums) if keep_bias_gradient else out


def _finish(
    call, shape, dtype, inputs, bias, activation, alpha, residual, out, keep_preactivation
) -> tuple:
    """(out, what becomes of the sums); the epilogue's arguments checked."""
    if bias is not None:
        bias = call.array("bias", bias, dtypes=(dtype,))
        if bias.shape != shape[-1:]:
            call.refuse("bias", bias, f"shape ({shape[-1]},), one value for each channel made")
        inputs["bias"] = bias
    call.choice("activation", activation, ACTIVATIONS)
    alpha = resolve_alpha(call, activation, alpha)
    preactivation = call.empty(shape, dtype) if keep_preactivation else None
    adds_to_itself = residual is not None and residual is out
    if residual is not None and not adds_to_itself:
        residual = inputs["residual"] = call.array(
            "residual", residual, dtypes=(dtype,), shape=shape
        )
    out = like_out(call, "out", out, shape, dtype, True, **inputs)
    if adds_to_itself:
        residual = out
    return out, Finish(out, bias, preactivation, activation, alpha, residual=residual)


def _require_spatial(call, name: str, value) -> None:
    if not 3 <= value.ndim <= 5:
        call.refuse(name, value, "(N, *spatial, channels) with 1 to 3 spatial dimensions")


def _require_output(call, grad_output, shape) -> None:
    if grad_output.shape != shape.output_shape:
        call.refuse(
            "grad_output", grad_output,
            f"shape {shape.output_shape}, that of the output for an input {shape.input_shape} and "
            f"a weight {shape.weight_shape}",
        )  # fmt: skip


def _shape(call, name: str, value, ndim: int) -> tuple[int, ...]:
    try:
        found = tuple(operator.index(one) for one in value)
    except TypeError:
        found = ()
    call.require(
        len(found) == ndim and min(found, default=-1) >= 0, name, f"is {value!r}",
        f"expected {ndim} sizes (N, *spatial, C), as many as grad_output has",
    )  # fmt: skip
    return found


# ---- reference -----------------------------------------------------------------------------------


def _sizes(shape) -> dict:
    return {name: getattr(shape, name) for name in ("stride", "low", "dilation", "groups")}


@convolution_forward.reference
def _(x, weight, shape, finish):
    convolution_cpu.forward(
        x, weight, finish.out, **_sizes(shape), bias=finish.bias, activation=finish.activation,
        alpha=finish.alpha, residual=finish.residual, preactivation=finish.preactivation,
    )  # fmt: skip


@convolution_input_gradient.reference
def _(grad_output, weight, shape, finish):
    convolution_cpu.input_gradient(
        grad_output, weight, finish.out, **_sizes(shape), bias=finish.bias,
        activation=finish.activation, alpha=finish.alpha,
    )  # fmt: skip


@convolution_weight_gradient.reference
def _(grad_output, x, shape, out, sums):
    convolution_cpu.weight_gradient(grad_output, x, out, **_sizes(shape), bias_gradient=sums)


# ---- launch --------------------------------------------------------------------------------------

convolution_forward.cuda(launch_output)
convolution_input_gradient.cuda(launch_input)
convolution_weight_gradient.cuda(launch_weight)

_THREADS = 128  # of a block of the Numba kernels


def _numba(launch, name: str, first, second, shape, out) -> None:
    """Launch a Numba kernel with arrays of three spatial dimensions."""
    if out.size == 0:
        return
    shape, more = shape.in_three(), (1,) * (5 - out.ndim)
    arrays = (x.reshape(x.shape[:1] + more + x.shape[1:]) for x in (first, second, out))
    first, second, out = arrays
    numbers = (*shape.stride, *shape.low, *shape.dilation, shape.groups)
    grid = (min(-(-out.size // _THREADS), 65535),)
    launch(f"{name}_{out.dtype}", grid, (_THREADS,), (first, second, *numbers, out))


def _numba_finished(launch, name: str, first, second, shape, finish) -> None:
    """The same, and then what becomes of the sums."""
    total = finish.out if finish.preactivation is None else finish.preactivation
    if finish.residual is not None and total is finish.out:
        total = launch.empty(total.shape, total.dtype)
    _numba(launch, name, first, second, shape, total)
    if finish.bias is not None:
        total += finish.bias
    value = total
    if finish.activation != "identity":
        alpha = finish.alpha if finish.activation in DEFAULT_ALPHA else None
        value = finish.out
        if finish.residual is not None:
            value = launch.empty(total.shape, total.dtype)
        activation_forward(total, activation=finish.activation, alpha=alpha, out=value)
    if finish.residual is not None:
        finish.out[...] = value + finish.residual
    elif value is not finish.out:
        finish.out[...] = value


@convolution_forward.numba
def _(launch, x, weight, shape, finish):
    _numba_finished(launch, "forward", x, weight, shape, finish)


@convolution_input_gradient.numba
def _(launch, grad_output, weight, shape, finish):
    _numba_finished(launch, "input_gradient", grad_output, weight, shape, finish)


@convolution_weight_gradient.numba
def _(launch, grad_output, x, shape, out, sums):
    _numba(launch, "weight_gradient", grad_output, x, shape, out)
    if sums is not None:
        bias_gradient(grad_output, out=sums)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@convolution_forward.cost
@convolution_input_gradient.cost
def _(first, weight, shape, finish):
    return Cost(
        flops=shape.flops,
        read=bytes_of(first, weight, finish.bias, finish.residual),
        written=bytes_of(finish.out, finish.preactivation),
    )


@convolution_weight_gradient.cost
def _(grad_output, x, shape, out, sums):
    flops = shape.flops + (0 if sums is None else grad_output.size)
    return Cost(flops=flops, read=bytes_of(grad_output, x), written=bytes_of(out, sums))


convolution_forward.samples(forward_samples)
convolution_input_gradient.samples(input_gradient_samples)
convolution_weight_gradient.samples(weight_gradient_samples)
convolution_forward.inputs(forward_inputs)
convolution_input_gradient.inputs(input_gradient_inputs)
convolution_weight_gradient.inputs(weight_gradient_inputs)
convolution_forward.bench_shapes = BENCH_SHAPES
convolution_input_gradient.bench_shapes = BENCH_SHAPES
convolution_weight_gradient.bench_shapes = BENCH_SHAPES
