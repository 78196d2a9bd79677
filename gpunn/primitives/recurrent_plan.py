"""Recurrent networks on the GPU: which kernels make them.

=========  =========================================================================================
cluster    one launch for all steps: a block, or a cluster of 8, holds W_hh in registers and shared
           memory and does so for 8 to 32 sequences (``kernels/cuda/recurrent.cu``)
grid       the same by as many blocks as it takes, which meet in global memory; all of them must be
           there at once (``kernels/cuda/recurrent_grid.cu``)
steps      for each step a matrix product of the whole chip and the kernel of the cell
=========  =========================================================================================

`choose` is the rule: whatever fits is estimated in clock cycles, and the least estimate wins. The
numbers behind the estimates are from data sheets, not measured. double goes step by
step: too few of its weights fit a block to be worth kernels of their own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from gpunn.primitives.rows import Chip, largest_cluster

# The number of gates by mode, in the order of enum RecurrentMode.
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
MODES = tuple(GATES)

# As in recurrent_product.cuh: threads of a block, sequences of a tile, rows of a fragment.
THREADS, WARPS, COLUMNS, FRAGMENT = 256, 8, 8, 16

MOST_TILES = 4  # of 8 sequences for a team of blocks
MOST_UNITS = 64  # of a block of a grid
MAX_GRID = 1 << 16

# Clock cycles: of a launch with what the host does for it, of loading the weights into a block, of
# what blocks need to meet and exchange vectors between two steps; of a grid more for each of them.
_LAUNCH, _LOAD = 4500, 10_000
_MEET, _MEMBER = {"block": 500, "cluster": 1500, "grid": 3000}, 10
_COPY = 48  # bytes a cycle from the second-level cache into a multiprocessor
_RATE = {2: 512, 4: 77}  # multiplications a cycle of a multiprocessor


class Plan(NamedTuple):
    """How one launch makes all steps; a team is the blocks that share W_hh."""

    members: int  # blocks of a team
    units: int  # of a block
    tiles: int  # of 8 sequences, for a team
    teams: int
    shared: int  # bytes of shared memory of a block
    vectors: int = 0  # of a grid: bytes of the vectors of a team


def choose(launch, shape, itemsize: int, mode: str, back: bool) -> Plan | None:
    """The plan for all steps in one launch, or None for step by step.

    `shape` is (steps, batch, hidden); `back` says whether it is the way back.
    """
    if itemsize == 8:
        return None
    chip = Chip(launch.arch, launch.multiprocessors, launch.shared_limit)
    return _choose(chip, *shape, itemsize, GATES[mode], back)


@functools.lru_cache(maxsize=4096)
def _choose(chip, steps, batch, hidden, itemsize, gates, back) -> Plan | None:
    work = gates * hidden * hidden
    rate = _RATE[itemsize]
    best, least = None, steps * (2 * _LAUNCH + batch * work / (rate * chip.multiprocessors))
    for plan in _plans(chip, batch, hidden, itemsize, gates, back):
        together = max(1, chip.multiprocessors // plan.members)
        rows = plan.units if back else gates * plan.units
        if itemsize == 2:
            rows = -(-rows // FRAGMENT) * FRAGMENT
        depth = work // hidden if back else hidden
        step = plan.tiles * COLUMNS * rows * depth / rate
        if plan.vectors:
            step += _MEET["grid"] + _MEMBER * plan.members + plan.vectors / _COPY
        else:
            step += _MEET["cluster" if plan.members > 1 else "block"]
        launches = 2 if plan.vectors else 1
        clocks = launches * _LAUNCH + -(-plan.teams // together) * (_LOAD + steps * step)
        if clocks < least:
            best, least = plan, clocks
    return best


def _plans(chip, batch, hidden, itemsize, gates, back):
    """Every plan that fits the chip."""
    largest = largest_cluster(chip)
    for tiles in range(1, MOST_TILES + 1):
        teams = -(-batch // (COLUMNS * tiles))
        for members in (1, 8):
            units = -(-hidden // (8 * members)) * 8  # whole packs of 16 bytes
            found = block_bytes(units, members, tiles, itemsize, gates, back, False)
            if members <= largest and teams * members < MAX_GRID and _fits(found, chip):
                yield Plan(members, units, tiles, teams, found[0])
        for units in range(8, MOST_UNITS + 1, 8):
            members = -(-hidden // units)
            if members == 1 or members * teams > chip.multiprocessors:
                continue
            found = block_bytes(units, members, tiles, itemsize, gates, back, True)
            if _fits(found, chip):
                yield Plan(members, units, tiles, teams, *found)


def _fits(found, chip) -> bool:
    return found is not None and found[0] <= chip.shared_limit


def block_bytes(units, members, tiles, itemsize, gates, back, grid) -> tuple[int, int] | None:
    """(bytes of shared memory of a block, those of one set of vectors); None if its warps cannot
    own all its rows.

    The product's sums and weights, one or two sets of vectors, as recurrent_product.cuh lays them
    out, and one or two states in full.
    """
    rows, depth = (units, gates * members * units) if back else (gates * units, members * units)
    if itemsize == 2:
        slots = 1 if grid and back else 4  # fragments of a warp
        groups, held = -(-rows // (FRAGMENT * slots)), 32 // slots
        if groups > WARPS:
            return None
        splits = WARPS // groups
        steps = -(-depth // (16 * splits))
        sums = splits * COLUMNS * (groups * FRAGMENT * slots + 4) * 4
        weights = groups * splits * max(0, steps - held) * slots * 512
        vectors = tiles * COLUMNS * (16 * steps * splits + 8) * 2
    else:
        quarter = -(-rows // 4)
        if quarter > THREADS:
            return None
        splits = min(THREADS // quarter, depth)
        steps = -(-depth // splits)
        sums = splits * COLUMNS * 4 * quarter * itemsize
        weights = steps * 4 * quarter * splits * itemsize
        vectors = tiles * COLUMNS * steps * splits * itemsize
    state = tiles * COLUMNS * units * 4
    return sums + weights + (1 if grid else 2) * vectors + (2 if back else 1) * state, vectors
