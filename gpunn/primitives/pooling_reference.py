"""Pooling in NumPy: a pass over strided views for each place in the window, a few images at a time.

All of these take (N, D, H, W, C) and `Windows`; they compute in float32 for 16-bit arrays. Large
ones are left to compiled loops (`images_compiled`) where there are some.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpunn.primitives import images_compiled
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.images_compiled import some_images
from gpunn.primitives.pooling_windows import (
    Tap,
    Windows,
    all_seen,
    extents,
    first_places,
    numbers,
    offsets_along,
    taps_along,
    taps_of,
    ways_of,
)
from gpunn.primitives.samples import accumulator_dtype

# Compiled loops look for the largest in vectors over the channels: with less, NumPy is as fast.
_CHANNELS = 6


def max_forward(x, y, indices, windows: Windows) -> None:
    """The largest of each window, and where it is unless `indices` is None.

    One dimension after the other. Values alone begin with D and H, whose rows are long. With
    indices W comes first: the best of each row, then of the rows, and of equal ones the earlier.
    """

    if indices is None:
        if compiled := loops("axis", x.dtype, x.size):
            images_compiled.max_values(compiled, x, y, windows)
            return
    elif x.shape[-1] >= _CHANNELS and (compiled := loops("pooling", x.dtype, x.size)):
        images_compiled.max_places(compiled, x, y, indices, windows)
        return

    def work(some: slice) -> None:
        value = x[some].astype(accumulator_dtype(x.dtype), copy=False)
        places: list[np.ndarray | None] = []
        asked, into = indices is not None, y[some]
        for axis in (3, 2, 1) if asked else (1, 2, 3):
            value, places = _largest(value, axis, windows, asked, places, into)
        if value is not into:
            into[...] = value
        if indices is not None:
            _number(indices[some], places[::-1], windows)
            if value.size and np.isnan(value.max()):
                _find_nan(x[some], indices[some], windows)

    for_each(work, some_images(x))


def _largest(x, axis: int, windows: Windows, asked: bool, before: list, into):
    """The largest along one axis, and the places in the window; None for one that has no choice.

    `before` has the places along the axes that went before; they are picked with the values. The
    values go into `into` if they fit.
    """
    dim = axis - 1
    taps, offsets = taps_along(windows, dim), offsets_along(windows, dim)
    shape = (*x.shape[:axis], windows.counts[dim], *x.shape[axis + 1 :])
    if shape == x.shape and len(taps) == 1:
        return x, [*before, None]
    seen = all_seen(windows, dim)
    fits = into.shape == shape and into.dtype == x.dtype and x is not into
    value = into if fits else np.empty(shape, x.dtype)
    if not seen:
        value.fill(-np.inf)
    small = np.uint8 if windows.kernel[dim] < 256 else np.int32
    make = np.empty if seen else np.zeros
    picked = [(p, make(shape, p.dtype)) for p in before if p is not None]
    mine = make(shape, small) if asked else None
    low = None  # outputs from here on have had a pixel
    for tap, offset in zip(taps, offsets, strict=True):
        fresh, later = _parted(tap, low, windows.stride[dim])
        number = small((offset - offsets[0]) // windows.dilation[dim])
        if fresh is not None:
            low, at, pixels = fresh.low, _at(axis, fresh.outputs), _at(axis, fresh.pixels)
            value[at] = x[pixels]
            if asked:
                mine[at] = number
            for place, target in picked:
                target[at] = place[pixels]
        if later is not None:
            at, pixels = _at(axis, later.outputs), _at(axis, later.pixels)
            new = x[pixels]
            if asked:
                better = new > value[at]
                _update(mine, at, np.maximum, better.view(np.uint8) * number)
                for place, target in picked:
                    choice = np.negative(better.view(np.int8), dtype=f"i{place.itemsize}")
                    change = target[at] ^ place[pixels]
                    change &= choice.view(place.dtype)  # all bits, or none
                    _update(target, at, np.bitwise_xor, change)
            _update(value, at, np.maximum, new)
    places = iter(target for _, target in picked)
    return value, [*(None if p is None else next(places) for p in before), mine]


def _update(target, at, operation, other) -> None:
    """target[at] = operation(target[at], other), in place where `at` is slices."""
    part = target[at]
    result = operation(part, other, out=part)
    if not isinstance(at[-1], slice):  # then it was a copy
        target[at] = result


class _Part(NamedTuple):
    """Some outputs of a tap, from `low` on, and the pixels that they see."""

    low: int
    outputs: slice | np.ndarray
    pixels: slice | np.ndarray


def _parted(tap: Tap, low: int | None, stride: int) -> tuple[_Part | None, _Part | None]:
    """The tap's outputs that have had no pixel before (those in front of `low`), and the others."""
    if not isinstance(tap.outputs, slice):
        part = _Part(0, tap.outputs, tap.pixels)
        return (part, None) if low is None else (None, part)
    start, stop, pixel = tap.outputs.start, tap.outputs.stop, tap.pixels.start
    cut = stop if low is None else min(max(low, start), stop)

    def part(begin: int, end: int) -> _Part | None:
        if end <= begin:
            return None
        first = pixel + (begin - start) * stride
        pixels = slice(first, first + (end - begin - 1) * stride + 1, stride)
        return _Part(begin, slice(begin, end), pixels)

    return part(start, cut), part(cut, stop)


