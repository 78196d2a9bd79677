"""Operations that write to their tensor: += add_ mul_ clamp_ copy_ fill_ zero_ …

A recorded write keeps the tensor's memory and gives it a new history; an unrecorded one (no
gradient involved, or inside `no_grad`) is plain arithmetic on the memory. Both count as a write,
so that a gradient which needed the old values says so instead of being wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import numpy as np

from gpunn.autograd import mode
from gpunn.autograd.aliases import Operand
from gpunn.autograd.dtypes import is_float
from gpunn.autograd.function import check_fresh
from gpunn.autograd.functions import activation, arithmetic, elementwise
from gpunn.autograd.functions.indexing import (
    adopt,
    check_tracked_write,
    check_writable,
    setitem,
)
from gpunn.autograd.random import Generator
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device.quiet import quiet

P = ParamSpec("P")


def _writes(
    name: str, compute: Callable[Concatenate[Any, P], Tensor], ufunc: np.ufunc | None = None
) -> Callable[Concatenate[Tensor, P], Tensor]:
    """The method `name`, which writes ``compute(self, ...)`` into self and returns self."""

    def method(self: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        array = self._array
        if not mode.state.enabled or not (
            self._requires_grad or any(isinstance(a, Tensor) and a._requires_grad for a in args)
        ):
            check_writable(name, self)
            if ufunc is None or kwargs or not _write_directly(ufunc, array, args[0]):
                with mode.no_grad():
                    result = compute(self, *args, **kwargs)
                array[...] = _fitting(name, self, result)
            self._cell[0] += 1
            return self
        check_tracked_write(name, self)
        result = compute(_before(self, name), *args, **kwargs)
        array[...] = _fitting(name, self, result)
        adopt(self, result)
        return self

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"`{compute.__name__}` in place; returns the tensor itself."
    return method


def _before(tensor: Tensor, name: str) -> Tensor:
    """`tensor` as it is before the write, in memory of its own: a gradient may need that."""
    check_fresh(name, tensor)
    before = wrap(tensor._array.copy())
    before._node, before._requires_grad = tensor._node, tensor._requires_grad
    return before


def _write_directly(ufunc, array, other) -> bool:
    """The fast way, without a temporary: NumPy arrays of one floating type, or a Python number."""
    if type(array) is not np.ndarray or array.dtype not in (np.float32, np.float64):
        return False
    if isinstance(other, Tensor):
        other = other._array
        if type(other) is not np.ndarray or other.dtype != array.dtype:
            return False
        if other.shape != array.shape:
            return False
    elif type(other) is not float and type(other) is not int:
        return False
    with quiet():
        ufunc(array, other, out=array)
    return True


def _fitting(name: str, tensor: Tensor, result: Tensor):
    """The array of `result` if it can be stored in `tensor`, else an error."""
    if result.shape != tensor.shape:
        raise ValueError(
            f"{name}: the result has shape {result.shape}, the tensor {tensor.shape}; an operation "
            "in place cannot change the shape. Use the one without the underscore."
        )
    if is_float(result.dtype) and not is_float(tensor.dtype):
        raise TypeError(
            f"{name}: the result has dtype {result.dtype}, the tensor {tensor.dtype}; a fraction "
            "cannot be stored there. Convert the tensor with .float() first."
        )
    return result._array


add_ = _writes("add_", arithmetic.add, np.add)
sub_ = _writes("sub_", arithmetic.sub, np.subtract)
mul_ = _writes("mul_", arithmetic.mul, np.multiply)
div_ = _writes("div_", arithmetic.div, np.divide)
pow_ = _writes("pow_", arithmetic.pow)
remainder_ = _writes("remainder_", arithmetic.remainder)
neg_ = _writes("neg_", arithmetic.neg)
clamp_ = _writes("clamp_", elementwise.clamp)
exp_ = _writes("exp_", elementwise.exp)
sqrt_ = _writes("sqrt_", elementwise.sqrt)
abs_ = _writes("abs_", elementwise.abs)
relu_ = _writes("relu_", activation.relu)
sigmoid_ = _writes("sigmoid_", activation.sigmoid)
tanh_ = _writes("tanh_", activation.tanh)
masked_fill_ = _writes("masked_fill_", arithmetic.masked_fill)


def copy_(self: Tensor, src: Operand, non_blocking: bool = False) -> Tensor:
    """Write `src` (broadcast, cast, from any device) into this tensor; returns it."""
    if isinstance(src, Tensor) and src.device is not self.device:
        src = src.to(self.device)
    setitem(self, Ellipsis, src)
    return self


def fill_(self: Tensor, value: Operand) -> Tensor:
    """Write one number everywhere; returns the tensor."""
    setitem(self, Ellipsis, value)
    return self


def zero_(self: Tensor) -> Tensor:
    """Write zeros everywhere; returns the tensor."""
    return fill_(self, 0)


def uniform_(
    self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with uniform numbers from [a, b); returns the tensor."""
    return _refill(self, "uniform_", "uniform", a, b, generator)


def normal_(
    self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with normal numbers; returns the tensor."""
    return _refill(self, "normal_", "normal", mean, std, generator)


def _refill(
    tensor: Tensor, name: str, kind: str, first: float, second: float, generator: Generator | None
) -> Tensor:
    from gpunn.autograd.sampling import fill_random

    if mode.state.enabled and tensor._requires_grad:
        check_tracked_write(name, tensor)
        setitem(tensor, Ellipsis, 0)  # what stood here no longer counts
    check_writable(name, tensor)
    fill_random(tensor._array, kind, generator, first, second)
    tensor._cell[0] += 1
    return tensor
