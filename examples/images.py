"""Image recognition: a small residual network of convolutions with batch norm.

By itself it learns the 1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn (test
part of the UCI repository's, BSD-3)::

    gpunn train images

The same script trains on your own copy of MNIST, Fashion-MNIST (their IDX files, .gz or not) or
CIFAR-10 (its binary version), which is work for a GPU; on a CPU add ``--set limit=5000``. Nothing
is downloaded::

    gpunn train images --set data=cifar10 --set folder=~/data/cifar-10-batches-bin

What is held out: of the digits 20 % of the images of each class, the same in every run (they were
written by the same 13 people as the others); of the other data their official test images. A tenth
of the training images is kept apart to watch the training with; nothing is chosen by the test
images. The same training images are given to the majority class, and to a logistic regression,
nearest neighbours and a support vector machine of scikit-learn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpunn import Tensor, data, nn, no_grad, optim
from gpunn.nn import functional as F
from gpunn.train import (
    Job,
    LearningRateScheduler,
    Outcome,
    Run,
    Trainer,
    check,
    device_setting,
    setting,
)
from gpunn.train.metrics import confusion_matrix
from gpunn.train.plots import confusion_matrix_figure, plot_filters, plot_misclassified

TEST_SEED = 0  # the digits to test with are the same in every run
# The baselines are fitted on at most so many images: kernels and neighbours scale no further.
BASELINE_IMAGES = 5_000


class Source(NamedTuple):
    """One of the datasets: how it is read and what suits it."""

    title: str
    load: Any  # (folder, split) -> images, labels; None: the digits that ship with scikit-learn
    classes: tuple[str, ...]
    epochs: int
    width: int  # channels of the first stage
    stages: int


DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")  # fmt: skip
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
           "truck")  # fmt: skip
SOURCES = {
    "digits": Source("Handwritten digits", None, DIGITS, 30, 16, 2),
    "mnist": Source("MNIST", data.load_mnist, DIGITS, 6, 16, 3),
    "fashion-mnist": Source("Fashion-MNIST", data.load_fashion_mnist, CLOTHES, 15, 32, 3),
    "cifar10": Source("CIFAR-10", data.load_cifar10, OBJECTS, 30, 64, 3),
}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the validation images, the initial weights, the shuffling and "
        "the augmentation", low=0)  # fmt: skip
    device: str = device_setting()
    data: str = setting("digits", "which images", choices=tuple(SOURCES))
    folder: str = setting("", "where your copy of MNIST, Fashion-MNIST or CIFAR-10 is")
    epochs: int | None = setting(None, "epochs", low=1, unset="what suits the data")
    batch_size: int = setting(64, "images of a training step", low=2)
    learning_rate: float = setting(4e-3, "the peak of the one-cycle schedule of AdamW", above=0)
    weight_decay: float = setting(0.05, "weight decay of AdamW", low=0)
    label_smoothing: float = setting(0.05, "label smoothing of the training loss", low=0, below=1)
    width: int | None = setting(None, "channels of the first stage; each further stage has twice "
        "as many", low=1, unset="what suits the data")  # fmt: skip
    blocks: int = setting(1, "residual blocks of each stage", low=1)
    augment: bool = setting(True, "change training images a little at random: turned, scaled and "
        "shifted where they show characters, else shifted, mirrored and partly covered"
    )  # fmt: skip
    validation: float = setting(0.1, "share of the training images kept apart to watch",
        above=0, below=0.5)  # fmt: skip
    limit: int | None = setting(None, "use only so many images to train and as many to test",
        low=200, unset="all of them")  # fmt: skip
    precision: str = setting("fp32", "precision of products and convolutions",
        choices=("fp32", "tf32", "bf16", "fp16"))  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with two settings together."""
        if self.source.load and not self.folder:
            yield "folder", f"data is {self.data}: say in which folder your copy of it is"
        if not self.source.load and self.folder:
            yield "folder", "the digits ship with scikit-learn; a folder goes with other data"

    @property
    def source(self) -> Source:
        """What is known of the dataset."""
        return SOURCES[self.data]


# ---- the data ------------------------------------------------------------------------------------


