"""The digits job: real data, real accuracy, and a run folder that reproduces it bit for bit."""

import json
import sys

import numpy as np
import pytest

from gpunn import io
from gpunn.train import (
    JOBS,
    DigitsConfig,
    EarlyStopping,
    History,
    TrainedModel,
    TrainingError,
    classification,
    resume_job,
    run_job,
)
from gpunn.train.configuration import build, read_config
from gpunn.train.jobs import split_digits

pytest.importorskip("sklearn")

QUICK = DigitsConfig(seed=5, device="cpu", hidden=(32,), epochs=3, limit=300, patience=2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_job(JOBS["digits"], QUICK, tmp_path_factory.mktemp("run") / "quick", verbose=False)


def test_the_default_reaches_its_accuracy(tmp_path):
    config = DigitsConfig(device="cpu")
    result = run_job(JOBS["digits"], config, tmp_path / "run", verbose=False)
    assert result.metrics["test_accuracy"] >= 0.97
    assert result.metrics["test_samples"] == 359 and result.metrics["seconds"] < 60
    assert result.history.best_epoch == result.metrics["best_epoch"]


def test_split_is_disjoint_and_stratified():
    split, rows = split_digits(DigitsConfig(seed=3))
    assert [len(part[1]) for part in split] == [1222, 216, 359] and len(rows) == 359
    assert np.all(np.abs(np.bincount(split.test[1]) - 36) <= 2)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    assert np.array_equal(split.test[0], x[rows]) and np.array_equal(split.test[1], y[rows])
    limited, _ = split_digits(DigitsConfig(seed=3, limit=200))
    assert sum(len(part[1]) for part in limited) == 200


def test_files_of_the_run_folder(quick):
    names = sorted(path.name for path in quick.folder.iterdir())
    assert names == [
        "checkpoints", "config.toml", "confusion_matrix.png", "curves.png", "history.csv",
        "metrics.json", "model.safetensors", "normalizer.safetensors", "test_predictions.csv",
    ]  # fmt: skip
    assert quick.notes == []
    assert json.loads((quick.folder / "metrics.json").read_text()) == quick.metrics
    history = History.from_csv(quick.folder / "history.csv")
    np.testing.assert_equal(history.records, quick.history.records)
    for name in ("curves.png", "confusion_matrix.png"):
        assert (quick.folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert quick.confusion.sum() == quick.metrics["test_samples"]
    accuracy = np.trace(quick.confusion) / quick.confusion.sum()
    assert accuracy == quick.metrics["test_accuracy"]


def test_predictions_file(quick):
    lines = (quick.folder / "test_predictions.csv").read_text().splitlines()
    assert lines[0] == "row,label,prediction,probability"
    table = np.array([line.split(",") for line in lines[1:]], float)
    assert np.mean(table[:, 1] == table[:, 2]) == pytest.approx(quick.metrics["test_accuracy"])
    assert np.all((table[:, 3] > 0.09) & (table[:, 3] <= 1))


def test_the_configuration_reproduces_the_run(quick, tmp_path):
    file = read_config(quick.folder / "config.toml")
    job = file.job
    config = build(JOBS[job].config, [file.layer()])
    again = run_job(JOBS[job], config, tmp_path / "again", verbose=False)
    one, two = (io.load_arrays(r.folder / "model.safetensors") for r in (quick, again))
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert again.metrics["test_accuracy"] == quick.metrics["test_accuracy"]
    other = run_job(JOBS[job], JOBS[job].configure(config, seed=6), tmp_path / "o", verbose=False)
    assert io.load_arrays(other.folder / "model.safetensors")["0.weight"].tobytes() != (
        one["0.weight"].tobytes()
    )


def test_load_predicts_as_it_did(quick):
    loaded = TrainedModel.load(quick.folder, "cpu")
    assert loaded.config == quick.trained.config and loaded.job is JOBS["digits"]
    x, y, rows = loaded.test_data()
    probabilities = loaded.probabilities(x)
    assert np.array_equal(probabilities, quick.trained.probabilities(x))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(probabilities, loaded.probabilities(x.reshape(-1, 8, 8)))
    assert np.allclose(probabilities, loaded.probabilities(x, batch_size=7), atol=1e-5)
    result = loaded.evaluate(x, y)
    assert result["accuracy"] == quick.metrics["test_accuracy"]
    own = probabilities[range(len(y)), y]
    assert result["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert len(rows) == len(y)
    with pytest.raises(ValueError, match=r"shape \(3, 63\); expected \(samples, 64\)"):
        loaded.probabilities(np.zeros((3, 63)))
    assert loaded.doubt(x) is None
    assert "Are they in the same units?" in loaded.doubt(x / 16)


def test_load_refuses(quick, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TrainedModel.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="not a run folder: it has no model"):
        TrainedModel.load(tmp_path)
    normalizer = (quick.folder / "normalizer.safetensors").read_bytes()
    (tmp_path / "normalizer.safetensors").write_bytes(normalizer)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(io.FileFormatError):
        TrainedModel.load(tmp_path)
    io.save({"w": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="names no job"):
        TrainedModel.load(tmp_path)
    about = io.load_metadata(quick.folder / "model.safetensors")
    io.save({"w": np.zeros(2)}, tmp_path / "model.safetensors", about)
    with pytest.raises(ValueError, match="does not fit its configuration"):
        TrainedModel.load(tmp_path)


def test_missing_packages_leave_out_only_their_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run_job(JOBS["digits"], QUICK, tmp_path / "run", verbose=False)
    assert len(result.notes) == 1 and "pip install matplotlib" in result.notes[0]
    assert TrainedModel.load(result.folder, "cpu").config == result.trained.config


def test_describes_itself(tmp_path):
    lines = []
    run_job(JOBS["digits"], QUICK, tmp_path / "run", verbose=True, say=lines.append)
    text = "\n".join(lines)
    assert "300 images of 8 x 8, 10 classes" in text and "64 - 32 - 10" in text
    assert "2,410 parameters" in text and "device      cpu" in text


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path, monkeypatch):
    config = JOBS["digits"].configure(QUICK, learning_rate=1e30)
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="learning rate"):
        run_job(JOBS["digits"], config, tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()

    def diverges(self, trainer, epoch):
        if epoch == 2:
            raise TrainingError("the loss became nan")

    monkeypatch.setattr(EarlyStopping, "on_epoch_begin", diverges)  # what was before is kept
    with pytest.raises(TrainingError) as raised:
        run_job(JOBS["digits"], QUICK, tmp_path / "run", verbose=False)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert "The last checkpoint before is" in raised.value.__notes__[0]


def test_a_killed_run_goes_on_and_ends_the_same(quick, tmp_path, monkeypatch):
    """It is stopped twice: by an error in the middle of an epoch, and while results are written."""
    folder, writes = tmp_path / "run", classification.write_results

    def stop(*arguments, **options):
        raise MemoryError("no room")

    def dies_in_epoch_2(self, trainer, epoch, record):
        plain(self, trainer, epoch, record)
        if epoch == 2:
            stop()

    plain = EarlyStopping.on_epoch_end
    with monkeypatch.context() as patch, pytest.raises(MemoryError) as raised:
        patch.setattr(EarlyStopping, "on_epoch_end", dies_in_epoch_2)
        run_job(JOBS["digits"], QUICK, folder, verbose=False)
    assert f"go on with gpunn train --resume {folder}" in raised.value.__notes__[0]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.toml"]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(classification, "write_results", stop)
        resume_job(folder, verbose=False)
    assert classification.write_results is writes and not (folder / "metrics.json").exists()
    result = resume_job(folder, verbose=False)
    for name in ("model.safetensors", "config.toml", "test_predictions.csv"):
        assert (folder / name).read_bytes() == (quick.folder / name).read_bytes(), name
    same = {"seconds": 0}
    assert result.metrics | same == quick.metrics | same
    for one, other in zip(result.history, quick.history, strict=True):
        assert one | same == other | same
    with pytest.raises(ValueError, match="is complete .3 epochs.; there is nothing to go on with"):
        resume_job(folder)
    (tmp_path / "empty").mkdir()
    for name, match in (("none", "does not exist"), ("empty", "has no checkpoints")):
        with pytest.raises(FileNotFoundError, match=match):
            resume_job(tmp_path / name)
