"""Every example: a few steps of it, what its run folder holds, the table made of the results."""

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.cli.main import main
from gpunn.cli.outcome import print_predictions, stream
from gpunn.cli.predict import target
from gpunn.train import Job, Outcome, Trainer, check, find_job, job_names, run_job, setting
from gpunn.train.checkpointing import locked
from gpunn.train.configuration import build, read_config
from gpunn.train.job_runs import evaluate_run, resume_job
from gpunn.train.run import Run
from gpunn.train.scripts import script_paths

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
spec = importlib.util.spec_from_file_location("gallery", EXAMPLES / "gallery.py")
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


@pytest.mark.parametrize("name", script_paths())
def test_every_example(name, tmp_path, capsys):
    job = find_job(name)
    assert job.name == name and job.use in gallery.USES
    for variant, changes in job.variants.items():
        assert isinstance(job.configure(**changes), job.config), variant
    config = job.configure(**{**job.quick, **list(job.variants.values())[-1]}, device="cpu")
    result = run_job(job, config, tmp_path / "run", verbose=False)
    folder, outcome = result.folder, result.outcome
    assert result.notes == [] and not result.metrics["interrupted"]
    assert outcome.samples > 0 and outcome.baselines
    # The folder says all: the configuration, and measuring again gives what was measured.
    file = read_config(folder)
    assert build(job.config, [file.layer()], file.problems) == result.config
    assert evaluate_run(folder) == outcome
    assert list(folder.glob("history*.csv")) and list(folder.glob("*.png"))
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert outcome.metric[1:] in page and "data:image/png" in page
    assert main(["train", name, "--set", "seed=-1"]) == 2
    assert "seed is -1; it must be 0 or more" in capsys.readouterr().err
    if job.predict is None:
        assert main(["predict", str(folder), "x"]) == 2
        assert "predicts nothing" in capsys.readouterr().err


def test_the_table_is_of_the_results():
    for page, places in gallery.PAGES.items():
        inside = page.read_text("utf-8").partition(gallery.BEGIN)[2].partition(gallery.END)[0]
        assert inside.strip() == gallery.block(*places)
    found = gallery.results()
    shown = {(one["job"], one["variant"]) for one in found}
    assert shown == {(name, v) for name in script_paths() for v in find_job(name).variants}
    for one in found:
        assert len(one["values"]) == 3 and np.isfinite(one["values"]).all()


def test_what_the_pages_say(tmp_path, monkeypatch):
    assert gallery.spread([0.04, 0.05, 0.06], "°C") == "0.0500 ± 0.0100 °C"
    assert gallery.spread([25.0, 25.0]) == "25.0"
    monkeypatch.setattr(gallery, "PICTURES", tmp_path)
    for name in ("GPT-curves-a", "GPT-curves-b", "GPT-roc", "x"):
        (tmp_path / f"text-{name}.png").touch()
    mine = gallery.pictures_of("text", "GPT")
    assert [path.name for path in gallery.one_curve(mine)] == [
        "text-GPT-curves-a.png", "text-GPT-roc.png",
    ]  # fmt: skip
    assert [path.name for path in gallery.pictures_of("text", "")] == ["text-x.png"]


def test_the_list_of_jobs(capsys):
    assert main(["train", "--list", "--json"]) == 0
    lines = {one["job"]: one["about"] for one in json.loads(capsys.readouterr().out)["jobs"]}
    assert list(lines) == job_names() and all(lines.values())
    assert main(["train", "image"]) == 2
    assert "did you mean images?" in capsys.readouterr().err


