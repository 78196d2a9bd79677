"""Matrix products on the ordinary arithmetic units: which tile and parts of K, and the launch.

For every dtype, layout and architecture; see kernels/cuda/matmul.cu.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from gpunn.primitives.matmul_option import Option, measured, parts_of
from gpunn.primitives.matmul_problem import Finish, Problem
from gpunn.primitives.samples import accumulator_dtype


@dataclass(frozen=True)
class Tile:
    """The work of one block: see matmul.cuh. `rate` is the share of the arithmetic units' speed
    that it reaches with enough blocks, an estimate used only to choose between tiles."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    rate: float

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows * self.columns // (self.thread_rows * self.thread_columns)

    def expression(self, ctype: str, load_a: str, load_b: str, backward: bool) -> str:
        """The kernel's name expression."""
        sizes = (self.rows, self.columns, self.depth, self.thread_rows, self.thread_columns)
        numbers = ", ".join(map(str, sizes))
        return f"matmul<{ctype}, {numbers}, {load_a}, {load_b}, {str(backward).lower()}>"


LARGE = Tile(128, 128, 8, 8, 8, 0.85)
MEDIUM = Tile(64, 64, 16, 8, 4, 0.7)
SMALL = Tile(32, 32, 32, 4, 2, 0.4)

# By the size of an element. The large tile is for packs only (with single elements it would run out
# of registers) and for float32: 16-bit types that need its speed belong on tensor cores.
TILES = {
    2: (MEDIUM, SMALL),
    4: (LARGE, MEDIUM, SMALL),
    8: (Tile(64, 64, 8, 8, 4, 0.7), Tile(32, 32, 16, 4, 2, 0.4)),
}

# Estimates. Seconds of a clock cycle; cycles from the load of a tile to its use, and to start and
# end a block. Multiply-adds a multiprocessor makes in one cycle, by the size of an element; on
# sm_80 half of those in float32.
_CYCLE, _LATENCY, _BLOCK = 0.57e-9, 700, 1500
_RATE = {2: 128, 4: 128, 8: 64}


def options(problem: Problem, chip) -> list[Option]:
    """Every tile with its best number of parts of K, with their estimated times.

    A multiprocessor with `r` blocks needs for each step of `depth` along K the time of r tiles'
    multiply-adds, but no less than the latency of memory. Small products therefore take small tiles
    and parts of K (so that all multiprocessors have work), large ones the large tile.
    """
    itemsize = problem.out.dtype.itemsize
    packs = "STRIDED" not in loads_of(problem, chip)
    sizes = problem.M, problem.N, problem.K, problem.batch
    factor = measured("simt", chip.arch)
    return [
        Option(f"simt {tile.rows}x{tile.columns} k{parts}", seconds * factor,
               functools.partial(run, tile=tile, parts=parts, length=length))
        for tile, parts, length, seconds in choices(
            *sizes, itemsize, packs, chip.multiprocessors, slow=chip.arch == "sm_80"
        )
    ]  # fmt: skip


