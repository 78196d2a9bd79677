"""The pytest plugin: a small project of a user's is written, and pytest is run on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from gpunn.device import probe
from gpunn.emulator.pytest_plugin import modes

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

KERNEL = """extern "C" __global__ void halve(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (x[i] > 100.f)
        x[i] = 50.f;
    else
        x[i] *= 0.5f;
}
"""
TEST = """
from pathlib import Path

import numpy as np
import pytest

from gpunn import emulator
from gpunn.emulator import config

KERNEL = emulator.RawModule(path=Path(__file__).with_name("halve.cu"))


def halve(x):
    KERNEL.get_function("halve")((4,), (32,), (x, np.int32(x.size)))


def test_halve(emulator_mode):
    x = np.arange(100, dtype=np.float32)
    halve(x)
    assert (x == np.arange(100) / 2).all()


@pytest.mark.emulator_seeds(3)
def test_settings(emulator_mode):
    active = config.current()
    assert (active.check, active.schedule) == (emulator_mode.check, emulator_mode.schedule)
    assert active.seed == emulator_mode.seed


def test_plain():
    assert config.current().check is None
"""
FAILING = """
def test_fails(emulator_mode):
    assert emulator_mode.schedule == "in order"
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "halve.cu").write_text(KERNEL)
    (tmp_path / "test_halve.py").write_text(TEST)
    return tmp_path


def run(project, *arguments, code=0, **environment):
    """Run pytest in the project; its output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no"]
    if not installed():
        command += ["-p", "gpunn.emulator.pytest_plugin"]
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GPUNN_EMULATOR", "GCOV", "PYTEST"))
    }
    done = subprocess.run(
        [*command, *arguments],
        cwd=project,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed() -> bool:
    """Whether pytest finds the plugin by itself."""
    from importlib.metadata import entry_points

    return any(e.value == "gpunn.emulator.pytest_plugin" for e in entry_points(group="pytest11"))


def passed(output: str) -> list[str]:
    """What stands in brackets behind the names of the tests that passed."""
    return re.findall(r"\[([^\]]+)\] PASSED", output)


def test_three_modes_and_seeds(project):
    output = run(project, "-v", "-n", "0")
    assert passed(output) == [
        "fast-in-order", "fast-random", "checked-random",
        "fast-in-order", "fast-random-0", "fast-random-1", "fast-random-2",
        "checked-random-0", "checked-random-1", "checked-random-2",
    ]  # fmt: skip
    assert "11 passed" in output and "emulator coverage" not in output


def test_the_first_seed(project):
    output = run(project, "-v", "--emulator-seed", "40", "-k", "settings")
    assert "checked-random-40" in passed(output) and "fast-random-42" in passed(output)
    output = run(project, "-v", "-k", "settings", GPUNN_EMULATOR_SEED="7")
    assert "checked-random-9" in passed(output)


def test_a_failing_test_says_how_it_ran(project):
    (project / "test_fails.py").write_text(FAILING)
    output = run(project, "test_fails.py", "--emulator-seed", "5", code=1)
    assert "checked, schedule 'random', seed 5 (the same order again: --emulator-seed 5)" in output


def test_the_marker_wants_a_number(project):
    (project / "test_marker.py").write_text(
        "import pytest\n@pytest.mark.emulator_seeds('3')\ndef test_x(emulator_mode): pass\n"
    )
    assert "emulator_seeds takes one number" in run(project, "test_marker.py", code=2)


def test_the_marker_is_known(project):
    assert "emulator_seeds(count)" in run(project, "--markers")
    run(project, "--strict-markers", "-k", "settings")


def test_coverage(project):
    options = ("--emulator-coverage", "--emulator-coverage-source", ".")
    output = run(project, *options)
    found = re.search(r"device code: ([\d.]+)% of (\d+) lines executed; not executed: (.*)", output)
    assert found, output
    assert 50 < float(found[1]) < 100 and found[3] == "halve.cu:5"
    assert "FAILED" not in output


@pytest.mark.parametrize("workers", ["0", "2"])
def test_coverage_minimum(project, workers):
    options = ("-n", workers, "--emulator-coverage-source", ".", "--emulator-coverage-minimum")
    output = run(project, *options, "95", code=1)
    assert "FAILED" in output and "less than 95%" in output and "11 passed" in output
    output = run(project, *options, "60")
    assert "device code: " in output and "FAILED" not in output


def test_coverage_without_a_launch(project):
    options = ("--emulator-coverage", "-k", "plain")
    assert "nothing was counted" in run(project, *options)
    assert "FAILED" in run(project, *options, "--emulator-coverage-minimum", "1", code=1)


def test_modes():
    assert [str(mode) for mode in modes()] == ["fast-in-order", "fast-random", "checked-random"]
    assert [mode.seed for mode in modes(3, 2)] == [0, 3, 4, 3, 4]
