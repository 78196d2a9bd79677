"""A run that is broken off anywhere and goes on ends bit for bit as one that never was."""

import errno
import os
import signal

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader, RandomAffine, TensorDataset
from gpunn.errors import OutOfMemoryError
from gpunn.train import (
    Callback,
    CheckpointError,
    Checkpoints,
    CSVLogger,
    EarlyStopping,
    History,
    LearningRateScheduler,
    Trainer,
    TrainingError,
    WeightAverage,
    load_checkpoint,
    save_checkpoint,
)
from gpunn.train.checkpointing import Checkpointing

SCHEDULES = optim.lr_scheduler


class Died(Exception):
    """What ends a run here, as a power cut would."""


def data(samples=44, features=16, classes=3):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((samples, features), dtype=np.float32)
    return x, (x @ rng.standard_normal((features, classes))).argmax(1)


def adamw(parameters):
    return optim.AdamW(parameters, lr=0.01)


def momentum(parameters):
    return optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


def one_cycle(optimizer):
    return SCHEDULES.OneCycleLR(optimizer, 0.02, total_steps=64)


def plateau(optimizer):
    return LearningRateScheduler(SCHEDULES.ReduceLROnPlateau(optimizer, patience=0, factor=0.5))


def warm_then_steps(optimizer):
    parts = [SCHEDULES.LinearLR(optimizer, 0.1, total_iters=2),
             SCHEDULES.MultiStepLR(optimizer, [1, 2], gamma=0.3)]  # fmt: skip
    return SCHEDULES.SequentialLR(optimizer, parts, milestones=[2])


def perceptron():
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))


def with_norm():
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))


def loader(**options):
    return lambda: DataLoader(TensorDataset(*data()), 8, shuffle=True, **options)


def augmented():
    return loader(seed=4, transform=RandomAffine((4, 4), 10.0, 0.1, 0.5))()


class Batches:
    """An iterable that knows nothing of epochs and positions."""

    def __iter__(self):
        x, y = data()
        return ((x[i : i + 7], y[i : i + 7]) for i in range(0, 44, 7))


def make(model=perceptron, optimizer=adamw, train=data, seed=7, loss=None, callbacks=(), **options):
    """() -> a trainer and its data, as a script makes them each time that it is started."""

    def made():
        gpunn.manual_seed(3)
        trainer = Trainer(
            model(), loss or nn.CrossEntropyLoss(), optimizer,
            callbacks=[callback() for callback in callbacks], seed=seed,
            **{"metrics": ["accuracy"], **options},
        )  # fmt: skip
        return trainer, train()

    return made


def absolute_error(prediction, target):
    return float(np.abs(prediction[:, 0] - target).mean())


CASES = {
    "step by step": make(scheduler=one_cycle, metrics=["accuracy", absolute_error],
        callbacks=[lambda: EarlyStopping(patience=9)]),
    "without a seed": make(seed=None, train=loader(seed=1)),
    "accumulated": make(with_norm, momentum, accumulate=2, scheduler=plateau,
        gradient_clip_norm=0.5, l2=1e-3),
    "compiled": make(compile=True, scheduler=warm_then_steps, metrics=["accuracy"]),
    "compiled, fp16": make(compile=True, precision="fp16", accumulate=2),
    "bf16": make(optimizer=lambda p: optim.Lion(p, lr=1e-3), precision="bf16"),
    "one kernel": make(fused=True, scheduler=one_cycle),
    "augmented": make(train=augmented, optimizer=lambda p: optim.Adagrad(p, lr=0.02)),
    "thread workers": make(train=loader(seed=2, num_workers=2, persistent_workers=True),
        optimizer=lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True)),
    "compiled, many metrics": make(compile=True, callbacks=[lambda: WeightAverage(0.9)],
        metrics=["accuracy", "f1_macro", "auc", "calibration_error", "confusion_matrix"]),
    "process workers": make(train=loader(seed=2, num_workers=1, worker_kind="process",
        persistent_workers=True, transform=RandomAffine((4, 4), 10.0))),
    "batches of an iterable": make(with_norm, train=Batches, accumulate=2),
}  # fmt: skip

