"""Reductions over dimensions: sum mean var std prod max min argmax argmin any all norm cumsum.

`dim` is None (all), an int or several; `keepdim` keeps the reduced dimensions with size 1.
"""

from __future__ import annotations

from typing import NamedTuple, overload

import numpy as np

from gpunn.autograd.aliases import Dims, DTypeLike
from gpunn.autograd.autocast import widened
from gpunn.autograd.dtypes import as_dtype, is_float, wide
from gpunn.autograd.function import Function
from gpunn.autograd.functions.common import (
    array_xp,
    as_float,
    cast,
    normal_dim,
    normal_dims,
)
from gpunn.autograd.functions.elementwise import abs, sqrt
from gpunn.autograd.functions.shape import reshape, squeeze
from gpunn.autograd.mode import state
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.quiet import quiet


def _kept(shape, axes) -> tuple[int, ...]:
    """`shape` with size 1 at `axes`."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


class Sum(Function):
    """The sum over axes"""

    widens = True

    def forward(self, x, axes, keepdims):
        self.shape, self.axes = x.shape, axes
        dtype = np.int64 if x.dtype.kind in "iub" else x.dtype
        return x.sum(axis=axes, keepdims=keepdims, dtype=dtype)

    def backward(self, grad):
        grad = grad.reshape(_kept(self.shape, self.axes))
        return array_xp(grad).broadcast_to(grad, self.shape)


class Mean(Function):
    """The mean over axes"""

    widens = True

    def forward(self, x, axes, keepdims):
        self.shape, self.axes = x.shape, axes
        total = x.sum(axis=axes, keepdims=keepdims)
        self.count = x.size // total.size if x.size else 0
        if not self.count:
            return total * x.dtype.type(np.nan)  # the mean of nothing
        return total / self.count

    def backward(self, grad):
        grad = (grad / (self.count or 1)).reshape(_kept(self.shape, self.axes))
        return array_xp(grad).broadcast_to(grad, self.shape)


class Variance(Function):
    """sum((x - mean)^2) / (n - correction); the gradient is g 2 (x - mean) / (n - correction)"""

    widens = True

    def forward(self, x, axes, correction, keepdims):
        self.shape, self.axes = x.shape, axes
        centred = x - x.mean(axis=axes, keepdims=True)
        out = (centred * centred).sum(axis=axes, keepdims=keepdims)
        count = x.size // out.size if out.size else 0
        self.freedom = np.maximum(count - correction, 0)
        self.save(centred)
        with quiet():
            return (out / np.float64(self.freedom)).astype(x.dtype)

    def backward(self, grad):
        (centred,) = self.saved
        with quiet():
            factor = grad.dtype.type(np.float64(2) / self.freedom)
            return centred * (grad.reshape(_kept(self.shape, self.axes)) * factor)


class Prod(Function):
    """The product over axes; the gradient of x_i is the product of the others"""

    widens = True

    def forward(self, x, axes, keepdims):
        self.axes = axes
        self.save(x)
        return x.prod(axis=axes, keepdims=keepdims)

    def backward(self, grad):
        (x,) = self.saved
        xp = array_xp(x)
        kept = tuple(axis for axis in range(x.ndim) if axis not in self.axes)
        order = kept + self.axes
        rows = x.transpose(order).reshape(*(x.shape[axis] for axis in kept), -1)
        # Products of all before and of all after: no division, so zeros need no special case.
        before, after = xp.ones_like(rows), xp.ones_like(rows)
        before[..., 1:] = xp.cumprod(rows[..., :-1], axis=-1)
        after[..., :-1] = xp.cumprod(rows[..., :0:-1], axis=-1)[..., ::-1]
        others = (before * after).reshape([x.shape[axis] for axis in order])
        others = others.transpose(np.argsort(order).tolist())
        return others * grad.reshape(_kept(x.shape, self.axes))


class Extremum(Function):
    """The largest or smallest over axes; equal ones share the gradient evenly"""

    widens = True

    def forward(self, x, axes, keepdims, largest):
        self.axes = axes
        out = (x.max if largest else x.min)(axis=axes, keepdims=keepdims)
        self.save(x, out)
        return out

    def backward(self, grad):
        x, out = self.saved
        kept = _kept(x.shape, self.axes)
        chosen = x == out.reshape(kept)
        share = grad.reshape(kept) / chosen.sum(axis=self.axes, keepdims=True)
        return (chosen * share).astype(x.dtype, copy=False)


class Pick(Function):
    """The elements at `index` along one axis; the gradient goes back to just those"""

    def forward(self, x, index, axis):
        self.shape, self.axis = x.shape, axis
        self.save(index)
        return array_xp(x).take_along_axis(x, index, axis)

    def backward(self, grad):
        (index,) = self.saved
        xp = array_xp(grad)
        out = xp.zeros(self.shape, grad.dtype)
        xp.put_along_axis(out, index, grad, self.axis)
        return out


class EuclideanNorm(Function):
    """sqrt(sum x^2); the gradient is g x / norm, and 0 where the norm is 0"""

    widens = True

    def forward(self, x, axes, keepdims):
        self.axes = axes
        out = array_xp(x).sqrt((x * x).sum(axis=axes, keepdims=keepdims))
        self.save(x, out)
        return out

    def backward(self, grad):
        x, out = self.saved
        kept = _kept(x.shape, self.axes)
        out = out.reshape(kept)
        return x * (grad.reshape(kept) / array_xp(x).where(out == 0, x.dtype.type(np.inf), out))


class Cumsum(Function):
    """Running sums along an axis; the gradient is the running sum from the other end"""

    widens = True

    def forward(self, x, axis):
        self.axis = axis
        return x.cumsum(axis=axis)

    def backward(self, grad):
        xp = array_xp(grad)
        return xp.flip(xp.flip(grad, self.axis).cumsum(axis=self.axis), self.axis)


# ---- public functions ---------------------------------------------------------------------------


def sum(
    input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: DTypeLike = None
) -> Tensor:
    """The sum over `dim`. Integers and booleans are summed in int64, 16-bit floats in float32."""
    if dtype is not None:
        input = cast(input, as_dtype(dtype))
    elif state.low is not None:
        input = widened(input)
    return Sum.apply(input, normal_dims("sum", dim, input.ndim), keepdim)


def mean(
    input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: DTypeLike = None
) -> Tensor:
    """The mean over `dim`; NaN for no elements. Raises TypeError for integers, as PyTorch does."""
    if dtype is not None:
        input = cast(input, as_dtype(dtype))
    elif state.low is not None:
        input = widened(input)
    if not is_float(input.dtype):
        raise TypeError(
            f"mean: input has dtype {input.dtype} (shape {input.shape}); expected a floating one. "
            "Convert it with .float()."
        )
    return Mean.apply(input, normal_dims("mean", dim, input.ndim), keepdim)


def var(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The variance over `dim`, divided by n - 1 (`unbiased`) or n, or n - `correction`."""
    if correction is None:
        correction = int(unbiased)
    if state.low is not None:
        input = widened(input)
    axes = normal_dims("var", dim, input.ndim)
    return Variance.apply(as_float(input), axes, correction, keepdim)


