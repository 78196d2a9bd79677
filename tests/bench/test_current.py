"""What result files still say, and what a run on hardware begins with."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from gpunn.bench import (
    current,
    hardware,
    jobs_stage,
    micro_stage,
    programs,
    results,
    stages,
    step_stages,
)
from gpunn.bench.machine import checkout
from gpunn.bench.measure import Row
from gpunn.bench.results import Results
from gpunn.bench.supervise import Outcome
from gpunn.device import Device
from gpunn.kernels import table
from gpunn.train import jobs

DIGESTS = {name: {"cuda": f"{name} now"} for name in ("matmul", "softmax_forward", "scale")}


def row(primitive, shape, peers=()):
    return Row(
        primitive, shape, "float32", "cuda:0", "cuda", True, "stream", "cold", (1e-3,) * 3, 1,
        1.0, 1.0, 1e-3, "memory", dict.fromkeys(peers, 1.0),
    )  # fmt: skip


def product(key, fused="", seconds=1.0):
    return {"key": key, "fused": fused, "seconds": seconds}


def step(job, contestant, **more):
    return {"job": job, "batch": 8, "contestant": contestant, "median": 1.0,
            "primitives": ["matmul"], **more}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """write(name, date, gpu, changed=primitives, **lists) puts a result file into a folder."""

    def put(name, day, gpu="NVIDIA H200", changed=(), **lists):
        environment = {"machine": {"gpu": gpu}, "versions": {}, "commit": "0123456", "clean": True,
                       "date": f"2026-11-{day:02}T00:00:00Z", "command": ["gpu.py"]}  # fmt: skip
        sources = {n: {"cuda": "old" if n in changed else d["cuda"]} for n, d in DIGESTS.items()}
        place = tmp_path / results.folder_name(gpu)
        place.mkdir(exist_ok=True)
        Results(environment, sources, **lists).write(place / f"{name}.json")

    return put


def names(found):
    return [(one["key"], one["seconds"], path.stem) for one, path in found]


def test_each_product_and_job_is_from_the_newest_file_that_has_it(tmp_path, write):
    launch = {"driver": True, "kind": "call"}
    old = [step("a", "gpunn"), step("a", "torch"), step("b", "gpunn")]
    write("first", 1, products=[product("x"), product("y")], training=old, launches=[launch])
    write("second", 2, products=[product("y", seconds=2.0)], training=[step("b", "gpunn")],
          launches=[launch | {"driver": False}])  # fmt: skip
    write("third", 3, changed=["matmul"], products=[product("x", seconds=3.0)])
    files = current.result_files(tmp_path)
    assert [path.stem for path, _ in files] == ["third", "second", "first"]
    found = current.products(files, DIGESTS)
    assert names(found) == [("y", 2.0, "second"), ("x", 1.0, "first")]
    jobs = current.training(files, DIGESTS)
    assert {key: (len(rows), path.stem) for key, (rows, path) in jobs.items()} == {
        ("a", 8): (2, "first"), ("b", 8): (1, "second"),
    }  # fmt: skip
    assert current.launches(files) == ([launch], files[2][0])
    assert current.launches(files[:2]) == ([], None)
    # Fused products are of other primitives; these digests know none of them.
    assert not current.product_is_current(files[1][1], product("z", "backward"), DIGESTS)


def test_each_row_is_from_the_newest_file_with_most_peers(tmp_path, write):
    both = ["torch", "torch.compile"]
    write("first", 1, rows=[row("scale", (7,), both), row("scale", (8,))], training=[
        step("a", "gpunn"), step("a", "torch"), step("b", "gpunn")])  # fmt: skip
    late = [{"job": "b", "batch": 8, "contestant": "gpunn", "reason": "no time was left"}]
    write("second", 2, rows=[row("scale", (7,), both[:1])], training=[step("a", "gpunn"), *late],
          products=[{"key": "x"}])  # fmt: skip
    write("third", 3, rows=[row("scale", (8,)), row("scale", (9,)), row("matmul", (7,))])
    write("fourth", 4, changed=["scale"], rows=[row("scale", (10,))])
    files = current.result_files(tmp_path)
    found = {one.shape[0]: path.stem for one, path in current.rows(files, "scale", "cuda", DIGESTS)}
    assert found == {7: "first", 8: "third", 9: "third"}
    jobs = current.training(files, DIGESTS)
    assert {job: path.stem for (job, _), (_, path) in jobs.items()} == {"a": "first", "b": "first"}
    assert current.products(files, DIGESTS) == []
    known = current.known([tmp_path], "NVIDIA H200", DIGESTS)
    assert known.level("product", "x") == current.NEVER


def test_checks_of_runs_with_equal_sources_add_up():
    def run(*tests):
        return SimpleNamespace(tests=[
            {"stage": "parity", "item": item, "passed": passed} for item, passed in tests
        ])  # fmt: skip

    found = current.tests([run(("a", True)), run(("a", False), ("b", False))])
    assert {test["item"]: test["passed"] for test in found} == {"a": True, "b": False}


def test_what_is_not_known_comes_first(tmp_path, write):
    write("old", 1, changed=["softmax_forward"], rows=[row("softmax_forward", (4, 5))])
    write("there", 2, gpu="NVIDIA H100", rows=[row("matmul", (2, 3, 4))],
          products=[product("p")])  # fmt: skip
    checked = {"stage": "sanitizer", "item": "memcheck scale", "passed": True}
    calls = {"job": "a", "batch": 8, "primitives": ["scale"], "calls": [{"seconds": 1e-6}],
             "profiles": [{"by": "torch fused", "reason": "no CUPTI"}]}  # fmt: skip
    write("here", 3, rows=[row("scale", (7,), ["torch"])], tests=[checked],
          training=[step("a", "gpunn")], step_kernels=[calls])  # fmt: skip
    (tmp_path / "nvidia-h200" / "half.json").write_text('{"format": "gp')
    known = current.known([tmp_path, tmp_path, tmp_path / "none"], "NVIDIA H200", DIGESTS)
    assert len(known.unread) == 1 and "half.json: this is not JSON" in known.unread[0]
    keys = ["scale 7 float32", "matmul 2x3x4 float32", "softmax_forward 4x5 float32", "new"]
    assert [known.level("row", key) for key in keys] == [
        current.HERE, current.ELSEWHERE, current.CHANGED, current.NEVER,
    ]  # fmt: skip
    assert known.level("row", keys[0], "torch") == known.level("step", "a", 8) == current.HERE
    assert known.level("row", keys[0], "cupy") == current.NEVER
    assert known.level("sanitizer", "memcheck scale") == current.HERE
    assert known.level("step kernels", "a", 8) == current.HERE
    assert known.level("step kernels", "a", 8, "torch fused") == current.HERE
    assert known.level("step kernels", "a", 8, "gpunn compiled") == current.NEVER
    assert known.level("product", "p") == current.ELSEWHERE
    items, text = known.first([{"id": key} for key in keys], lambda item: ("row", item["id"]))
    assert [item["id"] for item in items] == keys[::-1]
    assert text == "3 of 4 without a current time came first"
    with pytest.raises(results.ResultError, match="half.json"):
        current.result_files(tmp_path)


def test_peers_that_take_long_come_last():
    items = micro_stage.benchmark_items()
    quick = [item["case"] for item in items if not item["beside"]]
    first = "softmax_forward 65536x1024 float32"
    known = current.Known({("row", case): current.HERE for case in quick if case != quick[9]})
    known.note(("row", first), current.HERE)
    ordered, _ = micro_stage.in_order(known, items)
    assert ordered[0]["case"] == quick[9] and sorted(i["id"] for i in ordered) == sorted(
        item["id"] for item in items
    )
    assert [bool(item["beside"]) for item in ordered] == sorted(bool(i["beside"]) for i in items)
    (slow,) = (item for item in ordered if item["beside"] and item["case"] == first)
    assert slow["beside"] == ["cupy", "torch.compile", "triton"]


def test_which_peers_a_case_is_timed_beside_on_a_gpu(monkeypatch):
    asked = []

    def measure(case, device, ceilings, *, peer_names, samples, sample_seconds):
        asked.append((peer_names, samples))
        return [], []

    monkeypatch.setattr(micro_stage, "measure", measure)
    monkeypatch.setattr(micro_stage.peers, "available", lambda _: ("cupy", "torch", "triton"))
    monkeypatch.setattr(micro_stage.peers, "has", lambda peer, name: (peer, name) != ("torch", "x"))
    item = {"primitive": "softmax_forward", "shape": [4, 5], "dtype": "float32",
            "ceilings": {"device": "cuda:0", "copy": 1.0, "rates": {}, "how": {}}}  # fmt: skip
    gpu = SimpleNamespace(type="cuda")
    for changes in ({"beside": []}, {"beside": ["cupy", "triton"]}, {"primitive": "x"},
                    {"primitive": "x", "beside": ["cupy"]}):  # fmt: skip
        assert micro_stage.time_case(item | changes, gpu, False)["passed"]
    # The last is not timed again: CuPy was beside it at once, for PyTorch has no x.
    assert asked == [(["torch"], 20), (["cupy", "torch", "triton"], 20), (["cupy"], 20)]


def test_steps_that_were_never_timed_come_first_and_compiled_networks_last():
    asked = []

    def supervise(stage, items, seconds, **options):
        asked.extend(item["id"] for item in items)
        return Outcome()

    found = SimpleNamespace(environment={"machine": {}}, training=[])
    known = current.Known({("step", "lstm-32-128", 64): current.HERE,
                           ("step", "mlp-784-256-128-10", 128): current.HERE,
                           ("step", "gpt-2-124M", 8, "torch.compile"): current.HERE})  # fmt: skip
    run = SimpleNamespace(device=SimpleNamespace(type="cuda"), found=found, known=known, tiny=False,
                          supervise=supervise)  # fmt: skip
    said = step_stages.steps(run, 100)
    assert asked[-4:] == [
        "lstm-32-128 64", "mlp-784-256-128-10 128 beside torch reduce-overhead",
        "cnn-airbench 1024 beside torch.compile", "gpt-2-124M 8 beside torch.compile",
    ]  # fmt: skip
    assert "gpt-2-124M 8" in asked[:-4] and said.endswith(
        "5 of 7 without a current time came first"
    )


def test_the_checks_have_their_time_whatever_is_measured():
    measuring = [name in hardware.MEASURING for name, _, _ in hardware.STAGES]
    assert measuring == sorted(measuring)  # checks first
    checks = sum(share for name, _, share in hardware.STAGES if name not in hardware.MEASURING)
    assert checks < 0.8 * hardware.BUDGET_SECONDS


def test_a_second_run_finds_the_kernels_of_the_first(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", checkout() / "benchmarks" / "gpu.py")
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    monkeypatch.setattr(gpu, "CHECKOUT", tmp_path)
    kept = tmp_path / "build" / "gpu-cache"
    (kept / "tuned").mkdir(parents=True)
    assert gpu.kernel_cache({"steps"}, tmp_path, False) == kept and kept.is_dir()
    assert not (kept / "tuned").exists()
    assert gpu.kernel_cache(None, tmp_path, True) == tmp_path / "cache" and kept.is_dir()
    assert gpu.kernel_cache(None, tmp_path, False) == kept and not kept.exists()


# ---- jobs ----------------------------------------------------------------------------------------

CPU = Device("cpu")


def runs(monkeypatch, *found):
    left = list(found)
    monkeypatch.setattr(jobs_stage, "_run", lambda job, changes, device: left.pop(0))


def test_a_job_that_learns_less_than_on_the_cpu_fails(monkeypatch):
    def accuracy(value):
        return {"validation_accuracy": value, "validation_loss": 0.1, "test_accuracy": value,
                "test_loss": 0.1, "epochs": 3}, 1.5, {}  # fmt: skip

    digits = np.zeros((1797, 64), np.float32), np.arange(1797) % 10
    monkeypatch.setattr(jobs, "load_digits", lambda: digits)
    runs(monkeypatch, accuracy(0.95), accuracy(0.98))
    good = jobs_stage.check_digits(CPU, {})
    # 3 sqrt(2 * 0.98 * 0.02 / 216), 216 images
    assert good["passed"] and good["tolerance"] == pytest.approx(0.0404, abs=1e-4)
    assert (good["value"], good["on_cpu"], good["seconds_on_device"]) == (0.95, 0.98, 1.5)
    runs(monkeypatch, accuracy(0.93), accuracy(0.98))
    bad = jobs_stage.check_digits(CPU, {})
    assert "0.9300 of 216 images are right, 0.9800 on the CPU" in bad["failures"][0]["reason"]


def test_losses_that_begin_otherwise_fail_and_games_only_run(monkeypatch):
    def example(loss, value, last=0.5):
        rows = [{"epoch": 1.0, "loss": loss}, {"epoch": 2.0, "loss": last}]
        return {"metric": "loss of it", "value": value}, 1.0, {"history": rows}

    runs(monkeypatch, example(1.0, 3.0), example(1.001, 3.02))
    assert jobs_stage.check_example("text", CPU)["passed"]
    runs(monkeypatch, example(1.0, 3.0), example(1.05, 4.0))
    found = jobs_stage.check_example("text", CPU)
    assert [one["reason"] for one in found["failures"]] == [
        "1, 1.05 on the CPU; allowed is 0.002", "3, 4 on the CPU; allowed is 0.02",
    ]  # fmt: skip
    runs(monkeypatch, example(1.0, 3.0), example(2.0, 9.0))
    game = jobs_stage.check_example("connect4", CPU)
    assert game["passed"] and not game["compared"]
    runs(monkeypatch, example(1.0, 3.0, last=float("nan")), example(1.0, 3.0))
    nan = jobs_stage.check_example("connect4", CPU)["failures"]
    assert nan == [{"case": "history, row 2, loss", "reason": "it is nan"}]


def test_a_missing_package_is_no_failure_but_a_missing_name_of_ours_is(monkeypatch, tmp_path):
    def raising(error):
        def run(job, changes, device):
            raise error

        monkeypatch.setattr(jobs_stage, "_run", run)
        return jobs_stage.check_job({"job": "text"}, CPU)

    missing = raising(ModuleNotFoundError("No module named 'arch'", name="arch"))
    assert missing["not_run"] == "No module named 'arch'"
    with pytest.raises(ImportError):
        raising(ImportError("cannot import name 'x' from 'gpunn.nn'", name="gpunn.nn"))
    found = SimpleNamespace(tests=[])
    run = hardware.Run(CPU, found, tmp_path / "x.json", True, 0.0)
    run.keep("jobs", Outcome({"a": missing, "b": {"passed": True, "checked": 1}}, {"c": "died"}))
    assert run.left_out == {"a": "No module named 'arch'"}
    assert [(t["item"], t["passed"]) for t in found.tests] == [("b", True), ("c", False)]


# ---- the sanitizer -------------------------------------------------------------------------------


def test_a_tool_gets_samples_from_small_to_large():
    class Some:
        def __init__(self, size):
            self.args, self.kwargs = (np.zeros(size), "relu"), {}

    cases = [(Some(size), "float32") for size in (70_000, 9, 1, 400, 30_000, 33)]
    chosen = stages.spread_cases(cases, 3)
    assert [one.args[0].size for one, _ in chosen] == [1, 30_000, 33]
    assert stages.spread_cases(cases[:1], 3) == cases[:1]


def test_the_sanitizer_goes_through_all_primitives(monkeypatch):
    items = programs.sanitized("racecheck")
    assert [item["primitive"] for item in items] == [
        made.name for made in table().values() if "cuda" in made.implementations
    ]
    assert json.loads(json.dumps(items)) == items
    said, calls = [], []

    def under(tool, check, stage, items, run, seconds, jobs):
        calls.append((check, stage, len(items)))
        done = {"passed": True, "seconds": 3.0}
        return SimpleNamespace(results={item["id"]: done for item in items[:5]})

    monkeypatch.setattr(programs, "_under", under)
    monkeypatch.setattr(programs.shutil, "which", lambda *_, **__: "/tool")
    known = current.Known({("sanitizer", f"memcheck {i['primitive']}"): 3 for i in items[:80]})
    said = programs.sanitizer(SimpleNamespace(known=known, left_out={}), 30)
    count = len(items)
    assert calls == [("memcheck", "parity", count), ("racecheck", "parity", count),
                     ("memcheck", "jobs", 1)]  # fmt: skip
    assert f"memcheck: 5 of {count} primitives ({count - 80} of {count} without a current" in said
    assert said.endswith("memcheck: digits in 3 s")
