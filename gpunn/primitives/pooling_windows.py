"""The windows of pooling: which pixels each output looks at.

Output o of a dimension of `size` pixels sees ``o stride - padding + t dilation`` for t = 0 …
kernel - 1, as far as that lies inside; an adaptive one of `count` outputs sees
``floor(o size / count) … ceil((o + 1) size / count) - 1``. Always three dimensions, D, H and W.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from gpunn.primitives import images


class Windows(NamedTuple):
    """The windows of three dimensions; with `adaptive`, `sizes` and `counts` alone say it all."""

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    adaptive: bool

    @property
    def taps(self) -> int:
        """Pixels of the largest window."""
        return math.prod(self.kernel)

    @property
    def apart(self) -> bool:
        """Whether no pixel lies in two windows."""
        reach = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        wide = all(s >= r for s, r in zip(self.stride, reach, strict=True))
        return wide and not self.adaptive


def windows_of(
    call, argument: str, sizes, kernel_size, stride, padding, dilation, ceil_mode, output_size
) -> Windows:
    """The windows over spatial `sizes`, checked; `argument` is what has these sizes."""
    dimensions = len(sizes)
    call.require(
        0 < min(sizes) and math.prod(sizes) < 1 << 31,
        argument,
        f"has spatial sizes {tuple(sizes)}",
        "an image needs a pixel in each dimension, and has less than 2^31",
    )
    if output_size is not None:
        call.require(
            kernel_size is None, "output_size", f"is {output_size}, and kernel_size {kernel_size}",
            "give one of them",
        )  # fmt: skip
        counts = images.per_dimension(call, "output_size", output_size, dimensions, 1)
        return _adaptive(tuple(sizes), counts)
    kernel = images.per_dimension(call, "kernel_size", kernel_size, dimensions, 1)
    if stride is None or (isinstance(stride, (tuple, list)) and not stride):
        stride = kernel
    stride = images.per_dimension(call, "stride", stride, dimensions, 1)
    padding = images.per_dimension(call, "padding", padding, dimensions)
    dilation = images.per_dimension(call, "dilation", dilation, dimensions, 1)
    counts = tuple(
        _count(call, *each, bool(ceil_mode))
        for each in zip(sizes, kernel, stride, padding, dilation, strict=True)
    )
    for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        places = size + p + max((k - 1) * d + 1, s, d)
        call.require(
            places < 1 << 31, "kernel_size",
            f"is {k} with stride {s}, padding {p} and dilation {d}: {places} places, with the "
            f"{size} pixels", "the kernels count fewer than 2^31",
        )  # fmt: skip
    three = images.leading
    return Windows(
        three(tuple(sizes), 1), three(counts, 1), three(kernel, 1), three(stride, 1),
        three(padding, 0), three(dilation, 1), False,
    )  # fmt: skip


def _count(call, size, kernel, stride, padding, dilation, ceil_mode) -> int:
    """How many windows there are along a dimension."""
    reach = (kernel - 1) * dilation + 1
    call.require(
        2 * padding <= reach,
        "padding",
        f"is {padding} for a kernel that reaches over {reach} pixels",
        "give half of that at most, so that no window holds padding alone",
    )
    room = size + 2 * padding - reach
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1  # the last window would begin behind the image
    call.require(
        count >= 1,
        "kernel_size",
        f"is {kernel} with dilation {dilation}, which reaches over {reach} pixels; there are "
        f"{size} and {padding} of padding at each side",
        "give a smaller kernel, or more padding",
    )
    return count


def _adaptive(sizes, counts) -> Windows:
    sizes, counts = images.leading(sizes, 1), images.leading(counts, 1)
    if all(n % m == 0 for n, m in zip(sizes, counts, strict=True)):  # then all are alike
        kernel = tuple(n // m for n, m in zip(sizes, counts, strict=True))
        return Windows(sizes, counts, kernel, kernel, (0, 0, 0), (1, 1, 1), False)
    longest = tuple(
        int(max(-(-(o + 1) * n // m) - o * n // m for o in range(m)))
        for n, m in zip(sizes, counts, strict=True)
    )
    return Windows(sizes, counts, longest, (0, 0, 0), (0, 0, 0), (1, 1, 1), True)


@functools.lru_cache(256)
def spans_along(windows: Windows, dim: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(first, end, step): output o sees the pixels ``range(first[o], end[o], step)``."""
    size, count = windows.sizes[dim], windows.counts[dim]
    o = np.arange(count)
    if windows.adaptive:
        return o * size // count, -(-(o + 1) * size // count), 1
    step = windows.dilation[dim]
    start = o * windows.stride[dim] - windows.padding[dim]
    first = start + np.maximum(0, -(start // step)) * step
    end = np.minimum(start + (windows.kernel[dim] - 1) * step + 1, size)
    return first, np.maximum(first, end), step


# ---- for the reference: taps as index expressions ------------------------------------------------


class Tap(NamedTuple):
    """One place in the window, along one dimension: of which outputs, and which pixels they see."""

    outputs: slice | np.ndarray
    pixels: slice | np.ndarray
    whole: bool  # every output sees one


@functools.lru_cache(256)
def taps_along(windows: Windows, dim: int) -> tuple[Tap, ...]:
    """The places of the window along a dimension, in order; those that no output sees left out."""
    size, count, kernel = windows.sizes[dim], windows.counts[dim], windows.kernel[dim]
    found = []
    for t in range(kernel):
        if windows.adaptive:
            first = np.arange(count) * size // count
            end = -(-np.arange(1, count + 1) * size // count)
            outputs = np.flatnonzero(first + t < end)
            found.append(Tap(outputs, first[outputs] + t, len(outputs) == count))
            continue
        stride, offset = windows.stride[dim], t * windows.dilation[dim] - windows.padding[dim]
        low = max(0, -(offset // stride))
        high = min(count, (size - 1 - offset) // stride + 1)
        if high > low:
            first = low * stride + offset
            pixels = slice(first, first + (high - low - 1) * stride + 1, stride)
            found.append(Tap(slice(low, high), pixels, high - low == count))
    return tuple(found)


def numbers(place) -> np.ndarray:
    """A slice or an array of indices as an array."""
    if isinstance(place, slice):
        return np.arange(place.start, place.stop, place.step or 1)
    return place


def orthogonal(places) -> tuple:
    """Places of D, H and W as one index of (N, D, H, W, …): slices, or arrays that open a grid."""
    if all(isinstance(place, slice) for place in places):
        return (slice(None), *places)
    return (slice(None), *np.ix_(*map(numbers, places)))


@functools.lru_cache(64)
def taps_of(windows: Windows) -> tuple[tuple[tuple, tuple, np.ndarray, bool], ...]:
    """(index of outputs, index of pixels, numbers of the pixels, whole) of each place, in order.

    The numbers count the pixels of one image; their shape is that of the outputs, and 1 for C.
    """
    _, height, width = windows.sizes
    found = []
    for tap in itertools.product(*(taps_along(windows, dim) for dim in range(3))):
        d, h, w = (numbers(each.pixels).astype(np.int32) for each in tap)
        plane = (d[:, None, None] * height + h[:, None]) * width + w
        outputs = orthogonal([each.outputs for each in tap])
        pixels = orthogonal([each.pixels for each in tap])
        found.append((outputs, pixels, plane[..., None], all(each.whole for each in tap)))
    return tuple(found)


@functools.lru_cache(256)
def first_places(windows: Windows) -> np.ndarray:
    """The number of the pixel at the first place of each window, (D, H, W, 1); also outside."""
    starts = []
    for dim in range(3):
        o = np.arange(windows.counts[dim])
        if windows.adaptive:
            starts.append(o * windows.sizes[dim] // windows.counts[dim])
        else:
            first = (offsets_along(windows, dim) or [0])[0]
            starts.append(o * windows.stride[dim] + first)
    d, h, w = (start.astype(np.int32) for start in starts)
    _, height, width = windows.sizes
    return ((d[:, None, None] * height + h[:, None]) * width + w)[..., None]


def offsets_along(windows: Windows, dim: int) -> list[int]:
    """How far each of `taps_along` lies from where output 0 begins without padding."""
    if windows.adaptive:
        return list(range(windows.kernel[dim]))
    stride = windows.stride[dim]
    return [tap.pixels.start - tap.outputs.start * stride for tap in taps_along(windows, dim)]


@functools.lru_cache(256)
def all_seen(windows: Windows, dim: int) -> bool:
    """Whether every output along a dimension sees a pixel."""
    seen = np.zeros(windows.counts[dim], bool)
    for tap in taps_along(windows, dim):
        seen[tap.outputs] = True
    return bool(seen.all())


@functools.lru_cache(256)
def ways_of(windows: Windows) -> tuple[int, ...]:
    """How much larger the pixel's number is at each of `taps_of` than in `first_places`."""
    _, height, width = windows.sizes
    places = [
        (d * height + h) * width + w
        for d, h, w in itertools.product(*(offsets_along(windows, dim) for dim in range(3)))
    ]
    return tuple(place - places[0] for place in places)


def extents(windows: Windows, count_include_pad: bool) -> np.ndarray:
    """What the sum of each window is divided by, (D, H, W, 1): pixels, padding too if it counts."""
    lines = []
    for dim in range(3):
        size, count = windows.sizes[dim], windows.counts[dim]
        o = np.arange(count)
        if windows.adaptive:
            lines.append(-(-(o + 1) * size // count) - o * size // count)
            continue
        first, padding = o * windows.stride[dim] - windows.padding[dim], windows.padding[dim]
        end = np.minimum(first + windows.kernel[dim], size + padding)
        if not count_include_pad:
            first, end = np.maximum(first, 0), np.minimum(end, size)
        lines.append(end - first)
    d, h, w = lines
    return (d[:, None, None] * h[:, None] * w)[..., None]
