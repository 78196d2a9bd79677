"""Candidates: the stage that judges them, on stand-ins, and the command."""

import importlib.util
import json
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from gpunn.bench import (
    candidate_patch,
    candidate_times,
    candidates,
    current,
    hardware,
    results,
    step_calls,
    supervise,
)
from gpunn.bench.machine import checkout
from gpunn.device import Device, launch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from patches import DIFF, HEADER, OLD, tree_with

CPU = Device("cpu")

# Children that do as the file `value.py` of their tree says, and need a few milliseconds.
STAGES = """
import json, sys
from gpunn.value import WRONG
option = lambda name: sys.argv[sys.argv.index(name) + 1]
with open(option("--notes"), "a") as notes:
    for item in json.load(open(option("--items"))):
        said = [{"case": "4, float32", "reason": WRONG}] if WRONG else []
        result = {"passed": not said, "checked": 3, "failures": said}
        notes.write(json.dumps({"begin": item["id"]}) + "\\n")
        notes.write(json.dumps({"end": item["id"], "result": result}) + "\\n")
"""
CHILD = """
import json, os, sys, time
from gpunn.value import ACTS, SECONDS
key = ""
for line in sys.stdin:
    request = json.loads(line)
    key = request.get("key", key)
    act = ACTS.get(key.split()[0], {}).get(request["do"], "")
    if act == "die": sys.exit(5)
    if act == "hang": time.sleep(60)
    graph = request.get("graph", False)
    answer = {
        "prepare": {"cache": "cold"}, "release": {}, "sample": {"seconds": SECONDS},
        "calibrate": {"mode": "graph" if graph else "stream", "seconds": SECONDS},
    }[request["do"]] | {"may_graph": True}
    if request["do"] == "prepare" and request["kind"] == "step":
        answer = {"losses": [2.0, ACTS.get("loss", 1.0)], "compared": 2, "tolerance": 1e-3}
    if graph and act == "no graph":
        answer = {"error": "as asked", "lost": False}
    if act == "full" and not os.path.exists("seen"):
        open("seen", "w").close()
        answer = {"error": "OutOfMemoryError: of 8 bytes", "lost": True}
    print(json.dumps(answer), flush=True)
"""
VALUE = 'WRONG = ""\nSECONDS = 2e-5\nACTS = {}\n'


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """judge(name=(line, its new text), ...) with trees of stand-ins; the run, and what it said."""
    (tmp_path / "main/gpunn/bench").mkdir(parents=True)
    root = tree_with(tmp_path / "main", value=VALUE, __init__="")
    (root / "gpunn/bench/__init__.py").write_text("")
    (root / "gpunn/bench/stages.py").write_text(STAGES)
    (root / "gpunn/bench/candidate_child.py").write_text(CHILD)
    for module in (candidates, candidate_times):
        monkeypatch.setattr(module, "checkout", lambda: root)

    def run(seconds=60.0, header=HEADER, unread=None, **changes):
        chosen = []
        for name, (number, new) in changes.items():
            lines = VALUE.splitlines()
            diff = [f" {line}" for line in lines]
            diff[number - 1 : number] = [f"-{lines[number - 1]}", f"+{new}"]
            head = DIFF[: DIFF.index("@@")]
            text = header + head + "@@ -1,3 +1,3 @@\n" + "\n".join(diff) + "\n"
            chosen.append(candidate_patch.parse(name, text))
        found = results.Results({"commit": None}, {})
        made = hardware.Run(CPU, found, tmp_path / "x.json", False, time.monotonic() + seconds)
        return made, candidates.judge(made, seconds, chosen, unread or {})

    return run


