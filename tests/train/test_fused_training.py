"""Epochs in one kernel: what the Trainer does with single steps, to rounding."""

import signal

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader, TensorDataset
from gpunn.optim.lr_scheduler import OneCycleLR
from gpunn.train import Callback, EarlyStopping, Trainer, fused_epoch


def data(samples=70):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 6)).astype(np.float32)
    return x, (x @ rng.standard_normal((6, 3))).argmax(1)


def trainer(fused, device="cpu", **options):
    gpunn.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 3)).to(device)
    options.setdefault("optimizer", lambda p: optim.AdamW(p, lr=0.02))
    options.setdefault("metrics", ["accuracy"])
    return Trainer(model, nn.CrossEntropyLoss(), seed=4, fused=fused, **options)


def assert_alike(one, two, rtol=2e-5):
    for a, b in zip(one.records, two.records, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("chunk", [512, 3])
def test_an_epoch_in_one_kernel_is_that_of_single_steps(chunk, monkeypatch):
    monkeypatch.setattr(fused_epoch, "STEPS", chunk)
    options = {
        "scheduler": lambda o: OneCycleLR(o, max_lr=0.05, total_steps=100),
        "gradient_clip_norm": 0.7,
        "callbacks": [EarlyStopping(patience=50)],
    }
    one, many = trainer(True, **options), trainer(False, **options)
    for current in (one, many):
        current.fit(data(), data(40), epochs=4, batch_size=16, verbose=False)
    assert one.way == "one kernel" and many.way == "step by step"
    assert_alike(one.history, many.history)
    # And either goes on from where the other was: weights, state, step count, random numbers.
    assert one.optimizer.state_dict()["state"][0]["step"] == 20
    assert gpunn.random.get_rng_state()["offset"] == 5
    one.fused, many.fused = False, True
    for current in (one, many):
        current.fit(data(), data(40), epochs=2, batch_size=16, verbose=False)
    assert one.epoch == many.epoch == 6 and many.way == "one kernel"
    assert_alike(one.history, many.history)


def test_ctrl_c_leaves_weights_steps_and_loader_where_they_agree(monkeypatch):
    """It comes in the middle of the second call of three steps, and is heard after it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        _interrupted(monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(monkeypatch):
    monkeypatch.setattr(fused_epoch, "STEPS", 3)
    current, reference = trainer(True), trainer(False)
    loaders = [DataLoader(TensorDataset(*data(200)), 16, shuffle=True, seed=3) for _ in range(2)]
    plain, calls = fused_epoch.FusedNetwork.run, []

    def run(self, *arguments):
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(self, *arguments)

    monkeypatch.setattr(fused_epoch.FusedNetwork, "run", run)
    monkeypatch.setattr(fused_epoch, "SECONDS", 100)  # no shorter call on a busy machine
    current.fit(loaders[0], epochs=2, verbose=False)
    assert current.history.interrupted and calls == [3, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert current.optimizer.state_dict()["state"][0]["step"] == 6

    class Stops(Callback):
        def on_batch_end(self, trainer, epoch, step):
            if step == 6:
                raise KeyboardInterrupt

    reference.callbacks.append(Stops())
    reference.fit(loaders[1], epochs=2, verbose=False)
    assert loaders[0].state_dict() == loaders[1].state_dict()
    assert loaders[0].state_dict()["batch"] == 6
    for a, b in zip(current.model.parameters(), reference.model.parameters(), strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=1e-4, atol=1e-6)


def test_a_callback_may_change_what_is_trained():
    """A dropout that changes between epochs is seen; a frozen weight ends the one kernel."""

    class Changes(Callback):
        def on_epoch_begin(self, trainer, epoch):
            trainer.model[2].p = 0.1 * epoch
            if epoch == 3:
                trainer.model[0].weight.requires_grad_(False)

    one, many = (trainer(fused, callbacks=[Changes()]) for fused in (True, False))
    for current in (one, many):
        current.fit(data(), epochs=3, batch_size=16, verbose=False)
    assert_alike(one.history, many.history)
    assert (
        one.way == "step by step (no longer one kernel: a parameter is frozen (requires_grad "
        "is False))"
    )


def test_on_the_emulator_it_is_the_kernel():
    one, many = trainer(True, "emulator"), trainer(False, "emulator")
    for current in (one, many):
        current.fit(data(40), epochs=2, batch_size=16, verbose=False)
    assert one.way == "one kernel"
    assert_alike(one.history, many.history, rtol=1e-4)


def test_a_loader_goes_on_where_it_was():
    dataset = TensorDataset(*data())
    loader = DataLoader(dataset, 16, shuffle=True, seed=3)
    loader.load_state_dict({"seed": 3, "epoch": 2, "batch": 3, "samples": 70})
    current = trainer(True)
    current.fit(loader, epochs=1, verbose=False)
    assert current.optimizer.state_dict()["state"][0]["step"] == 2 and loader.epoch == 3


class Watches(Callback):
    def on_batch_end(self, trainer, epoch, step):
        pass


@pytest.mark.parametrize(
    ("options", "fit", "reason"),
    [
        ({"accumulate": 2}, {}, "gradients are accumulated"),
        ({"precision": "bf16"}, {}, "it computes in float32"),
        ({"metrics": ["top_5_accuracy"]}, {}, "the metric top_5_accuracy needs every prediction"),
        ({"callbacks": [Watches()]}, {}, "Watches wants to see every step"),
        ({"profile": True}, {}, "steps are profiled one by one"),
        ({"l2": 0.1}, {}, "penalt"),
        ({"optimizer": lambda p: optim.Lion(p, lr=1e-3)}, {}, "Lion"),
        ({}, {"transform": lambda fields, rng: fields}, "batches are transformed one by one"),
    ],
)
def test_what_cannot_be_one_kernel_says_why(options, fit, reason):
    with pytest.raises(ValueError, match="fused=True, but one kernel cannot train this") as caught:
        trainer(True, **options).fit(data(), epochs=1, verbose=False, **fit)
    assert reason in str(caught.value)


def test_an_accuracy_that_is_not_of_classes_needs_the_predictions():
    """Of one output it is a threshold, and squared errors may be those of one-hot targets."""
    x, y = data(20)
    for outputs, loss, target in (
        (1, nn.CrossEntropyLoss(), y * 0),
        (3, nn.MSELoss(), np.eye(3, dtype=np.float32)[y]),
    ):
        options = {"optimizer": optim.Adam, "metrics": ["accuracy"]}
        current = Trainer(nn.Sequential(nn.Linear(6, outputs)), loss, fused=True, **options)
        with pytest.raises(ValueError, match="accuracy means something else here"):
            current.fit((x, target), epochs=1, verbose=False)


def test_batches_that_are_no_arrays_are_trained_step_by_step():
    x, y = data(32)
    batches = iter([(x[:16], y[:16]), (x[16:], y[16:])])
    with pytest.raises(ValueError, match="the data are not arrays"):
        trainer(True).fit(batches, epochs=1, verbose=False)
    current = trainer(None)
    current.fit(batches, epochs=1, verbose=False)
    assert current.way == "step by step"


def test_a_loss_that_is_not_finite_names_its_step():
    x, y = data()
    x[5, 1] = np.nan
    with pytest.raises(gpunn.train.TrainingError, match="the loss became nan in epoch 1, step "):
        trainer(True).fit((x, y), epochs=1, batch_size=16, verbose=False)
