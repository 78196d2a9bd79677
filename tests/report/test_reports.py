"""Reports: what stands in the page is what stands in the files, and nothing in them can run."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

import gpunn
from gpunn import nn
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import NotTimed, Row
from gpunn.bench.results import ResultError, Results
from gpunn.cli.main import main
from gpunn.report import Report, result_page, run_page
from gpunn.report.svg import Axis, element, linear_ticks, path_of, short, span
from gpunn.train import History, find_job, run_job

EVIL = "<script>alert('x')</script>\" onload=\"alert(1)"


class Reader(HTMLParser):
    """The texts of a page by heading, its tables as lists of rows, its tags with attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.cell = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        self.texts.append(data)
        if self.cell:
            self.tables[-1][-1][-1] += data

    def table(self, *headers):
        """The rows below those headers."""
        return next(table[1:] for table in self.tables if table[0][: len(headers)] == list(headers))


def check_whole(html, limit=2 << 20):
    """One file without a link to anything, whose only script is ours."""
    read = Reader(html)
    assert [tag for tag, _ in read.tags].count("script") == 1
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    assert "url(" not in html and "@import" not in html
    assert len(html.encode()) < limit
    return read


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    job = find_job("digits")
    config = job.config(device="cpu", epochs=3, hidden=(16,), limit=300, dropout=0.0)
    run_job(job, config, folder, verbose=False)
    return folder


def test_page_of_a_run(run):
    html = run_page(run).html()
    read = check_whole(html)
    metrics = json.loads((run / "metrics.json").read_text())
    history = History.from_csv(run / "history.csv")
    assert f"{metrics['test_accuracy']:.2%}" in read.texts
    assert f"{metrics['test_loss']:.4f}" in read.texts
    rows = read.table("Epoch", "Loss", "Accuracy")
    assert [float(row[1]) for row in rows] == [float(f"{v:.5g}") for v in history["loss"]]
    lines = (run / "test_predictions.csv").read_text().splitlines()[1:]
    pairs = np.array([line.split(",")[1:3] for line in lines], int)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (pairs[:, 0], pairs[:, 1]), 1)
    cells = read.table("is ↓  taken for →")
    shown = [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in cells]
    assert shown == matrix.tolist()
    support = [int(row[4]) for row in read.table("Class", "Precision")]
    assert support == matrix.sum(axis=1).tolist()
    wrong = int((pairs[:, 0] != pairs[:, 1]).sum())
    assert len(read.table("Sample")) == wrong
    images = [attributes["alt"] for tag, attributes in read.tags if tag == "img"]
    assert sum("taken for" in alt for alt in images) == min(wrong, 24)
    assert sum(alt.startswith("filter ") for alt in images) == 16
    assert ["0", "Linear", "batch × 16", "1,040"] in read.table("Layer", "Kind")
    assert any(f"--config {run}/config.toml" in text for text in read.texts)
    assert "relu" in read.texts and "Reproduce" in read.texts


