"""A plugin for pytest: tests of CUDA kernels, each in the emulator's three ways of running.

A test that asks for the fixture `emulator_mode` runs three times, with these settings active:

- ``fast-in-order``: as compiled, the threads one after the other
- ``fast-random``: as compiled, the threads in a random order
- ``checked-random``: in a random order, and every access is checked

``@pytest.mark.emulator_seeds(5)`` takes five random orders instead of one; on a class or as
``pytestmark`` it holds for all tests there. ``--emulator-seed N`` sets the first one's seed.

``--emulator-coverage`` counts which lines of device code the tests execute, and prints the number;
with ``--emulator-coverage-minimum 95`` the run fails below it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass

import pytest

# Everything else of gpunn is imported when it is needed: each run of pytest loads this file.


@dataclass(frozen=True)
class Mode:
    """One way to run: what a test finds in `emulator_mode`.

    Attributes
    ----------
    name : "fast-in-order", "fast-random" or "checked-random"
    check, schedule, seed : as in `gpunn.emulator.Settings`
    """

    name: str
    check: bool
    schedule: str
    seed: int = 0

    def settings(self):
        """A ``with`` block in which launches run so."""
        from gpunn import emulator

        return emulator.settings(check=self.check, schedule=self.schedule, seed=self.seed)

    def __str__(self) -> str:
        return self.name


def modes(seed: int = 0, count: int = 1) -> list[Mode]:
    """The three ways to run; the random ones with `count` seeds from `seed` on."""
    seeds = range(seed, seed + count)
    return [
        Mode("fast-in-order", False, "in order"),
        *(Mode("fast-random", False, "random", number) for number in seeds),
        *(Mode("checked-random", True, "random", number) for number in seeds),
    ]


@pytest.fixture
def emulator_mode(request):
    """Runs the test in each of the three ways; the value says which one it is."""
    mode = request.param
    with mode.settings():
        yield mode


# ---- options -------------------------------------------------------------------------------------


def pytest_addoption(parser):
    """The command line options."""
    group = parser.getgroup("emulator", "gpunn's emulator of CUDA kernels")
    group.addoption(
        "--emulator-seed",
        type=int,
        metavar="N",
        help="first seed of the random orders (GPUNN_EMULATOR_SEED, or 0)",
    )
    group.addoption(
        "--emulator-coverage",
        action="store_true",
        help="count the lines of device code that are executed (GPUNN_EMULATOR_COVERAGE=1)",
    )
    group.addoption(
        "--emulator-coverage-minimum",
        type=float,
        metavar="PERCENT",
        help="fail if fewer lines of device code are executed; counts them",
    )
    group.addoption(
        "--emulator-coverage-source",
        metavar="FOLDER",
        help="count the .cu and .cuh files in this folder (default: gpunn's own)",
    )
    group.addoption(
        "--emulator-coverage-leave-out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="but not files with such names",
    )


def pytest_configure(config):
    """Make the marker known; start to count."""
    config.addinivalue_line(
        "markers",
        "emulator_seeds(count): with the fixture emulator_mode, run with so many random orders",
    )
    # Workers of pytest-xdist and other child processes find all they need in the environment.
    if _counts_lines(config) and not hasattr(config, "workerinput"):
        from gpunn.emulator import coverage
        from gpunn.errors import DeviceError

        folder = tempfile.mkdtemp(prefix="emulator-coverage-")
        before = {name: os.environ.get(name) for name in _VARIABLES}
        try:
            coverage.start(folder)
        except DeviceError as error:
            shutil.rmtree(folder)
            raise pytest.UsageError(f"--emulator-coverage: {error}") from None
        config.stash[_FOLDER], config.stash[_BEFORE] = folder, before


def pytest_unconfigure(config):
    """Leave no folder and no environment variable behind."""
    folder = config.stash.get(_FOLDER, None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in config.stash[_BEFORE].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_VARIABLES = ("GPUNN_EMULATOR_COVERAGE", "GCOV_PREFIX")
_FOLDER, _BEFORE, _LINES = pytest.StashKey(), pytest.StashKey(), pytest.StashKey()


def _counts_lines(config) -> bool:
    asked = os.environ.get("GPUNN_EMULATOR_COVERAGE", "").lower() in ("1", "true", "yes", "on")
    options = (config.getoption("emulator_coverage"), _minimum(config) is not None)
    return asked or any(options)


def _minimum(config) -> float | None:
    return config.getoption("emulator_coverage_minimum")


# ---- tests ---------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
    """Three tests, or more with more seeds, of one that asks for `emulator_mode`."""
    if "emulator_mode" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("emulator_seeds")
    count = 1
    if marker is not None:
        count = marker.args[0] if len(marker.args) == 1 else marker.kwargs.get("count")
        if not isinstance(count, int) or count < 1:
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid}: emulator_seeds takes one number, from 1"
            )
    seed = metafunc.config.getoption("emulator_seed")
    if seed is None:
        seed = int(os.environ.get("GPUNN_EMULATOR_SEED", "") or 0)
    chosen = modes(seed, count)
    several = count > 1
    names = [
        f"{mode.name}-{mode.seed}" if several and mode.schedule == "random" else mode.name
        for mode in chosen
    ]
    metafunc.parametrize("emulator_mode", chosen, ids=names, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Say of a test that failed how to run it again."""
    report = yield
    mode = getattr(item, "funcargs", {}).get("emulator_mode")
    if isinstance(mode, Mode) and report.when == "call" and report.failed:
        checked = "checked" if mode.check else "unchecked"
        text = f"{checked}, schedule {mode.schedule!r}, seed {mode.seed}"
        if mode.schedule == "random":
            text += f" (the same order again: --emulator-seed {mode.seed})"
        report.sections.append(("emulator", text))
    return report


# ---- the count of executed lines -----------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Write this process's counts; in the process that the user started, put all together."""
    config = session.config
    if not _counts_lines(config):
        return
    from gpunn.emulator import coverage
    from gpunn.errors import GpunnError

    coverage.dump()
    folder = config.stash.get(_FOLDER, None)
    if folder is None:  # a worker
        return
    minimum, problem = _minimum(config), ""
    try:
        lines = coverage.collect(
            folder,
            config.getoption("emulator_coverage_source"),
            leave_out=config.getoption("emulator_coverage_leave_out"),
        )
    except (OSError, GpunnError) as error:
        summary, problem = f"device code: {error}", "no lines were counted"
    else:
        summary = lines.summary()
        problem = lines.shortfall(minimum) if minimum is not None else ""
    if problem and minimum is not None:
        summary += f"\nFAILED: {problem}"
        if session.exitstatus == 0:
            session.exitstatus = 1
    config.stash[_LINES] = summary


def pytest_terminal_summary(terminalreporter, config):
    """Print the count."""
    summary = config.stash.get(_LINES, None)
    if summary:
        terminalreporter.section("emulator coverage")
        terminalreporter.line(summary)
