"""Tests of several processes: they are started once for each number of ranks, for all cases."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MPIRUN = str(Path(sys.executable).with_name("mpirun"))
TIMEOUT = 240  # seconds for all cases of one number of ranks


def mpirun(ranks, *arguments, timeout=120, before=(), **options):
    """Run ``python *arguments`` on so many ranks; gives the CompletedProcess with its text.

    `before` : a command that starts mpirun, as another user for example
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [*before, MPIRUN, "-n", str(ranks), sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment, **options,
    )  # fmt: skip


@functools.cache
def outcomes(ranks):
    """What each case gave on so many ranks: case -> line of `run_cases`; and what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        try:
            run = mpirun(ranks, HERE / "run_cases.py", results, timeout=TIMEOUT)
            said = run.stdout + run.stderr
        except subprocess.TimeoutExpired as error:
            said = f"not done within {TIMEOUT} s\n{error.stdout}\n{error.stderr}"
        lines = map(json.loads, results.read_text(encoding="utf-8").splitlines())
        return {line["case"]: line for line in lines}, said


@pytest.fixture
def outcome():
    """A function (case, ranks) -> errors by rank; it fails the test if the case was not reached."""

    def errors(case, ranks):
        found, said = outcomes(ranks)
        if case not in found:
            pytest.fail(f"{case} on {ranks} ranks was not run to its end:\n{said[-4000:]}")
        return found[case]["errors"]

    return errors


@pytest.fixture
def run_ranks():
    """The function `mpirun`."""
    return mpirun
