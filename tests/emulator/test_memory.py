"""Memory of the device "emulator", and addresses that outlive their arrays, as on a GPU."""

from __future__ import annotations

import copy as copying
import dataclasses
import gc
import pickle
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

from gpunn import emulator
from gpunn.device import Device, empty, probe, to_device
from gpunn.device import emulated_memory as memory
from gpunn.device.emulated import emulator_numpy as xp
from gpunn.device.emulated import plain
from gpunn.device.emulated_step import EmulatorGraph
from gpunn.device.emulator_launch import emulator_launcher
from gpunn.device.graph import step_memory
from gpunn.emulator import LifetimeError, TensorMap
from gpunn.primitives import matmul_wgmma
from gpunn.primitives.matmul_parity import FLOAT32, error, expected, make_problem, run_and_check

pytestmark = pytest.mark.skipif(
    not probe.find_emulator().passed, reason=probe.find_emulator().remedy
)
EMULATOR = Device("emulator")
FLAT = (40, 200, 136)
DIRECT = {"bias": True, "activation": "relu"}
FORWARD = {"bias": True, "activation": "gelu", "preactivation": True, "scale": 0.5}


def address(array) -> int:
    return array.ctypes.data


@pytest.fixture(autouse=True)
def nothing_is_free(monkeypatch):
    """What tests before have freed is not handed out."""
    monkeypatch.setattr(memory.Memory, "_pool", memory._Pool())


# ---- the pool ------------------------------------------------------------------------------------


def test_what_was_freed_last_is_handed_out_first_by_multiples_of_512_bytes():
    small, other, large = (empty((n,), np.uint8, "emulator") for n in (1, 512, 513))
    places = [address(array) for array in (small, other, large)]
    assert not any(place % 512 for place in places)
    del small, large, other
    assert address(kept := empty((7, 10), np.float32, "emulator")) == places[1]
    assert address(empty((1000,), np.uint8, "emulator")) == places[2]
    assert address(empty((3,), np.float64, "emulator")) == places[0]
    assert kept.shape == (7, 10) and np.isnan(kept.get()).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_memory_is_free_when_its_last_view_goes(dtype):
    x = to_device(np.ones((4, 16), dtype), "emulator")
    seen, lifetime = memory.address_only(np.asarray(x))
    row = x[2].reshape(4, 4).T
    del x
    assert not lifetime.over and (seen == 1).all()
    del row
    assert lifetime.over and np.isnan(seen.astype(np.float64)).all()


def test_all_that_lies_on_the_emulator_lies_in_its_memory():
    x = to_device(np.arange(6.0).reshape(2, 3), "emulator")
    index = to_device(np.array([1, 0]), "emulator")
    made = (
        x, x + 1, x.T * 2, x.sum(), x.copy(), x.astype(np.float32), x[index], x.T.reshape(6),
        xp.zeros((2, 2)), xp.concatenate([x, x]), xp.asarray([1, 2]), x.T.ravel(), x.argsort(),
        copying.copy(x), copying.deepcopy(x), pickle.loads(pickle.dumps(x.T)),
    )  # fmt: skip
    assert all(memory.holder_of(array) is not None for array in made)
    assert len({address(array) for array in made}) == len(made)
    np.testing.assert_array_equal(made[-1].get(), x.get().T)
    assert memory.holder_of(x[1:].T) is memory.holder_of(x)
    assert (x.T + 1).strides == x.T.strides
    (2 * x)[0] = 5  # a result is an array like any other
    y = x.reshape(3, 2)
    y[0] = 7
    assert x.get()[0, 0] == 7


def test_objects_and_nothing_have_memory_of_numpys():
    assert memory.holder_of(empty((0, 3), np.float32, "emulator")) is None
    assert memory.taken((2,), object)[0] is None
    with pytest.raises(ValueError, match="negative"):
        memory.taken((2, -1), np.float32)


def test_little_is_kept_and_an_address_stays_readable(monkeypatch):
    monkeypatch.setattr(memory._Pool, "most", 2048)
    x = memory.taken((1024,), np.uint8)
    seen, lifetime = memory.address_only(x)
    big = memory.taken((4096,), np.uint8)
    del x, big  # more than is kept: all goes back, but for what somebody has the address of
    assert lifetime.over and memory.Memory._pool.kept == 0 and not memory.Memory._pool.free
    gc.collect()
    assert (seen == 0xFF).all()


def test_memory_may_be_freed_by_another_thread():
    held = [empty((100,), np.float32, "emulator")]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert not memory.Memory._pool.free  # the other thread had it, and has gone


AT_THE_END = """
import sys, threading
import numpy as np
from gpunn.device import empty

# A thread that goes on keeps this module, so that all others are emptied, in reverse order.
threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
memory = sys.modules["gpunn.device.emulated_memory"]
memory.kept, np.kept = (empty((3,), np.float32, "emulator") for _ in range(2))
"""


