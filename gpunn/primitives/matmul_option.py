"""One way to make a product, with its estimated time; and how K may be cut into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Estimated: seconds to launch one more kernel behind the first; bytes a second of the memory that
# holds the parts (they usually lie in the L2 cache).
LAUNCH, PARTS_BANDWIDTH = 2.5e-6, 4e12


# The estimates of kernels without wgmma, made from data sheets, times these: on an H100 products of
# 128^3 to 1024^3 took 1.6 to 2 times as long by mma.sync and 1.5 to 1.9 times by the ordinary
# units; those by wgmma took 0.85 (the large ones) to 1.3 times what was estimated.
_MEASURED = {"mma": {90: 1.7}, "simt": {90: 1.65}}


def measured(kind: str, arch: str) -> float:
    """The factor for the estimates of a kind of kernel, "mma" or "simt", on an architecture."""
    return _MEASURED[kind].get(number_of(arch), 1.0)


def number_of(arch: str) -> int:
    """The number in an architecture's name: 90 for "sm_90a"."""
    return int("".join(filter(str.isdigit, arch)))


@dataclass(frozen=True, slots=True)
class Option:
    """A kernel with its tile.

    name : short and stable, such as "wgmma 128x256 c2", by which the autotuner remembers it
    seconds : estimated time, used only to choose
    run : ``run(launch, problem)`` launches it; `launch` is the launcher of matmul.cu
    """

    name: str
    seconds: float
    run: Callable


def parts_of(
    M: int, N: int, K: int, batch: int, depth: int, blocks: int, processors: int, most: int = 64
) -> Iterator[tuple[int, int, float]]:
    """(parts, length, seconds that they cost besides) for cutting K among blocks.

    Lengths are multiples of `depth`. The parts are written and read once in the accumulator's type
    by `matmul_combine`.
    """
    parts = 1
    while parts <= most:
        # 2^30: the kernels count along a part in 32 bits.
        length = min(-(-K // (parts * depth)) * depth, 1 << 30) or depth
        real = max(1, -(-K // length))
        if real > 1 and real * blocks > 4 * processors and length < 1 << 30:
            return
        extra = LAUNCH + 2 * 4 * real * batch * M * N / PARTS_BANDWIDTH if real > 1 else 0.0
        yield real, length, extra
        parts *= 2
