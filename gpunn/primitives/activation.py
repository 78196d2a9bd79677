"""Activation functions, elementwise, forward and backward.

The thirteen functions of `ACTIVATIONS`, with f and f' as below; every array has one shape.

============  ============================================  =====================================
name          f(x)                                          alpha
============  ============================================  =====================================
identity      x
sigmoid       1 / (1 + exp(-x))
tanh          tanh(x)
relu          max(x, 0)
leaky_relu    x, or alpha x below zero                      slope below zero, 0.01
elu           x, or alpha (exp(x) - 1) below zero           1.0
selu          1.0507 elu(x, 1.6733)
gelu          x Phi(x), Phi the normal distribution
gelu_tanh     x (1 + tanh(c (x + 0.044715 x^3))) / 2
silu          x sigmoid(x)
softplus      log(1 + exp(alpha x)) / alpha                 beta in PyTorch, 1.0
mish          x tanh(log(1 + exp(x)))
hard_swish    x clamp(x + 3, 0, 6) / 6
============  ============================================  =====================================

At a kink (relu, leaky_relu, elu, selu at 0) the derivative is the one from below, as in PyTorch.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import ELEMENTWISE_SHAPES, FLOATING, Sample, accumulator_dtype

ACTIVATIONS = (
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh",
    "silu", "softplus", "mish", "hard_swish",
)  # fmt: skip

DEFAULT_ALPHA = {"leaky_relu": 0.01, "elu": 1.0, "softplus": 1.0}

# Rough counts of operations an element, an exponential or a division taken as one.
_FLOPS = {"identity": 0, "relu": 1, "leaky_relu": 2, "elu": 3, "selu": 4, "hard_swish": 4}

BLOCK = 256


def resolve_alpha(call, activation: str, alpha: float | None) -> float:
    """The function's parameter: the default if None. Only leaky_relu, elu and softplus have one."""
    if alpha is None:
        return DEFAULT_ALPHA.get(activation, 0.0)
    call.require(
        activation in DEFAULT_ALPHA,
        "alpha",
        f"is {alpha} but {activation} has no parameter",
        "leave alpha out",
    )
    alpha = call.number("alpha", alpha)
    call.require(
        activation != "softplus" or alpha > 0, "alpha", f"is {alpha}", "softplus needs alpha > 0"
    )
    return alpha


# ---- specification -------------------------------------------------------------------------------


@primitive(family="activation", cuda="activation.cu", numba="activation.py")
def activation_forward(call, x, *, activation: str, alpha: float | None = None, out=None):
    """An activation function of every element: ``out = f(x)``.

    Parameters
    ----------
    x : array of any shape, float16, bfloat16, float32 or float64; computed in float32 (float64
        for float64) and rounded once
    activation : one of `ACTIVATIONS`
    alpha : the parameter of leaky_relu, elu or softplus; None for its default
    out : array of the shape and dtype of `x` to write; may be `x` itself

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, an unknown activation, an alpha for a
        function that has none, an `out` that does not fit
    """
    call.choice("activation", activation, ACTIVATIONS)
    alpha = resolve_alpha(call, activation, alpha)
    x = call.array("x", x, dtypes=FLOATING)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(x, out, activation, alpha)
    return out


@primitive(family="activation", cuda="activation.cu", numba="activation.py")
def activation_backward(
    call, grad_output, x, *, activation: str, alpha: float | None = None, out=None
):
    """The gradient through an activation: ``out = grad_output * f'(x)``.

    Parameters
    ----------
    grad_output, x : arrays of one shape and one floating dtype; `x` is the input of the forward
        call. For relu and leaky_relu with a positive slope its output does as well.
    activation, alpha : as in the forward call
    out : array like `grad_output` to write; may be `grad_output` itself
    """
    call.choice("activation", activation, ACTIVATIONS)
    alpha = resolve_alpha(call, activation, alpha)
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING)
    x = call.array("x", x, dtypes=FLOATING)
    call.same_shape(grad_output=grad_output, x=x)
    call.same_dtype(grad_output=grad_output, x=x)
    out = call.output("out", out, shape=x.shape, dtype=x.dtype)
    call.run(grad_output, x, out, activation, alpha)
    return out


