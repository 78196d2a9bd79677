"""The folder of a run's checkpoints: when they are written, what goes wrong, what is refused."""

import errno
import os

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader
from gpunn.errors import OutOfMemoryError
from gpunn.train import (
    Callback,
    CheckpointError,
    Checkpoints,
    CSVLogger,
    EarlyStopping,
    History,
    Trainer,
    TrainingError,
    checkpoint_file,
    load_checkpoint,
    save_checkpoint,
)
from gpunn.train.checkpointing import Checkpointing


class Died(Exception):
    """What ends a run here, as a power cut would."""


def data(samples=44, features=16, classes=3):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((samples, features), dtype=np.float32)
    return x, (x @ rng.standard_normal((features, classes))).argmax(1)


VALIDATION = tuple(part[:20] for part in data(30))


def adamw(parameters):
    return optim.AdamW(parameters, lr=0.01)


def perceptron():
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))


def make(model=perceptron, optimizer=adamw, train=data, seed=7, loss=None, callbacks=(), **options):
    """() -> a trainer and its data, as a script makes them each time that it is started."""

    def made():
        gpunn.manual_seed(3)
        trainer = Trainer(
            model(), loss or nn.CrossEntropyLoss(), optimizer, metrics=["accuracy"], seed=seed,
            callbacks=[callback() for callback in callbacks], **options,
        )  # fmt: skip
        return trainer, train()

    return made


def fit(made, epochs=4, validation=VALIDATION, **options):
    trainer, train = made()
    trainer.fit(train, validation, epochs, batch_size=8, verbose=False, **options)
    return trainer


def die(monkeypatch, after):
    """The run dies when so many steps were made."""
    plain, made = Checkpointing.after_step, [0]

    def counted(self, loop, steps=1):
        plain(self, loop, steps)
        made[0] += steps
        if made[0] >= after:
            raise Died

    monkeypatch.setattr(Checkpointing, "after_step", counted)


def outcome(trainer):
    """Weights and measurements, which must be equal in bits; the rest is in test_resume.py."""
    weights = {name: t.numpy().tobytes() for name, t in trainer.model.state_dict().items()}
    return weights, [dict(record, seconds=0) for record in trainer.history]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- when ----------------------------------------------------------------------------------------


def test_when_checkpoints_are_written_and_how_many_stay(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gpunn.train.checkpointing.time.monotonic", lambda: now[0])
    written = []
    plain = Checkpointing._save

    def save(self, loop):
        written.append((loop.trainer.epoch, loop.place.step if loop.place else 0))
        plain(self, loop)

    monkeypatch.setattr(Checkpointing, "_save", save)
    fit(make(), 5, None, checkpoint=Checkpoints(tmp_path / "a", epochs=2, keep=3))
    assert written == [(0, 0), (2, 0), (4, 0), (5, 0)]
    assert len(names(tmp_path / "a")) == 3
    written.clear()
    fit(make(), 2, checkpoint=Checkpoints(tmp_path / "b", epochs=None, steps=4, keep=1))
    assert written == [(0, 0), (0, 4), (1, 2), (1, 6), (2, 0)]  # 1, 6: before the validation
    assert names(tmp_path / "b") == ["checkpoint-000005-epoch-2-step-0.safetensors"]
    written.clear()

    class Slow(Callback):
        def on_batch_end(self, trainer, epoch, step):
            now[0] += 2.0

    every = Checkpoints(tmp_path / "c", epochs=None, seconds=7)
    fit(make(callbacks=[Slow]), 2, None, checkpoint=every)
    assert written == [(0, 0), (0, 4), (1, 2), (2, 0)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, monkeypatch):
    end = outcome(fit(make()))
    keep = Checkpoints(tmp_path, steps=3, epochs=None, seconds=None)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die(patch, 14)
        fit(make(), checkpoint=keep)
    (tmp_path / ".checkpoint-000009-abc.safetensors").write_bytes(b"half")
    last = tmp_path / names(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:-700])
    with pytest.warns(UserWarning, match="damaged or cut off.*goes on from checkpoint-000004-epo"):
        again = fit(make(), checkpoint=keep, resume="auto")
    assert outcome(again) == end
    assert last.name + ".damaged" in names(tmp_path) and not list(tmp_path.glob(".check*"))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read: .* pickle"):
        fit(make(), checkpoint=keep, resume="auto")


