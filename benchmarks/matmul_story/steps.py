"""The steps of the story: how each kernel is launched, and the model that predicts its limit.

The model counts what one block does in one slice (`tile` = rows, columns and depth) and asks for
each part of a multiprocessor how many clocks it needs for that:

arithmetic    multiply-adds over what the units or the tensor cores do in a clock
load path     *wavefronts*: the 128 bytes a clock that the first-level cache and shared memory give
              together. A warp's read of shared memory takes one for each 128 bytes of different
              addresses, more if they fall into the same banks; a load from global memory into
              registers one for each cache line of 128 bytes; TMA, cp.async and the tensor cores'
              own reads their bytes / 128.
issue         instructions of the loop, as counted in the machine code for sm_90a, over 4 a clock
L2            bytes from the second-level cache over the multiprocessor's share of what it delivers

The slowest part is the limit: everything else is supposed to overlap perfectly, so a prediction is
a ceiling and not a forecast. Sizes that are no whole number of waves of tiles over the chip lose
what the last wave leaves idle; and nothing is faster than main memory.

It leaves out: the time before the first and after the last slice, waiting where too few warps are
there to hide it, the clock going down under load, and that mma.sync does not reach the full
rate of Hopper's tensor cores, which NVIDIA gives for wgmma.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WARP = 32


@dataclass(frozen=True)
class Chip:
    """Published figures of a GPU; rates are for one multiprocessor and one clock."""

    name: str
    memory: float  # bytes a second
    multiprocessors: int = 132
    float32_clock: float = 1.98e9  # 132 x 128 x 2 x 1.98 GHz = 66.9 TFLOP/s
    tensor_clock: float = 1.83e9  # 132 x 2048 x 2 x 1.83 GHz = 989 TFLOP/s
    float32_rate: int = 128  # multiply-adds
    tensor_rate: int = 2048  # multiply-adds of bfloat16, without sparsity
    path_bytes: int = 128
    issue: int = 4
    l2_bytes: float = 5120 / 132

    def clock(self, dtype: str) -> float:
        """The clock behind the published peak."""
        return self.tensor_clock if dtype == "bfloat16" else self.float32_clock

    def rate(self, dtype: str) -> int:
        """Multiply-adds a clock and multiprocessor."""
        return self.tensor_rate if dtype == "bfloat16" else self.float32_rate

    def peak(self, dtype: str) -> float:
        """FLOP/s."""
        return 2 * self.multiprocessors * self.rate(dtype) * self.clock(dtype)


# NVIDIA, "H100 Tensor Core GPU Architecture" and the data sheets of the H100 SXM5 and the H200 SXM.
# NVIDIA gives no figure for the second-level cache of these; 5120 bytes a clock is the A100's
# ("A100 Tensor Core GPU Architecture"), taken as the least that its successor has.
CHIPS = {
    "H100": Chip("H100 SXM5", 3.35e12),
    "H200": Chip("H200 SXM", 4.8e12),
}


@dataclass(frozen=True)
class Step:
    """One kernel of the story.

    Attributes
    ----------
    file, idea : the source, and what it adds in a few words
    tile : rows and columns of C that a block owns at a time, and k of a slice
    block : threads
    wavefronts : what a block does on the load path in a slice: words and their number
    instructions : of the loop, a warp and slice; 0 where a few threads steer everything
    l2 : bytes of the second-level cache, a block and slice
    dtype : of A, B and C; bfloat16 means B given as N x K
    arch : the first architecture that can run it; sm_90a is that generation only
    shared : bytes of dynamic shared memory
    boxes : rows of A and of B that a tensor copy fetches, if TMA does
    cluster : blocks that work together
    persistent : whether the grid is as large as the chip
    """

    file: str
    idea: str
    tile: tuple[int, int, int]
    block: tuple[int, ...]
    wavefronts: tuple[tuple[str, int], ...]
    instructions: float
    l2: int
    dtype: str = "float32"
    arch: str = "sm_80"
    shared: int = 0
    boxes: tuple[int, int] | None = None
    cluster: int = 1
    persistent: bool = False

    @property
    def number(self) -> str:
        """The first two characters of the file's name: 01, 02, …"""
        return self.file[:2]

    @property
    def path(self) -> Path:
        """The source."""
        return FOLDER / self.file

    @property
    def multiples(self) -> tuple[int, int, int]:
        """What M, N and K must be multiples of."""
        rows, columns, depth = self.tile
        return rows * self.cluster, columns, depth

    @property
    def threads(self) -> int:
        """Threads of a block."""
        product = 1
        for extent in self.block:
            product *= extent
        return product

    def check_size(self, M: int, N: int, K: int) -> None:
        """ValueError if the kernel, which has no code for edges, cannot multiply such matrices."""
        for letter, extent, multiple in zip("MNK", (M, N, K), self.multiples, strict=True):
            if extent <= 0 or extent % multiple:
                raise ValueError(
                    f"{self.file}: {letter} = {extent} is no positive multiple of {multiple}; the "
                    "kernels of the story have no code for edges"
                )
        if max(M * N, M * K, N * K) >= 1 << 31:
            raise ValueError(
                f"{self.file}: {M} x {N} x {K} has matrices of 2^31 or more elements; the kernels "
                "of the story index with 32 bits"
            )

    def grid(self, M: int, N: int, multiprocessors: int) -> tuple[int, int]:
        """Blocks across and down."""
        across, down = N // self.tile[1], M // self.tile[0]
        if not self.persistent:
            return across, down
        return min(multiprocessors // self.cluster * self.cluster, across * down), 1

    def clocks(self, chip: Chip) -> dict[str, float]:
        """Clocks of a block and slice for each part of a multiprocessor."""
        rows, columns, depth = self.tile
        return {
            "arithmetic": rows * columns * depth / chip.rate(self.dtype),
            "load path": sum(count for _, count in self.wavefronts),
            "issue": self.instructions * self.threads / WARP / chip.issue,
            "L2": self.l2 / chip.l2_bytes,
        }

    def predict(self, chip: Chip, M: int, N: int, K: int) -> Prediction:
        """The limit for one size."""
        self.check_size(M, N, K)
        clocks = self.clocks(chip)
        limit = max(clocks, key=clocks.__getitem__)
        rows, columns, depth = self.tile
        turns = -(-(M // rows) * (N // columns) // chip.multiprocessors)  # rounded up
        seconds = turns * (K // depth) * clocks[limit] / chip.clock(self.dtype)
        itemsize = 2 if self.dtype == "bfloat16" else 4
        least = (M * K + K * N + M * N) * itemsize / chip.memory
        if least > seconds:
            limit, seconds = "memory", least
        return Prediction(limit, clocks, seconds, 2 * M * N * K / seconds)


@dataclass(frozen=True)
class Prediction:
    """What the model says: the slowest part, clocks a slice, and the least time of the product."""

    limit: str
    clocks: dict[str, float]
    seconds: float
    flops: float  # a second


def _tma(boxes: tuple[int, int], **more) -> dict:
    return {"dtype": "bfloat16", "arch": "sm_90a", "boxes": boxes, **more}


STEPS = (
    Step("01_naive.cu", "a thread an element", (32, 32, 1), (32, 32),
         (("A: 32 warps x 32 lines", 1024), ("B: 32 warps x 1 line", 32)), 74 / 16, 256),
    Step("02_coalesced.cu", "neighbouring lanes, neighbouring addresses", (32, 32, 1), (32, 32),
         (("A: 32 warps x 1 line", 32), ("B: 32 warps x 1 line", 32)), 74 / 16, 256),
    Step("03_shared_tiles.cu", "a block's data in shared memory", (32, 32, 32), (32, 32),
         (("reads: 32 warps x 32 k x (1/4 of A + 1 of B)", 1280), ("loads: 2 x 32 lines", 64),
          ("stores: 2 x 32", 64)), 86, 8192),
    Step("04_one_column_per_thread.cu", "8 x 1 results a thread", (64, 64, 8), (512,),
         (("reads: 16 warps x 8 k x (8/4 of A + 1 of B)", 384),
          ("loads: 16 x (4 lines of A + 1 of B)", 80), ("stores: 2 x 16", 32)), 104, 4096),
    Step("05_register_tile.cu", "8 x 8 results a thread", (128, 128, 8), (256,),
         (("reads: 8 warps x 8 k x (8/4 x 2 of A + 2 x 4 of B)", 768),
          ("loads: 8 x 4 x (4 lines of A + 1 of B)", 160), ("stores: 2 x 8 x 4", 64)), 591, 8192),
    Step("06_vector_loads.cu", "16-byte loads, no bank conflicts", (128, 128, 8), (256,),
         (("reads: 8 warps x 8 k x (2 of A + 2 x 2 of B)", 384),
          ("loads: 8 x (16 lines of A + 4 of B)", 160), ("stores: 8 x (4 + 4)", 64)), 565, 8192),
    Step("07_warp_tiles_double_buffered.cu", "square warp tiles, the next slice under way",
         (128, 128, 8), (256,),
         (("reads: 8 warps x 8 k x (2 of A + 2 of B)", 256),
          ("loads: 8 x (16 lines of A + 4 of B)", 160), ("stores: 8 x (4 + 4)", 64)), 579, 8192),
    Step("08_mma.cu", "tensor cores (mma.sync)", (128, 128, 32), (256,),
         (("reads: 8 warps x 2 x (16 of A + 8 of B) x 4", 1536), ("loads: 32 x 8 lines", 256),
          ("stores: 32 x 4", 128)), 109, 16384, "bfloat16"),
    Step("09_ldmatrix_swizzle.cu", "ldmatrix from a swizzled tile", (128, 128, 32), (256,),
         (("reads: 8 warps x 2 x (4 x 4 of A + 2 x 4 of B)", 384), ("loads: 32 x 8 lines", 256),
          ("stores: 32 x 4", 128)), 57, 16384, "bfloat16"),
    Step("10_cp_async_stages.cu", "copies three slices ahead", (128, 128, 32), (256,),
         (("reads: 8 warps x 2 x (4 x 4 of A + 2 x 4 of B)", 384),
          ("cp.async: 16 KiB", 128)), 103, 16384, "bfloat16", shared=4 * 16384),
    Step("11_wgmma_tma.cu", "wgmma from shared memory, TMA", (128, 128, 64), (128,),
         (("wgmma: 4 x 2 x (2 + 4) KiB", 384), ("TMA: 32 KiB", 256)), 0, 32768,
         **_tma((128, 128), shared=32768)),
    Step("12_pipeline.cu", "a ring of four slices", (128, 128, 64), (128,),
         (("wgmma: 4 x 2 x (2 + 4) KiB", 384), ("TMA: 32 KiB", 256)), 0, 32768,
         **_tma((128, 128), shared=4 * 32768)),
    Step("13_warp_specialised.cu", "a producer, two consumers, 128 x 256", (128, 256, 64), (384,),
         (("wgmma: 4 x 2 x (2 + 8) KiB", 640), ("TMA: 48 KiB", 384)), 0, 49152,
         **_tma((128, 256), shared=4 * 49152)),
    Step("14_persistent_clusters.cu", "persistent grid, clusters of two, multicast",
         (128, 256, 64), (384,),
         (("wgmma: 4 x 2 x (2 + 8) KiB", 640), ("TMA: 48 KiB", 384)), 0, 32768,
         **_tma((128, 128), shared=4 * 49152, cluster=2, persistent=True)),
)  # fmt: skip