def test_the_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert main(["report", str(run), "--open"]) == 0
    assert (run / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert opened == [(run / "report.html").resolve().as_uri()]
    assert str(run / "report.html") in capsys.readouterr().out
    write_result(tmp_path / "found.json")
    assert main(["report", "found.json"]) == 0
    assert main(["report", "found.json", "--output", "other.html"]) == 0
    assert (tmp_path / "found.html").stat().st_size == (tmp_path / "other.html").stat().st_size
    capsys.readouterr()
    assert main(["report", "found.json", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == "found.html" and said["sections"][:2] == ["Summary", "Failures"]


@pytest.mark.parametrize(
    "what, change, said",
    [
        ("metrics.json", None, "is not a run folder: it has no metrics.json"),
        ("metrics.json", "{", "metrics.json is not a JSON file"),
        ("metrics.json", "[1]", "it is no JSON object"),
        ("metrics.json", '{"epochs": "<b>"}', "epochs must be a number, got '<b>'"),
        ("model.safetensors", None, "is not a run folder"),
        ("history.csv", None, "it has no history.csv"),
        ("history.csv", "epoch,loss\n1,x\n", "line 2: not a row of numbers"),
        ("history.csv", "epoch\n1\n", "line 2: there is no epoch or no loss"),
        ("test_predictions.csv", "row,label,prediction,probability\n1,2,3\n", "line 2"),
        ("test_predictions.csv", "row,label,prediction,probability\n1,2,3,7\n", "out of range"),
        ("config.toml", "job = ", "config.toml:1: this is not TOML"),
    ],
)
def test_damaged_runs(run, tmp_path, capsys, what, change, said):
    copy = shutil.copytree(run, tmp_path / "copy")
    if change is None:
        (copy / what).unlink()
    else:
        (copy / what).write_text(change)
    assert main(["report", str(copy)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (copy / "report.html").exists() or (run / "report.html").exists()


def test_without_the_data_the_rest_is_shown(run, monkeypatch):
    def missing(config):
        raise ImportError("needs scikit-learn")

    monkeypatch.setattr("gpunn.train.trained.TrainedModel.test_data", lambda self: missing(None))
    monkeypatch.setattr("gpunn.report.run._steps", lambda trained: None)
    read = check_whole(run_page(run).html())
    assert "The samples are not shown: needs scikit-learn." in read.texts
    assert not any("taken for" in a.get("alt", "") for tag, a in read.tags if tag == "img")
    assert read.table("Sample")


# ---- a report of one's own -----------------------------------------------------------------------


def history_of(training, validation, **more):
    history = History(
        [
            {"epoch": e, "loss": a, "validation_loss": b}
            for e, (a, b) in enumerate(zip(training, validation, strict=True), start=1)
        ]
    )
    for name, value in more.items():
        setattr(history, name, value)
    return history


@pytest.mark.parametrize(
    "history, kind, said",
    [
        (history_of([1, 0.5, 0.2, 0.1, 0.05], [1, 0.6, 0.7, 0.8, 0.9]), "warning",
         "Overfitting: the validation loss was lowest in epoch 2 (0.6) and 50% higher"),
        (history_of([1, 0.8, 0.6, 0.4, 0.2], [1, 0.9, 0.7, 0.5, 0.3]), "note", "still fell"),
        (history_of([1, float("nan")], [1, 1]), "bad", "loss is nan in epoch 2"),
        (history_of([1.0, 1.01, 1.0], [1, 1, 1]), "bad", "hardly learned"),
        (history_of([1, 0.5], [1, 0.5], interrupted=True), "warning", "interrupted"),
        (History([{"epoch": 1, "loss": 1.0}]), "note", "no validation data"),
        (History(), "warning", "holds no epoch"),
    ],
)  # fmt: skip
def test_findings(history, kind, said):
    html = Report("x", history=history).html()
    found = re.findall(r'<li class="(\w+)"><span class="badge">\w+</span> <span>(.*?)</span>', html)
    assert any(k == kind and said in text for k, text in found), found


def test_a_loss_that_rose_again_did_not_still_fall():
    history = history_of([2, 1.5, 1, 0.8, 0.7], [2, 1, 0.55, 0.528, 0.541])
    html = Report("x", history=history).html()
    assert "still fell" not in html
    better = history_of([2, 1.5, 1, 0.8], [1.9, 1, 0.5, 0.4])  # no ground between them to shade
    assert "overfitting gap" not in Report("x", history=better).html()
    assert "overfitting gap" in Report("x", history=history_of([1, 0.5], [1, 0.6])).html()


def test_report_of_ones_own(tmp_path):
    from gpunn.train.plots import plot_batches

    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    history = history_of([1, 0.5], [1, 0.6])
    report = Report(f"A {EVIL}", EVIL, history=history, facts={EVIL: EVIL, "on": True, "x": None},
                    command=f"python train.py '{EVIL}'")  # fmt: skip
    report.add_card("mean", "3")
    report.add_finding("good", EVIL)
    images = np.arange(3 * 64, dtype=np.float32).reshape(3, 8, 8)
    report.add_classification([0, 1, 1], [0, 0, 1], np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]),
                              names=[EVIL, "b"], images=images)  # fmt: skip
    report.add_model(model, (1, 8, 8))
    report.add_text("Notes", EVIL)
    report.add_table("Costs", ["a", EVIL], [[1, EVIL], [2, "y"]])
    report.add_figure("Batches", plot_batches([1.0, 0.5]), "the loss falls")
    report.write(tmp_path / "page.html")
    report.write(tmp_path / "again.html")  # no section twice
    text = (tmp_path / "page.html").read_text("utf-8")
    read = check_whole(text)
    assert text.count('id="reproduce"') == (tmp_path / "again.html").read_text().count(
        'id="reproduce"'
    )
    assert read.texts.count(EVIL) >= 4
    assert ["1", EVIL] in read.table("a")
    alts = [attributes["alt"] for tag, attributes in read.tags if tag == "img"]
    assert f"sample 1: a b taken for {EVIL}" in alts and "the loss falls" in alts
    assert "66.67%" in read.texts
    with pytest.raises(ValueError, match="predictions have shape"):
        report.add_classification([0, 1], [0])


# ---- a benchmark result --------------------------------------------------------------------------


def row(primitive, by, seconds, dtype="float32", peers=None, mode="stream", shape=(64, 32)):
    return Row(primitive, shape, dtype, "cuda", by, peers is not None, mode, "cold",
               (seconds, seconds), 3, 2e9, 1e8, 5e-5, "memory", peers or {})  # fmt: skip


def results():
    environment = {
        "machine": {"gpu": f"GPU {EVIL}", "cpu": "CPU", "memory_bytes": 1 << 34, "driver": None},
        "versions": {"python": "3.11", "torch": EVIL}, "commit": None, "clean": None,
        "date": "2026-11-26T06:00:00Z", "command": ["gpu.py", EVIL],
    }  # fmt: skip
    found = Results(environment, {})
    how = {"copy": "a copy", "float32": EVIL}
    found.ceilings = [Ceilings("cuda", 3e12, {"float32": 5e13}, how)]
    found.rows = [
        row("softmax_forward", "cuda", 1e-4, peers={"torch": 2.0, "cupy": 0.5}),
        row("softmax_forward", "cuda", 8e-5, peers={"torch": 2.5, "cupy": 0.5}, mode="graph"),
        row("matmul", "cuda", 5e-5, peers={"torch": 0.8}),
        row(EVIL, "cuda", 6e-5, dtype="bfloat16", peers={"torch": 4.0}),
        row("softmax_forward", "torch", 2e-4), row("matmul", "torch", 4e-5),
    ]  # fmt: skip
    found.not_timed = [NotTimed(f"c{n}", "torch", EVIL) for n in range(6)]
    found.tests = [{"stage": "parity", "item": EVIL, "passed": False, "checked": 9,
                    "failures": [{"case": "k", "reason": EVIL}]},
                   {"stage": "parity", "item": "b", "passed": True, "checked": 3,
                    "failures": []}]  # fmt: skip
    found.stages = [{"name": "parity", "state": "broke", "seconds": 2.0, "items": 2, "failed": 1,
                     "detail": EVIL, "not_run": {"t": "no time"}}]  # fmt: skip
    found.training = [
        {"job": "mlp", "batch": 8, "device": "cuda", "threads": 1, "contestant": name,
         "flops": 1e6, "median": seconds, "over_ours": seconds / 1e-4, "curve": [2.0, 1.0]}
        for name, seconds in (("gpunn", 1e-4), ("torch", 3e-4))
    ]  # fmt: skip
    found.training.append({"job": "mlp", "batch": 8, "device": "cuda", "threads": 1,
                           "contestant": "torch.compile", "reason": EVIL})  # fmt: skip
    found.products = [
        {"kind": "square", "key": f"64x64x64 NN {dtype}", "dtype": dtype, "kernel": "k<1>",
         "seconds": 1e-5, "tflops": 1.0, "ratio": ratio, "errors": {"gpunn": 2e-3, "torch": 1e-3}}
        for dtype, ratio in (("float32", 1.5), ("bfloat16", 0.75))
    ]  # fmt: skip
    return found


def write_result(path, **changes):
    path.write_text(json.dumps(results().to_json() | changes))
    return path


def test_page_of_a_result(tmp_path):
    html = result_page(write_result(tmp_path / "r.json")).html()
    read = check_whole(html)
    found = results()
    rows = read.table("Primitive", "Shape", "Dtype", "Median")
    assert [r[0] for r in rows] == [r.primitive for r in found.rows if r.ours]
    assert rows[1][:4] == ["softmax_forward", "64x32", "float32", "80.0 us"]
    assert rows[1][4:7] == ["62%", "2.50×", "0.50×"]
    dots = [attributes.get("data-tip", "") for tag, attributes in read.tags if tag == "circle"]
    mine = [tip for tip in dots if tip.startswith("softmax_forward 64x32") and "cuda" in tip]
    assert len(mine) == 2 and all("graph" in tip for tip in mine)  # wide and narrow, the faster
    assert any(tip.startswith("matmul, float32: 0.80× against torch") for tip in dots)
    assert read.table("Job", "Batch", "Peer over ours", "gpunn", "torch", "torch.compile") == [
        ["mlp", "8", "3.00×", "100 us", "300 us", "–"]]  # fmt: skip
    assert [r[4:6] + r[8:9] for r in read.table("Job", "Batch", "Device")] == [
        ["gpunn", "100 us", "1.00×"], ["torch", "300 us", "3.00×"],
        ["torch.compile", EVIL, ""]]  # fmt: skip
    assert read.table("M×N×K, layout") == [["square: 64x64x64 NN", "1.50×", "0.75×"]]
    assert ["torch", "6", EVIL, "c0, c1, c2, c3 and 2 more"] in read.table("Contestant")
    assert "1 failed" in read.texts and "of 2 items with 12 comparisons" in read.texts
    for said in (
        "Checks: 1 of 2 items failed: parity 1 of 2.",
        "Kernels: ours is faster than the fastest peer in 1 of 3, within 2% in 0, slower in 2; the "
        "slowest is softmax_forward float32 beside cupy, 0.50×.",
        "Training steps: ours is faster than the fastest peer in 1 of 1, within 2% in 0, "
        "slower in 0.",
        "This result is partial: 1 items were not run: parity 1.",
    ):
        assert said in read.texts, said
    geometric = (0.5 * 0.8 * 4.0) ** (1 / 3)
    assert f"{geometric:.2f}×" in read.texts
    assert "3,000 GB/s" in read.texts and "product: float32 50.0 TFLOP/s" in read.texts
    assert ["cuda", "float32", "50.0 TFLOP/s", EVIL] in read.table("Device", "Ceiling")


def test_many_failures_are_a_few_lines(tmp_path):
    names = [f"wgmma {n}x64 split{n}" for n in range(50)]
    tests = [
        {"stage": "matmul", "item": name, "passed": False, "checked": 2, "failures": [
            {"case": "a", "reason": f"Traceback:\n File\nAssertionError: {name} is off by {n}.5\n"},
            {"case": "b", "reason": "out of memory"}]}
        for n, name in enumerate(names)
    ]  # fmt: skip
    tests += [{"stage": "graphs", "item": "empty", "passed": False, "failures": []},
              {"stage": "graphs", "item": "says", "passed": False, "detail": "3 of 4"},
              {"stage": "graphs", "item": "fine", "passed": True}]  # fmt: skip
    found = results()
    found.tests, found.training = tests, []
    found.not_timed = [
        NotTimed(f"{name} 64x32 float32", "triton", f"there is no kernel of {name} here")
        for name in ("relu", "softmax")
    ]
    left = {f"case {n}": "no time" for n in range(900)}
    found.stages = [{"name": "bench", "state": "partly", "seconds": 1.0, "items": 1, "failed": 0,
                     "detail": "", "not_run": left}]  # fmt: skip
    path = tmp_path / "r.json"
    path.write_text(json.dumps(found.to_json()))
    read = check_whole(result_page(path).html())
    assert [row[:3] for row in read.table("Stage", "Items", "What")] == [
        ["matmul", "50", "AssertionError: … is off by …"], ["matmul", "50", "out of memory"],
        ["graphs", "1", "no reason is recorded"], ["graphs", "1", "3 of 4"]]  # fmt: skip
    assert "Checks: 52 of 53 items failed: matmul 50 of 50, graphs 2 of 3." in read.texts
    folds = ["open" in attributes for tag, attributes in read.tags if tag == "details"]
    assert folds == [False] * (1 + 40 + 1) + [True] * 2  # those of "graphs" inside of its own
    assert "matmul: 50 items, with the messages" in read.texts
    assert f"matmul: {names[3]}" in read.texts and "… and 10 more in the file." in read.texts
    assert read.table("Contestant") == [
        ["triton", "2", "there is no kernel of … here",
         "relu 64x32 float32, softmax 64x32 float32"]]  # fmt: skip
    assert read.table("Stage", "Items", "Why") == [
        ["bench", "900", "no time", "case 0, case 1, case 2, case 3 and 896 more"]]  # fmt: skip


def test_roofline_without_what_is_far_below(tmp_path):
    found = results()
    tiny = row("advance_step", "cuda", 1.0, dtype="-", peers={})
    found.rows = [row("relu", "cuda", 1e-4, peers={"torch": 1.0}), tiny]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(found.to_json()))
    text = " ".join(check_whole(result_page(path).html()).texts)
    assert "Not drawn, as it is far below the roof: advance_step." in text
    found.rows = [tiny]  # alone it is drawn
    path.write_text(json.dumps(found.to_json()))
    text = " ".join(check_whole(result_page(path).html()).texts)
    assert "Not drawn" not in text and "advance_step" in text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"dry_run": True}, "is a dry run"),
        ({"version": 2}, "written in version 2 of the format"),
        ({"format": "x"}, "not a benchmark result of gpunn"),
        ({"rows": [{"primitive": 1}]}, "has no 'shape'"),
        ({"rows": "none"}, "r.json"),
        ({"ceilings": [{"device": "cuda", "copy": "fast", "rates": {}, "how": {}}]}, "damaged"),
        ({"tests": [{"passed": False}]}, "damaged: has no 'stage'"),
        ({"training": [3]}, "damaged"),
        ({"machine": {}}, "damaged: has no 'cpu'"),
    ],
)
def test_damaged_results(tmp_path, capsys, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    path = write_result(tmp_path / "r.json", **changes)
    with pytest.raises(ResultError, match=re.escape(said)):
        result_page(path)
    assert main(["report", "r.json"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_wrong_paths(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no JSON")
    write_result(tmp_path / "r.json")
    for arguments, said in (
        (["nothing"], "nothing does not exist"),
        (["empty"], "empty is not a run folder"),
        (["text.json"], "text.json: this is not JSON"),
        (["r.json", "--output", "none/x.html"], "does not exist"),
        (["r.json", "--output", "x.pdf"], "use the suffix .html"),
    ):
        assert main(["report", *arguments]) == 2
        assert said in capsys.readouterr().err


# ---- the drawing ---------------------------------------------------------------------------------


def test_axes_and_elements():
    assert linear_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(-7, 23) == [-5, 0, 5, 10, 15, 20]
    assert Axis(1, 1e6, 0, 60, True).ticks(6) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]
    assert Axis(0.4, 3, 0, 60, True).ticks() == pytest.approx([0.5, 0.7, 1, 1.5, 2, 3])
    assert Axis(1, 100, 10, 30, True).at(10) == pytest.approx(20)
    assert Axis(2, 4, 100, 0).at(3) == 50
    assert np.isnan(Axis(1, 100, 0, 1, True).at(0))
    low, high = span([5.0, 5.0])
    assert low < 5 < high
    assert [short(v) for v in (0.0005, 1234, 25_000, 3e12, 0.25, 1e-7)] == [
        "0.0005", "1234", "25k", "3T", "0.25", "1e-07"]  # fmt: skip
    assert path_of([0, 1, float("nan"), 3], [1, 2, 3, 4]) == "M0 1L1 2M3 4"
    assert element("text", "<b>", x=1.25, class_="a", data_tip='"') == (
        '<text x="1.2" class="a" data-tip="&#34;">&lt;b&gt;</text>'
    )
