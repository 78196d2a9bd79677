"""A small multilayer perceptron trained for many steps in one call: `mlp_train`.

A step of training makes of every layer, with X the rows of the layer's input,

    Z = X W^T + b,  X' = dropout(f(Z)),  and backwards  dZ = dropout(dX') f'(Z),  dX = dZ W,
    dW = dZ^T X,  db = the sum of dZ over the rows

and of the last layer's Z the loss, whose gradient is the first dZ. Then the optimizer's rule moves
the parameters. Small networks spend most of a step on launches and on the way through memory. Here
one call makes many steps: on a GPU one kernel that stays there until the last of them, in NumPy a
loop over preallocated buffers. What comes out is what the layers, the losses and the optimizers of
gpunn compute one by one, but for the order in which products are summed.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import numpy as np

from gpunn.primitives import mlp_launch, mlp_reference, mlp_samples
from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.mlp_plan import Layer, Network, why_not
from gpunn.primitives.optimizer import HYPER
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import FLOAT32, FLOAT64

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
RULES = ("sgd", "adam")
LOSSES = ("cross_entropy", "mse")
_MOST_STEPS = 1 << 20  # of a call: meetings of blocks are counted in 32 bits

# ---- specification -------------------------------------------------------------------------------


class Work(NamedTuple):
    """The checked arguments of a call, as its implementations take them."""

    network: Network
    rule: str
    nesterov: bool
    decoupled: bool
    loss: str
    label_smoothing: float
    max_norm: float | None
    seed: int
    offset: int
    blocks: int | None
    team: int | None


@primitive(family="mlp", cuda="mlp_train.cu", numba="mlp.py")
def mlp_train(
    call, x, target, order, parameters, hyper, first_state=None, second_state=None, *, layers,
    rule: str = "sgd", nesterov: bool = False, decoupled: bool = False,
    loss: str = "cross_entropy", label_smoothing: float = 0.0, max_norm: float | None = None,
    seed: int = 0, offset: int = 0, blocks: int | None = None, team: int | None = None,
    losses=None, correct=None,
):  # fmt: skip
    """Train a multilayer perceptron for ``len(order)`` steps. Returns (losses, correct).

    The formulas are at the top of this file; the loss is the mean of cross-entropy with labels
    (`cross_entropy_forward`) or of the squared error over all numbers (`mse_forward`); the update
    is `sgd_update` or `adam_update`; the mask of dropout is that of `dropout`. Deterministic: the
    same input gives the same bits on the same device.

    Parameters
    ----------
    x : (samples, inputs) float32, all of the data; float64 on the CPU alone
    target : (samples,) int64 labels, or for "mse" (samples, outputs) in the dtype of `x`
    order : (steps, batch) int64: the samples of each step, batch from 1 to 1024. -1 stands behind
        the last sample of a batch that is shorter than the others; the mean is over real ones.
    parameters : flat array in the dtype of `x`, updated in place: an optimizer's arena
    hyper : (steps, slots) float64, for each step the values of ``HYPER[rule]`` as `advance_step`
        leaves them: its learning rate, its step count and what follows from it
    first_state, second_state : flat arrays like `parameters`, updated in place: the buffer of
        momentum (None without momentum) for "sgd"; exp_avg and exp_avg_sq for "adam"
    layers : for each layer a `Layer` (gpunn.primitives.mlp_plan), or a tuple like it: inputs,
        outputs, where its weight (outputs, inputs) and its bias (or None) start in `parameters`,
        activation, alpha, dropout. At most 1024 inputs and 512 outputs each; weights start at
        multiples of 4. The last layer has neither activation nor dropout.
    rule : "sgd", with `nesterov`, or "adam", with `decoupled` for AdamW
    loss : "cross_entropy", with `label_smoothing`, or "mse"
    max_norm : all gradients are scaled together to a norm of at most this, as by `clip_by_norm`
    seed, offset : of the masks of dropout. The dropouts of one step take one offset each, in the
        order of the layers, and the steps follow each other: step s begins at
        offset + s · (number of layers with dropout), as the layers one by one would.
    blocks, team : of the GPU's kernel, its blocks and how many of them share out the products of
        the same rows; None for what `mlp_plan` estimates to be best
    losses, correct : arrays to write

    Returns
    -------
    losses : (steps,) in the dtype of `x`, of each step before its update, with dropout
    correct : (steps,) int32, how often the largest output stood at the label; 0 for "mse"

    Raises
    ------
    TypeError, ValueError : shapes, dtypes or layers that do not fit each other or the limits. On
        the CPU also a sample or label that does not exist; on a GPU, where looking would mean
        to wait, the loss and all parameters become NaN.
    """
    x = call.array("x", x, dtypes=(FLOAT32, FLOAT64), ndim=2)
    work = Work(
        _network(call, x, parameters, layers), call.choice("rule", rule, RULES), bool(nesterov),
        bool(decoupled), call.choice("loss", loss, LOSSES),
        call.number("label_smoothing", label_smoothing, low=0, high=1),
        None if max_norm is None else call.number("max_norm", max_norm, low=0),
        _counter(call, "seed", seed), _counter(call, "offset", offset), blocks,
        team,
    )  # fmt: skip
    _check_options(call, work)
    samples, outputs = x.shape[0], work.network.layers[-1].outputs
    if loss == "mse":
        target = call.array("target", target, dtypes=(x.dtype,), shape=(samples, outputs))
    else:
        target = call.array("target", target, dtypes=(INT64,), shape=(samples,))
    order = call.array("order", order, dtypes=(INT64,), ndim=2)
    reason = why_not(work.network, order.shape[1])
    call.require(not reason, "layers", f"cannot be trained in one kernel: {reason}", _REMEDY)
    call.require(
        order.shape[0] <= _MOST_STEPS, "order", f"has {order.shape[0]} steps",
        f"give at most {_MOST_STEPS} a call",
    )  # fmt: skip
    if type(x) is np.ndarray:  # on a GPU the question would wait for all work under way
        _check_order(call, order, samples, target, outputs, loss)
    parameters = call.inplace("parameters", parameters, dtypes=(x.dtype,))
    states = _states(call, parameters, work, first_state, second_state)
    shape = (order.shape[0], len(HYPER[rule]))
    hyper = call.array("hyper", hyper, dtypes=(FLOAT64,), shape=shape)
    losses = call.output("losses", losses, shape=shape[:1], dtype=x.dtype)
    correct = call.output("correct", correct, shape=shape[:1], dtype=INT32)
    if shape[0]:
        call.run(x, target, order, parameters.reshape(-1), *states, hyper, losses, correct, work)
    return losses, correct


_REMEDY = "train it layer by layer"


def _counter(call, name: str, value) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    call.require(
        0 <= number < 1 << 64, name, f"is {value!r:.60}", "expected an integer from 0 to 2^64 - 1"
    )
    return number


def _network(call, x, parameters, layers) -> Network:
    """The layers, checked against each other and against the arrays."""
    layers = tuple(Layer(*layer) for layer in layers)
    call.require(len(layers) > 0, "layers", "is empty", "give one Layer for each linear layer")
    size, inputs, made = math.prod(parameters.shape), x.shape[1], []
    for i, layer in enumerate(layers):
        name = f"layers[{i}]"
        call.require(
            layer.inputs == inputs, name, f"has {layer.inputs} inputs",
            f"expected {inputs}, as many as {'the one before gives' if i else 'x has columns'}",
        )  # fmt: skip
        call.choice(f"{name}.activation", layer.activation, ACTIVATIONS)
        call.number(f"{name}.dropout", layer.dropout, low=0, high=1)
        layer = layer.complete()
        starts = (layer.weight, layer.bias + 1)
        ends = (layer.weight + layer.inputs * layer.outputs, layer.bias + layer.outputs)
        call.require(
            min(starts) >= 0 and max(ends) <= size and layer.weight % 4 == 0, name,
            f"lies at {layer.weight} and {layer.bias} of {size} parameters",
            "expected a weight at a multiple of 4 and both within the parameters",
        )  # fmt: skip
        made.append(layer)
        inputs = layer.outputs
    last = made[-1]
    call.require(
        last.activation == "identity" and last.dropout == 0, f"layers[{len(made) - 1}]",
        f"has activation {last.activation} and dropout {last.dropout}",
        "the last layer has neither: the loss takes its outputs as they are",
    )  # fmt: skip
    return Network(tuple(made))


def _check_options(call, work: Work) -> None:
    for flag, rule in (("nesterov", "sgd"), ("decoupled", "adam")):
        call.require(
            not getattr(work, flag) or work.rule == rule, flag, f"is given with {work.rule}",
            f"it belongs to {rule}",
        )  # fmt: skip
    call.require(
        work.label_smoothing == 0 or work.loss == "cross_entropy", "label_smoothing",
        "is given with mse", "it belongs to cross_entropy",
    )  # fmt: skip
    for name in ("blocks", "team"):
        value = getattr(work, name)
        call.require(value is None or value >= 1, name, f"is {value}", "give 1 or more, or None")
    call.require(
        work.team is None or (work.blocks or 0) >= work.team, "team", f"is {work.team}",
        f"blocks is {work.blocks}: give as many blocks or more",
    )  # fmt: skip


def _states(call, parameters, work: Work, first, second) -> tuple:
    """The two states, checked; None for what the rule does not have."""
    made = []
    for name, state, needed in (
        ("first_state", first, work.rule == "adam" or work.nesterov),
        ("second_state", second, work.rule == "adam"),
    ):
        call.require(
            not needed or state is not None, name, "is None", "give an array of zeros before step 1"
        )
        if state is not None:
            call.require(
                name == "first_state" or needed, name, f"is given with {work.rule}", "leave it out"
            )
            state = call.inplace(
                name, state, dtypes=(parameters.dtype,), shape=parameters.shape
            ).reshape(-1)
        made.append(state)
    return tuple(made)


def _check_order(call, order, samples: int, target, outputs: int, loss: str) -> None:
    """On the CPU: samples and labels exist, and -1 stands behind them only."""
    if order.size == 0:
        return
    low, high = int(order.min()), int(order.max())
    call.require(
        low >= -1 and high < samples, "order", f"holds samples from {low} to {high}",
        f"expected 0 to {samples - 1}, or -1 behind the last of a short batch",
    )  # fmt: skip
    if low < 0:
        real = order >= 0
        call.require(
            real[:, 0].all() and not (real[:, 1:] > real[:, :-1]).any(), "order",
            "has a batch without samples, or -1 before a sample", "put -1 behind the samples",
        )  # fmt: skip
    if loss == "cross_entropy" and target.size:
        low, high = int(target.min()), int(target.max())
        call.require(
            low >= 0 and high < outputs, "target", f"holds labels from {low} to {high}",
            f"the last layer has {outputs} outputs, for the labels 0 to {outputs - 1}",
        )  # fmt: skip


# ---- implementations, cost, samples --------------------------------------------------------------

mlp_train.reference(mlp_reference.train)
mlp_train.cuda(mlp_launch.launch_cuda)
mlp_train.numba(mlp_launch.launch_numba)


@mlp_train.cost
def _(x, target, order, parameters, first, second, hyper, losses, correct, work):
    """The products of all steps; what must move: the samples, and the parameters once."""
    steps, batch = order.shape
    weights = [layer.inputs * layer.outputs for layer in work.network.layers]
    flops = 2.0 * steps * batch * (3 * sum(weights) - weights[0])
    flops += 20.0 * steps * sum(weights)
    states = [array for array in (parameters, first, second) if array is not None]
    moved = sum(array.nbytes for array in states)
    rows = min(x.shape[0], steps * batch)
    read = moved + rows * (x[:1].nbytes + target[:1].nbytes) + order.nbytes + hyper.nbytes
    return Cost(flops=flops, read=read, written=moved + losses.nbytes + correct.nbytes)


mlp_train.samples(mlp_samples.samples)
mlp_train.inputs(mlp_samples.inputs)
mlp_train.bench_shapes = mlp_samples.BENCH_SHAPES
mlp_train.bench_in_float32 = True
