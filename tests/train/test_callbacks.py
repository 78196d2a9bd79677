"""Callbacks: when they are called, what they keep, and what they print."""

import io as text_io

import numpy as np
import pytest

import gpunn
from gpunn import io, nn, optim
from gpunn.train import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    ProgressBar,
    Trainer,
)

X = np.float32([[1.0], [2.0], [3.0], [4.0]])
Y = 2 * X


class Script(Callback):
    """Writes given values into the record, so that what follows is known."""

    def __init__(self, values, name="validation_loss"):
        self.values, self.name = values, name
        self.weights = []

    def on_epoch_end(self, trainer, epoch, record):
        record[self.name] = self.values[epoch - 1]
        self.weights.append(trainer.model.weight.item())


def trainer_with(*callbacks, rate=0.01, **arguments):
    model = nn.Linear(1, 1)
    model.load_state_dict({"weight": np.float32([[0.0]]), "bias": np.float32([0.0])})
    optimizer = optim.SGD(model.parameters(), lr=rate)
    return Trainer(model, nn.MSELoss(), optimizer, callbacks=callbacks, **arguments)


def fit(trainer, epochs, **arguments):
    return trainer.fit((X, Y), epochs=epochs, batch_size=2, verbose=False, **arguments)


def test_order_of_events():
    events = []

    class Note(Callback):
        def on_train_begin(self, trainer):
            events.append(("begin", trainer.epochs, trainer.steps))

        def on_epoch_begin(self, trainer, epoch):
            events.append(("epoch", epoch))

        def on_batch_end(self, trainer, epoch, step):
            events.append((epoch, step, round(trainer.running()["loss"], 6) > 0))

        def on_epoch_end(self, trainer, epoch, record):
            events.append(("done", epoch, len(trainer.history)))

        def on_train_end(self, trainer):
            events.append("end")

    fit(trainer_with(Note()), 2)
    one = [(1, 1, True), (1, 2, True)]
    two = [(2, 1, True), (2, 2, True)]
    assert events == [
        ("begin", 2, 2), ("epoch", 1), *one, ("done", 1, 1),
        ("epoch", 2), *two, ("done", 2, 2), "end",
    ]  # fmt: skip


def test_early_stopping_goes_back_to_the_best():
    script = Script([3.0, 1.0, 2.0, 1.0, 0.5, 0.1])
    stopping = EarlyStopping(patience=2)
    trainer = trainer_with(script, stopping)
    history = fit(trainer, 6)
    assert len(history) == 4 and history.best_epoch == stopping.best_epoch == 2
    assert stopping.best == 1.0  # equal is not better
    assert history.stop_reason == "validation_loss has not improved for 2 epochs"
    assert trainer.model.weight.item() == script.weights[1] != script.weights[3]
    assert not history.interrupted


def test_early_stopping_restores_at_the_last_epoch_too():
    script = Script([1.0, 0.5, 0.9])
    trainer = trainer_with(script, EarlyStopping(patience=9))
    history = fit(trainer, 3)
    assert history.stop_reason is None and trainer.model.weight.item() == script.weights[1]
    kept = Script([1.0, 0.5, 0.9])
    trainer = trainer_with(kept, EarlyStopping(patience=9, restore_best_weights=False))
    fit(trainer, 3)
    assert trainer.model.weight.item() == kept.weights[2]


def test_early_stopping_modes_and_small_steps():
    trainer = trainer_with(
        Script([0.5, 0.9, 0.95, 0.97, 0.99], "accuracy"),
        EarlyStopping("accuracy", patience=2, min_delta=0.1),
    )
    assert len(fit(trainer, 5)) == 4 and trainer.history.best_epoch == 2
    trainer = trainer_with(Script([np.nan] * 5), EarlyStopping(patience=3))
    assert len(fit(trainer, 5)) == 3 and trainer.history.best_epoch is None
    with pytest.raises(ValueError, match="no 'validation_loss', only epoch, loss.*pass validation"):
        fit(trainer_with(EarlyStopping()), 1)
    for arguments in ({"patience": -1}, {"min_delta": -1.0}, {"mode": "up"}):
        with pytest.raises(ValueError, match="must be"):
            EarlyStopping(**arguments)


def test_ctrl_c_keeps_what_was_trained():
    class Stop(Callback):
        def on_batch_end(self, trainer, epoch, step):
            if (epoch, step) == (4, 1):
                raise KeyboardInterrupt

    script = Script([1.0, 0.5, 0.9, 0.0])
    trainer = trainer_with(script, EarlyStopping(), Stop())
    history = fit(trainer, 9)
    assert history.interrupted and history.stop_reason == "interrupted" and len(history) == 3
    assert trainer.model.weight.item() == script.weights[1] and history.best_epoch == 2


def test_a_callback_can_stop():
    class Enough(Callback):
        def on_epoch_end(self, trainer, epoch, record):
            if record["loss"] < 5:
                trainer.stop("good enough")

    history = fit(trainer_with(Enough()), 50)
    assert history.stop_reason == "good enough" and 1 < len(history) < 50
    assert history["loss"][-1] < 5 <= history["loss"][-2]


def test_checkpoint_of_the_best(tmp_path):
    path = tmp_path / "new" / "best.safetensors"
    script = Script([3.0, 1.0, 2.0])
    checkpoint = ModelCheckpoint(path)
    fit(trainer_with(script, checkpoint), 3)
    assert io.load(path)["weight"].item() == script.weights[1]
    assert io.load_metadata(path)["epoch"] == "2" and checkpoint.last_saved == path


