"""What lies under the kernel of a convolution at each place of its output, on the CPU."""

from __future__ import annotations

import functools
import itertools
import math
import threading

import numpy as np
from numpy.lib.stride_tricks import as_strided

TILE = 1 << 18  # elements of a tile and its sums: 1 MiB of float32, about the second cache
LARGE = 1 << 18  # elements of a weight that a product should not read for a few rows alone
_ROWS = 256  # of a tile where there are enough: with fewer a product mostly reads the weight
_PIECES = 8  # at least so many tiles where there is work for them
_WORTH = 1 << 22  # multiply-adds of a piece: with fewer a thread is not worth calling
_SHORT = 8  # elements in a row, fewer than which are gathered by taps


class Patches:
    """The patches of an input (N, *spatial, C), piece by piece.

    A piece is a pair of slices: of the images, and of the first spatial dimension of the output,
    which has the sizes `places`.
    """

    def __init__(self, x, taps, places, stride, low, dilation, dtype):
        self.x, self.taps, self.places, self.dtype = x, taps, places, dtype
        self.stride, self.dilation = stride, dilation
        self.plain = all(k == s == 1 for k, s in zip(taps, stride, strict=True))
        self.start = [-p for p in low]
        self.length = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(places, stride, taps, dilation, strict=True)
        ]
        sizes = x.shape[1:-1]
        edges = zip(self.start, self.length, sizes, strict=True)
        self.all = None  # the windows of all pieces, where no zeros are wanted
        if all(0 <= start and start + length <= size for start, length, size in edges):
            inside = (slice(at, at + n) for at, n in zip(self.start, self.length, strict=True))
            self.all = self._windows(x[(slice(None), *inside)], places[0])

    def pieces(self, width: int, outputs: int, weight: int) -> list[tuple[slice, slice]]:
        """Tiles of whole images, or of rows of one image, by the sizes alone.

        `width` and `outputs` are the elements of a place in the columns and in the result, and
        `weight` those of the factor that each tile is multiplied with.
        """
        images, places = len(self.x), self.places
        row = math.prod(places[1:])
        image = places[0] * row
        target = max(TILE // (width + outputs), _ROWS)
        wanted = worth_pieces(images * image * weight)
        least = 32 if weight < LARGE else 192
        target = min(target, max(-(-images * image // wanted), least))
        if image <= target:
            parts = even(images, -(-images // (target // image)))
            return [(some, slice(0, places[0])) for some in parts]
        parts = even(places[0], -(-places[0] // max(1, target // row)))
        return [(slice(n, n + 1), some) for n in range(images) for some in parts]

    def windows(self, piece):
        """(images, places, taps, C), a view of what is under the kernel at each place."""
        if self.all is not None:
            return self.all[piece]
        rows = piece[1]
        return self._windows(self.padded(piece), rows.stop - rows.start)

    def padded(self, piece):
        """The part of the input that a piece reads, with the zeros around it."""
        images, rows = piece
        start, length = self.start.copy(), self.length.copy()
        start[0] += rows.start * self.stride[0]
        length[0] -= (self.places[0] - rows.stop + rows.start) * self.stride[0]
        inside, into = [images], [slice(None)]
        for at, count, size in zip(start, length, self.x.shape[1:-1], strict=True):
            begin, end = min(max(at, 0), size), min(max(at + count, 0), size)
            inside.append(slice(begin, end))
            into.append(slice(begin - at, end - at) if begin < end else slice(0, 0))
        shape = (images.stop - images.start, *length, self.x.shape[-1])
        padded = scratch("padded", shape, self.x.dtype)
        padded[...] = 0
        padded[tuple(into)] = self.x[tuple(inside)]
        return padded

    def steps(self) -> tuple[int, ...]:
        """(taps in a row, the strides, the dilations) for the loops of two dimensions."""
        return (self.taps[1], *self.stride, *self.dilation)

    def _windows(self, region, rows: int):
        along = region.strides[1:-1]
        return as_strided(
            region,
            (len(region), rows, *self.places[1:], *self.taps, region.shape[-1]),
            (
                region.strides[0],
                *(step * s for step, s in zip(along, self.stride, strict=True)),
                *(step * d for step, d in zip(along, self.dilation, strict=True)),
                region.strides[-1],
            ),
        )

    def taps_of(self, piece):
        """For each tap in turn: (images, places, C), a view of what is under it."""
        windows, lead = self.windows(piece), (slice(None),) * (len(self.places) + 1)
        for tap in itertools.product(*map(range, self.taps)):
            yield windows[(*lead, *tap)]

    def columns(self, piece, groups: int, tap: int | None = None):
        """(G, places of all images, taps times C / G), the operand of a product; or of one tap."""
        windows = self.windows(piece)
        if self.plain and tap is None:
            windows = windows.reshape(*windows.shape[: -1 - len(self.taps)], windows.shape[-1])
            return rows_of(windows.astype(self.dtype, order="C", copy=False), groups)
        if tap is not None:
            lead = (slice(None),) * (len(self.places) + 1)
            windows = windows[(*lead, *np.unravel_index(tap, self.taps))]
        lead, channels = windows.shape[:-1], windows.shape[-1] // groups
        found = scratch("columns", (groups, *lead, channels), self.dtype)
        if groups > 1:
            step = windows.strides[-1]
            windows = as_strided(
                windows, found.shape, (channels * step, *windows.strides[:-1], step)
            )
            found[...] = windows
        elif tap is None:
            _gather(found[0], windows, len(self.taps))
        else:
            found[0] = windows
        return found.reshape(groups, math.prod(lead[: len(self.places) + 1]), -1)


def _gather(found, windows, taps: int) -> None:
    """A copy; by taps where so few channels lie together that NumPy's inner loop would be short."""
    if windows.shape[-1] * windows.shape[-2] >= _SHORT:
        found[...] = windows
        return
    lead = (slice(None),) * (windows.ndim - taps - 1)
    for tap in itertools.product(*map(range, windows.shape[-taps - 1 : -1])):
        found[(*lead, *tap)] = windows[(*lead, *tap)]


def worth_pieces(products: int) -> int:
    """How many pieces a number of multiply-adds is to be cut into at least."""
    return max(1, min(_PIECES, products // _WORTH))


def even(size: int, parts: int) -> list[slice]:
    """`size` cut into `parts` that differ by one at most."""
    ends = [size * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def rows_of(array, groups: int):
    """(..., C), whose places lie one after the other, as a view (G, places, C / G)."""
    channels, places = array.shape[-1], math.prod(array.shape[:-1])
    return array.reshape(places, groups, channels // groups).transpose(1, 0, 2)


@functools.lru_cache(64)
def ones(count: int, dtype):
    """A vector of ones: the product with it sums columns faster than `add.reduce`."""
    return np.ones(count, dtype)


_own = threading.local()


def scratch(name: str, shape, dtype):
    """Memory of this thread under a name, with whatever was left there."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    held = getattr(_own, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.uint8)
        setattr(_own, name, held)
    return held[:size].view(dtype).reshape(shape)