# ---- reference -----------------------------------------------------------------------------------

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_GELU_C = math.sqrt(2.0 / math.pi)

# log(erfc(z) / t) + z^2 as a Chebyshev series in 2t - 1, with t = 2 / (2 + z) for z >= 0; computed
# with 50 digits. NumPy has no error function, and math.erfc of each element takes ten times longer.
_ERFC_SERIES = (
    -0.6513268598908547, 0.6419697923564902, 0.019476473204185836, -0.009561514786808632,
    -0.0009465953444820369, 0.00036683949785276145, 4.252332480690777e-05, -2.0278578112534242e-05,
    -1.6242900046470256e-06, 1.3036558355805232e-06, 1.5626441722066142e-08, -8.523809591492654e-08,
    6.5290544390988515e-09, 5.059343495551469e-09, -9.91364156493033e-10, -2.273651222931836e-10,
    9.646791102015527e-11, 2.3940380830391146e-12, -6.886027526497553e-12, 8.944879273090725e-13,
    3.130921399342958e-13, -1.1270822361367252e-13, 3.810905255189232e-16, 7.106097613609237e-15,
    -1.5230282014571043e-15, -9.457494571291233e-17, 1.210237189224279e-16, -2.816663087747177e-17,
)  # fmt: skip


def _phi(x):
    """The normal distribution function erfc(-x / sqrt(2)) / 2, in the dtype of x."""
    from numpy.polynomial.chebyshev import chebval  # not on the path of `import gpunn`

    z = np.abs(x) * math.sqrt(0.5)
    t = 2 / (2 + z)
    # 12 terms are as good as float32 gets
    series = _ERFC_SERIES if x.dtype == np.float64 else _ERFC_SERIES[:12]
    upper = 0.5 * t * np.exp(chebval(2 * t - 1, series) - z * z)
    return np.where(x > 0, 1 - upper, upper).astype(x.dtype, copy=False)


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, x.dtype.type(1), e) / (1 + e)


def _sigmoid_derivative(x):
    e = np.exp(-np.abs(x))
    return e / ((1 + e) * (1 + e))


def _tanh_derivative(x):
    e = np.exp(-2 * np.abs(x))
    return 4 * e / ((1 + e) * (1 + e))


def _elu(x, alpha):
    return np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _elu_derivative(x, alpha):
    return np.where(x <= 0, alpha * np.exp(np.minimum(x, 0)), x.dtype.type(1))


def _gelu_derivative(x):
    return _phi(x) + x * (np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def _gelu_tanh_inner(x):
    z = np.clip(x, -10, 10)
    return z, np.tanh(_GELU_C * (z + 0.044715 * z * z * z))


def _gelu_tanh_derivative(x):
    z, t = _gelu_tanh_inner(x)
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (_GELU_C * (1 + 3 * 0.044715 * z * z))


def _softplus(x, beta):
    z = beta * x
    return (np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))) / beta


def _mish_split(x):
    e = np.exp(-np.abs(x))
    numerator = np.where(x > 0, 1 + 2 * e, e * (e + 2))
    remainder = np.where(x > 0, 2 * e * e, x.dtype.type(2))
    return numerator / (numerator + remainder), remainder / (numerator + remainder)


def _mish_derivative(x):
    t, rest = _mish_split(x)
    return t + x * _sigmoid(x) * rest * (1 + t)


