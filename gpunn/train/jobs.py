"""The job `gpunn train digits`: real data, a model and a configuration that reproduces a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn import nn
from gpunn.data import Split, load_digits, split_indices
from gpunn.data.splits import permutation
from gpunn.train.configuration import check, device_setting, setting
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

    What each field means and may be is said beside it; ``gpunn train --show-config digits`` prints
    it.
    """

    seed: int = setting(0, "seed of the split, the initial weights, the shuffling, the dropout "
        "and the augmentation", low=0)  # fmt: skip
    device: str = device_setting()
    hidden: tuple[int, ...] = setting((256, 256, 128), "widths of the hidden layers", low=1)
    activation: str = setting("relu", "activation after each hidden layer",
        choices=tuple(ACTIVATIONS))  # fmt: skip
    dropout: float = setting(0.2, "share of the hidden values that are left out while training",
        low=0, below=1)  # fmt: skip
    epochs: int = setting(60, "epochs at most", low=1)
    batch_size: int = setting(64, "samples of a training step", low=1)
    learning_rate: float = setting(2e-3, "the peak of the one-cycle schedule", above=0)
    weight_decay: float = setting(1e-2, "weight decay of AdamW", low=0)
    label_smoothing: float = setting(0.05, "label smoothing of the training loss", low=0, below=1)
    rotation: float = setting(5.0, "standard deviation of the angle, in degrees, by which a "
        "training image is turned at random; rotation, scale and shift 0: no augmentation",
        low=0)  # fmt: skip
    scale: float = setting(0.05, "standard deviation of the change of its size", low=0)
    shift: float = setting(0.3, "standard deviation of its shift, in pixels", low=0)
    patience: int = setting(15, "epochs without a better validation loss before it stops", low=0)
    validation: float = setting(0.12, "share of the images held out to validate", above=0, below=1)
    test: float = setting(0.2, "share of the images held out to test", above=0, below=1)
    # With fewer images than this some class would be missing from the validation data.
    limit: int | None = setting(None, "use only so many images, chosen by the seed", low=100,
        unset="all of them")  # fmt: skip
    precision: str = setting("fp32", "precision of matrix products, as of the Trainer",
        choices=PRECISIONS)  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together, for `check`."""
        if self.validation + self.test >= 1:
            shares = f"validation {self.validation:g} and test {self.test:g}"
            yield "validation", f"{shares} are 1 or more together and leave nothing to train on"

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return bool(self.rotation or self.scale or self.shift)


@dataclass(frozen=True)
class ClassificationJob:
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


JOBS: dict[str, ClassificationJob] = {
    "digits": ClassificationJob(
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
