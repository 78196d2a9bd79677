"""The run on hardware: every check and benchmark of a machine with a GPU, into one result file.

Needs Python, NumPy, ml_dtypes and CuPy; uses PyTorch, Triton, Numba, pytest and scikit-learn where
they are there; installs and downloads nothing. The stages share a time budget: each gets its share
of what is left when it begins, and what it cannot do in that time is listed as not run. The file
is written after every stage. A dry run goes through the same stages on a CPU with tiny sizes.
"""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gpunn.kernels
from gpunn.bench import (
    candidates,
    compile_stage,
    current,
    jobs_stage,
    micro_stage,
    one_rank,
    programs,
    results,
    step_kernels,
    step_stages,
    supervise,
)
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.choices import stage as choices
from gpunn.bench.conformance import conformance_cases
from gpunn.bench.machine import checkout, noting_launcher
from gpunn.bench.measure import NotTimed, Row
from gpunn.bench.results import Results
from gpunn.bench.supervise import Outcome
from gpunn.device import probe
from gpunn.device.device import Device

BUDGET_SECONDS = 450.0

# What a stage measures has its own places in the result file, and is no part of its test.
MEASURED = (
    "rows", "not_timed", "ceilings", "launches", "product", "training", "step_kernels", "choice",
    "machine",
)  # fmt: skip


@dataclass
class Run:
    """What the stages share."""

    device: Device
    found: Results
    path: Path
    tiny: bool
    end: float
    say: Callable[[str], None] = print
    left_out: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def known(self) -> current.Known:
        """What the committed files and those beside this run's say already of this GPU."""
        folders = (checkout() / "benchmarks" / "results", self.path.parent.parent)
        found = current.known(folders, self.found.gpu, self.found.sources)
        for text in found.unread:
            self.say(f"not read: {text}")
        return found

    def supervise(self, stage: str, items: list[dict], seconds: float, **options) -> Outcome:
        """Run items in children, and note each as a test of this stage."""
        device = "cpu" if stage == "compile" else str(self.device)  # compiling needs no GPU
        outcome = supervise.supervise(
            stage, items, device=device, seconds=seconds, tiny=self.tiny, **options
        )
        self.keep(stage, outcome)
        return outcome

    def keep(self, stage: str, outcome: Outcome) -> None:
        """Note what became of items as tests of a stage, and what was not run."""
        for name, result in outcome.results.items():
            if "not_run" in result:  # as the child found
                self.left_out[name] = result["not_run"]
            else:
                self.note(stage, name, result)
        for name, reason in outcome.crashed.items():
            failure = {"case": name, "reason": reason}
            self.note(stage, name, {"passed": False, "checked": 1, "failures": [failure]})
        self.left_out |= outcome.not_run

    def ceilings(self, seconds: float) -> dict[str, Any] | None:
        """The device's ceilings, measured once in a run, as JSON; None if they could not be."""
        if not self.found.ceilings:
            first = self.supervise("ceilings", [{"id": "ceilings"}], seconds)
            measured = first.results.get("ceilings", {}).get("ceilings")
            self.found.ceilings += [Ceilings.from_json(measured)] if measured else []
        return self.found.ceilings[0].to_json() if self.found.ceilings else None

    def note(self, stage: str, item: str, result: dict[str, Any]) -> None:
        """Add one tested item to the results; times and ceilings have their own places there."""
        kept = {k: v for k, v in result.items() if k not in MEASURED}
        self.found.tests.append({"stage": stage, "item": item, **kept})


# ---- stages --------------------------------------------------------------------------------------
# Each is a function of the run and the seconds it may take, and returns a sentence for the summary.


def environment(run: Run, seconds: float) -> str:
    """What the doctor finds."""
    for finding in probe.findings():
        failure = {"case": finding.detail, "reason": finding.remedy}
        passed = finding.passed or run.tiny
        run.note("environment", finding.name, {
            "passed": passed, "checked": 1, "detail": finding.detail,
            "failures": [] if passed else [failure],
        })  # fmt: skip
    if run.device.type == "cuda":
        outcome = run.supervise("clusters", [{"id": "clusters"}], seconds)
        run.found.environment["machine"] |= outcome.results.get("clusters", {}).get("machine", {})
    return ", ".join(f.detail for f in probe.findings() if f.passed)


def parity(run: Run, seconds: float) -> str:
    """Every primitive, implementation and sample on the device."""
    if run.device.type == "cuda":
        implementations = ["cuda"]
        numba = probe.find_numba()
        if numba.passed:
            implementations.append("numba")
        else:
            run.left_out["the Numba kernels"] = numba.detail
    else:
        implementations = ["numpy"]
    items = [
        {"id": f"{made.name} {name}", "primitive": made.name, "implementation": name}
        for name in implementations
        for made in gpunn.kernels.table().values()
        if name in made.implementations
    ]
    # They wait for compilers and the reference, not for the GPU.
    jobs = 1 if run.tiny else max(4, min(12, (os.cpu_count() or 4) - 2))
    outcome = run.supervise("parity", items, seconds, jobs=jobs)
    return f"{sum(r.get('checked', 0) for r in outcome.results.values())} samples"


