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

import math

import numpy as np

from gpunn.primitives import images, resize_reference
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.resize_reference import MODES, Grid
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FLOATING, Sample

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

resize_forward.reference(resize_reference.forward)
resize_backward.reference(resize_reference.backward)

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
    one, packs, linear = (FLOAT32,), (BFLOAT16, FLOAT32), {"mode": "linear"}
    yield "twice, nearest", (2, 3, 2, 8), (6, 4), {}, packs
    yield "twice, linear", (2, 3, 2, 8), (6, 4), linear, packs
    yield "odd, nearest", (1, 7, 5, 3), (5, 9), {}, one
    yield "odd, linear", (1, 7, 5, 3), (5, 9), linear, (FLOAT32, FLOAT64)
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
        # The 16-bit types' kernels are the same lines: here the other one.
        dtypes = tuple(FLOAT16 if dtype is BFLOAT16 else dtype for dtype in dtypes)
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
