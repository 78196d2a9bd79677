"""The stage that tells where the time of a step goes, `mlp_train`'s phases, the file, the page."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gpunn.bench import (
    compile_stage,
    mlp_phases,
    results,
    step_calls,
    step_kernel_tables,
    step_kernels,
)
from gpunn.bench.training_jobs import JOBS
from gpunn.device import Device
from gpunn.primitives.mlp_plan import why_not
from gpunn.profiling.chips import CHIPS

CPU, H200 = Device("cpu"), CHIPS["h200"]


# ---- the phases of mlp_train ---------------------------------------------------------------------


@pytest.fixture
def timed():
    """All experiments, with the seconds that known factors make."""

    def made(noise=0.0, **factors):
        rng, rows = np.random.default_rng(0), []
        for experiment in mlp_phases.EXPERIMENTS:
            row = mlp_phases.expected(experiment, H200)
            seconds = sum(factors[part] * one for part, one in row["parts"].items())
            rows.append(row | {"seconds": seconds * (1 + noise * rng.standard_normal())})
        return rows

    return made


def test_the_fit_finds_known_parts(timed):
    true = {"rows": 1.3, "weights": 0.7, "meetings": 2.0}
    found = mlp_phases.fit(timed(**true))
    assert found["factors"] == pytest.approx(true) and found["worst"] < 1e-9
    noisy = mlp_phases.fit(timed(0.03, **true))
    assert noisy["factors"] == pytest.approx(true, rel=0.15) and 0 < noisy["worst"] < 0.15
    assert found["condition"] < 10  # the experiments do tell the parts apart
    none = mlp_phases.fit(timed(0.03, rows=1.0, weights=1.0, meetings=0.0))
    assert none["factors"]["meetings"] < 0.05  # and not below zero


def test_what_the_model_does_not_know_is_not_fitted(timed):
    rows = timed(rows=1.0, weights=2.0, meetings=1.0)
    next(row for row in rows if row["name"] == "SGD")["seconds"] *= 0.5
    rows[3].pop("seconds")
    assert mlp_phases.fit(rows)["factors"]["weights"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="2 experiments were timed; 3 parts need as many"):
        mlp_phases.fit(rows[:2])


def test_every_experiment_changes_what_it_says():
    plans = {}
    for experiment in mlp_phases.EXPERIMENTS:
        network, plan = mlp_phases.plan_of(experiment, H200)
        assert why_not(network, experiment.batch) == ""
        plans[experiment.name] = plan
    assert plans["one block"].blocks == 1 and plans["one block"].resident
    assert plans["the same on 8 blocks"].blocks == 8
    assert plans["16 blocks"].blocks == 16 and plans["66 blocks"].blocks <= 66
    parts = {e.name: mlp_phases.expected(e, H200)["parts"] for e in mlp_phases.EXPERIMENTS}
    assert parts["clipped"]["meetings"] > parts["as trained"]["meetings"]
    assert parts["clipped"]["rows"] == parts["as trained"]["rows"]
    assert parts["batch 8"]["meetings"] == parts["as trained"]["meetings"]
    assert parts["7 layers of 64"]["rows"] > 2 * parts["3 layers of 64"]["rows"]


def test_the_experiments_run():
    row = mlp_phases.measure(H200, CPU, **mlp_phases.SMALL)
    assert all(one["seconds"] > 0 and one["fit"] >= 0 for one in row["experiments"])
    assert set(row["parts"]) == set(row["factors"]) == set(mlp_phases.PARTS)
    assert json.loads(json.dumps(row))["job"] == step_kernels.PHASES


# ---- the stage, the file, the page ---------------------------------------------------------------


def test_what_is_known_least_comes_first():
    jobs = step_kernels.in_order([job for job in JOBS if job.on in ("gpu", "both")])
    names = [job.name for job in jobs]
    assert names[:4] == ["cnn-airbench", "gpt-2-124M", "lstm-lm-512", "lstm-32-128"]
    items = step_kernels.items_of(jobs)
    assert [item["id"] for item in items[:6]] == [
        "cnn-airbench 1024", "mlp_train phases", "gpt-2-124M 8", "cnn-airbench 1024 by CUPTI",
        "gpt-2-124M 8 by CUPTI", "lstm-lm-512 64",
    ]  # fmt: skip
    compiled = [item["job"] for item in items if item["by"] == ("torch.compile",)]
    assert compiled[:2] == names[:2] and len({item["id"] for item in items}) == len(items)
    assert items[-1]["by"] == ("torch.compile",)
    assert len({step_kernels._key(item) for item in items}) == len(items)


def test_no_process_that_had_a_profiler_times_calls():
    asked = []

    def supervise(stage, items, seconds, item_seconds):
        asked.append([item["id"] for item in items])
        rows = {one["id"]: {"step_kernels": {"job": one["job"], "batch": one["batch"]}}
                for one in items}  # fmt: skip
        return SimpleNamespace(results=rows)

    def first(items, key):  # the profiles of the second run
        return sorted(items, key=lambda item: item["what"] == "calls"), "known"

    made = empty({})
    made.environment["machine"] = {"gpu_memory_bytes": 80e9}
    made.stages.append({"name": "compile"})
    run = SimpleNamespace(
        tiny=False, found=made, device=SimpleNamespace(type="cuda"), ceilings=lambda seconds: None,
        known=SimpleNamespace(first=first), supervise=supervise, left_out={},
    )  # fmt: skip
    assert "known" in step_kernels.step_kernels(run, 20.0)
    kinds = [{("CUPTI" in name) for name in names} for names in asked]
    assert [list(kind) for kind in kinds] == [[False], [True], [False]]
    assert set(run.left_out) == {f"{name} by CUPTI, compiled" for name in (
        "cnn-airbench 1024", "gpt-2-124M 8", "mlp-784-256-128-10 128", "mlp-784-256-128-10 512"
    )}  # fmt: skip
    assert len(made.step_kernels) == 8


def test_what_large_steps_launch_is_compiled_before(monkeypatch):
    item = {
        "job": "lstm-lm-512",
        "batch": 64,
        "arch": "sm_90a",
        "multiprocessors": 132,
        "known": {},
        "part": (0, 1),
    }
    every = compile_stage.kernels_of(item)
    assert {"matmul_wgmma.cu", "optimizer.cu"} <= {source for source, _ in every}
    source, name = every[0]
    assert compile_stage.kernels_of(item | {"known": {source: [name]}}) == every[1:]
    assert compile_stage.kernels_of(item | {"part": (1, 2)}) == every[1::2]
    plain = {"source": "a.cu", "expressions": ["x<1>", "x<2>"]}
    assert compile_stage.kernels_of(plain) == [("a.cu", "x<1>"), ("a.cu", "x<2>")]
    asked = []

    def supervise(stage, items, **options):
        asked.extend(items)
        return (stage, options["device"], options["jobs"])

    monkeypatch.setattr(compile_stage.supervise, "supervise", supervise)
    monkeypatch.setattr(compile_stage, "chip_of", lambda run: ("sm_90a", 132))
    made = empty({})
    made.environment["machine"] = {"gpu_memory_bytes": 30e9}
    run = SimpleNamespace(tiny=False, found=made, device=SimpleNamespace(type="cuda"))
    assert compile_stage.compile_steps(run, 9.0, {}) == ("compile", "cpu", 3)
    names = {(item["job"], item["batch"]) for item in asked}
    assert names == {("cnn-airbench", 1024), ("lstm-lm-512", 64), ("gpt-2-124M", 4)}


def test_rows_of_a_job_become_one():
    rows = step_kernels.merged([
        {"job": "a", "batch": 1, "calls": [], "primitives": ["p"]},
        {"job": "b", "batch": 1, "calls": []},
        {"job": "a", "batch": 1, "profiles": [{"by": "x"}], "primitives": ["q"]},
        {"job": "a", "batch": 1, "profiles": [{"by": "y"}, {"by": "x", "gpu_seconds": 1.0}]},
    ])  # fmt: skip
    assert rows[0] == {
        "job": "a", "batch": 1, "calls": [], "primitives": ["p", "q"],
        "profiles": [{"by": "x", "gpu_seconds": 1.0}, {"by": "y"}],
    }  # fmt: skip
    assert rows[1] == {"job": "b", "batch": 1, "calls": []}


def call(primitive, seconds, floor, count=1, **more):
    return {
        "primitive": primitive, "layer": "4.*", "what": "", "phase": "forward", "shapes": "8x8",
        "dtype": "bfloat16", "count": count, "flops": 1.0, "bytes": 1.0, "floor": floor,
        "bound": "memory", "kernels": [{"source": "a.cu", "kernel": f"{primitive}<8, float>",
                                        "grid": [1], "block": [32], "shared": 0}],
        "mode": "graph", "seconds": seconds, **more,
    }  # fmt: skip


def empty(sources):
    return results.Results(dict.fromkeys(results.ENVIRONMENT), sources)


@pytest.fixture
def found(tmp_path, timed):
    """A result file, its path, and digests under which it is current."""
    calls = step_calls.by_loss([
        call("scale", 11e-6, 10e-6, 24), call("convolution_forward", 90e-6, 40e-6, 2),
        call("matmul", 50e-6, 45e-6, cold_seconds=60e-6),
    ])  # fmt: skip
    names = sorted({one["primitive"] for one in calls})
    profiles = [
        {"by": "gpunn compiled", "reason": "RuntimeError: no CUPTI"},
        {"by": "torch fused", "gpu_seconds": 3e-4, "span_seconds": 4e-4,
         "kernels": [{"name": "sm90_xmma|fprop", "count": 2.0, "seconds": 5e-5}]},
    ]  # fmt: skip
    row = {
        "job": "cnn-airbench", "batch": 1024, "device": "cuda:0", "precision": "bf16",
        "floors_by": "what was measured", "step_seconds": 6e-4, "graph_seconds": 5.5e-4,
        **step_calls.sums(calls), "calls": calls, "primitives": names, "profiles": profiles,
    }  # fmt: skip
    experiments = timed(rows=2.0, weights=1.0, meetings=1.0)
    fitted = mlp_phases.fit(experiments)
    for one in experiments:
        one["fit"] = one["seconds"]
    phases = {
        "job": "mlp_train phases", "batch": 128, "precision": "fp32", "experiments": experiments,
        "parts": experiments[0]["parts"], "primitives": ["mlp_train"], **fitted,
    }  # fmt: skip
    made = empty({name: {"cuda": "1"} for name in (*names, "mlp_train")})
    made.step_kernels += [row, phases]
    path = tmp_path / "a.json"
    made.write(path)
    assert results.read(path).step_kernels == json.loads(json.dumps(made.step_kernels))
    return made, path, made.sources


def test_the_page_shows_the_largest_losses_of_current_kernels(found):
    made, path, digests = found
    text = step_kernel_tables.markdown([(path, made)], digests)
    assert text.startswith("### Where the time of a step goes\n")
    first = next(line for line in text.splitlines() if line.startswith("| `"))
    assert first.split(" | ")[0] == "| `convolution_forward`"
    assert first.endswith("| `convolution_forward` | 2 | 90.0 |  | 40.0 | 100 |")
    assert "600 us compiled; 550 us its graph alone; 494 us the sum of its calls" in text
    assert "504 us with cold caches; 365 us their floors by what was measured" in text
    assert "No kernels by CUPTI of gpunn compiled: RuntimeError: no CUPTI.\n" in text
    assert "| `sm90_xmma/fprop` | 2.00 | 50.0 |" in text
    assert "rows 20.1 us (2.00 x its estimate)" in text and "SGD (not fitted)" in text
    made.step_kernels[0].pop("profiles")
    later = empty(made.sources)
    told = {"by": "torch fused", "reason": "none"}
    later.step_kernels.append({"job": "cnn-airbench", "batch": 1024, "profiles": [told]})
    text = step_kernel_tables.markdown([(path, later), (path, made)], digests)
    assert "494 us the sum of its calls" in text and "CUPTI of torch fused: none." in text
    changed = digests | {"scale": {"cuda": "2"}}
    assert "cnn-airbench" not in step_kernel_tables.markdown([(path, made)], changed)
    assert step_kernel_tables.markdown([(path, empty({}))], digests) == ""


def test_the_command_prints_a_file(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # tables fit their terminal
    _, path, _ = found
    assert step_kernels.main([str(path), "--job", "cnn", "--top", "1"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    row = next(words for words in lines if words[:1] == ["fwd"])
    assert row[1:] == ["4.*", "convolution_forward", "8x8", "bfloat16", "2", "x", "1", "90.0",
                       "40.0", "100", "memory"]  # fmt: skip
    assert "29.0 us lost in 2 more kinds of calls" in text and "mlp_train" not in text
    assert "by CUPTI, torch fused, 300 us of kernels in a step of 400 us:" in text
    assert step_kernels.main([str(path), "--job", "mlp_train"]) == 0
    assert "Parts of a step inside mlp_train" in capsys.readouterr().out
    assert step_kernels.main([str(path), "--job", "bert"]) == 1
    assert "no job that begins with 'bert'; it has: cnn-airbench" in capsys.readouterr().err
    assert step_kernels.main([str(path.with_name("b.json"))]) == 1
    assert "b.json" in capsys.readouterr().err


def test_without_a_file_the_floors_are_told(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert step_kernels.main(["--job", "mlp-64", "--chip", "h100"]) == 0
    text = capsys.readouterr().out
    assert "mlp-64-128-128-10, batch 128, fp32: the floors together are" in text
    assert "by the H100's data sheet" in " ".join(text.split()) and "linear_weight_gradient" in text
    assert step_kernels.main(["--chip", "h300"]) == 1
    assert "no data sheet of 'h300'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        step_kernels.main(["--help"])
    assert "python -m gpunn.bench.step_kernels FILE --job gpt --top 20" in capsys.readouterr().out
