"""Launches beside others: processes, threads, the cache on disk, time limits, settings, seeds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import probe
from gpunn.emulator import config

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)

ADD_ONE = """extern "C" __global__ void add_one(int* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += 1;
}
"""
SPIN = """extern "C" __global__ void spin(volatile int* flag) { while (*flag == 0) {} }
extern "C" __global__ void crunch(int* x) {
    unsigned state = 1;
    for (unsigned i = 0; i != 4000000000u || state == 0; i++) state = state * 1664525u + i + *x;
    *x = state;
}
"""
RACE = """extern "C" __global__ void race(int* x, int* y) {
    x[threadIdx.x / 2] = threadIdx.x;
    y[threadIdx.x] = x[threadIdx.x * 7 % 16];
}
"""
# Prints how often the compiler ran, and the result.
SCRIPT = """
import sys
import numpy as np
from gpunn import emulator
from gpunn.emulator import toolchain

ran = []
compile = toolchain.run
toolchain.run = lambda *arguments: (ran.append(1), compile(*arguments))
x = np.zeros(100, np.int32)
emulator.RawKernel(sys.argv[1], "add_one")((4,), (32,), (x, np.int32(100)))
print(len(ran), int(x.sum()))
"""


def start(code, *arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, *arguments, **environment) -> str:
    """The output of a Python process."""
    process = start(code, *arguments, **environment)
    out, error = process.communicate(timeout=250)
    assert process.returncode == 0, error
    return out.strip()


# ---- the cache on disk ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder that holds the runtime, and nothing else."""
    folder = tmp_path_factory.mktemp("cache")
    run("from gpunn.emulator import toolchain; toolchain.runtime()", GPUNN_CACHE=str(folder))
    return str(folder)


def test_a_second_process_compiles_nothing(cache):
    source = ADD_ONE + "// compiled once\n"
    assert int(run(SCRIPT, source, GPUNN_CACHE=cache).split()[0]) >= 1
    assert run(SCRIPT, source, GPUNN_CACHE=cache) == "0 100"


def test_two_processes_that_compile_the_same(cache):
    source = ADD_ONE + "// compiled by two at once\n"
    run(SCRIPT, ADD_ONE + "// all but this source is there\n", GPUNN_CACHE=cache)
    both = [start(SCRIPT, source, GPUNN_CACHE=cache) for _ in range(2)]
    answers = [process.communicate(timeout=250) for process in both]
    (idle, first), (busy, second) = sorted(out.split() for out, _ in answers)
    assert idle == "0" and int(busy) >= 1 and first == second == "100", answers


@pytest.mark.parametrize("damage", [b"", b"\x7fELF no more"])
def test_a_damaged_entry_is_made_again(cache, damage):
    from pathlib import Path

    source = ADD_ONE + f"// then damaged {len(damage)}\n"
    before = set(Path(cache, "emulator").glob("*.so"))
    run(SCRIPT, source, GPUNN_CACHE=cache)
    (made,) = set(Path(cache, "emulator").glob("*.so")) - before
    made.write_bytes(damage)
    count, result = run(SCRIPT, source, GPUNN_CACHE=cache).split()
    assert int(count) >= 1 and result == "100"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    process = start(SCRIPT, ADD_ONE, GPUNN_CACHE=str(tmp_path / "file"))
    _, error = process.communicate(timeout=250)
    assert process.returncode and "file" in error.splitlines()[-1]


def test_without_a_compiler():
    code = SCRIPT + "\n"
    for path in ("/no/such/compiler", "true"):
        process = start(code, ADD_ONE, GPUNN_CXX=path)
        _, error = process.communicate(timeout=250)
        last = error.strip().splitlines()[-1]
        assert process.returncode and "DeviceError" in last and path in last, error
    process = start(code, ADD_ONE, PATH="/nowhere", GPUNN_CXX="")
    _, error = process.communicate(timeout=250)
    last = error.strip().splitlines()[-1]
    assert "DeviceError" in last and "apt install g++" in last, error


# ---- threads and processes -----------------------------------------------------------------------


def add_one(check: bool, times: int = 20) -> np.ndarray:
    kernel = emulator.RawKernel(ADD_ONE, "add_one", check=check)
    x = np.zeros(1000, np.int32)
    for _ in range(times):
        kernel((8,), (128,), (x, np.int32(1000)))
    return x


