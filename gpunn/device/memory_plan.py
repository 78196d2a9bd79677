"""A memory plan: where in one arena the blocks of a step go, those alive together apart.

A training step that runs the same Python each time allocates and frees in the same order. Its
blocks, each with its size and the events between which it is alive, are laid out once, offline;
later runs take their memory by order of allocation. To find the smallest arena is NP-hard; putting
one block after the other into the lowest gap that is free all its life comes close, if the large
or long-lived ones go first. Several orders are tried and the smallest arena is kept, so most real
steps end at the bound below which no arena can be: the most bytes alive at one time.

Pure Python and NumPy, of no device. The method is known from the planners of inference engines:
Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpunn.text import bytes_text


class Block(NamedTuple):
    """`size` bytes, alive from event `born` until event `dies`; None: still alive at the end."""

    size: int
    born: int
    dies: int | None


@dataclass(frozen=True)
class MemoryPlan:
    """Where each block goes; made by `plan`.

    Attributes
    ----------
    blocks : what was planned
    offsets : of each block in the arena, a multiple of `alignment`; -1 for one that is not in it
    size : bytes of the arena
    peak : the most bytes alive at one time among the blocks of the arena, sizes rounded up to the
        alignment; no arena can be smaller
    total : what they would take without sharing
    escaping : bytes of the blocks that are alive at the end, which are not in the arena
    """

    blocks: tuple[Block, ...] = field(repr=False)
    offsets: tuple[int, ...] = field(repr=False)
    size: int
    peak: int
    total: int
    escaping: int
    alignment: int

    def describe(self) -> str:
        """The plan in a line of text, and one on blocks that outlive the step."""
        placed = sum(offset >= 0 for offset in self.offsets)
        over = f"{self.size / self.peak:.3f} x the peak of " if self.peak else "peak "
        text = (
            f"{placed:,} blocks of {bytes_text(self.total)} in all share an arena of "
            f"{bytes_text(self.size)}: {over}{bytes_text(self.peak)}"
        )
        if self.size:
            text += f", {self.total / self.size:.1f} x shared"
        ends = sum(block.dies is None for block in self.blocks)
        if ends:
            text += f"\n{ends:,} blocks of {bytes_text(self.escaping)} outlive the step, outside it"
        return text

    def timeline(self) -> tuple[np.ndarray, np.ndarray]:
        """(event, bytes alive from there on) of all blocks, for a plot with steps.

        Events at which nothing is born or dies are left out.
        """
        size, born, dies = _columns(self.blocks, self.alignment)
        return _alive(size, born, dies)


def plan(blocks: Sequence[Block], alignment: int = 256) -> MemoryPlan:
    """Lay out `blocks` in one arena, but for those that outlive the step (dies None).

    Parameters
    ----------
    blocks : in any order; an event at which one block dies and another is born lets them share
    alignment : of every offset in bytes, a power of two

    Raises ValueError for a negative size, a block that dies before it is born and an alignment that
    is no power of two.
    """
    blocks = tuple(blocks)
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"plan: alignment must be a power of two, got {alignment}")
    for number, block in enumerate(blocks):
        if block.size < 0 or (block.dies is not None and block.dies <= block.born):
            raise ValueError(
                f"plan: block {number} has size {block.size} and lives from {block.born} to "
                f"{block.dies}; expected a size of 0 or more and a death after the birth"
            )
    size, born, dies = _columns(blocks, alignment)
    escapes = np.fromiter((block.dies is None for block in blocks), bool, len(blocks))
    chosen = np.flatnonzero((size > 0) & ~escapes)
    parts = size[chosen], born[chosen], dies[chosen]
    peak = int(_alive(*parts)[1].max(initial=0))
    offsets = np.where(escapes, -1, 0)
    offsets[chosen] = _best(*parts, peak)
    return MemoryPlan(
        blocks=blocks,
        offsets=tuple(offsets.tolist()),
        size=int((offsets[chosen] + size[chosen]).max(initial=0)),
        peak=peak,
        total=int(parts[0].sum()),
        escaping=int(size[escapes].sum()),
        alignment=alignment,
    )


def _columns(blocks: Sequence[Block], alignment: int) -> tuple[np.ndarray, ...]:
    """(aligned sizes, births, deaths), where what is alive at the end dies behind all events."""
    count = len(blocks)
    size = np.fromiter((block.size for block in blocks), np.int64, count)
    born = np.fromiter((block.born for block in blocks), np.int64, count)
    last = max((max(b.born, b.born if b.dies is None else b.dies) for b in blocks), default=0)
    ends = (last + 1 if block.dies is None else block.dies for block in blocks)
    return (size + alignment - 1) & -alignment, born, np.fromiter(ends, np.int64, count)


def _alive(size, born, dies) -> tuple[np.ndarray, np.ndarray]:
    """(event, bytes alive from it to the next)."""
    events, place = np.unique(np.concatenate([born, dies]), return_inverse=True)
    change = np.zeros(len(events), np.int64)
    np.add.at(change, place, np.concatenate([size, -size]))
    return events, np.cumsum(change)


def _best(size, born, dies, peak: int) -> np.ndarray:
    """The offsets of the best of some orders; the first that reaches the bound ends the search."""
    life = dies - born
    at_peak = _alive_at_peak(size, born, dies)
    orders = (
        (born, -size),  # large ones first
        (born, -size * life.astype(float)),  # large and long
        (born, -size, ~at_peak),  # those that make the peak, large ones first
        (-size, -life),  # long-lived ones first
        (-size, born),  # as they come, as an allocator would
    )
    best, smallest = np.zeros(len(size), np.int64), None
    for keys in orders:
        offsets = _place(np.lexsort(keys), size, born, dies, smallest)
        if offsets is not None:
            best, smallest = offsets, int((offsets + size).max(initial=0))
            if smallest <= peak:
                break
    return best


def _alive_at_peak(size, born, dies) -> np.ndarray:
    if not len(size):
        return np.zeros(0, bool)
    events, alive = _alive(size, born, dies)
    top = events[alive.argmax()]
    return (born <= top) & (top < dies)


def _place(order, size, born, dies, limit: int | None) -> np.ndarray | None:
    """Offsets, each block in the lowest gap among those placed before that it meets in life.

    None as soon as the arena would not be smaller than `limit`. Four rows of numbers of the placed
    blocks are kept in the order of their offsets, so a block costs a few vector operations.
    """
    offsets = np.zeros(len(size), np.int64)
    low, high, first, last = np.zeros((4, len(size)), np.int64)
    rows = low, high, first, last
    for count, block in enumerate(order.tolist()):
        wanted, start, end = size[block], born[block], dies[block]
        meets = (first[:count] < end) & (last[:count] > start)
        ends = np.maximum.accumulate(high[:count][meets])
        gaps = low[:count][meets]
        offset = 0
        if len(ends):
            gaps[1:] -= ends[:-1]  # the first gap begins at 0
            fits = gaps >= wanted
            gap = int(fits.argmax())
            if not fits[gap]:
                offset = int(ends[-1])
            elif gap:
                offset = int(ends[gap - 1])
        if limit is not None and offset + wanted >= limit:
            return None
        offsets[block] = offset
        place = int(low[:count].searchsorted(offset))
        for row, value in zip(rows, (offset, offset + wanted, start, end), strict=True):
            row[place + 1 : count + 1] = row[place:count]
            row[place] = value
    return offsets
