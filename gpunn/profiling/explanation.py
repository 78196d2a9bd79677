"""What `explain` finds: rows of primitives with their floors, totals, advice; and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpunn.bench.tables import seconds_text, significant
from gpunn.profiling.chips import LAUNCH_SECONDS, Chip
from gpunn.profiling.tables import SHORT, fitted, wrapped


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's file and name, blocks, threads, bytes of dynamic shared memory."""

    source: str
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int


@dataclass
class Row:
    """One primitive, as often as the step runs it alike.

    Attributes
    ----------
    layer, what, phase, primitive, shapes, dtype : as of an `Entry` of a profile; "*" in `layer`
        stands for the numbers of the layers that are alike
    count : how often it runs
    launches : of one run
    flops, bytes : of one run
    floor : seconds of one run at the chip's bandwidth and rate
    limit : "memory", "compute", or "launch" where the floor is below that of any kernel
    """

    layer: str
    what: str
    phase: str
    primitive: str
    shapes: str
    dtype: str
    count: int
    launches: list[Launch]
    flops: float
    bytes: float
    floor: float
    limit: str


@dataclass
class Explanation:
    """What `explain` found; ``str(explanation)`` is the text.

    Attributes
    ----------
    name : of the step
    chip : the `Chip`
    rows : primitives in the order in which they first run
    plain : name of an operation of autograd that no primitive makes -> how often it runs; CuPy's
        arithmetic makes it, in at least one launch each
    fused : parts of a step (`gpunn.train.fused.ExplainedPart`) if one kernel can train the network
    advice : sentences
    """

    name: str
    chip: Chip
    rows: list[Row]
    plain: dict[str, int]
    fused: list[Any] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Launches of our kernels in a step."""
        return sum(row.count * len(row.launches) for row in self.rows)

    @property
    def flops(self) -> float:
        """Of the whole step."""
        return sum(row.count * row.flops for row in self.rows)

    @property
    def bytes(self) -> float:
        """Of the whole step, each kernel by itself."""
        return sum(row.count * row.bytes for row in self.rows)

    @property
    def floor(self) -> float:
        """Seconds of the whole step if every kernel ran at its floor and starting cost nothing."""
        return sum(row.count * row.floor for row in self.rows)

    @property
    def started_floor(self) -> float:
        """The same with no kernel below `LAUNCH_SECONDS`."""
        return sum(
            row.count * max(row.floor, len(row.launches) * LAUNCH_SECONDS) for row in self.rows
        )

    def __str__(self) -> str:
        return _text(self)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dictionaries and lists."""
        return {
            "name": self.name, "chip": self.chip.name, "launches": self.launches,
            "flops": self.flops, "bytes": self.bytes, "floor": self.floor,
            "started_floor": self.started_floor, "plain": self.plain, "advice": self.advice,
            "fused": [part._asdict() for part in self.fused],
            "rows": [
                {**vars(row), "launches": [vars(launch) for launch in row.launches]}
                for row in self.rows
            ],
        }  # fmt: skip


def _text(found: Explanation) -> str:
    """The rows, the totals, the advice."""
    rows = [
        [
            SHORT[row.phase], row.layer, row.primitive,
            f"{row.count} x {len(row.launches)}" if row.count > 1 else len(row.launches),
            _small(row.count * row.flops / 1e9), _small(row.count * row.bytes / 1e6),
            _small(row.count * row.floor * 1e6), row.limit,
        ]
        for row in found.rows
    ]  # fmt: skip
    headers = ["phase", "layer", "primitive", "launches", "GFLOP", "MB", "floor us", "limit"]
    chip = found.chip
    parts = [
        wrapped(
            f"{found.name} on {chip.name} ({chip.arch}, {chip.multiprocessors} multiprocessors, "
            f"{chip.bandwidth / 1e12:.2f} TB/s by its data sheet)"
        ),
        fitted(headers, rows, (3, 4, 5, 6), {1: "end", 2: "start"}),
        totals_text(found),
    ]
    if found.fused:
        parts.append(_fused(found))
    if found.advice:
        parts.append("\n".join(wrapped(line, "- ") for line in found.advice))
    return "\n\n".join(parts)


def _fused(found: Explanation) -> str:
    """The step as one persistent kernel makes it."""
    seconds = sum(part.seconds for part in found.fused)
    rows = [
        (part.part, part.what, part.blocks, significant(part.seconds * 1e6), part.limit)
        for part in found.fused
    ]
    headers = ["part", "what it does", "blocks", "us", "limit"]
    start = wrapped(
        f"As one kernel for many steps (mlp_train, which the Trainer uses where it can): about "
        f"{seconds_text(seconds)} a step, estimated from data sheets, scaled to what was measured."
    )
    return f"{start}\n\n{fitted(headers, rows, (2, 3), {1: 'start'})}"


def _small(value: float) -> str:
    """Three digits, and no more places than say something."""
    return "<0.001" if 0 < value < 0.001 else significant(value)


def totals_text(found: Explanation) -> str:
    """How many launches, operations and bytes, and the floor of it all."""
    limits = dict.fromkeys(("memory", "compute", "launch"), 0)
    for row in found.rows:
        limits[row.limit] += row.count * len(row.launches)
    by = ", ".join(f"{count} by {limit}" for limit, count in limits.items() if count)
    return wrapped(
        f"A step: {found.launches} launches of our kernels ({by}), "
        f"{significant(found.flops / 1e9)} GFLOP, {significant(found.bytes / 1e6)} MB. Floor "
        f"{seconds_text(found.floor)}; with no launch below {seconds_text(LAUNCH_SECONDS)}, "
        f"{seconds_text(found.started_floor)}. That is what the data sheet allows at the very "
        "best, not a prediction."
    )


def kernels_text(found: Explanation) -> str:
    """Every CUDA kernel with its grid, block and dynamic shared memory, in order of first use."""
    seen: dict[tuple, int] = {}
    for row in found.rows:
        for launch in row.launches:
            key = (launch.source, launch.kernel, launch.grid, launch.block, launch.shared)
            seen[key] = seen.get(key, 0) + row.count
    rows = [
        [source, kernel, count, "x".join(map(str, grid)), "x".join(map(str, block)), shared]
        for (source, kernel, grid, block, shared), count in seen.items()
    ]
    headers = ["source", "kernel", "launches", "grid", "block", "shared"]
    return fitted(headers, rows, (2, 5), {1: "start"})
