"""How a reduction over axes is cut into launches: passes, parts, and the joining of their states.

See ``kernels/cuda/reduce.cu`` for the kernels. A reduction over axes that are not neighbours is
done over the longest of them first; each later pass joins the states that the one before left. That
reads the array once, where moving the axes together first would read, write and read it again.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.primitives.rows import row_grid, row_group
from gpunn.primitives.samples import FLOATING, accumulator_dtype

INT64 = np.dtype(np.int64)
BOOL, UINT8 = np.dtype(np.bool_), np.dtype(np.uint8)

_BLOCK_THREADS = 256
_AHEAD = 4  # packs in flight a thread, as in reduce.cu
_PART_BYTES = 1 << 14  # less is not worth a block of its own
_MERGE_AT_ONCE = 1024  # states that one group joins


def reduced_shape(shape, axes, keepdims: bool) -> tuple[int, ...]:
    """The shape that is left after a reduction over `axes`."""
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


@functools.lru_cache(1024)
def passes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """(outer, n, inner) of the reductions over n that make up one over `axes`, the longest first.

    Neighbouring axes count as one. Each pass works on the (outer, inner) that the one before left.
    """
    if 0 in shape:
        return ((math.prod(reduced_shape(shape, axes, keepdims=False)), 0, 1),)
    groups: list[tuple[int, bool]] = []  # (size, whether reduced), neighbours of one kind merged
    for axis, size in enumerate(shape):
        reduced = axis in axes
        if groups and groups[-1][1] == reduced:
            groups[-1] = (groups[-1][0] * size, reduced)
        elif size > 1:
            groups.append((size, reduced))
    found = []
    while any(reduced for _, reduced in groups):
        place = max(range(len(groups)), key=lambda i: groups[i][0] * groups[i][1])
        outer = math.prod(size for size, _ in groups[:place])
        inner = math.prod(size for size, _ in groups[place + 1 :])
        found.append((outer, groups.pop(place)[0], inner))
    return tuple(found) or ((math.prod(shape), 1, 1),)


class Reduction:
    """One reduction on the GPU: which operation, on what, and the launches that make it up."""

    def __init__(self, launch, name: str, x, out, divisor: int = 1):
        if x.dtype == BOOL:  # stored as a byte of 0 or 1
            x = x.view(UINT8)
        self.launch, self.x, self.out = launch, x, out
        if out.dtype == BOOL:
            self.out = out.view(UINT8)
        dtype = x.dtype
        self.operation = f"{name}<{launch.ctype(dtype)}>"
        total = accumulator_dtype(dtype) if dtype in FLOATING else INT64
        self.divisor = total.type(divisor) if name == "SumOf" else launch.int32(0)
        # Of a sum, of a value, or of a value with its index.
        self.state_bytes = {
            "SumOf": total.itemsize, "LargestOf": max(dtype.itemsize, 4), "ArgmaxOf": 16
        }[name]  # fmt: skip

    def run(self, axes) -> None:
        """All passes: the first reads x, the others the states that the one before left."""
        if self.out.size == 0:
            return
        first, *rest = passes(self.x.shape, axes)
        states, parts = self._first(*first, last=not rest)
        outer, _, inner = first
        if parts > 1:
            states = self._merge(states, outer, parts, inner, last=not rest)
        for number, (outer, n, inner) in enumerate(rest):
            states = self._merge(states, outer, n, inner, last=number == len(rest) - 1)

    def _states(self, count: int):
        """Memory for that many states: numbers, or values with their indices."""
        return self.launch.empty((count * self.state_bytes // 4,), np.uint32)

    def _first(self, outer: int, n: int, inner: int, last: bool):
        """Reduce x; (states or None if that was the result, parts)."""
        return self._rows(outer, n, last) if inner == 1 else self._columns(outer, n, inner, last)

    def _rows(self, rows: int, cols: int, last: bool):
        x, launch = self.x, self.launch
        threads = min(row_group(cols, x.itemsize, _AHEAD * 16 // x.itemsize), _BLOCK_THREADS)
        parts = 1
        if threads == _BLOCK_THREADS:
            parts = _parts(rows, cols * x.itemsize, launch.multiprocessors)
        states = None if last and parts == 1 else self._states(rows * parts)
        grid, block = row_grid(rows * parts, threads)
        sizes = (launch.int64(rows), launch.int64(cols), launch.int32(parts), launch.int32(threads))
        vector = np.bool_(launch.aligned(16, x))
        args = (x, self.out, states, *sizes, self.divisor, vector)
        launch(f"reduce_rows<{self.operation}>", grid, block, args)
        return states, parts

    def _columns(self, outer: int, n: int, inner: int, last: bool):
        x, launch = self.x, self.launch
        width, ahead = min(16 // x.itemsize, 4), 8 if x.itemsize == 2 else 4  # as in reduce.cu
        packs = -(-inner // width)
        across = min(_power_of_two(packs), 32)
        down = min(_power_of_two(-(-n // ahead)), _BLOCK_THREADS // across)
        tiles = -(-packs // across)
        blocks = -(-outer * tiles * across * down // _BLOCK_THREADS)
        parts = 1
        if across * down == _BLOCK_THREADS:
            parts = _parts(blocks, n * across * width * x.itemsize, launch.multiprocessors)
        states = None if last and parts == 1 else self._states(outer * parts * inner)
        grid, block = row_grid(outer * parts * tiles, across * down, _BLOCK_THREADS)
        sizes = (launch.int64(outer), launch.int64(n), launch.int64(inner))
        shares = (launch.int32(parts), launch.int32(across), launch.int32(down))
        vector = np.bool_(inner % width == 0 and launch.aligned(16, x))
        args = (x, self.out, states, *sizes, *shares, self.divisor, vector)
        launch(f"reduce_columns<{self.operation}>", grid, block, args)
        return states, parts

    def _merge(self, states, outer: int, parts: int, inner: int, last: bool):
        """Join (outer, parts, inner) states over the parts; returns the (outer, inner) states."""
        launch = self.launch
        while True:
            chunk = parts if parts <= _MERGE_AT_ONCE else 256
            chunks = -(-parts // chunk)
            final = last and chunks == 1
            after = None if final else self._states(outer * chunks * inner)
            # One thread for each where there are many: neighbours then read neighbouring states.
            many = inner > 1 and outer * chunks * inner >= 1 << 14
            threads = 1 if many else min(_power_of_two(chunk), 32)
            grid, block = row_grid(outer * chunks * inner, threads)
            sizes = map(launch.int64, (outer, parts, inner, chunk))
            args = (states, self.out, after, *sizes, launch.int32(threads), self.divisor)
            launch(f"reduce_merge<{self.operation}>", grid, block, args)
            if chunks == 1:
                return after
            states, parts = after, chunks


def _power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def _parts(blocks: int, bytes_of_one: int, multiprocessors: int) -> int:
    """Parts to cut the axis into so that there are blocks enough for the whole chip."""
    return max(1, min(4 * multiprocessors // max(blocks, 1), bytes_of_one // _PART_BYTES))


def run_numba(launch, name: str, x, out, axes, divisor=None) -> None:
    """Run a Numba kernel for each pass."""
    if out.size == 0:
        return
    x = x.view(UINT8) if x.dtype == BOOL else x
    target = out.view(UINT8) if out.dtype == BOOL else out
    todo = passes(x.shape, axes)
    for number, (outer, n, inner) in enumerate(todo):
        last = number == len(todo) - 1
        result = target if last else launch.empty((outer, inner), target.dtype)
        one, own = (), ()
        if divisor is not None:
            one, own = (type(divisor)(1),), (divisor if last else type(divisor)(1),)
        x = x.reshape(outer, n, inner)
        parts = 1 if name == "reduce_argmax" else _numba_parts(outer, n, inner)
        if parts > 1:
            partial = launch.empty((outer, parts, inner), target.dtype)
            _launch_numba(launch, name, x, partial, one)
            x = partial
        _launch_numba(launch, name, x, result.reshape(outer, 1, inner), own)
        x = result


def _numba_parts(outer: int, n: int, inner: int) -> int:
    """Few results are few blocks: then each is made of parts, of 1024 elements at the least."""
    tiles = outer * -(-inner // 32)
    parts = max(1, min(n // 1024, 512 // tiles))
    return -(-n // -(-n // parts)) if n else 1  # no part is empty


def _launch_numba(launch, name: str, x, out, divisor: tuple) -> None:
    """Each (o, part, i) of `out` from its part of x[o, :, i]: a thread for about 8 elements."""
    (outer, n, inner), parts = x.shape, out.shape[1]
    size = max(1, -(-n // parts))
    across = min(_power_of_two(inner), 32)
    down = min(max(_power_of_two(-(-size // 8)), 2), 256 // across)
    grid = (min(outer * parts * -(-inner // across), 65535),)
    args = (x, out, np.int64(size), *divisor)
    launch(f"{name}_{x.dtype.name}", grid, (across, down), args)
