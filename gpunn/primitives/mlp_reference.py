"""`mlp_train` in NumPy: the reference, and what users without a GPU train with.

Products by BLAS into buffers that are made once a call; everything between them in place. A small
network's step is then a few dozen calls of NumPy, and nothing is allocated by size of the batch
but what the activations and the loss need inside.
"""

from __future__ import annotations

import math

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import optimizer_reference
from gpunn.primitives.activation import activation_backward, activation_forward
from gpunn.primitives.clip import clip_by_norm, global_norm
from gpunn.primitives.matmul import product
from gpunn.primitives.random_reference import words_in_passes

_LARGE = 1 << 25  # multiply-adds from which `matmul`'s product is more than BLAS


class _Step:
    """The buffers of a layer, for the whole batch, and its views of the flat arrays."""

    def __init__(self, layer, parameters, gradients, batch: int, last: bool):
        self.layer, dtype = layer, parameters.dtype
        large = batch * layer.inputs * layer.outputs >= _LARGE
        self.product = product if large else np.dot
        self.ones = np.ones(batch, dtype)
        where = slice(layer.weight, layer.weight + layer.inputs * layer.outputs)
        self.weight = parameters[where].reshape(layer.outputs, layer.inputs)
        self.grad_weight = gradients[where].reshape(layer.outputs, layer.inputs)
        self.bias = self.grad_bias = None
        if layer.bias >= 0:
            where = slice(layer.bias, layer.bias + layer.outputs)
            self.bias, self.grad_bias = parameters[where], gradients[where]
        self.pre = np.empty((batch, layer.outputs), dtype)
        # The derivative of relu follows from its output, which may then lie over its input.
        over = last or layer.activation in ("relu", "identity")
        self.out = self.pre if over else np.empty_like(self.pre)
        self.slope = np.empty_like(self.pre)
        self.threshold = np.uint32(math.ceil(layer.dropout * 2**24))
        self.scale = dtype.type(1 / (1 - layer.dropout) if layer.dropout < 1 else 0)

    def forward(self, x, rows: int, keep):
        """The layer's output of `rows` rows of input, with its activation and its dropout."""
        self.x, self.keep = x, keep
        z = self.product(x, self.weight.T, self.pre[:rows])
        if self.bias is not None:
            np.add(z, self.bias, out=z)
        out = self.out[:rows]
        if self.layer.activation != "identity":
            activation_forward._reference(z, out, self.layer.activation, self.layer.alpha)
        if keep is None:
            return out
        if self.dropped is None:
            self.dropped = np.empty_like(self.pre)
        return _drop(out, keep, self.scale, self.dropped[:rows])

    dropped = None

    def backward(self, rows: int, below: _Step | None) -> None:
        """The gradients of the layer from its `slope`, and the slope of the layer below."""
        slope = self.slope[:rows]
        self.product(slope.T, self.x, self.grad_weight)
        if self.grad_bias is not None:
            np.dot(self.ones[:rows], slope, self.grad_bias)  # a third of the time of a sum
        if below is None:
            return
        grad = self.product(slope, self.weight, below.slope[:rows])
        if below.keep is not None:
            _drop(grad, below.keep, below.scale, grad)
        if below.layer.activation != "identity":
            saved = below.pre[:rows]
            activation_backward._reference(
                grad, saved, grad, below.layer.activation, below.layer.alpha
            )


def _drop(x, keep, scale, out):
    """``x * scale`` where `keep`, else 0, also for NaN: as the primitive `dropout`."""
    np.multiply(x, scale, out=out)
    bits = out.view(f"i{out.itemsize}")
    np.multiply(bits, keep, out=bits)
    return out


def _keep_flags(step: _Step, rows: int, seed: int, offset: int):
    flags = np.empty(rows * step.layer.outputs, np.bool_)
    least = step.threshold << np.uint32(8)  # word >> 8 >= threshold in one comparison
    for start, stop, words in words_in_passes(flags.size, seed, offset):
        np.greater_equal(words, least, out=flags[start:stop])
    return flags.reshape(rows, -1)


