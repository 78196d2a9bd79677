"""A run on a GPU that is broken off and goes on ends bit for bit as one that never was."""

import numpy as np
import pytest

import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader, RandomAffine
from gpunn.train import Callback, Checkpoints, EarlyStopping, Trainer, WeightAverage
from gpunn.train.checkpointing import Checkpointing

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


class Died(Exception):
    """What ends a run here, as a power cut would."""


def data(samples):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((samples, 16), dtype=np.float32)
    return x, (x @ rng.standard_normal((16, 3))).argmax(1)


def perceptron():
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 3))


def with_norm():
    return nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Dropout(0.3),
                         nn.Linear(24, 3))  # fmt: skip


def on_the_device():
    return data(100)


def uploaded():
    """Batches that workers make on the host, two ahead of the step."""
    affine = RandomAffine((4, 4), 10.0, 0.1, 0.5)
    return DataLoader(
        data(100), 16, shuffle=True, seed=1, num_workers=2, transform=affine, device=DEVICE
    )


WAYS = {
    "compiled": (with_norm, uploaded, {"metrics": ["accuracy", "f1_macro", "auc"],
        "callbacks": [lambda: WeightAverage(0.9), lambda: EarlyStopping(patience=9)]}),
    "compiled, fp16": (with_norm, on_the_device, {"precision": "fp16", "accumulate": 2,
        "gradient_clip_norm": 0.5}),
    "one kernel": (perceptron, on_the_device, {"gradient_clip_norm": 0.5,
        "callbacks": [lambda: EarlyStopping(patience=9)]}),
}  # fmt: skip


def make(way, *callbacks):
    model, train, options = WAYS[way]
    gpunn.manual_seed(3)
    fused = way == "one kernel"
    weight = None if fused else gpunn.tensor([1.0, 2.0, 0.5])
    more = {"callbacks": [*callbacks, *(made() for made in options.get("callbacks", ()))]}
    trainer = Trainer(
        model(), nn.CrossEntropyLoss(weight), lambda parameters: optim.AdamW(parameters, lr=0.01),
        scheduler=lambda optimizer: optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=30),
        device=DEVICE, seed=7, fused=fused, compile=not fused,
        **{"metrics": ["accuracy"], **options, **more},
    )  # fmt: skip
    return trainer, train()


def fit(made, **how):
    trainer, train = made
    trainer.fit(train, data(40), 3, batch_size=16, verbose=False, **how)
    return trainer


def outcome(trainer):
    state = trainer.optimizer.state_dict()
    return {
        "weights": {n: t.numpy().tobytes() for n, t in trainer.model.state_dict().items()},
        "optimizer": [(k, n, np.asarray(v).tobytes()) for k, entries in state["state"].items()
                      for n, v in entries.items()],
        "history": [dict(record, seconds=0) for record in trainer.history],
        "random": gpunn.random.get_rng_state(),
        "precision": trainer.precision.state_dict(),
        "way": trainer.way,
    }  # fmt: skip


def broken_off(way, monkeypatch, at, **how):
    """Train until `at` steps were made."""
    plain, made = Checkpointing.after_step, [0]

    def after_step(self, loop, steps=1):
        plain(self, loop, steps)
        made[0] += steps
        if made[0] >= at:
            raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(Checkpointing, "after_step", after_step)
        fit(make(way), **how)


@pytest.mark.parametrize("way", WAYS)
def test_it_ends_the_same(way, tmp_path, monkeypatch):
    whole = fit(make(way))
    assert whole.way == way.partition(",")[0]
    end = outcome(whole)
    keep = Checkpoints(tmp_path, steps=2, seconds=None)
    for at in (3, 6):  # in the first epoch, and then in the second
        broken_off(way, monkeypatch, at, checkpoint=keep, resume="auto")
    again = fit(make(way), checkpoint=keep, resume=True)
    assert again.resumed and outcome(again) == end


def test_the_same_trainer_goes_on(tmp_path):
    """After an interruption, with the graphs and the arrays that it has on the device."""

    class Interrupts(Callback):
        def on_batch_end(self, trainer, epoch, step):
            if not trainer.resumed and (epoch, step) == (2, 3):
                trainer.weights = trainer.model[0].weight
                raise KeyboardInterrupt

    end = outcome(fit(make("compiled, fp16")))
    keep = {"checkpoint": Checkpoints(tmp_path, steps=1), "resume": "auto"}
    made = make("compiled, fp16", Interrupts())
    assert fit(made, **keep).history.interrupted
    trainer = fit(made, **keep)
    assert trainer.model[0].weight is trainer.weights and outcome(trainer) == end
