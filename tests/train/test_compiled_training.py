"""The Trainer's step, compiled: the same history and the same weights, bit for bit."""

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.optim.lr_scheduler import OneCycleLR
from gpunn.train import Callback, Trainer


def data(samples=22, classes=3):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 6)).astype(np.float32)
    return x, (x @ rng.standard_normal((6, classes))).argmax(1)


def trained(device, compiled, epochs=3, batch_size=8, data=data, loss=None, **options):
    gpunn.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 3)).to(device)
    options.setdefault("optimizer", lambda p: optim.AdamW(p, lr=0.02))
    options.setdefault("metrics", ["accuracy", "top_5_accuracy", "confusion_matrix"])
    trainer = Trainer(
        model, loss or nn.CrossEntropyLoss(), seed=4, compile=compiled, **options
    )
    history = trainer.fit(data(), data(), epochs=epochs, batch_size=batch_size, verbose=False)
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in history.records]
    weights = [p.detach().numpy().copy() for p in model.parameters()]
    return records, weights, trainer


def same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_norm": 0.5, "l2": 1e-3},
        {"scheduler": lambda o: OneCycleLR(o, max_lr=0.05, total_steps=40), "accumulate": 2},
        {"precision": "bf16"},
        {"precision": "fp16", "accumulate": 2},
        {"precision": "tf32", "optimizer": lambda p: optim.SGD(p, lr=0.1, momentum=0.9)},
    ],
    ids=["penalties", "schedule", "bf16", "fp16", "tf32"],
)
def test_compiled_training_on_the_emulator(options):
    plain = trained("emulator", False, **options)
    compiled = trained("emulator", True, **options)
    same(plain, compiled)
    variants = compiled[2].step.compiled._variants.values()
    assert max(variant.captures for variant in variants) == 1
    assert compiled[2].precision.skipped == plain[2].precision.skipped


def test_compiled_training_on_the_cpu():
    plain, compiled = trained("cpu", False, epochs=4), trained("cpu", True, epochs=4)
    same(plain, compiled)
    assert plain[2].step.compiled is None and plain[2].summary() == "way: step by step"
    assert "way: compiled" in compiled[2].summary() and "planned" in compiled[2].summary()
    # Two shapes of batches; the very first step was not compiled, because it reads the labels.
    assert sorted(v.calls for v in compiled[2].step.compiled._variants.values()) == [4, 7]


def test_accumulation_equals_one_large_batch():
    one = trained("cpu", False, epochs=2, batch_size=22, metrics=[], accumulate=1,
                  optimizer=lambda p: optim.SGD(p, lr=0.1))  # fmt: skip

    class Counts(Callback):
        steps = 0

        def on_batch_end(self, trainer, epoch, step):
            self.steps += 1

    counts = Counts()
    two = trained("cpu", False, epochs=2, batch_size=11, metrics=[], accumulate=2,
                  callbacks=[counts], optimizer=lambda p: optim.SGD(p, lr=0.1))  # fmt: skip
    assert counts.steps == 2 and two[2].steps == 1
    # Dropout differs between the two, so only what does not depend on it is compared.
    assert one[2].optimizer._steps_made == two[2].optimizer._steps_made == 2
    with pytest.raises(ValueError, match="accumulate must be 1 or more, got 0"):
        trained("cpu", False, accumulate=0)


def test_accumulated_gradients_are_those_of_the_mean():
    def weights(batch_size, accumulate):
        gpunn.manual_seed(5)
        model = nn.Linear(6, 3)
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.5), seed=1,
            accumulate=accumulate,
        )  # fmt: skip
        trainer.fit(data(24), epochs=2, batch_size=batch_size, verbose=False)
        return model.weight.detach().numpy()

    np.testing.assert_allclose(weights(24, 1), weights(6, 4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights(24, 1), weights(8, 4), rtol=1e-5, atol=1e-6)


class Prints(nn.Module):
    """Reads a value in its forward, which no replay could do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        scores = self.layer(x)
        return scores if scores.sum() < 1e9 else scores * 0


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def fit(**options):
        gpunn.manual_seed(1)
        model = Prints()
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), seed=1, **options
        )
        return trainer.fit(data(), epochs=2, verbose=False).records[-1]["loss"], trainer

    with pytest.raises(gpunn.errors.StepError, match="the truth of a Tensor"):
        fit(compile=True)
    expected, plain = fit(compile=False)
    wanted = staticmethod(lambda device, compiled: True)
    monkeypatch.setattr(type(plain.step), "_wanted", wanted)
    with pytest.warns(UserWarning, match="goes on without compiling: .*the truth of a Tensor"):
        loss, trainer = fit()  # as on a GPU, where nobody asked for it
    assert loss == expected and trainer.step.compiled is None


def test_a_loss_that_is_not_finite_ends_a_compiled_training():
    x, y = data()
    x[7, 2] = np.inf
    with pytest.raises(gpunn.train.TrainingError, match="field 0 of the training data holds NaN"):
        trained("emulator", True, data=lambda: (x, y))


class Counts(nn.Module):
    """Counts its calls in Python, which replays would not."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * (1.0 + 0.1 * self.calls)


def test_a_step_with_side_effects_goes_on_uncompiled_and_does_no_batch_twice(monkeypatch):
    def fit(**options):
        gpunn.manual_seed(1)
        model = Counts()
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), ["accuracy"],
            seed=1, **options,
        )  # fmt: skip
        return trainer.fit(data(), epochs=2, batch_size=4, verbose=False).records, model, trainer

    expected, plain, trainer = fit(compile=False)
    wanted = staticmethod(lambda device, compiled: compiled is None)
    monkeypatch.setattr(type(trainer.step), "_wanted", wanted)
    with pytest.warns(UserWarning, match=r"goes on without compiling: .*changes Counts\.calls"):
        records, model, _ = fit()
    assert model.calls == plain.calls
    for one, other in zip(records, expected, strict=True):
        assert (one["loss"], one["accuracy"]) == (other["loss"], other["accuracy"])


def test_labels_are_looked_at_in_every_fit_and_settings_may_change():
    def losses(compiled):
        gpunn.manual_seed(1)
        model = nn.Linear(6, 3).to("emulator")
        trainer = Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), seed=1,
            compile=compiled, l2=1e-3,
        )  # fmt: skip
        found = []
        for batch_size in (8, 6, 11):  # three batches, then four: the labels are read in any state
            history = trainer.fit(data(24), epochs=1, batch_size=batch_size, verbose=False)
            found.append(history.records[-1]["loss"])
            trainer.regularization.l2 = 0.1
        wrong = data(24)[0], data(24)[1] + 7
        with pytest.raises(ValueError, match="labels"):
            trainer.fit(wrong, epochs=1, verbose=False)
        return found

    assert losses(True) == losses(False)