def test_candidates_are_judged(judged):
    run, said = judged(
        faster=(2, "SECONDS = 1e-5"),
        wrong=(1, 'WRONG = "off by one"'),
        slow=(2, "SECONDS = 1.0"),
        unread={"bad": "bad.patch line 1: no"},
    )
    assert said == (
        "2 of 4 candidates timed, faster 2.00 (worst 2.00), slow 0.00 (worst 0.00); "
        "not right on the device: wrong"
    )
    faster, wrong, slow, bad = run.found.candidates
    assert faster["parity"] == {"passed": True, "checked": 6, "failures": []}
    assert (faster["idea"], faster["prediction"]) == ("fewer of them.", "1.2.\nOr less.")
    assert [case["case"] for case in faster["cases"]] == [
        "softmax_forward 4096x1024 float32", "1024x1024x1024 NN bfloat16", "reduce_max 8x8 -",
        "mlp-784-256-128-10 128",
    ]  # fmt: skip
    first = faster["cases"][0]
    assert first == {
        "kind": "case", "case": "softmax_forward 4096x1024 float32", "cache": "cold",
        "mode": "graph", "before": [2e-5] * 12, "after": [1e-5] * 12,
        "ratio": pytest.approx(2), "spread": 0.0,
    }  # fmt: skip
    assert slow["cases"][0]["mode"] == "graph"  # the other side is short
    assert wrong["cases"] == [] and wrong["reason"] == "it is not right, so it was not timed"
    assert wrong["parity"]["failures"][0] == {
        "case": "softmax_forward 4, float32", "reason": "off by one",
    }  # fmt: skip
    assert bad["reason"] == "bad.patch line 1: no" and run.left_out["bad"] == bad["reason"]
    # A candidate that is wrong is no failed test: nobody runs it yet.
    assert [(test["item"], test["passed"]) for test in run.found.tests] == [
        ("faster", True), ("slow", True),
    ]  # fmt: skip
    assert json.loads(json.dumps(run.found.candidates)) == run.found.candidates
    lines = [line.split() for line in candidates.text(run.found.candidates).splitlines()]
    assert lines[0] == ["name", "case", "before", "after", "ratio", "spread", "parity"]
    assert lines[2][-8:] == ["20.0", "us", "10.0", "us", "2.000", "0.0%", "6", "samples"]
    assert " ".join(lines[-1]) == "wrong is not right, reduce_max 4, float32: off by one"
    table = candidates.markdown([(run.path, run.found)])
    assert table.startswith("### Candidates\n\n")
    assert ("| faster | fewer of them. | softmax_forward 4096x1024 float32 (graph) | 20.0 us | "
            "10.0 us | 2.000 | 0.0% | 6 samples |\n") in table  # fmt: skip
    assert (
        "| wrong | fewer of them. | it is not right, so it was not timed |  |  |  |  | FAILED"
        in table
    )
    assert "| bad |  | bad.patch line 1: no |  |  |  |  | not checked |\n" in table


def test_children_that_fail_cost_only_their_case(judged, monkeypatch):
    monkeypatch.setattr(candidate_times, "ANSWER_SECONDS", 2)
    acts = {
        "softmax_forward": {"prepare": "die"}, "1024x1024x1024": {"sample": "hang"},
        "reduce_max": {"prepare": "full", "calibrate": "no graph"}, "loss": 1.1,
    }  # fmt: skip
    run, said = judged(odd=(3, f"ACTS = {acts}"))
    died, hung, alone, other = run.found.candidates[0]["cases"]
    assert died["reason"] == "after: the process ended with code 5: it said nothing"
    assert hung["reason"] == "stopped: no answer within 2 s"
    assert alone["mode"] == "stream" and alone["ratio"] == 1
    assert alone["note"] == "not captured into a graph: as asked"
    assert other["reason"] == "the losses differ from those before by 1.0e-01 of their size"
    assert said == "1 of 1 candidates timed, odd 1.00"
    assert run.left_out["odd 1024x1024x1024 NN bfloat16"] == hung["reason"]
    assert ": stopped: no answer within 2 s |" in candidates.markdown([(run.path, run.found)])


def test_without_time_or_candidates_it_says_so(judged):
    run, said = judged()
    assert said == "there are no candidates" and run.found.candidates == run.found.tests == []
    assert candidates.markdown([(run.path, run.found)]) == ""
    run, said = judged(0.0, some=(2, "SECONDS = 1e-5"))
    assert said == "0 of 1 candidates timed"
    assert run.left_out["some"].startswith("not checked, so not timed: softmax_forward: no time")
    run, said = judged(header=HEADER.replace("Parity: softmax_forward reduce_max\n", ""),
                       broken=(1, "WRONG = ("))  # fmt: skip
    assert "SyntaxError" in run.left_out["broken"]


def test_a_patch_that_does_not_fit_is_told(judged, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "VALUE", VALUE.replace("2e-5", "3e-5"))
    run, said = judged(late=(1, "WRONG = 1"))
    assert run.left_out["late"].startswith("late.patch no longer fits gpunn/value.py line 2: main")


