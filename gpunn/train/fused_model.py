"""Which models, losses and optimizers `mlp_train` can train: read off the objects.

Every function raises `Refused` with a clause that says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn import nn
from gpunn.models.mlp import MLP
from gpunn.nn.activation import FUSABLE
from gpunn.optim import SGD, Adam, AdamW
from gpunn.primitives.mlp_plan import Layer, Network

_CONTAINERS = (nn.Sequential, MLP)


class Stage(NamedTuple):
    """A linear layer as it was found in the model, with what follows it."""

    linear: nn.Linear
    activation: str
    alpha: float | None
    dropout: float


class Refused(Exception):
    """The text is the reason, as a clause: "the optimizer is …"."""


def _refuse(reason: str) -> None:
    raise Refused(reason)


def modules_of(module: Any, found: list[Any]) -> list[Any]:
    """The modules of nested Sequentials in the order in which they run."""
    if module._forward_hooks:
        _refuse(f"a {type(module).__name__} of the model has forward hooks")
    if type(module) in _CONTAINERS:
        for own in module:
            modules_of(own, found)
    elif type(module) is not nn.Identity:
        found.append(module)
    return found


def read_stages(model: Any) -> list[Stage]:
    if type(model) not in _CONTAINERS:
        _refuse(f"the model is a {type(model).__name__}, not a Sequential or MLP")
    modules = modules_of(model, [])
    stages: list[Stage] = []
    position = 0
    if modules and type(modules[0]) is nn.Flatten:
        flatten = modules[0]
        if (flatten.start_dim, flatten.end_dim) != (1, -1):
            _refuse("its Flatten leaves more than one dimension beside the batch")
        position = 1
    while position < len(modules):
        linear = modules[position]
        if type(linear) is not nn.Linear:
            _refuse(_misplaced(linear, bool(stages)))
        position += 1
        activation, alpha, dropout = "identity", None, 0.0
        if position < len(modules) and type(modules[position]) in FUSABLE:
            activation, alpha = modules[position].kernel
            position += 1
        if position < len(modules) and type(modules[position]) is nn.Dropout:
            dropout = float(modules[position].p)
            position += 1
        stages.append(Stage(linear, activation, alpha, dropout))
    if not stages:
        _refuse("the model has no Linear layer")
    _check_stages(stages)
    return stages


def _misplaced(module: Any, inside: bool) -> str:
    name = type(module).__name__
    if type(module) in FUSABLE or isinstance(module, nn.Dropout):
        where = "does not follow a Linear and its activation" if inside else "comes first"
        return f"the {name} {where}"
    return f"the model has a {name}, which is no part of it"


def _check_stages(stages: list[Stage]) -> None:
    parameters = [p for stage in stages for p in parameters_of(stage)]
    if len({id(p) for p in parameters}) < len(parameters):
        _refuse("layers share a parameter")
    if not all(p.requires_grad for p in parameters):
        _refuse("a parameter is frozen (requires_grad is False)")
    for first, second in zip(stages, stages[1:], strict=False):
        if first.linear.out_features != second.linear.in_features:
            _refuse(
                f"a Linear gives {first.linear.out_features} numbers and the next one takes "
                f"{second.linear.in_features}"
            )
    if any(stage.dropout == 1 for stage in stages):
        _refuse("a Dropout of probability 1 drops everything")
    if stages[-1].activation != "identity" or stages[-1].dropout:
        _refuse("something follows the last Linear")


def parameters_of(stage: Stage) -> list[Any]:
    linear = stage.linear
    return [linear.weight] if linear.bias is None else [linear.weight, linear.bias]


def read_loss(loss: Any) -> dict[str, Any]:
    """The loss as `mlp_train` names it."""
    kind = type(loss)
    if kind not in (nn.CrossEntropyLoss, nn.MSELoss):
        _refuse(f"the loss is {getattr(kind, '__name__', kind)}, not CrossEntropyLoss or MSELoss")
    if loss._forward_hooks:
        _refuse("the loss has forward hooks")
    if loss.reduction != "mean":
        _refuse(f"the loss has reduction {loss.reduction!r}, not 'mean'")
    if kind is nn.MSELoss:
        return {"loss": "mse"}
    if loss._buffers["weight"] is not None:
        _refuse("the loss has class weights")
    if loss.ignore_index >= 0:
        _refuse(f"the loss ignores the label {loss.ignore_index}")
    return {"loss": "cross_entropy", "label_smoothing": float(loss.label_smoothing)}


def check_optimizer(optimizer: Any, parameters: list[Any]) -> None:
    if type(optimizer) not in (SGD, Adam, AdamW):
        _refuse(f"the optimizer is {type(optimizer).__name__}, not SGD, Adam or AdamW")
    if any(arena.bounds is not None for arena in optimizer.arenas):
        _refuse("the optimizer's states are sharded over ranks")
    if len(optimizer.param_groups) != 1:
        _refuse(f"the optimizer has {len(optimizer.param_groups)} parameter groups, not one")
    (group,) = optimizer.param_groups
    for flag in ("maximize", "amsgrad"):
        if group.get(flag):
            _refuse(f"the optimizer has {flag}=True")
    if {id(p) for p in group["params"]} != {id(p) for p in parameters}:
        _refuse("the optimizer's parameters are not just the model's")
    dtypes = {p.dtype for p in parameters}
    if dtypes != {np.dtype(np.float32)}:
        _refuse(f"the parameters are {', '.join(sorted(map(str, dtypes)))}, not float32")
    if len({p.device for p in parameters}) > 1:
        _refuse("the parameters are on more than one device")


def read_regularization(regularization: Any) -> float | None:
    """The limit on the gradients' norm."""
    if regularization is None:
        return None
    if regularization.l1 or regularization.l2:
        _refuse("there is an L1 or L2 penalty; weight_decay of the optimizer would be possible")
    if regularization.clip_value is not None:
        _refuse("gradients are clipped by value")
    return regularization.clip_norm


def network_of(stages: Sequence[Stage], where: Callable[[Any], int] = lambda p: 0) -> Network:
    """The layers, with their places in an arena where they matter."""
    return Network(tuple(
        Layer(
            linear.in_features, linear.out_features, where(linear.weight),
            None if linear.bias is None else where(linear.bias), activation, alpha, dropout,
        ).complete()
        for linear, activation, alpha, dropout in stages
    ))  # fmt: skip
