"""Stages of the run on hardware that are other programs: pytest, the sanitizer."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpunn.kernels
from gpunn.bench import jobs_stage, stages, supervise
from gpunn.bench.machine import checkout
from gpunn.bench.supervise import Outcome, child_environment, stop

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

TOOLKIT = "/usr/local/cuda/bin"  # where NVIDIA's programs are that nobody put on PATH
# For pytest to write its report when it is interrupted: xdist waits for tests under way for 5.
LAST_WORDS_SECONDS = 10.0


def tests(run: Run, seconds: float) -> str:
    """The tests that need a GPU, by pytest if it is there."""
    if importlib.util.find_spec("pytest") is None:
        run.left_out["pytest -m gpu"] = "pytest is not installed"
        return "pytest is not installed"
    with tempfile.TemporaryDirectory(prefix="gpunn-") as folder:
        report = Path(folder) / "report.xml"
        where = ["tests/bench/test_timing.py"] if run.tiny else gpu_test_files()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
                   "--continue-on-collection-errors", f"--junitxml={report}", *where]  # fmt: skip
        if importlib.util.find_spec("xdist"):
            processes = max(1, min(8, (os.cpu_count() or 2) // 2))  # mostly they compile kernels
            command += ["-n", "1" if run.tiny else str(processes)]
        code, text = _command(command, seconds)
        if code is None:
            run.left_out["pytest -m gpu"] = "no time was left: stopped while it ran"
        if not report.exists():
            if code is not None:
                run.left_out["pytest -m gpu"] = text[-1500:]
            return "no report"
        counts, failures = read_junit(report)
    passed = not failures and code in (0, 5, None)  # 5: no test was chosen
    if not passed and not failures:
        failures = [{"case": "pytest", "reason": text[-1500:]}]
    run.note("tests", "pytest -m gpu", {
        "passed": passed, "checked": counts["tests"] - counts["skipped"],
        "failures": failures, "failed": len(failures), "skipped": counts["skipped"],
    })  # fmt: skip
    return f"{counts['tests']} tests, {counts['skipped']} skipped"


def gpu_test_files() -> list[str]:
    """The test files with tests that need a GPU: only to collect all tests takes half a minute.

    Left out are those that stages of their own go through, and ONNX's thousands of node tests.
    """
    root = checkout()
    others = {
        root / "tests" / name
        for name in ("primitives/test_parity.py", "emulator/test_conformance.py",
                     "onnx/test_backend.py")
    }  # fmt: skip
    return sorted(
        str(path.relative_to(root))
        for path in root.glob("tests/**/test_*.py")
        if path not in others and "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    )


def read_junit(path: Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Counts and failures of a JUnit report."""
    counts, failures = {"tests": 0, "skipped": 0}, []
    for case in ElementTree.parse(path).iter("testcase"):
        if case.get("name") is None:  # it was under way when pytest was interrupted
            continue
        counts["tests"] += 1
        counts["skipped"] += case.find("skipped") is not None
        for kind in ("failure", "error"):
            if (bad := case.find(kind)) is not None:
                name = f"{case.get('classname', '')}::{case.get('name', '')}"
                failures.append({"case": name, "reason": (bad.text or "")[-1500:]})
    return counts, failures[: stages.MAX_FAILURES]


def sanitizer(run: Run, seconds: float) -> str:
    """memcheck and racecheck over small samples of every primitive, those first that no run has
    checked since they changed; then memcheck over some steps of the digits."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{TOOLKIT}")
    if tool is None:
        run.left_out["compute-sanitizer"] = "the program is not there"
        return "there is no compute-sanitizer"
    end, said = time.monotonic() + seconds, []
    jobs = max(1, min(8, (os.cpu_count() or 2) // 2))  # what takes long is to start the tool
    for check, share in (("memcheck", 0.4), ("racecheck", 0.7)):
        items, text = run.known.first(sanitized(check), lambda item: ("sanitizer", item["id"]))
        left = share * (end - time.monotonic())
        outcome = _under(tool, check, "parity", items, run, left, jobs)
        done = sum(result["passed"] for result in outcome.results.values())
        said.append(f"{check}: {done} of {len(items)} primitives ({text})")
    item = {"id": "memcheck digits", "job": jobs_stage.DIGITS, "sanitized": True}
    outcome = _under(tool, "memcheck", "jobs", [item], run, end - time.monotonic(), 1)
    said += [f"memcheck: digits in {r['seconds']:.0f} s" for r in outcome.results.values()]
    return "; ".join(said)


def sanitized(check: str) -> list[dict[str, Any]]:
    """All primitives with CUDA kernels, for a tool of the sanitizer."""
    return [
        {"id": f"{check} {made.name}", "primitive": made.name, "implementation": "cuda", "few": 4}
        for made in gpunn.kernels.table().values()
        if "cuda" in made.implementations
    ]


def _under(
    tool: str, check: str, stage: str, items: list[dict[str, Any]], run: Run, seconds: float,
    jobs: int,
) -> Outcome:  # fmt: skip
    """Run items under one tool of the sanitizer, and note them as tests of its stage."""
    prefix = [tool, "--tool", check, "--error-exitcode", "99", "--report-api-errors", "no"]
    seconds = max(seconds, 0.0)
    outcome = supervise.supervise(
        stage, items, device=str(run.device), seconds=seconds, item_seconds=seconds, jobs=jobs,
        tiny=True, prefix=prefix,
    )  # fmt: skip
    run.keep("sanitizer", outcome)
    return outcome


def _command(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a command of its own; the exit code (None if the time was up) and what it said.

    It is interrupted a little before, as by Ctrl-C, so that it can write what it has.
    """
    with tempfile.TemporaryFile() as sink:
        child = subprocess.Popen(
            command, cwd=checkout(), env=child_environment(), stdin=subprocess.DEVNULL,
            stdout=sink, stderr=sink, start_new_session=os.name == "posix",
        )  # fmt: skip
        grace = min(LAST_WORDS_SECONDS, seconds / 4)
        try:
            code = child.wait(max(seconds - grace, 0.1))
        except subprocess.TimeoutExpired:
            code = None
            if os.name == "posix":
                child.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(grace)
        finally:
            stop(child)
        sink.seek(0)
        return code, sink.read().decode(errors="replace")