_VALUE = {
    "identity": lambda x, a: x,
    "sigmoid": lambda x, a: _sigmoid(x),
    "tanh": lambda x, a: np.tanh(x),
    "relu": lambda x, a: np.maximum(x, 0),
    "leaky_relu": lambda x, a: np.where(x <= 0, a * x, x),
    "elu": _elu,
    "selu": lambda x, a: _SELU_SCALE * _elu(x, _SELU_ALPHA),
    "gelu": lambda x, a: x * _phi(x),
    "gelu_tanh": lambda x, a: 0.5 * x * (1 + _gelu_tanh_inner(x)[1]),
    "silu": lambda x, a: x * _sigmoid(x),
    "softplus": _softplus,
    "mish": lambda x, a: x * _mish_split(x)[0],
    "hard_swish": lambda x, a: np.where(
        x <= -3, 0, np.where(x >= 3, x, x * (np.clip(x, -3, 3) + 3) / 6)
    ),
}
_DERIVATIVE = {
    "identity": lambda x, a: np.ones_like(x),
    "sigmoid": lambda x, a: _sigmoid_derivative(x),
    "tanh": lambda x, a: _tanh_derivative(x),
    "relu": lambda x, a: ~(x <= 0),
    "leaky_relu": lambda x, a: np.where(x <= 0, x.dtype.type(a), x.dtype.type(1)),
    "elu": _elu_derivative,
    "selu": lambda x, a: _SELU_SCALE * _elu_derivative(x, _SELU_ALPHA),
    "gelu": lambda x, a: _gelu_derivative(x),
    "gelu_tanh": lambda x, a: _gelu_tanh_derivative(x),
    "silu": lambda x, a: _sigmoid(x) + x * _sigmoid_derivative(x),
    "softplus": lambda x, a: _sigmoid(a * x),
    "mish": lambda x, a: _mish_derivative(x),
    "hard_swish": lambda x, a: np.where(
        x <= -3, 0, np.where(x >= 3, 1, (2 * np.clip(x, -3, 3) + 3) / 6)
    ),
}


@activation_forward.reference
def _(x, out, activation, alpha):
    if activation == "relu" and x.dtype in (np.float32, np.float64):
        np.maximum(x, 0, out=out)  # the most used one, without a copy
        return
    with quiet():
        value = _VALUE[activation](x.astype(accumulator_dtype(x.dtype), copy=False), alpha)
        out[...] = value


@activation_backward.reference
def _(grad_output, x, out, activation, alpha):
    if activation == "relu" and x.dtype in (np.float32, np.float64):
        slope = (~(x <= 0)).astype(x.dtype)  # faster than to multiply by a mask
        np.multiply(grad_output, slope, out=out)
        return
    accumulator = accumulator_dtype(x.dtype)
    with quiet():
        slope = _DERIVATIVE[activation](x.astype(accumulator, copy=False), alpha)
        out[...] = grad_output.astype(accumulator, copy=False) * slope


# ---- launch --------------------------------------------------------------------------------------


def _struct(activation: str) -> str:
    """The C++ struct of a function: hard_swish is HardSwish."""
    return activation.title().replace("_", "")


