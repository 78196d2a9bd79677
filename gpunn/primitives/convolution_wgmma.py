"""Convolutions on the tensor cores of sm_90a (H100, H200): what they can make, tiles, the launch.

The kernel is kernels/cuda/convolution_wgmma.cu. It makes float16 and bfloat16 passes of one group
whose operands tensor copies (TMA) can read: channels in packs of 16 bytes, and strides, padding and
dilation within what an im2col map can hold. The input's gradient is made at strides of 1, the
weight's where the channels come in lines of 64; the others are left to `convolution_mma`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from gpunn.primitives import matmul_simt
from gpunn.primitives.convolution_pass import INPUT, OUTPUT, WEIGHT, Pass, sizes, structure
from gpunn.primitives.convolution_problem import Geometry
from gpunn.primitives.matmul_operand import mapped, tensor_map
from gpunn.primitives.matmul_option import Option
from gpunn.primitives.matmul_wgmma import Tile, blocks_of_grid, leaves_directly, timed, word

LINE = 64  # channels, or places, in a k block: 128 bytes

# Few, because each is a kernel for each pass and way out. The weight's gradient is made the other
# way round: its taps and channels, always many, lie along the rows of tiles.
_LARGE = Tile(128, 256, 2, cluster=2, rate=0.78)
_TURNS = Tile(128, 128, 2, pingpong=True, cluster=2, rate=0.72)
_NARROW = Tile(256, 64, 2, cluster=2, rate=0.5)
TILES = {
    OUTPUT: (_LARGE, _TURNS, _NARROW),
    INPUT: (_LARGE, _TURNS, _NARROW),
    WEIGHT: tuple(
        replace(tile, swapped=True)
        for tile in (
            _LARGE, Tile(128, 128, 2, cluster=2, rate=0.65), Tile(128, 64, 2, rate=0.45),
        )
    ),
}  # fmt: skip

# What an im2col map of 2 or 3 spatial dimensions holds: places of the corners of its box from the
# array's, and of a tap from the first one; and strides.
_CORNER, _OFFSET, _STRIDE = {2: 128, 3: 16}, {2: 255, 3: 31}, 8


@dataclass(frozen=True, slots=True)
class Places:
    """The box of an im2col map: where the kernel's first tap stands, relative to the array."""

    lower: tuple[int, ...]
    upper: tuple[int, ...]
    stride: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def places_of(made: str, shape: Geometry) -> Places | None:
    """The box of the gathered operand in 2 or 3 spatial dimensions, None where no map holds it."""
    reach = tuple((k - 1) * d for k, d in zip(shape.kernel, shape.dilation, strict=True))
    flat = shape.size[0] == shape.out[0] == shape.kernel[0] == 1 and not shape.low[0]
    if made == INPUT:
        lower = [p - r for p, r in zip(shape.low, reach, strict=True)]
        upper, stride = [-p for p in shape.high], (1, 1, 1)
    else:
        lower = [-p for p in shape.low]
        upper = [p - r for p, r in zip(shape.high, reach, strict=True)]
        stride = shape.stride
    first = int(flat)
    dimensions = 3 - first
    corner, offset = _CORNER[dimensions], _OFFSET[dimensions]
    fits = (
        all(-corner <= at < corner for at in (*lower[first:], *upper[first:]))
        and max(reach) <= offset
        and max(stride[first:]) <= _STRIDE
    )
    return Places(tuple(lower[first:]), tuple(upper[first:]), stride[first:]) if fits else None


def options(p: Pass, chip) -> list[Option]:
    """Every tile that can make a pass, with its best number of parts of K and estimated time."""
    shape = p.shape
    if chip.arch != "sm_90a" or not _fits(p, chip):
        return []
    rows, columns, depth = product(p.made, shape)
    read = (p.a.size + p.b.size) * p.a.itemsize
    found = []
    for tile in TILES[p.made]:
        if tile.stages(1, _direct(p, chip), 2, chip.shared_limit) < 2:
            continue
        parts, blocks, seconds = timed(
            (rows, columns, depth, 1, 2), read, chip.multiprocessors, tile, "native"
        )
        run_it = functools.partial(run, tile=tile, parts=parts, blocks=blocks)
        found.append(Option(f"{tile.name} k{parts}", seconds, run_it))
    return found