def load(config: Config) -> data.Split:
    """Training, validation and test images, float32 (samples, channels, height, width)."""
    source = config.source
    if source.load is None:
        x, y = data.load_digits()
        x = x.reshape(-1, 1, 8, 8)
        seen, test = data.split_indices(len(y), y, (0.8, 0.2), TEST_SEED)
        x, y, test = x[seen], y[seen], (x[test], y[test])
    else:
        folder = os.path.expanduser(config.folder)
        (x, y), test = source.load(folder, "train"), source.load(folder, "test")
    if config.limit is not None:
        (x, y), test = _some(x, y, config.limit), _some(*test, config.limit)
    shares = (1 - config.validation, config.validation)
    train, validation = data.split_indices(len(y), y, shares, config.seed)
    parts = ((x[train], y[train]), (x[validation], y[validation]), test)
    return data.Split(*((images.astype(np.float32), labels) for images, labels in parts))


def _some(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images spread over all."""
    chosen = np.linspace(0, len(y), min(count, len(y)), endpoint=False).astype(np.int64)
    return x[chosen], y[chosen]


def scaling_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and standard deviation of each channel: of the training images alone."""
    mean = images.mean(axis=(0, 2, 3), dtype=np.float64)
    std = images.std(axis=(0, 2, 3), dtype=np.float64)
    return {"mean": mean, "std": np.maximum(std, 1e-6)}


def scaled(images: np.ndarray, scaling: dict[str, np.ndarray]) -> np.ndarray:
    """(images - mean) / std, channel by channel."""
    mean, std = (scaling[name].astype(np.float32)[:, None, None] for name in ("mean", "std"))
    return (images - mean) / std


def augmentation(config: Config, shape: tuple[int, ...], scaling: dict[str, np.ndarray]) -> Any:
    """Random changes that keep what an image shows; None without."""
    if not config.augment:
        return None
    if config.data == "cifar10":
        return data.ImageAugmentation(crop=4, flip=True, cutout=8)
    if config.data == "fashion-mnist":
        return data.ImageAugmentation(crop=2, flip=True, cutout=6)
    paper = float(-scaling["mean"][0] / scaling["std"][0])  # what 0 is after scaling
    return data.RandomAffine(shape[1:], degrees=5, scale=0.05, shift=shape[1] / 26, fill=paper)


# ---- the network ---------------------------------------------------------------------------------


class Block(nn.Module):
    """relu(x + f(x)), f two 3 x 3 convolutions with batch norm; a 1 x 1 on x if sizes differ."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, activation="relu")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, activation="relu")
        self.shortcut = None
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(x), residual=shortcut)  # norm, sum and ReLU at once


class ResidualNetwork(nn.Module):
    """A first convolution, stages of blocks, each at half the size of the one before, a mean."""

    def __init__(self, channels: int, classes: int, width: int, stages: int, blocks: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, activation="relu"),
        )
        body: list[nn.Module] = []
        before = width
        for stage in range(stages):
            for block in range(blocks):
                after = width << stage
                body.append(Block(before, after, 2 if stage and not block else 1))
                before = after
        self.body = nn.Sequential(*body)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.pool(self.body(self.first(images))).flatten(1))


def network(config: Config, channels: int) -> ResidualNetwork:
    """The untrained network for images of so many channels."""
    source = config.source
    width = config.width or source.width
    return ResidualNetwork(channels, len(source.classes), width, source.stages, config.blocks)


# ---- the job -------------------------------------------------------------------------------------


def train(run: Run) -> None:
    """Train on the training images, watch the validation images, save the network."""
    config = run.config
    split = load(config)
    scaling = scaling_of(split.train[0])
    shape = split.train[0].shape[1:]
    epochs = config.epochs or config.source.epochs
    loader = data.DataLoader(
        (scaled(split.train[0], scaling), split.train[1]),
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        drop_last=len(split.train[1]) >= config.batch_size,  # a last batch of 1 has no variance
        transform=augmentation(config, shape, scaling),
        device=run.device,
    )
    model = network(config, shape[0])
    count = sum(parameter.numel() for parameter in model.parameters())
    run.say(
        f"{config.source.title}: {len(split.train[1]):,} images of {shape[1]} x {shape[2]} to "
        f"train on, {len(split.validation[1]):,} for validation, {len(split.test[1]):,} to test; "
        f"{count:,} parameters, {epochs} epochs"
    )
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        lambda parameters: optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        ),
        metrics=["accuracy"],
        device=run.device,
        seed=config.seed,
        scheduler=lambda optimizer: LearningRateScheduler(
            optim.lr_scheduler.OneCycleLR(
                optimizer, config.learning_rate, total_steps=epochs * len(loader)
            ),
            every="batch",
        ),
        precision=config.precision,
    )
    validation = (scaled(split.validation[0], scaling), split.validation[1])
    run.fit(trainer, loader, validation, epochs=epochs)
    run.save("model", model)
    run.save("scaling", {**scaling, "shape": np.array(shape)})


def classify(run: Run, images: np.ndarray) -> np.ndarray:
    """The probability of each class for images (samples, channels, height, width)."""
    scaling = run.load("scaling")
    model = run.load("model", into=network(run.config, int(scaling["shape"][0])))
    parts = []
    with no_grad():
        for begin in range(0, len(images), 500):
            some = scaled(images[begin : begin + 500], scaling)
            parts.append(F.softmax(model(Tensor(some, device=run.device)), -1).numpy())
    return np.concatenate(parts)


def baselines(split: data.Split) -> dict[str, np.ndarray]:
    """What scikit-learn, taught with the same training images, takes the test images for."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, y = _some(*split.train, BASELINE_IMAGES)
    x, test = x.reshape(len(x), -1), split.test[0].reshape(len(split.test[0]), -1)
    models = {
        "support vector machine": SVC(C=10),
        "3 nearest neighbours": KNeighborsClassifier(3),
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    }
    found = {name: model.fit(x, y).predict(test) for name, model in models.items()}
    return {**found, "majority class": np.full(len(test), np.bincount(y).argmax())}


def evaluate(run: Run) -> Outcome:
    """Accuracy on the test images; confusions, mistakes and the first filters as pictures."""
    source = run.config.source
    split = load(run.config)
    x, y = split.test
    probabilities = classify(run, x)
    predicted = probabilities.argmax(axis=1)
    draw(run, x, y, probabilities)
    others = baselines(split)
    accuracies = {name: float((guess == y).mean()) for name, guess in others.items()}
    ranked = sorted(accuracies, key=lambda name: -accuracies[name])
    notes = [verdict(predicted == y, others[ranked[0]] == y, ranked[0])]
    if len(split.train[1]) > BASELINE_IMAGES:
        notes.append(f"The baselines were taught with {BASELINE_IMAGES:,} of the training images.")
    return Outcome(
        metric="test accuracy",
        value=float((predicted == y).mean()),
        baselines={name: accuracies[name] for name in ranked},
        samples=len(y),
        what=f"images of {source.title}" if source.load else "images",
        notes=notes,
    )


def verdict(right: np.ndarray, other_right: np.ndarray, name: str) -> str:
    """How network and best baseline compare, by the images that only one of them has right."""
    own, other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    counts = f"only the network has {own} images right, only the {name} {other}"
    if (own - other) ** 2 < 4 * (own + other) or own == other:  # less than two standard deviations
        return f"Network and {name} cannot be told apart by these images: {counts}."
    return f"The network is {'better' if own > other else 'worse'} than the {name}: {counts}."


def draw(run: Run, x: np.ndarray, y: np.ndarray, probabilities: np.ndarray) -> None:
    """The pictures of the run folder."""
    source, predicted = run.config.source, probabilities.argmax(axis=1)
    matrix = confusion_matrix(probabilities, y)
    title = f"{source.title}, test images"
    run.figure("confusion", lambda: confusion_matrix_figure(matrix, source.classes, title))
    run.figure(
        "mistakes",
        lambda: plot_misclassified(x, y, predicted, probabilities, names=source.classes, limit=10),
    )
    model = run.load("model", into=network(run.config, x.shape[1]))
    run.figure("filters", lambda: plot_filters(model, title="Filters of the first convolution"))


def predict(run: Run, file: str) -> Iterator[dict[str, Any]]:
    """The class of each image of a file, and how sure the network is."""
    shape = tuple(run.load("scaling")["shape"].tolist())
    flat = data.read_samples(file, shape[1:] if shape[0] == 1 else shape).x
    probabilities = classify(run, flat.reshape(-1, *shape))
    for row, scores in enumerate(probabilities):
        best = int(scores.argmax())
        name = run.config.source.classes[best]
        yield {"row": row, "class": name, "probability": float(scores[best])}


JOB = Job(
    name="images",
    title="Image recognition by a residual network",
    use="image recognition",
    data="1,797 handwritten digits of 8 x 8 pixels, UCI repository, packaged by scikit-learn "
    "(BSD-3); or your copy of MNIST, Fashion-MNIST or CIFAR-10",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="a .npy, .npz or .csv file of images of the size that the network was trained on",
    quick={"limit": 200, "epochs": 2, "width": 4},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "images", *sys.argv[1:]]))
