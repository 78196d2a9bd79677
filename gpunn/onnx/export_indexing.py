"""Reading and writing by index: ints, slices, ellipsis, None, masks and integer arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.recording import Value
from gpunn.onnx.table import converts

_FAR = np.iinfo(np.int64).max


def _parts(key: Any, ndim: int) -> list:
    """One part for each axis (and each None), the ellipsis written out."""
    parts = list(key) if isinstance(key, tuple) and not _is_slice(key) else [key]
    used = sum(_axes_of(part) for part in parts)
    if Ellipsis not in [part for part in parts if not isinstance(part, Value)]:
        parts.append(Ellipsis)
    place = next(index for index, part in enumerate(parts) if part is Ellipsis)
    everything = (slice, None, None, None)
    full = [everything] * (ndim - used)
    rest = [part for part in parts[place + 1 :] if part is not Ellipsis]
    return parts[:place] + full + rest


def _is_slice(part: Any) -> bool:
    return isinstance(part, tuple) and len(part) == 4 and part[0] is slice


def _is_array(part: Any) -> bool:
    return isinstance(part, Value)


def _axes_of(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    if _is_array(part) and part.dtype == np.bool_:
        return len(part.shape)
    return 1


@converts("View", "Index", "numpy.getitem")
def _getitem(graph, call):
    x, key = call.arguments
    parts = _parts(key, len(x.shape))
    if any(isinstance(part, bool) for part in parts):
        graph.refuse("True or False as an index is not known here")
    edge, parts = _by_masks(graph, graph.edge(x), parts)
    edge, parts = _sliced(graph, edge, parts)
    if any(_is_array(part) for part in parts):
        edge, parts = _gathered(graph, edge, parts)
    added = [axis for axis, part in enumerate(parts) if part is None]
    return graph.op("Unsqueeze", edge, graph.ints(*added)) if added else edge


def _by_masks(graph, edge, parts):
    """Masks that are constants as the positions where they hold."""
    found = []
    for part in parts:
        if not (_is_array(part) and part.dtype == np.bool_):
            found.append(part)
        elif part.array is None:
            graph.refuse(
                "the number of elements that a mask picks depends on values. Use "
                "where(mask, x, other), which keeps the shape"
            )
        else:
            for index in part.array.nonzero():
                found.append(Value("constant", index.shape, index.dtype, array=index))
    return edge, found


def _sliced(graph, edge, parts):
    """Slices and ints applied; the ints' axes are gone, an int array's part stays."""
    starts, ends, axes, steps, dropped, left, axis = [], [], [], [], [], [], 0
    for part in parts:
        if part is None:
            left.append(None)
            continue
        if _is_array(part):
            left.append(part)
        elif _is_slice(part):
            _, start, stop, step = part
            step = 1 if step is None else step
            if (start, stop, step) != (None, None, 1):
                starts.append((0 if step > 0 else _FAR) if start is None else start)
                ends.append((_FAR if step > 0 else -_FAR) if stop is None else stop)
                axes.append(axis)
                steps.append(step)
            left.append(part)
        else:
            starts.append(part)
            ends.append(_FAR if part == -1 else _after(part))
            axes.append(axis)
            steps.append(1)
            dropped.append(axis)
        axis += 1
    if axes:
        edge = graph.op("Slice", edge, graph.sizes(starts), graph.sizes(ends),
                        graph.ints(*axes), graph.ints(*steps))  # fmt: skip
    if dropped:
        edge = graph.op("Squeeze", edge, graph.ints(*dropped))
    return edge, left


def _after(number):
    """The number one larger, also of one that varies."""
    if not isinstance(number, Varying):
        return number + 1
    terms = None
    if number.terms is not None:
        factors = dict(number.terms)
        factors[()] = factors.get((), 0) + 1
        terms = tuple((names, factor) for names, factor in factors.items() if factor)
    return Varying(tuple(value + 1 for value in number.values), terms)


def _gathered(graph, edge, parts):
    """Integer arrays applied; in the list their axes are replaced by those of the result."""
    kept = [part for part in parts if part is not None]
    places = [axis for axis, part in enumerate(kept) if _is_array(part)]
    arrays = [kept[axis] for axis in places]
    everything = (slice, None, None, None)
    if len(places) == 1:
        edge = graph.op("Gather", edge, _index(graph, arrays[0]), axis=places[0])
        position = next(i for i, part in enumerate(parts) if _is_array(part))
        count = len(arrays[0].shape)
        return edge, parts[:position] + [everything] * count + parts[position + 1 :]
    count = max(len(array.shape) for array in arrays)
    order = places + [axis for axis in range(len(kept)) if axis not in places]
    edge = graph.transpose(edge, order)
    edge = graph.op("GatherND", edge, _positions(graph, arrays))
    positions = [i for i, part in enumerate(parts) if _is_array(part)]
    together = positions == list(range(positions[0], positions[0] + len(positions)))
    others = [part for part in parts if not _is_array(part)]
    if not together:
        return edge, [everything] * count + others
    before = sum(part is not None for part in parts[: positions[0]])
    total = count + len(kept) - len(places)
    order = [*range(count, count + before), *range(count), *range(count + before, total)]
    edge = graph.transpose(edge, order)
    front, back = parts[: positions[0]], parts[positions[-1] + 1 :]
    return edge, front + [everything] * count + back


def _index(graph, array) -> str:
    """An index array as runtimes take it."""
    fits = array.dtype in (np.int32, np.int64)
    return graph.edge(array) if fits else graph.cast(graph.edge(array), np.int64)


def _positions(graph, arrays) -> str:
    """Index arrays, broadcast, side by side in a new last axis."""
    edges = [graph.cast(graph.edge(array), np.int64, array.dtype) for array in arrays]
    if len({array.shape for array in arrays}) > 1:
        total = edges[0]
        for edge in edges[1:]:
            total = graph.op("Add", total, edge)
        shape = graph.op("Shape", total)
        edges = [graph.op("Expand", edge, shape) for edge in edges]
    return graph.op("Concat", *(graph.op("Unsqueeze", e, graph.ints(-1)) for e in edges), axis=-1)


# ---- writing -------------------------------------------------------------------------------------


@converts("setitem", "SetIndex")
def _setitem(graph, call):
    x, value, key = call.arguments
    value_edge = graph.operand(value, x.dtype)
    rank = len(value.shape) if isinstance(value, Value) else 0
    parts = _parts(key, len(x.shape))
    masks = [part for part in parts if _is_array(part) and part.dtype == np.bool_]
    if masks and rank == 0 and len(masks) == 1 and parts[0] is masks[0]:
        return _through_mask(graph, x, masks[0], value_edge)
    if any(_is_array(part) or part is None for part in parts) or any(
        _is_slice(part) and part[3] not in (None, 1) for part in parts
    ):
        arrays = [part for part in parts if _is_array(part)]
        if arrays and _leads(arrays, parts):
            return _rows_written(graph, x, value_edge, rank, arrays)
        return _scattered(graph, x, value, value_edge, key)
    return _into_parts(graph, graph.edge(x), x.shape, value_edge, rank, parts, 0)


def _through_mask(graph, x, mask, value: str) -> str:
    edge, missing = graph.edge(mask), len(x.shape) - len(mask.shape)
    if missing:
        axes = range(len(mask.shape), len(x.shape))
        edge = graph.op("Unsqueeze", edge, graph.ints(*axes))
    from gpunn.onnx.export_arithmetic import where

    return where(graph, edge, value, graph.edge(x), x.dtype)


def _into_parts(graph, edge, shape, value, rank, parts, axis) -> str:
    """What lies before the part, the part written, and what lies behind, along one axis."""
    while axis < len(parts) and parts[axis] == (slice, None, None, None):
        axis += 1
    if axis == len(parts):
        value = _lifted(graph, value, rank, parts)
        return graph.op("Expand", value, graph.op("Shape", edge))
    part = parts[axis]
    if _is_slice(part):
        start, stop = _ends(part, shape[axis])
    else:
        start, stop = part, _FAR if part == -1 else _after(part)

    def cut(first, last):
        return graph.op("Slice", edge, graph.size(first), graph.size(last), graph.ints(axis))

    inner = _into_parts(graph, cut(start, stop), shape, value, rank, parts, axis + 1)
    pieces = [inner]
    if start != 0:
        pieces.insert(0, cut(0, start))
    if stop != _FAR:
        pieces.append(cut(stop, _FAR))
    return inner if len(pieces) == 1 else graph.op("Concat", *pieces, axis=axis)


def _ends(part, size) -> tuple:
    """Where a slice begins and ends; an empty one ends where it begins."""
    start, stop = 0 if part[1] is None else part[1], _FAR if part[2] is None else part[2]
    if any(isinstance(number, Varying) for number in (start, stop)):
        return start, stop
    if not isinstance(size, Varying):
        first, last, _ = slice(start, stop).indices(size)
        return first, _FAR if stop == _FAR else max(first, last)
    return start, max(start, stop) if (start < 0) == (stop < 0) else stop


def _lifted(graph, value, rank, parts) -> str:
    """The value with axes of size 1 where the key has ints."""
    kept = [axis for axis, part in enumerate(parts) if _is_slice(part)]
    if rank > len(kept):
        value = graph.op("Squeeze", value, graph.ints(*range(rank - len(kept))))
        rank = len(kept)
    if not rank:
        return value
    first = kept[len(kept) - rank]
    missing = [axis - first for axis in range(first, len(parts)) if axis not in kept]
    return graph.op("Unsqueeze", value, graph.ints(*missing)) if missing else value


def _leads(arrays, parts) -> bool:
    """Whether index arrays stand in front, and only whole axes behind them."""
    count = len(arrays)
    whole = all(part == (slice, None, None, None) for part in parts[count:])
    return whole and all(map(_is_array, parts[:count])) and all(
        array.dtype != np.bool_ for array in arrays
    )  # fmt: skip


def _rows_written(graph, x, value: str, rank: int, arrays) -> str:
    """``x[i, j] = value``: whole rows at the places that index arrays name."""
    places = _positions(graph, arrays)
    lead = graph.op("Shape", places, start=0, end=-1)
    shape = graph.op("Concat", lead, graph.sizes(x.shape[len(arrays) :]), axis=0)
    dimensions = max(len(array.shape) for array in arrays) + len(x.shape) - len(arrays)
    if rank > dimensions:
        value = graph.op("Squeeze", value, graph.ints(*range(rank - dimensions)))
    return graph.op("ScatterND", graph.edge(x), places, graph.op("Expand", value, shape))


def _scattered(graph, x, value, value_edge: str, key) -> str:
    """Any key of constants on a tensor of fixed shape: by the numbers of the elements."""
    constant = _constant_key(graph, key)
    if any(isinstance(size, Varying) for size in x.shape):
        graph.refuse(
            "a write by index arrays, steps or None needs a tensor of fixed shape. Keep its axes "
            "fixed, or use where()"
        )
    numbers = np.arange(int(np.prod(x.shape, dtype=np.int64))).reshape(x.shape)[constant]
    wanted = graph.ints(*numbers.shape)
    if isinstance(value, Value) and len(value.shape) > numbers.ndim:
        value_edge = graph.reshape(value_edge, value.shape[len(value.shape) - numbers.ndim :])
    values = graph.op("Expand", value_edge, wanted) if numbers.ndim else value_edge
    flat = graph.op(
        "ScatterElements", graph.reshape(graph.edge(x), [-1]),
        graph.constant(numbers.reshape(-1).astype(np.int64)), graph.reshape(values, [-1]),
    )  # fmt: skip
    return graph.reshape(flat, x.shape)


def _constant_key(graph, key):
    parts = key if isinstance(key, tuple) and not _is_slice(key) else (key,)
    found: list[Any] = []
    for part in parts:
        if _is_slice(part):
            part = slice(*part[1:])
        elif _is_array(part):
            if part.array is None:
                graph.refuse("a write to places that depend on the inputs is not known here")
            part = part.array
        found.append(part)
    return tuple(found)
