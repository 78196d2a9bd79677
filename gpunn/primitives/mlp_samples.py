"""`mlp_train`: its parity samples and its benchmark inputs."""

from __future__ import annotations

import numpy as np

from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.mlp_plan import Layer
from gpunn.primitives.optimizer_reference import advance_step
from gpunn.primitives.samples import FLOAT32, Fixed, Sample

# Steps of training add to each other's rounding; Adam divides by roots of small numbers.
_TOLERANCE = {FLOAT32: 2e-5}


def chain(widths, activations=None, dropout=0.0, bias=True) -> tuple[tuple[Layer, ...], int]:
    """Layers of these widths, one behind the other in an arena, and the size of the arena.

    `activations` are those of the hidden layers, taken in turn; None for relu.
    """
    activations = activations or ("relu",)
    layers, at = [], 0
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i + 2 == len(widths)
        weight, at = at, at + -(-inputs * outputs // 4) * 4
        start = None
        if bias:
            start, at = at, at + -(-outputs // 4) * 4
        name = "identity" if last else activations[i % len(activations)]
        layers.append(Layer(inputs, outputs, weight, start, name, None, 0.0 if last else dropout))
    return tuple(layers), at


def arena(rng, layers, size: int) -> np.ndarray:
    """Weights of a sensible size, zeros in the gaps."""
    parameters = np.zeros(size)
    for layer in layers:
        count, bound = layer.inputs * layer.outputs, layer.inputs**-0.5
        parameters[layer.weight : layer.weight + count] = rng.uniform(-bound, bound, count)
        if layer.bias is not None:
            parameters[layer.bias : layer.bias + layer.outputs] = rng.uniform(
                -bound, bound, layer.outputs
            )
    return parameters


def hyper_rows(rule: str, steps: int, **values) -> np.ndarray:
    """``hyper`` of each step, with a learning rate that falls by a tenth a step."""
    from gpunn.primitives.optimizer import hyper_array

    hyper, rows = hyper_array(rule, **values), []
    for step in range(steps):
        hyper[0] = values["lr"] * 0.9**step
        advance_step(hyper, rule)
        rows.append(hyper.copy())
    return np.array(rows)


_ADAM = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3}
_MOMENTUM = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}


def _sample(
    rng, name: str, widths, batch: int, steps: int = 3, samples: int = 23, rule: str = "sgd",
    values=None, activations=None, dropout: float = 0.0, bias: bool = True, short: int = 0,
    classes: bool = True, **more,
) -> Sample:  # fmt: skip
    """A sample of the primitive; `short` rows are missing from the last batch."""
    layers, size = chain(widths, activations, dropout, bias)
    values = values or {"lr": 0.1}
    numba, unaligned = more.pop("numba", True), more.pop("unaligned", False)
    order = rng.integers(0, samples, (steps, batch))
    if short:
        order[-1, batch - short :] = -1
    if classes:
        target = rng.integers(0, widths[-1], samples)
    else:
        target, more["loss"] = rng.normal(size=(samples, widths[-1])), "mse"
    states = 2 if rule == "adam" else 1 if values.get("momentum") else 0
    parameters = arena(rng, layers, size)
    args = (
        rng.normal(size=(samples, widths[0])), target, order, parameters,
        Fixed(hyper_rows(rule, steps, **values)),
        *(0.01 * rng.random(size) * (parameters != 0) for _ in range(states)),
    )  # fmt: skip
    kwargs = {"layers": layers, "rule": rule, **more}
    return Sample(name, args, kwargs, tolerance=_TOLERANCE, numba=numba, unaligned=unaligned)


def samples(rng):
    """Both losses, every rule, activation and way of the launch; odd widths, a short batch."""
    yield _sample(rng, "7-5-3", (7, 5, 3), 4, steps=2, short=1)
    yield _sample(
        rng, "adam, dropout, clipped", (6, 5, 9, 4), 5, rule="adam", values=_ADAM, dropout=0.3,
        activations=("gelu", "tanh"), max_norm=0.2, label_smoothing=0.1, seed=11, offset=2**40,
        blocks=2, team=2, short=2,
    )  # fmt: skip
    yield _sample(
        rng, "one layer, nesterov, mse", (5, 6), 3, values=_MOMENTUM, nesterov=True, classes=False
    )
    yield _sample(
        rng, "no bias, adamw, mse", (4, 8, 2), 3, rule="adam", decoupled=True, bias=False,
        values={**_ADAM, "weight_decay": 0.1}, classes=False, max_norm=100.0,
    )  # fmt: skip
    names = (*ACTIVATIONS[1:7], *ACTIVATIONS[7:])
    yield _sample(rng, "all activations", (3, *(4,) * len(names), 2), 3, 1, activations=names)
    yield _sample(
        rng, "many blocks", (132, 36, 41, 11), 21, 2, 30, values=_MOMENTUM, dropout=0.2,
        blocks=7, team=3, numba=False,
    )  # fmt: skip
    yield _sample(
        rng, "unaligned", (12, 8, 4), 70, 2, 80, rule="adam", values=_ADAM, blocks=3,
        unaligned=True, numba=False,
    )  # fmt: skip
    yield _sample(
        rng, "data in memory", (260, 65, 40), 3, 1, 5, values={"lr": 0.1}, blocks=1, numba=False,
    )  # fmt: skip


# ---- benchmark inputs ----------------------------------------------------------------------------

# Samples, batch, width of the hidden layers, their number; 64 inputs and 10 classes up to a width
# of 128, beyond it 784 inputs as of the digits.
BENCH_SHAPES = (
    (8192, 128, 128, 2), (2048, 32, 32, 2), (4096, 64, 64, 2), (8192, 128, 256, 2),
    (16384, 512, 256, 2), (16384, 512, 512, 2), (8192, 256, 128, 4), (8192, 1024, 64, 8),
)  # fmt: skip


def inputs(rng, shape):
    """An epoch of Adam on random labels."""
    count, batch, width, depth = shape
    batch = min(batch, count)
    layers, size = chain((64 if width <= 128 else 784, *(width,) * depth, 10))
    steps = count // batch
    values = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    args = (
        rng.standard_normal((count, layers[0].inputs), dtype=np.float32),
        rng.integers(0, 10, count), rng.permutation(count)[: steps * batch].reshape(steps, batch),
        arena(rng, layers, size).astype(np.float32), hyper_rows("adam", steps, **values),
        np.zeros(size, np.float32), np.zeros(size, np.float32),
    )  # fmt: skip
    return args, {"layers": layers, "rule": "adam"}