def test_two_threads_launch():
    results = {}

    def work(number: int):
        results[number] = add_one(check=number % 2 == 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(results) == [0, 1, 2, 3] and all((x == 20).all() for x in results.values())


def test_one_kernel_in_two_threads():
    kernel = emulator.RawKernel(ADD_ONE, "add_one")
    arrays = [np.zeros(1000, np.int32) for _ in range(4)]

    def work(x):
        for _ in range(20):
            kernel((8,), (128,), (x, np.int32(1000)))

    threads = [threading.Thread(target=work, args=(x,)) for x in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all((x == 20).all() for x in arrays)


def _in_a_child(queue, check):
    queue.put(int(add_one(check).sum()))


@pytest.mark.parametrize("check", [False, True])
def test_a_fork_after_a_launch(check):
    add_one(check)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue, check))
    child.start()
    try:
        assert queue.get(timeout=60) == 20000
    finally:
        child.join(10)
        if child.is_alive():
            child.kill()


# ---- time limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [False, True])
def test_a_spin_loop_ends(check):
    kernel = emulator.RawModule(SPIN, check=check, timeout=1.0).get_function("spin")
    start = time.perf_counter()
    with pytest.raises(emulator.DeadlockError) as caught:
        kernel((2,), (32,), (np.zeros(1, np.int32),))
    assert time.perf_counter() - start < 20
    (first, *_) = caught.value.findings
    assert first.kernel == "spin"
    add_one(check)  # the next launch is none the worse


@pytest.mark.parametrize("check", [False, True])
def test_a_loop_that_takes_too_long_ends(check):
    kernel = emulator.RawModule(SPIN, check=check, timeout=1.0).get_function("crunch")
    start = time.perf_counter()
    with pytest.raises(emulator.DeadlockError):
        kernel((1,), (1,), (np.zeros(1, np.int32),))
    assert time.perf_counter() - start < 20
    add_one(check)


# ---- orders --------------------------------------------------------------------------------------


def test_every_schedule_gives_the_same():
    for schedule in config.SCHEDULES:
        for check in (False, True):
            with emulator.settings(schedule=schedule, check=check, seed=5):
                assert (add_one(check, 2) == 2).all()


def test_the_same_seed_finds_the_same():
    kernel = emulator.RawKernel(RACE, "race")

    def findings(seed):
        with pytest.raises(emulator.RaceError) as caught:
            kernel((1,), (16,), (np.zeros(16, np.int32), np.zeros(16, np.int32)), seed=seed)
        return list(map(str, caught.value.findings))

    assert findings(3) == findings(3)
    assert len({tuple(findings(seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_of_the_operating_system(threads):
    with emulator.settings(threads=threads):
        assert (add_one(True, 2) == 2).all()


# ---- settings ------------------------------------------------------------------------------------


def test_settings_nest():
    outside = config.current()
    with emulator.settings(seed=3, schedule="reverse") as first:
        assert config.current() == first and (first.seed, first.schedule) == (3, "reverse")
        with emulator.settings(seed=4, check=True):
            inner = config.current()
            assert (inner.seed, inner.schedule, inner.check) == (4, "reverse", True)
        assert config.current() == first
        with pytest.raises(KeyError), emulator.settings(seed=9):
            raise KeyError
        assert config.current() == first
    assert config.current() == outside


def test_what_a_launch_says_wins():
    kernel = emulator.RawKernel(RACE, "race", check=True)
    arrays = (np.zeros(16, np.int32), np.zeros(16, np.int32))
    with emulator.settings(check=False):
        with pytest.raises(emulator.RaceError):
            kernel((1,), (16,), arrays)  # the module asked for checks
        kernel((1,), (16,), arrays, check=False)
    with emulator.settings(check=False):
        emulator.RawKernel(RACE, "race")((1,), (16,), arrays)  # nobody did


def test_settings_are_of_one_thread():
    seen = []
    with emulator.settings(seed=77):
        thread = threading.Thread(target=lambda: seen.append(config.current().seed))
        thread.start()
        thread.join()
    assert seen == [0]


def test_wrong_settings():
    for wrong in ({"schedule": "sideways"}, {"seed": -1}, {"timeout": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))), emulator.settings(**wrong):
            pass
    with pytest.raises(TypeError, match="sead is not known"), emulator.settings(sead=3):
        pass


def test_settings_of_the_environment(monkeypatch):
    for name, value in {
        "CHECK": "1",
        "SCHEDULE": "in order",
        "SEED": "12",
        "THREADS": "1",
        "TIMEOUT": "2.5",
        "COVERAGE": "no",
    }.items():
        monkeypatch.setenv(f"GPUNN_EMULATOR_{name}", value)
    found = config.current()
    assert (found.check, found.schedule, found.seed) == (True, "in order", 12)
    assert (found.threads, found.timeout, found.coverage) == (1, 2.5, False)
    with emulator.settings(seed=3):
        assert config.current().seed == 3 and config.current().schedule == "in order"
    for name, value in {"CHECK": "perhaps", "SEED": "x", "SCHEDULE": "sideways"}.items():
        monkeypatch.setenv(f"GPUNN_EMULATOR_{name}", value)
        with pytest.raises(ValueError):
            config.current()
        monkeypatch.setenv(f"GPUNN_EMULATOR_{name}", "")
