"""Training steps that are there by name: for `gpunn profile` and `gpunn explain`.

They learn from random numbers: for the time of a step the values do not matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.bench import training
from gpunn.device import Device
from gpunn.text import known
from gpunn.train.jobs import JOBS
from gpunn.train.precision import Precision

Parts = tuple[Any, tuple, Any]  # model, inputs, target


@dataclass
class ReadyStep:
    """A model with all that a step of its training needs. Calling it makes one step."""

    name: str
    model: Any
    loss: Callable
    optimizer: Any
    inputs: tuple
    target: Any
    precision: Precision

    def __call__(self) -> Any:
        with self.precision.products():
            return one_step(
                self.model, self.loss, self.optimizer, self.inputs, self.target, self.precision
            )


def one_step(model, loss, optimizer, inputs: tuple, target, precision: Precision):
    """Forward, loss, backward, update; the loss. To be called inside ``precision.products()``."""
    optimizer.zero_grad()
    with precision.forward():
        found = loss(model(*inputs), target)
    precision.scaled(found).backward()
    precision.unscale()
    optimizer.step()
    precision.update()
    return found


def _images(make: Callable, channels: int, side: int) -> Callable[[int], Parts]:
    def parts(batch: int) -> Parts:
        return make(), (gpunn.randn(batch, channels, side, side),), _labels(10, batch)

    return parts


def _labels(classes: int, *shape: int):
    return gpunn.randint(0, classes, shape)


def _unet(batch: int) -> Parts:
    return models.UNet(), (gpunn.randn(batch, 1, 64, 64),), _labels(2, batch, 64, 64)


def _gpt(config: models.GPTConfig) -> Callable[[int], Parts]:
    def parts(batch: int) -> Parts:
        tokens = (batch, config.block_size)
        size = config.vocab_size
        return models.GPT(config), (_labels(size, *tokens),), _labels(size, *tokens)

    return parts


class _LogitsOnly(nn.Module):
    """A language model without the state that it hands on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[0]


def _language_model(batch: int) -> Parts:
    model = _LogitsOnly(models.LSTMLanguageModel(vocabulary=128))
    return model, (_labels(128, batch, 64),), _labels(128, batch, 64)


def _classifier(batch: int) -> Parts:
    return models.LSTMClassifier(32, 10), (gpunn.randn(batch, 50, 32),), _labels(10, batch)


def _seq2seq(batch: int) -> Parts:
    model = models.Seq2Seq(1000, 1000)
    return model, (_labels(1000, batch, 24), _labels(1000, batch, 24)), _labels(1000, batch, 24)


# name -> (batch by default, what makes model, inputs and target for a batch, what it is)
_MODELS: dict[str, tuple[int, Callable[[int], Parts], str]] = {
    "gpt": (8, _gpt(models.GPTConfig(65, 128, 4, 4, 128)), "a small GPT: 4 layers of 128"),
    "gpt2": (1, _gpt(models.GPTConfig()), "GPT-2 124M, 1024 tokens"),
    "lenet": (64, _images(models.LeNet, 1, 28), "LeNet, 28x28"),
    "resnet9": (32, _images(models.ResNet9, 3, 32), "ResNet9, 32x32"),
    "resnet18": (
        32, _images(lambda: models.ResNet18(10, small_images=True), 3, 32), "ResNet18, 32x32",
    ),
    "vit": (32, _images(models.ViT, 3, 32), "a small vision transformer, 32x32"),
    "unet": (8, _unet, "UNet, 64x64"),
    "lstm-classifier": (64, _classifier, "LSTMClassifier, 50 steps"),
    "lstm-language-model": (32, _language_model, "LSTMLanguageModel, 64 tokens"),
    "seq2seq": (32, _seq2seq, "Seq2Seq, 24 tokens each"),
}  # fmt: skip
_SHORT = {"mlp": "mlp-784-256-128-10", "cnn": "cnn-32-64", "lstm": "lstm-32-128"}


def names() -> dict[str, str]:
    """Every name and what it is."""
    found = {name: f"the job of gpunn train: {job.title}" for name, job in JOBS.items()}
    for short, name in _SHORT.items():
        found[short] = f"{name} of gpunn's training benchmark"
    for job in training.JOBS:
        found.setdefault(job.name, "of gpunn's training benchmark")
    return found | {name: what for name, (_, _, what) in _MODELS.items()}


def ready_step(
    name: str,
    batch: int | None = None,
    device: Device | str = "cpu",
    precision: str | None = None,
) -> ReadyStep:
    """The step of that name, with a precision as of the Trainer.

    ValueError, naming those there are, if there is none.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"the batch size is {batch}; expected 1 or more")
    key = _SHORT.get(name.lower(), name.lower())
    bench = {job.name.lower(): job for job in training.JOBS}
    gpunn.manual_seed(0)
    if key in JOBS:
        model, loss, inputs, target, rate = _of_job(JOBS[key], batch)
    elif key in bench:
        model, inputs, target = _of_benchmark(bench[key], batch)
        loss, rate = _over_classes(target.ndim, key), 1e-3
    elif key in _MODELS:
        usual, make, _ = _MODELS[key]
        model, inputs, target = make(batch or usual)
        loss, rate = _over_classes(target.ndim, key), 1e-3
    else:
        raise ValueError(f"there is no step named {name!r}{known(name, names())}")
    model = model.to(device).train()
    inputs = tuple(value.to(device) for value in inputs)
    optimizer = optim.AdamW(model.parameters(), lr=rate)
    how = Precision(precision, device, optimizer)
    return ReadyStep(key, model, loss, optimizer, inputs, target.to(device), how)


def _over_classes(dimensions: int, name: str) -> Callable:
    """Cross-entropy, for sequences with the classes in the last dimension."""
    if dimensions == 1 or name == "unet":
        return nn.CrossEntropyLoss()
    return F.sequence_cross_entropy


def _of_job(job: Any, batch: int | None) -> tuple:
    config = job.configure(batch_size=batch)
    x = gpunn.randn(config.batch_size, math.prod(job.shape))
    loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    labels = _labels(job.classes, config.batch_size)
    return job.model(config), loss, (x,), labels, config.learning_rate


def _of_benchmark(job: Any, batch: int | None) -> Parts:
    job = dataclasses.replace(job, batch=batch or job.batch)
    inputs, labels = (gpunn.tensor(values[0]) for values in job.data(batches=1))
    return job.network(nn), (inputs,), labels