def test_one_that_the_system_does_not_let_be_read_stays(tmp_path, monkeypatch):
    fit(make(), 2, checkpoint=tmp_path)
    before, plain = names(tmp_path), checkpoint_file.read

    def read(path):
        if path.name == before[-1]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(checkpoint_file, "read", read)
    with pytest.warns(UserWarning, match="Permission denied.*goes on from checkpoint-000002"):
        fit(make(), 2, checkpoint=Checkpoints(tmp_path, keep=9), resume="auto")
    assert names(tmp_path)[:2] == before and len(names(tmp_path)) == 3


def test_the_working_directory_may_change(tmp_path, monkeypatch):
    class Moves(Callback):
        def on_epoch_begin(self, trainer, epoch):
            (tmp_path / f"{epoch}").mkdir()
            os.chdir(tmp_path / f"{epoch}")

    monkeypatch.chdir(tmp_path)
    fit(make(callbacks=[Moves]), 2, checkpoint="run")
    assert [name[18:25] for name in names(tmp_path / "run")] == ["epoch-1", "epoch-2"]
    assert names(tmp_path / "1") == names(tmp_path / "2") == []


class Fails(Callback):
    def on_batch_end(self, trainer, epoch, step):
        raise RuntimeError("plain")


def test_what_is_asked_for_must_fit_the_folder(tmp_path):
    folder = tmp_path / "run"
    fit(make(), 1, checkpoint=folder)
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run already .*'auto'"):
        fit(make(), 1, checkpoint=folder)
    for name, match in (("none", "there is no folder"), ("", "no checkpoint in .* to resume from")):
        with pytest.raises(FileNotFoundError, match=match):
            fit(make(), 1, checkpoint=tmp_path / name, resume=True)
    assert names(tmp_path) == ["run"]
    with pytest.raises(ValueError, match="needs checkpoint=FOLDER"):
        fit(make(), 1, resume="auto")
    with pytest.raises(FileNotFoundError, match="resume='nowhere': there is no such file"):
        fit(make(), 1, resume="nowhere")
    with pytest.raises(TypeError, match="resume is 3; expected"):
        fit(make(), 1, resume=3)
    with pytest.raises(ValueError, match="steps must be an integer ≥ 1, got 0"):
        Checkpoints(folder, steps=0)
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Checkpoints(folder, seconds=0)
    for wrong in ("", False, 3):
        with pytest.raises(TypeError, match=f"the folder is {wrong!r}; give a path"):
            fit(make(), 1, checkpoint=wrong)
    with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
        fit(make(), 1, checkpoint=__file__)

    class Inner(Callback):
        def on_train_begin(self, trainer):
            with pytest.raises(BlockingIOError, match="another training writes"):
                fit(make(), 1, checkpoint=folder, resume="auto")

    fit(make(callbacks=[Inner]), 2, checkpoint=folder, resume="auto")
    # A path: from an older file, and into another folder.
    end = outcome(fit(make(), 3))
    older = sorted(folder.iterdir())[0]
    assert outcome(fit(make(), 3, resume=older)) == end
    moved = fit(make(), 3, checkpoint=tmp_path / "moved", resume=folder)
    assert outcome(moved) == end and moved.resumed
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run already"):
        fit(make(), 3, checkpoint=tmp_path / "moved", resume=older)
    assert outcome(fit(make(), 3, checkpoint=folder, resume=older)) == end
    with pytest.raises(RuntimeError, match="plain") as raised:
        fit(make(callbacks=[Fails]), 4, resume=folder)  # no checkpoints are wanted: no advice
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize(
    "other, difference",
    [
        (make(lambda: nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3))),
         r"0\.weight is float32 \(12, 16\) there and float32 \(9, 16\) here"),
        (make(lambda: nn.Sequential(nn.Linear(16, 3))), r"lacks 3\.weight, 3\.bias"),
        (make(optimizer=lambda p: optim.SGD(p, lr=0.1)), "optimizer is 'AdamW' there and 'SGD' h"),
        (make(train=lambda: data(40)), "training samples is 44 there and 40 here"),
        (make(loss=nn.CrossEntropyLoss()), "the loss has another weight"),
        (make(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), "loss is .*: 0.0. there and .*0.1"),
        (make(seed=8), "seed is 7 there and 8 here"),
        (make(train=lambda: DataLoader(data(), 4, shuffle=True)), "batch_size is 8 there and 4"),
        (make(precision="bf16"), "precision is None there and 'bf16' here"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(other, difference, tmp_path):
    fit(make(loss=nn.CrossEntropyLoss(weight=gpunn.ones(3))), 1, checkpoint=tmp_path)
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match=f"belongs to another training: .*{difference}"):
        fit(other, 2, checkpoint=tmp_path, resume="auto")
    assert names(tmp_path) == before
    state = checkpoint_file.read(tmp_path / before[-1])
    checkpoint_file.write(tmp_path / "other.safetensors", {"fit": {}, "model": state["model"]})
    with pytest.raises(CheckpointError, match="lacks gpunn, fingerprint, loss, .*begin a new run"):
        fit(make(), 2, resume=tmp_path / "other.safetensors")
    save_checkpoint(tmp_path / "own.safetensors", model=perceptron())
    with pytest.raises(CheckpointError, match="not written by Trainer.fit"):
        fit(make(), 2, resume=tmp_path / "own.safetensors")


