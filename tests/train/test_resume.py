"""A run that is broken off anywhere and goes on ends bit for bit as one that never was."""

import random
import signal
import warnings

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader, RandomAffine, TensorDataset
from gpunn.train import (
    Callback,
    Checkpoints,
    EarlyStopping,
    LearningRateScheduler,
    Trainer,
    WeightAverage,
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


class Drawing:
    """An iterable that shuffles by NumPy's global state and changes samples by its own dice."""

    def __init__(self):
        self.dice = random.Random(1)

    def __iter__(self):
        x, y = data()
        order = np.random.permutation(44)
        for part in (order[i : i + 8] for i in range(0, 44, 8)):
            yield x[part] + np.float32(self.dice.random()), y[part]


class Noisy(TensorDataset):
    """A dataset that draws from a generator of its own."""

    def __init__(self):
        super().__init__(*data())
        self.rng = np.random.default_rng(2)

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + self.rng.standard_normal(16, dtype=np.float32), y


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
    "an iterable that draws": make(train=Drawing, callbacks=[lambda: Draws()]),
    "a dataset that draws": make(train=lambda: DataLoader(Noisy(), 8, shuffle=True, seed=1)),
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


def test_no_schedule_complains_after_a_resume(tmp_path, monkeypatch):
    """The optimizer's first step was made by the process that died."""
    made = make(scheduler=warm_then_steps)
    keep = Checkpoints(tmp_path, steps=1)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die(patch, 1, "before_validation")
        fit(made, checkpoint=keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fit(made, checkpoint=keep, resume=True)
    assert outcome(again) == outcome(fit(made))


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
    assert "epoch-0-step-6" in max(path.name for path in (tmp_path / "validation").iterdir())
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

    class Late(Callback):
        def on_train_end(self, trainer):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(make(callbacks=[Late]), checkpoint=tmp_path / "late")


@pytest.mark.parametrize("options", [{"compile": True}, {"fused": True, "metrics": []}])
def test_on_the_emulator(options, tmp_path, monkeypatch):
    made = make(train=lambda: tuple(part[:24] for part in data()), device="emulator", **options)
    end = outcome(fit(made, 2, None))
    keep = Checkpoints(tmp_path, steps=1, seconds=None)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die(patch, 4)
        fit(made, 2, None, checkpoint=keep)
    assert outcome(fit(made, 2, None, checkpoint=keep, resume=True)) == end
