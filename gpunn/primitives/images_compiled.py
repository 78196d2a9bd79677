"""Pooling through compiled loops, a few images at a time; resizing shares how that is done.

The functions have the loops of ``compiled/axis.py`` or ``compiled/pooling.py`` as first argument.
All arrays are (N, D, H, W, C), float32 or float64, and C-contiguous as calls make them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.pooling_windows import Windows, spans_along

_AT_ONCE = 1 << 18  # elements of the images worked on: what is made in between stays in the cache


def some_images(x) -> list[slice]:
    """Slices of the batch that are small enough."""
    each = max(1, _AT_ONCE // max(1, x[:1].size))
    return [slice(start, start + each) for start in range(0, len(x), each)]


def along(loop: Callable, x, out, axes: list[int], arguments: Callable) -> None:
    """``loop(x, *arguments(dimension), out)`` along one of the axes after the other."""
    for axis in axes:
        n = out.shape[axis]
        last, shape = axis == axes[-1], (*x.shape[:axis], n, *x.shape[axis + 1 :])
        to = out if last else np.empty(shape, x.dtype)
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        places = x.reshape(outer, x.shape[axis], inner)
        loop(places, *arguments(axis - 1), to.reshape(outer, n, inner))
        x = to
    if not axes:
        out[...] = x


def _passes(windows: Windows, order: list[int]) -> list[int]:
    """The axes, in `order`, along which windows are more than each pixel by itself."""
    same = [
        size == count and kernel == 1 and not padding and (step == 1 or windows.adaptive)
        for size, count, kernel, padding, step in zip(
            windows.sizes, windows.counts, windows.kernel, windows.padding, windows.stride,
            strict=True,
        )
    ]  # fmt: skip
    return [axis for axis in order if not same[axis - 1]]


def max_values(loops, x, y, windows: Windows) -> None:
    axes, spans = _passes(windows, [1, 2, 3]), functools.partial(spans_along, windows)

    def work(some: slice) -> None:
        along(loops.window_maxima, x[some], y[some], axes, spans)

    for_each(work, some_images(x))


def max_places(loops, x, y, indices, windows: Windows) -> None:
    spans = tuple(zip(*(spans_along(windows, dim) for dim in range(3)), strict=True))

    def work(some: slice) -> None:
        loops.largest(x[some], *spans, y[some], indices[some])

    for_each(work, some_images(x))


def max_backward(loops, grad, indices, out, windows: Windows) -> None:
    def flat(array, sizes):
        return array.reshape(len(array), math.prod(sizes), array.shape[-1])

    grad, indices = flat(grad, windows.counts), flat(indices, windows.counts)
    total = flat(out, windows.sizes)

    def work(some: slice) -> None:
        loops.spread_to_places(grad[some], indices[some], total[some])

    for_each(work, some_images(out))


def average_forward(loops, x, y, windows: Windows, scale) -> None:
    axes = _passes(windows, [1, 2, 3])

    def work(some: slice) -> None:
        total = y[some]
        along(loops.window_sums, x[some], total, axes, lambda dim: spans_along(windows, dim)[:2])
        np.divide(total, scale, out=total)

    for_each(work, some_images(x))


def average_backward(loops, grad, out, windows: Windows, scale) -> None:
    axes = _passes(windows, [3, 2, 1])

    def work(some: slice) -> None:
        part = np.divide(grad[some], scale, dtype=grad.dtype)
        along(loops.spread_sums, part, out[some], axes, lambda dim: spans_along(windows, dim)[:2])

    for_each(work, some_images(out))
