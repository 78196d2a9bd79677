"""Losses that compare a prediction with a target element by element, forward and backward.

=====================  ==========================================================================
mse                    (p - t)^2
l1                     |p - t|
huber                  (p - t)^2 / 2 where |p - t| <= delta, else delta (|p - t| - delta / 2)
binary_cross_entropy   -weight (pos_weight t log(sigmoid(p)) + (1 - t) log(1 - sigmoid(p)))
=====================  ==========================================================================

`reduction` is ``"mean"``, ``"sum"`` or ``"none"``. A reduced loss has shape () and is float32, or
float64 for float64 inputs; "none" keeps the inputs' shape and dtype. 16-bit inputs are computed in
float32 and rounded once. The mean of nothing is NaN and its sum 0, as in PyTorch. Derivatives are
those with respect to the prediction. Cross-entropy over classes is in `cross_entropy`.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.primitives.cross_entropy import cross_entropy_backward, cross_entropy_forward
from gpunn.primitives.loss_implementation import implement
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import (
    BFLOAT16,
    ELEMENTWISE_SHAPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOATING,
    Accumulator,
    Sample,
    accumulator_dtype,
)  # fmt: skip

__all__ = [
    "mse_forward", "mse_backward", "l1_forward", "l1_backward", "huber_forward", "huber_backward",
    "binary_cross_entropy_forward", "binary_cross_entropy_backward",
    "cross_entropy_forward", "cross_entropy_backward",
]  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")

# ---- specification -------------------------------------------------------------------------------


def _forward(call, names, prediction, target, reduction, out, options=(0.0, None, None)):
    """Check and run a forward call; `options` are delta, weight and pos_weight."""
    prediction, target = _pair(call, names, prediction, target, reduction)
    delta, *factors = options
    factors = _factors(call, factors, prediction)
    if reduction == "none":
        out = call.output("out", out, shape=prediction.shape, dtype=prediction.dtype)
    else:
        out = call.output("out", out, shape=(), dtype=accumulator_dtype(prediction.dtype))
    call.run(prediction, target, out, reduction, delta, *factors)
    return out


def _backward(
    call, names, grad_output, prediction, target, reduction, out, options=(0.0, None, None)
):
    """Check and run a backward call; `options` as in `_forward`."""
    prediction, target = _pair(call, names, prediction, target, reduction)
    none = reduction == "none"
    grad_output = call.array(
        "grad_output",
        grad_output,
        dtypes=(prediction.dtype if none else accumulator_dtype(prediction.dtype),),
        shape=prediction.shape if none else (),
    )
    delta, *factors = options
    factors = _factors(call, factors, prediction)
    out = call.output("out", out, shape=prediction.shape, dtype=prediction.dtype)
    call.run(grad_output, prediction, target, out, reduction, delta, *factors)
    return out


def _pair(call, names, prediction, target, reduction):
    call.choice("reduction", reduction, REDUCTIONS)
    first, second = names
    prediction = call.array(first, prediction, dtypes=FLOATING)
    target = call.array(second, target, dtypes=FLOATING)
    call.same_shape(**{first: prediction, second: target})
    call.same_dtype(**{first: prediction, second: target})
    return prediction, target


def _factors(call, factors, logits):
    """weight and pos_weight in the accumulator's dtype and a shape that ends the logits' shape."""
    made, accumulator = [], accumulator_dtype(logits.dtype)
    for name, value in zip(("weight", "pos_weight"), factors, strict=True):
        if value is not None:
            dtypes = (logits.dtype, accumulator) if logits.dtype != accumulator else (accumulator,)
            value = call.array(name, value, dtypes=dtypes)
            value = _repeating(call, name, value, logits.shape).astype(accumulator, copy=False)
        made.append(value)
    return made


def _repeating(call, name: str, value, shape: tuple):
    """`value` so that its elements, repeated in order, line up with an array of `shape`."""
    lead = next((i for i, n in enumerate(value.shape) if n != 1), value.ndim)
    tail = value.reshape(value.shape[lead:])
    ends = tail.shape == shape[len(shape) - tail.ndim :] and value.ndim <= len(shape)
    if ends and math.prod(shape) <= 2**32:  # the kernels count repeats in 32 bits
        return tail
    try:
        fits = np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        call.refuse(name, value, f"a shape that broadcasts to that of the logits, {shape}")
    # For example (rows, 1): rare enough to be written out in full.
    return call.xp.ascontiguousarray(call.xp.broadcast_to(value, shape))


_PAIR, _LOGITS = ("prediction", "target"), ("logits", "target")


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def mse_forward(call, prediction, target, *, reduction: str = "mean", out=None):
    """The squared error ``(prediction - target)^2``, reduced.

    Parameters
    ----------
    prediction, target : arrays of one shape and one dtype, float16, bfloat16, float32 or float64
    reduction : "mean" over all elements, "sum", or "none"
    out : array to write: shape () and float32 (float64 for float64 inputs), or for "none" the
        shape and dtype of `prediction`, which it may be

    Raises
    ------
    TypeError, ValueError : a dtype that is not floating, shapes or dtypes that differ, an unknown
        reduction, an `out` that does not fit
    """
    return _forward(call, _PAIR, prediction, target, reduction, out)


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def mse_backward(call, grad_output, prediction, target, *, reduction: str = "mean", out=None):
    """The gradient ``2 grad_output (prediction - target)``, divided by their number for "mean".

    Parameters
    ----------
    grad_output : the gradient of the forward call's result, in its shape and dtype. It is read on
        its device: nothing waits for it.
    prediction, target, reduction : as in the forward call
    out : array like `prediction` to write; may be `prediction` or `target` itself
    """
    return _backward(call, _PAIR, grad_output, prediction, target, reduction, out)


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def l1_forward(call, prediction, target, *, reduction: str = "mean", out=None):
    """The absolute error ``|prediction - target|``, reduced. Arguments as in `mse_forward`."""
    return _forward(call, _PAIR, prediction, target, reduction, out)


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def l1_backward(call, grad_output, prediction, target, *, reduction: str = "mean", out=None):
    """The gradient ``grad_output sign(prediction - target)``, with sign(0) = 0, as in PyTorch.

    Arguments as in `mse_backward`.
    """
    return _backward(call, _PAIR, grad_output, prediction, target, reduction, out)


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def huber_forward(
    call, prediction, target, *, delta: float = 1.0, reduction: str = "mean", out=None
):
    """Huber's loss: ``d^2 / 2`` for |d| <= delta, else ``delta (|d| - delta / 2)``, reduced.

    d is ``prediction - target``; `delta` a number above 0. Other arguments as in `mse_forward`.
    Source: Huber, Robust estimation of a location parameter, 1964.
    """
    options = (_delta(call, delta), None, None)
    return _forward(call, _PAIR, prediction, target, reduction, out, options)


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def huber_backward(
    call, grad_output, prediction, target, *, delta: float = 1.0, reduction: str = "mean", out=None
):
    """The gradient ``grad_output clamp(prediction - target, -delta, delta)``.

    Arguments as in `mse_backward` and `huber_forward`.
    """
    options = (_delta(call, delta), None, None)
    return _backward(call, _PAIR, grad_output, prediction, target, reduction, out, options)


def _delta(call, delta) -> float:
    delta = call.number("delta", delta)
    call.require(0 < delta < math.inf, "delta", f"is {delta}", "give a finite number above 0")
    return delta


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def binary_cross_entropy_forward(
    call, logits, target, *, weight=None, pos_weight=None, reduction: str = "mean", out=None
):
    """Binary cross-entropy of sigmoid(logits) and `target`, reduced; stable for any logit.

    ``weight ((1 - t) softplus(x) + pos_weight t softplus(-x))`` with
    ``softplus(x) = max(x, 0) + log(1 + exp(-|x|))``. "mean" divides by the number of elements,
    whatever the weights.

    Parameters
    ----------
    logits, target : arrays of one shape and one floating dtype; targets in [0, 1], not checked
    weight : factor of each element's loss, of any shape that broadcasts to the logits'
    pos_weight : factor of the part for t = 1, likewise. Both in the logits' dtype or float32
        (float64 for float64 logits). Scalars, (classes,) and full shapes cost no copy.
    reduction, out : as in `mse_forward`

    An infinite logit on the target's side has loss 0 (PyTorch gives NaN), on the other side inf.
    """
    options = (0.0, weight, pos_weight)
    return _forward(call, _LOGITS, logits, target, reduction, out, options)


@primitive(family="loss", cuda="loss.cu", numba="loss.py")
def binary_cross_entropy_backward(
    call, grad_output, logits, target, *, weight=None, pos_weight=None, reduction: str = "mean",
    out=None,
):  # fmt: skip
    """The gradient ``grad_output weight ((1 - t) sigmoid(x) - pos_weight t sigmoid(-x))``.

    Arguments as in `mse_backward` and `binary_cross_entropy_forward`.
    """
    options = (0.0, weight, pos_weight)
    return _backward(call, _LOGITS, grad_output, logits, target, reduction, out, options)


# ---- implementations, cost, benchmark inputs -----------------------------------------------------

# Rough counts of operations an element, forward and backward, an exponential taken as one.
_LOSSES = {
    "mse": (mse_forward, mse_backward, 3, 4),
    "l1": (l1_forward, l1_backward, 3, 4),
    "huber": (huber_forward, huber_backward, 6, 5),
    "binary_cross_entropy": (binary_cross_entropy_forward, binary_cross_entropy_backward, 12, 14),
}


def _bytes(*arrays) -> int:
    return sum(a.nbytes for a in arrays if a is not None)


def _complete(name: str) -> None:
    forward, backward, forward_flops, backward_flops = _LOSSES[name]
    implement(forward, backward, name)

    @forward.cost
    def _(prediction, target, out, reduction, delta, *factors):
        read = _bytes(prediction, target, *factors)
        return Cost(forward_flops * prediction.size, read, out.nbytes)

    @backward.cost
    def _(grad_output, prediction, target, out, reduction, delta, *factors):
        read = _bytes(grad_output, prediction, target, *factors)
        return Cost(backward_flops * prediction.size, read, out.nbytes)

    @forward.inputs
    def _(rng, shape):
        return _benchmark_pair(rng, shape), {}

    @backward.inputs
    def _(rng, shape):
        return (np.array(1, np.float32), *_benchmark_pair(rng, shape)), {}

    forward.samples(lambda rng: _forward_samples(rng, name))
    backward.samples(lambda rng: _backward_samples(rng, name))
    forward.bench_shapes = backward.bench_shapes = ELEMENTWISE_SHAPES


def _benchmark_pair(rng, shape):
    # Targets in [0, 1) suit every one of the losses.
    return rng.standard_normal(shape, np.float32), rng.random(shape, np.float32)


# ---- samples -------------------------------------------------------------------------------------


def _pairs(rng, name: str):
    """(name, prediction, target, options, dtypes) without the reduction."""
    f32, all_but_half = (FLOAT32,), (BFLOAT16, FLOAT32, FLOAT64)

    def target(*shape):
        drawn = rng.random(shape) if name == "binary_cross_entropy" else rng.normal(size=shape)
        return np.asarray(drawn)

    yield "one element", rng.normal(size=(1,)), target(1), {}, f32
    yield "no dimensions", np.array(0.7), target(), {}, f32
    yield "nothing", np.zeros((0, 3)), np.zeros((0, 3)), {}, f32
    yield "odd 7x13", 3 * rng.normal(size=(7, 13)), target(7, 13), {}, FLOATING
    yield "several tiles", rng.normal(size=(5, 1801)), target(5, 1801), {}, FLOATING
    yield "views", rng.normal(size=(9, 22))[:, ::2], target(11, 9).T, {}, f32
    edge = np.array([-6e4, -90.0, -0.5, 0.0, -0.0, 0.5, 17.0, 90.0, 6e4, np.inf, -np.inf, np.nan])
    if name == "binary_cross_entropy":
        yield "edges, 0", edge, np.zeros(12), {}, all_but_half
        yield "edges, 1", edge, np.ones(12), {}, all_but_half
        yield from _weighted(rng)
    else:
        yield "edges", edge, np.zeros(12), {}, all_but_half
        yield "equal", np.arange(12.0), np.arange(12.0), {}, f32
    if name == "huber":
        far = 3 * rng.normal(size=(7, 13))
        yield "delta 0.3", far, target(7, 13), {"delta": 0.3}, FLOATING
        yield "delta 4", far, target(7, 13), {"delta": 4.0}, f32


def _weighted(rng):
    for name, weight, positive, dtypes in (
        ("one weight", (), None, (FLOAT32,)),
        ("weight of classes", (13,), None, FLOATING),
        ("pos_weight of classes", None, (13,), FLOATING),
        ("full weight and pos_weight of classes", (7, 13), (1, 13), (FLOAT32, FLOAT64)),
        ("weight of rows", (7, 1), (1,), (FLOAT32,)),
    ):
        options = {"weight": weight, "pos_weight": positive}
        options = {k: rng.uniform(0.2, 3, s) for k, s in options.items() if s is not None}
        yield name, 3 * rng.normal(size=(7, 13)), rng.random((7, 13)), options, dtypes


def _reductions(number: int, size: int) -> tuple[str, ...]:
    """Every sample meets "none" and one of mean and sum in turn; a few meet both."""
    return ("none", *(("mean", "sum") if size in (0, 91) else (REDUCTIONS[number % 2],)))


def _forward_samples(rng, name: str):
    for number, (label, prediction, target, options, dtypes) in enumerate(_pairs(rng, name)):
        for reduction in _reductions(number, prediction.size):
            kwargs, quick = {**options, "reduction": reduction}, prediction.size < 1000
            args = prediction, target
            yield Sample(f"{label}, {reduction}", args, kwargs, dtypes, numba=quick)
            if label.startswith("several tiles"):
                yield Sample(f"unaligned, {reduction}", args, kwargs, numba=False, unaligned=True)
    big = tuple(rng.random((2, 1 << 18)))
    yield Sample("many blocks, mean", big, {}, (FLOAT32, FLOAT16), numba=False)


def _backward_samples(rng, name: str):
    for number, (label, prediction, target, options, dtypes) in enumerate(_pairs(rng, name)):
        for reduction in _reductions(number, prediction.size):
            none = reduction == "none"
            grad = rng.normal(size=prediction.shape) if none else Accumulator(np.array(1.7))
            kwargs, quick = {**options, "reduction": reduction}, prediction.size < 1000
            args = grad, prediction, target
            yield Sample(f"{label}, {reduction}", args, kwargs, dtypes, numba=quick)
            if label.startswith("several tiles"):
                yield Sample(f"unaligned, {reduction}", args, kwargs, numba=False, unaligned=True)


for _name in _LOSSES:
    _complete(_name)