def elementwise_grid(size: int, itemsize: int, vector: bool) -> tuple[int]:
    """Blocks for `elementwise` of elementwise.cuh; at least one."""
    packs = size // (16 // itemsize) if vector else size
    unroll = 2 if itemsize == 8 else 4  # as in elementwise.cuh
    return (max(1, -(-packs // (BLOCK * unroll))),)


@functools.cache
def _kernel(name: str, ctype: str, activation: str, vector: bool) -> str:
    """The expression of a kernel; made once, because a launch takes no longer than its making."""
    return f"{name}<{ctype}, {_struct(activation)}, {str(vector).lower()}>"


@activation_forward.cuda
def _(launch, x, out, activation, alpha):
    if x.size == 0:
        return
    vector = launch.alike(16, x, out)
    launch(
        _kernel("activation_forward", launch.ctype(x.dtype), activation, vector),
        elementwise_grid(x.size, x.itemsize, vector),
        (BLOCK,),
        (x, out, launch.int64(x.size), accumulator_dtype(x.dtype).type(alpha)),
    )


@activation_backward.cuda
def _(launch, grad_output, x, out, activation, alpha):
    if x.size == 0:
        return
    vector = launch.alike(16, grad_output, x, out)
    launch(
        _kernel("activation_backward", launch.ctype(x.dtype), activation, vector),
        elementwise_grid(x.size, x.itemsize, vector),
        (BLOCK,),
        (grad_output, x, out, launch.int64(x.size), accumulator_dtype(x.dtype).type(alpha)),
    )


@activation_forward.numba
def _(launch, x, out, activation, alpha):
    if x.size == 0:
        return
    grid = (min(-(-x.size // 512), 65535),)  # four elements a thread
    args = (x.reshape(-1), out.reshape(-1), x.dtype.type(alpha))
    launch(f"activation_forward_{x.dtype.name}_{activation}", grid, (128,), args)


@activation_backward.numba
def _(launch, grad_output, x, out, activation, alpha):
    if x.size == 0:
        return
    grid = (min(-(-x.size // 256), 65535),)  # two elements a thread
    args = (grad_output.reshape(-1), x.reshape(-1), out.reshape(-1), x.dtype.type(alpha))
    launch(f"activation_backward_{x.dtype.name}_{activation}", grid, (128,), args)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@activation_forward.cost
def _(x, out, activation, alpha):
    return Cost(flops=_FLOPS.get(activation, 10) * x.size, read=x.nbytes, written=out.nbytes)


@activation_backward.cost
def _(grad_output, x, out, activation, alpha):
    flops = (_FLOPS.get(activation, 15) + 1) * x.size
    return Cost(flops=flops, read=grad_output.nbytes + x.nbytes, written=out.nbytes)


def _shapes_and_values(rng):
    """(name, x, dtypes): ordinary sizes, odd ones, views, and values at the edge."""
    yield "one element", rng.normal(size=(1,)), (np.dtype(np.float32),)
    yield "nothing", np.zeros((0, 3)), (np.dtype(np.float32),)
    yield "odd 7x13", 3 * rng.normal(size=(7, 13)), FLOATING
    yield "3000", 3 * rng.normal(size=3000), FLOATING
    yield "strided view", 3 * rng.normal(size=(9, 22))[:, ::2], (np.dtype(np.float32),)
    yield "transposed view", 3 * rng.normal(size=(5, 8)).T, (np.dtype(np.float32),)
    large = np.array([-6e4, -500.0, -89.0, -20.0, -3.0, 0.0, -0.0, 3.0, 20.0, 89.0, 500.0, 6e4])
    yield "large", large, FLOATING
    yield "not a number", np.array([np.nan, 1.0]), (np.dtype(np.float32),)


@activation_forward.samples
def _(rng):
    for activation in ACTIVATIONS:
        for name, x, dtypes in _shapes_and_values(rng):
            yield Sample(f"{activation}, {name}", (x,), {"activation": activation}, dtypes)
    for activation, alpha in (("leaky_relu", 0.2), ("elu", 0.5), ("softplus", 3.0)):
        arguments = {"activation": activation, "alpha": alpha}
        yield Sample(f"{activation}, alpha {alpha}", (rng.normal(size=99),), arguments)
    for size in (2, 1100):  # all arrays start one element past a multiple of 16 bytes
        arguments = {"activation": "relu", "out": np.zeros(size)}
        yield Sample(
            f"unaligned alike {size}", (rng.normal(size=size),), arguments, FLOATING, unaligned=True
        )
    yield Sample("unaligned", (rng.normal(size=33),), {"activation": "relu"}, unaligned=True)


@activation_backward.samples
def _(rng):
    for activation in ACTIVATIONS:
        for name, x, dtypes in _shapes_and_values(rng):
            args = (rng.normal(size=x.shape), x)
            yield Sample(f"{activation}, {name}", args, {"activation": activation}, dtypes)
    for activation, alpha in (("leaky_relu", 0.2), ("elu", 0.5), ("softplus", 3.0)):
        args, arguments = (
            tuple(rng.normal(size=(2, 99))),
            {"activation": activation, "alpha": alpha},
        )
        yield Sample(f"{activation}, alpha {alpha}", args, arguments)
    args, arguments = tuple(rng.normal(size=(2, 99))), {"activation": "relu", "out": np.zeros(99)}
    yield Sample("unaligned alike", args, arguments, FLOATING, unaligned=True)


@activation_forward.inputs
def _(rng, shape):
    return (rng.standard_normal(shape, dtype=np.float32),), {"activation": "gelu"}


@activation_backward.inputs
def _(rng, shape):
    x = rng.standard_normal((2, *shape), dtype=np.float32)
    return (x[0], x[1]), {"activation": "gelu"}


activation_forward.bench_shapes = ELEMENTWISE_SHAPES
activation_backward.bench_shapes = ELEMENTWISE_SHAPES
