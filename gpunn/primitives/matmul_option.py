"""One way to make a product, with its estimated time; and how K may be cut into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Estimated: seconds to launch one more kernel behind the first; bytes a second of the memory that
# holds the parts (they usually lie in the L2 cache).
LAUNCH, PARTS_BANDWIDTH = 2.5e-6, 4e12


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