def conformance(run: Run, seconds: float) -> str:
    """A tiny kernel for each function of ptx.cuh: what the emulator believes, asked of the GPU."""
    if run.device.type != "cuda" and not probe.find_emulator().passed:
        return "no GPU, and no emulator"
    chosen, others = conformance_cases(run.device)
    run.left_out |= {f"conformance {name}": "not for this architecture" for name in others}
    items = [
        {"id": f"conformance {name}", "case": name} for name in (chosen[:2] if run.tiny else chosen)
    ]
    outcome = run.supervise("conformance", items, seconds, jobs=1 if run.tiny else 4)
    passed = sum(result["passed"] for result in outcome.results.values())
    return f"{passed} of {len(items)} kernels give the bits of the emulator"


def matmul_kernels(run: Run, seconds: float) -> str:
    """Every tensor-core product with every tile, also those that the rule does not choose here."""
    from gpunn.primitives import matmul_parity

    if run.device.type != "cuda" and not probe.find_emulator().passed:
        return "no GPU, and no emulator"
    chip = noting_launcher("matmul.cu", run.device)
    items = [
        {"id": f"{kernel} {dtype}", "mode": mode, "dtype": dtype, "kernel": kernel}
        for mode, dtype, kernel in matmul_parity.menu(chip)
    ]
    jobs = 1 if run.tiny else max(4, min(16, os.cpu_count() or 4))  # each compiles its own
    outcome = run.supervise("matmul kernels", items[:2] if run.tiny else items, seconds, jobs=jobs)
    return f"{sum(r['passed'] for r in outcome.results.values())} of {len(items)} are right"


def products(run: Run, seconds: float) -> str:
    """A sweep of matrix products beside cuBLAS."""
    from gpunn.bench.product_tables import summary
    from gpunn.bench.products import SWEEP

    chosen = sorted(SWEEP, key=lambda p: p.flops)[:2] if run.tiny else SWEEP
    items = [{"id": product.key, "product": asdict(product)} for product in chosen]
    items, text = run.known.first(items, lambda item: ("product", item["id"]))
    outcome = run.supervise("products", items, seconds)
    for result in outcome.results.values():
        run.found.products += [result["product"]] if "product" in result else []
        run.found.not_timed += [NotTimed(**one) for one in result.get("not_timed", ())]
    means = [f"{s['kind']} {s['dtype']} {s['mean']:.2f}" for s in summary(run.found.products)]
    return f"{len(run.found.products)} of {len(items)} shapes; " + ", ".join([*means, text])


def launches(run: Run, seconds: float) -> str:
    """What a launch costs the host, beside other libraries."""
    outcome = run.supervise("launches", [{"id": "launches"}], seconds)
    for result in outcome.results.values():
        run.found.launches += result.get("launches", ())
        run.found.not_timed += [NotTimed(**one) for one in result.get("not_timed", ())]
    return f"{len(run.found.launches)} rows"


def graphs(run: Run, seconds: float) -> str:
    """Primitives captured into graphs, and compiled steps of small networks."""
    begin = time.monotonic()
    items = [
        {"id": f"graph {made.name}", "primitive": made.name, "shape": made.bench_shapes[0]}
        for made in gpunn.kernels.table().values()
        if made.bench_shapes
    ]
    run.supervise("graphs", items, seconds * 2 / 3)
    text = step_stages.compiled_steps(run, seconds - (time.monotonic() - begin))
    return f"{len(items)} primitives; {text}"


def training_parity(run: Run, seconds: float) -> str:
    """The same training on the CPU and on the GPU."""
    items = [
        {"id": "mlp, 30 steps", "job": "mlp", "steps": 30},
        {"id": "digits, 300 steps", "job": "digits", "steps": 300},
    ]
    outcome = run.supervise("training parity", items, seconds)
    return "; ".join(
        f"{name}: loss {r['losses'][0]:.3f} to {r['losses'][1]:.3f}"
        for name, r in outcome.results.items()
        if "losses" in r
    )


def large_arrays(run: Run, seconds: float) -> str:
    """Arrays of more than 2^31 elements."""
    from gpunn.bench.large import CHECKS

    items = [{"id": f"large {name}", "check": name} for name in CHECKS]
    outcome = run.supervise("large arrays", items, seconds)
    notes = [r["note"] for r in outcome.results.values() if "note" in r]
    return f"{len(outcome.results)} primitives" + "".join(f"; {note}" for note in notes)


