"""Softmax and log-softmax over the last axis, forward and backward.

An array of shape (..., C) is a set of rows of C columns; each row is normalised by itself.

==============  =============================================  ==========================
name            forward                                        backward
==============  =============================================  ==========================
softmax         y = exp(x - max x) / sum exp(x - max x)        y (g - sum(g y))
log_softmax     y = x - max x - log sum exp(x - max x)         g - exp(y) sum(g)
==============  =============================================  ==========================

An element of -inf (a mask) has probability 0. A row of -inf alone, or one with +inf or NaN, becomes
NaN, as in PyTorch. 16-bit types are computed in float32 and rounded once.
"""

from __future__ import annotations

from gpunn.primitives import softmax_implementation as implementation
from gpunn.primitives import softmax_samples as samples
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING

# ---- specification -------------------------------------------------------------------------------


def _require_columns(call, name, array) -> None:
    if array.shape[-1] < 1:
        problem = f"has shape {array.shape} with an empty last axis"
        call.require(False, name, problem, "give a column or more")


def _forward(call, x, out):
    x = call.array("x", x, dtypes=FLOATING, min_ndim=1)
    _require_columns(call, "x", x)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(x, out)
    return out


def _backward(call, grad_output, y, out):
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING, min_ndim=1)
    y = call.array("y", y, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, y=y)
    call.same_dtype(grad_output=grad_output, y=y)
    _require_columns(call, "y", y)
    out = call.output("out", out, shape=y.shape, dtype=y.dtype)
    call.run(grad_output, y, out)
    return out


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def softmax_forward(call, x, *, out=None):
    """Softmax over the last axis: ``out = exp(x - max(x)) / sum(exp(x - max(x)))``.

    Parameters
    ----------
    x : array (..., C) with C >= 1; float16, bfloat16, float32 or float64
    out : array of the shape and dtype of `x` to write; may be `x` itself

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, no axis or an empty last one, an `out`
        that does not fit
    """
    return _forward(call, x, out)


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def softmax_backward(call, grad_output, y, *, out=None):
    """The gradient through softmax: ``out = y * (grad_output - sum(grad_output * y))``.

    Parameters
    ----------
    grad_output, y : arrays (..., C) of one shape and one floating dtype; `y` is what
        `softmax_forward` returned
    out : array like `y` to write; may be `grad_output` or `y` itself
    """
    return _backward(call, grad_output, y, out)


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def log_softmax_forward(call, x, *, out=None):
    """Log-softmax over the last axis: ``out = x - max(x) - log(sum(exp(x - max(x))))``.

    Arguments and errors are those of `softmax_forward`.
    """
    return _forward(call, x, out)


@primitive(family="softmax", cuda="softmax.cu", numba="softmax.py")
def log_softmax_backward(call, grad_output, y, *, out=None):
    """The gradient through log-softmax: ``out = grad_output - exp(y) * sum(grad_output)``.

    Arguments and errors are those of `softmax_backward`; `y` is what `log_softmax_forward`
    returned.
    """
    return _backward(call, grad_output, y, out)


# ---- implementations -----------------------------------------------------------------------------

softmax_forward.reference(implementation.reference(implementation.compute_softmax))
softmax_backward.reference(implementation.reference(implementation.compute_softmax_backward))
log_softmax_forward.reference(implementation.reference(implementation.compute_log_softmax))
log_softmax_backward.reference(
    implementation.reference(implementation.compute_log_softmax_backward)
)

softmax_forward.cuda(implementation.forward_cuda(log=False))
softmax_backward.cuda(implementation.backward_cuda(log=False))
log_softmax_forward.cuda(implementation.forward_cuda(log=True))
log_softmax_backward.cuda(implementation.backward_cuda(log=True))

for _made in (softmax_forward, softmax_backward, log_softmax_forward, log_softmax_backward):
    _made.numba(implementation.numba(_made.name))
    _made.bench_shapes = samples.BENCH_SHAPES

# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@softmax_forward.cost
@log_softmax_forward.cost
def _(x, out):
    return Cost(flops=5 * x.size, read=x.nbytes, written=out.nbytes)


@softmax_backward.cost
@log_softmax_backward.cost
def _(grad_output, y, out):
    return Cost(flops=4 * y.size, read=grad_output.nbytes + y.nbytes, written=out.nbytes)


softmax_forward.samples(samples.forward_samples)
log_softmax_forward.samples(samples.forward_samples)
softmax_backward.samples(samples.backward_samples(log=False))
log_softmax_backward.samples(samples.backward_samples(log=True))

softmax_forward.inputs(samples.forward_inputs)
log_softmax_forward.inputs(samples.forward_inputs)
softmax_backward.inputs(samples.softmax_backward_inputs)
log_softmax_backward.inputs(samples.log_softmax_backward_inputs)
