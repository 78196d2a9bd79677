"""The run on hardware, without hardware: its machinery, and every stage as a dry run."""

import json
import subprocess
import sys
import time

import pytest

from gpunn import kernels
from gpunn.bench import candidates, hardware, micro_stage, programs, results, stages, supervise
from gpunn.bench.choices.problems import KINDS
from gpunn.bench.machine import checkout
from gpunn.device import Device

CPU = Device("cpu")
PARITY = [
    {"id": f"{name} numpy", "primitive": name, "implementation": "numpy"}
    for name in ("activation_forward", "reduce_max", "softmax_forward")
]


def test_items_run_in_a_child():
    outcome = supervise.supervise("parity", PARITY, device="cpu", seconds=60, jobs=2, tiny=True)
    assert set(outcome.results) == {item["id"] for item in PARITY}
    assert all(r["passed"] and r["checked"] == 3 for r in outcome.results.values())
    assert outcome.crashed == outcome.not_run == {}


def test_no_time_means_not_run():
    outcome = supervise.supervise("parity", PARITY, device="cpu", seconds=0, tiny=True)
    assert outcome.results == {}
    assert set(outcome.not_run.values()) == {"no time was left"}


CHILD = """
import json, os, sys, time
from gpunn.bench import stages
@stages.stage("misbehave")
def misbehave(item, device, tiny):
    if item["do"] == "die": os._exit(3)
    if item["do"] == "hang": time.sleep(60)
    if item["do"] == "raise": raise RuntimeError("as asked")
    if item["do"] == "find": print("========= Invalid __global__ write", flush=True)
    return {"passed": True, "checked": 1}
stages.poisoned = lambda device: "raise" in open(sys.argv[sys.argv.index("--items") + 1]).read()
sys.exit(stages.main())
"""


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """Children that run a stage which dies, hangs or raises as its item says."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    real = subprocess.Popen

    def popen(command, **options):
        at = command.index("gpunn.bench.stages")
        return real([*command[: at - 1], str(script), *command[at + 1 :]], **options)

    monkeypatch.setattr(supervise.subprocess, "Popen", popen)

    def run(*actions, **options):
        items = [{"id": f"{i} {do}", "do": do} for i, do in enumerate(actions)]
        options = {"seconds": 60, "item_seconds": 30, **options}
        return supervise.supervise("misbehave", items, device="cpu", **options)

    return run


def test_a_dead_child_takes_only_its_item_along(misbehaving):
    outcome = misbehaving("work", "die", "work")
    assert set(outcome.results) == {"0 work", "2 work"}
    assert "the process ended with code 3" in outcome.crashed["1 die"]
    assert outcome.not_run == {}


def test_a_hanging_item_is_stopped(misbehaving):
    outcome = misbehaving("hang", "work", item_seconds=3)
    assert outcome.crashed == {"0 hang": "stopped: it took more than 3 s"}
    assert set(outcome.results) == {"1 work"}


def test_the_budget_stops_the_stage(misbehaving):
    outcome = misbehaving("hang", "work", seconds=3)
    assert outcome.results == {} and outcome.crashed == {}
    assert set(outcome.not_run) == {"0 hang", "1 work"}


def test_a_poisoned_device_gets_a_new_process(misbehaving):
    outcome = misbehaving("raise", "work")
    assert outcome.results["0 raise"]["failures"][0]["reason"].endswith("RuntimeError: as asked\n")
    assert outcome.results["1 work"]["passed"]


def test_a_child_that_cannot_start_leaves_all_not_run(monkeypatch):
    items = [{"id": "a", "primitive": "x", "implementation": "numpy"}]
    outcome = supervise.supervise("no such stage", items, device="cpu", seconds=30)
    assert "invalid choice" in outcome.not_run["a"]


def test_half_a_note_is_passed_over(tmp_path):
    path = tmp_path / "notes"
    path.write_text('{"begin": "a"}\n{"end": "a", "result": {"passed": true}}\n{"begin": "b"}\n{"e')
    assert supervise.read_notes(path) == ("b", {"a": {"passed": True}})


def test_failures_are_told(monkeypatch):
    made = kernels.table()["activation_forward"]
    monkeypatch.setattr(made, "_reference", lambda x, out, activation, alpha: out.fill(7.0))
    item = {"primitive": "activation_forward", "implementation": "numpy"}
    wrong = stages.check_parity(item, CPU, True)
    # The float64 reference is the same function, so only a dependence on the dtype would show.
    assert wrong["passed"]
    monkeypatch.setattr(made, "_reference", lambda x, out, a, b: out.fill(x.itemsize))
    wrong = stages.check_parity(item, CPU, True)
    assert not wrong["passed"] and wrong["failures"][0]["reason"].startswith("result 0: ")


def test_junit_reports_are_read(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(
        "<testsuites><testsuite><testcase classname='a' name='x'/>"
        "<testcase classname='a' name='y'><failure>assert 1 == 2</failure></testcase>"
        "<testcase classname='a' name='z'><skipped/></testcase><testcase time='0'/>"
        "</testsuite></testsuites>"
    )
    counts, failures = programs.read_junit(path)
    assert counts == {"tests": 3, "skipped": 1}
    assert failures == [{"case": "a::y", "reason": "assert 1 == 2"}]


def test_a_broken_stage_stops_nothing(tmp_path, monkeypatch):
    def breaks(run, seconds):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(hardware, "STAGES", (("a", breaks, 1), ("environment",
                        hardware.environment, 1)))  # fmt: skip
    said = []
    found = results.new(CPU, dry_run=True)
    run = hardware.Run(CPU, found, tmp_path / "x.json", True, time.monotonic() + 100, said.append)
    assert not hardware.run_all(run)
    assert [s["state"] for s in found.stages] == ["broke", "done"]
    assert said[0].startswith("a: broke, 1 checked, 1 failed")
    assert "RuntimeError: on purpose" in hardware.summary(found)
    assert results.read(run.path).stages == found.stages


def test_result_paths_are_new(tmp_path):
    found = results.new(CPU, dry_run=True)
    first = hardware.result_path(found, tmp_path)
    first.write_text("")
    assert hardware.result_path(found, tmp_path).name == first.name.replace(".json", "-2.json")


def test_benchmark_items_hold_each_primitive_once_a_shape_and_dtype():
    items = micro_stage.benchmark_items()
    ids = [item["id"] for item in items]
    assert len(set(ids)) == len(ids)
    assert {item["primitive"] for item in items} == set(kernels.table())
    assert json.loads(json.dumps(items))


def test_without_a_gpu_it_says_so_and_exits_with_2():
    from gpunn.device import probe

    if probe.cuda_usable():
        pytest.skip("there is a GPU")
    answer = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"], cwd=checkout(), capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("This needs a usable NVIDIA GPU: ")
    assert len(answer.stderr.strip().splitlines()) == 1


CANDIDATE = """\
Idea: none.
Prediction: 1.
Why: it adds a file that nobody reads.
Risk: none.
Parity: reduce_max
Case: reduce_max 8x8 float32