def test_a_second_run_goes_on(tmp_path, monkeypatch):
    for name, line in {"light": "", "heavy": "Weight: 3\n", "edited": "Weight: 2\n"}.items():
        (tmp_path / f"{name}.patch").write_text(line + HEADER + DIFF)
    digest = {one.name: one.digest for one in candidate_patch.read_folder(tmp_path)[0]}
    timed = {"case": "softmax_forward 8x8 float32", "kind": "case", "ratio": 1.5}
    late = timed | {"reason": "after: no time was left"}

    def entry(name, digest, *cases, passed=True):
        parity = {"passed": passed, "checked": 1, "failures": []}
        return {"name": name, "digest": digest, "cases": list(cases), "parity": parity}

    old = results.Results({}, {}, candidates=[
        entry("heavy", digest["heavy"], timed), entry("edited", "another", passed=False),
    ])  # fmt: skip
    new = results.Results({}, {}, candidates=[
        entry("heavy", digest["heavy"], timed, late), entry("light", digest["light"], passed=None),
    ])  # fmt: skip
    judged = [candidates.is_judged(one) for one in (*old.candidates, *new.candidates)]
    assert judged == [True, True, False, False]
    newest = candidates.newest([(tmp_path, new), (tmp_path, old)])
    assert newest == [*old.candidates, new.candidates[1]]

    monkeypatch.setattr(candidates, "folder", lambda: tmp_path)
    monkeypatch.setattr(candidates, "judge", lambda run, seconds, chosen, unread: chosen)
    run = types.SimpleNamespace(known=current.Known())
    in_order = [one.name for one in candidates.candidates(run, 1.0)]
    assert in_order == ["heavy", "edited", "light"]
    for one in (new, old):
        current._note_all(run.known, one, True, {})
    in_order = [one.name for one in candidates.candidates(run, 1.0)]
    assert in_order == ["edited", "light", "heavy"]


def test_kernels_of_large_steps_are_compiled_as_well(monkeypatch):
    def predicted(job, chip):
        assert (job.name, job.batch, chip.multiprocessors) == ("cnn-airbench", 1024, 132)
        kernels = [{"source": "reduce.cu", "kernel": "one more"},
                   {"source": "pooling.cu", "kernel": "other"}]  # fmt: skip
        return {"calls": [{"kernels": kernels}, {"kernels": kernels[:1]}]}

    monkeypatch.setattr(step_calls, "predicted", predicted)
    item = {"primitives": ["reduce_max"], "arch": "sm_90a", "multiprocessors": 132,
            "everything": True, "steps": ["cnn-airbench 1024"]}  # fmt: skip
    found = candidates.kernels_to_compile(item)["kernels"]
    assert found.count(("reduce.cu", "one more")) == found.count(("pooling.cu", "other")) == 1
    assert sum(source == "reduce.cu" for source, _ in found) > 1


def test_what_could_not_be_listed_is_said(monkeypatch, tmp_path):
    failed = {"passed": False, "checked": 1, "failures": [{"case": "x", "reason": "a\nKeyError"}]}
    outcome = supervise.Outcome(results={"one": failed, "two": {"failures": [], "kernels": []}})
    monkeypatch.setattr(candidates, "compile_for", lambda *arguments: outcome)
    monkeypatch.setattr(launch, "device_properties", lambda index: {
        "arch": "sm_90a", "multiProcessorCount": 132,
    })  # fmt: skip
    gpu = types.SimpleNamespace(type="cuda", index=0)
    run = types.SimpleNamespace(device=gpu, left_out={})
    chosen = [types.SimpleNamespace(name=name) for name in ("one", "two")]
    candidates._compile(run, chosen, {}, 0.0)
    assert run.left_out == {"the kernels of one, beforehand": "KeyError"}


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(arguments) -> (exit code, what it printed, its errors), in a tree of its own."""
    path = checkout() / "benchmarks" / "candidates.py"
    spec = importlib.util.spec_from_file_location("candidates_command", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    tree_with(tmp_path, value=OLD)
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches/tried.patch").write_text(HEADER + DIFF)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(candidates, "folder", lambda: tmp_path / "patches")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["candidates.py", *arguments])
        code = module.main()
        return code, *capsys.readouterr()

    return run


def test_the_command_lists_and_applies(command, tmp_path):
    assert command()[:2] == (0, textwrap.dedent("""\
        name   weight  cases  idea            prediction
        -----  ------  -----  --------------  -------------
        tried       1      4  fewer of them.  1.2. Or less.
    """))  # fmt: skip
    assert command("--apply", "tired")[::2] == (
        2, "tired is no candidate; did you mean tried? Known: tried\n"
    )  # fmt: skip
    assert command("--apply", "tried")[:2] == (0, "changed gpunn/value.py\n")
    assert "zwei" in (tmp_path / "gpunn/value.py").read_text()
    code, _, errors = command("--apply", "tried")
    assert code == 1 and errors.startswith("tried.patch no longer fits gpunn/value.py line 2: ")
    assert command()[0] == 1
    (tmp_path / "patches/worse.patch").write_text("Idea: none\n")
    code, _, errors = command("--check", "worse")
    assert code == 1 and errors.startswith("worse.patch line 2: before the first")
