"""Matrix products on tensor cores by mma.sync: which tile and parts of K, and the launch.

For sm_80 and later, float16, bfloat16 and float32 (as TF32, or exactly as three bfloat16 numbers);
every layout, size and alignment. See kernels/cuda/matmul_mma.cu.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from gpunn.device.arrays import pointer
from gpunn.device.launch import Launcher
from gpunn.primitives import matmul_simt
from gpunn.primitives.matmul_option import LAUNCH, Option, measured, number_of, parts_of
from gpunn.primitives.matmul_problem import Finish, Problem

# The mode's name here and in the kernel.
MODES = {"native": "NATIVE", "tf32": "TF32", "split": "SPLIT"}


@dataclass(frozen=True)
class Tile:
    """The work of one block: `rows` x `columns` of the result, `depth` bytes along K at a time,
    `stages` tiles in shared memory, a grid of warps. `resident` blocks fit on a multiprocessor by
    their registers. `rate` is the share of the tensor cores' speed that it reaches with enough
    blocks, an estimate used only to choose between tiles."""

    rows: int
    columns: int
    depth: int
    warps_m: int
    warps_n: int
    stages: int
    resident: int
    rate: float

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        # The warps' slabs of finished rows, 16 each, at their widest pitch; then the panels.
        slabs = self.warps_m * self.warps_n * 16 * (self.columns // self.warps_n + 8) * 4
        return max(self.stages * (self.rows + self.columns) * self.depth, slabs)

    def name(self, itemsize: int, mode: str, parts: int) -> str:
        """What the autotuner remembers."""
        depth = self.depth // itemsize
        return f"mma {self.rows}x{self.columns}x{depth} s{self.stages} {mode} k{parts}"

    def expression(self, ctype: str, itemsize: int, mode: str, loads, purpose: str) -> str:
        """The kernel's name expression."""
        sizes = (self.rows, self.columns, self.depth // itemsize, self.warps_m, self.warps_n)
        numbers = ", ".join(map(str, (*sizes, self.stages)))
        return f"matmul_mma<{ctype}, {MODES[mode]}, {numbers}, {', '.join(loads)}, {purpose}>"


# Warps of 64 x 64 read the least of shared memory for each product, so the large tiles have them;
# the others have more blocks for the same result. The last two are for few rows or few columns.
_SINGLE = (
    Tile(128, 256, 128, 2, 4, 3, 1, 0.85),
    Tile(128, 128, 64, 2, 2, 4, 2, 0.8),
    Tile(64, 128, 64, 2, 2, 4, 3, 0.7),
    Tile(64, 64, 128, 2, 2, 4, 4, 0.55),
    Tile(32, 128, 128, 1, 4, 4, 4, 0.45),
    Tile(128, 32, 128, 4, 1, 4, 4, 0.45),
)
# Six products for each pair of fragments: shared memory is no limit, registers are.
_SPLIT = (
    Tile(128, 128, 64, 2, 4, 4, 1, 0.8),
    Tile(64, 128, 64, 1, 4, 4, 2, 0.75),
    Tile(64, 64, 64, 2, 2, 4, 3, 0.65),
    Tile(32, 128, 64, 1, 4, 4, 3, 0.6),
    Tile(128, 32, 64, 4, 1, 4, 3, 0.6),
)
TILES = {"native": _SINGLE, "tf32": _SINGLE, "split": _SPLIT}
# For single elements, which are moved slowly whatever the tile is.
STRIDED = {
    "native": Tile(64, 64, 64, 2, 2, 2, 2, 0.3),
    "tf32": Tile(64, 64, 128, 2, 2, 3, 2, 0.3),
    "split": Tile(64, 64, 64, 2, 2, 4, 2, 0.5),
}

# Multiply-adds of 16-bit numbers that a multiprocessor makes in one cycle by mma.sync, from the
# published peaks (sm_90 has more by wgmma). TF32 makes half as many, and SPLIT needs six for one.
_RATES = {80: 1024, 86: 512, 87: 512, 89: 512, 90: 1024, 120: 512, 121: 512}
_SHARE = {"native": 1, "tf32": 2, "split": 6}

# Estimates. Seconds of a clock cycle; cycles from the load of a tile to its use, and to start and
# end a block; bytes that a multiprocessor gets from the L2 cache in a cycle.
_CYCLE, _LATENCY, _BLOCK, _L2_BYTES = 0.6e-9, 800, 2000, 40


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and how K is cut: `parts` parts, each `length` long. `sums_rows`: it makes the sums
    of the rows of `a`, too."""

    expression: str
    tile: Tile
    parts: int
    length: int
    sums_rows: bool


def options(problem: Problem, chip, mode: str) -> list[Option]:
    """Every tile with its best number of parts of K, with their estimated times.

    mode : "native" for float16 and bfloat16; for float32 "tf32" (operands rounded to 11 bits), or
        "split" (each number the sum of three bfloat16 numbers: as exact as float32 arithmetic)

    In "split" mode an operand below 2^-110 in magnitude loses what is below 2^-134 of it. Where a
    sum is not finite, because an operand is not or because it overflows, the product is made again
    on the ordinary units, so that infinities and NaN travel as in NumPy.
    """
    dtype = problem.out.dtype
    purpose, loads = _kernel_of(problem, chip)
    rate = rate_of(chip.arch)
    again = None
    if mode == "split":
        again = min(matmul_simt.options(problem, chip), key=lambda option: option.seconds).run
    found = []
    for tile, parts, length, seconds in _choices(
        problem.M, problem.N, problem.K, problem.batch, dtype.itemsize, mode,
        "STRIDED" not in loads, rate, chip.multiprocessors, chip.shared_limit,
    ):  # fmt: skip
        expression = tile.expression(Launcher.ctype(dtype), dtype.itemsize, mode, loads, purpose)
        kernel = Kernel(expression, tile, parts, length, purpose == "WEIGHT_GRADIENT")
        name = tile.name(dtype.itemsize, mode, parts)
        seconds *= measured("mma", chip.arch)
        found.append(Option(name, seconds, functools.partial(run, kernel=kernel, again=again)))
    return found


def _kernel_of(p: Problem, chip) -> tuple[str, tuple[str, str]]:
    """The kernel's template parameters PASS, and how the operands are moved.

    One kernel moves single elements, for all mixtures of layouts with an operand that needs it.
    Kernels are built for the layouts of a linear layer: `a` contiguous along K where the gradient
    of an input is made, and along its rows where their sums come with the gradient of a weight.
    """
    finish, width = p.finish, 16 // p.out.dtype.itemsize
    (_, a_outer, b_outer), (_, a_inner, b_inner) = p.batch_strides
    aligned_a, aligned_b = chip.aligned(16, p.a), chip.aligned(16, p.b)
    how = matmul_simt.how_to_load
    load_a = how(p.M, p.a_m, p.a_k, p.K, (a_outer, a_inner), width, aligned_a)
    load_b = how(p.N, p.b_n, p.b_k, p.K, (b_outer, b_inner), width, aligned_b)
    single = "STRIDED" in (load_a, load_b)
    if finish.backward:
        purpose = "INPUT_GRADIENT"
        single |= load_a == "ALONG_ROWS"
    elif finish.row_sums is not None and finish.activation == "identity" and load_a != "ALONG_K":
        purpose = "WEIGHT_GRADIENT"
    else:
        purpose = "FORWARD"
    return purpose, ("STRIDED", "STRIDED") if single else (load_a, load_b)


@functools.lru_cache(maxsize=4096)
def _choices(
    M, N, K, batch, itemsize, mode, packs, rate, processors, shared_limit
) -> list[tuple[Tile, int, int, float]]:
    """(tile, parts of K, length of a part, seconds) of each tile that fits.

    The blocks of a multiprocessor, `resident` at a time, need for each step of `depth` along K the
    time of their products or of their loads from the L2 cache, whichever is longer; and no less
    than the latency of memory, divided by the tiles that are under way at a time. "split" launches
    two small kernels besides.
    """
    found = []
    for tile in TILES[mode] if packs else (STRIDED[mode],):
        if tile.shared + 1024 > shared_limit:
            continue
        best = best_parts(
            tile, M, N, K, batch, itemsize, mode, rate, processors, shared_limit
        )
        found.append((tile, *best))
    return found


def best_parts(
    tile: Tile, M, N, K, batch, itemsize, mode, rate, processors, shared_limit
) -> tuple[int, int, float]:
    """(parts of K, length of a part, seconds) of a tile that fits, as `_choices` estimates it."""
    besides = 2 * LAUNCH if mode == "split" else 0.0
    depth = tile.depth // itemsize
    blocks = -(-M // tile.rows) * -(-N // tile.columns) * batch
    products = tile.rows * tile.columns * depth * _SHARE[mode] / (rate * tile.rate)
    step = max(products, (tile.rows + tile.columns) * tile.depth / _L2_BYTES)
    resident = max(1, min(tile.resident, (shared_limit + 1024) // (tile.shared + 1024)))
    best, least = (1, K), math.inf
    for parts, length, extra in parts_of(M, N, K, batch, depth, blocks, processors):
        each = -(-blocks * parts // processors)  # blocks of a multiprocessor
        waves, steps = -(-each // resident), -(-length // depth)
        waiting = _LATENCY + steps * _LATENCY / (tile.stages - 1)
        cycles = waves * _BLOCK + max(each * steps * step, waves * waiting)
        if cycles * _CYCLE + extra < least:
            best, least = (parts, length), cycles * _CYCLE + extra
    return *best, least + besides


def rate_of(arch: str) -> int:
    """Multiply-adds of 16-bit numbers that a multiprocessor makes in one cycle by mma.sync."""
    return _RATES.get(number_of(arch), 1024)


# ---- launch --------------------------------------------------------------------------------------


def run(launch, p: Problem, *, kernel: Kernel, again) -> None:
    """Launch one kernel of the menu, and what must follow it.

    launch : the launcher of matmul.cu, whose kernels add up parts
    again : what makes the product on the ordinary units where it is needed ("split"), or None
    """
    if again is None:
        columns = _run(launch, p, kernel, None)
        matmul_simt.finish_sums(launch, p, columns, columns is None, not kernel.sums_rows)
        return
    flags = launch.empty((2,), np.int32)
    launch.sibling("matmul_prepare.cu")("clear_flags", (1,), (1,), (flags,))
    out, finish = p.finish.out, replace(p.finish, column_sums=None, row_sums=None)
    in_place = finish.residual is not None and pointer(finish.residual) == pointer(out)
    if in_place:  # the residual must outlive the first attempt
        finish = replace(finish, out=launch.empty(out.shape, out.dtype))
    first = replace(p, finish=replace(finish, row_sums=p.finish.row_sums))
    _run(launch, first, kernel, flags[:1])
    again(launch, replace(p, finish=finish), needed=flags[:1])
    if in_place:
        matmul_simt.combine(launch, Finish(out=out), finish.out[None])
    matmul_simt.finish_sums(launch, p, None, True, not kernel.sums_rows)


def _run(launch, p: Problem, kernel: Kernel, needed):
    """Launch the kernel and add up its parts.

    Returns the sums of columns that it left, (blocks of rows, N), or None.
    """
    tile, parts, finish = kernel.tile, kernel.parts, p.finish
    (_, a_outer, b_outer), (inner, a_inner, b_inner) = p.batch_strides
    width = 16 // p.out.dtype.itemsize
    # The stride of a dimension of one is any number; lines that do not exist must be aligned, too.
    strides = (
        stride if size > 1 else 0
        for size, stride in ((p.M, p.a_m), (p.K, p.a_k), (p.N, p.b_n), (p.K, p.b_k))
    )
    vector = p.N % width == 0 and launch.aligned(16, *finish.written, finish.bias)
    tiles_m, tiles_n = -(-p.M // tile.rows), -(-p.N // tile.columns)
    partial = launch.empty((parts, *p.out.shape), np.float32) if parts > 1 else None
    columns = rows = None
    if finish.column_sums is not None and parts == 1:
        columns = launch.empty((p.batch * tiles_m, p.N), np.float32)
    if kernel.sums_rows:
        rows = launch.empty((parts, p.M), np.float32)
    launch.sibling("matmul_mma.cu")(
        kernel.expression,
        grid=(tiles_m * tiles_n * p.batch * parts,),
        block=(tile.threads,),
        args=(
            p.a, p.b, *map(np.int64, (p.M, p.N, p.K, *strides)),
            np.uint32(p.batch), np.uint32(inner),
            *map(np.int64, (a_outer, a_inner, b_outer, b_inner, kernel.length)), partial,
            *finish.arrays(), columns, *finish.numbers(), np.bool_(vector), needed, rows,
        ),
        shared=tile.shared,
    )  # fmt: skip
    if parts > 1:
        matmul_simt.combine(launch, finish, partial)
    if rows is not None:
        matmul_simt.column_sums(launch, rows, finish.row_sums)
    return columns
