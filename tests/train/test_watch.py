"""What watches see: histograms and norms, and where the first NaN arose."""

import math

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.autograd.tensor import Tensor
from gpunn.device import to_device
from gpunn.train import (
    Callback,
    Checkpoints,
    GradientWatch,
    JSONLinesLogger,
    NaNWatch,
    Trainer,
    TrainingError,
    WeightAverage,
)
from gpunn.train.watch import statistics

rng = np.random.default_rng(0)
X = rng.standard_normal((24, 6)).astype(np.float32)
Y = rng.integers(0, 3, 24)


def make(*callbacks, model=None, loss=None, device="cpu", lr=0.1, **options):
    gpunn.manual_seed(3)
    model = model or nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model.to(device)
    optimizer = optim.SGD(model.parameters(), lr=lr)
    return Trainer(
        model, loss or nn.CrossEntropyLoss(), optimizer, [], list(callbacks), seed=1, **options
    )


def fit(trainer, epochs=2, x=X, y=Y, **options):
    return trainer.fit((x, y), epochs=epochs, batch_size=8, verbose=False, **options)


# ---- histograms and norms ------------------------------------------------------------------------


def test_histograms_of_numbers_that_are_almost_equal():
    arrays = [np.array([1, np.nextafter(1, 2)]), np.full(3, 1e30), np.array([0, 5e-324])]
    arrays += [np.nextafter(np.float32([1, 1]), np.float32([1, 2])), np.float32([0, 1e-45])]
    counts = statistics(arrays, bins=64)[1]
    assert counts.sum(axis=1).tolist() == [2, 3, 2, 2, 2]


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_statistics(device):
    arrays = [rng.normal(2, 3, (7, 5)).astype(np.float32), np.full(4, 0.5), np.float32([])]
    arrays += [np.float32([1, np.nan, -np.inf, 3]), np.float32([np.nan]), np.float16([1, 2, 4])]
    there = [to_device(array, device) for array in arrays]
    found, counts = statistics([*there, None], bins=8)
    for row, array in zip(found, arrays, strict=False):
        ok = array[np.isfinite(array)].astype(float)
        if ok.size:
            expected = [ok.min(), ok.max(), ok.mean(), ok.std(), np.linalg.norm(ok)]
            np.testing.assert_allclose(row[:5], expected, rtol=1e-6, atol=1e-7)
            assert row[5] == array.size - ok.size
    assert counts[0].tolist() == np.histogram(arrays[0], 8)[0].tolist()
    assert counts.sum(axis=1).tolist() == [35, 4, 0, 2, 0, 3, 0]
    assert np.isnan(found[[2, 6]]).all() and math.isnan(found[4, 0]) and found[4, 5] == 1


@pytest.mark.parametrize("device, compiled", [("cpu", False), ("emulator", True)])
def test_gradient_watch(device, compiled):
    class Note(Callback):
        weights, gradients = [], []

        def on_batch_end(self, trainer, epoch, step):
            weight = trainer.model[0].weight
            self.weights.append(weight.detach().to("cpu").numpy().copy())
            self.gradients.append(weight.grad.to("cpu").numpy().copy())

    note = Note()
    note.weights, note.gradients = [], []
    watch = GradientWatch(every=2, bins=10)
    trainer = make(note, watch, device=device, compile=compiled)
    fit(trainer, 3)
    assert watch.steps.tolist() == [2, 4, 6, 8] and watch.epochs.tolist() == [1, 2, 2, 3]
    assert watch.names[:2] == ["0.weight", "0.weight.gradient"] and len(watch.names) == 8
    weights = [np.linalg.norm(note.weights[step - 1]) for step in watch.steps]
    np.testing.assert_allclose(watch.series("0.weight"), weights, rtol=1e-6)
    gradients = [np.linalg.norm(note.gradients[step - 1]) for step in watch.steps]
    np.testing.assert_allclose(watch.series("0.weight.gradient"), gradients, rtol=1e-5)
    last = watch.latest()["0.weight"]
    counts, edges = np.histogram(note.weights[7], 10)
    assert last.counts.tolist() == counts.tolist() and last.kind == "weights"
    np.testing.assert_allclose(last.edges, edges, rtol=1e-6)
    assert watch.values.shape == (4, 8, 6)
    with pytest.raises(KeyError, match="has not looked at 'x'; it has seen 0.weight, "):
        watch.series("x")
    assert GradientWatch().latest() == {}
    with pytest.raises(IndexError, match="look 9 of 4"):
        watch.look(9, "0.weight")
    with pytest.raises(ValueError, match="watch weights, gradients or both"):
        GradientWatch(weights=False, gradients=False)
    with pytest.raises(ValueError, match="bins must be 1 or more"):
        GradientWatch(bins=0)


def test_gradient_watch_goes_on(tmp_path):
    whole, again = GradientWatch(every=2, bins=4), GradientWatch(every=2, bins=4)
    fit(make(whole), 4)
    keep = {"checkpoint": tmp_path, "resume": "auto"}
    fit(make(GradientWatch(every=2, bins=4)), 2, **keep)
    fit(make(again), 4, **keep)
    np.testing.assert_array_equal(whole.values, again.values)
    assert whole.steps.tolist() == again.steps.tolist() == [2, 4, 6, 8, 10, 12]
    assert (whole.look(3, "2.bias").counts == again.look(3, "2.bias").counts).all()
    once = GradientWatch(every=None)
    fit(make(once, fused=True))
    assert once.steps.tolist() == [3, 6] and "0.weight.gradient" not in once.latest()
    assert "0.weight" in once.latest()


# ---- NaN -----------------------------------------------------------------------------------------