def test_arrays_may_outlive_the_modules_when_python_ends():
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_memory_that_is_not_to_be_had_is_not_given_back(monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        memory.taken((1 << 50,), np.uint8)
    assert not complaints


# ---- tensor maps ---------------------------------------------------------------------------------

COPY = r"""
#include "ptx.cuh"
extern "C" __global__ void copy(float* y, const __grid_constant__ ptx::TensorMap map) {
    __shared__ __align__(128) float tile[32];
    __shared__ uint64 full;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(&full, 128);
        const int place[2] = {0, 0};
        ptx::tensor_load<2>(tile, &map, &full, place);
    }
    ptx::mbarrier_wait(&full, 0);
    y[threadIdx.x] = tile[threadIdx.x];
}
"""


@pytest.fixture(scope="module")
def copy():
    """copy(map, check) -> what a kernel reads through the map."""
    kernel = emulator.RawKernel(COPY, "copy")

    def run(map, check):
        y = np.zeros(32, np.float32)
        kernel((1,), (32,), (y, map), check=check)
        return y

    return run


def test_a_map_of_plain_numpy_keeps_its_array(copy):
    map = TensorMap(np.full((1, 32), 3, np.float32), (1, 32), swizzle=0)
    gc.collect()
    assert map.lifetime is None and (copy(map, True) == 3).all()


def test_a_map_of_an_array_on_the_emulator_keeps_it_as_a_map_of_cupys_does(copy):
    map = TensorMap(to_device(np.full((1, 32), 3, np.float32), "emulator"), (1, 32), swizzle=0)
    assert (copy(map, True) == 3).all() and (copy(map, False) == 3).all()


def test_a_map_of_a_plain_view_of_the_emulators_memory_keeps_the_address_alone(copy):
    x = to_device(np.full((1, 32), 3, np.float32), "emulator")
    map = TensorMap(plain(x), (1, 32), swizzle=0)
    assert (copy(map, True) == 3).all() and (copy(map, False) == 3).all()
    x[...] = 4
    assert (copy(map, False) == 4).all()
    del x
    assert np.isnan(copy(map, False)).all()
    with pytest.raises(
        LifetimeError, match=r"argument 1 \(map\) is a tensor map of memory"
    ) as told:
        copy(map, True)
    (finding,) = told.value.findings
    assert finding.file == __file__ and "to_device(np.full" in finding.place.text
    other = to_device(np.full((1, 32), 5, np.float32), "emulator")
    assert (copy(map, False) == 5).all()  # which got the memory
    assert (copy(map.with_array(plain(other)), True) == 5).all()


# ---- products that write their operands anew -----------------------------------------------------


@pytest.fixture
def kept_no_longer(monkeypatch):
    """As it was before the first run on an H100: the map of a new operand was all that was kept."""
    ready = matmul_wgmma.ready
    monkeypatch.setattr(
        matmul_wgmma, "ready", lambda *a: dataclasses.replace(ready(*a), array=None)
    )


def product(mode, **ending):
    """(launcher, a problem whose operands are written anew, the first kernel for it)."""
    launch, problem = emulator_launcher("matmul.cu"), make_problem(*FLAT, FLOAT32, "NT", **ending)
    return launch, problem, matmul_wgmma.options(problem, launch, mode)[0]


def test_an_operand_that_is_not_kept_makes_a_wrong_product(kept_no_longer):
    launch, problem, option = product("tf32", **FORWARD)
    wanted = expected(problem)["out"]
    option.run(launch, problem)
    assert not error(problem.out, wanted) < 0.1


def test_an_operand_that_is_not_kept_is_named_in_checked_mode(kept_no_longer):
    launch, problem, option = product("split", **DIRECT)
    with (
        emulator.settings(check=True),
        pytest.raises(LifetimeError, match=r"(?s)matmul_operand.py.*map_a.*launch\.empty"),
    ):
        option.run(launch, problem)


def test_an_operand_in_the_memory_of_a_step_is_replayed():
    launch, problem, option = product("tf32", **FORWARD)
    run_and_check(option, launch, problem, 5e-4)
    first = problem.out.copy()
    steps, using = step_memory(EMULATOR)
    with steps.recording(), using(steps):
        option.run(launch, problem)
    steps.make_plan()
    graph = EmulatorGraph()
    with steps.serving(), using(steps):
        graph.capture(lambda: option.run(launch, problem))
    problem.out[...] = 0
    steps.arena_owner[...] = 0xFF
    graph.replay()
    np.testing.assert_array_equal(problem.out, first)


def test_an_operand_that_is_not_kept_in_the_memory_of_a_step_is_seen(kept_no_longer):
    launch, problem, option = product("split", **DIRECT)
    steps, using = step_memory(EMULATOR)
    with emulator.settings(check=True), using(steps):
        with steps.recording(), pytest.raises(LifetimeError, match="made at this line"):
            option.run(launch, problem)
        steps.make_plan()
        with steps.serving(), pytest.raises(LifetimeError, match="at an unknown place"):
            option.run(launch, problem)
