"""How rows are shared out among threads: the launch rules that go with ``kernels/cuda/row.cuh``.

`row_plan` serves every kernel that works on rows. By the length of a row it is shared by

=========  =========================================================================================
a group    1 to 32 threads of a warp, or a block of up to 256, while each thread need hold no more
           packs than fit its registers (kernels that have a way for it), or 8 in shared memory
a block    while its share, all that is kept for a second pass over the row, is at most 52 KB
a cluster  of 2, 4 or 8 blocks (sm_90 and later; no more than half of the multiprocessors), the
           smallest that brings the share down to 52 KB: so four blocks are on a multiprocessor,
           and one's loads hide another's stores. The largest takes more, up to all shared memory;
           what is beyond it is read twice
parts      blocks that meet in memory between two launches: few rows that no cluster holds
=========  =========================================================================================

Where all rows together would leave multiprocessors idle, the cluster grows as well, as long as each
block's share is 16 KB or more. On paper that beats parts: for one row of 400 KB a cluster reads it
once in one launch, where parts read it twice in two. (Not yet run on hardware.)
"""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

WARP = 32

# Threads of a block whose groups are parts of a warp or one warp.
SMALL_BLOCK = 128

MAX_GRID = 2**31 - 1

# The most threads that share a row held in registers.
_REGISTER_THREADS = 256

# Packs that a thread keeps in shared memory before more threads share the row.
_KEPT_PACKS = 8

# What a block keeps if four, or two, are to be on a multiprocessor of 228 KB; see `_held`.
_QUARTER, _HALF = 52 * 1024, 104 * 1024

# Static shared memory that a kernel may need beside what it keeps.
_RESERVED = 2048

# A part of a row of fewer bytes is not worth a block of its own.
_PART_BYTES = 1 << 14

# Kernels that hold a row count its columns in 32 bits.
MAX_HELD_COLUMNS = 2**30


class Chip(NamedTuple):
    """What a plan depends on of the launcher."""

    arch: str
    multiprocessors: int
    shared_limit: int


class RowPlan(NamedTuple):
    """Who works on which row; the words are those of ``kernels/cuda/row.cuh``."""

    threads: int  # of one block that share a row: a power of two
    block: int  # threads of a block
    grid: int  # blocks, a multiple of `cluster` and of `parts`
    cluster: int = 1  # blocks that share a row in one launch
    parts: int = 0  # if not 0: blocks that share a row and meet between two launches
    packs: int = 0  # packs that a thread holds in registers, if that is the way
    kept: int = 0  # packs of each array that a thread keeps in shared memory
    shared: int = 0  # bytes of it for a block


def row_plan(
    launch,
    rows: int,
    cols: int,
    itemsize: int,
    *,
    arrays: int = 1,
    registers: tuple[int, int] | None = None,
    parts: bool = False,
    meet: bool = True,
    largest_block: int = 1024,
    resident: int | None = None,
) -> RowPlan:
    """The plan for `rows` rows of `cols` elements on the chip of `launch`.

    Its cluster is no larger than `largest_cluster` says of the chip.

    Parameters
    ----------
    arrays : arrays of the row that are kept for a second pass; 0 if there is only one pass
    registers : packs that a thread can hold, a small and a large number, of a kernel with such a
        way; None if there is none
    parts : whether there is a pair of kernels for rows in parts
    meet : whether the threads of a row reduce something; if not, any number of blocks may share
        one on any architecture, and the plan calls them a cluster
    largest_block : threads that the kernel for long rows was compiled for
    resident : threads of a multiprocessor that the grid is to fill, walking over the rows; None for
        a block or cluster for every row
    """
    chip = Chip(launch.arch, launch.multiprocessors, launch.shared_limit)
    return _plan(
        chip, rows, cols, itemsize, arrays, registers, parts, meet, largest_block, resident
    )