VALIDATION = tuple(part[:20] for part in data(30))


def fit(made, epochs=4, validation=VALIDATION, **options):
    trainer, train = made()
    trainer.fit(train, validation, epochs, batch_size=8, verbose=False, **options)
    return trainer


def die(monkeypatch, after, method="after_step"):
    """The run dies when so many steps were made (or calls of another method); a count of them."""
    plain, count = getattr(Checkpointing, method), [0]

    def counted(self, loop, *steps, **options):
        plain(self, loop, *steps, **options)
        count[0] += steps[0] if steps else 1
        if count[0] >= after:
            raise Died

    monkeypatch.setattr(Checkpointing, method, counted)
    return count


def outcome(trainer):
    """All that must be equal, in bits."""
    records = [dict(record, seconds=0) for record in trainer.history]
    state = trainer.optimizer.state_dict()
    return {
        "weights": {n: t.numpy().tobytes() for n, t in trainer.model.state_dict().items()},
        "optimizer": [(k, n, np.asarray(v).tobytes()) for k, entries in state["state"].items()
                      for n, v in entries.items()],
        "groups": [{n: v for n, v in g.items() if n != "params"} for g in state["param_groups"]],
        "history": records,
        "ended": (trainer.history.stop_reason, trainer.history.best_epoch, trainer.epoch),
        "random": gpunn.random.get_rng_state(),
        "precision": trainer.precision.state_dict(),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_ends_the_same(name, tmp_path, monkeypatch):
    made = CASES[name]
    with monkeypatch.context() as patch:
        steps = die(patch, after=10**9)
        whole = fit(made)
    end = outcome(whole)
    for every, deaths in ((1, (5, 4)), (3, (steps[0] - 1,))):
        keep = Checkpoints(tmp_path / f"every-{every}", epochs=1, steps=every, seconds=None)
        for after in deaths:
            with monkeypatch.context() as patch, pytest.raises(Died):
                die(patch, after)
                fit(made, checkpoint=keep, resume="auto")
        again = fit(made, checkpoint=keep, resume=True)
        assert again.resumed and again.way == whole.way
        assert outcome(again) == end


# ---- where it dies, and how ----------------------------------------------------------------------

FULL = make(
    scheduler=plateau,
    callbacks=[lambda: EarlyStopping(patience=1), lambda: Draws()],
)


class Draws(Callback):
    """Draws from the global generators, which are part of a checkpoint, too."""

    def on_train_begin(self, trainer):
        np.random.seed(1)
        self.drawn = []

    def on_batch_end(self, trainer, epoch, step):
        self.drawn.append(float(np.random.random()))

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


@pytest.mark.parametrize("method", ["before_validation", "in_validation", "after_epoch"])
@pytest.mark.parametrize("after", [1, 2])
def test_it_may_die_between_the_steps(method, after, tmp_path, monkeypatch):
    whole = fit(FULL, epochs=3)
    end, drawn = outcome(whole), whole.callbacks[1].drawn
    keep = Checkpoints(tmp_path, steps=2, epochs=2, seconds=None)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die(patch, after, method)
        fit(FULL, epochs=3, checkpoint=keep)
    again = fit(FULL, epochs=3, checkpoint=keep, resume="auto")
    assert outcome(again) == end and again.callbacks[1].drawn == drawn


class Raises(Callback):
    """Sends signals at steps (from 1) of the run; the counting is its own, not the trainer's."""

    def __init__(self, *at, number=signal.SIGINT, times=1):
        self.at, self.number, self.times, self.count = at, number, times, 0

    def on_batch_end(self, trainer, epoch, step):
        self.count += 1
        if self.count in self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)


