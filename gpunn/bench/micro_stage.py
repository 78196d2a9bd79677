"""The stage of the microbenchmarks in the run on hardware: every primitive, in the order in which
what is not known yet comes first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gpunn.kernels
from gpunn.bench import peers
from gpunn.bench.cases import FIXED, Case, depends_on_dtype
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.current import Known
from gpunn.bench.measure import NotTimed, Row, measure
from gpunn.device.device import Device
from gpunn.primitives.registry import IMPLEMENTATIONS, Primitive

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

# Peers that take seconds for each case are peers of a few, in float32 and the largest shape. (The
# products have a stage of their own.)
COMPILED = {"softmax_forward", "cross_entropy_forward", "adam_update", "layer_norm_forward"}
TRITON = {"softmax_forward"}


def microbenchmarks(run: Run, seconds: float) -> str:
    """Every primitive against its floor and its peers."""
    begin = time.monotonic()
    ceilings = run.ceilings(seconds / 2)
    if ceilings is None:
        return "the ceilings could not be measured, so nothing else was timed"
    items, text = in_order(run.known, benchmark_items())
    if run.tiny:  # one of each primitive
        items = list({item["primitive"]: item for item in reversed(items)}.values())
    items = [item | {"ceilings": ceilings} for item in items]
    outcome = run.supervise("bench", items, seconds - (time.monotonic() - begin))
    rows: dict[str, list[Row]] = {}
    for item in items:  # what is timed again beside further peers has all that the first had
        result = outcome.results.get(item["id"], {})
        run.found.not_timed += [NotTimed(**one) for one in result.get("not_timed", ())]
        if found := [Row.from_json(row) for row in result.get("rows", ())]:
            rows[item["case"]] = found
    run.found.rows += [row for found in rows.values() for row in found]
    return f"{len(run.found.rows)} rows; {text}"


def benchmark_items() -> list[dict[str, Any]]:
    """The cases in the order of their weight: the large shape of each in float32 first, then in
    bfloat16, then the other shapes; last the large shapes again, beside peers that take long."""
    table = gpunn.kernels.table().values()
    large = [(made, largest(made), "float32") for made in table if made.bench_shapes]
    narrow = [(made, shape, "bfloat16") for made, shape, _ in large if depends_on_dtype(made)]
    others = [(made, shape, "float32") for made, first, _ in large
              for shape in made.bench_shapes if shape != first]  # fmt: skip
    found = [_bench_item(*one) for one in [*large, *narrow, *others]]
    return found + [_bench_item(*one, beside=slow_peers(one[0].name)) for one in large]


def _bench_item(
    made: Primitive, shape: tuple[int, ...], dtype: str, beside: Sequence[str] = ()
) -> dict[str, Any]:
    case = Case(made.name, shape, dtype if depends_on_dtype(made) else FIXED)
    name = " ".join([case.key, *(("beside", *beside) if beside else ())])
    return {"id": name, "case": case.key, "primitive": made.name, "shape": shape,
            "dtype": case.dtype, "beside": list(beside)}  # fmt: skip


def slow_peers(name: str) -> list[str]:
    """Peers of a primitive that take seconds to prepare: CuPy compiles each operation (its peer is
    for comparison only where PyTorch has one), and what compiles."""
    chosen = (("cupy", (name,)), ("torch.compile", COMPILED), ("triton", TRITON))
    return [peer for peer, names in chosen if name in names]


def in_order(known: Known, items: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """What is not known comes first, but what takes long last."""
    quick = [item for item in items if not item["beside"]]
    slow = [item for item in items if item["beside"]]
    quick, text = known.first(quick, lambda item: ("row", item["case"]))
    slow, _ = known.first(slow, lambda item: ("row", item["case"], item["beside"][-1]))
    return quick + slow, text


def largest(made: Primitive) -> tuple[int, ...]:
    """The largest default shape."""
    return max(made.bench_shapes, key=math.prod)


def time_case(item: dict[str, Any], device: Device, tiny: bool) -> dict[str, Any]:
    """One case of the microbenchmarks; on a GPU beside the peer that is there at once, and those
    that the item names."""
    shape = tuple(min(n, 64) for n in item["shape"]) if tiny else tuple(item["shape"])
    names = peers.available(device)
    if device.type == "cuda":
        quick = peers.at_once(item["primitive"], names)
        beside = item.get("beside", ())
        names = [p for p in names if p in quick or p in beside]
        if beside and len(names) == len(quick):
            return {"passed": True, "checked": 0, "failures": []}  # measured with these already
    rows, skipped = measure(
        Case(item["primitive"], shape, item["dtype"]),
        device,
        Ceilings.from_json(item["ceilings"]),
        peer_names=names,
        samples=2 if tiny else 20,
        # Half of what `gpunn bench` takes: 1000 times what events resolve, for twice the cases.
        sample_seconds=None if tiny else 5e-4,
    )
    ours = [one for one in skipped if one.contestant in ("all", *IMPLEMENTATIONS)]
    failures = [{"case": f"{one.case} {one.contestant}", "reason": one.reason} for one in ours]
    return {
        "passed": not failures,
        "checked": 1,
        "failures": failures,
        "rows": [row.to_json() for row in rows],
        "not_timed": [asdict(one) for one in skipped],
    }
