"""Correct kernels with subtle synchronisation: how each is launched, and what it computes in NumPy.

Each function below prepares the launch of one kernel in kernels/correct_<name>.cu: the arguments,
and pairs of (an argument that the kernel writes, what it must hold afterwards). All numbers are
small integers, so that sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpunn import emulator

FOLDER = Path(__file__).resolve().parent / "kernels"


@dataclass(frozen=True)
class Case:
    file: str
    function: str
    grid: int | tuple[int, ...]
    block: int
    prepare: Callable
    shared_mem: int = 0
    module: dict = field(default_factory=dict)
    tolerance: float = 0.0


CASES: list[Case] = []


def case(file, grid, block, *, function=None, **more):
    def register(prepare):
        name = function or prepare.__name__
        CASES.append(Case(file, name, grid, block, prepare, **more))
        return prepare

    return register


def integers(rng, *shape, low=-3, high=4, dtype=np.float32):
    return rng.integers(low, high, shape).astype(dtype)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


i32 = np.int32


@case("last_block", 5, 96)
def last_block(rng):
    x, total, finished = integers(rng, 700), zeros(1), zeros(1, dtype=np.uint32)
    return [total, zeros(5), finished, x, i32(700)], [(total, x.sum()), (finished, 0)]


@case("last_block", 4, 64)
def last_block_columns(rng):
    x, total, finished = integers(rng, 10, 64), zeros(64), zeros(1, dtype=np.uint32)
    return [total, zeros(4, 64), finished, x, i32(10)], [(total, x.sum(axis=0)), (finished, 0)]


@case("mbarrier_ring", 1, 128)
def mbarrier_ring(rng):
    x, y = integers(rng, 8, 64), zeros(3, 32)
    products = (x * x[:, ::-1]).sum(axis=0)[:32]
    return [y, x, i32(8)], [(y, np.outer([1, 2, 3], products))]


@case("named_ring", 1, 160)
def named_ring(rng):
    x, y = integers(rng, 7, 64), zeros(3, 32)
    products = (x * x[:, ::-1]).sum(axis=0)[:32]
    return [y, x, i32(7)], [(y, np.outer([1, 2, 3], products))]


def wgmma_pipeline(rng):
    from ml_dtypes import bfloat16

    a, b = integers(rng, 128, 320, dtype=bfloat16), integers(rng, 64, 320, dtype=bfloat16)
    c = zeros(128, 64)
    maps = [emulator.TensorMap(a, (128, 64)), emulator.TensorMap(b, (64, 64))]
    return [c, *maps, i32(64), i32(320)], [(c, a.astype(np.float32) @ b.astype(np.float32).T)]


for stages in (2, 3, 4):
    case(
        "wgmma_pipeline", (1, 1), 384, function=f"wgmma_pipeline<{stages}>",
        shared_mem=stages * (128 + 64) * 64 * 2,
        module={"name_expressions": [f"wgmma_pipeline<{s}>" for s in (2, 3, 4)]},
    )(wgmma_pipeline)  # fmt: skip


@case("ping_pong", 1, 288, shared_mem=3 * 2 * 64 * 64 * 2)
def ping_pong(rng):
    from ml_dtypes import bfloat16

    a, b = integers(rng, 64, 128, dtype=bfloat16), integers(rng, 5 * 64, 128, dtype=bfloat16)
    c = zeros(64, 5 * 64)
    maps = [emulator.TensorMap(operand, (64, 64)) for operand in (a, b)]
    return [c, *maps, i32(5), i32(128)], [(c, a.astype(np.float32) @ b.astype(np.float32).T)]


@case("wgmma_overlap", 1, 128)
def wgmma_overlap(rng):
    x, w, w2 = (integers(rng, 64, 64, dtype=np.float16) for _ in range(3))
    y0, y1 = zeros(64, 64), zeros(64, 64)
    product = x.astype(np.float32) @ w.astype(np.float32).T
    second = x.astype(np.float32) @ w2.astype(np.float32).T
    return [y0, y1, x, w, w2], [(y0, 3 * product), (y1, second)]


@case("wgmma_registers", 1, 128)
def wgmma_registers(rng):
    x, w1, w2 = (integers(rng, 64, 64, dtype=np.float16) for _ in range(3))
    y = zeros(64, 64)
    hidden = np.maximum(x.astype(np.float32) @ w1.astype(np.float32).T, 0)
    maps = [emulator.TensorMap(operand, (64, 64)) for operand in (x, w1, w2)]
    return [y, *maps], [(y, hidden @ w2.astype(np.float32))]


@case("cluster_reduce", 8, 64, tolerance=1e-6)
def cluster_softmax(rng):
    x, y = integers(rng, 2, 400), zeros(2, 400)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return [y, x, i32(400)], [(y, e / e.sum(axis=1, keepdims=True))]


@case("cluster_reduce", 8, 64)
def cluster_shift(rng):
    x, y = integers(rng, 2, 4, 64, dtype=np.int32), zeros(2, 4, 64, dtype=np.int32)
    expected = x
    for _ in range(5):
        expected = expected + np.roll(expected, -1, axis=1)[:, :, ::-1]
    return [y, x, i32(5)], [(y, expected)]


@case("multicast", 4, 96)
def multicast_gemm(rng):
    x, w = integers(rng, 64, 256, dtype=np.float16), integers(rng, 32, 256, dtype=np.float16)
    y = zeros(64, 32)
    maps = [emulator.TensorMap(operand, (16, 32), swizzle=0) for operand in (x, w)]
    return [y, *maps, i32(8)], [(y, x.astype(np.float32) @ w.astype(np.float32).T)]


@case("look_back", 40, 64)
def look_back(rng):
    n = 40 * 64 - 10
    x, y = integers(rng, n, dtype=np.int32), zeros(n, dtype=np.int32)
    words, tickets = zeros(40, dtype=np.uint64), zeros(1, dtype=np.uint32)
    return [y, words, tickets, x, i32(n)], [(y, np.cumsum(x))]


@case("double_buffer", 1, 32)
def double_buffer(rng):
    x, y = integers(rng, 500), zeros(1)
    wide = np.pad(x, (0, 576 - 500)).reshape(6, 96)
    return [y, x, i32(500)], [(y, (wide[:, ::-1] * np.arange(1, 97)).sum())]


@case("warp_exchange", 1, 128)
def warp_exchange(rng):
    x = integers(rng, 4, 32, 8, dtype=np.int32)
    y, expected = np.zeros_like(x), np.empty_like(x)
    lanes = np.arange(32)
    for warp in range(4):
        values = x[warp]
        for turn in range(warp + 1):
            values = np.ascontiguousarray(values.T).reshape(32, 8) + turn
        values[:16, 0] = values[:16, 0][::-1].copy()
        values[16:, 1] = values[lanes[16:] ^ 1, 1].copy()
        values[16:, 2] = values[16:, 2][::-1].copy()
        expected[warp] = values
    return [y, x], [(y, expected)]


@case("partial_masks", 1, 64)
def partial_masks(rng):
    n = int(rng.integers(2, 31))
    x, y = integers(rng, 2, 32, dtype=np.int32), zeros(2, 32, dtype=np.int32)
    return [y, x, i32(n)], [(y, np.stack([masked_warp(row.tolist(), n) for row in x]))]


def masked_warp(values, n):
    result = [0] * 32
    for lane in range(32):
        if lane < 8:
            result[lane] = values[lane ^ 4] + sum(v > 0 for v in values[:8])
        elif lane < 20:
            result[lane] = sum(values[8:20])
        else:
            result[lane] = sum(values[20 + (lane + k) % 12] + k for k in range(3))
    odd = [lane for lane in range(32) if values[lane] % 2]
    if odd:
        result[odd[0]] += 1000 * min(values[lane] for lane in odd)
    result[0] += sum(values[:16])
    result[16] += sum(values[16:])
    y = [r + 16 for r in result]
    kept = [result[lane] + sum(range(lane % 3)) for lane in range(n)]
    for lane in range(n):
        y[lane] += kept[(lane + 1) % n] + (3 in values[:n])
    return y


@case("early_exit", 2, 128)
def early_exit(rng):
    x, y = integers(rng, 2, 100, dtype=np.int32), zeros(2, 100, dtype=np.int32)
    expected = x + 2 * x[:, ::-1]
    expected[:, :50] = (x[:, ::-1] * expected)[:, :50][:, ::-1]
    return [y, x, i32(100)], [(y, expected)]


@case("bytes", 1, 256)
def bytes(rng):
    n = 251
    x = rng.integers(0, 256, n).astype(np.uint8)
    y, flags, halves = zeros(n, dtype=np.uint8), zeros(n, dtype=bool), zeros(n, dtype=np.float16)
    smalls, t = zeros(n, dtype=np.int16), np.arange(n)
    other = 63 - t // 4
    small = other - (4 * other + 2) + (((4 * other + 1) & 4) > 0) + (1 - t % 2) + 1 + t % 2
    return [y, flags, halves, smalls, x, i32(n)], [
        (y, x + np.uint8(1) + x[::-1]),
        (flags, x > 100),
        (halves, (255 - t) + 4 * other + 3),
        (smalls, small),
    ]


@case("histogram", 3, 64)
def histogram(rng):
    x = rng.integers(0, 1000, 300).astype(np.int32)
    counts, extremes = zeros(32, dtype=np.int32), np.array([9999, -1, 0], np.int32)
    total, pairs = zeros(1, dtype=np.uint64), zeros(2, dtype=np.float16)
    return [counts, extremes, total, pairs, x, i32(300)], [
        (counts, np.bincount(x % 32, minlength=32)),
        (extremes, [x.min(), x.max(), 7 + 256]),
        (total, x.sum()),
        (pairs, [300, (x % 2).sum()]),
    ]


@case("spin_lock", 3, 64)
def spin_lock(rng):
    x, y = integers(rng, 3, 64, dtype=np.int32), zeros(3, 64, dtype=np.int32)
    shared, lock = np.array([0, -999], np.int32), zeros(1, dtype=np.int32)
    sums = x.sum(axis=1)
    expected = np.repeat(sums[:, None] + 64, 64, axis=1)
    return [y, shared, lock, x], [(y, expected), (shared, [sums.sum(), sums.max()])]


@case("grid_stride", 3, 64)
def axpy(rng):
    x, table = integers(rng, 501), integers(rng, 7)
    expected = 2 * x + table[np.arange(501) % 7]
    return [x, x, table, np.float32(2), i32(501)], [(x, expected)]


@case("grid_stride", 4, 64)
def neighbours(rng):
    x, y = integers(rng, 251), zeros(250)
    return [y, x[:-1], x[1:], i32(250)], [(y, x[:-1] + 2 * x[1:])]


@case("grid_stride", 2, 32)
def halves(rng):
    x = integers(rng, 2, 300)
    expected = np.stack([x[0], (x[0].reshape(-1, 4) + [1, 2, 3, 4]).ravel()])
    return [x[1], x[0], i32(300)], [(x, expected)]


@case("union", 1, 64)
def reuse(rng):
    x, y, t = integers(rng, 64), zeros(64), np.arange(64)
    return [y, x], [(y, x[63 - t] + 3 * x[63 - (t ^ 1)] + (63 - t + 3))]


@case("union", 1, 48, shared_mem=48 * 8 + 48 * 4 + 8 + 48 * 2 + 48)
def carve(rng):
    x, y, t = integers(rng, 48), zeros(48), np.arange(48)
    result = (3 * x + 1)[::-1] + (47 - t) % 5
    return [y, x, i32(48)], [(y, result[t ^ 1])]


@case("volatile_flag", 6, 64)
def volatile_flag(rng):
    x, y = integers(rng, 6, 32, dtype=np.int32), zeros(6, 32, dtype=np.int32)
    mail, flags = zeros(6, 32, dtype=np.int32), zeros(6, dtype=np.int32)
    tickets = zeros(1, dtype=np.uint32)
    return [y, mail, flags, tickets, x], [(y, np.cumsum(x[:, ::-1], axis=0))]


@case("volatile_flag", 6, 64)
def acquire_flag(rng):
    x, y = integers(rng, 6, 64, dtype=np.int32), zeros(6, 64, dtype=np.int32)
    mail, flags = zeros(6, 64, dtype=np.int32), zeros(6, dtype=np.uint32)
    expected = x.copy()
    for k in range(1, 6):
        expected[k] += expected[k - 1][::-1]
    return [y, mail, flags, zeros(1, dtype=np.uint32), x], [(y, expected)]


@case("work_queue", 3, 64)
def work_queue(rng):
    rows = 20
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, 90, rows))]).astype(np.int32)
    x, sums = integers(rng, starts[-1] + 1, dtype=np.int32), zeros(rows, dtype=np.int32)
    finished, count = zeros(rows, dtype=np.int32), zeros(1, dtype=np.int32)
    expected = [x[a:b].sum() for a, b in zip(starts[:-1], starts[1:], strict=True)]
    arguments = [sums, finished, count, zeros(1, dtype=np.uint32), starts, x, i32(rows)]
    return arguments, [(sums, expected), (count, rows), (lambda: np.sort(finished), range(rows))]


@case("stream_k", 7, 64)
def stream_k(rng):
    rows, depth = 5, 150
    x, sums = integers(rng, rows, depth), zeros(rows)
    share = -(-rows * depth // 7)
    flags, tickets = zeros(7, dtype=np.uint32), zeros(1, dtype=np.uint32)
    arguments = [sums, zeros(7), flags, tickets, x, i32(rows), i32(depth), i32(share)]
    return arguments, [(sums, x.sum(axis=1))]


@case("turnstile", 6, 64)
def turnstile(rng):
    x, sums, turn = integers(rng, 6, 64), zeros(64), zeros(1, dtype=np.uint32)
    expected = sum(row * 0.5 ** (6 - k) for k, row in enumerate(x))
    return [sums, turn, zeros(1, dtype=np.uint32), x], [(sums, expected), (turn, 6)]


@case("grid_sync", 4, 32, module={"enable_cooperative_groups": True})
def grid_sync(rng):
    a, b, sums = integers(rng, 128), zeros(128), zeros(4)
    expected = a.copy()
    for _ in range(3):
        expected = np.roll(expected, 1) + 2 * expected + np.roll(expected, -1)
    return [a, b, sums, i32(3)], [(b, expected), (lambda: sums[0], expected.sum())]


@case("tma_store", 2, 64)
def tma_store(rng):
    x, y = integers(rng, 64, 320, dtype=np.float16), zeros(64, 320, dtype=np.float16)
    maps = [emulator.TensorMap(array, (32, 64)) for array in (y, x)]
    return [*maps, i32(5)], [(y, x + 1)]


@case("votes", 2, 96)
def votes(rng):
    x, y = integers(rng, 2, 96, dtype=np.int32), zeros(2, 96, dtype=np.int32)
    any_three = (x == 3).any(axis=1)
    rest = (x > 0).sum(axis=1) + 200 + 300 * any_three + 1
    return [y, x], [(y, 1000 * np.sort(x, axis=1) + rest[:, None])]


@case("match_any", 2, 96)
def match_any(rng):
    keys = rng.integers(0, 5, 150).astype(np.int32)
    places, counts = zeros(150, dtype=np.int32), zeros(5, dtype=np.int32)

    def by_key():  # the order within a key is free
        return np.concatenate([np.sort(places[keys == key]) for key in range(5)])

    expected = np.concatenate([np.arange((keys == key).sum()) for key in range(5)])
    return [places, counts, keys, i32(150)], [
        (counts, np.bincount(keys, minlength=5)),
        (by_key, expected),
    ]


@case("copy_async_barrier", 1, 128)
def copy_async_barrier(rng):
    x, y = integers(rng, 1 + 7 * 64), zeros(64)
    chunks = x[1:].reshape(7, 64)
    return [y, x, i32(7)], [(y, (chunks[:, ::-1] + 2 * chunks).sum(axis=0))]


@case("store_async", 8, 32)
def store_async_ring(rng):
    x, y = integers(rng, 2, 4, 32, dtype=np.int32), zeros(2, 4, 32, dtype=np.int32)
    expected = x
    for _ in range(6):
        expected = expected + np.roll(expected, 1, axis=1)[:, :, ::-1]
    return [y, x, i32(6)], [(y, expected)]


@case("bulk", 4, 64)
def bulk_sum(rng):
    x, y = integers(rng, 10, 64), zeros(64)
    return [y, x, i32(10)], [(y, x.sum(axis=0))]


@case("bulk", 4, 64)
def bulk_peer(rng):
    x, y = integers(rng, 2, 2, 64), zeros(2, 2, 64)
    return [y, x], [(y, x + 2 * x[:, ::-1, ::-1])]


@case("bulk", 3, 64)
def bulk_read_back(rng):
    x, y, copy = integers(rng, 3, 64), zeros(3, 64), zeros(3, 64)
    return [y, copy, x], [(copy, 2 * x), (y, 2 * x[:, ::-1])]


@case("ldmatrix", 1, 64)
def ldmatrix_tiles(rng):
    from ml_dtypes import bfloat16

    a, b = (integers(rng, 5, 16, 16, dtype=bfloat16) for _ in range(2))
    c = np.zeros((5, 16, 16), bfloat16)
    product = a.astype(np.float32) @ b.astype(np.float32).transpose(0, 2, 1)
    return [c, a, b, i32(5)], [(c, product.astype(bfloat16))]


@case("union", 1, 64)
def recycle(rng):
    x, y = integers(rng, 2, dtype=np.int32), zeros(64, dtype=np.int32)
    return [y, x], [(y, 3 * (10 * x[0] + x[1]) + 33)]


@case("same_value", 3, 64)
def same_value(rng):
    x = rng.integers(0, 60, (3, 64)).astype(np.int32)
    found, y = zeros(1, dtype=np.int32), zeros(3, 64, dtype=np.int32)
    any_three = (x == 3).any(axis=1, keepdims=True)
    return [found, y, x, i32(192)], [(found, any_three.any()), (y, np.where(any_three, x, -x))]


@case("cas_loop", 3, 64)
def cas_loop(rng):
    x = integers(rng, 300)
    largest, products = np.full(1, -9, np.float32), zeros(3)
    best = zeros(1, dtype=np.uint64)
    index = np.arange(300)
    parts = [(x[index // 64 % 3 == block] > 0).sum() for block in range(3)]
    pair = (int(np.float32(x.max() + 8).view(np.uint32)) << 32) + 300 - int(x.argmax())
    return [largest, products, best, x, i32(300)], [
        (largest, x.max()),
        (products, 2.0 ** np.array(parts)),
        (lambda: int(best[0]) - pair, 0),
    ]


@case("grid_barrier", 4, 32, module={"enable_cooperative_groups": True})
def rotate(rng):
    a, b = integers(rng, 128, dtype=np.int32), zeros(128, dtype=np.int32)
    expected = np.roll(a, -37 * 4) + 4
    return [a, b, zeros(1, dtype=np.uint32), i32(4)], [(a, expected)]


@case("struct", 1, 64)
def structs(rng):
    x = rng.permutation(64).astype(np.float32)
    values, labels, sums = zeros(1), zeros(1, dtype=np.int32), zeros(1, dtype=np.float64)
    pairs = zeros(32, 2, dtype=np.float16)
    return [values, labels, sums, pairs, x], [
        (values, 63),
        (labels, x.argmax()),
        (sums, x.sum() * 100 + 64),
        (pairs, x.reshape(32, 2)[::-1]),
    ]


@case("cooperative_groups", 1, 64)
def groups(rng):
    x, y = integers(rng, 8, 8, dtype=np.int32), zeros(64, dtype=np.int32)
    value = x.copy()
    for tile in range(8):
        for _ in range(tile + 1):
            value[tile] = value[tile][::-1] + 1
    sums = np.repeat(value.sum(axis=1), 8)
    return [y, x], [(y, sums[::-1] + 1000 * np.repeat((value > 5).any(axis=1), 8))]


@case("pipeline", 1, 32)
def pipeline(rng):
    x, y = integers(rng, 5, 32, 4), zeros(32)
    return [y, x, i32(5)], [(y, (x * [1, 2, 3, 4]).sum(axis=(0, 2)))]
