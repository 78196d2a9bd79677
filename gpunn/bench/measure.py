"""Measuring cases: ours and the peers in turns, each row beside its floor."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import gpunn.kernels
from gpunn.bench import peers
from gpunn.bench.cases import Case, Workload, workload
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.timing import (
    SAMPLES,
    Contestant,
    Timing,
    captured,
    clock_for,
    interleave,
    one_line,
)
from gpunn.device.device import Device
from gpunn.primitives.registry import Primitive, implementation_for, using

# Below this, on a GPU, a call is dominated by its launch: it is timed as a graph as well.
LAUNCH_BOUND_SECONDS = 50e-6
GRAPH_CALLS = 20  # at least


@dataclass
class Row:
    """One contestant of one case.

    `mode` is "cpu"; "stream" (launched one by one from Python) or "graph" (replayed). `cache` says
    whether a call finds its data in memory ("cold") or possibly in the last-level cache ("warm").
    Times in seconds a call; `samples` are all of them, each the mean of `inner` calls.
    `floor` is the least time by the measured ceilings and `bound` the ceiling that sets it.
    `peers` maps a peer to its median over ours: 1.2 means that ours is 1.2 times as fast.
    """

    primitive: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    implementation: str
    ours: bool
    mode: str
    cache: str
    samples: tuple[float, ...]
    inner: int
    flops: float
    bytes: float
    floor: float
    bound: str
    peers: dict[str, float] = field(default_factory=dict)

    @property
    def timing(self) -> Timing:
        """Median, quartiles and spread."""
        return Timing(self.samples, self.inner)

    @property
    def percent_of_floor(self) -> float:
        """100 where the call takes no longer than its floor, 50 where twice as long."""
        return 100 * self.floor / self.timing.median

    @property
    def key(self) -> tuple:
        """What makes two rows of two runs comparable."""
        return (
            self.primitive, tuple(self.shape), self.dtype, self.device.partition(":")[0],
            self.implementation, self.mode,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with the median and quartiles for readers of the file."""
        low, high = self.timing.quartiles
        found = asdict(self)
        found["median"], found["quartiles"] = self.timing.median, [low, high]
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        """The inverse of `to_json`."""
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        fields["shape"], fields["samples"] = tuple(value["shape"]), tuple(value["samples"])
        return cls(**fields)


@dataclass(frozen=True)
class NotTimed:
    """A contestant of a case that has no time, and why."""

    case: str
    contestant: str
    reason: str


def measure(
    case: Case,
    device: Device,
    ceilings: Ceilings,
    *,
    implementations: Sequence[str] | None = None,
    peer_names: Sequence[str] = (),
    samples: int = SAMPLES,
    sample_seconds: float | None = None,
    graphs: bool = True,
) -> tuple[list[Row], list[NotTimed]]:
    """Time one case; rows of ours first, then of the peers, and what could not be timed.

    `implementations` are "numpy", "cuda", "numba"; None is the device's own.
    """
    implementations = implementations or (("numpy",) if device.type == "cpu" else ("cuda",))
    made = gpunn.kernels.table()[case.primitive]
    skipped: list[NotTimed] = []
    try:
        work = workload(case, device)
    except Exception as error:
        return [], [NotTimed(case.key, "all", one_line(error))]
    contestants = _ours(made, work, device, implementations, skipped)
    contestants += _peers(made, work, device, peer_names, skipped)
    rows: list[Row] = []
    with clock_for(device) as clock:
        timings, failed = interleave(contestants, clock, samples, sample_seconds)
        rows += _rows(work, device, ceilings, "cpu" if device.type == "cpu" else "stream", timings)
        short = any(t.median < LAUNCH_BOUND_SECONDS for t in timings.values())
        if device.type == "cuda" and graphs and short:
            recorded, calls = [], graph_calls(len(work.sets))
            for contestant in contestants:
                if contestant.name in failed:
                    continue
                try:
                    recorded.append(captured(contestant, clock, calls))
                except Exception as error:
                    reason = f"not captured into a graph: {one_line(error)}"
                    skipped.append(NotTimed(case.key, contestant.name, reason))
            timings, lost = interleave(recorded, clock, samples, sample_seconds)
            rows += _rows(work, device, ceilings, "graph", timings)
            failed |= lost
    skipped += [NotTimed(case.key, name, reason) for name, reason in failed.items()]
    return rows, skipped


def graph_calls(sets: int) -> int:
    """Calls in a graph: whole turns through the sets of inputs, so that no call of the next replay
    finds its data in the cache because some sets were left out."""
    return sets * math.ceil(GRAPH_CALLS / sets)


def _ours(
    made: Primitive,
    work: Workload,
    device: Device,
    implementations: Sequence[str],
    skipped: list[NotTimed],
) -> list[Contestant]:
    found = []
    for name in implementations:
        if (device.type == "cpu") != (name == "numpy"):
            reason = f"{name} does not run on {device}"
            skipped.append(NotTimed(work.case.key, name, reason))
            continue

        forced = implementation_for(device) != name

        def run(i, name=name, forced=forced):
            inputs = work.sets[i % len(work.sets)]
            with using(name) if forced else contextlib.nullcontext():
                return inputs.call(made)

        found.append(Contestant(name, run))
    return found


def _peers(
    made: Primitive,
    work: Workload,
    device: Device,
    names: Sequence[str],
    skipped: list[NotTimed],
) -> list[Contestant]:
    found = []
    for name in names:
        try:
            peers.check(name, work.case, device, work.sets[0])
            calls = peers.prepare(name, made.name, work.sets)
        except Exception as error:
            reason = str(error) if isinstance(error, peers.PeerError) else one_line(error)
            skipped.append(NotTimed(work.case.key, _peer_label(name), reason))
            continue

        def run(i, calls=calls):
            return calls[i % len(calls)]()

        found.append(Contestant(_peer_label(name), run, library=peers.library_of(name)))
    return found


def _peer_label(name: str) -> str:
    # On a CPU our implementation is NumPy as well: tell the two apart.
    return "plain numpy" if name == "numpy" else name


def _rows(
    work: Workload, device: Device, ceilings: Ceilings, mode: str, timings: dict[str, Timing]
) -> list[Row]:
    case, cost = work.case, work.cost
    floor, bound = ceilings.floor(cost, case.dtype)
    ours = ("numpy", "cuda", "numba")
    others = {name: t.median for name, t in timings.items() if name not in ours}
    rows = []
    for name, timing in timings.items():
        rows.append(
            Row(
                case.primitive, case.shape, case.dtype, str(device), name, name in ours, mode,
                work.cache, timing.samples, timing.inner, cost.flops, cost.bytes, floor, bound,
                {peer: other / timing.median for peer, other in others.items()}
                if name in ours else {},
            )  # fmt: skip
        )
    return rows


