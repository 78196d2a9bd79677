"""The stage of whole jobs in the run on hardware: `gpunn train digits` as users run it, and the
quick setting of every example whose data are there, on the device and again on the CPU."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpunn.bench import supervise
from gpunn.device.device import Device

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

DIGITS = "digits"
# Of the first epoch's losses, from equal weights and batches (on the emulator 1e-7 and less).
LOSS_TOLERANCE = 2e-3
# Relative, of what is measured at the end, where it is no count of few right answers.
VALUE_TOLERANCE = {"diagnosis": 2e-2, "finance": 2e-2, "text": 2e-2, "weather": 2e-2}
# Their networks decide what they learn from next: one rounding, and the games are others.
CHAOTIC = ("cartpole", "connect4")
SANITIZED = {"limit": 200, "epochs": 1, "hidden": (32,), "patience": 1}


def jobs(run: Run, seconds: float) -> str:
    """The digits, and every example for a few steps: they end, and as on the CPU."""
    from gpunn.train.scripts import script_paths

    names = ["text"] if run.tiny else [DIGITS, *script_paths()]
    items = [{"id": f"job {name}", "job": name} for name in names]
    processes = 1 if run.tiny else max(1, min(8, (os.cpu_count() or 2) // 2))
    outcome = supervise.supervise(
        "jobs", items, device=str(run.device), seconds=seconds, jobs=processes, tiny=run.tiny
    )
    run.keep("jobs", outcome)
    said = [
        f"{name.partition(' ')[2]} {result['value']:.4g} ({result['on_cpu']:.4g} on the CPU)"
        for name, result in outcome.results.items()
        if "value" in result
    ]
    return f"{len(said)} of {len(items)} jobs: " + ", ".join(said)


def check_job(item: dict[str, Any], device: Device) -> dict[str, Any]:
    """One job on the device and on the CPU; ``not_run`` says which package is missing."""
    try:
        if item["job"] == DIGITS:
            sanitized = item.get("sanitized", False)
            return check_digits(device, SANITIZED if sanitized else {}, alone=sanitized)
        return check_example(item["job"], device)
    except ImportError as error:
        ours = (error.name or "gpunn").partition(".")[0] == "gpunn"
        if ours and "pip install" not in str(error):
            raise
        return {"passed": True, "checked": 0, "failures": [], "not_run": str(error)}


def check_digits(device: Device, changes: dict[str, Any], alone: bool = False) -> dict[str, Any]:
    """The digits: the validation accuracy is not below that on the CPU by more than chance.

    Two networks that are equally good differ on `n` images by a standard deviation of
    ``sqrt(2 p (1 - p) / n)``; three of these are allowed. `alone`: not on the CPU as well.
    """
    from gpunn.train import find_job

    job = find_job(DIGITS)
    got, seconds, _ = _run(job, changes, device)
    if alone:
        return {"passed": True, "checked": 1, "failures": [], "seconds_on_device": seconds}
    expected, on_cpu, _ = _run(job, changes, Device("cpu"))
    images = len(job.split(job.configure(**changes))[0].validation[1])
    name = "validation_accuracy"
    share = min(max(expected[name], 1 / images), 1 - 1 / images)
    allowed = 3 * math.sqrt(2 * share * (1 - share) / images)
    failures = []
    if not got[name] >= expected[name] - allowed:
        text = f"{got[name]:.4f} of {images} images are right, {expected[name]:.4f} on the CPU; "
        failures.append({"case": name, "reason": f"{text}allowed are {allowed:.4f} less"})
    failures += _not_finite({k: v for k, v in got.items() if k.endswith("_loss")})
    return {
        "passed": not failures, "checked": 1, "failures": failures, "value": got[name],
        "on_cpu": expected[name], "tolerance": allowed, "seconds_on_device": seconds,
        "seconds_on_cpu": on_cpu, "test_accuracy": got["test_accuracy"], "epochs": got["epochs"],
    }  # fmt: skip


def check_example(name: str, device: Device) -> dict[str, Any]:
    """The quick setting of an example: its losses are finite and begin as on the CPU, and so is
    what it measures, where few steps say something."""
    from gpunn.train import find_job

    job = find_job(name)
    changes = {**job.quick, **list(job.variants.values())[-1]}
    got, seconds, curves = _run(job, changes, device)
    failures = _not_finite({f"{where}, row {i + 1}, {column}": value
                            for where, rows in curves.items() for i, row in enumerate(rows)
                            for column, value in row.items() if "loss" in column})  # fmt: skip
    expected, on_cpu, others = _run(job, changes, Device("cpu"))
    checked = 1
    if name not in CHAOTIC:
        pairs = {f"{where}, row 1, {column}": (value, others[where][0][column], LOSS_TOLERANCE)
                 for where, rows in curves.items() for column, value in rows[0].items()
                 if "loss" in column}  # fmt: skip
        if name in VALUE_TOLERANCE:
            pairs[got["metric"]] = (got["value"], expected["value"], VALUE_TOLERANCE[name])
        checked += len(pairs)
        failures += _apart(pairs)
    return {
        "passed": not failures, "checked": checked, "failures": failures, "value": got["value"],
        "on_cpu": expected["value"], "metric": got["metric"], "seconds_on_device": seconds,
        "seconds_on_cpu": on_cpu, "compared": checked > 1,
    }  # fmt: skip


def _run(
    job: Any, changes: dict[str, Any], device: Device
) -> tuple[dict[str, Any], float, dict[str, list[dict[str, float]]]]:
    """Metrics of a run in a folder that is removed, its seconds, and the rows of its histories.

    The run is as on a machine whose only device this is.
    """
    import gpunn
    from gpunn.train import run_job

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpunn-") as place, contextlib.ExitStack() as stack:
        gpunn.set_default_device(device)
        stack.callback(gpunn.set_default_device, None)
        config = job.configure(**changes, device=str(device))
        result = run_job(job, config, Path(place) / "run", verbose=False)
        seconds = round(time.perf_counter() - begin, 3)
        curves = {path.stem: _rows(path) for path in sorted(result.folder.glob("history*.csv"))}
    return result.metrics, seconds, curves


def _rows(path: Path) -> list[dict[str, float]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {column: float(text) for column, text in row.items() if text}
            for row in csv.DictReader(file)
        ]


def _not_finite(values: dict[str, float]) -> list[dict[str, str]]:
    return [
        {"case": name, "reason": f"it is {value}"}
        for name, value in values.items()
        if not math.isfinite(value)
    ]


def _apart(pairs: dict[str, tuple[float, float, float]]) -> list[dict[str, str]]:
    """Failures of (got, on the CPU, relative tolerance)."""
    return [
        {"case": name, "reason": f"{got:.6g}, {expected:.6g} on the CPU; allowed is {allowed:.2g}"}
        for name, (got, expected, allowed) in pairs.items()
        if not abs(got - expected) <= allowed * abs(expected)
    ]
