"""Matrix products on the tensor cores of sm_90a (H100, H200): the menu of tiles, and the launch.

The kernel is kernels/cuda/matmul_wgmma.cu. Modes:

========  =========  ===================================================================
native    16 bits    operands as they are
split     float32    three bfloat16 numbers for each element, six products: float32-exact
tf32      float32    operands rounded to TF32
bfloat16  float32    operands rounded to bfloat16
========  =========  ===================================================================

How operands are made ready for its tensor copies is in `matmul_operand`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from gpunn.primitives import matmul_simt
from gpunn.primitives.matmul_operand import MODES, addressable, operand_of, ready, tensor_map
from gpunn.primitives.matmul_option import LAUNCH, Option, parts_of
from gpunn.primitives.matmul_problem import Finish, Problem


@dataclass(frozen=True)
class Tile:
    """One row of the menu; see `Shape` in matmul_wgmma.cuh, where the sizes in bytes come from.

    cluster : blocks that share the tiles of B, or with `split` the sum over K
    swapped : the operands are exchanged, so `rows` counts columns of the result
    rate : share of the tensor cores' speed that it reaches with enough tiles: an estimate
    """

    rows: int
    columns: int
    consumers: int
    pingpong: bool = False
    cluster: int = 1
    split: bool = False
    swapped: bool = False
    rate: float = 0.7

    @property
    def name(self) -> str:
        """Short and stable, for `Option.name`."""
        how = "pingpong" if self.pingpong else "split" if self.split else "share"
        turned = " swapped" if self.swapped else ""
        return f"wgmma {self.rows}x{self.columns} {how}{self.cluster}{turned}"

    def resident(self, planes: int) -> int:
        """Blocks on a multiprocessor."""
        return 2 if self.consumers == 1 and planes == 1 and self.columns <= 64 else 1

    def line(self, planes: int) -> int:
        """Bytes of K in a k block."""
        return 64 if planes > 1 else 128

    def stage(self, planes: int) -> int:
        """Bytes of one stage of the ring."""
        return planes * (self.rows + self.columns) * self.line(planes)

    def staging(self, direct: bool, itemsize: int) -> int:
        """Bytes through which each consumer's finished tile leaves, and for what is read beside."""
        if self.split:
            return 0
        if direct:
            return self.rows // (1 if self.pingpong else self.consumers) * self.columns * 2
        slab = min(self.columns, 64)
        bytes_ = slab * 68 * 4 if self.swapped else 64 * (slab + 8) * 4
        bytes_ += (2 if itemsize == 2 else 1) * 64 * slab * itemsize
        return -(-bytes_ // 1024) * 1024

    def stages(self, planes: int, direct: bool, itemsize: int, limit: int) -> int:
        """As many stages as fit into the shared memory, at most 8."""
        room = limit // self.resident(planes)
        rest = room - self.consumers * self.staging(direct, itemsize) - 2048
        count = min(8, rest // self.stage(planes))
        return count if not self.split or count * self.stage(planes) >= self.whole() else 0

    def whole(self) -> int:
        """Bytes of the whole tile in float32, which a split one lays into the ring's place."""
        if self.swapped:
            return self.columns * (self.rows + 4) * 4
        return self.rows * (self.columns + 8) * 4

    def shared(self, planes: int, direct: bool, itemsize: int, row_sums: bool, stages: int) -> int:
        """Bytes of dynamic shared memory."""
        ring = stages * self.stage(planes) + self.consumers * self.staging(direct, itemsize)
        return ring + 1024 * row_sums + 16 * stages


# Large tiles, for products that fill the chip; smaller ones; for few tiles clusters that split K;
# and for few rows the operands exchanged.
MENU = (
    Tile(128, 256, 2, cluster=2, rate=0.80),
    Tile(256, 128, 2, cluster=2, rate=0.79),
    Tile(128, 192, 2, cluster=2, rate=0.76),
    Tile(128, 128, 2, pingpong=True, cluster=2, rate=0.74),
    Tile(128, 128, 2, rate=0.62),
    Tile(64, 256, 2, pingpong=True, rate=0.62),
    Tile(64, 128, 1, rate=0.48),
    Tile(64, 64, 1, rate=0.38),
    Tile(128, 128, 2, cluster=2, split=True, rate=0.60),
    Tile(128, 128, 2, cluster=4, split=True, rate=0.60),
    Tile(64, 128, 1, cluster=4, split=True, rate=0.45),
    Tile(64, 64, 1, cluster=4, split=True, rate=0.36),
    Tile(64, 64, 1, cluster=8, split=True, rate=0.36),
    Tile(128, 64, 2, swapped=True, rate=0.45),
    Tile(128, 32, 2, swapped=True, rate=0.30),
    Tile(64, 16, 1, swapped=True, rate=0.15),
    Tile(64, 64, 1, cluster=4, split=True, swapped=True, rate=0.36),
    Tile(64, 32, 1, cluster=4, split=True, swapped=True, rate=0.25),
    Tile(64, 16, 1, cluster=4, split=True, swapped=True, rate=0.15),
)

# For planes: three sums a thread, so no tile larger than 64 x 128 a warpgroup.
PLANES_MENU = (
    Tile(128, 128, 2, cluster=4, rate=0.85),
    Tile(128, 128, 2, cluster=2, rate=0.82),
    Tile(128, 64, 2, rate=0.6),
    Tile(64, 64, 1, rate=0.45),
    Tile(128, 128, 2, cluster=2, split=True, rate=0.7),
    Tile(64, 64, 1, cluster=4, split=True, rate=0.42),
    Tile(64, 32, 1, cluster=4, split=True, swapped=True, rate=0.3),
)

# Estimated: multiply-adds of 16 bits that a multiprocessor makes in one cycle, and seconds of it;
# bytes a second from L2 and memory; cycles from the start of a block to its first product, and to
# store a tile; seconds of one cluster barrier with the exchange.
_RATE, _CYCLE = 2048, 1 / 1.6e9
_L2, _MEMORY = 5.5e12, 4.0e12
_START, _STORE, _EXCHANGE = 2500, 1200, 1.5e-6


def options(problem: Problem, chip, mode: str) -> list[Option]:
    """Every tile of the menu that can make this product, with its best number of parts of K."""
    # The kernel counts in 32 bits, up to a tile beyond the end.
    largest = max(problem.M, problem.N, problem.K, problem.batch)
    if largest >= (1 << 31) - 1024 or problem.K == 0:
        return []
    planes = MODES[mode][1]
    found = []
    for tile in PLANES_MENU if planes > 1 else MENU:
        # The other way round only where the rows are few; then also as they are, for comparison.
        if tile.swapped and not (problem.M <= 64 and problem.M < problem.N):
            continue
        direct, itemsize = takes_direct(tile, problem, chip), problem.out.dtype.itemsize
        if tile.stages(planes, direct, itemsize, chip.shared_limit) < 2:
            continue
        parts, blocks, seconds = _estimate(problem, chip, tile, mode)
        if units(problem, tile, parts) * tile.cluster >= 1 << 31:
            continue
        run_it = functools.partial(run, tile=tile, mode=mode, parts=parts, blocks=blocks)
        found.append(Option(f"{tile.name} {mode} k{parts}", seconds, run_it))
    return found


def takes_direct(tile: Tile, problem: Problem, chip) -> bool:
    """Whether a tile's results may leave by tensor copies."""
    whole_boxes = not tile.split and not tile.swapped and tile.columns % 64 == 0
    return whole_boxes and is_direct(problem, chip)


def is_direct(problem: Problem, chip) -> bool:
    """Whether results may leave by tensor copies: 16 bits, nothing but bias and relu."""
    return leaves_directly(problem.finish, problem.N, chip)


def leaves_directly(finish: Finish, columns: int, chip) -> bool:
    """The same of what becomes of the sums and of the result's columns."""
    return (
        finish.out.dtype.itemsize == 2
        and not finish.backward
        and finish.preactivation is None
        and finish.residual is None
        and finish.activation in ("identity", "relu")
        and columns * 2 % 16 == 0
        and chip.aligned(16, finish.out, finish.bias)
    )


def _estimate(problem: Problem, chip, tile: Tile, mode: str) -> tuple[int, int, float]:
    """(parts of K, k blocks of a part, seconds) of the fastest way to use a tile."""
    key = (problem.M, problem.N, problem.K, problem.batch, problem.out.dtype.itemsize)
    dtype, planes = MODES[mode]
    width = dtype.itemsize if dtype is not None else problem.out.dtype.itemsize
    elements = problem.batch * problem.K * (problem.M + problem.N)
    parts, blocks, seconds = timed(key, elements * width * planes, chip.multiprocessors, tile, mode)
    copied = planes * (4 if mode == "tf32" else 2) + problem.a.itemsize
    if mode != "native":
        seconds += 2 * LAUNCH + elements * copied / _MEMORY
        seconds += 2 * LAUNCH if planes > 1 else 0.0
    else:
        for o in (operand_of(problem, "a"), operand_of(problem, "b")):
            # Short tiles want contiguous K of the operand along the instruction's N.
            turned = (o.array is problem.a) == tile.swapped and tile.columns % 64 != 0
            if addressable(o, chip) is None or (turned and addressable(o, chip)):
                seconds += LAUNCH + problem.batch * o.K * o.size * copied / _MEMORY
    return parts, blocks, seconds


@functools.lru_cache(maxsize=16384)
def timed(key, read: int, processors: int, tile: Tile, mode: str) -> tuple[int, int, float]:
    """(parts of K, k blocks of a part, seconds) without the preparation of operands.

    key : M, N, K, matrices, bytes of an element
    read : bytes of the operands in memory

    A wave of blocks takes the time of the multiply-adds of one tile, or of its loads from L2 if
    that is longer, but for the start and the way out, which the next tile hides.
    """
    M, N, K, batch, itemsize = key
    if tile.swapped:
        M, N = N, M
    dtype, planes = MODES[mode]
    width = dtype.itemsize if dtype is not None else itemsize
    depth = tile.line(planes) // width
    products = {1: 1, 2: 3, 3: 6}[planes]
    speed = _RATE * tile.rate * (0.5 if width == 4 else 1.0)
    cycles_a_block = tile.rows * tile.columns * depth * products / speed
    share = 1 if tile.split else tile.cluster
    loaded = planes * tile.line(planes) * (tile.rows + tile.columns / share)
    blocks = -(-K // depth)
    high = -(-M // (tile.rows * share)) * share
    tiles = high * -(-N // tile.columns) * batch
    best, least = (1, blocks), math.inf
    for parts, length, extra in parts_of(M, N, K, batch, depth, tiles, processors):
        if parts > 1 and tile.split:
            break
        units = tiles * parts * (tile.cluster if tile.split else 1)
        blocks_of_unit = length // depth / (tile.cluster if tile.split else 1)
        waves = max(1.0, math.ceil(units / processors))
        active = min(units, processors)
        a_block = max(cycles_a_block * _CYCLE, active * loaded / _L2)
        cycles = _START + _STORE * waves / tile.resident(planes)
        seconds = waves * math.ceil(blocks_of_unit) * a_block + cycles * _CYCLE + extra
        seconds = max(seconds, read / _MEMORY)
        seconds += _EXCHANGE if tile.split else 0.0
        if seconds < least:
            best, least = (parts, length // depth), seconds
    return *best, least


# ---- launch --------------------------------------------------------------------------------------


def run(launch, p: Problem, *, tile: Tile, mode: str, parts: int, blocks: int) -> None:
    """Launch with one tile and `parts` parts of K, each of `blocks` k blocks."""
    finish, planes = p.finish, MODES[mode][1]
    flags = fit = None
    if planes > 1:
        flags = launch.empty((2,), np.int32)
        launch.sibling("matmul_prepare.cu")("clear_flags", (1,), (1,), (flags,))
        fit = flags[1:]
    first, second = operand_of(p, "a"), operand_of(p, "b")
    if tile.swapped:
        first, second = second, first
    share = 1 if tile.split else tile.cluster
    short = tile.columns % 64 != 0  # contiguous columns come in boxes of 64
    a = ready(launch, first, tile.rows, 1, mode, False, flags)
    b = ready(launch, second, tile.columns, share, mode, short, flags)

    partial = launch.empty((parts, *p.out.shape), np.float32) if parts > 1 else None
    direct = takes_direct(tile, p, launch) and parts == 1
    row_sums = finish.row_sums if direct else None
    sums = None
    if finish.column_sums is not None and parts == 1 and not tile.split and planes == 1:
        lines = min(tile.columns, 64) if tile.swapped else 64
        sums = launch.empty((p.batch * -(-p.M // lines), p.N), np.float32)
    ending = "ROW_SUMS" if row_sums is not None else "DIRECT" if direct else "FORWARD"
    ending = "BACKWARD" if finish.backward else ending
    map_out = a.map  # not looked at
    if direct:
        N = p.N
        shape, strides = (p.batch, p.M, N), (p.M * N, N, 1)
        map_out = tensor_map(finish.out, shape, strides, (1, 64, 64), 128)
    width = 16 // p.out.itemsize
    vector = p.N % width == 0 and launch.aligned(16, *finish.written, finish.bias)
    stages = tile.stages(planes, direct, p.out.dtype.itemsize, launch.shared_limit)
    operand_type = launch.ctype(MODES[mode][0] or p.out.dtype)
    sizes = (tile.rows, tile.columns, tile.consumers)
    flags_of = (tile.split, tile.swapped, a.rows_contiguous, b.rows_contiguous)
    launch.sibling("matmul_wgmma.cu")(
        f"matmul_wgmma<{operand_type}, {launch.ctype(p.out.dtype)}, {planes}, "
        f"{', '.join(map(str, sizes))}, {word(tile.pingpong)}, {stages}, {tile.cluster}, "
        f"{', '.join(map(word, flags_of))}, {ending}>",
        grid=(blocks_of_grid(tile, planes, units(p, tile, parts), launch.multiprocessors),),
        block=(128 * (1 + tile.consumers),),
        args=(
            a.map, b.map, map_out, np.int32(first.size), np.int32(second.size), np.int32(p.K),
            np.uint32(p.batch), np.uint32(first.inner), np.int32(a.near), np.int32(a.far),
            np.int32(b.near), np.int32(b.far), np.int32(blocks), np.int32(parts), partial,
            *finish.arrays(), sums, *finish.numbers(), np.bool_(vector), fit, row_sums,
        ),
        shared=tile.shared(planes, direct, p.out.dtype.itemsize, row_sums is not None, stages),
    )  # fmt: skip
    if parts > 1:
        matmul_simt.combine(launch, finish, partial, fit)
    if planes > 1:
        fallback = min(matmul_simt.options(p, launch), key=lambda option: option.seconds)
        alone = replace(p, finish=replace(finish, column_sums=None, row_sums=None))
        fallback.run(launch, alone, needed=flags[:1])
    matmul_simt.finish_sums(launch, p, sums, sums is None, row_sums is None)


def word(value: bool) -> str:
    """As C++ writes it."""
    return "true" if value else "false"


def units(p: Problem, tile: Tile, parts: int) -> int:
    """Tiles times parts; tiles that share B count as one."""
    M, N = (p.N, p.M) if tile.swapped else (p.M, p.N)
    share = 1 if tile.split else tile.cluster
    return -(-M // (tile.rows * share)) * -(-N // tile.columns) * p.batch * parts


def blocks_of_grid(tile: Tile, planes: int, count: int, processors: int) -> int:
    """The grid: a cluster for each unit, but where they can walk over units no more than run at
    once. The processors of a GPU stand in groups of 16 or 18: of each, 4 clusters of 4 fit."""
    if tile.split:
        return count * tile.cluster
    together = processors // 16 * 16 if tile.cluster > 2 and processors >= 16 else processors
    return tile.cluster * max(1, min(count, together * tile.resident(planes) // tile.cluster))