@pytest.fixture
def ctrl_c():
    """The handler that a process in the foreground has: background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("options", [{}, {"compile": True, "precision": "bf16"}])
def test_ctrl_c_in_a_notebook(options, tmp_path, ctrl_c, capfd):
    """The same trainer goes on, with the arrays and the captured steps that it has."""
    made = make(scheduler=one_cycle, callbacks=[lambda: EarlyStopping(patience=9)], **options)
    end = outcome(fit(made))
    trainer, train = made()
    trainer.callbacks.append(Raises(3, 7, 8))
    arguments = {"epochs": 4, "batch_size": 8, "checkpoint": tmp_path / "run", "resume": "auto"}
    for stands in ((0, 3), (1, 1), (1, 2)):
        history = trainer.fit(train, VALIDATION, **arguments)
        assert history.interrupted and history.stop_reason == "interrupted"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert (trainer.epoch, trainer.step.mean._steps) == stands
    history = trainer.fit(train, VALIDATION, **arguments)
    assert not history.interrupted and outcome(trainer) == end
    out, err = capfd.readouterr()
    assert err.count("once more: at once") == 3
    assert "stopped; go on with fit(…, checkpoint=" in out and "epoch 2 of 4, step 3" in out
    assert trainer.fit(train, VALIDATION, **arguments).best_epoch == end["ended"][1]
    assert "nothing is left to train" in capfd.readouterr()[0] and outcome(trainer) == end


def test_signals_in_validation_twice_and_to_end_the_process(tmp_path, ctrl_c):
    made = make()

    class InValidation:
        def __init__(self, signals=0):
            self.signals = signals

        def __iter__(self):
            for _ in range(self.signals):
                signal.raise_signal(signal.SIGINT)
            return iter([VALIDATION])

    end = outcome(fit(made, validation=InValidation()))
    keep = {"checkpoint": tmp_path / "validation", "resume": "auto"}
    assert fit(made, validation=InValidation(1), **keep).history.interrupted
    assert "epoch-0-step-6" in names(tmp_path / "validation")[-1]
    assert outcome(fit(made, validation=InValidation(), **keep)) == end
    end = outcome(fit(made))
    # A second Ctrl-C does not wait: nothing is written, and the epoch is made again.
    keep = {"checkpoint": tmp_path / "twice", "resume": "auto"}
    trainer, train = made()
    trainer.callbacks.append(Raises(8, times=2))
    trainer.fit(train, VALIDATION, 4, batch_size=8, verbose=False, **keep)
    assert trainer.history.interrupted
    assert [path.name for path in sorted((tmp_path / "twice").iterdir())] == [
        "checkpoint-000001-epoch-0-step-0.safetensors",
        "checkpoint-000002-epoch-1-step-0.safetensors",
    ]
    assert outcome(fit(made, **keep)) == end
    keep = {"checkpoint": tmp_path / "term", "resume": "auto"}
    trainer, train = made()
    trainer.callbacks.append(Raises(10, number=signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        trainer.fit(train, VALIDATION, 4, batch_size=8, verbose=False, **keep)
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert outcome(fit(made, **keep)) == end


@pytest.mark.parametrize("options", [{"compile": True}, {"fused": True, "metrics": []}])
def test_on_the_emulator(options, tmp_path, monkeypatch):
    made = make(train=lambda: tuple(part[:24] for part in data()), device="emulator", **options)
    end = outcome(fit(made, 2, None))
    keep = Checkpoints(tmp_path, steps=1, seconds=None)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die(patch, 4)
        fit(made, 2, None, checkpoint=keep)
    assert outcome(fit(made, 2, None, checkpoint=keep, resume=True)) == end


# ---- the folder ----------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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
        (make(optimizer=momentum), "the optimizer is 'AdamW' there and 'SGD' here"),
        (make(train=lambda: data(40)), "training samples is 44 there and 40 here"),
        (make(seed=8), "seed is 7 there and 8 here"),
        (make(train=lambda: DataLoader(data(), 4, shuffle=True)), "batch_size is 8 there and 4"),
        (make(precision="bf16"), "precision is None there and 'bf16' here"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(other, difference, tmp_path):
    fit(make(), 1, checkpoint=tmp_path)
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match=f"belongs to another training: .*{difference}"):
        fit(other, 2, checkpoint=tmp_path, resume="auto")
    assert names(tmp_path) == before
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
