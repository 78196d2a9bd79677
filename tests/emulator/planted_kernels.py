"""The kernels of the planted-bug suite: how each is launched, and what it computes in NumPy.

All numbers are small integers, so that sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from gpunn import emulator

FOLDER = Path(__file__).resolve().parent / "kernels"


@dataclass(frozen=True)
class Case:
    """One kernel in kernels/<name>.cu. `prepare(rng)` gives the arguments, and pairs of (an
    argument that the kernel writes, what it must hold afterwards)."""

    name: str
    function: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    prepare: Callable
    shared_mem: int = 0
    cooperative: bool = False
    tolerance: float = 0.0

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.cu"


CASES: dict[str, Case] = {}


def case(grid, block, *, function=None, **more):
    """Registers a `prepare` function under its own name."""

    def register(prepare):
        name = prepare.__name__
        CASES[name] = Case(name, function or name, grid, block, prepare, **more)
        return prepare

    return register


def integers(rng, *shape, low=-3, high=4, dtype=np.float32):
    return rng.integers(low, high, shape).astype(dtype)


def i32(value):
    return np.int32(value)


@case((3, 2), (16, 16))
def matmul_tiled(rng):
    a, b, c = integers(rng, 20, 40), integers(rng, 40, 37), np.zeros((20, 37), np.float32)
    return [c, a, b, i32(20), i32(37), i32(40)], [(c, a @ b)]


@case((3,), (256,))
def block_sum(rng):
    x, sums = integers(rng, 600), np.zeros(3, np.float32)
    return [sums, x, i32(600)], [(sums, np.add.reduceat(x, [0, 256, 512]))]


@case((4,), (128,), tolerance=1e-6)
def softmax(rng):
    x, y = integers(rng, 4, 200), np.zeros((4, 200), np.float32)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return [y, x, i32(200)], [(y, e / e.sum(axis=1, keepdims=True))]


@case((3, 2), (32, 8))
def transpose(rng):
    x, y = integers(rng, 40, 70), np.zeros((70, 40), np.float32)
    return [y, x, i32(40), i32(70)], [(y, x.T)]


@case((2,), (96,))
def histogram(rng):
    x, counts = rng.random(600).astype(np.float32), np.zeros(64, np.int32)
    x[::50] = 1
    expected = np.histogram(x, bins=64, range=(0, 1))[0]
    return [counts, x, i32(600)], [(counts, expected)]


@case((1,), (128,))
def scan(rng):
    n = 2 * 128 + 40
    x, y, total = integers(rng, n, dtype=np.int32), np.zeros(n, np.int32), np.zeros(1, np.int32)
    return [y, total, x, i32(n)], [(y, np.cumsum(x)), (total, np.array([x.sum()]))]


@case((4,), (64,), shared_mem=66 * 4)
def stencil(rng):
    now, following = integers(rng, 250), np.zeros(250, np.float32)
    wide = np.pad(now, 1)
    expected = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    return [following, now, i32(250)], [(following, expected)]


@case((3,), (64,))
def vector_reverse(rng):
    n, skip = 4 * 150 + 3, 8
    x, y = integers(rng, skip + n), np.zeros(n, np.float32)
    return [y, x, i32(n), i32(skip)], [(y, x[skip:][::-1].copy())]


@case((2,), (64,))
def warp_filter(rng):
    x = integers(rng, 120, low=-50, high=50, dtype=np.int32)
    x[::32] = -1  # the first lane of each warp keeps nothing
    kept, count = np.zeros(120, np.int32), np.zeros(1, np.int32)
    wanted = np.sort(x[x > 0])

    class Sorted:  # the order is free
        def __array__(self, dtype=None, copy=None):
            return np.sort(kept[: len(wanted)])

    return [kept, count, x, i32(120)], [(Sorted(), wanted), (count, np.array([len(wanted)]))]


@case((2,), (64,))
def warp_sum_tail(rng):
    x, sums = integers(rng, 116), np.zeros(4, np.float32)
    return [sums, x, i32(116)], [(sums, np.add.reduceat(x, [0, 32, 64, 96]))]


@case((6,), (64,), function="last_block_sum")
def last_block(rng):
    x, total = integers(rng, 1000), np.zeros(1, np.float32)
    sums, finished = np.zeros(6, np.float32), np.zeros(1, np.uint32)
    expected = [(total, np.array([x.sum()])), (finished, np.zeros(1, np.uint32))]
    return [total, sums, finished, x, i32(1000)], expected


@case((8,), (64,))
def look_back(rng):
    n = 8 * 64 - 10
    x, y = integers(rng, n, dtype=np.int32), np.zeros(n, np.int32)
    sums, prefixes = np.zeros(8, np.int32), np.zeros(8, np.int32)
    states, tickets = np.zeros(8, np.uint32), np.zeros(1, np.uint32)
    return [y, sums, prefixes, states, tickets, x, i32(n)], [(y, np.cumsum(x))]


@case((2,), (64,))
def bucket(rng):
    keys = rng.integers(32, 1 << 30, 120).astype(np.int32)
    keys[:16] |= 63  # some ask for a shift by 63
    buckets, sizes, fullest = np.zeros(120, np.int32), np.zeros(16, np.int32), np.zeros(1, np.int32)
    mixed = keys.astype(np.uint32)
    mixed = (mixed ^ mixed >> 16) * np.uint32(0x85EBCA6B)
    expected = (mixed >> 1).astype(np.int32) % 16
    counts = np.bincount(expected, minlength=16)
    return (
        [buckets, sizes, fullest, keys, i32(120), i32(16)],
        [(buckets, expected), (sizes, counts), (fullest, np.array([counts.max()]))],
    )


@case((2, 1), (128,), shared_mem=3 * (64 * 40 + 32 * 72) * 2)
def gemm_cp_async(rng):
    a = integers(rng, 64, 160, dtype=ml_dtypes.bfloat16)
    b = integers(rng, 160, 128, dtype=ml_dtypes.bfloat16)
    c = np.zeros((64, 128), np.float32)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    return [c, a, b, i32(64), i32(128), i32(160)], [(c, expected)]


@case((2, 1), (160,), shared_mem=4 * 64 * 64 * 2 + 64)
def gemm_wgmma(rng):
    a = integers(rng, 64, 320, dtype=ml_dtypes.bfloat16)
    b = integers(rng, 128, 320, dtype=ml_dtypes.bfloat16)
    c = np.zeros((64, 128), np.float32)
    maps = [emulator.TensorMap(operand, (64, 64), swizzle=128) for operand in (a, b)]
    expected = a.astype(np.float32) @ b.astype(np.float32).T
    return [c, *maps, i32(128), i32(320)], [(c, expected)]


@case((1,), (128,))
def wgmma_registers(rng):
    x = integers(rng, 64, 128, dtype=ml_dtypes.bfloat16)
    w = integers(rng, 64, 128, dtype=ml_dtypes.bfloat16)
    bias, y = integers(rng, 64), np.zeros((64, 64), np.float32)
    expected = np.maximum(x.astype(np.float32), 0) @ w.astype(np.float32).T + bias
    return [y, x, w, bias, i32(128)], [(y, expected)]


@case((2,), (128,))
def tma_scale(rng):
    x, y = integers(rng, 128, 192, dtype=np.float16), np.zeros((128, 192), np.float16)
    maps = [emulator.TensorMap(array, (64, 64), swizzle=128) for array in (y, x)]
    return [*maps, np.float32(3), i32(3)], [(y, 3 * x)]


@case((2,), (64,), shared_mem=(2 * 128 + 4) * 4)
def bulk_rows(rng):
    x, y = integers(rng, 6, 128), np.zeros((6, 128), np.float32)
    return [y, x, i32(128), i32(3)], [(y, x[:, ::-1] + 1)]


@case((4,), (64,), tolerance=1e-6)
def cluster_normalise(rng):
    x, y = integers(rng, 2, 200, low=1, high=5), np.zeros((2, 200), np.float32)
    return [y, x, i32(200)], [(y, x / x.sum(axis=1, keepdims=True))]


@case((2,), (160,), shared_mem=2 * 64 * 64 * 2)
def multicast(rng):
    x, y = integers(rng, 5 * 64, 64, dtype=np.float16), np.zeros((2, 64, 64), np.float32)
    total = x.astype(np.float32).reshape(5, 64, 64).sum(axis=0)
    source = emulator.TensorMap(x, (32, 64), swizzle=128)
    return [y, source, i32(5)], [(y, np.stack([total, 2 * total]))]


@case((4,), (128,))
def exchange_async(rng):
    x, y = integers(rng, 2, 2, 128), np.zeros((2, 2, 128), np.float32)
    return [y, x], [(y, x + x[:, ::-1, ::-1])]


@case((1,), (128,))
def ring_mbarrier(rng):
    x, y = integers(rng, 7, 96), np.zeros(96, np.float32)
    return [y, x, i32(7)], [(y, (x * x[:, ::-1]).sum(axis=0))]


@case((1,), (96,))
def ring_named(rng):
    x, y = integers(rng, 7, 64), np.zeros(64, np.float32)
    return [y, x, i32(7)], [(y, (x * x[:, ::-1]).sum(axis=0))]


@case((1,), (128,), shared_mem=64 * 64 * 2)
def epilogue_stmatrix(rng):
    a = integers(rng, 64, 16, dtype=ml_dtypes.bfloat16)
    b = integers(rng, 64, 16, dtype=ml_dtypes.bfloat16)
    c = np.zeros((64, 64), ml_dtypes.bfloat16)
    product = a.astype(np.float32) @ b.astype(np.float32).T
    target = emulator.TensorMap(c, (64, 64), swizzle=0)
    return [target, a, b], [(c, product.astype(ml_dtypes.bfloat16))]


@case((4,), (64,), cooperative=True, tolerance=1e-6)
def grid_normalise(rng):
    x, sums = integers(rng, 500, low=1, high=5), np.zeros(4, np.float32)
    return [x, sums, i32(500)], [(x, x / x.sum())]


@case((2,), (64,), function="locked_add")
def lock(rng):
    x = integers(rng, 120, dtype=np.int32)
    state, latch = np.zeros(2, np.int32), np.zeros(1, np.int32)
    return [state, latch, x, i32(120)], [(state, np.array([x.sum(), 120]))]


@case((1,), (128,))
def broadcast(rng):
    x, y = integers(rng, 6, 128), np.zeros((6, 128), np.float32)
    return [y, x, i32(6)], [(y, x * x[:, :1])]


@case((5,), (64,))
def handoff(rng):
    x, y = integers(rng, 5, 64), np.zeros((5, 64), np.float32)
    totals, flags = np.zeros((5, 64), np.float32), np.zeros(5, np.uint32)
    sums = np.cumsum(x, axis=0)
    return [y, totals, flags, np.zeros(1, np.uint32), x], [(totals, sums), (y, sums[:, ::-1])]


@case((3,), (64,), shared_mem=2 * 64 * 4 + 16)
def bulk_sum(rng):
    x, y = integers(rng, 10, 64), np.zeros(64, np.float32)
    return [y, np.zeros(1, np.uint32), x, i32(10)], [(y, 1 + x.sum(axis=0))]


@case((1,), (64,))
def warp_tiles(rng):
    a = integers(rng, 5, 16, 16, dtype=ml_dtypes.bfloat16)
    b = integers(rng, 5, 16, 16, dtype=ml_dtypes.bfloat16)
    c = np.zeros((5, 16, 16), np.float32)
    product = a.astype(np.float32) @ b.astype(np.float32).transpose(0, 2, 1)
    return [c, a, b, i32(5)], [(c, product)]
