"""What is trained in the benchmark of whole steps: networks, written once for both libraries, the
batches, and how many times faster than PyTorch a step should be."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCHES = 16  # the steps go through so many, again and again
LEARNING_RATE = 1e-3  # of AdamW
# What all contestants of the GPT take for a sequence of 1024 tokens, in bytes of the GPU.
_BYTES_OF_A_TEXT = 7e9


@dataclass(frozen=True)
class Target:
    """On a GPU, a step of `ours` should take at most 1 / `times` of the fastest of the `peers`."""

    ours: str
    times: float
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return f">= {self.times:g} x {' and '.join(self.peers)}"


EAGER, FUSED = "torch", "torch fused"
COMPILE, REDUCE = "torch.compile", "torch reduce-overhead"


@dataclass(frozen=True)
class Job:
    """A network and the batches it is trained on.

    Attributes
    ----------
    network : a function of the module `nn`, gpunn's or PyTorch's
    input_shape : of one example; with `vocabulary` it is that of tokens
    vocabulary : the number of tokens; None where inputs are normal numbers
    per_position : every token has a label, not every example
    products : the multiply-adds of each layer for one example, the first layer's first
    precision : on a GPU; "bf16" is autocast with float32 weights. Elsewhere it is "fp32"
    channels_last : images lie so in memory
    optimizer : "adamw", or "sgd" with Nesterov's momentum
    curve, compared : steps of the loss curves, and how many of them must agree
    on : "cpu", "gpu" or "both": where it is a job of the benchmark
    cpu_batch : the batch on a CPU, where that is another one
    targets : on a GPU
    """

    name: str
    batch: int
    input_shape: tuple[int, ...]
    classes: int
    products: tuple[int, ...]
    network: Callable[[Any], Any]
    vocabulary: int | None = None
    per_position: bool = False
    precision: str = "fp32"
    channels_last: bool = False
    optimizer: str = "adamw"
    curve: int = 200
    compared: int = 20
    on: str = "both"
    cpu_batch: int | None = None
    targets: tuple[Target, ...] = ()

    @property
    def flops(self) -> float:
        """Of the products of one step: forward, and backward to weights and inputs."""
        first = 0 if self.vocabulary else self.products[0]  # tokens have no gradient
        return 2.0 * self.batch * (3 * sum(self.products) - first)

    def placed(self, device: Any, memory: int | None = None) -> Job:
        """The job as it runs on a device; the batch as its memory in bytes allows."""
        if device.type != "cuda":
            return dataclasses.replace(self, batch=self.cpu_batch or self.batch, precision="fp32")
        fits = self.batch
        if memory is not None and self.vocabulary and self.input_shape == (1024,):
            while fits > 1 and fits * _BYTES_OF_A_TEXT > memory:
                fits //= 2
        return dataclasses.replace(self, batch=fits)

    def data(self, batches: int = BATCHES) -> tuple[np.ndarray, np.ndarray]:
        """Random batches with labels that the network can learn: inputs and labels."""
        rng = np.random.default_rng(7)
        if self.vocabulary:
            x = rng.integers(0, self.vocabulary, (batches, self.batch, *self.input_shape))
            table = rng.integers(0, self.classes, self.vocabulary)
            return x, table[x if self.per_position else x[..., -1]]
        size = math.prod(self.input_shape)
        x = rng.standard_normal((batches, self.batch, size), dtype=np.float32)
        teacher = rng.standard_normal((size, self.classes), dtype=np.float32)
        labels = (x @ teacher).argmax(-1).astype(np.int64)
        return x.reshape(batches, self.batch, *self.input_shape), labels


    def update(self, optim: Any, parameters: Any, **more: Any) -> Any:
        """The optimizer, from the module `optim` of either library."""
        if self.optimizer == "sgd":  # slow: beyond, rounding grows fivefold from step to step
            return optim.SGD(
                parameters, lr=5e-5, momentum=0.9, nesterov=True, weight_decay=5e-4, **more
            )
        return optim.AdamW(parameters, lr=LEARNING_RATE, **more)


# ---- the networks --------------------------------------------------------------------------------


def mlp(layers: Sequence[int], batch: int, **more: Any) -> Job:
    """``mlp-784-256-128-10``: linear layers with ReLU between them."""
    pairs = list(zip(layers, layers[1:], strict=False))

    def network(nn):
        parts = []
        for fan_in, fan_out in pairs:
            parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*parts[:-1])

    products = tuple(a * b for a, b in pairs)
    name = "mlp-" + "-".join(map(str, layers))
    return Job(name, batch, (layers[0],), layers[-1], products, network, **more)


def cnn(batch: int) -> Job:
    """``cnn-32-64``: two convolutions of 3x3 on one 28x28 channel, a pool, two linear layers."""

    def network(nn):
        return nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(),
            nn.Conv2d(32, 64, 3), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    products = (26 * 26 * 9 * 32, 24 * 24 * 9 * 32 * 64, 64 * 12 * 12 * 128, 128 * 10)
    return Job("cnn-32-64", batch, (1, 28, 28), 10, products, network, on="cpu")


def airbench(batch: int, cpu_batch: int, widths: Sequence[int] = (64, 256, 256)) -> Job:
    """``cnn-airbench``: three blocks of two convolutions for images of 32x32, each halving them.

    The sizes of airbench94 (Keller Jordan: 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024),
    with the shortcut over the second convolution that its larger sister has, and its optimizer.
    """
    last = widths[-1]

    def network(nn):
        ours = nn.__name__.startswith("gpunn")
        fused = {"activation": "relu"} if ours else {}

        class Block(nn.Module):
            def __init__(self, before: int, channels: int):
                super().__init__()
                self.conv1 = nn.Conv2d(before, channels, 3, padding=1, bias=False)
                self.pool = nn.MaxPool2d(2)
                self.norm1 = nn.BatchNorm2d(channels, **fused)
                self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                self.norm2 = nn.BatchNorm2d(channels, **fused)
                self.relu = nn.ReLU()

            def forward(self, x):
                x = self.pool(self.conv1(x))
                if ours:  # norm, sum and ReLU are one kernel of ours
                    x = self.norm1(x)
                    return self.norm2(self.conv2(x), residual=x)
                x = self.relu(self.norm1(x))
                return self.relu(self.norm2(self.conv2(x)) + x)

        blocks = [Block(a, b) for a, b in zip((24, *widths), widths, strict=False)]
        return nn.Sequential(
            nn.Conv2d(3, 24, 2), nn.ReLU(), *blocks, nn.MaxPool2d(3), nn.Flatten(),
            nn.Linear(last, 10),
        )  # fmt: skip

    products, side, before = [31 * 31 * 4 * 3 * 24], 31, 24
    for channels in widths:
        products.append(side * side * 9 * before * channels)
        side //= 2
        products.append(side * side * 9 * channels * channels)
        before = channels
    products.append(last * 10)
    return Job(
        "cnn-airbench", batch, (3, 32, 32), 10, tuple(products), network, precision="bf16",
        channels_last=True, optimizer="sgd", curve=60, compared=10, cpu_batch=cpu_batch,
        targets=(Target("gpunn compiled", 1.2, (COMPILE, REDUCE)),),
    )  # fmt: skip


def lstm(batch: int) -> Job:
    """``lstm-32-128``: 50 steps of 32 numbers through an LSTM, the last output classified."""
    steps, inputs, hidden, classes = 50, 32, 128, 10

    def network(nn):
        class Reader(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.LSTM(inputs, hidden, batch_first=True)
                self.head = nn.Linear(hidden, classes)

            def forward(self, x):
                return self.head(self.layer(x)[0][:, -1])

        return Reader()

    gates = 4 * hidden
    products = (steps * inputs * gates, steps * hidden * gates, hidden * classes)
    return Job(
        "lstm-32-128", batch, (steps, inputs), classes, products, network,
        targets=(Target("gpunn compiled", 1.1, (EAGER, FUSED)),),
    )  # fmt: skip


def language_model(batch: int, steps: int = 64, hidden: int = 512) -> Job:
    """``lstm-lm-512``: the next of 256 tokens after each of 64, by two layers of LSTM."""
    vocabulary = 256

    def network(nn):
        class Language(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(vocabulary, hidden)
                self.lstm = nn.LSTM(hidden, hidden, 2, batch_first=True)
                self.head = nn.Linear(hidden, vocabulary)

            def forward(self, tokens):
                return self.head(self.lstm(self.embedding(tokens))[0])

        return Language()

    products = (*[2 * steps * hidden * 4 * hidden] * 2, steps * hidden * vocabulary)
    return Job(
        f"lstm-lm-{hidden}", batch, (steps,), vocabulary, products, network, vocabulary=vocabulary,
        per_position=True, precision="bf16", curve=60, on="gpu",
        targets=(Target("gpunn compiled", 1.1, (EAGER, FUSED)),),
    )  # fmt: skip


def gpt(name: str, batch: int, sizes: tuple[int, int, int, int, int], **more: Any) -> Job:
    """A GPT; `sizes` are vocabulary, positions, layers, heads and width."""
    vocabulary, steps, layers, _, width = sizes

    def network(nn):
        if nn.__name__.startswith("gpunn"):
            from gpunn.models import GPT, GPTConfig

            return GPT(GPTConfig(*sizes))
        from gpunn.bench.torch_gpt import TorchGPT

        return TorchGPT(*sizes)

    block = steps * 12 * width * width + steps * (steps + 1) * width  # causal: half of attention
    products = (*[block] * layers, steps * width * vocabulary)
    return Job(
        name, batch, (steps,), vocabulary, products, network, vocabulary=vocabulary,
        per_position=True, precision="bf16", **more,
    )  # fmt: skip


_WHOLE = (
    Target("gpunn fused", 8, (EAGER,)),
    Target("gpunn fused", 2.5, (REDUCE,)),
    Target("gpunn compiled", 1.5, (REDUCE,)),
)

JOBS = (
    mlp((784, 256, 128, 10), 128, targets=_WHOLE),
    mlp((784, 256, 128, 10), 512, targets=_WHOLE),
    mlp((64, 128, 128, 10), 128, targets=(Target("gpunn fused", 5, (EAGER,)),)),
    mlp((64, 256, 128, 10), 32, on="cpu"),
    mlp((64, 256, 128, 10), 128, on="cpu"),
    mlp((64, 256, 128, 10), 512, on="cpu"),
    cnn(64),
    airbench(1024, 32),
    lstm(64),
    language_model(64),
    gpt("gpt-2-124M", 8, (50257, 1024, 12, 12, 768), curve=20, on="gpu",
        targets=(Target("gpunn compiled", 1.05, (COMPILE, REDUCE)),)),
    gpt("gpt-small", 8, (65, 64, 2, 4, 64), on="cpu"),
)  # fmt: skip


def jobs_on(device: Any, memory: int | None = None) -> list[Job]:
    """The jobs of the benchmark on a device, each as it runs there."""
    where = "gpu" if device.type == "cuda" else "cpu"
    return [job.placed(device, memory) for job in JOBS if job.on in (where, "both")]


def digits(batch: int = 128) -> tuple[np.ndarray, np.ndarray] | None:
    """Batches of scikit-learn's handwritten digits in [0, 1]; None without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        return None
    from gpunn.data.datasets.digits import load_digits

    x, y = load_digits()
    whole = len(x) // batch * batch
    return (x[:whole] / 16).reshape(-1, batch, x.shape[1]), y[:whole].reshape(-1, batch)


@functools.lru_cache(maxsize=1)
def initial_state(job: Job) -> dict[str, np.ndarray]:
    """The state dict that all begin with, drawn by our layers."""
    import gpunn
    from gpunn import nn

    gpunn.manual_seed(11)
    model = job.network(nn)
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}
