"""Named training jobs: each is real data, a model and a configuration that reproduces a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn import nn
from gpunn.data import Split, load_digits, split_indices
from gpunn.data.splits import permutation
from gpunn.train.precision import NAMES as PRECISIONS

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class DigitsConfig:
    """Everything that decides a run of the job "digits". Checked when it is made (ValueError).

    Attributes
    ----------
    seed : of the split, the initial weights, the shuffling, the dropout and the augmentation
    device : "auto", "cpu", "cuda", "cuda:1" or "emulator"
    hidden : widths of the hidden layers
    activation : one of `ACTIVATIONS`
    dropout : share of the hidden values that are left out while training
    epochs, batch_size : epochs at most, and samples a step
    learning_rate : the peak of the one-cycle schedule
    weight_decay : of AdamW
    label_smoothing : of the training loss
    rotation, scale, shift : standard deviations of the random changes to each training image: the
        angle in degrees, the size, the position in pixels; all 0 switches them off
    patience : epochs without a better validation loss before it stops
    validation, test : shares of the images that are held out
    limit : use only so many images, chosen by the seed; None for all
    precision : "fp32", "tf32", "bf16" or "fp16", as of the `Trainer`
    """

    seed: int = 0
    device: str = "auto"
    hidden: tuple[int, ...] = (256, 256, 128)
    activation: str = "relu"
    dropout: float = 0.2
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    rotation: float = 5.0
    scale: float = 0.05
    shift: float = 0.3
    patience: int = 15
    validation: float = 0.12
    test: float = 0.2
    limit: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("epochs", 1), ("batch_size", 1), ("patience", 0)):
            _require(getattr(self, name) >= low, name, getattr(self, name), f"{low} or more")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        for name in ("dropout", "label_smoothing"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, value, "at least 0 and below 1")
        for name in ("rotation", "scale", "shift"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        shares = f"validation {self.validation} and test {self.test}"
        held_out = self.validation + self.test
        if not (self.validation > 0 and self.test > 0 and held_out < 1):
            raise ValueError(f"{shares} must be above 0 and leave something to train on")
        _require(all(width >= 1 for width in self.hidden), "hidden", self.hidden, "1 or more")
        known = ", ".join(PRECISIONS)
        _require(self.precision in PRECISIONS, "precision", self.precision, f"one of {known}")
        known = ", ".join(ACTIVATIONS)
        _require(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {known}")
        # With fewer images than this some class would be missing from the validation data.
        if self.limit is not None:
            _require(self.limit >= 100, "limit", self.limit, "100 or more images")

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return bool(self.rotation or self.scale or self.shift)


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}; it must be {expected}")


@dataclass(frozen=True)
class Job:
    """A classification task: where its data come from and what its model looks like.

    Attributes
    ----------
    name, title : for the command line and for pictures
    what : what a sample is, in the plural ("images")
    config : the dataclass of its configuration
    shape : of one sample; classes : the number of classes
    split : config -> `Split` of raw arrays ``(x float32 (samples, features), y int64)``, and the
        numbers of the test samples in the source
    model : config -> untrained model
    """

    name: str
    title: str
    what: str
    config: type
    shape: tuple[int, ...]
    classes: int
    split: Callable[[Any], tuple[Split, np.ndarray]]
    model: Callable[[Any], nn.Module]

    def configure(self, base: Any = None, **changes: Any) -> Any:
        """A configuration: `base` or the defaults, with those `changes` that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(base or self.config(), **given)


def split_digits(config: DigitsConfig) -> tuple[Split, np.ndarray]:
    """The digits, stratified by class into training, validation and test images."""
    x, y = load_digits()
    chosen = np.arange(len(x))
    if config.limit is not None and config.limit < len(x):
        chosen = np.sort(permutation(len(x), config.seed, 2)[: config.limit])
    shares = (1 - config.validation - config.test, config.validation, config.test)
    parts = [chosen[part] for part in split_indices(len(chosen), y[chosen], shares, config.seed)]
    return Split(*((x[part], y[part]) for part in parts)), parts[2]


def digits_model(config: DigitsConfig) -> nn.Sequential:
    """Linear layers with an activation and dropout after each but the last: 64 to 10."""
    layers: list[nn.Module] = []
    width = 64
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), ACTIVATIONS[config.activation]()]
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 10))


JOBS: dict[str, Job] = {
    "digits": Job(
        name="digits",
        title="Handwritten digits",
        what="images",
        config=DigitsConfig,
        shape=(8, 8),
        classes=10,
        split=split_digits,
        model=digits_model,
    ),
}


def find_job(name: str) -> Job:
    """The job of that name. ValueError, naming those there are, if there is none."""
    if name not in JOBS:
        raise ValueError(f"there is no training job {name!r}; known: {', '.join(JOBS)}")
    return JOBS[name]