@functools.lru_cache(maxsize=4096)
def choices(
    M, N, K, batch, itemsize, packs, processors, slow=False
) -> list[tuple[Tile, int, int, float]]:
    """(tile, parts of K, length of a part, seconds) of each tile."""
    found = []
    for tile in TILES[itemsize]:
        if tile is LARGE and not packs:
            continue
        blocks = -(-M // tile.rows) * -(-N // tile.columns) * batch
        rate = _RATE[itemsize] / (2 if slow and itemsize < 8 else 1)
        step = tile.rows * tile.columns * tile.depth / (rate * tile.rate)
        best, least = (tile, 1, K), math.inf
        for parts, length, extra in parts_of(M, N, K, batch, tile.depth, blocks, processors):
            resident = -(-blocks * parts // processors)
            cycles = _BLOCK + length / tile.depth * max(_LATENCY, resident * step)
            if cycles * _CYCLE + extra < least:
                best, least = (tile, parts, length), cycles * _CYCLE + extra
        found.append((*best, least))
    return found


def how_to_load(size: int, row: int, k: int, k_size: int, others, width: int, aligned: bool) -> str:
    """How the kernel may move an operand: packs along K or along its rows, or single elements.

    `row`, `k` and `others` are strides in elements, `size` and `k_size` the extents.
    """
    if not aligned or any(stride % width for stride in others):
        return "STRIDED"
    if k == 1 and k_size % width == 0 and (row % width == 0 or size == 1):
        return "ALONG_K"
    if row == 1 and size % width == 0 and (k % width == 0 or k_size == 1):
        return "ALONG_ROWS"
    return "STRIDED"


def loads_of(p: Problem, launch) -> tuple[str, str]:
    """How the operands are moved; one kernel for all mixtures with single elements."""
    width = 16 // accumulator_dtype(p.out.dtype).itemsize
    pack = width * p.a.itemsize
    (_, a_outer, b_outer), (_, a_inner, b_inner) = p.batch_strides
    load_a = how_to_load(
        p.M, p.a_m, p.a_k, p.K, (a_outer, a_inner), width, launch.aligned(pack, p.a)
    )
    load_b = how_to_load(
        p.N, p.b_n, p.b_k, p.K, (b_outer, b_inner), width, launch.aligned(pack, p.b)
    )
    return ("STRIDED", "STRIDED") if "STRIDED" in (load_a, load_b) else (load_a, load_b)


def run(launch, p: Problem, *, tile: Tile, parts: int, length: int, needed=None) -> None:
    """Launch with one tile and `parts` parts of K, each `length` long.

    needed : an int on the device, or None: with 0 the kernel does nothing
    """
    finish, accumulator = p.finish, accumulator_dtype(p.out.dtype)
    load_a, load_b = loads_of(p, launch)
    (_, a_outer, b_outer), (inner, a_inner, b_inner) = p.batch_strides
    width = 16 // accumulator.itemsize
    vector = p.N % width == 0 and launch.aligned(width * p.a.itemsize, *finish.written, finish.bias)
    tiles_m, tiles_n = -(-p.M // tile.rows), -(-p.N // tile.columns)
    partial = launch.empty((parts, *p.out.shape), accumulator) if parts > 1 else None
    sums = None
    if finish.column_sums is not None and parts == 1:
        sums = launch.empty((p.batch * tiles_m, p.N), accumulator)
    launch(
        tile.expression(launch.ctype(p.out.dtype), load_a, load_b, finish.backward),
        grid=(tiles_m * tiles_n * p.batch * parts,),
        block=(tile.threads,),
        args=(
            p.a, p.b, *map(np.int64, (p.M, p.N, p.K, p.a_m, p.a_k, p.b_n, p.b_k)),
            np.uint32(p.batch), np.uint32(inner),
            *map(np.int64, (a_outer, a_inner, b_outer, b_inner, length)), partial,
            *finish.arrays(), sums, *finish.numbers(), np.bool_(vector), needed,
        ),
    )  # fmt: skip
    if parts > 1:
        combine(launch, finish, partial, needed)
    finish_sums(launch, p, sums, sums is None, True)


def combine(launch, finish: Finish, partial, needed=None) -> None:
    """Add the parts of K in order, then finish. `partial` is (parts, *shape of out)."""
    out, accumulator = finish.out, partial.dtype
    N, width = out.shape[-1], 16 // accumulator.itemsize
    if N % width or not launch.aligned(width * out.itemsize, *finish.written, finish.bias):
        width = 1
    launch(
        f"matmul_combine<{launch.ctype(out.dtype)}, {width}, {str(finish.backward).lower()}>",
        grid=(min(-(-out.size // (width * 256)), 16 * launch.multiprocessors),),
        block=(256,),
        args=(
            partial, np.int64(out.size), np.int64(N), np.int32(partial.shape[0]), *finish.arrays(),
            *finish.numbers(), needed,
        ),
    )  # fmt: skip


def finish_sums(launch, p: Problem, sums, from_result: bool, row_sums: bool) -> None:
    """The sums over rows and columns that the product itself has not finished.

    sums : (blocks of rows, N) partial sums of columns, or None
    from_result : the columns of the result are to be summed: nothing was prepared
    row_sums : the sums of the rows of `a` are still to be made
    """
    finish = p.finish
    if finish.column_sums is not None:
        rows = finish.out.reshape(-1, p.N) if from_result else sums
        column_sums(launch, rows, finish.column_sums)
    if row_sums and finish.row_sums is not None:
        column_sums(launch, whole(launch, p.a.T), finish.row_sums)


def whole(launch, x):
    """`x`, copied if it is not contiguous."""
    if x.flags.c_contiguous:
        return x
    launch.not_repeatable()
    copy = launch.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def column_sums(launch, rows, out) -> None:
    """``out[n] = sum of rows[:, n]`` in a fixed order; `rows` contiguous."""
    count, columns = rows.shape
    # Blocks of 256 rows and more, as many as give every multiprocessor four blocks.
    wide = -(-columns * out.itemsize // 512)
    parts = max(1, min(count // 256, 4 * launch.multiprocessors // wide))
    if parts == 1:
        _column_sum(launch, rows, out, 1)
        return
    sums = launch.empty((parts, columns), accumulator_dtype(out.dtype))
    _column_sum(launch, rows, sums, parts)
    _column_sum(launch, sums, out, 1)


def _column_sum(launch, rows, out, parts: int) -> None:
    count, columns = rows.shape
    width = 16 // rows.itemsize
    if columns % width or not launch.aligned(16, rows):
        width = 1
    lanes = min(32, 1 << (max(1, columns // width) - 1).bit_length())
    launch(
        f"column_sum<{launch.ctype(rows.dtype)}, {launch.ctype(out.dtype)}, {width}>",
        grid=(-(-columns // (lanes * width)), parts),
        block=(256,),
        args=(
            rows, out, np.int64(count), np.int64(columns), np.int64(-(-count // parts)),
            np.int32(lanes),
        ),
    )  # fmt: skip
