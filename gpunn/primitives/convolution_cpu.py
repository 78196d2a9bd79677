"""Convolution on the CPU: patches gathered into tiles that stay in the cache, times the weight.

All three products run over tiles, each of a few images or a few rows of one:

    forward           columns(x) W^T, then bias, activation and residual while the tile is warm
    weight gradient   grad^T columns(x), added up tile by tile
    input gradient    where no stride is in the way, the forward with the kernel turned around;
                      otherwise grad W for each tap, added to where the tap came from

where a row of `columns` is the patch under the kernel at one place. What is gathered is a strided
view of the input (or of a small padded copy), so the gathering is one copy by NumPy. The tiles are
cut by the shapes alone and shared out among threads (`cpu_threads`), so the result is the same
with any number of them. Depthwise convolutions have no product: a loop over the taps.

Arrays are channels-last, (N, *spatial, C), C-contiguous. Computed in float32 (float64 for
float64), rounded once.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.activation import _VALUE
from gpunn.primitives.convolution_patches import (
    LARGE,
    TILE,
    Patches,
    even,
    ones,
    rows_of,
    scratch,
    worth_pieces,
)
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.samples import accumulator_dtype

_PARTS = 32  # at most so many sums are begun side by side
_BLOCK = 64  # outputs of a piece at the least, where places are too few to be shared out
_SLOW = 16  # how many products' multiply-adds one of a loop over the taps is like


def forward(
    x,
    weight,
    out,
    *,
    stride,
    low,
    dilation,
    groups: int = 1,
    bias=None,
    activation: str = "identity",
    alpha: float = 0.0,
    residual=None,
    preactivation=None,
) -> None:
    """``out = activation(conv(x, weight) + bias) + residual``, into `out` (N, *out, O).

    `stride`, `low` (zeros in front, negative to leave elements out) and `dilation` have an entry
    for each spatial dimension; the zeros behind follow from the shape of `out`. `preactivation`
    receives what the activation is applied to. `residual` may be `out`.
    """
    dtype = accumulator_dtype(x.dtype)
    factor = weight.reshape(groups, len(weight) // groups, -1).astype(dtype, copy=False)
    if weight.shape[-1] == 1 and len(weight) == groups:
        factor = np.ascontiguousarray(factor[:, 0].T)
    else:
        factor = factor.transpose(0, 2, 1)
        if weight.size < LARGE:
            factor = np.ascontiguousarray(factor)  # many tiles will read it
    finish = _Finish(bias, activation, alpha, dtype, residual, preactivation)
    _apply(x, factor, weight.shape[1:-1], out, stride, low, dilation, finish)


def input_gradient(
    grad_output,
    weight,
    out,
    *,
    stride,
    low,
    dilation,
    groups: int = 1,
    bias=None,
    activation: str = "identity",
    alpha: float = 0.0,
) -> None:
    """The gradient by the input, into `out` (N, *spatial, C); then bias and activation.

    The latter are for the transposed convolution, whose forward this is.
    """
    dtype = accumulator_dtype(out.dtype)
    taps, channels = weight.shape[1:-1], weight.shape[-1]
    outputs, count = len(weight) // groups, math.prod(weight.shape[1:-1])
    finish = _Finish(bias, activation, alpha, dtype)
    depthwise = outputs == channels == 1
    factor = weight.reshape(groups, outputs, count, channels).transpose(0, 2, 1, 3)
    # With a stride, only some of the patches of the gradient would count. And patches are many
    # to gather where a place has more outputs than channels; then the taps' products are smaller.
    few = 2 * channels < outputs
    if any(step > 1 for step in stride) or few or grad_output.size == 0:
        factor = factor[:, :, 0, 0].T if depthwise else factor
        factor = np.ascontiguousarray(factor, dtype)
        _scatter(grad_output, factor, taps, out, stride, low, dilation, finish)
        return
    turned = factor[:, ::-1].astype(dtype, order="C")  # (G, taps, O / G, C / G)
    turned = turned.reshape(groups, count).T if depthwise else turned.reshape(groups, -1, channels)
    before = tuple(d * (k - 1) - p for d, k, p in zip(dilation, taps, low, strict=True))
    _apply(grad_output, np.ascontiguousarray(turned), taps, out, stride, before, dilation, finish)


def weight_gradient(
    grad_output, x, out, *, stride, low, dilation, groups: int = 1, bias_gradient=None
) -> None:
    """The gradient by the weight, into `out` (O, *kernel, C / groups), and by the bias."""
    dtype = accumulator_dtype(x.dtype)
    taps, channels = out.shape[1:-1], out.shape[-1]
    if bias_gradient is not None:
        _sum_rows(grad_output.reshape(-1, grad_output.shape[-1]), bias_gradient, dtype)
    if grad_output.size == 0 or x.size == 0:
        out[...] = 0
        return
    patches = Patches(x, taps, grad_output.shape[1:-1], stride, low, dilation, dtype)
    if channels == 1 and len(out) == groups:
        _depthwise_weight_gradient(patches, grad_output, out)
        return
    # A large gradient is made tap by tap, since one product over all places writes it but once.
    # A small one is made for several parts of the places, and these are added.
    count, rows = math.prod(taps), grad_output.size // len(out)
    every = [slice(tap, tap + 1) for tap in range(count)] if out.size >= LARGE else [slice(count)]
    width = every[0].stop * channels * groups
    pieces = patches.pieces(width, len(out), out.size // len(every))
    most = max(4, min(_PARTS, (1 << 24) // out.size))
    parts = even(len(pieces), min(most, len(pieces)) if len(every) == 1 else 1)
    wanted = -(-worth_pieces(out.size * rows) // (len(parts) * len(every)))
    across = [slice(0, len(out))]
    if groups == 1:
        across = even(len(out), max(1, min(wanted, len(out) // _BLOCK)))
    sums = np.empty((len(parts), groups, len(out) // groups, count, channels), dtype)

    def work(item) -> None:
        part, some, block = item
        inside = block if groups == 1 else slice(None)
        total = sums[part, :, inside, some]
        shape = (*total.shape[:2], -1)
        for place, piece in enumerate(pieces[parts[part]]):
            grad = grad_output[(*piece, ..., block)].astype(dtype, copy=False)
            turned = rows_of(grad, groups).transpose(0, 2, 1)
            if place == 0 and len(every) == 1:
                np.matmul(turned, patches.columns(piece, groups), out=total.reshape(shape))
                continue
            columns = patches.columns(piece, groups, None if len(every) == 1 else some.start)
            found = scratch("sums", (*total.shape[:2], columns.shape[-1]), dtype)
            np.matmul(turned, columns, out=found)
            found = found.reshape(total.shape)
            if place == 0:
                total[...] = found
            else:
                np.add(total, found, out=total)

    for_each(work, list(itertools.product(range(len(parts)), every, across)))
    with quiet():
        out[...] = (sums[0] if len(sums) == 1 else np.add.reduce(sums)).reshape(out.shape)


class _Finish:
    """From the sums of a piece to its output: bias, activation, residual."""

    def __init__(self, bias, activation, alpha, dtype, residual=None, preactivation=None):
        self.bias = None if bias is None else bias.astype(dtype, copy=False)
        self.activation, self.alpha = activation, alpha
        self.residual, self.preactivation = residual, preactivation

    def __call__(self, total, target, at, some) -> None:
        """`target` is the output at index `at`, whose channels are the slice `some`."""
        if self.bias is not None:
            np.add(total, _along_rows(self.bias[some], total), out=total)
        if self.preactivation is not None:
            self.preactivation[at] = total
        if self.activation == "relu":
            np.maximum(total, 0, out=total)
        elif self.activation != "identity":
            total = _VALUE[self.activation](total, self.alpha)
        if self.residual is not None:
            total = total + self.residual[at]
        if total is not target:
            target[...] = total


def _along_rows(values, total):
    """Values (C,) repeated for a row of places: NumPy's inner loop then runs over all of it."""
    repeated = scratch("repeated", total.shape[-2:], values.dtype)
    repeated[...] = values
    return repeated