def _number(indices, places: list, windows: Windows) -> None:
    """The numbers of pixels from the places along D, H and W; -1 for windows without a pixel."""
    _, height, width = windows.sizes
    d, h, w = windows.dilation
    ways = (d * height * width, h * width, w)
    started = False
    for place, way in zip(places, ways, strict=True):
        if place is None:
            continue
        if started:
            indices += np.multiply(place, np.int32(way), dtype=np.int32)
        else:
            np.multiply(place, np.int32(way), out=indices, dtype=np.int32)
            started = True
    if started:
        indices += first_places(windows)
    else:
        indices[...] = first_places(windows)
    if not all(all_seen(windows, dim) for dim in range(3)):
        seen = np.zeros(windows.counts, bool)
        for outputs, *_ in taps_of(windows):
            seen[outputs[1:]] = True
        indices[:, ~seen] = -1


def _find_nan(x, indices, windows: Windows) -> None:
    """Where a window has NaN, the last one counts, as in PyTorch."""
    for outputs, pixels, plane, _ in taps_of(windows):
        indices[outputs] = np.where(np.isnan(x[pixels]), plane, indices[outputs])


def max_backward(grad, indices, out, windows: Windows) -> None:
    """Each gradient goes to the pixel that was the largest."""
    if compiled := loops("pooling", out.dtype, out.size):
        images_compiled.max_backward(compiled, grad, indices, out, windows)
        return
    taps, start = taps_of(windows), first_places(windows)
    regular = not windows.adaptive  # then a place is as far from the first one in all windows
    ways = ways_of(windows)

    def work(some: slice) -> None:
        wide = grad[some].astype(accumulator_dtype(grad.dtype), copy=False)
        direct = out.dtype == wide.dtype
        total = out[some] if direct else np.empty(out[some].shape, wide.dtype)
        total.fill(0)
        where = indices[some] - start if regular else indices[some]
        bits = np.dtype(f"i{wide.itemsize}")
        for (outputs, pixels, plane, _), way in zip(taps, ways, strict=True):
            here = where[outputs] == (way if regular else plane)
            # The gradient's bits where it goes, else 0: a product with `here` would spread NaN.
            part = np.negative(here.view(np.int8), dtype=bits)
            part &= wide[outputs].view(bits)
            if windows.apart:
                total[pixels] = part.view(wide.dtype)
            elif isinstance(pixels[1], slice):
                total[pixels] += part.view(wide.dtype)
            else:  # a pixel may stand here more than once
                np.add.at(total, pixels, part.view(wide.dtype))
        if not direct:
            out[some] = total

    for_each(work, some_images(out))


def _at(axis: int, place) -> tuple:
    return (slice(None),) * axis + (place,)


def _scale(windows: Windows, count_include_pad: bool, divisor: int, dtype):
    """What sums are divided by: one number if it is the same everywhere, else one an output."""
    if divisor:
        return divisor
    scale = extents(windows, count_include_pad)
    return int(scale.flat[0]) if (scale == scale.flat[0]).all() else scale.astype(dtype)


def average_forward(x, y, windows: Windows, count_include_pad: bool, divisor: int) -> None:
    """Window sums, one dimension after the other, over what each is divided by."""
    scale = _scale(windows, count_include_pad, divisor, accumulator_dtype(x.dtype))
    if compiled := loops("axis", x.dtype, x.size):
        images_compiled.average_forward(compiled, x, y, windows, scale)
        return

    def work(some: slice) -> None:
        total = x[some].astype(accumulator_dtype(x.dtype), copy=False)
        for axis in (1, 2, 3):  # long rows first
            taps = taps_along(windows, axis - 1)
            if windows.counts[axis - 1] == windows.sizes[axis - 1] and len(taps) == 1:
                continue  # one pixel a window
            total = _window_sums(total, axis, taps, windows.counts[axis - 1])
        y[some] = total / scale

    for_each(work, some_images(x))


def _window_sums(x, axis: int, taps, count: int):
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    if len(taps) > 1 and taps[0].whole and taps[1].whole:
        total = x[_at(axis, taps[0].pixels)] + x[_at(axis, taps[1].pixels)]
        taps = taps[2:]
    else:
        total = np.zeros(shape, x.dtype)
    for tap in taps:
        total[_at(axis, tap.outputs)] += x[_at(axis, tap.pixels)]
    return total


def average_backward(grad, out, windows: Windows, count_include_pad: bool, divisor: int) -> None:
    """Each gradient, divided, goes to every pixel of its window."""
    scale = _scale(windows, count_include_pad, divisor, accumulator_dtype(grad.dtype))
    if compiled := loops("axis", out.dtype, out.size):
        images_compiled.average_backward(compiled, grad, out, windows, scale)
        return

    def work(some: slice) -> None:
        part = grad[some].astype(accumulator_dtype(grad.dtype), copy=False) / scale
        for axis in (3, 2, 1):  # long rows last
            taps, size = taps_along(windows, axis - 1), windows.sizes[axis - 1]
            if windows.counts[axis - 1] == size and len(taps) == 1:
                continue
            total = np.zeros((*part.shape[:axis], size, *part.shape[axis + 1 :]), part.dtype)
            for tap in taps:
                if windows.apart:
                    total[_at(axis, tap.pixels)] = part[_at(axis, tap.outputs)]
                elif isinstance(tap.pixels, slice):
                    total[_at(axis, tap.pixels)] += part[_at(axis, tap.outputs)]
                else:  # a pixel may stand here more than once
                    np.add.at(total, _at(axis, tap.pixels), part[_at(axis, numbers(tap.outputs))])
            part = total
        out[some] = part

    for_each(work, some_images(out))
