"""A few primitives in Triton, written for this benchmark: softmax and a matrix product.

They are what a user of Triton would write first: one program a row for softmax, the row in
registers; and a tiled product whose tiles Triton tunes over a small menu.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PEERS = {}


def peer(function):
    """Add a function to the table under its own name."""
    PEERS[function.__name__] = function
    return function


@triton.jit
def _softmax_rows(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * columns + at, mask=inside, other=-float("inf")).to(tl.float32)
    e = tl.exp(value - tl.max(value, 0))
    result = e / tl.sum(e, 0)
    tl.store(y + row * columns + at, result.to(y.dtype.element_ty), mask=inside)


@peer
def softmax_forward(x, *, out=None):
    columns = x.shape[-1]
    if columns > 1 << 17:
        raise ValueError(f"{columns} columns are more than one Triton program holds")
    out = torch.empty_like(x) if out is None else out
    block = triton.next_power_of_2(columns)
    warps = min(max(block // 512, 1), 32)
    _softmax_rows[(x.numel() // columns,)](x, out, columns, BLOCK=block, num_warps=warps)
    return out


_TILES = [
    triton.Config({"BM": m, "BN": n, "BK": k}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in (
        (128, 256, 64, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 128, 32, 4, 4),
        (64, 128, 32, 4, 4),
        (64, 64, 32, 4, 4),
    )
]


def _fitting(configs, arguments, **_):
    """The tiles whose stages fit into a multiprocessor's 227 KiB of shared memory."""
    size = arguments["a"].element_size()

    def stages(tile):
        sides = tile.kwargs["BM"] + tile.kwargs["BN"]
        return tile.num_stages * sides * tile.kwargs["BK"] * size

    return [tile for tile in configs if stages(tile) <= 227 * 1024]


@triton.autotune(
    configs=_TILES, key=["M", "N", "K"], prune_configs_by={"early_config_prune": _fitting}
)
@triton.jit
def _product(
    a, b, c, M, N, K, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    # Tiles are walked in groups of 8 rows of tiles, so that neighbours share rows of A in L2.
    across, down = tl.cdiv(N, BN), tl.cdiv(M, BM)
    number = tl.program_id(0)
    group = number // (8 * across)
    height = min(down - group * 8, 8)
    row = group * 8 + (number % (8 * across)) % height
    column = (number % (8 * across)) // height
    rows, columns = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    a_at = a + (rows % M)[:, None].to(tl.int64) * K + inner[None, :]
    b_at = b + inner[:, None].to(tl.int64) * N + (columns % N)[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        left = tl.load(a_at, mask=inner[None, :] < K - k, other=0.0)
        right = tl.load(b_at, mask=inner[:, None] < K - k, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        a_at += BK
        b_at += BK * N
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(
        c + rows[:, None].to(tl.int64) * N + columns[None, :],
        total.to(c.dtype.element_ty),
        mask=inside,
    )


@peer
def matmul(a, b, *, out=None):
    (m, k), (_, n) = a.shape, b.shape
    out = torch.empty((m, n), dtype=a.dtype, device=a.device) if out is None else out

    def grid(tile):
        return (triton.cdiv(m, tile["BM"]) * triton.cdiv(n, tile["BN"]),)

    # Float32 as exact as on the ordinary units, by three products of TF32 numbers; for those units
    # ("ieee") Triton unrolls such tiles into code that takes it minutes to compile.
    precision = "tf32x3" if a.dtype == torch.float32 else "ieee"
    _product[grid](a, b, out, m, n, k, PRECISION=precision)
    return out