def test_checkpoint_of_every_epoch(tmp_path):
    script = Script([3.0, 1.0, 2.0])
    name = tmp_path / "e{epoch:02d}-{validation_loss:.1f}.safetensors"
    fit(trainer_with(script, ModelCheckpoint(name, save_best_only=False)), 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "e01-3.0.safetensors", "e02-1.0.safetensors", "e03-2.0.safetensors"
    ]  # fmt: skip
    bad = ModelCheckpoint(tmp_path / "{auc}.safetensors", save_best_only=False)
    with pytest.raises(ValueError, match="asks for 'auc'; the record has epoch, loss"):
        fit(trainer_with(bad), 1)


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    history = fit(trainer_with(CSVLogger(path)), 3, validation=(X, Y))
    assert path.read_text() == history.to_csv()
    more = fit(trainer_with(CSVLogger(path, append=True)), 2, validation=(X, Y))
    assert path.read_text() == history.to_csv() + more.to_csv().partition("\n")[2]
    with pytest.raises(ValueError, match="has the columns"):
        fit(trainer_with(CSVLogger(path, append=True)), 1)
    with pytest.raises(OSError):
        fit(trainer_with(CSVLogger(tmp_path / "none" / "log.csv")), 1)


class Counting:
    def __init__(self):
        self.calls = []

    def step(self, *arguments):
        self.calls.append(arguments)


class OneCycleLike(Counting):
    pass


class PlateauLike(Counting):
    pass


def test_when_schedules_step():
    schedules = [Counting(), OneCycleLike(), PlateauLike()]
    trainer = trainer_with(Script([7.0, 8.0]), *map(LearningRateScheduler, schedules))
    history = fit(trainer, 2)
    assert schedules[0].calls == [(), ()] and schedules[1].calls == [()] * 4
    assert schedules[2].calls == [(7.0,), (8.0,)]
    plain = PlateauLike()
    history = fit(trainer_with(LearningRateScheduler(plain)), 2)
    assert plain.calls == [(loss,) for loss in history["loss"]]
    every = Counting()
    fit(trainer_with(LearningRateScheduler(every, every="batch")), 2)
    assert len(every.calls) == 4


def test_schedules_of_the_trainer():
    gpunn.manual_seed(0)  # the plateau below needs a loss that falls in each epoch
    history = fit(trainer_with(scheduler=LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))), 3)
    assert history["learning_rate"] == pytest.approx([0.1, 0.05, 0.1 / 3])
    trainer = trainer_with(
        rate=0.1, scheduler=lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    )
    assert fit(trainer, 3)["learning_rate"] == pytest.approx([0.1, 0.05, 0.025])
    model = nn.Linear(1, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, scheduler=optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    )
    assert fit(trainer, 2)["learning_rate"] == pytest.approx([0.1, 0.05])
    trainer = trainer_with(
        Script([1.0, 2.0, 3.0, 4.0]),
        rate=0.1,
        scheduler=lambda optimizer: optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    )
    # The Trainer's own schedule runs before the script's value: it reacts to the loss, which falls.
    assert fit(trainer, 3)["learning_rate"] == pytest.approx([0.1] * 3)
    trainer = trainer_with(Script([1.0, 2.0, 0.5, 4.0]), rate=0.1)
    schedule = optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer, factor=0.5, patience=0)
    trainer.callbacks.append(LearningRateScheduler(schedule))
    assert fit(trainer, 4)["learning_rate"] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    with pytest.raises(ValueError, match="every must be"):
        LearningRateScheduler(Counting(), every="day")
    with pytest.raises(TypeError, match="got int"):
        LearningRateScheduler(3)


class Screen(text_io.StringIO):
    def isatty(self):
        return True


def test_plain_lines():
    out = text_io.StringIO()
    trainer = trainer_with(ProgressBar(file=out, lines=2), metrics=["mae"])
    history = fit(trainer, 7, validation=(X, Y))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "epoch 1/7", "epoch 4/7", "epoch 7/7"
    ]  # fmt: skip
    assert f"loss {history['loss'][3]:.4f}" in lines[1] and "val loss" in lines[1]
    assert f"mae {history['mae'][3]:.4f}" in lines[1] and lines[1].endswith(" s")


@pytest.mark.parametrize("columns", [80, 140])
def test_bar_on_a_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Screen()
    history = fit(trainer_with(ProgressBar(file=out, refresh=0.0)), 3, validation=(X, Y))
    drawn = out.getvalue()
    last = drawn.rstrip().split("\r")[-1]
    digits = 4 if columns == 140 else 3
    assert f"3/3 {' ' if columns == 140 else ''}loss {history['loss'][-1]:.{digits}f}" in last
    assert f"val loss {history['validation_loss'][-1]:.{digits}f}" in last
    assert all(len(line) < columns for line in drawn.split("\r"))
    assert drawn.count("\n") == 1  # one bar


def test_verbose_prints_lines(capsys):
    trainer_with().fit((X, Y), epochs=2, batch_size=2)
    assert capsys.readouterr().out.count("epoch") == 2
    trainer_with().fit((X, Y), epochs=2, batch_size=2, verbose=False)
    assert capsys.readouterr().out == ""
