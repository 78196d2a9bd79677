"""Reductions over axes, softmax and what is like it, products of matrices."""

from __future__ import annotations

import math

import numpy as np

import gpunn
from gpunn.autograd.functions import arithmetic, elementwise
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.functions.linalg import linear
from gpunn.autograd.functions.shape import permute, reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.common import axis_of, floating, ints, plain
from gpunn.onnx.operators.einsum import contraction
from gpunn.onnx.operators.registry import Node, operator

# ---- reductions ----------------------------------------------------------------------------------


def _extreme(largest: bool):
    """The largest or smallest; of no elements the least or greatest number there is."""

    def reduce(x, axes, keep):
        if x.numel():
            return (gpunn.amax if largest else gpunn.amin)(x, axes, keep)
        sizes = [1 if at in axes else size for at, size in enumerate(x.shape)]
        shape = sizes if keep else [n for at, n in enumerate(sizes) if at not in axes]
        return wrap(x._xp.full(tuple(shape), -math.inf if largest else math.inf, x.dtype))

    return reduce


def _log_sum_exp(x, axes, keep):
    if not x.numel():
        return elementwise.log(gpunn.sum(x, axes, keep))
    return gpunn.logsumexp(x, axes, keep)


def _exact(name: str, **options):
    """NumPy's function `name` of integers, in their own type."""
    return lambda xp, a, axes, keep: getattr(xp, name)(a, axis=axes, keepdims=keep, **options)


def _sum_of(function):
    return lambda xp, a, axes, keep: function(xp, a).sum(axis=axes, keepdims=keep)


def _limits(a, largest: bool):
    if a.dtype == np.bool_:
        return not largest
    info = np.iinfo(a.dtype)
    return info.min if largest else info.max


def _exact_extreme(largest: bool):
    def reduce(xp, a, axes, keep):
        name = "max" if largest else "min"
        if a.size:
            return getattr(xp, name)(a, axis=axes, keepdims=keep)
        kept = a.sum(axis=axes, keepdims=keep)
        return xp.full(kept.shape, _limits(a, largest), a.dtype)

    return reduce


# ONNX's name -> (of floats, of everything else)
_REDUCTIONS = {
    "ReduceSum": (gpunn.sum, _exact("sum")),
    "ReduceMean": (gpunn.mean, _exact("mean")),
    "ReduceProd": (gpunn.prod, _exact("prod")),
    "ReduceMax": (_extreme(True), _exact_extreme(True)),
    "ReduceMin": (_extreme(False), _exact_extreme(False)),
    "ReduceL1": (
        lambda x, axes, keep: gpunn.norm(x, 1, axes, keep), _sum_of(lambda xp, a: xp.absolute(a))
    ),
    "ReduceL2": (
        lambda x, axes, keep: gpunn.norm(x, 2, axes, keep),
        lambda xp, a, axes, keep: xp.sqrt((a * a).sum(axis=axes, keepdims=keep)),
    ),
    "ReduceSumSquare": (
        lambda x, axes, keep: gpunn.sum(elementwise.square(x), axes, keep),
        _sum_of(lambda xp, a: a * a),
    ),
    "ReduceLogSum": (
        lambda x, axes, keep: elementwise.log(gpunn.sum(x, axes, keep)),
        lambda xp, a, axes, keep: xp.log(a.sum(axis=axes, keepdims=keep)),
    ),
    "ReduceLogSumExp": (
        _log_sum_exp,
        lambda xp, a, axes, keep: xp.log(xp.exp(a).sum(axis=axes, keepdims=keep)),
    ),
}  # fmt: skip


def _register_reductions() -> None:
    for name, (function, exact) in _REDUCTIONS.items():
        _register_reduction(name, function, exact)


