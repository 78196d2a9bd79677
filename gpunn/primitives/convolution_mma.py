"""Convolutions on tensor cores by mma.sync: which tile and parts of K, and the launch.

For sm_80 and later, float16, bfloat16 and float32 (as TF32, or exactly as three bfloat16 numbers);
see kernels/cuda/convolution_mma.cu, and `matmul_mma` for the modes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from gpunn.device.arrays import pointer
from gpunn.device.launch import Launcher
from gpunn.primitives import convolution_simt, matmul_simt
from gpunn.primitives.convolution_pass import INPUT, OUTPUT, WEIGHT, Pass, sizes, structure
from gpunn.primitives.matmul_mma import MODES, STRIDED, Tile, best_parts, rate_of
from gpunn.primitives.matmul_option import Option, measured
from gpunn.primitives.matmul_problem import Finish

# Few, because each is a kernel for each pass. A gathered operand takes registers that the larger
# tiles of `matmul_mma` do not leave, and INPUT has two of them. The result of a weight's gradient
# has few rows and many columns.
_SMALL = Tile(64, 64, 128, 2, 2, 4, 3, 0.5)
_LARGE, _TALL = Tile(128, 128, 64, 2, 2, 4, 2, 0.7), Tile(128, 64, 64, 2, 2, 4, 2, 0.6)
TILES = {
    ("native", OUTPUT): (_LARGE, _SMALL),
    ("native", INPUT): (_TALL, _SMALL),
    ("native", WEIGHT): (_LARGE, _SMALL),
    ("tf32", OUTPUT): (_TALL,),
    ("tf32", INPUT): (_TALL,),
    ("tf32", WEIGHT): (Tile(64, 128, 64, 2, 2, 4, 2, 0.6),),
    ("split", OUTPUT): (_TALL,),
    ("split", INPUT): (_TALL,),
    ("split", WEIGHT): (Tile(64, 128, 64, 1, 4, 4, 2, 0.7),),
}
MOST_UNITS = 1 << 31  # the kernels count packs, or single elements, in 32 bits


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and how K is cut: `parts` parts, each `length` long."""

    expression: str
    tile: Tile
    parts: int
    length: int


def options(p: Pass, chip, mode: str) -> list[Option]:
    """Every tile with its best number of parts of K, with their estimated times; none for arrays
    whose elements the kernels cannot count, nor for single elements in "split".

    mode : as in `matmul_mma.options`, also for what is not finite in "split"
    """
    dtype, width = p.out.dtype, 16 // p.out.dtype.itemsize
    packed = p.aligned(chip, width)
    if max(p.a.size, p.b.size) // (width if packed else 1) >= MOST_UNITS:
        return []
    if mode == "split" and not packed:  # six products of what arrives slowly: simt is as fast
        return []
    again = None
    if mode == "split":
        (again,) = (option.run for option in convolution_simt.options(p, chip))
    tiles = TILES[mode, p.made] if packed else (STRIDED[mode],)
    found = []
    for tile, parts, length, seconds in _choices(
        tiles, sizes(p.made, p.shape), dtype.itemsize, mode, rate_of(chip.arch),
        chip.multiprocessors, chip.shared_limit,
    ):  # fmt: skip
        numbers = (tile.rows, tile.columns, tile.depth // dtype.itemsize, tile.warps_m,
                   tile.warps_n, tile.stages)  # fmt: skip
        expression = (
            f"convolution_mma<{Launcher.ctype(dtype)}, {MODES[mode]}, "
            f"{', '.join(map(str, numbers))}, {p.made}, {str(packed).lower()}>"
        )
        kernel = Kernel(expression, tile, parts, length)
        name = f"{'' if packed else 'elements '}{tile.name(dtype.itemsize, mode, parts)}"
        seconds *= measured("mma", chip.arch)
        found.append(Option(name, seconds, functools.partial(run, kernel=kernel, again=again)))
    return found


@functools.lru_cache(maxsize=4096)
def _choices(tiles, product, itemsize, mode, rate, processors, shared_limit):
    rows, columns, depth, matrices = product
    return [
        (tile, *best_parts(tile, rows, columns, depth, matrices, itemsize, mode, rate, processors,
                           shared_limit))
        for tile in tiles
        if tile.shared + 4096 <= shared_limit
    ]  # fmt: skip


# ---- launch --------------------------------------------------------------------------------------


def run(launch, p: Pass, *, kernel: Kernel, again) -> None:
    """Launch one kernel of the menu.

    launch : the launcher of convolution.cu
    again : what makes the pass on the ordinary units where it is needed ("split"), or None
    """
    if again is None:
        _run(launch, p, kernel, None)
        return
    flags = launch.empty((2,), np.int32)
    launch.sibling("matmul_prepare.cu")("clear_flags", (1,), (1,), (flags,))
    out, finish = p.out, p.finish
    in_place = finish.residual is not None and pointer(finish.residual) == pointer(out)
    if in_place:  # the residual must outlive the first attempt
        finish = replace(finish, out=launch.empty(out.shape, out.dtype))
    p = replace(p, finish=finish)
    _run(launch, p, kernel, flags[:1])
    again(launch, p, needed=flags[:1])
    if in_place:
        matmul_simt.combine(launch.sibling("matmul.cu"), Finish(out=out), finish.out[None])


def _run(launch, p: Pass, kernel: Kernel, needed) -> None:
    tile, parts, finish = kernel.tile, kernel.parts, p.finish
    rows, columns, _, matrices = sizes(p.made, p.shape)
    tiles_m, tiles_n = -(-rows // tile.rows), -(-columns // tile.columns)
    partial = launch.empty((parts, *p.out.shape), np.float32) if parts > 1 else None
    activation, alpha, _ = finish.numbers()
    launch.sibling("convolution_mma.cu")(
        kernel.expression,
        grid=(tiles_m * tiles_n * matrices * parts,),
        block=(tile.threads,),
        args=(
            p.a, p.b, structure(p.shape), np.uint32(tiles_m), np.uint32(tiles_n),
            np.uint32(matrices), np.int64(kernel.length), np.int64(p.out.size), partial,
            finish.bias, finish.residual, finish.out, finish.preactivation, activation, alpha,
            np.bool_(p.vector(launch, 16 // p.out.itemsize)), needed,
        ),
        shared=tile.shared,
    )  # fmt: skip
    if parts > 1:
        matmul_simt.combine(launch.sibling("matmul.cu"), finish, partial)
