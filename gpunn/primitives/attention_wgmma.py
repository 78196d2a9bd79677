"""Launches of kernels/cuda/attention_wgmma.cu: attention forward on sm_90a by TMA and wgmma.

Queries are loaded a tile at a time by one tensor copy, so a tile's rows must be a box of the array:
all positions of some neighbouring heads. Of a group of heads that share keys as many make one table
as divide a tile; where the group has more, several tables have the same head of keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpunn.primitives.attention_problem import Problem, strides_of
from gpunn.primitives.matmul_operand import tensor_map

KEYS, STAGES = 128, 2  # as in attention_wgmma.cuh
CONSUMERS = {64: 3, 128: 2}  # by the kernel's dimension of a head
MIN_ROWS = 64  # of a table: with fewer the tile's rows are mostly not there
CACHED = 24 << 20  # bytes of keys and values that shall stay in the L2 cache


@dataclass(frozen=True, slots=True)
class Plan:
    """How a problem is cut up.

    rows : of a tile
    pack, share : heads of a table; tables that have one head of keys
    tables, tiles : of the whole problem; of a table
    """

    rows: int
    pack: int
    share: int
    tables: int
    tiles: int

    @property
    def blocks(self) -> int:
        """Tiles of all tables."""
        return self.tables * self.tiles


def kernel_dim(dim: int) -> int:
    """The dimension that a head of `dim` numbers has in the kernel."""
    return 64 if dim <= 64 else 128


def plan(q, k) -> Plan:
    """How a problem is cut up."""
    batch, queries, heads, dim = q.shape
    rows, group = 64 * CONSUMERS[kernel_dim(dim)], heads // k.shape[2]
    pack = math.gcd(rows, group)
    tiles = -(-queries * pack // rows)
    return Plan(rows, pack, group // pack, batch * heads // pack, tiles)


def takes(launch, q, k, v, p: Problem) -> bool:
    """Whether the kernel can run a problem whose rows are aligned, and is the better one."""
    if launch.arch != "sm_90a" or q.dtype.itemsize != 2 or q.shape[3] > max(CONSUMERS):
        return False
    if p.mask is not None or p.threshold or not p.scale > 0 or 0 in q.shape or not k.shape[1]:
        return False
    if any(not 0 < step < 1 << 39 for array in (q, k, v) for step in _steps(array)):
        return False
    made = plan(q, k)
    return q.shape[1] * made.pack >= MIN_ROWS and made.blocks < 1 << 24


def _steps(array) -> tuple[int, ...]:
    """The strides in elements of a (B, T, H, D) array along axes longer than 1."""
    return tuple(
        stride // array.itemsize
        for size, stride in zip(array.shape[:3], array.strides[:3], strict=True)
        if size > 1
    )


def parts(launch, p: Problem, q, k) -> int:
    """Into how many parts the keys are cut: long ones, enough for one wave of blocks."""
    blocks = plan(q, k).blocks
    longest = min(k.shape[1], p.window) if p.causal else k.shape[1]
    return max(1, min(launch.multiprocessors // blocks, longest // (4 * KEYS)))


def forward(launch, arrays, out, logs, partial, p: Problem, made: np.void, parts: int) -> None:
    """Launch. `made` is the problem's structure (see attention_launch.py) and is changed."""
    q, k, v = arrays
    cut, keys, dim = plan(q, k), k.shape[1], kernel_dim(k.shape[3])
    made["group"], made["kv_heads"] = cut.pack, q.shape[2] // cut.pack
    tables, section = cut.tables * parts, 1
    if p.causal:  # the longest tiles first, of as many tables as the cache holds
        section = CACHED // max(1, 2 * keys * dim * q.itemsize // (cut.share * parts))
        section = min(max(section, 1), tables)
    maps = (
        _map(q, (1, cut.rows // cut.pack, cut.pack, 64)),
        *(_map(array, (1, KEYS, 1, 64)) for array in (k, v)),
    )
    launch.sibling("attention_wgmma.cu")(
        f"attention_forward_wgmma<{launch.ctype(q.dtype)}, {dim}>",
        grid=(min(cut.tiles * tables, launch.multiprocessors),),
        block=(128 * (1 + CONSUMERS[dim]),),
        args=(
            *maps, p.q_lengths, p.kv_lengths, p.causal_offsets, out, logs, partial, made,
            *map(np.int32, (cut.tiles, parts, cut.tables, section, cut.share)),
        ),
        shared=2 * dim * (cut.rows + 2 * STAGES * KEYS) + 8 * (4 * STAGES + 3),
    )  # fmt: skip


def _map(array, box):
    """The tensor map of a (B, T, H, D) array."""
    batch, time, head = (step or 16 for step in strides_of(array))
    return tensor_map(array, array.shape, (batch, time, head, 1), box, 128)