@functools.lru_cache(maxsize=4096)  # launches repeat, and planning takes longer than launching
def _plan(
    chip, rows, cols, itemsize, arrays, registers, parts, meet, largest_block, resident
) -> RowPlan:
    most = MAX_GRID if resident is None else chip.multiprocessors * resident

    def plan(threads, block, cluster=1, **what):
        blocks = max(1, -(-rows * threads // block)) * cluster
        limit = most if resident is None else most // block
        grid = min(blocks, max(cluster, limit // cluster * cluster))
        return RowPlan(threads, block, grid, cluster, **what)

    if registers is not None:
        held = _in_registers(cols, itemsize, registers)
        if held is not None:
            packs, threads = held
            return plan(threads, SMALL_BLOCK if threads <= WARP else threads, packs=packs)
    each = _KEPT_PACKS // max(1, arrays)
    threads = row_group(cols, itemsize, each * 16 // itemsize)
    if registers is None and threads <= WARP:
        return plan(threads, 256, **_kept(chip, cols, itemsize, arrays, threads, 256))

    row_bytes = cols * itemsize
    cluster = _cluster(chip, rows, row_bytes, arrays, meet)
    block = _block(-(-arrays * row_bytes // cluster), itemsize, largest_block)
    block = threads = min(block, max(64, threads))
    if parts:
        number = _parts(chip, rows, cols, itemsize, arrays, cluster)
        if number:
            return RowPlan(256, 256, rows * number, parts=number)
    kept = _kept(chip, cols, itemsize, arrays, cluster * threads, block)
    return plan(threads, block, cluster, **kept)


def _in_registers(cols: int, itemsize: int, registers: tuple[int, int]) -> tuple[int, int] | None:
    """(packs a thread, threads a row) if the row fits the registers of one group, else None."""
    width = 16 // itemsize
    small, large = registers
    threads = row_group(cols, itemsize, small * width)
    if threads <= WARP:
        return small, threads
    threads = max(WARP, row_group(cols, itemsize, large * width))
    return (large, threads) if threads <= _REGISTER_THREADS else None


def _cluster(chip, rows: int, row_bytes: int, arrays: int, meet: bool) -> int:
    """Blocks that share a row: so many that its share is small and the chip is busy."""
    if not meet:
        limit = 1024
    else:
        limit = largest_cluster(chip)
    cluster = 1
    while 2 * cluster <= limit and arrays * row_bytes > cluster * _QUARTER:
        cluster *= 2
    read = max(1, arrays) * row_bytes
    while (
        2 * cluster <= limit
        and 2 * rows * cluster <= chip.multiprocessors
        and read >= 2 * cluster * _PART_BYTES
    ):
        cluster *= 2
    return cluster


def _parts(chip, rows: int, cols: int, itemsize: int, arrays: int, cluster: int) -> int:
    """Blocks for each row if they are to meet in memory, else 0."""
    held = max(1, arrays) * cols * itemsize
    number = max(1, min(-(-held // _PART_BYTES), 4 * chip.multiprocessors // max(rows, 1)))
    few = 2 * rows * cluster < chip.multiprocessors
    fits = held <= cluster * (chip.shared_limit - _RESERVED)
    slow = cluster == 1 and number > 2  # one multiprocessor would move the whole row
    return number if cols > MAX_HELD_COLUMNS or (few and (slow or not fits)) else 0


def has_clusters(arch: str) -> bool:
    """Whether blocks of this architecture ("sm_90a") can form clusters."""
    return int(re.match(r"sm_(\d+)", arch)[1]) >= 90


def largest_cluster(chip) -> int:
    """Blocks of a cluster at most, 1 for none.

    8 is the largest size that a kernel may ask for on every GPU with clusters. Its blocks must lie
    in one GPC, though, a group of 16 to 18 multiprocessors, and a small GPU or a slice of one (MIG)
    may have a few there only: no cluster takes more than half of a chip's multiprocessors.
    """
    return max(1, min(8, chip.multiprocessors // 2)) if has_clusters(chip.arch) else 1


def _block(share: int, itemsize: int, largest: int) -> int:
    """Threads of a block that keeps `share` bytes: four, two or one are on a multiprocessor."""
    if share <= _QUARTER:
        return 256 if share else 512
    few = share <= _HALF or itemsize == 8
    return min(512 if few else 1024, largest)


def _kept(chip, cols: int, itemsize: int, arrays: int, team: int, block: int) -> dict[str, int]:
    """Packs that a thread keeps of each array, and the bytes that its block needs for them."""
    if arrays == 0:
        return {}
    width = 16 // itemsize
    before = width - math.gcd(cols, width)  # of the first pack, at most, that the row leaves out
    packs = -(-(before + cols) // width)
    kept = min(-(-packs // team), (chip.shared_limit - _RESERVED) // (16 * arrays * block))
    return {"kept": kept, "shared": 16 * arrays * block * kept}


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


def numba_rows(rows: int, cols: int) -> tuple[tuple[int], tuple[int, int]]:
    """(grid, block) for the Numba kernels of rows: threads of a row, rows of a block.

    A thread for about 8 columns; a block of 64 threads, or of up to 256 where rows are many.
    """
    wide = min(row_group(cols, 16, 8), 256)
    high = max(64 // wide, row_group(rows, 16, 512))
    high = max(1, min(256 // wide, high, row_group(rows, 16, 1)))
    return (min(-(-rows // high), 65535),), (wide, high)
