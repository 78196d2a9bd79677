"""How rows are shared out among threads: the launch rules that go with ``kernels/cuda/row.cuh``."""

from __future__ import annotations

import math

WARP = 32

# Threads of a block whose groups are parts of a warp or one warp.
SMALL_BLOCK = 128

MAX_GRID = 2**31 - 1


def row_group(cols: int, itemsize: int, elements: int) -> int:
    """Threads that share a row of `cols` when each holds `elements` of it: a power of two.

    A row need not start at a multiple of 16 bytes; then it touches one pack more.
    """
    pack = 16 // itemsize
    span = cols if cols % pack == 0 else cols + pack - 1
    return 1 << max(0, math.ceil(span / elements) - 1).bit_length()


def row_grid(rows: int, threads: int, block: int | None = None) -> tuple[tuple[int], tuple[int]]:
    """(grid, block) that give each row a group of `threads`.

    A block is one group, or several of up to a warp, unless it is told to have `block` threads.
    """
    if block is None:
        block = SMALL_BLOCK if threads <= WARP else threads
    return (max(1, min(-(-rows * threads // block), MAX_GRID)),), (block,)
