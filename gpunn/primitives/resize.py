"""Resizing of images: nearest pixel or linear interpolation in 1, 2 or 3 dimensions.

==============  ===================================  ==============================================
mode            where output o looks, s = its step   what it takes
==============  ===================================  ==============================================
nearest         o s                                  the pixel that holds the place
nearest-exact   (o + 1/2) s                          the pixel that holds the place
linear          (o + 1/2) s - 1/2, at least 0; with  (1 - f) x[i] + f x[i + 1], i the whole part and
                align_corners o s                    f the fraction, in each dimension
==============  ===================================  ==============================================

The step is size / output size, or 1 / scale_factor where that is given; with align_corners
(size - 1) / (output size - 1). Nearest places are computed in float32, so that the pixels are those
that PyTorch picks; linear ones in float64, so that fractions are right in large images, too.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from gpunn.primitives import images
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOAT32, FLOATING, Sample, accumulator_dtype

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


# ---- specification -------------------------------------------------------------------------------


def _grid(call, argument, sizes, output_size, scale_factor, mode, align_corners) -> Grid:
    """The grid from spatial `sizes` to `output_size`, checked."""
    call.choice("mode", mode, MODES)
    dimensions = len(sizes)
    for name, value in ((argument, sizes), ("output_size", output_size)):
        call.require(
            0 < min(value) and max(value) < 1 << 31, name, f"has spatial sizes {tuple(value)}",
            "each must be from 1 to 2^31 - 1",
        )  # fmt: skip
    call.require(
        not align_corners or mode == "linear", "align_corners", f"is set for mode {mode!r}",
        "only 'linear' takes it",
    )  # fmt: skip
    given = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,)
    given = given * dimensions if len(given) == 1 else given
    call.require(
        len(given) == dimensions, "scale_factor", f"is {scale_factor!r}",
        f"give one number, or {dimensions}",
    )  # fmt: skip
    steps = []
    for size, count, factor in zip(sizes, output_size, given, strict=True):
        if align_corners:
            step = (size - 1) / (count - 1) if count > 1 else 0.0
        elif factor is None:
            step = size / count if mode == "linear" else float(np.float32(size) / np.float32(count))
        else:
            step = 1.0 / call.number("scale_factor", factor, math.ulp(0.0))
            step = step if mode == "linear" else float(np.float32(step))
        steps.append(step)
    three = images.leading
    return Grid(three(tuple(sizes), 1), three(tuple(output_size), 1), three(tuple(steps), 1.0),
                mode, bool(align_corners))  # fmt: skip


@primitive(family="resize", cuda="resize.cu", numba="resize.py")
def resize_forward(
    call, x, *, output_size, mode: str = "nearest", align_corners: bool = False,
    scale_factor=None, out=None,
):  # fmt: skip
    """Images in another size: ``y[n, o, c] = sum of w(o, i) x[n, i, c]``.

    The weights w of the modes are as in the table above. Nearest values are moved as they are;
    linear ones computed in float32 (float64 for float64) and rounded once. NaN and inf travel, also
    by a weight of 0 from the neighbour, except along a dimension that keeps its size.

    Parameters
    ----------
    x : (N, *spatial, C) with 1 to 3 spatial dimensions; float16, bfloat16, float32 or float64
    output_size : an int, or the size of each dimension
    mode : "nearest", "nearest-exact" or "linear"
    align_corners : for "linear", whether the outermost pixels of both images meet
    scale_factor : the factor that `output_size` was made with, if the step is to be its inverse and
        not the ratio of the sizes
    out : array of shape (N, *output_size, C) to write

    Raises
    ------
    TypeError, ValueError : another number of dimensions, a size below 1, an unknown mode,
        align_corners without "linear", a scale_factor that is not positive
    """
    x = call.array("x", x, dtypes=FLOATING)
    dimensions = images.spatial_dimensions(call, "x", x)
    counts = images.per_dimension(call, "output_size", output_size, dimensions, 1)
    grid = _grid(call, "x", x.shape[1:-1], counts, scale_factor, mode, align_corners)
    out = call.output("out", out, shape=(x.shape[0], *counts, x.shape[-1]), dtype=x.dtype)
    call.run(images.volumes(x), images.volumes(out), grid)
    return out


@primitive(family="resize", cuda="resize.cu", numba="resize.py")
def resize_backward(
    call, grad_output, *, spatial, mode: str = "nearest", align_corners: bool = False,
    scale_factor=None, out=None,
):  # fmt: skip
    """The gradient through resizing: ``out[n, i, c] = sum of w(o, i) grad_output[n, o, c]``.

    Every pixel sums the outputs that took it in a fixed order, in float32 (float64 for float64).

    Parameters
    ----------
    grad_output : (N, *output_size, C), float16, bfloat16, float32 or float64
    spatial : the sizes of the images before
    mode, align_corners, scale_factor : as in the forward call
    out : array of shape (N, *spatial, C) to write
    """
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING)
    dimensions = images.spatial_dimensions(call, "grad_output", grad_output)
    spatial = images.per_dimension(call, "spatial", tuple(spatial), dimensions, 1)
    counts = grad_output.shape[1:-1]
    grid = _grid(call, "spatial", spatial, counts, scale_factor, mode, align_corners)
    shape = (grad_output.shape[0], *spatial, grad_output.shape[-1])
    out = call.output("out", out, shape=shape, dtype=grad_output.dtype)
    call.run(images.volumes(grad_output), images.volumes(out), grid)
    return out


# ---- reference -----------------------------------------------------------------------------------


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


@resize_forward.reference
def _(x, out, grid):
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
    with np.errstate(all="ignore"):
        value = x.astype(accumulator_dtype(x.dtype), copy=False)
        for axis in axes:
            first, second, weight = line_of(grid, axis - 1)
            other = value.take(second, axis)
            other *= _column(weight, axis, value.dtype)
            value = value.take(first, axis)
            value *= _column(1 - weight, axis, value.dtype)
            value += other
        out[...] = value


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


@resize_backward.reference
def _(grad, out, grid):
    total = grad.astype(accumulator_dtype(grad.dtype), copy=False)
    with np.errstate(all="ignore"):
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


# ---- launch --------------------------------------------------------------------------------------


def _mode(grid: Grid) -> int:
    """enum ResizeMode of resize.cu."""
    return MODES.index(grid.mode) + grid.align_corners


def _launch(launch, name: str, read, out, grid: Grid) -> None:
    if out.size == 0:
        return
    width = images.pack_width(launch, out.shape[-1], read, out)
    items = out.size // width
    geometry = images.structure("int32", (*grid.sizes, *grid.counts, *grid.taps, _mode(grid)))
    launch(
        f"{name}<{launch.ctype(out.dtype)}, {width}>",
        images.blocks(items),
        (images.BLOCK,),
        (read, out, launch.int64(items), launch.int64(out.shape[-1] // width),
         *map(np.float64, grid.steps), geometry),
    )  # fmt: skip


@resize_forward.cuda
def _(launch, x, out, grid):
    _launch(launch, "resize_forward", x, out, grid)


@resize_backward.cuda
def _(launch, grad, out, grid):
    _launch(launch, "resize_backward", grad, out, grid)


def _numba(launch, name: str, read, out, grid: Grid) -> None:
    if out.size:
        along = zip(grid.sizes, grid.counts, grid.taps, strict=True)
        numbers = (tuple(map(np.int64, each)) for each in along)
        steps = tuple(map(np.float64, grid.steps))
        args = (read, out, *numbers, *steps, np.int64(_mode(grid)))
        launch(name, images.numba_grid(out.size), (64,), args)


@resize_forward.numba
def _(launch, x, out, grid):
    _numba(launch, "resize_forward", x, out, grid)


@resize_backward.numba
def _(launch, grad, out, grid):
    _numba(launch, "resize_backward", grad, out, grid)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@resize_forward.cost
def _(x, out, grid):
    taps = math.prod(grid.taps)
    flops = 0 if grid.mode != "linear" else (2 * taps - 1) * out.size
    return Cost(flops=flops, read=min(x.nbytes, taps * out.nbytes), written=out.nbytes)


@resize_backward.cost
def _(grad, out, grid):
    taps = math.prod(grid.taps)
    return Cost(flops=(2 * taps - 1) * grad.size, read=grad.nbytes, written=out.nbytes)


def _cases():
    """(name, image, output size, options, dtypes): every mode, larger and smaller."""
    one, linear = (FLOAT32,), {"mode": "linear"}
    yield "twice, nearest", (2, 3, 2, 8), (6, 4), {}, FLOATING
    yield "twice, linear", (2, 3, 2, 8), (6, 4), linear, FLOATING
    yield "odd, nearest", (1, 7, 5, 3), (5, 9), {}, one
    yield "odd, linear", (1, 7, 5, 3), (5, 9), linear, FLOATING
    yield "exact", (1, 5, 7, 1), (7, 3), {"mode": "nearest-exact"}, one
    yield "corners", (1, 4, 3, 2), (7, 1), {**linear, "align_corners": True}, one
    yield "one pixel", (2, 1, 1, 3), (3, 1), linear, one
    yield "a row by a factor", (2, 5, 3), (7,), {**linear, "scale_factor": 1.5}, one
    yield "a row by a factor, nearest", (1, 5, 4), (8,), {"scale_factor": (1.7,)}, one
    yield "volumes", (1, 2, 3, 2, 4), (3, 3, 5), linear, one
    yield "volumes, nearest", (1, 2, 3, 2, 1), (4, 3, 1), {}, one
    yield "no images", (0, 2, 2), (4,), linear, one


@resize_forward.samples
def _(rng):
    for name, shape, size, options, dtypes in _cases():
        yield Sample(name, (rng.normal(size=shape),), {"output_size": size, **options}, dtypes)
    x = rng.normal(size=(1, 4, 5, 8))
    x[0, 1, 1:4, 0] = np.nan, np.inf, -np.inf
    for mode in ("nearest", "linear"):
        yield Sample(f"NaN and inf, {mode}", (x,), {"output_size": (4, 10), "mode": mode},
                     unaligned=mode == "linear")  # fmt: skip


@resize_backward.samples
def _(rng):
    for name, (n, *spatial, c), size, options, dtypes in _cases():
        grad, options = rng.normal(size=(n, *size, c)), {"spatial": tuple(spatial), **options}
        yield Sample(name, (grad,), options, dtypes)
    grad = rng.normal(size=(1, 4, 6, 8))
    grad[0, 1, 2:4, 0] = np.nan, np.inf
    options = {"spatial": (4, 3), "mode": "linear"}
    yield Sample("NaN and inf, unaligned", (grad,), options, unaligned=True)


@resize_forward.inputs
def _(rng, shape):
    size = tuple(2 * n for n in shape[1:-1])
    x = rng.standard_normal(shape, dtype=np.float32)
    return (x,), {"output_size": size, "mode": "linear"}


@resize_backward.inputs
def _(rng, shape):
    n, *spatial, c = shape
    grad = rng.standard_normal((n, *(2 * size for size in spatial), c), dtype=np.float32)
    return (grad,), {"spatial": tuple(spatial), "mode": "linear"}


resize_forward.bench_shapes = resize_backward.bench_shapes = (
    (16, 28, 28, 64), (1, 28, 28, 64), (16, 56, 56, 64), (16, 112, 112, 64), (8, 16, 16, 512),
    (64, 32, 32, 3), (64, 14, 14, 256), (4, 256, 256, 16),
)  # fmt: skip
