"""Stages of the run on hardware that are other programs: pytest, the sanitizer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

import gpunn.kernels
from gpunn.bench import stages, supervise
from gpunn.bench.machine import checkout
from gpunn.bench.supervise import child_environment, stop

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

TOOLKIT = "/usr/local/cuda/bin"  # where NVIDIA's programs are that nobody put on PATH


def tests(run: Run, seconds: float) -> str:
    """The tests that need a GPU, by pytest if it is there."""
    if importlib.util.find_spec("pytest") is None:
        run.left_out["pytest -m gpu"] = "pytest is not installed"
        return "pytest is not installed"
    with tempfile.TemporaryDirectory(prefix="gpunn-") as folder:
        report = Path(folder) / "report.xml"
        where = ["tests/bench"] if run.tiny else gpu_test_files()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
                   "--continue-on-collection-errors", f"--junitxml={report}", *where]
        if importlib.util.find_spec("xdist"):
            command += ["-n", "1" if run.tiny else "4"]  # mostly they compile kernels
        code, text = _command(command, seconds)
        if not report.exists():
            run.left_out["pytest -m gpu"] = "no time was left" if code is None else text[-1500:]
            return "no report"
        counts, failures = read_junit(report)
    passed = not failures and code in (0, 5)  # 5: no test was chosen
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
        counts["tests"] += 1
        counts["skipped"] += case.find("skipped") is not None
        for kind in ("failure", "error"):
            if (bad := case.find(kind)) is not None:
                name = f"{case.get('classname', '')}::{case.get('name', '')}"
                failures.append({"case": name, "reason": (bad.text or "")[-1500:]})
    return counts, failures[: stages.MAX_FAILURES]


def sanitizer(run: Run, seconds: float) -> str:
    """memcheck and racecheck over the smallest samples of a few primitives."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{TOOLKIT}")
    if tool is None:
        run.left_out["compute-sanitizer"] = "the program is not there"
        return "there is no compute-sanitizer"
    chosen = ("activation_forward", "softmax_forward", "cross_entropy_forward", "matmul",
              "adam_update", "reduce_sum", "bias_gradient", "convolution_forward",
              "layer_norm_backward", "recurrent_forward", "attention_forward",
              "embedding_backward")  # fmt: skip
    for check in ("memcheck", "racecheck"):
        items = [
            {"id": f"{check} {name}", "primitive": name, "implementation": "cuda"}
            for name in chosen
            if name in gpunn.kernels.table()
        ]
        prefix = [tool, "--tool", check, "--error-exitcode", "99", "--report-api-errors", "no"]
        outcome = supervise.supervise(
            "parity", items, device=str(run.device), seconds=seconds / 2, item_seconds=seconds,
            tiny=True, prefix=prefix,
        )  # fmt: skip
        for name, result in outcome.results.items():
            run.note("sanitizer", name, result)
        for name, reason in outcome.crashed.items():
            failure = {"case": name, "reason": reason}
            run.note("sanitizer", name, {"passed": False, "checked": 1, "failures": [failure]})
        run.left_out |= outcome.not_run
    return "memcheck, racecheck"


def _command(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a command of its own; the exit code (None if the time was up) and what it said."""
    with tempfile.TemporaryFile() as sink:
        child = subprocess.Popen(
            command, cwd=checkout(), env=child_environment(), stdin=subprocess.DEVNULL,
            stdout=sink, stderr=sink, start_new_session=os.name == "posix",
        )  # fmt: skip
        try:
            code = child.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(child)
        sink.seek(0)
        return code, sink.read().decode(errors="replace")