diff --git a/gpunn/nothing.py b/gpunn/nothing.py
new file mode 100644
--- /dev/null
+++ b/gpunn/nothing.py
@@ -0,0 +1 @@
+#
"""


@pytest.mark.parametrize("stage", [name for name, _, _ in hardware.STAGES])
def test_every_stage_runs_dry(stage, tmp_path, monkeypatch):
    if stage == "compile":  # what others need of the emulator is there already
        monkeypatch.setenv("GPUNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(micro_stage, "benchmark_items", few(micro_stage.benchmark_items))
    monkeypatch.setattr(candidates, "folder", lambda: tmp_path)
    if stage == "candidates":
        (tmp_path / "tiny.patch").write_text(CANDIDATE)
    found = results.new(CPU, dry_run=True)
    path = tmp_path / "cpu" / "x.json"  # beside it no result files of other tests
    path.parent.mkdir()
    run = hardware.Run(CPU, found, path, True, time.monotonic() + 120, print)
    passed = hardware.run_all(run, {stage})
    assert passed, hardware.summary(found)
    assert [s["name"] for s in found.stages] == [stage]
    assert results.read(path).dry_run
    if stage == "microbenchmarks":
        assert {row.primitive for row in found.rows} >= {"activation_forward"}
    if stage == "launches":
        assert {row["kind"] for row in found.launches} == {"launch", "call"}
    if stage == "steps":
        ours = {"gpunn", "gpunn compiled", "gpunn fused"}
        assert {row["contestant"] for row in found.training} >= ours
    if stage == "one rank":
        (row,) = (test["times"] for test in found.tests)
        assert row["plain"] > 0 and row["rank"] > 0 and row["reached"] is None
    if stage == "candidates":
        (one,) = found.candidates
        assert one["parity"] == {"passed": True, "checked": 3, "failures": []}
        assert one["cases"][0]["ratio"] > 0 and len(one["cases"][0]["after"]) == 2
    if stage == "choices":
        assert {one["kind"] for one in found.choices} == set(KINDS)
        assert all(one["regret"] >= 1 and one["where"] == {"dry run": 1} for one in found.choices)
        assert "4 problems of 4" in found.stages[0]["detail"]
    if stage == "graphs":
        compiled = [test for test in found.tests if test["stage"] == "compiled steps"]
        assert len(compiled) == 5 and all(test["arena"]["peak"] > 0 for test in compiled)


def few(function):
    return lambda: function()[:5]


def test_dry_run_keeps_nothing():
    before = sorted((checkout() / "benchmarks" / "results").rglob("*"))
    answer = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--dry-run", "--stages", "environment"],
        cwd=checkout(), capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "this was a dry run on the CPU: nothing was kept" in answer.stdout
    assert sorted((checkout() / "benchmarks" / "results").rglob("*")) == before


def test_what_a_debugging_tool_finds_is_a_failure(tmp_path):
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\nshift 2\n"$@"\necho "Invalid write of size 4"\nexit 99\n')
    tool.chmod(0o755)
    outcome = supervise.supervise(
        "parity", PARITY[:1], device="cpu", seconds=60, tiny=True,
        prefix=[str(tool), "--tool", "memcheck"],
    )  # fmt: skip
    assert outcome.results["activation_forward numpy"]["passed"]
    reason = outcome.crashed["tool --tool memcheck from activation_forward numpy"]
    assert reason == "it ended with code 99: Invalid write of size 4"


def test_what_a_tool_found_before_it_was_stopped_is_a_failure(misbehaving, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\nshift 2\necho "========= $FOUND"\nexec "$@"\n')
    tool.chmod(0o755)
    for text, failed in (("Invalid __global__ write", True), ("COMPUTE-SANITIZER", False)):
        prefix = ["env", f"FOUND={text}", str(tool), "--tool", "memcheck"]
        outcome = misbehaving("hang", seconds=1, prefix=prefix)
        assert list(outcome.not_run) == ["0 hang"]
        assert bool(outcome.crashed) == failed
        assert all(text in reason for reason in outcome.crashed.values())


def test_after_what_a_tool_found_the_others_have_their_turn(misbehaving, tmp_path):
    tool = tmp_path / "tool"  # it ends with its own code, whatever the child's is
    tool.write_text('#!/bin/sh\nshift 2\n"$@" || exit 99\n')
    tool.chmod(0o755)
    outcome = misbehaving("find", "raise", "work", prefix=[str(tool), "--tool", "memcheck"])
    assert [outcome.results[name]["passed"] for name in ("0 find", "1 raise", "2 work")] == [
        True, False, True,
    ]  # fmt: skip
    assert outcome.not_run == {}
    assert outcome.crashed["tool --tool memcheck from 0 find"].startswith("========= Invalid")


def test_a_program_that_is_stopped_has_a_last_word(monkeypatch):
    monkeypatch.setattr(programs, "LAST_WORDS_SECONDS", 2.0)
    code = "import sys, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('so far: 3')"
    ended, said = programs._command([sys.executable, "-S", "-c", code], 4)
    assert ended is None and said == "so far: 3\n"
    assert programs._command([sys.executable, "-S", "-c", "print(7)"], 60) == (0, "7\n")