# In the order of their weight, with the seconds that each needs at most on one GPU and 16 cores.
STAGES: tuple[tuple[str, Callable[[Run, float], str], float], ...] = (
    ("environment", environment, 12),
    ("compile", compile_stage.compile_kernels, 40),
    ("conformance", conformance, 25),
    ("parity", parity, 45),
    ("matmul kernels", matmul_kernels, 60),
    ("graphs", graphs, 30),
    ("training parity", training_parity, 10),
    ("jobs", jobs_stage.jobs, 60),
    ("launches", launches, 15),
    ("tests", programs.tests, 60),
    ("steps", step_stages.steps, 150),
    ("step kernels", step_kernels.step_kernels, 60),
    ("one rank", one_rank.one_rank, 30),
    ("choices", choices.choices, 60),
    ("candidates", candidates.candidates, 240),
    ("products", products, 50),
    ("microbenchmarks", micro_stage.microbenchmarks, 100),
    ("large arrays", large_arrays, 15),
    ("sanitizer", programs.sanitizer, 40),
)
# Where time is short, what measures gets less, so that the checks are made as a whole.
MEASURING = {
    "steps", "step kernels", "one rank", "choices", "candidates", "products", "microbenchmarks",
    "large arrays", "sanitizer",
}  # fmt: skip


# ---- all together --------------------------------------------------------------------------------


def run_all(run: Run, chosen: set[str] | None = None) -> bool:
    """Run the stages, writing the file after each; whether every test passed."""
    todo = [stage for stage in STAGES if chosen is None or stage[0] in chosen]
    weight = sum(share for _, _, share in todo)
    for name, function, share in todo:
        left = run.end - time.monotonic()
        seconds = left * share / weight if name in MEASURING else min(left, share)
        weight -= share
        _run_stage(run, name, function, seconds)
        run.found.write(run.path)
    return all(test["passed"] for test in run.found.tests)


def _run_stage(run: Run, name: str, function: Callable[[Run, float], str], seconds: float) -> None:
    tested, begin = len(run.found.tests), time.monotonic()
    run.left_out = {}
    state = "done"
    try:
        if seconds < 1:
            run.left_out, detail = {name: "no time was left"}, ""
        else:
            detail = function(run, seconds)
    except Exception as error:
        state, detail = "broke", str(error)[:300]
        failure = {"case": name, "reason": traceback.format_exc()[-3000:]}
        run.note(name, name, {"passed": False, "checked": 1, "failures": [failure]})
    mine = run.found.tests[tested:]
    failed = sum(not test["passed"] for test in mine)
    if run.left_out and state == "done":
        state = "partly" if mine else "not run"
    run.found.stages.append({
        "name": name, "state": state, "seconds": round(time.monotonic() - begin, 1),
        "items": len(mine), "failed": failed, "detail": detail, "not_run": run.left_out,
    })  # fmt: skip
    text = f"{name}: {state}, {len(mine)} checked, {failed} failed"
    run.say(f"{text}, {time.monotonic() - begin:.0f} s. {detail}".rstrip())


def result_path(found: Results, folder: Path) -> Path:
    """A new file ``<folder>/<gpu>/<date>-<commit>.json``; a second one of a day gets a number."""
    place = folder / results.folder_name(found.gpu or "dry-run")
    place.mkdir(parents=True, exist_ok=True)
    path, number = place / results.file_name(found), 2
    while path.exists():
        path = place / results.file_name(found).replace(".json", f"-{number}.json")
        number += 1
    return path


def short_rows(rows: Sequence[Row]) -> list[Row]:
    """Our row of the largest shape of each primitive and dtype, launched one by one."""
    chosen: dict[tuple, Row] = {}
    for row in rows:
        key = (row.primitive, row.dtype)
        if row.implementation in ("cuda", "numpy") and row.mode != "graph":
            if key not in chosen or row.bytes > chosen[key].bytes:
                chosen[key] = row
    return list(chosen.values())


def summary(found: Results) -> str:
    """A short table of what happened, and one of the best rows."""
    from gpunn.bench import launch
    from gpunn.bench.product_tables import summary_text
    from gpunn.bench.tables import over_shapes, rows_table
    from gpunn.bench.training_tables import table_of
    from gpunn.text import table

    rows = [
        (s["name"], s["state"], s["items"], s["failed"], len(s["not_run"]), f"{s['seconds']:.0f} s")
        for s in found.stages
    ]
    headers = ["stage", "state", "checked", "failed", "not run", "time"]
    parts = [table(headers, rows, right=(2, 3, 4, 5))]
    if ours := short_rows(found.rows):
        parts.append(rows_table(ours))
        parts.append(f"{len(found.rows) - len(ours)} more rows are in the file. Over all shapes:")
        headers, cells = over_shapes(found.rows)
        parts.append(table(headers, cells, right=(3, 4, 5, *range(7, len(headers)))))
    if found.launches:
        parts.append(launch.text(found.launches))
    if found.candidates:
        parts.append(candidates.text(found.candidates))
    if found.products:
        parts.append(summary_text(found.products))
    if found.training:
        parts.append(table_of(found.training))
    failed, lines = [test for test in found.tests if not test["passed"]], []
    for test in failed[:30]:
        first = test["failures"][0] if test.get("failures") else {"case": "", "reason": ""}
        reason = first["reason"].strip().splitlines()[-1] if first["reason"].strip() else ""
        lines.append(f"FAILED {test['stage']}: {test['item']}, {first['case']}: {reason}"[:400])
    return "\n\n".join([*parts, *filter(None, ["\n".join(lines)])])