def std(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The standard deviation: the square root of `var`."""
    return sqrt(var(input, dim, unbiased, keepdim, correction=correction))


def prod(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The product over `dim`."""
    if state.low is not None:
        input = widened(input)
    return Prod.apply(input, normal_dims("prod", dim, input.ndim), keepdim)


class Extreme(NamedTuple):
    """What `max` and `min` over one dimension give."""

    values: Tensor
    indices: Tensor


def _require_elements(name: str, input: Tensor, dim) -> None:
    """Raise the error for the largest of nothing."""
    if dim is None or input.ndim == 0:
        count, where = input.numel(), ""
    else:
        count, where = input.shape[normal_dim(name, dim, input.ndim)], f" along dim {dim}"
    if count == 0:
        raise ValueError(
            f"{name}: input has no elements{where} (shape {input.shape}); expected at least one"
        )


def _extreme(name: str, input: Tensor, dim, keepdim: bool, largest: bool):
    _require_elements(name, input, dim)
    if dim is None:
        return Extremum.apply(input, tuple(range(input.ndim)), False, largest)
    indices = _arg(name, input, dim, True, largest)
    dim = normal_dim(name, dim, input.ndim)
    if input.ndim == 0:
        return Extreme(reshape(input, ()), indices)
    values = Pick.apply(input, indices._array, dim)
    if not keepdim:
        values, indices = values.squeeze(dim), indices.squeeze(dim)
    return Extreme(values, indices)


def _arg(name: str, input: Tensor, dim, keepdim: bool, largest: bool) -> Tensor:
    _require_elements(name, input, dim)
    array = wide(input._array)
    find = array.argmax if largest else array.argmin
    if dim is None or array.ndim == 0:
        index = find()
        shape = (1,) * array.ndim if keepdim else ()
        return wrap(input._xp.asarray(index, np.int64).reshape(shape))
    dim = normal_dim(name, dim, array.ndim)
    index = find(axis=dim)
    index = input._xp.asarray(index, np.int64)
    return wrap(input._xp.expand_dims(index, dim) if keepdim else index)


@overload
def max(input: Tensor, dim: None = None, keepdim: bool = False) -> Tensor: ...
@overload
def max(input: Tensor, dim: int, keepdim: bool = False) -> Extreme: ...
@overload
def max(input: Tensor, dim: Tensor, keepdim: bool = False) -> Tensor: ...
def max(input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False) -> Tensor | Extreme:
    """The largest element; with `dim` a pair (values, indices); with a Tensor `maximum`."""
    if isinstance(dim, Tensor):
        from gpunn.autograd.functions.arithmetic import maximum

        return maximum(input, dim)
    return _extreme("max", input, dim, keepdim, True)


@overload
def min(input: Tensor, dim: None = None, keepdim: bool = False) -> Tensor: ...
@overload
def min(input: Tensor, dim: int, keepdim: bool = False) -> Extreme: ...
@overload
def min(input: Tensor, dim: Tensor, keepdim: bool = False) -> Tensor: ...
def min(input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False) -> Tensor | Extreme:
    """The smallest element; with `dim` a pair (values, indices); with a Tensor `minimum`."""
    if isinstance(dim, Tensor):
        from gpunn.autograd.functions.arithmetic import minimum

        return minimum(input, dim)
    return _extreme("min", input, dim, keepdim, False)


def amax(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The largest over `dim` (an int or several); ties share the gradient."""
    return Extremum.apply(input, normal_dims("amax", dim, input.ndim), keepdim, True)


def amin(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The smallest over `dim` (an int or several); ties share the gradient."""
    return Extremum.apply(input, normal_dims("amin", dim, input.ndim), keepdim, False)


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The int64 index of the largest (the first among equals); without `dim` of all elements."""
    return _arg("argmax", input, dim, keepdim, True)


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The int64 index of the smallest, of the first one among equals."""
    return _arg("argmin", input, dim, keepdim, False)


def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether some element is true (not zero)."""
    axes = normal_dims("any", dim, input.ndim)
    return wrap(input._xp.asarray((input._array != 0).any(axis=axes, keepdims=keepdim)))


def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether all elements are true (not zero)."""
    axes = normal_dims("all", dim, input.ndim)
    return wrap(input._xp.asarray((input._array != 0).all(axis=axes, keepdims=keepdim)))


def norm(input: Tensor, p: float = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """(sum |x|^p)^(1/p) over `dim`; p may be infinity."""
    if state.low is not None:
        input = widened(input)
    if p == np.inf:
        return amax(abs(input), dim, keepdim)
    if p == 1:
        return sum(abs(input), dim, keepdim)
    if p == 2:
        axes = normal_dims("norm", dim, input.ndim)
        return EuclideanNorm.apply(as_float(input), axes, keepdim)
    return sum(abs(input) ** p, dim, keepdim) ** (1.0 / p)


def cumsum(input: Tensor, dim: int) -> Tensor:
    """Running sums along `dim`."""
    if state.low is not None:
        input = widened(input)
    return Cumsum.apply(input, normal_dim("cumsum", dim, input.ndim))


def logsumexp(input: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`, without overflow."""
    from gpunn.autograd.functions.elementwise import exp, log

    if state.low is not None:
        input = widened(input)
    input = as_float(input)
    axes = normal_dims("logsumexp", dim, input.ndim)
    with quiet():
        top = wide(input._array).max(axis=axes, keepdims=True)
    top = wrap(input._xp.where(input._xp.isfinite(top), top, 0).astype(input.dtype))
    total = log(sum(exp(input - top), axes, True)) + top
    return total if keepdim else squeeze(total, axes)


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """out[..., i, ...] = input[..., index[..., i, ...], ...] along `dim`.

    `index` is int64 with as many dimensions as `input`; sizes off `dim` must be equal.
    """
    dim = normal_dim("gather", dim, input.ndim)
    expected = input.shape[:dim] + (index.shape[dim : dim + 1] or (0,)) + input.shape[dim + 1 :]
    if index.shape != expected:
        raise ValueError(
            f"gather: index has shape {index.shape}; expected {expected}, the shape of input but "
            f"for dim {dim}"
        )
    return Gather.apply(input, index._array, dim)


class Gather(Pick):
    """Like Pick, for indices that may repeat: their gradients add up"""

    def backward(self, grad):
        from gpunn.autograd.functions.indexing import scatter_add

        (index,) = self.saved
        xp, ndim = array_xp(grad), index.ndim
        places = [
            xp.arange(size).reshape((1,) * axis + (size,) + (1,) * (ndim - 1 - axis))
            for axis, size in enumerate(index.shape)
        ]
        places[self.axis] = index
        out = xp.zeros(self.shape, grad.dtype)
        scatter_add(out, tuple(places), grad)
        return out
