"""Padding of images: what stands around them, and the gradient that goes back into them.

=========  =================================================  ==================
mode       the pixel at i, outside 0 … n - 1                  needs
=========  =================================================  ==================
constant   `value`
reflect    mirrored at the edge pixels: -i, 2(n - 1) - i      padding < n
replicate  the nearest edge pixel: 0 or n - 1                 n > 0
circular   from the other side: i + n, i - n                  padding <= n
=========  =================================================  ==================

A negative padding cuts pixels off, but not with circular, where it would be unclear what of the
rest comes round. Each dimension is padded for itself, so corners are those of the padding of one
dimension after the other.
"""

from __future__ import annotations

import operator

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import images
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOATING, Sample, accumulator_dtype

MODES = ("constant", "reflect", "replicate", "circular")
PADDABLE = (*FLOATING, *map(np.dtype, (np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64)))

# ---- specification -------------------------------------------------------------------------------


def _pairs(call, padding, dimensions: int) -> tuple[tuple[int, int], ...]:
    """`padding` as one (before, after) for each dimension."""
    try:
        found = tuple(tuple(map(operator.index, pair)) for pair in padding)
    except TypeError:
        found = None
    if found is None or any(len(pair) != 2 for pair in found):
        raise TypeError(
            f"{call.primitive.name}: padding is {padding!r}; expected a pair (before, after) of "
            "ints for each spatial dimension."
        )
    call.require(
        len(found) == dimensions,
        "padding",
        f"has {len(found)} pairs, but there are {dimensions} spatial dimensions",
        "give one pair (before, after) for each",
    )
    return found


def _check_sizes(call, sizes, pairs, mode: str) -> None:
    """Whether sizes can be padded so."""
    for size, (before, after) in zip(sizes, pairs, strict=True):
        where = f"is {pairs} for spatial sizes {tuple(sizes)}"
        call.require(
            size + before + after >= (mode != "constant"),
            "padding",
            f"{where}, which leaves {size + before + after} of {size}",
            "cut off less",
        )
        call.require(
            mode != "circular" or min(before, after) >= 0,
            "padding",
            f"{where}, and circular cuts nothing off",
            "slice the array first",
        )
        limit = {"reflect": size - 1, "circular": size}.get(mode)
        call.require(
            limit is None or max(before, after) <= limit,
            "padding",
            f"{where}, and {mode} can pad {size} pixels by {limit} at most",
            "pad less, or use mode 'replicate' or 'constant'",
        )
        call.require(
            mode == "constant" or size > 0, "x", f"has spatial sizes {tuple(sizes)}",
            f"{mode} needs a pixel to repeat",
        )  # fmt: skip


@primitive(family="pad", cuda="pad.cu", numba="pad.py")
def pad_forward(call, x, *, padding, mode: str = "constant", value: float = 0.0, out=None):
    """Pixels around images: ``out[n, o, c] = x[n, source(o - before), c]``, or ``value``.

    Values are moved, not computed with: every bit pattern stays as it is.

    Parameters
    ----------
    x : (N, *spatial, C) with 1 to 3 spatial dimensions; floating, bool or integers
    padding : a pair (before, after) for each spatial dimension; negative ones cut off
    mode : "constant", "reflect", "replicate" or "circular", as in the table above
    value : what "constant" puts in, as a number of x's dtype
    out : array of shape (N, *(before + size + after), C) and x's dtype; shares no memory with x

    Raises
    ------
    TypeError, ValueError : a dtype that is not known, no pair for a dimension, a size below 0
        (below 1 unless "constant"), more padding than the mode has pixels for
    """
    call.choice("mode", mode, MODES)
    x = call.array("x", x, dtypes=PADDABLE)
    dimensions = images.spatial_dimensions(call, "x", x)
    pairs = _pairs(call, padding, dimensions)
    _check_sizes(call, x.shape[1:-1], pairs, mode)
    sizes = tuple(n + sum(pair) for n, pair in zip(x.shape[1:-1], pairs, strict=True))
    shape = (x.shape[0], *sizes, x.shape[-1])
    out = call.output("out", out, shape=shape, dtype=x.dtype)
    value = call.number("value", value) if value == value else float("nan")
    call.run(images.volumes(x), images.volumes(out), images.leading(pairs, (0, 0)), mode, value)
    return out


