"""Picking elements by their places, writing to places, and order."""

from __future__ import annotations

import numpy as np

import gpunn
from gpunn.autograd import mode
from gpunn.autograd.function import Function
from gpunn.autograd.functions import arithmetic
from gpunn.autograd.functions.common import array_xp
from gpunn.autograd.functions.embedding import embedding
from gpunn.autograd.functions.indexing import scatter_add
from gpunn.autograd.functions.reduction import Pick
from gpunn.autograd.functions.reduction import gather as gather_along
from gpunn.autograd.functions.shape import clone, moveaxis, reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import to_numpy
from gpunn.errors import UnsupportedError
from gpunn.onnx.operators.common import along, axis_of, floating, like, plain, scalar
from gpunn.onnx.operators.registry import Node, operator


def _forward(index: Tensor, size: int) -> Tensor:
    """Indices counted from the front, as int64."""
    array = index._array
    if type(array) is np.ndarray and array.size and int(array.min()) < -size:
        raise IndexError(f"index {int(array.min())} is out of range for size {size}")
    return wrap(array_xp(array).where(array < 0, array + size, array).astype(np.int64))


@operator("Gather", raw=True, context=True)
def gather(node: Node):
    axis = node.int("axis", 0)

    def run(context, data, index):
        if isinstance(data, np.ndarray) and isinstance(index, np.ndarray):
            return np.take(data, index, axis_of(axis, data.ndim))
        data = context.tensor(data)
        at = axis_of(axis, data.ndim)
        if isinstance(index, np.ndarray) and index.size == 1:
            part = data[along(at, int(index.reshape(-1)[0]))]
            sizes = data.shape[:at] + index.shape + data.shape[at + 1 :]
            return part if index.ndim == 0 else reshape(part, *sizes)
        index = _forward(context.tensor(index), data.shape[at])
        if at == 0 and data.ndim == 2 and floating(data) and index.ndim:
            return embedding(index, data)
        return data[along(at, index)]

    return run


def _grid(shape, axis: int, index, xp) -> tuple:
    """The index that takes `index` along an axis and each element's own place elsewhere."""
    places = [
        xp.arange(size).reshape((1,) * at + (size,) + (1,) * (len(shape) - 1 - at))
        for at, size in enumerate(shape)
    ]
    places[axis] = index
    return tuple(places)


@operator("GatherElements", 11)
def gather_elements(node: Node):
    axis = node.int("axis", 0)

    def run(data, index):
        at = axis_of(axis, data.ndim)
        index = _forward(index, data.shape[at])
        corner = tuple(
            slice(None) if dim == at else slice(0, size) for dim, size in enumerate(index.shape)
        )
        return gather_along(data[corner], at, index)

    return run


def _places(index: Tensor, shape, batch: int = 0) -> tuple:
    """The columns of an index (..., k) as the index arrays of k dimensions of `shape`."""
    xp, array = index._xp, index._array
    lead = tuple(
        xp.arange(shape[at]).reshape((1,) * at + (-1,) + (1,) * (array.ndim - 2 - at))
        for at in range(batch)
    )
    columns = tuple(
        _forward(wrap(array[..., k]), shape[batch + k])._array for k in range(array.shape[-1])
    )
    return lead + columns


@operator("GatherND", 11)
def gather_nd(node: Node):
    batch = node.int("batch_dims", 0)

    def run(data, index):
        places = _places(index, data.shape, batch)
        return data[tuple(map(wrap, places))] if places else data

    return run


# ---- scatter -------------------------------------------------------------------------------------


class ScatterAdd(Function):
    """x with updates added at places, of which some may be named twice"""

    def forward(self, x, updates, key):
        self.key = key
        out = x.copy()
        scatter_add(out, key, updates)
        return out

    def backward(self, grad):
        return grad, grad[self.key]


_UFUNCS = {"mul": "multiply", "max": "maximum", "min": "minimum", "add": "add"}


def _written(node: Node, data: Tensor, key: tuple, updates: Tensor, how: str) -> Tensor:
    """`data` with `updates` written, added, … at `key`."""
    if how == "none":
        out = clone(data)
        out[tuple(map(wrap, key))] = updates
        return out
    if how == "add" and floating(data):
        return ScatterAdd.apply(data, updates, key)
    if mode.state.enabled and (data.requires_grad or updates.requires_grad):
        raise UnsupportedError(
            f"{node}: reduction {how!r} has no gradient in gpunn; run it inside no_grad()"
        )
    # Equal places are combined one after the other, which CuPy does not offer for all of these.
    out = to_numpy(data._array).copy()
    getattr(np, _UFUNCS[how]).at(out, tuple(map(to_numpy, key)), to_numpy(updates._array))
    return like(out, data)


_REDUCTIONS = ("none", "add", "mul", "max", "min")


@operator("Scatter ScatterElements", 9)
def scatter_elements(node: Node):
    axis, how = node.int("axis", 0), node.choice("reduction", "none", _REDUCTIONS)

    def run(data, index, updates):
        at = axis_of(axis, data.ndim)
        index = _forward(index, data.shape[at])
        key = _grid(index.shape, at, index._array, index._xp)
        return _written(node, data, key, updates, how)

    return run


@operator("ScatterND", 11)
def scatter_nd(node: Node):
    how = node.choice("reduction", "none", _REDUCTIONS)
    return lambda data, index, updates: _written(
        node, data, _places(index, data.shape), updates, how
    )