def test_another_version_and_other_callbacks_are_told(tmp_path, monkeypatch):
    made = make(callbacks=[lambda: EarlyStopping(patience=5)])
    fit(made, 1, checkpoint=tmp_path)
    monkeypatch.setattr(gpunn, "__version__", "99.0")
    with pytest.warns(UserWarning) as told:
        fit(make(), 2, checkpoint=tmp_path, resume="auto")
    texts = [str(warning.message) for warning in told]
    assert "was written by gpunn" in texts[0] and "99.0" in texts[0]
    assert "begun with the callbacks EarlyStopping" in texts[1] and len(texts) == 2


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    """The disk is full for a while: one warning, the old checkpoints stay, then new ones come."""
    end = outcome(fit(make()))
    plain, calls = os.fsync, [0]

    def full(handle):
        calls[0] += 1
        if 8 <= calls[0] < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(handle)

    monkeypatch.setattr(os, "fsync", full)
    seen = []

    class Looks(Callback):
        def on_epoch_end(self, trainer, epoch, record):
            seen.append(names(tmp_path))

    with pytest.warns(UserWarning, match=r"No space left.*goes on.*step-3\S* stays the") as told:
        made = make(callbacks=[Looks])
        whole = fit(made, checkpoint=Checkpoints(tmp_path, steps=1))
    assert len(told) == 1 and outcome(whole) == end
    assert [name[-18:] for name in seen[0]] == ["step-2.safetensors", "step-3.safetensors"]
    assert names(tmp_path)[-1].endswith("epoch-4-step-0.safetensors")
    calls[0] = 8
    with pytest.raises(OSError, match="No space left"):  # before the first step it is an error
        fit(make(), checkpoint=tmp_path / "new")
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize("error", [MemoryError("no room"), OutOfMemoryError("no room")])
def test_out_of_memory_says_how_to_go_on(error, tmp_path):
    class Full(Callback):
        def on_batch_end(self, trainer, epoch, step):
            if epoch == 2:
                raise error

    with pytest.raises(MemoryError) as raised:
        fit(make(callbacks=[Full]), checkpoint=tmp_path)
    (note,) = raised.value.__notes__
    assert "epoch-1-step-0.safetensors; go on with fit(…, checkpoint=" in note
    assert outcome(fit(make(), checkpoint=tmp_path, resume="auto")) == outcome(fit(make()))


def test_a_diverged_run_keeps_what_was_before(tmp_path):
    made = make(optimizer=lambda p: optim.SGD(p, lr=1e30))
    with np.errstate(all="ignore"), pytest.raises(TrainingError) as raised:
        fit(made, checkpoint=Checkpoints(tmp_path, steps=1))
    assert "load_checkpoint(path, model=…, random=False) takes its weights" in str(
        raised.value.__notes__
    )
    model = perceptron()
    load_checkpoint(tmp_path, model=model, random=False)


def test_what_cannot_go_on_is_said_at_once(tmp_path):
    class Schedule:
        def step(self):
            pass

    class Odd(Callback):
        def state_dict(self):
            return {"file": open}

    with pytest.raises(TypeError, match="schedule Schedule has no state_dict"):
        fit(make(scheduler=Schedule()), checkpoint=tmp_path / "a")
    with pytest.raises(TypeError, match="callbacks/0/1/file is builtin_function"):
        fit(make(callbacks=[Odd]), checkpoint=tmp_path / "b")


def test_rows_of_a_csv_file_come_once(tmp_path, monkeypatch):
    made = make(callbacks=[lambda: CSVLogger(tmp_path / "log.csv")])
    keep = Checkpoints(tmp_path / "run", epochs=2)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die(patch, 20)
        fit(made, checkpoint=keep)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 3
    whole = fit(made, checkpoint=keep, resume=True)
    assert History.from_csv(tmp_path / "log.csv").records == whole.history.records
