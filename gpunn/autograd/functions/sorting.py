"""Order: sort argsort topk unique bincount. NaN counts as larger than every number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.autograd.functions.common import array_xp, normal_dim
from gpunn.autograd.functions.reduction import Pick
from gpunn.autograd.functions.shape import narrow, reshape
from gpunn.autograd.tensor import Tensor, wrap


class Sorted(NamedTuple):
    """Values, and where each stood."""

    values: Tensor
    indices: Tensor


def _order(array, dim: int, descending: bool):
    """The int64 indices that sort `array` along `dim`; equal ones stay in their order."""
    xp = array_xp(array)
    if descending:  # from the other end, so that equal ones keep their order here too
        array = xp.flip(array, dim)
    order = xp.argsort(array, axis=dim, kind="stable").astype(np.int64, copy=False)
    return xp.flip(array.shape[dim] - 1 - order, dim) if descending else order


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Sorted:
    """(values, indices) in order along `dim`. Always stable; gradients go back to their places."""
    if input.ndim == 0:
        return Sorted(reshape(input, ()), argsort(input))
    dim = normal_dim("sort", dim, input.ndim)
    indices = _order(wide(input._array), dim, descending)
    return Sorted(Pick.apply(input, indices, dim), wrap(indices))


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices of `sort`."""
    if input.ndim == 0:
        return wrap(input._xp.zeros((), np.int64))
    return wrap(_order(wide(input._array), normal_dim("argsort", dim, input.ndim), descending))


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """The `k` largest (or smallest) along `dim` and their indices, in order.

    Raises ValueError for a k outside 0 … the size of `dim`.
    """
    dim = normal_dim("topk", dim, input.ndim)
    if not 0 <= k <= input.shape[dim]:
        raise ValueError(
            f"topk: k is {k}; expected 0 to {input.shape[dim]}, the size of dim {dim} of a tensor "
            f"of shape {input.shape}"
        )
    indices = narrow(wrap(_order(wide(input._array), dim, largest)), dim, 0, k)
    return Sorted(Pick.apply(input, indices._array, dim), indices)


def unique(input: Tensor) -> Tensor:
    """The different elements in ascending order, as one dimension; no gradient."""
    return wrap(input._xp.unique(wide(input._array)).astype(input.dtype, copy=False))


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often 0, 1, 2 … occur in a 1-D integer tensor, or the sum of their `weights`.

    Raises TypeError unless `input` holds integers, ValueError for other shapes and negative ones.
    """
    array = input._array
    if array.dtype.kind not in "iu":
        raise TypeError(f"bincount: input has dtype {array.dtype}; expected integers")
    if array.ndim != 1 or (array.size and int(array.min()) < 0):
        raise ValueError(
            f"bincount: input must be 1-D and hold no negative numbers; its shape is {array.shape}"
        )
    given = None if weights is None else weights._array
    counts = input._xp.bincount(array, given, minlength)
    return wrap(counts.astype(np.int64 if weights is None else weights.dtype, copy=False))