def test_a_script_of_ones_own(tmp_path, monkeypatch, capsys):
    code = (EXAMPLES.parent / "docs" / "gallery.md").read_text("utf-8")
    code = code.partition("```python\n")[2].partition("with tempfile")[0]
    (tmp_path / "waves.py").write_text(f'"""Waves."""\n{code}', "utf-8")
    (tmp_path / "other.py").write_text("import missing\n", "utf-8")
    monkeypatch.setenv("GPUNN_JOBS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    script_paths.cache_clear()
    try:
        assert main(["train", "waves", "--epochs", "2", "--output", "run", "--quiet"]) == 0
        assert main(["evaluate", "run", "--at-least", "1e-6"]) == 1
        assert "mean squared error" in capsys.readouterr().out
        (tmp_path / "waves.py").rename(tmp_path / "seas.py")
        script_paths.cache_clear()
        assert main(["train", "seas"]) == 2
        assert "must be named 'seas' as its script" in capsys.readouterr().err
        monkeypatch.setenv("GPUNN_JOBS", str(tmp_path / "none"))
        script_paths.cache_clear()
        assert main(["train", "seas"]) == 2
        assert "which does not exist" in capsys.readouterr().err
    finally:
        script_paths.cache_clear()


# ---- the frame in which examples run, on a job that is made here ---------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = setting(0, "seed", low=0)
    device: str = setting("cpu", "where to train")

    def __post_init__(self):
        check(self)


class Memory:
    """Something of a job's own that changes from one iteration to the next."""

    def __init__(self):
        self.values = np.zeros(3, np.float32)

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values = np.array(state["values"])


class Line:
    """A job with two trainings, one of them a loop of its own, that fails where it is told to."""

    def __init__(self):
        self.stop_epoch = self.stop_iteration = self.signal_iteration = self.stop_measuring = None
        self.trained = 0

    def train(self, run):
        self.trained += 1
        x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
        model = nn.Linear(1, 1)
        trainer = Trainer(
            model, nn.MSELoss(), lambda p: optim.AdamW(p, lr=0.1), device=run.device, seed=1
        )
        line = self

        class Stop(gpunn.train.Callback):
            def on_epoch_end(self, trainer, epoch, record):
                if epoch == line.stop_epoch:
                    raise KeyboardInterrupt

        trainer.callbacks.append(Stop())
        run.fit(trainer, (x, 2 * x), epochs=4)
        memory, optimizer = Memory(), optim.SGD(model.parameters(), lr=0.01)
        parts = {"model": model, "optimizer": optimizer, "memory": memory}
        for number, record in run.loop(7, "loop", every=2, **parts):
            if number == self.stop_iteration:
                raise KeyboardInterrupt
            if number == self.signal_iteration:
                signal.raise_signal(signal.SIGINT)  # heeded when the iteration is done
            loss = ((model(gpunn.tensor(x)) - gpunn.randn(40, 1)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            memory.values = memory.values + gpunn.randn(3).numpy()
            record["loss"] = loss.item()
        run.save("model", model)
        run.save("memory", {"values": memory.values})

    def evaluate(self, run):
        if self.stop_measuring:
            raise self.stop_measuring
        model = run.load("model", into=nn.Linear(1, 1))
        values = run.load("memory")["values"]
        value = float(model.weight.detach().numpy()[0, 0]) + float(values.sum())
        return Outcome("slope", value, {"nothing": 0.0}, 40, more={"undefined": None})

    def job(self):
        return Job("line", "A line", "a line", "made here", Config, self.train, self.evaluate)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line") / "whole"
    return run_job(Line().job(), Config(), folder, verbose=False)


@pytest.mark.parametrize(
    "at",
    [{"stop_epoch": 2}, {"stop_iteration": 5}, {"stop_iteration": 1}, {"signal_iteration": 2}],
)
def test_an_interrupted_run_ends_as_the_other(at, whole, tmp_path, monkeypatch):
    line = Line()
    monkeypatch.setattr("gpunn.train.job_runs.find_job", lambda name: line.job())
    for name, value in at.items():
        setattr(line, name, value)
    folder = tmp_path / "cut"
    cut = run_job(line.job(), Config(), folder, verbose=False)
    assert cut.outcome is None and cut.metrics["interrupted"]
    with pytest.raises(FileNotFoundError, match="the run is not complete. Go on with"):
        evaluate_run(folder)
    if "signal_iteration" in at:
        assert len(gpunn.train.History.from_csv(folder / "history-loop.csv")) == 3
    line.stop_epoch = line.stop_iteration = line.signal_iteration = None
    result = resume_job(folder, verbose=False)
    assert result.outcome.value == whole.outcome.value and not result.metrics["interrupted"]
    for name in ("history.csv", "history-loop.csv"):
        histories = [gpunn.train.History.from_csv(place / name) for place in (folder, whole.folder)]
        losses = [history["loss"] for history in histories]
        assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="is complete; there is nothing to go on with"):
        resume_job(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ModuleNotFoundError("No module 'x'")])
def test_a_run_that_is_stopped_while_it_is_measured_is_only_measured(error, tmp_path, monkeypatch):
    line, folder = Line(), tmp_path / "run"
    monkeypatch.setattr("gpunn.train.job_runs.find_job", lambda name: line.job())
    line.stop_measuring = error
    if isinstance(error, KeyboardInterrupt):
        assert run_job(line.job(), Config(), folder, verbose=False).outcome is None
    else:
        with pytest.raises(ModuleNotFoundError) as found:
            run_job(line.job(), Config(), folder, verbose=False)
        assert "gpunn[gallery]" in found.value.__notes__[0]
        assert f"go on with gpunn train --resume {folder}" in found.value.__notes__[1]
    line.stop_measuring = None
    handle = locked(folder, "")
    with pytest.raises(BlockingIOError, match="another process is at work on the run in"):
        resume_job(folder, verbose=False)
    os.close(handle)
    result = resume_job(folder, verbose=False)
    assert line.trained == 1 and not result.metrics["interrupted"]
    assert "NaN" not in (folder / "metrics.json").read_text("utf-8")
    assert "trained" not in result.metrics and result.metrics["seconds"] > 0
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "not defined" in page and "Whether it would be with another seed" in page


def test_predictions_become_plain_and_their_file_gets_a_name(tmp_path, capsys):
    args = argparse.Namespace(output=None, data="and/or", json=False, folder=tmp_path, quiet=False)
    assert target(args) == tmp_path / "predictions-and-or.csv"
    args.data = "x" * 5000  # no file could be named so
    assert target(args) == tmp_path / f"predictions-{'x' * 40}.csv"
    piece = {"a": np.float32(0.5), "b": float("nan"), "text": "two\nlines"}
    rows, text = stream(iter([piece, "one ", "two"]), show=True)
    assert rows == [{"a": 0.5, "b": None, "text": "two\nlines"}] and text == "one two"
    args.rows = 10
    print_predictions(args, rows)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["0.5000", "two", "lines"]


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path):
    def fail(run):
        raise ImportError("the data are missing")

    job = dataclasses.replace(Line().job(), train=fail)
    with pytest.raises(ImportError, match="missing"):
        run_job(job, Config(), tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_outcomes_and_runs_refuse(tmp_path):
    with pytest.raises(ValueError, match="needs a baseline and samples"):
        Outcome("accuracy", 0.9, {}, 10)
    with pytest.raises(ValueError, match="chance is nan"):
        Outcome("accuracy", 0.9, {"chance": float("nan")}, 10)
    assert Outcome("error", 1.0, {"other": 2.0}, 3, higher_is_better=False).wins
    assert not Outcome("accuracy", 0.9, {"a": 0.8, "b": 0.95}, 3).wins
    numbers = Outcome("x", np.float32(1), {"y": np.float64(2)}, np.int64(3), notes="one")
    assert json.loads(json.dumps(dataclasses.asdict(numbers)))["notes"] == ["one"]
    with pytest.raises(TypeError, match="its config has no field device"):
        dataclasses.replace(Line().job(), config=dataclasses.make_dataclass("C", ["seed"]))
    with pytest.raises(ValueError, match="a job's name is of letters"):
        dataclasses.replace(Line().job(), name="a/b")
    run = Run(Line().job(), Config(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        run.load("model", into=nn.Linear(1, 1))
    run.save("model", nn.Linear(2, 1))
    with pytest.raises(ValueError, match="does not fit its configuration"):
        run.load("model", into=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="count and every must be 1 or more"):
        next(run.loop(0))
