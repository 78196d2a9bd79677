"""Resizing in NumPy, one dimension after the other; large arrays through compiled loops.

All arrays are (N, D, H, W, C), and a `Grid` says how outputs lie over pixels.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.images_compiled import along, some_images
from gpunn.primitives.samples import accumulator_dtype

MODES = ("nearest", "nearest-exact", "linear")


class Grid(NamedTuple):
    """How outputs lie over pixels, in three dimensions."""

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    steps: tuple[float, ...]
    mode: str
    align_corners: bool

    @property
    def taps(self) -> tuple[int, ...]:
        """Pixels that an output takes along each dimension: 1, or 2 to interpolate."""
        if self.mode != "linear":
            return (1, 1, 1)
        each = zip(self.sizes, self.counts, self.steps, strict=True)
        return tuple(1 if size == count and step == 1 else 2 for size, count, step in each)


class Line(NamedTuple):
    """One dimension: the pixel of each output, the next one, and the weight of that."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray  # float64


@functools.lru_cache(256)
def line_of(grid: Grid, dim: int) -> Line:
    """Which pixels the outputs along a dimension take."""
    size, count, step = grid.sizes[dim], grid.counts[dim], grid.steps[dim]
    o = np.arange(count)
    if grid.mode != "linear":
        half = np.float32(0.5 if grid.mode == "nearest-exact" else 0)
        place = (o.astype(np.float32) + half) * np.float32(step)
        first = np.minimum(np.floor(place).astype(np.int64), size - 1)
        return Line(first, first, np.zeros(count))
    place = o * step if grid.align_corners else np.maximum(step * (o + 0.5) - 0.5, 0)
    first = np.minimum(np.floor(place).astype(np.int64), size - 1)
    return Line(first, np.minimum(first + 1, size - 1), np.clip(place - first, 0, 1))


@functools.lru_cache(256)
def _factors(grid: Grid) -> tuple[int, ...] | None:
    """Whole numbers that the image is repeated by, if the nearest pixels come to that."""
    factors = tuple(n // size for size, n in zip(grid.sizes, grid.counts, strict=True))
    for dim, (size, factor) in enumerate(zip(grid.sizes, factors, strict=True)):
        repeated = np.repeat(np.arange(size), factor)
        if grid.mode == "linear" or not np.array_equal(line_of(grid, dim).first, repeated):
            return None
    return factors


def _axes(grid: Grid) -> list[int]:
    """The axes that change, those that shrink most first."""
    changed = [
        axis for axis in (1, 2, 3)
        if grid.taps[axis - 1] == 2 or grid.counts[axis - 1] != grid.sizes[axis - 1]
        or grid.steps[axis - 1] != 1
    ]  # fmt: skip
    return sorted(changed, key=lambda axis: grid.counts[axis - 1] / grid.sizes[axis - 1])


def _column(weights, axis: int, dtype):
    """Weights along an axis of (N, D, H, W, C)."""
    return weights.astype(dtype).reshape(*(1,) * axis, -1, *(1,) * (4 - axis))


def forward(x, out, grid: Grid) -> None:
    factors = _factors(grid)
    if factors is not None:
        d, h, w = factors
        n, depth, height, width, c = x.shape
        out.reshape(n, depth, d, height, h, width, w, c)[...] = (
            x.reshape(n, depth, 1, height, 1, width, 1, c)
        )  # fmt: skip
        return
    axes = _axes(grid)
    if grid.mode != "linear":
        for axis in axes:
            x = x.take(line_of(grid, axis - 1).first, axis)
        out[...] = x
        return
    if compiled := loops("axis", x.dtype, max(x.size, out.size)):
        weighted = functools.partial(_weighted, grid, dtype=x.dtype)
        _along_axes(x, out, axes, compiled.interpolate, weighted)
        return
    with quiet():
        value = x.astype(accumulator_dtype(x.dtype), copy=False)
        for axis in axes:
            first, second, weight = line_of(grid, axis - 1)
            other = value.take(second, axis)
            other *= _column(weight, axis, value.dtype)
            value = value.take(first, axis)
            value *= _column(1 - weight, axis, value.dtype)
            value += other
        out[...] = value


def _along_axes(x, out, axes: list[int], loop, arguments) -> None:
    def work(some: slice) -> None:
        along(loop, x[some], out[some], axes, arguments)

    for_each(work, some_images(max(x, out, key=np.size)))


@functools.lru_cache(256)
def _weighted(grid: Grid, dim: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """The two pixels that each output takes along a dimension, and their weights."""
    first, second, weight = line_of(grid, dim)
    return np.stack([first, second]), np.stack([1 - weight, weight]).astype(dtype)


@functools.lru_cache(256)
def _takers(grid: Grid, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(first, end) of the outputs that take each pixel along a dimension, where they take one."""
    places, pixels = line_of(grid, dim).first, np.arange(grid.sizes[dim])
    return np.searchsorted(places, pixels, "left"), np.searchsorted(places, pixels, "right")


def _groups(places):
    """(outputs, their pixels) in groups, of which none has two at one pixel; `places` ascend."""
    rank = np.arange(len(places)) - np.searchsorted(places, places)
    groups = [np.flatnonzero(rank == r) for r in range(int(rank.max()) + 1)]
    return [(_as_slice(group), _as_slice(places[group])) for group in groups]


def _as_slice(index):
    """Indices that keep one distance as a slice, which copies nothing; others as they are."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if (np.diff(index) == step).all():
        return slice(int(index[0]), int(index[-1]) + 1, step)
    return index


def backward(grad, out, grid: Grid) -> None:
    if compiled := loops("axis", out.dtype, max(grad.size, out.size)):
        loop, arguments = compiled.window_sums, functools.partial(_takers, grid)
        if grid.mode == "linear":
            loop = compiled.spread_weighted
            arguments = functools.partial(_weighted, grid, dtype=grad.dtype)
        _along_axes(grad, out, _axes(grid)[::-1], loop, arguments)
        return
    total = grad.astype(accumulator_dtype(grad.dtype), copy=False)
    with quiet():
        for axis in reversed(_axes(grid)):
            total = _summed(total, axis, grid)
        out[...] = total


def _summed(grad, axis: int, grid: Grid):
    """The gradient by the pixels along one axis."""
    shape = (*grad.shape[:axis], grid.sizes[axis - 1], *grad.shape[axis + 1 :])
    total, at = np.zeros(shape, grad.dtype), (slice(None),) * axis
    first, second, weight = line_of(grid, axis - 1)
    pairs = [(first, None)]
    if grid.taps[axis - 1] == 2:
        pairs = [(first, 1 - weight), (second, weight)]
    for places, weights in pairs:
        for outputs, pixels in _groups(places):
            part = grad[(*at, outputs)]
            if weights is not None:
                part = part * _column(weights[outputs], axis, grad.dtype)
            total[(*at, pixels)] += part
    return total