def train(x, target, order, parameters, first, second, hyper, losses, correct, work) -> None:
    """All steps; the arguments are those of ``Call.run`` in `mlp_train`."""
    gradients = np.zeros_like(parameters)
    steps, batch = order.shape
    layers = work.network.layers
    chain = [_Step(layer, parameters, gradients, batch, layer is layers[-1]) for layer in layers]
    spans = _spans(layers, exact=work.rule == "adam" and not hyper[:, 3].all())
    kept = [k for k, layer in enumerate(layers) if layer.dropout > 0]
    norm, gathered = np.empty(1, x.dtype), np.empty((batch, x.shape[1]), x.dtype)
    rows_of = np.count_nonzero(order >= 0, axis=1).tolist()
    with quiet():
        for s in range(steps):
            rows = rows_of[s]
            samples = order[s, :rows]
            current = x.take(samples, 0, gathered[:rows], "clip")
            for k, step in enumerate(chain):
                keep = None
                if k in kept:
                    at = (work.offset + s * len(kept) + kept.index(k)) % (1 << 64)
                    keep = _keep_flags(step, rows, work.seed, at)
                current = step.forward(current, rows, keep)
            _LOSSES[work.loss](
                current, target[samples], work, losses[s : s + 1], correct[s : s + 1],
                chain[-1].slope[:rows],
            )  # fmt: skip
            for k in range(len(chain) - 1, -1, -1):
                chain[k].backward(rows, chain[k - 1] if k else None)
            if work.max_norm is not None:
                global_norm._reference(gradients, norm)
                clip_by_norm._reference(gradients, norm, work.max_norm)
            for span in spans:
                _update(parameters[span], gradients[span], first, second, span, hyper[s], work)


def _spans(layers, exact: bool) -> list[slice]:
    """The parameters of all layers as few slices: gaps of an arena stay zero under the updates.

    Not with `exact`, where an update divides zero by zero in a gap.
    """
    found = []
    for layer in layers:
        found.append((layer.weight, layer.weight + layer.inputs * layer.outputs))
        if layer.bias >= 0:
            found.append((layer.bias, layer.bias + layer.outputs))
    joined: list[list[int]] = []
    for start, stop in sorted(found):
        if joined and not exact and start - joined[-1][1] < 4:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    return [slice(start, stop) for start, stop in joined]


def _update(parameters, gradients, first, second, span, hyper, work) -> None:
    if work.rule == "sgd":
        buffer = None if first is None else first[span]
        optimizer_reference.sgd_update(parameters, gradients, buffer, hyper, work.nesterov, False)
    else:
        optimizer_reference.adam_update(
            parameters, gradients, first[span], second[span], None, hyper, work.decoupled, False
        )


def _cross_entropy(logits, target, work, loss, correct, slope) -> None:
    """The formulas of `cross_entropy`, in as few passes as one gradient of the mean needs."""
    rows, classes = logits.shape
    correct[0] = np.count_nonzero(logits.argmax(axis=1) == target)
    labels = np.arange(rows), target
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=slope)
    far, smoothing = slope[labels], work.label_smoothing
    spread = float(slope.sum(dtype=np.float64)) / classes if smoothing else 0.0
    np.exp(slope, out=slope)
    total = np.add.reduce(slope, axis=1, keepdims=True)
    log_total = float(np.log(total).sum(dtype=np.float64))
    mean = log_total - (1 - smoothing) * float(far.sum(dtype=np.float64))
    if smoothing:
        mean -= smoothing * spread
    loss[0] = mean / rows
    total *= rows
    np.divide(slope, total, out=slope)
    if smoothing:
        slope -= slope.dtype.type(smoothing / (classes * rows))
    slope[labels] -= slope.dtype.type((1 - smoothing) / rows)


def _mse(prediction, target, work, loss, correct, slope) -> None:
    np.subtract(prediction, target, out=slope)
    loss[0] = float(np.square(slope).sum(dtype=np.float64)) / slope.size
    np.multiply(slope, slope.dtype.type(2 / slope.size), out=slope)
    correct[0] = 0


_LOSSES = {"cross_entropy": _cross_entropy, "mse": _mse}