@primitive(family="pad", cuda="pad.cu", numba="pad.py")
def pad_backward(call, grad_output, *, padding, mode: str = "constant", out=None):
    """The gradient through padding: each pixel's own, plus those of its copies in the padding.

    ``out[n, i, c]`` is the sum of ``grad_output[n, o, c]`` over all o with ``source(o - before) =
    i``, in a fixed order, in float32 (float64 for float64), rounded once. Pixels that were cut off
    get 0.

    Parameters
    ----------
    grad_output : (N, *padded, C), float16, bfloat16, float32 or float64
    padding, mode : as in the forward call
    out : array of shape (N, *(padded - before - after), C) and of its dtype; shares no memory
    """
    call.choice("mode", mode, MODES)
    grad_output = call.array("grad_output", grad_output, dtypes=FLOATING)
    dimensions = images.spatial_dimensions(call, "grad_output", grad_output)
    pairs = _pairs(call, padding, dimensions)
    padded = grad_output.shape[1:-1]
    sizes = tuple(n - sum(pair) for n, pair in zip(padded, pairs, strict=True))
    call.require(
        min(sizes) >= 0, "padding", f"is {pairs}, more than the padded sizes {padded}", "pad less"
    )
    _check_sizes(call, sizes, pairs, mode)
    shape = (grad_output.shape[0], *sizes, grad_output.shape[-1])
    out = call.output("out", out, shape=shape, dtype=grad_output.dtype)
    call.run(images.volumes(grad_output), images.volumes(out), images.leading(pairs, (0, 0)), mode)
    return out


# ---- reference -----------------------------------------------------------------------------------


def _sources(mode: str, size: int, before: int, after: int) -> np.ndarray:
    """Which pixel of 0 … size - 1 stands at each place of the padded dimension."""
    place = np.arange(-before, size + after)
    if mode == "reflect":
        place = np.abs(place)
        return np.where(place >= size, 2 * (size - 1) - place, place)
    return place % size if mode == "circular" else np.clip(place, 0, size - 1)


def _interior(size: int, before: int, after: int) -> tuple[slice, slice]:
    """(where the image stands in the padded dimension, what of the image stands there)."""
    cut = slice(max(-before, 0), max(size - max(-after, 0), 0))
    start = max(before, 0)
    return slice(start, start + max(cut.stop - cut.start, 0)), cut


def _borders(mode: str, axis: int, size: int, before: int, after: int):
    """(places in the padding, what they repeat) in the padded dimension, for padding >= 0."""
    def at(*bounds):
        return (slice(None),) * axis + (slice(*bounds),)

    end = before + size
    if mode == "reflect":
        left, right = at(2 * before, before, -1), at(end - 2, end - 2 - after, -1)
        if end - 2 - after < 0:
            right = at(end - 2, None, -1)
    elif mode == "replicate":
        left, right = at(before, before + 1), at(end - 1, end)
    else:
        left, right = at(size, end), at(before, before + after)
    return [pair for n, *pair in ((before, at(0, before), left),
                                  (after, at(end, end + after), right)) if n]  # fmt: skip


@pad_forward.reference
def _(x, out, pairs, mode, value):
    axes = [(axis, x.shape[axis], *pair) for axis, pair in enumerate(pairs, 1)]
    if mode != "constant" and min(map(min, pairs)) < 0:
        for axis, size, before, after in axes:
            x = x.take(_sources(mode, size, before, after), axis)
        out[...] = x
        return
    places, cuts = zip(*(_interior(*rest) for _, *rest in axes), strict=True)
    out[(slice(None), *places)] = x[(slice(None), *cuts)]
    for axis, size, before, after in reversed(axes):  # later ones are whole already
        lines, place = out[(slice(None), *places[: axis - 1])], places[axis - 1]
        if mode != "constant":
            for border, repeated in _borders(mode, axis, size, before, after):
                lines[border] = lines[repeated]
            continue
        for border in (slice(0, place.start), slice(place.stop, None)):
            lines[(slice(None),) * axis + (border,)] = value


