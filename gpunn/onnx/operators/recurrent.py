"""RNN, LSTM and GRU: by our kernels where they compute the same, else step by step.

ONNX stacks the weights of both directions in the first dimension and names other gates first; see
https://onnx.ai/onnx/operators/onnx__LSTM.html. T steps,
B sequences, I inputs, H hidden, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import gpunn
from gpunn.autograd.functions import arithmetic, elementwise
from gpunn.autograd.functions.activation import activate, sigmoid, tanh
from gpunn.autograd.functions.recurrent import recurrent
from gpunn.autograd.functions.shape import permute
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.registry import Node, operator

# ONNX's order of gates -> ours (PyTorch's): positions of i f g o in i o f c, of r z n in z r h.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

_NAMED = math.nan  # a number for which ONNX has no default
# name -> (function of x, alpha, beta; default of alpha; default of beta), None: it takes none
_ACTIVATIONS: dict[str, tuple[Callable, float | None, float | None]] = {
    "relu": (lambda x, a, b: activate(x, "relu"), None, None),
    "tanh": (lambda x, a, b: tanh(x), None, None),
    "sigmoid": (lambda x, a, b: sigmoid(x), None, None),
    "softsign": (lambda x, a, b: x / (1 + elementwise.abs(x)), None, None),
    "softplus": (lambda x, a, b: activate(x, "softplus"), None, None),
    "leakyrelu": (lambda x, a, b: activate(x, "leaky_relu", a), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: arithmetic.where(x > a, x, 0.0), 1.0, None),
    "elu": (lambda x, a, b: activate(x, "elu", a), 1.0, None),
    "affine": (lambda x, a, b: x * a + b, _NAMED, _NAMED),
    "scaledtanh": (lambda x, a, b: tanh(x * b) * a, _NAMED, _NAMED),
    "hardsigmoid": (lambda x, a, b: elementwise.clamp(x * a + b, 0.0, 1.0), 0.2, 0.5),
}


class Settings:
    """What the attributes of a recurrent node say."""

    def __init__(self, node: Node):
        self.node, self.op = node, node.op
        direction = node.choice("direction", "forward", ("forward", "reverse", "bidirectional"))
        self.reverse = {"forward": (False,), "reverse": (True,)}.get(direction, (False, True))
        self.batch_first = node.flag("layout")
        self.hidden = node.int("hidden_size")
        self.clip = node.float("clip")
        self.couples = node.flag("input_forget") if self.op == "LSTM" else False
        self.reset_after = node.flag("linear_before_reset") if self.op == "GRU" else True
        node.skip("output_sequence")  # of version 1; outputs are wanted or not by their names
        default = _DEFAULTS[self.op] * len(self.reverse)
        names = tuple(name.lower() for name in node.texts("activations", default))
        if len(names) != len(default):
            raise node.refuse(f"attribute 'activations' names {len(names)} of {len(default)}")
        self.usual = [name.lower() for name in default] == list(names)
        self.relu = self.op == "RNN" and set(names) == {"relu"}
        self.functions = self._functions(names)

    def _functions(self, names: tuple[str, ...]) -> list[Callable]:
        alphas = iter(self.node.floats("activation_alpha", ()))
        betas = iter(self.node.floats("activation_beta", ()))
        found = []
        for name in names:
            if name not in _ACTIVATIONS:
                raise self.node.refuse(
                    f"attribute 'activations' names {name!r}; gpunn has {', '.join(_ACTIVATIONS)}"
                )
            function, alpha, beta = _ACTIVATIONS[name]
            alpha = None if alpha is None else next(alphas, alpha)
            beta = None if beta is None else next(betas, beta)
            if any(number is not None and math.isnan(number) for number in (alpha, beta)):
                raise self.node.refuse(
                    f"attribute 'activations' names {name!r}, which needs a number of its own in "
                    "'activation_alpha' and in 'activation_beta'"
                )
            found.append(_bound(function, alpha, beta))
        return found

    @property
    def has_kernel(self) -> bool:
        """Whether our kernels compute the same."""
        usual = self.usual or self.relu
        return usual and not self.clip and not self.couples and self.reset_after


def _bound(function: Callable, alpha: Any, beta: Any) -> Callable:
    return lambda x: function(x, alpha, beta)


@operator("RNN GRU LSTM")
def recurrent_layer(node: Node):
    settings = Settings(node)

    def run(x, w, r, b=None, lengths=None, h=None, c=None, peephole=None):
        if settings.batch_first:
            x = permute(x, 1, 0, 2)
            h, c = (None if t is None else permute(t, 1, 0, 2) for t in (h, c))
        if lengths is not None and not _ragged(lengths, x.shape[0]):
            lengths = None
        outputs, last_h, last_c = [], [], []
        for number, reverse in enumerate(settings.reverse):
            parts = [None if t is None else t[number] for t in (w, r, b, h, c, peephole)]
            y, y_h, y_c = _direction(settings, x, parts, lengths, reverse, number)
            outputs.append(y)
            last_h.append(y_h)
            last_c.append(y_c)
        y, y_h = gpunn.stack(outputs, 1), gpunn.stack(last_h, 0)  # (T, D, B, H) and (D, B, H)
        y_c = gpunn.stack(last_c, 0) if node.op == "LSTM" else None
        if settings.batch_first:
            y, y_h = permute(y, 2, 0, 1, 3), permute(y_h, 1, 0, 2)
            y_c = None if y_c is None else permute(y_c, 1, 0, 2)
        return (y, y_h, y_c) if node.op == "LSTM" else (y, y_h)

    return run


def _ragged(lengths: Tensor, steps: int) -> bool:
    """Whether some sequence is shorter than the others; unknown on a GPU, where looking waits."""
    array = lengths._array
    return type(array) is not np.ndarray or bool((array != steps).any())


def _direction(settings: Settings, x, parts: list, lengths, reverse: bool, number: int):
    w, r, b, h, c, peephole = parts
    if not settings.has_kernel or peephole is not None:
        return _step_by_step(settings, x, parts, lengths, reverse, number)
    order = _ORDER[settings.op]
    gates, size = len(order), r.shape[-1]

    def ours(t: Tensor) -> Tensor:
        return t if gates == 1 else gpunn.cat([t[k * size : (k + 1) * size] for k in order], 0)

    b_w = b_r = None
    if b is not None:
        b_w, b_r = ours(b[: gates * size]), ours(b[gates * size :])
    mode = {"LSTM": "lstm", "GRU": "gru"}.get(
        settings.op, "rnn_relu" if settings.relu else "rnn_tanh"
    )
    rows = None if lengths is None else lengths.long()._array
    return recurrent(x, ours(w), ours(r), b_w, b_r, h, c, rows, mode=mode, reverse=reverse)


# ---- what no kernel computes ---------------------------------------------------------------------


def _step_by_step(settings: Settings, x, parts: list, lengths, reverse: bool, number: int):
    """One direction by the formulas of ONNX, on Tensors."""
    w, r, b, h, c, peephole = parts
    steps, batch, _ = x.shape
    size, gates = r.shape[-1], len(_ORDER[settings.op])
    zeros = wrap(x._xp.zeros((batch, size), x.dtype))
    h, c = zeros if h is None else h, zeros if c is None else c
    b_w, b_r = (b[: gates * size], b[gates * size :]) if b is not None else (None, None)
    cell = Cell(settings, number, r, b_r, peephole, size)
    fed = gpunn.matmul(x, permute(w, 1, 0))
    fed = fed if b_w is None else fed + b_w
    inside = None
    if lengths is not None:
        inside = lengths._array[None] > x._xp.arange(steps)[:, None]
    outputs: list[Any] = [None] * steps
    for step in reversed(range(steps)) if reverse else range(steps):
        new_h, new_c = cell(fed[step], h, c)
        if inside is None:
            h, c, outputs[step] = new_h, new_c, new_h
            continue
        here = wrap(inside[step][:, None])
        h, c = arithmetic.where(here, new_h, h), arithmetic.where(here, new_c, c)
        outputs[step] = arithmetic.where(here, new_h, 0.0)
    return gpunn.stack(outputs, 0), h, c


class Cell:
    """One step of a recurrent layer: ``cell(fed, h, c) -> (h, c)``."""

    def __init__(self, settings: Settings, number: int, r, bias, peephole, size: int):
        self.settings, self.size = settings, size
        each = len(_DEFAULTS[settings.op])
        self.functions = settings.functions[number * each : (number + 1) * each]
        self.r, self.bias = permute(r, 1, 0), bias
        self.peepholes = None if peephole is None else peephole.split(size, 0)

    def __call__(self, fed: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(self, self.settings.op.lower())(fed, h, c)

    def _clipped(self, x: Tensor) -> Tensor:
        clip = self.settings.clip
        return elementwise.clamp(x, -clip, clip) if clip else x

    def _of_state(self, h: Tensor, gates: slice) -> Tensor:
        part = slice(gates.start * self.size, gates.stop * self.size)
        out = gpunn.matmul(h, self.r[:, part])
        return out if self.bias is None else out + self.bias[part]

    def rnn(self, fed, h, c):
        (f,) = self.functions
        return f(self._clipped(fed + self._of_state(h, slice(0, 1)))), c

    def gru(self, fed, h, c):
        f, g = self.functions
        x_z, x_r, x_n = fed.split(self.size, -1)
        s_z, s_r = self._of_state(h, slice(0, 2)).split(self.size, -1)
        z, r = f(self._clipped(x_z + s_z)), f(self._clipped(x_r + s_r))
        last = slice(2, 3)
        if self.settings.reset_after:
            n = g(self._clipped(x_n + r * self._of_state(h, last)))
        else:
            n = g(self._clipped(x_n + self._of_state(r * h, last)))
        return (1 - z) * n + z * h, c

    def lstm(self, fed, h, c):
        f, g, output = self.functions
        i, o, forget, new = (fed + self._of_state(h, slice(0, 4))).split(self.size, -1)
        if self.peepholes is not None:
            p_i, p_o, p_f = self.peepholes
            i, forget = i + p_i * c, forget + p_f * c
        i = f(self._clipped(i))
        forget = 1 - i if self.settings.couples else f(self._clipped(forget))
        c = forget * c + i * g(self._clipped(new))
        if self.peepholes is not None:
            o = o + p_o * c
        return f(self._clipped(o)) * output(c), c