# ---- forward -------------------------------------------------------------------------------------


def _apply(x, factor, taps, out, stride, low, dilation, finish) -> None:
    """The convolution by a factor (G, K, O / G), or (taps, C) where each channel is by itself."""
    if out.size == 0:
        return
    depthwise, dtype = factor.ndim == 2, factor.dtype
    groups = 1 if depthwise else len(factor)
    patches = Patches(x, taps, out.shape[1:-1], stride, low, dilation, dtype)
    width = 2 * out.shape[-1] if depthwise else factor.shape[1] * groups
    pieces = patches.pieces(width, out.shape[-1], factor.size * (_SLOW if depthwise else 1))
    # Blocks of outputs, where the pieces alone are few: each reads its part of the weight.
    few = -(-worth_pieces(out.size * factor.shape[-2]) // len(pieces))
    few = 1 if depthwise or groups > 1 else max(1, min(few, out.shape[-1] // _BLOCK))
    blocks = even(out.shape[-1], few)
    direct = out.dtype == dtype and finish.residual is not out

    def work(item) -> None:
        piece, some = item
        at = (*piece, ..., some)
        target = out[at]
        total = target if direct else scratch("total", target.shape, dtype)
        if depthwise:
            _depthwise(patches, piece, factor, total)
        else:
            part = factor if groups > 1 else factor[:, :, some]
            np.matmul(patches.columns(piece, groups), part, out=rows_of(total, groups))
        finish(total, target, at, some)

    for_each(work, list(itertools.product(pieces, blocks)))


# ---- input gradient with a stride ----------------------------------------------------------------


def _scatter(grad_output, factor, taps, out, stride, low, dilation, finish) -> None:
    """The product of each tap with the gradient, added to the places that the tap read.

    The factor is (G, taps, O / G, C / G), or (taps, C) where each channel is by itself. A piece is
    some channels of one image: what different threads add to lies apart.
    """
    if out.size == 0:
        return
    depthwise, dtype = factor.ndim == 2, factor.dtype
    loop = _depthwise_loops(out, dtype) if depthwise else None
    if loop is not None:
        steps = (taps[1], *stride, *dilation, *low)

        def spread(image: int) -> None:
            at = (slice(image, image + 1), ..., slice(None))
            loop.input_gradient(grad_output[image], factor, *steps, out[image])
            finish(out[at], out[at], at, slice(None))

        for_each(spread, range(len(out)))
        return
    groups = out.shape[-1] if depthwise else len(factor)
    outputs, channels = (1, 1) if depthwise else factor.shape[2:]
    dimensions = list(zip(out.shape[1:-1], stride, low, dilation, strict=True))
    every = list(itertools.product(*map(range, taps)))
    row = math.prod(grad_output.shape[2:-1]) * (2 * groups if depthwise else len(every) * channels)
    step = max(1, TILE // max(1, row))
    starts = range(0, grad_output.shape[1], step)

    def add(total, values, tap, start: int) -> None:
        """Values (*places, channels) of one tap, the first row of which is `start`."""
        read, write = [], []
        for (size, s, p, d), k, n in zip(dimensions, tap, values.shape, strict=False):
            base = k * d - p + (0 if read else start * s)
            first, last = max(0, -(base // s)), min(n, (size - 1 - base) // s + 1)
            if first >= last:
                return
            read.append(slice(first, last))
            write.append(slice(first * s + base, (last - 1) * s + base + 1, s))
        place = total[tuple(write)]
        np.add(place, values[tuple(read)], out=place)

    def work(item) -> None:
        image, some = item
        at = (slice(image, image + 1), ..., some)
        target = out[at]
        total = target if out.dtype == dtype else scratch("total", target.shape, dtype)
        total[...] = 0
        for start in starts:
            grad = grad_output[image, start : start + step].astype(dtype, copy=False)
            if depthwise:
                grad = grad[..., some]
                product = scratch("product", grad.shape, dtype)
                for tap, slope in zip(every, factor, strict=True):
                    np.multiply(grad, _along_rows(slope[some], grad) if grad.ndim > 1 else slope,
                                out=product)  # fmt: skip
                    add(total[0], product, tap, start)
                continue
            for begin in range(some.start, some.stop, channels):
                group, end = begin // channels, min(begin + channels, some.stop)
                inside = slice(begin - group * channels, end - group * channels)
                flat = grad[..., group * outputs : (group + 1) * outputs].reshape(-1, outputs)
                product = scratch("product", (len(every), len(flat), end - begin), dtype)
                np.matmul(flat, factor[group, :, :, inside], out=product)
                product = product.reshape(len(every), *grad.shape[:-1], end - begin)
                part = total[0][..., begin - some.start : end - some.start]
                for tap, values in zip(every, product, strict=True):
                    add(part, values, tap, start)
        finish(total, target, at, some)

    wanted = worth_pieces(grad_output.size * len(every) * channels * (_SLOW if depthwise else 1))
    few = -(-wanted // len(out))
    if groups == 1:
        blocks = even(channels, max(1, min(few, channels // (_BLOCK // 4))))
    else:
        cut = even(groups, min(few, groups))
        blocks = [slice(one.start * channels, one.stop * channels) for one in cut]
    items = list(itertools.product(range(len(out)), blocks))
    runs = even(len(items), len(items) if wanted > 1 else 1)
    for_each(lambda run: [work(item) for item in items[run]], runs)


# ---- depthwise -----------------------------------------------------------------------------------


def _depthwise_loops(images, dtype):
    """Compiled ones, where the images have two dimensions and are large."""
    if images.ndim != 4 or images.dtype != dtype:
        return None
    return loops("depthwise", dtype, images.size)


def _depthwise(patches, piece, factor, total) -> None:
    """One channel to one channel: the sum over taps of what is under a tap times its factor."""
    loop = _depthwise_loops(patches.x, patches.dtype)
    if loop is not None:
        loop.forward(patches.padded(piece), factor, *patches.steps(), total)
        return
    product = scratch("product", total.shape, total.dtype)
    for number, (under, own) in enumerate(zip(patches.taps_of(piece), factor, strict=True)):
        into = total if number == 0 else product
        np.multiply(under, _along_rows(own, total), out=into)
        if number:
            np.add(total, product, out=total)


def _depthwise_weight_gradient(patches, grad_output, out) -> None:
    """The sums over all places of the gradient times what is under a tap."""
    groups, dtype = len(out), patches.dtype
    pieces = patches.pieces(2 * groups, groups, _SLOW * out.size)
    parts = even(len(pieces), min(_PARTS, len(pieces)))
    sums = np.zeros((len(parts), out.size // groups, groups), dtype)
    loop = _depthwise_loops(patches.x, patches.dtype)

    def work(part: int) -> None:
        for piece in pieces[parts[part]]:
            if loop is not None:
                grad = grad_output[piece]
                loop.weight_gradient(patches.padded(piece), grad, *patches.steps(), sums[part])
                continue
            grad = grad_output[piece].astype(dtype, copy=False)
            product = scratch("product", grad.shape, dtype)
            flat = product.reshape(-1, groups)
            for total, under in zip(sums[part], patches.taps_of(piece), strict=True):
                np.multiply(under, grad, out=product)
                np.add(total, ones(len(flat), dtype) @ flat, out=total)

    for_each(work, range(len(parts)))
    with quiet():
        out[...] = np.add.reduce(sums).T.reshape(out.shape)


def _sum_rows(rows, out, dtype) -> None:
    """The sums of the columns, by runs of rows."""
    parts = even(len(rows), max(1, min(_PARTS, len(rows) // 512)))
    sums = np.empty((len(parts), rows.shape[1]), dtype)

    def work(part: int) -> None:
        some = rows[parts[part]].astype(dtype, copy=False)
        sums[part] = ones(len(some), dtype) @ some

    for_each(work, range(len(parts)))
    with quiet():
        out[...] = np.add.reduce(sums)