@pad_backward.reference
def _(grad, out, pairs, mode):
    axes = [(axis, out.shape[axis], *pair) for axis, pair in enumerate(pairs, 1)]
    places, cuts = zip(*(_interior(*rest) for _, *rest in axes), strict=True)
    with quiet():
        if mode == "constant":
            if min(map(min, pairs)) < 0:
                out[...] = 0
            out[(slice(None), *cuts)] = grad[(slice(None), *places)]
            return
        total = grad.astype(accumulator_dtype(grad.dtype))  # a copy, to be folded
        for axis, size, before, after in reversed(axes):
            if min(before, after) < 0:
                total = _folded(total, axis, _sources(mode, size, before, after), size)
                continue
            for border, repeated in _borders(mode, axis, size, before, after):
                if mode == "replicate":
                    total[repeated] += total[border].sum(axis, keepdims=True)
                else:
                    total[repeated] += total[border]
            total = total[(slice(None),) * axis + (slice(before, before + size),)]
        out[...] = total


def _folded(grad, axis: int, sources, size: int):
    """The sums of what stands at each source, along one axis."""
    total = np.zeros((*grad.shape[:axis], size, *grad.shape[axis + 1 :]), grad.dtype)
    lines, parts = np.moveaxis(total, axis, 0), np.moveaxis(grad, axis, 0)
    for place, source in enumerate(sources):
        lines[source] += parts[place]
    return total


# ---- launch --------------------------------------------------------------------------------------

_EACH = 4  # units of a row that one thread moves, as in pad.cu
_UNITS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "uint64", 16: "ulonglong2"}


def _row_threads(units: int) -> int:
    """Threads that share a stretch of a row: a power of two, a warp at most."""
    threads = 1
    while threads < 32 and threads * _EACH < units:
        threads *= 2
    return threads


