"""The benchmark of scaling: starts, statistics, tables, the page; no time is asserted."""

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gpunn.bench import (
    machine,
    report,
    results,
    scaling,
    scaling_rank,
    scaling_report,
    scaling_tables,
)
from gpunn.bench.training_jobs import mlp
from gpunn.device import Device

PLAN = scaling.Plan(
    jobs=("mlp-784-256-128-10",), batches=(("mlp-784-256-128-10", 8),), bytes=(1024,), rounds=2,
    blocks=2, seconds=1e-3,
)  # fmt: skip
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


def script():
    spec = importlib.util.spec_from_file_location("benchmark_scaling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(library, ranks, plan, slower=1.0):
    """What a start could give: on 2 ranks PyTorch's step takes 3 times that of one, ours 1.5."""
    step = {1: 1.0, 2: 3.0 if library == "torch" else 1.5}[ranks] * 1e-3 * slower
    found = []
    for kind in plan.kinds if ranks > 1 else ["weak"]:
        times = {"step": [step, step, 9 * step]}  # an outlier, of which a median knows nothing
        if ranks > 1:
            times |= {"without": [step - 2e-4] * 3, "alone": [4e-4] * 3}
        batch = 8 * ranks if kind == "weak" else 8
        found.append({
            "job": plan.jobs[0], "kind": kind, "batch": batch, "precision": "fp32",
            "losses": [2.3, 2.2 - batch / 100], "times": times, "ranks": ranks, "device": "cpu",
        })  # fmt: skip
    if ranks > 1:
        found.append({"kind": "sum", "bytes": 1024, "times": {"alone": [1e-6]}, "ranks": ranks,
                      "device": "cpu"})  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def without_digests(monkeypatch):
    """The sources of all kernels are read for every other test of result files."""
    monkeypatch.setattr(machine, "source_digests", dict)


@pytest.fixture
def rows():
    return scaling.measure(PLAN, said=lambda text: None, starter=told)


def test_libraries_take_turns_and_begin_alternately():
    starts = PLAN.starts()
    assert starts[:4] == [(0, "gpunn", 1), (0, "torch", 1), (0, "gpunn", 2), (0, "torch", 2)]
    assert [library for _, library, _ in starts[4:]] == ["torch", "gpunn", "torch", "gpunn"]
    assert dataclasses.replace(PLAN, ranks=(4,)).starts()[2] == (0, "gpunn", 4)  # and 1 before


def test_ratios_are_those_within_rounds():
    lines = []

    def starter(library, ranks, plan):
        busy = 1.0 if len(lines) < 4 else 5.0  # the second round, all alike
        return told(library, ranks, plan, busy)

    rows = scaling.measure(PLAN, said=lines.append, starter=starter)
    assert len(lines) == 8 and lines[-1].startswith("[8/8] round 2, gpunn on 2 ranks")
    found = {(row["kind"], row["by"], row["ranks"]): row for row in rows}
    assert list(found)[:4] == [("weak", "gpunn", 1), ("weak", "torch", 1), ("weak", "gpunn", 2),
                               ("weak", "torch", 2)]  # fmt: skip
    ours, peer = found["weak", "gpunn", 2], found["weak", "torch", 2]
    assert ours["over_one"] == pytest.approx(1.5) and peer["over_one"] == pytest.approx(3)
    assert ours["efficiency"] == pytest.approx(1 / 1.5)
    assert found["strong", "gpunn", 2]["efficiency"] == pytest.approx(1 / 3)
    assert ours["hidden"] == pytest.approx(0.5)  # of 400 us the step takes 200 more
    assert ours["step"] == pytest.approx((1.5e-3 + 7.5e-3) / 2)
    assert found["sum", "gpunn", 2]["alone"] == 1e-6
    assert "over_one" not in found["weak", "gpunn", 1] and not any("reason" in r for r in rows)


def test_losses_that_differ_are_said():
    def starter(library, ranks, plan):
        rows = told(library, ranks, plan)
        if (library, ranks) == ("torch", 2):
            rows[1]["losses"] = [2.3, float("nan")]
        return rows

    rows = scaling.measure(PLAN, said=lambda text: None, starter=starter)
    wrong = [row for row in rows if "reason" in row]
    assert [(row["by"], row["kind"]) for row in wrong] == [("torch", "strong")]
    assert "those of gpunn on 1 rank" in wrong[0]["reason"]
    _, cells = scaling_tables.steps_cells(rows)
    assert any("losses differ" in " ".join(line) for line in cells)


def test_one_gpu_beside_its_plain_step():
    found = results.new(Device("cpu"))
    found.environment["machine"]["gpu"] = "NVIDIA H200"
    found.environment["date"] = "2026-01-05T00:00:00Z"
    times = {"job": "mlp", "batch": 8, "plain": 1e-3, "rank": 1.02e-3, "over": 1.021}
    found.tests = [{"stage": "one rank", "times": times}, {"stage": "graphs"}]
    without = results.new(Device("cpu"))
    text = scaling_report._one_rank([(Path("a.json"), without), (Path("b.json"), found)])
    assert "plain compiled step: NVIDIA H200, 2026-01-05 (`b.json`)." in text
    assert "| mlp | 8 | 1.00 ms | 1.02 ms | +2.1% |" in text


def test_tables(rows):
    for headers, cells in (scaling_tables.steps_cells(rows), scaling_tables.sums_cells(rows)):
        assert cells and all(len(line) == len(headers) for line in cells)
    said = scaling_tables.verdicts(rows)
    assert said == [
        "mlp-784-256-128-10 on 2 ranks: 1.50 times the step of one rank, PyTorch 3.00: no worse."
    ]


def test_picture(rows, tmp_path):
    pytest.importorskip("matplotlib")
    scaling_tables.draw(rows, [], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to draw"):
        scaling_tables.draw([], [], tmp_path / "b.png")


def test_the_page_has_the_newest_file_of_cpus_and_of_gpus(rows, tmp_path):
    text = scaling_report.page(tmp_path, [])
    assert text.count("Not yet run.") == 2 and "No run on a GPU is recorded" in text
    (tmp_path / "scaling").mkdir()
    for date, gpu in (("2026-01-01", None), ("2026-01-02", None), ("2026-01-03", "NVIDIA H200")):
        found = results.new(Device("cpu"))
        found.environment["machine"]["gpu"] = gpu
        found.environment |= {"date": f"{date}T00:00:00Z", "commit": "abcdef0123", "clean": True}
        found.scaling = [row for row in rows if row["ranks"] == 1] if gpu else rows
        found.write(tmp_path / "scaling" / results.file_name(found))
        assert results.read(tmp_path / "scaling" / results.file_name(found)).scaling
    text = scaling_report.page(tmp_path, [])
    assert "2026-01-02-abcdef0.json" in text and "2026-01-01" not in text
    assert "beside the plain compiled step: not yet run." in text and "no worse" in text
    assert report.result_files(tmp_path) == []  # the other page knows nothing of them


# ---- ranks ---------------------------------------------------------------------------------------


def test_parts_of_batches_are_all_of_them():
    job = mlp((6, 5, 3), 7)
    parts = [scaling_rank.part(job, rank, 3) for rank in range(3)]
    assert [len(part[0][1]) for part in parts] == [2, 2, 3]
    np.testing.assert_array_equal(np.concatenate([part[4][0] for part in parts]), job.data()[0][4])


def test_a_rank_that_fails_or_hangs_ends_the_start(tmp_path, monkeypatch):
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    fails = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    both = [(hangs, dict(os.environ)), (fails, dict(os.environ))]
    with pytest.raises(scaling.ScalingError, match=r"(?s)a job: .* ended with 1.*no such thing"):
        scaling.run_all(both, "a job", tmp_path)
    monkeypatch.setattr(scaling, "TIMEOUT", 0.05)
    with pytest.raises(scaling.ScalingError, match="did not end within 0 s"):
        scaling.run_all(both[:1], "a job", tmp_path)


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_makes_a_plan():
    made = script()
    plan = made.plan_of(made.parser().parse_args(
        ["--ranks", "4", "2", "--weak", "--batch", "16", "--jobs", "gpt-small", "--peer", "none",
         "--repeats", "3", "--no-sums", "--device", "cpu"]
    ))  # fmt: skip
    assert plan.ranks == (1, 2, 4) and plan.kinds == ("weak",) and plan.libraries == ("gpunn",)
    assert plan.batches == (("gpt-small", 16),) and plan.bytes == () and plan.rounds == 3
    with pytest.raises(SystemExit):
        made.parser().parse_args(["--ranks", "0"])


def test_the_command_prints_the_model_and_writes_results(rows, tmp_path, monkeypatch, capsys):
    made = script()
    monkeypatch.setattr("sys.argv", ["scaling.py", "--model"])
    assert made.main() == 0
    text = capsys.readouterr().out
    assert "none of this was measured" in text and "1024" in text and "estimate" in text
    monkeypatch.setattr(scaling, "measure", lambda plan, said: rows)
    monkeypatch.setattr("sys.argv", ["scaling.py", "--device", "cpu", "--folder", str(tmp_path)])
    assert made.main() == 0
    (path,) = tmp_path.glob("scaling/*.json")
    assert json.loads(path.read_text())["scaling"] == rows