def _register_reduction(name: str, function, exact) -> None:
    @operator(name, arguments=(1,))
    def build(node: Node):
        keep, empty_is_none = node.flag("keepdims", True), node.flag("noop_with_empty_axes")
        by_input = node.version >= (13 if name == "ReduceSum" else 18)
        fixed = None if by_input else node.ints("axes")

        def run(x, given=None):
            axes = ints(given) if by_input else fixed
            if not axes:
                # ONNX applies what is done to each element even if it reduces nothing.
                axes = () if empty_is_none else tuple(range(x.ndim))
            axes = tuple(axis_of(axis, x.ndim) for axis in axes)
            if floating(x):
                return function(x, axes, keep)
            return plain(lambda xp, a: exact(xp, a, axes, keep), x)

        return run


_register_reductions()


# ---- softmax -------------------------------------------------------------------------------------


def _by_rows(node: Node, function):
    """A function of one axis; before version 13 of all dimensions from an axis on, as one."""
    axis = node.int("axis", -1 if node.version >= 13 else 1)

    def run(x):
        if node.version >= 13:
            return function(x, axis_of(axis, x.ndim))
        at = axis + x.ndim if axis < 0 else axis
        rows = reshape(x, math.prod(x.shape[:at]), math.prod(x.shape[at:]))
        return reshape(function(rows, 1), *x.shape)

    return run


@operator("Softmax")
def softmax(node: Node):
    return _by_rows(node, gpunn.softmax)


@operator("LogSoftmax")
def log_softmax(node: Node):
    return _by_rows(node, gpunn.log_softmax)


@operator("Hardmax")
def hardmax(node: Node):
    def largest(x, axis):
        first = gpunn.argmax(x, axis, True)
        places = x._xp.arange(x.shape[axis])
        places = places.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
        return wrap((first._array == places).astype(x.dtype))

    return _by_rows(node, largest)


# ---- matrices ------------------------------------------------------------------------------------


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, of integers too."""
    if floating(a):
        return gpunn.matmul(a, b)
    return plain(lambda xp, x, y: xp.matmul(x, y), a, b)


@operator("MatMul")
def matmul(node: Node):
    return product


@operator("Gemm")
def gemm(node: Node):
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    transpose_a, transpose_b = node.flag("transA"), node.flag("transB")
    node.skip("broadcast")  # of versions before 7; the third operand broadcasts anyway

    def run(a, b, c=None):
        a = permute(a, 1, 0) if transpose_a else a
        bias = c is not None and c.ndim == 1 and c.shape[0] == b.shape[0 if transpose_b else 1]
        if floating(a) and alpha == 1 and (c is None or (bias and beta == 1)):
            return linear(a, b if transpose_b else permute(b, 1, 0), c)
        out = product(a, permute(b, 1, 0) if transpose_b else b)
        out = out if alpha == 1 else _times(out, alpha)
        if c is None or beta == 0:
            return out
        return out + (c if beta == 1 else _times(c, beta))

    return run


def _times(x: Tensor, factor: float) -> Tensor:
    return x * factor if floating(x) else plain(lambda xp, a: a * factor, x)


@operator("Einsum", 12)
def einsum(node: Node):
    equation = node.text("equation")
    try:
        return contraction(equation)
    except ValueError as error:
        raise node.refuse(f"attribute 'equation' is {equation!r}: {error}") from error


@operator("Det", 11)
def determinant(node: Node):
    return lambda x: Determinant.apply(x)


class Determinant(gpunn.Function):
    """The determinant of the last two dimensions; the gradient is g det(x) x^-T"""

    widens = True

    def forward(self, x):
        out = array_xp(x).linalg.det(x)
        self.save(x, out)
        return array_xp(x).asarray(out, x.dtype)

    def backward(self, grad):
        x, out = self.saved
        inverse = array_xp(x).linalg.inv(x)
        return (grad * out)[..., None, None] * array_xp(x).swapaxes(inverse, -1, -2)


# ---- normalizing without statistics --------------------------------------------------------------


@operator("LpNormalization")
def lp_normalization(node: Node):
    axis, p = node.int("axis", -1), node.int("p", 2)

    def run(x):
        length = gpunn.norm(x, p, axis_of(axis, x.ndim), True)
        return x / arithmetic.where(length == 0, 1.0, length)

    return run