def _geometry(sizes, padded, pairs, units: int, rows: int, row: int, mode: str):
    """struct PadGeometry of pad.cu, and the number of threads."""
    threads = _row_threads(row)
    segments = -(-row // (threads * _EACH))
    before = (pair[0] for pair in pairs)
    values = (*sizes, *padded, *before, units, rows, row, segments, threads, MODES.index(mode))
    return images.structure("int64", values), rows * segments * threads


@pad_forward.cuda
def _(launch, x, out, pairs, mode, value):
    if out.size == 0:
        return
    n, *padded, channels = out.shape
    row = channels * x.itemsize
    whole = row % 16 == 0 and launch.aligned(16, out, x if x.size else None)
    unit = 16 if whole else x.itemsize
    pattern = np.full(16 // x.itemsize, value).astype(x.dtype).view(np.uint64)
    units = row // unit
    geometry, threads = _geometry(
        x.shape[1:4], padded, pairs, units, n * padded[0] * padded[1], padded[2] * units, mode
    )
    launch(
        f"pad_forward<{_UNITS[unit]}>",
        images.blocks(threads),
        (images.BLOCK,),
        (x, out, pattern[0], pattern[1], geometry),
    )


@pad_backward.cuda
def _(launch, grad, out, pairs, mode):
    if out.size == 0:
        return
    n, *sizes, channels = out.shape
    width = images.pack_width(launch, channels, out, grad if grad.size else None)
    units = channels // width
    geometry, threads = _geometry(
        sizes, grad.shape[1:4], pairs, units, n * sizes[0] * sizes[1], sizes[2] * units, mode
    )
    launch(
        f"pad_backward<{launch.ctype(out.dtype)}, {width}>",
        images.blocks(threads),
        (images.BLOCK,),
        (grad, out, geometry),
    )


@pad_forward.numba
def _(launch, x, out, pairs, mode, value):
    if out.size:
        before = tuple(np.int64(pair[0]) for pair in pairs)
        constant = np.full((), value).astype(x.dtype)[()]
        args = (x, out, *before, np.int32(MODES.index(mode)), constant)
        launch("pad_forward", images.numba_grid(out.size), (64,), args)


@pad_backward.numba
def _(launch, grad, out, pairs, mode):
    if out.size:
        before = tuple(np.int64(pair[0]) for pair in pairs)
        args = (grad, out, *before, np.int32(MODES.index(mode)))
        launch("pad_backward", images.numba_grid(out.size), (64,), args)


# ---- cost, samples, benchmark inputs -------------------------------------------------------------


@pad_forward.cost
def _(x, out, pairs, mode, value):
    return Cost(flops=0, read=min(x.nbytes, out.nbytes), written=out.nbytes)


@pad_backward.cost
def _(grad, out, pairs, mode):
    copies = 0 if mode == "constant" else max(grad.size - out.size, 0)
    return Cost(flops=copies, read=min(grad.nbytes, out.nbytes) + copies * grad.itemsize,
                written=out.nbytes)  # fmt: skip


def _cases():
    """(name, unpadded shape, padding, mode, dtypes): every mode, packs and single elements."""
    f32 = FLOATING[2:3]
    yield "reflect, packs", (2, 5, 4, 8), ((2, 1), (3, 2)), "reflect", FLOATING[1:3]
    yield "reflect, a row", (2, 9, 3), ((8, 8),), "reflect", FLOATING[2:]
    yield "replicate", (1, 3, 2, 4, 4), ((1, 2), (0, 3), (2, 0)), "replicate", f32
    yield "replicate one pixel", (2, 1, 1, 1), ((3, 0), (2, 5)), "replicate", f32
    yield "circular", (1, 4, 5, 3), ((4, 0), (5, 5)), "circular", f32
    yield "constant", (2, 3, 4, 3), ((1, 2), (0, 1)), "constant", f32
    yield "cut off", (1, 6, 7, 4), ((-2, 1), (3, -4)), "constant", f32
    yield "cut off, reflect", (1, 6, 7, 1), ((-2, 5), (-1, -1)), "reflect", f32
    yield "long rows", (1, 2, 300, 1), ((0, 0), (7, 90)), "circular", f32
    yield "no batch", (0, 3, 4), ((1, 1),), "reflect", f32


@pad_forward.samples
def _(rng):
    for name, shape, padding, mode, dtypes in _cases():
        options = {"padding": padding, "mode": mode, "value": -1.5}
        yield Sample(name, (rng.normal(size=shape),), options, dtypes, exact=True)
    x = rng.normal(size=(2, 5, 8))
    x[0, :2, :3] = [[np.nan, np.inf, -0.0], [-np.inf, 6e4, 1e-7]]
    options = {"padding": ((2, 3),), "value": np.nan}
    yield Sample("NaN", (x,), options, FLOATING, exact=True)
    yield Sample("unaligned", (x,), options, FLOATING[::2], exact=True, unaligned=True)
    yield Sample("nothing inside", (np.zeros((1, 0, 3)),), {"padding": ((1, 1),)}, exact=True)
    mask = rng.normal(size=(2, 4, 3)) > 0
    yield Sample("mask", (mask,), {"padding": ((1, 2),), "value": 1}, exact=True)


@pad_backward.samples
def _(rng):
    for name, (n, *sizes, c), padding, mode, dtypes in _cases():
        padded = (size + sum(pair) for size, pair in zip(sizes, padding, strict=True))
        yield Sample(name, (rng.normal(size=(n, *padded, c)),),
                     {"padding": padding, "mode": mode}, dtypes)  # fmt: skip
    grad = rng.normal(size=(2, 4, 5, 8))
    yield Sample("unaligned", (grad,), {"padding": ((1, 1), (0, 2)), "mode": "reflect"},
                 unaligned=True)  # fmt: skip


def _bench(rng, shape):
    return rng.standard_normal(shape, dtype=np.float32)


@pad_forward.inputs
def _(rng, shape):
    return (_bench(rng, shape),), {"padding": ((1, 1), (1, 1)), "mode": "reflect"}


@pad_backward.inputs
def _(rng, shape):
    n, h, w, c = shape
    return (_bench(rng, (n, h + 2, w + 2, c)),), {"padding": ((1, 1), (1, 1)), "mode": "reflect"}


pad_forward.bench_shapes = pad_backward.bench_shapes = (
    (64, 28, 28, 64), (1, 28, 28, 64), (64, 56, 56, 64), (256, 32, 32, 3), (64, 14, 14, 256),
    (256, 7, 7, 512), (16, 112, 112, 64), (8, 512, 512, 1),
)  # fmt: skip