@operator("TensorScatter", 24)
def tensor_scatter(node: Node):
    axis, wraps = node.int("axis", -2), node.choice("mode", "linear", ("linear", "circular"))

    def run(cache, update, start=None):
        at, xp = axis_of(axis, cache.ndim), cache._xp
        steps = xp.arange(update.shape[at])
        first = xp.zeros(cache.shape[0], np.int64) if start is None else start._array
        rows = first[:, None] + steps
        if wraps == "circular":
            rows = rows % cache.shape[at]
        rows = rows.reshape(rows.shape[0], *(1,) * (at - 1), -1, *(1,) * (cache.ndim - 1 - at))
        key = _grid(update.shape, at, rows, xp)
        return _written(node, cache, key, update, "none")

    return run


# ---- choosing ------------------------------------------------------------------------------------


@operator("OneHot", 9, arguments=(1,))
def one_hot(node: Node):
    axis = node.int("axis", -1)

    def run(index, depth, values):
        depth = int(scalar(depth))
        xp, array = index._xp, index._array.astype(np.int64)
        array = xp.where(array < 0, array + depth, array)
        hot = wrap(array[..., None] == xp.arange(depth))
        found = arithmetic.where(hot, values[1], values[0])
        return moveaxis(found, -1, axis_of(axis, found.ndim))

    return run


@operator("NonZero", 9, settled=False)
def non_zero(node: Node):
    return lambda x: wrap(x._xp.stack(x._xp.nonzero(x._array), axis=0).astype(np.int64))


@operator("Compress", 9, arguments=(1,))
def compress(node: Node):
    axis = node.int("axis")

    def run(x, condition):
        kept = np.flatnonzero(condition.astype(np.bool_))
        if axis is None:
            return reshape(x, -1)[like(kept, x)]
        return x[along(axis_of(axis, x.ndim), like(kept, x))]

    return run


@operator("ReverseSequence", 10, arguments=(1,))
def reverse_sequence(node: Node):
    batch, time = node.int("batch_axis", 1), node.int("time_axis", 0)

    def run(x, lengths):
        steps = np.arange(x.shape[time])
        rows = np.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)  # (B, T)
        rows = rows if batch < time else rows.T
        rows = rows.reshape(tuple(
            size if at in (batch, time) else 1 for at, size in enumerate(x.shape)
        ))  # fmt: skip
        key = _grid(x.shape, time, like(rows, x)._array, x._xp)
        return x[tuple(map(wrap, key))]

    return run


# ---- order ---------------------------------------------------------------------------------------


@operator("TopK", 1, 9)
def top_k_attribute(node: Node):
    axis, k = node.int("axis", -1), node.int("k")
    return lambda x: _top(x, k, axis, True)


@operator("TopK", 10, arguments=(1,))
def top_k(node: Node):
    axis, largest = node.int("axis", -1), node.flag("largest", True)
    node.skip("sorted")  # they always come sorted, which "any order" allows
    return lambda x, k: _top(x, int(scalar(k)), axis, largest)


def _top(x: Tensor, k: int, axis: int, largest: bool):
    at = axis_of(axis, x.ndim)
    found = gpunn.argsort(x, at, descending=largest)[along(at, slice(0, k))]
    return Pick.apply(x, found._array, at), found


def _arg(node: Node, largest: bool):
    axis, keep = node.int("axis", 0), node.flag("keepdims", True)
    last = node.flag("select_last_index")
    find = gpunn.argmax if largest else gpunn.argmin

    def run(x):
        at = axis_of(axis, x.ndim)
        if not last:
            return find(x, at, keep)
        return x.shape[at] - 1 - find(x.flip(at), at, keep)

    return run


@operator("ArgMax")
def arg_max(node: Node):
    return _arg(node, True)


@operator("ArgMin")
def arg_min(node: Node):
    return _arg(node, False)


@operator("Unique", 11, settled=False)
def unique(node: Node):
    axis, ordered = node.int("axis"), node.flag("sorted", True)

    def run(x):
        # Its size depends on the values, so that one has to wait for them anyway.
        array = to_numpy(x._array)
        if axis is None:
            array = array.reshape(-1)
        at = axis_of(0 if axis is None else axis, array.ndim)
        values, first, inverse, counts = np.unique(array, True, True, True, axis=at)
        inverse = inverse.reshape(-1)
        if not ordered:
            order = np.argsort(first)
            place = np.argsort(order)
            values, first, counts = values.take(order, at), first[order], counts[order]
            inverse = place[inverse]
        found = (a.astype(np.int64) for a in (first, inverse, counts))
        return like(values, x), *(like(a, x) for a in found)

    return run


# ---- running sums --------------------------------------------------------------------------------


def _running(node: Node, total):
    exclusive, backwards = node.flag("exclusive"), node.flag("reverse")
    neutral = 0 if node.op == "CumSum" else 1

    def run(x, axis):
        at = axis_of(int(scalar(axis)), x.ndim)
        x = x.flip(at) if backwards else x
        if exclusive:
            edge = x[along(at, slice(0, 1))]
            first = wrap(edge._xp.full(edge.shape, neutral, x.dtype))
            x = gpunn.cat([first, x[along(at, slice(0, -1))]], at)
        out = total(x, at)
        return out.flip(at) if backwards else out

    return run


@operator("CumSum", 11, arguments=(1,))
def cumulative_sum(node: Node):
    def total(x, at):
        if floating(x):
            return gpunn.cumsum(x, at)
        return plain(lambda xp, a: xp.cumsum(a, at), x)

    return _running(node, total)


@operator("CumProd", 26, arguments=(1,))
def cumulative_product(node: Node):
    def total(x, at):
        if not floating(x):
            return plain(lambda xp, a: xp.cumprod(a, at), x)
        parts = list(x.split(1, at))
        for step in range(1, len(parts)):
            parts[step] = parts[step - 1] * parts[step]
        return gpunn.cat(parts, at)

    return _running(node, total)