class Square(nn.Module):
    """x·scale, then its square root: NaN where that is negative."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(np.float32([1.0]))

    def forward(self, x):
        return (x * self.scale) ** 0.5


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.root, self.last = nn.Linear(6, 4), Square(), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.root(self.first(x)))


@pytest.mark.parametrize("device", ["cpu", "emulator"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_layer_and_step_are_named(device, compiled):
    x = np.abs(X) + 0.5
    model = nn.Sequential(nn.Identity(), Block())
    model[1].first.weight.data = np.full((4, 6), 0.5, np.float32)
    model[1].first.bias.data = np.zeros(4, np.float32)
    order = np.arange(24)
    bad = x.copy()
    bad[19] = -0.25  # in the third step
    watch = NaNWatch(every=2)
    trainer = make(watch, model=model, device=device, compile=compiled, lr=1e-4)
    with pytest.raises(TrainingError) as caught:
        trainer.fit((bad[order], Y), epochs=2, batch_size=8, verbose=False, shuffle=False)
    text = str(caught.value)
    assert text == watch.finding
    assert "in epoch 1, step 3 (forward) the first NaN is in the output of 1.root (Square)" in text
    assert "; its inputs lay from -0.75 to " in text and "its scale from 0.9999 to 0.9999" in text
    assert (trainer.step.compiled is not None) == compiled
    assert trainer.way == "step by step (NaNWatch looks into every step)"
    assert not model[1].root._forward_hooks


def test_an_infinite_input_and_infinity_on_purpose():
    x = X.copy()
    x[7, 2] = np.inf
    with pytest.raises(TrainingError, match=r"the first (NaN|infinity) is in the output of 0 \(L"):
        fit(make(NaNWatch()), x=x)

    class Mask(nn.Module):
        def forward(self, x):
            return nn.functional.softmax(x + Tensor(np.float32([0, 0, -np.inf])), dim=-1)

    class Inner(nn.Module):
        def forward(self, x):
            return x + Tensor(np.float32([0, 0, -np.inf]))

    y = np.minimum(Y, 1)
    model = nn.Sequential(nn.Linear(6, 3), Inner())
    with pytest.raises(TrainingError, match=r"infinity is in the output of 1 \(Inner\)"):
        fit(make(NaNWatch(), model=model), y=y)
    model = nn.Sequential(nn.Linear(6, 3), Inner())
    assert len(fit(make(NaNWatch(allow_infinity=True), model=model), y=y)) == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_backward_and_update_are_told_apart(device):
    class Root(nn.Module):
        def forward(self, x):
            return x**0.5  # the slope at 0 is infinite

    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), Root(), nn.Linear(4, 3))
    model[0].bias.data = np.full(4, -100, np.float32)  # ReLU gives 0 everywhere
    watch = NaNWatch()
    with pytest.raises(TrainingError) as caught:
        fit(make(watch, model=model, device=device))
    assert "in epoch 1, step 1 (backward) every output was finite" in str(caught.value)
    assert "at the output of 1 (ReLU): what follows it made that" in str(caught.value)
    trainer = make(NaNWatch(), device=device, lr=3e38, loss=lambda p, t: p.sum() * 100)
    match = r"epoch 1, step 1 \(update\) .*made infinity of the parameter 0.weight; use a smaller"
    with pytest.raises(TrainingError, match=match):
        fit(trainer)


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_a_loss_function_is_found(device):
    trainer = make(NaNWatch(), device=device, loss=lambda p, t: ((p - 100) ** 0.5).mean())
    with pytest.raises(TrainingError) as caught:
        fit(trainer)
    told = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    if device == "cpu":  # the Trainer sees it at once, before anything else
        assert "so the loss function made it" in told
    else:
        assert "(backward) every output was finite" in told
        assert "at the output of the model (Sequential): the loss function made that" in told

    class Root(nn.Module):
        def forward(self, prediction, target):
            return ((prediction - 100) ** 0.5).mean()

    with pytest.raises(TrainingError, match=r"\(forward\) the first NaN .* of the loss \(Root\)"):
        fit(make(NaNWatch(), device=device, loss=Root()))


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_it_changes_nothing(device):
    def weights(*callbacks, **options):
        trainer = make(*callbacks, device=device, **options)
        fit(trainer, 3, validation=(X, Y))
        return [p.detach().to("cpu").numpy() for p in trainer.model.parameters()]

    for one, other in zip(weights(), weights(NaNWatch(), GradientWatch(1)), strict=True):
        np.testing.assert_array_equal(one, other)
    weights(NaNWatch(), precision="bf16")
    weights(NaNWatch(), precision="fp16")
    with pytest.raises(ValueError, match="every must be 1 or more"):
        NaNWatch(every=0)


def test_it_counts_steps_of_a_run_that_goes_on(tmp_path):
    class Stop(Callback):
        def on_batch_end(self, trainer, epoch, step):
            if step == 2 and not trainer.resumed:
                raise KeyboardInterrupt

    x = X.copy()
    x[20] = np.nan  # in the third batch
    keep = {"checkpoint": Checkpoints(tmp_path, steps=1), "resume": "auto", "shuffle": False}
    fit(make(NaNWatch(), Stop()), 1, x=x, **keep)
    with pytest.raises(TrainingError, match=r"in epoch 1, step 3 \(forward\)"):
        fit(make(NaNWatch(), Stop()), 1, x=x, **keep)


def test_another_callback_fails_first(tmp_path):
    broken = JSONLinesLogger(tmp_path / "nowhere" / "run.jsonl")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit(make(broken, NaNWatch(), WeightAverage()))
