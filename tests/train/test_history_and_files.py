"""History, run folders, configurations as TOML, and the pictures."""

import dataclasses
import sys

import numpy as np
import pytest

from gpunn.train import DigitsConfig, find_job, run_folder
from gpunn.train.history import History, resolve_mode
from gpunn.train.plots import confusion_matrix_figure, save_figure, training_curves

RECORDS = [
    {"epoch": 1, "loss": 2.0, "accuracy": 0.1, "validation_loss": 0.1 + 0.2, "seconds": 1.0},
    {"epoch": 2, "loss": 1.0, "accuracy": 0.5, "validation_loss": float("nan"), "seconds": 1.0},
    {"epoch": 3, "loss": 0.5, "accuracy": 0.5, "validation_loss": 1 / 3, "seconds": 1.0},
]


def test_history_reads_by_name_and_place():
    history = History(RECORDS)
    assert len(history) == 3 and history["loss"] == [2.0, 1.0, 0.5]
    assert history[-1]["epoch"] == 3 and [r["epoch"] for r in history[:2]] == [1, 2]
    assert "accuracy" in history and "auc" not in history
    assert history.best()["epoch"] == 1  # NaN is never the best
    assert history.best("accuracy")["epoch"] == 2  # the first of equals
    assert history.best("loss", mode="max")["epoch"] == 1
    assert "3 epochs" in repr(history) and repr(History()) == "History(no epochs)"
    with pytest.raises(KeyError, match="no 'auc'; it has epoch, loss"):
        history["auc"]
    with pytest.raises(ValueError, match="no finite"):
        History([{"loss": float("nan")}]).best("loss")


def test_modes():
    assert resolve_mode("validation_accuracy") == "max" and resolve_mode("loss") == "min"
    assert resolve_mode("top_5_accuracy") == resolve_mode("r2") == "max"
    assert resolve_mode("accuracy", "min") == "min"
    with pytest.raises(ValueError, match="'auto', 'min' or 'max'"):
        resolve_mode("loss", "low")


def test_history_csv_reads_back_exactly(tmp_path):
    path = tmp_path / "history.csv"
    text = History(RECORDS).to_csv(path)
    assert text.splitlines()[0] == "epoch,loss,accuracy,validation_loss,seconds"
    assert path.read_text() == text
    back = History.from_csv(path)
    np.testing.assert_equal(back.records, RECORDS)
    assert isinstance(back[0]["epoch"], int)
    path.write_text("epoch,loss\n1,x\n")
    with pytest.raises(ValueError, match="line 2"):
        History.from_csv(path)


def test_curves(tmp_path):
    history = History(RECORDS)
    figure = history.plot(tmp_path / "curves.png")
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Accuracy"]
    loss = figure.axes[0]
    assert [line.get_label() for line in loss.lines][:2] == ["training", "validation"]
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.5]
    assert any("best epoch, 1" in text.get_text() for text in loss.get_legend().get_texts())
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(ValueError, match="suffix such as .png"):
        history.plot(tmp_path / "curves.docx")
    with pytest.raises(ValueError, match="empty"):
        training_curves(History())


def test_confusion_matrix_picture(tmp_path):
    figure = confusion_matrix_figure(np.array([[3, 1], [0, 4]]), ["cat", "dog"])
    (axes,) = figure.axes
    assert "accuracy 0.8750 (7 of 8)" in axes.get_title()
    assert sorted(text.get_text() for text in axes.texts) == ["1", "3", "4", "·"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    save_figure(figure, tmp_path / "m.svg")
    assert b"<svg" in (tmp_path / "m.svg").read_bytes()
    with pytest.raises(ValueError, match="square"):
        confusion_matrix_figure(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 labels"):
        confusion_matrix_figure(np.zeros((2, 2)), ["a"])


def test_pictures_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        History(RECORDS).plot()


def test_run_folders_are_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {run_folder.new_run_folder("digits") for _ in range(4)}
    assert len(folders) == 4 and all(f.is_dir() and f.parent.name == "runs" for f in folders)
    made = run_folder.new_run_folder("digits", tmp_path / "a" / "b")
    assert made.is_dir() and run_folder.new_run_folder("digits", made) == made  # still empty
    (made / "file").write_text("")
    with pytest.raises(FileExistsError, match="no run is overwritten"):
        run_folder.new_run_folder("digits", made)
    with pytest.raises(FileExistsError, match="exists already"):
        run_folder.new_run_folder("digits", made / "file")


def test_jobs():
    job = find_job("digits")
    config = job.configure(epochs=3, seed=None)
    assert config == dataclasses.replace(DigitsConfig(), epochs=3)
    with pytest.raises(ValueError, match="no training job 'digit'; did you mean digits"):
        find_job("digit")


def test_json(tmp_path):
    run_folder.write_json(tmp_path / "m.json", {"a": 0.1, "b": None})
    assert run_folder.read_json(tmp_path / "m.json") == {"a": 0.1, "b": None}
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        run_folder.read_json(tmp_path / "m.json")
