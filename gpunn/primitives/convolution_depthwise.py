"""Depthwise convolutions: the sizes of blocks, and the launch. See convolution_depthwise.cu."""

from __future__ import annotations

import functools
import math

import numpy as np

from gpunn.primitives import matmul_simt
from gpunn.primitives.convolution_pass import OUTPUT, WEIGHT, Pass, structure
from gpunn.primitives.matmul_option import Option
from gpunn.primitives.samples import accumulator_dtype

THREADS, STRIP, RUN = 256, 4, 3  # as in the kernels
SHARED = 32 * 1024  # bytes of weights that a block may keep
MOST_CHUNKS = 65535  # blocks along the second dimension of a grid


def options(p: Pass, chip) -> list[Option]:
    """The direct kernel, if the pass is a depthwise one whose weights a block can keep."""
    if not p.shape.depthwise:
        return []
    if p.made != WEIGHT:
        lanes = _lanes(p, chip)
        if lanes == 0 or max(p.shape.channels, p.shape.outputs) > MOST_CHUNKS * lanes:
            return []
    return [Option("depthwise", 0.0, run)]  # nothing else comes near: products waste their tiles


def run(launch, p: Pass) -> None:
    """Launch the kernels of a pass."""
    launcher = launch.sibling("convolution_depthwise.cu")
    (_run_weight if p.made == WEIGHT else _run)(launcher, p)


def _width(p: Pass, launch) -> int:
    """Channels of a pack: 16 bytes where all is made of them."""
    width = 16 // p.out.itemsize
    if p.out.dtype == np.float64 or p.shape.group_outputs > 1 or p.shape.channels % width:
        return 1
    written = () if p.made == WEIGHT else (*p.finish.written, p.finish.bias)
    operands = (p.a, p.b) if p.made == WEIGHT else (p.a,)
    return width if launch.aligned(16, *operands, *written) else 1


def _lanes(p: Pass, launch) -> int:
    """Packs of channels that a block has: a power of two up to 32; 0 if not even one fits."""
    shape, width = p.shape, _width(p, launch)
    made = shape.outputs if p.made == OUTPUT else shape.channels
    lanes = min(32, 1 << (-(-made // width) - 1).bit_length())
    if p.made != WEIGHT:
        each = 1 if p.made == OUTPUT else shape.group_outputs
        one = shape.taps * each * width * accumulator_dtype(p.out.dtype).itemsize
        while lanes * one > SHARED:
            lanes //= 2
    return lanes


def _run(launch, p: Pass) -> None:
    shape, finish = p.shape, p.finish
    width, lanes = _width(p, launch), _lanes(p, launch)
    made, size, each = shape.outputs, shape.out, 1
    if p.made != OUTPUT:
        made, size, each = shape.channels, shape.size, shape.group_outputs
    strips = shape.batch * size[0] * size[1] * -(-size[2] // STRIP)
    chunks = -(-made // (lanes * width))
    # Blocks walk on, so that their weights serve several strips; eight for each multiprocessor.
    wide = min(-(-strips * lanes // THREADS), max(1, 8 * launch.multiprocessors // chunks))
    activation, alpha, _ = finish.numbers()
    launch(
        f"depthwise<{launch.ctype(p.out.dtype)}, {p.made}, {width}>",
        grid=(wide, chunks),
        block=(THREADS,),
        args=(
            p.a, p.b, structure(shape), np.int32(lanes), finish.bias, finish.residual, finish.out,
            finish.preactivation, activation, alpha,
        ),
        shared=each * shape.taps * lanes * width * accumulator_dtype(p.out.dtype).itemsize,
    )  # fmt: skip


def _run_weight(launch, p: Pass) -> None:
    shape, out = p.shape, p.out
    width, accumulator = _width(p, launch), accumulator_dtype(out.dtype)
    runs, lanes, groups, blocks = weight_blocks(shape.kernel, -(-shape.outputs // width))
    positions = shape.batch * math.prod(shape.out)
    rows = THREADS // (lanes * groups)
    # Four blocks for each multiprocessor, if a thread then still has eight positions.
    parts = max(1, min(-(-positions // (8 * rows)), 4 * launch.multiprocessors // blocks, 65535))
    part = -(-positions // parts)
    parts = max(1, -(-positions // max(1, part)))
    partial = launch.empty((parts, *out.shape), accumulator) if parts > 1 else None
    launch(
        f"depthwise_weight<{launch.ctype(out.dtype)}, {width}>",
        grid=(blocks, parts),
        block=(THREADS,),
        args=(
            p.a, p.b, structure(shape), np.int32(lanes), np.int32(groups), np.int64(part), out,
            partial,
        ),
    )  # fmt: skip
    if parts > 1:
        matmul_simt.combine(launch.sibling("matmul.cu"), p.finish, partial)


@functools.lru_cache(maxsize=256)
def weight_blocks(kernel: tuple[int, ...], packs: int) -> tuple[int, int, int, int]:
    """(runs of taps, lanes of a block, runs of a block, blocks) for `packs` packs of outputs."""
    runs = math.prod(kernel[:-1]) * -(-kernel[-1] // RUN)
    lanes = min(32, 1 << (packs - 1).bit_length())
    groups = min(runs, THREADS // lanes)
    return runs, lanes, groups, -(-packs // lanes) * -(-runs // groups)