def _fits(p: Pass, chip) -> bool:
    shape = p.shape
    line = LINE if p.made == WEIGHT else 8  # WEIGHT: no box of 64 crosses from tap to tap
    return (
        p.a.itemsize == 2
        and shape.groups == 1
        and shape.channels % line == 0
        and (p.made == OUTPUT or shape.outputs % 8 == 0)
        and (p.made != INPUT or set(shape.stride) == {1})
        and p.a.size > 0
        and p.b.size > 0
        and max(product(p.made, shape)) < (1 << 31) - 1024  # counted in 32 bits, to a tile's end
        and chip.aligned(16, p.a, p.b)
        and places_of(p.made, shape) is not None
    )


def product(made: str, shape: Geometry) -> tuple[int, int, int]:
    """(rows, columns, depth) of the product, with whole lines of channels of each tap."""
    rows, columns, depth, _ = sizes(made, shape)
    if made != WEIGHT:
        channels = shape.channels if made == OUTPUT else shape.outputs
        depth = shape.taps * -(-channels // LINE) * LINE
    return rows, columns, depth


def _direct(p: Pass, chip) -> bool:
    return p.made != WEIGHT and leaves_directly(p.finish, p.out.shape[1], chip)


# ---- launch --------------------------------------------------------------------------------------


def run(launch, p: Pass, *, tile: Tile, parts: int, blocks: int) -> None:
    """Launch with one tile and `parts` parts of K, each of `blocks` k blocks.

    launch : the launcher of convolution.cu
    """
    finish, dtype = p.finish, p.out.dtype
    rows, columns, depth = product(p.made, p.shape)
    gathered, other = _maps(p, tile)
    direct = _direct(p, launch) and parts == 1
    map_out = other  # not looked at
    if direct:
        strides = (rows * columns, columns, 1)
        map_out = tensor_map(p.out, (1, rows, columns), strides, (1, 64, 64), 128)
    partial = launch.empty((parts, *p.out.shape), np.float32) if parts > 1 else None
    vector = p.out.shape[1] % 8 == 0 and launch.aligned(16, *finish.written, finish.bias)
    stages = tile.stages(1, direct, 2, launch.shared_limit)
    if tile.swapped:
        rows, columns = columns, rows
    units = -(-rows // (tile.rows * tile.cluster)) * -(-columns // tile.columns) * parts
    activation, alpha, _ = finish.numbers()
    launch.sibling("convolution_wgmma.cu")(
        f"convolution_wgmma<{launch.ctype(dtype)}, {tile.rows}, {tile.columns}, "
        f"{tile.consumers}, {word(tile.pingpong)}, {stages}, {tile.cluster}, {p.made}, "
        f"{'DIRECT' if direct else 'FORWARD'}>",
        grid=(blocks_of_grid(tile, 1, units, launch.multiprocessors),),
        block=(128 * (1 + tile.consumers),),
        args=(
            gathered, other, map_out, structure(p.shape), np.bool_(gathered.rank == 5),
            *map(np.int32, (rows, columns, depth, blocks, parts)), partial, finish.bias,
            finish.residual, finish.out, finish.preactivation, activation, alpha,
            np.bool_(vector),
        ),
        shared=tile.shared(1, direct, 2, False, stages),
    )  # fmt: skip
    if parts > 1:
        matmul_simt.combine(launch.sibling("matmul.cu"), finish, partial)


def _maps(p: Pass, tile: Tile):
    """The maps of the gathered operand, A of the kernel, and of the other one."""
    from gpunn.emulator.tensor_map import TensorMap  # not on the path of `import gpunn`

    shape, places = p.shape, places_of(p.made, p.shape)
    channels, outputs, taps = shape.channels, shape.outputs, shape.taps
    array, size, width = {
        OUTPUT: (p.a, shape.size, channels),
        INPUT: (p.a, shape.out, outputs),
        WEIGHT: (p.b, shape.size, channels),
    }[p.made]
    lengths = (shape.batch, *size[3 - len(places.lower) :], width)
    gathered = TensorMap.im2col(
        mapped(array, lengths, _contiguous(lengths)),
        lower=places.lower,
        upper=places.upper,
        channels=LINE,
        pixels=LINE if p.made == WEIGHT else tile.rows,
        element_strides=(1, *places.stride, 1),
    )
    if p.made == WEIGHT:
        positions = p.a.size // outputs
        lengths, box = (1, 1, positions, outputs), (1, 1, LINE // tile.cluster, 64)
        return gathered, tensor_map(p.a, lengths, _contiguous(lengths), box, 128)
    # (taps, O, C); a tile has columns of lines of C, or for INPUT lines of 64 columns for each O.
    box = (1, 1, (tile.columns if p.made == OUTPUT else LINE) // tile.cluster, 64)
    lengths = (1, taps, outputs, channels)
    strides = (p.b.size, channels, taps * channels, 1)
    return gathered, tensor_map(p.b, lengths, strides, box, 128)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
