"""The host's cost of launches on a machine without a GPU: what is measured, and whose."""

from __future__ import annotations

import numpy as np
import pytest

from gpunn.bench import launch, launch_peers
from gpunn.bench.launch_host import NoDriver, StandIn, host_launcher
from gpunn.device import Device, arguments, compiler, emulator_launch, probe

CPU = Device("cpu")
PLACES = [(count, f"launch_{count}") for count in launch_peers.ARGUMENTS]


def test_rows_hold_every_argument_count_and_part():
    rows, skipped = launch.measure(CPU, samples=3, calls=20)
    ours = [row for row in rows if row["kind"] == "launch"]
    assert [row["arguments"] for row in ours] == [1, 8, 20]
    parts = {row["part"] for row in rows if row["contestant"] == "activation_forward"}
    assert parts == set(launch.PARTS)
    assert all(len(row["samples"]) == 3 and not row["driver"] for row in rows)
    assert {row["contestant"] for row in rows} | {one.case.split()[-1] for one in skipped} >= {
        "gpunn", "activation_forward", "softmax_forward", "matmul", "adam_update"
    }  # fmt: skip
    text = launch.text(rows)
    assert "20 arguments" in text and "launch code" in text and "its own op" not in text


def test_the_parts_are_parts_of_one_call(monkeypatch):
    """What is launched while a call is timed is what the call launches."""
    seen = []
    monkeypatch.setattr(NoDriver, "launch", staticmethod(lambda *args: seen.append(args[1:7])))
    launcher = host_launcher("activation.cu")
    monkeypatch.setattr(launcher, "_launch", NoDriver.launch)
    call = launch.whole_calls(lambda array: array)["activation_forward"]
    found = launch._parts(CPU, call, samples=2, calls=4)
    assert list(found) == ["checks", "launch code", "launch", "whole"]
    assert set(seen) == {(1, 1, 1, 256, 1, 1)}


def test_times_are_taken_in_turns_and_for_each_launch():
    order = []
    items = [("a", lambda: order.append("a"), 1), ("b", lambda: order.append("b"), 2)]
    found = launch.host_times(items, samples=2, calls=4, wait=lambda: order.append("wait"))
    warm = ["a"] * 3 + ["b"] * 3
    first, second = ["wait", *"aaaa", "wait", *"bb"], ["wait", *"bb", "wait", *"aaaa"]
    assert order == [*warm, *first, *second, "wait"]
    assert {name: len(timing.samples) for name, timing in found.items()} == {"a": 2, "b": 2}


def test_libraries_that_choose_their_own_arguments_have_a_column():
    rows = [
        {"kind": "launch", "contestant": name, "arguments": n, "samples": [2e-6] * 3, "inner": 1}
        for name, n in (("gpunn", 1), ("gpunn", 20), (launch_peers.TORCH, 0))
    ]
    headers, lines = launch.launch_cells(rows)
    assert headers[-1] == "its own op" and len(headers) == 5
    assert lines == [
        ["gpunn", "2.00 ± 0%", "", "2.00 ± 0%", ""],
        [launch_peers.TORCH, "", "", "", "2.00 ± 0%"],
    ]


@pytest.mark.parametrize("count, name", PLACES)
def test_the_arguments_are_those_that_the_kernel_declares(count, name):
    if not probe.find_cupy().passed:
        pytest.skip("no compiler")
    made = compiler.build(launch_peers.SOURCE, (name,), "sm_80")
    declared = arguments.parameter_sizes(made.cubin, made.symbols[name])
    args = launch_peers.kernel_arguments(count, StandIn.some)
    assert arguments.layout_of(args).sizes == declared and len(declared) == count


@pytest.mark.parametrize("count, name", PLACES)
def test_the_kernels_run_in_the_emulator(count, name):
    if not probe.find_emulator().passed:
        pytest.skip("no emulator")
    memory = [np.zeros(1, np.float32) for _ in range(10)]
    spare = iter(memory)
    args = launch_peers.kernel_arguments(count, lambda: next(spare))
    emulator_launch.emulator_launcher(launch_peers.SOURCE)(name, (1,), (32,), args)
    assert not any(array.any() for array in memory)
