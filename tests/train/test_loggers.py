"""Loggers: what their files hold, read back by others, also after a run was broken off."""

import json
import math

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.train import (
    Callback,
    GradientWatch,
    JSONLinesLogger,
    TensorBoardLogger,
    Trainer,
    read_json_lines,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((24, 6)).astype(np.float32)
Y = rng.integers(0, 3, 24)


def make(*callbacks, metrics=("accuracy",), **options):
    gpunn.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return Trainer(
        model, nn.CrossEntropyLoss(), optimizer, metrics, list(callbacks), seed=1, **options
    )


def fit(trainer, epochs=3, **options):
    return trainer.fit((X, Y), (X, Y), epochs=epochs, batch_size=8, verbose=False, **options)


class Stop(Callback):
    """Breaks off as a killed process would: without anybody being told."""

    def __init__(self, epoch, step):
        self.place = (epoch, step)

    def on_batch_end(self, trainer, epoch, step):
        if (epoch, step) == self.place:
            raise MemoryError


# ---- JSON lines ----------------------------------------------------------------------------------


def test_json_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    history = fit(make(JSONLinesLogger(path, every=2)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    places = [(line["kind"], line["epoch"], line["step"]) for line in lines]
    assert places == [
        ("step", 1, 2), ("epoch", 1, 3), ("step", 2, 4), ("step", 2, 6), ("epoch", 2, 6),
        ("step", 3, 8), ("epoch", 3, 9),
    ]  # fmt: skip
    epochs = read_json_lines(path, "epoch")
    assert [{k: v for k, v in e.items() if k not in ("kind", "step")} for e in epochs] == list(
        history
    )
    assert set(lines[0]) == {"kind", "step", "epoch", "loss", "accuracy", "learning_rate"}
    assert lines[0]["learning_rate"] == 0.1


def test_json_lines_append_and_torn_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    fit(make(JSONLinesLogger(path)), 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "epo')
    assert len(read_json_lines(path)) == 2
    trainer = make(JSONLinesLogger(path, append=True))
    fit(trainer, 1)
    assert path.read_bytes().startswith(whole)
    assert [line["step"] for line in read_json_lines(path)] == [3, 6, 9]
    fit(make(JSONLinesLogger(path)), 1)
    assert len(read_json_lines(path)) == 1  # begun anew
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="log.jsonl, line 1: not a JSON object"):
        fit(make(JSONLinesLogger(path, append=True)), 1)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fit(make(JSONLinesLogger(tmp_path / "none" / "log.jsonl")), 1)
    with pytest.raises(ValueError, match="every must be 1 or more"):
        JSONLinesLogger(path, every=0)


def test_json_knows_no_nan(tmp_path):
    path = tmp_path / "log.jsonl"
    trainer = make(JSONLinesLogger(path), metrics=["auc"])
    trainer.fit((X, np.zeros(24, int)), epochs=1, verbose=False)
    assert '"auc": null' in path.read_text() and math.isnan(read_json_lines(path)[0]["auc"])


@pytest.mark.parametrize("place", [(2, 2), (2, 1), (3, 3)])
def test_json_lines_go_on_without_doubles(tmp_path, place):
    def known(path):
        return [{k: v for k, v in e.items() if k != "seconds"} for e in read_json_lines(path)]

    path, whole = tmp_path / "log.jsonl", tmp_path / "whole.jsonl"
    fit(make(JSONLinesLogger(whole, every=1)))
    steps = {"checkpoint": gpunn.train.Checkpoints(tmp_path / "run", steps=2), "resume": "auto"}
    with pytest.raises(MemoryError):
        fit(make(JSONLinesLogger(path, every=1), Stop(*place)), **steps)
    lost = len(known(path))
    fit(make(JSONLinesLogger(path, every=1)), **steps)
    assert lost < len(known(path)) and known(path) == known(whole)


def test_no_steps_are_asked_for_without_every(tmp_path):
    """Loggers of epochs leave small networks to one kernel."""
    logger = JSONLinesLogger(tmp_path / "log.jsonl")
    trainer = make(logger, GradientWatch(every=None), fused=True)
    fit(trainer, 2)
    assert trainer.way == "one kernel"
    assert [line["step"] for line in read_json_lines(tmp_path / "log.jsonl")] == [3, 6]
    with pytest.raises(ValueError, match="JSONLinesLogger wants to see every step"):
        fit(make(JSONLinesLogger(tmp_path / "log.jsonl", every=2), fused=True))


# ---- TensorBoard ---------------------------------------------------------------------------------


def read_back(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(
        str(folder), {name: 0 for name in ("scalars", "histograms", "images", "tensors")}
    )
    events.Reload()
    return events


def scalars(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_event_files_are_read_by_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    watch = GradientWatch(every=3, bins=16)
    logger = TensorBoardLogger(
        tmp_path / "run",
        every=2,
        watch=watch,
        images=3,
        image_shape=(2, 3),
        text={"note": "first *try*"},
    )
    trainer = make(logger, metrics=["accuracy", "confusion_matrix"])
    history = fit(trainer)
    events = read_back(tmp_path / "run")
    for name in ("loss", "accuracy"):
        for kind, values in (
            ("training", history[name]), ("validation", history[f"validation_{name}"])
        ):  # fmt: skip
            found = scalars(events, f"{name}/{kind}")
            assert found == [(3 * (i + 1), pytest.approx(v)) for i, v in enumerate(values)]
    assert scalars(events, "epoch") == [(3, 1), (6, 2), (9, 3)]
    assert [step for step, _ in scalars(events, "step/loss")] == [2, 4, 6, 8]
    assert scalars(events, "step/learning_rate")[0][1] == pytest.approx(0.1)
    found = events.Histograms("weights/0.weight")
    assert [event.step for event in found] == [3, 6, 9]
    weight = trainer.model[0].weight.detach().numpy()
    last = found[-1].histogram_value
    assert last.num == sum(last.bucket) == 30 and last.min == pytest.approx(weight.min())
    assert last.sum == pytest.approx(weight.sum(), rel=1e-6)
    counts = np.histogram(weight, 16)[0]
    assert list(last.bucket) == list(counts)
    assert len(events.Histograms("gradients/2.bias")) == 3
    norms = scalars(events, "weights_norm/0.weight")
    assert norms[-1] == (9, pytest.approx(np.linalg.norm(weight)))
    assert set(events.Tags()["images"]) == {"filters", "confusion_matrix"}
    picture = events.Images("confusion_matrix")[0]
    assert picture.encoded_image_string[:4] == b"\x89PNG" and picture.width > 100
    text = events.Tensors("note/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"first *try*"
    model = events.Tensors("model/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "Linear(in_features=6" in model
    assert len(list((tmp_path / "run").iterdir())) == 1


@pytest.mark.parametrize("place", [(2, 2), (3, 3)])
def test_event_files_take_back_what_was_lost(tmp_path, place):
    pytest.importorskip("tensorboardX")

    def logger(folder):
        return TensorBoardLogger(tmp_path / folder, every=1, watch=GradientWatch(every=2, bins=4))

    steps = {"checkpoint": gpunn.train.Checkpoints(tmp_path / "run", steps=2), "resume": "auto"}
    fit(make(logger("whole")))
    with pytest.raises(MemoryError):
        fit(make(logger("broken"), Stop(*place)), **steps)
    again = logger("broken")
    fit(make(again), **steps)
    one, other = read_back(tmp_path / "whole"), read_back(tmp_path / "broken")
    assert one.Tags() == other.Tags()
    for tag in one.Tags()["scalars"]:
        if tag != "seconds":
            assert scalars(one, tag) == scalars(other, tag), tag
    for tag in one.Tags()["histograms"]:
        steps = [event.step for event in other.Histograms(tag)]
        assert steps == [2, 4, 6, 8] == again.watch.steps.tolist()


def test_two_fits_and_figures(tmp_path):
    pytest.importorskip("tensorboardX")
    from gpunn.train.plots import new_figure

    logger = TensorBoardLogger(tmp_path, figures={"empty": lambda trainer: new_figure(2, 1)})
    trainer = make(logger, metrics=[])
    fit(trainer, 1)
    fit(trainer, 1)
    events = read_back(tmp_path)
    assert [step for step, _ in scalars(events, "loss/training")] == [3, 6]
    assert events.Tags()["images"] == ["empty"] and events.Images("empty")[0].width == 240
    with pytest.raises(ValueError, match="images must be 1 or more"):
        TensorBoardLogger(tmp_path, images=0)
