"""How a matrix product is cut up for the GPU: the tile of a block, parts of K, loads, batches.

Functions of shapes, strides and the number of multiprocessors alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass


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

    def expression(self, ctype: str, load_a: str, load_b: str) -> str:
        """The kernel's name expression."""
        sizes = (self.rows, self.columns, self.depth, self.thread_rows, self.thread_columns)
        return f"matmul<{ctype}, {', '.join(map(str, sizes))}, {load_a}, {load_b}>"


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

# Clock cycles, estimated: from the load of a tile to its use; to start and end a block; for the
# second kernel of a split product. Multiply-adds a multiprocessor makes in one cycle, by the size.
_LATENCY, _BLOCK, _COMBINE = 700, 1500, 5000
_RATE = {2: 128, 4: 128, 8: 64}


@functools.lru_cache(maxsize=4096)
def choose(M: int, N: int, K: int, batch: int, itemsize: int, packs: bool, processors: int):
    """(tile, parts of K, length of a part) with the least estimated time.

    A multiprocessor with `r` blocks needs for each step of `depth` along K the time of r tiles'
    multiply-adds, but no less than the latency of memory. Small products therefore take small tiles
    and parts of K (so that all multiprocessors have work), large ones the large tile.
    """
    best, least = None, math.inf
    for tile in TILES[itemsize]:
        if tile is LARGE and not packs:
            continue
        blocks = -(-M // tile.rows) * -(-N // tile.columns) * batch
        step = tile.rows * tile.columns * tile.depth / (_RATE[itemsize] * tile.rate)
        for parts in (1, 2, 4, 8, 16, 32, 64):
            # 2^30: the kernel counts along a part in 32 bits.
            length = min(-(-K // (parts * tile.depth)) * tile.depth, 1 << 30) or tile.depth
            parts = max(1, -(-K // length))
            if parts > 1 and parts * blocks > 4 * processors and length < 1 << 30:
                break
            resident = -(-blocks * parts // processors)
            time = _BLOCK + length / tile.depth * max(_LATENCY, resident * step)
            if parts > 1:
                time += _COMBINE + parts * batch * M * N / (processors * 2)
            if time < least:
                best, least = (tile, parts, length), time
    return best


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


def batch_dimensions(a, b, shape) -> list[tuple[int, int, int]]:
    """(size, stride of a, stride of b) of the batch dimensions in elements, merged if possible."""

    def strides(x):
        missing = len(shape) - (x.ndim - 2)
        own = zip(x.shape[:-2], x.strides[:-2], strict=True)
        return [0] * missing + [0 if n == 1 else s // x.itemsize for n, s in own]

    merged: list[tuple[int, int, int]] = []
    for size, of_a, of_b in zip(shape, strides(a), strides(b), strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1:] == (of_a * size, of_b * size):
            merged[-1] = (merged[-1][0] * size, of_a, of_b)
        else:
            merged.append((size, of_a, of_b))
    return merged
