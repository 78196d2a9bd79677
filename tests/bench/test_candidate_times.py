"""Timing candidates: what a child prepares and times, and children side by side."""

import math
import time
import types

import pytest

from gpunn import kernels
from gpunn.bench import candidate_child, candidate_patch, candidate_times, timing
from gpunn.bench.candidate_patch import Timed
from gpunn.device import Device
from gpunn.primitives import matmul_precision

CPU = Device("cpu")


@pytest.mark.parametrize("kind, key, mode", [
    ("case", "softmax_forward 4096x1024 float32", "cpu"),
    ("product", "300x200x100 TN tf32", "cpu"),
    ("step", "mlp-64-128-128-10 128", "gpunn fused"),
])  # fmt: skip
def test_a_session_prepares_and_times(kind, key, mode):
    session = candidate_child.Session(CPU, tiny=True)
    answer = session.do({"do": "prepare", "kind": kind, "key": key})
    assert len(answer["losses"]) == 5 if kind == "step" else answer["cache"] in ("cold", "warm")
    assert kind != "product" or 0 < answer["off"] < 1e-3
    answer = session.do({"do": "calibrate"})
    assert answer["mode"] == mode and answer["seconds"] > 0 and not answer["may_graph"]
    assert session.do({"do": "sample", "number": 3})["seconds"] > 0
    assert session.do({"do": "release"}) == {}


def test_a_session_gives_the_precision_back():
    before = matmul_precision.get_matmul_precision()
    session = candidate_child.Session(CPU, tiny=True)
    session.do({"do": "prepare", "kind": "product", "key": "4x4x4 NN tf32"})
    assert matmul_precision.get_matmul_precision() == "high"
    session.do({"do": "release"})
    assert matmul_precision.get_matmul_precision() == before
    with pytest.raises(ValueError, match="a dry run times steps of perceptrons alone"):
        session.do({"do": "prepare", "kind": "step", "key": "gpt-2-124M 8"})


def test_a_graph_goes_through_all_sets(monkeypatch):
    calls = []

    class Set:
        def call(self, made):
            calls.append(self)

    session = candidate_child.Session(CPU, tiny=True)
    work = types.SimpleNamespace(sets=[Set() for _ in range(33)], cache="cold")
    monkeypatch.setattr(candidate_child, "workload", lambda case, device: work)

    def captured(one, clock, number):
        return timing.Contestant("", lambda i: [one.run(j) for j in range(number)], number)

    monkeypatch.setattr(candidate_child, "captured", captured)
    session.do({"do": "prepare", "kind": "case", "key": "softmax_forward 64x64 float32"})
    assert session.do({"do": "calibrate", "graph": True})["mode"] == "graph"
    assert set(calls[1:34]) == set(work.sets)
    session.do({"do": "prepare", "kind": "product", "key": "4x4x4 NN float32"})
    assert session._graph_calls == 20


def test_two_processes_have_room_for_a_large_step():
    job, gpu = candidate_patch.job_of("gpt-2-124M 8"), types.SimpleNamespace(type="cuda")
    for memory, batch in ((85e9, 4), (150e9, 8)):  # of an H100 and an H200
        fits = job.placed(gpu, int(candidate_child.MEMORY_SHARE * memory))
        assert fits.batch == batch


@pytest.mark.gpu
@pytest.mark.parametrize("key", ["softmax_forward 4096x1024 float32", "256x256x256 NN bfloat16"])
def test_a_session_times_a_graph(key):
    session = candidate_child.Session(Device("cuda"), tiny=False)
    kind = "product" if " NN " in key else "case"
    answer = session.do({"do": "prepare", "kind": kind, "key": key})
    assert answer["cache"] == ("warm" if kind == "product" else "cold")
    assert kind == "case" or 1e-4 < answer["off"] < 2e-3
    answer = session.do({"do": "calibrate"})
    assert answer["mode"] == "stream" and answer["may_graph"]
    replayed = session.do({"do": "calibrate", "graph": True})
    assert replayed["mode"] == "graph" and 0 < replayed["seconds"] <= answer["seconds"] * 1.1
    assert session.do({"do": "sample", "number": 1})["seconds"] > 0
    assert session.do({"do": "release"}) == {}


def test_each_pair_gives_its_memory_back_before_the_next_is_timed(monkeypatch):
    happened = []

    class Fake:
        running = True

        def __init__(self, name):
            self.name = name

        def ask(self, action, **_):
            happened.append(f"{action} {self.name}")

        def answer(self, *_):
            return {"cache": "cold"}

    monkeypatch.setattr(
        candidate_times, "in_turns", lambda old, new, *_: happened.append(f"time {new.name}") or {}
    )
    pairs = [(Fake(f"old{i}"), Fake(f"new{i}"), Timed("case", "x")) for i in range(2)]
    candidate_times._time_group(pairs, time.monotonic() + 60, False)
    assert happened[4:] == [
        "time new0", "release old0", "release new0", "time new1", "release old1", "release new1",
    ]  # fmt: skip


@pytest.mark.parametrize("before, after, right", [
    (2.9e-4, 2.9e-4, True), (2.9e-4, 5.8e-4, False), (9e-8, 4e-7, True), (9e-8, 6e-7, False),
    (1e-3, math.nan, False), (math.nan, 1e-3, False), (1e-3, math.inf, False),
])  # fmt: skip
def test_a_product_must_stay_as_exact(before, after, right):
    sides = ({"cache": "cold", "off": off} for off in (before, after))
    found = candidate_times._compared(*sides)
    if right:
        assert found == {"cache": "cold", "errors": {"before": before, "after": after}}
    else:
        assert found == {"reason": f"its error is {after:.1e}, before {before:.1e}"}


@pytest.mark.parametrize("key", ["200x200x40 NN float32", "3 x 80x80x40 NT float32"])
@pytest.mark.parametrize("corner", [(0, 0), (-1, -1)])
def test_a_session_notes_what_is_wrong_in_either_corner(monkeypatch, key, corner):
    """Sums that are nowhere near, and NaN."""
    multiply = kernels.table()["matmul"]
    for value in (1e6, math.nan):

        def wrong(*arrays, out, value=value, **how):
            multiply(*arrays, out=out, **how)
            out[(*[corner[0]] * (out.ndim - 2), *corner)] = value

        monkeypatch.setattr(
            candidate_child.products.gpunn.kernels, "table", lambda w=wrong: {"matmul": w}
        )
        session = candidate_child.Session(CPU, tiny=False)
        off = session.do({"do": "prepare", "kind": "product", "key": key})["off"]
        session.do({"do": "release"})
        assert off > 100 if value == 1e6 else math.isnan(off)


@pytest.mark.parametrize("error", [
    "OutOfMemoryError: Out of memory allocating 8 bytes", "_ArrayMemoryError: Unable to allocate",
    "CUDADriverError: CUDA_ERROR_OUT_OF_MEMORY: out of memory", "CUDARuntimeError: "
    "cudaErrorMemoryAllocation: out of memory",
])  # fmt: skip
def test_what_means_that_memory_is_short(error):
    assert candidate_times.OUT_OF_MEMORY.search(error)
