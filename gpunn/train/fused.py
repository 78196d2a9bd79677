"""Small multilayer perceptrons trained by one kernel for many steps: who may, and how.

`fused_plan` looks at a model, its loss and its optimizer and either gives a `FusedNetwork` or says
in a sentence why not. The network trains on the optimizer's own arrays: after `FusedNetwork.run`
the parameters, the optimizer's state and step, and the random offset are what the same steps layer
by layer would have left, to rounding, and either way can go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn import nn
from gpunn.autograd.random import Generator, default_generator
from gpunn.autograd.tensor import raw_array
from gpunn.device import array_module, to_device
from gpunn.device.transfer import uploader
from gpunn.primitives.mlp import mlp_train
from gpunn.primitives.mlp_plan import Part, choose, estimate_parts, why_not
from gpunn.primitives.optimizer import HYPER
from gpunn.train.fused_model import (
    Refused,
    Stage,
    check_optimizer,
    modules_of,
    network_of,
    parameters_of,
    read_loss,
    read_regularization,
    read_stages,
)

# Layer by layer: a small kernel in a graph, and float32 products by three of bfloat16.
_LAUNCH, _PRODUCTS = 4.5e-6, 60e12  # seconds; operations a second
_H200_CLOCK = 1.98e9  # cycles a second at the most, from the data sheet's 67 TFLOP/s


class Refusal(NamedTuple):
    """Why one kernel cannot train the network, as a clause: "the optimizer is …"."""

    reason: str

    def __bool__(self) -> bool:
        return False


class ExplainedPart(NamedTuple):
    """A part of a step in the kernel: its estimate from data sheets, and what limits it."""

    part: str  # "rows", "weights", "meetings"
    what: str
    blocks: int
    seconds: float
    limit: str  # "compute", "memory", "latency"


# ---- who may -------------------------------------------------------------------------------------


def fused_plan(
    model: Any,
    loss: Any,
    optimizer: Any,
    regularization: Any = None,
    batch_size: int = 32,
    dtype: Any = np.float32,
) -> FusedNetwork | Refusal:
    """The network as one kernel trains it, or why not.

    Parameters
    ----------
    model : a `Sequential` or `models.MLP` of Linear layers with activations and dropout between,
        perhaps behind a Flatten; it is taken to be in training mode
    loss : `CrossEntropyLoss` without class weights, or `MSELoss`, of reduction "mean"
    optimizer : `SGD`, `Adam` or `AdamW` over just the model's parameters, in one group
    regularization : a `gpunn.train.regularization.Regularization`, or None
    batch_size : samples of a step
    dtype : what the products are computed in; only float32 is
    """
    try:
        if np.dtype(dtype) != np.float32:
            return Refusal(f"it computes in float32, and {np.dtype(dtype)} is asked for")
        stages = read_stages(model)
        options = read_loss(loss)
        check_optimizer(optimizer, [p for stage in stages for p in parameters_of(stage)])
        max_norm = read_regularization(regularization)
    except Refused as refused:
        return Refusal(str(refused))
    reason = why_not(network_of(stages), batch_size)
    if reason:
        return Refusal(reason)
    flat = modules_of(model, [])[0]
    return FusedNetwork(
        stages, optimizer, options, max_norm, int(batch_size), type(flat) is nn.Flatten
    )


def _as(array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else array.astype(dtype)


def _what(part: Part, plan: Any) -> str:
    if part.name == "rows":
        return "forward, loss and backward of 8 rows of the batch a block"
    if part.name == "weights":
        return f"{plan.tiles} tiles of the weights' gradients, each updated at once"
    if plan.blocks == 1:
        return "the start of a step; one block, which waits for nobody"
    return "the start of a step, and all blocks waiting for each other"


# ---- how -----------------------------------------------------------------------------------------


def batches_of(order: np.ndarray, batch_size: int, drop_last: bool = False) -> np.ndarray:
    """Sample numbers in the order of an epoch as (steps, batch_size) int64, -1 behind the last.

    What `FusedNetwork.run` takes; on a GPU move it there once an epoch.
    """
    order = np.asarray(order, np.int64)
    whole, rest = divmod(order.size, batch_size)
    if drop_last or not rest:
        return order[: whole * batch_size].reshape(whole, batch_size)
    padded = np.full((whole + 1) * batch_size, -1, np.int64)
    padded[: order.size] = order
    return padded.reshape(whole + 1, batch_size)


class FusedNetwork:
    """A network that one kernel trains; `fused_plan` makes it.

    Attributes
    ----------
    batch_size : the most samples of a step
    """

    def __init__(
        self, stages: list[Stage], optimizer: Any, loss: dict[str, Any], max_norm: float | None,
        batch_size: int, flattens: bool,
    ):  # fmt: skip
        self.batch_size, self._flattens = batch_size, flattens
        self._stages, self._optimizer = stages, optimizer
        self._loss, self._max_norm = loss, max_norm
        self._dropouts = sum(stage.dropout > 0 for stage in stages)
        self._counted: tuple[Any, ...] | None = None  # (hyper, calls of step, the count in it)

    @property
    def classifies(self) -> bool:
        """Whether `run` counts right samples: largest output, of several, at the label"""
        return self._loss["loss"] == "cross_entropy" and self._stages[-1].linear.out_features > 1

    # ---- data ------------------------------------------------------------------------------------

    def prepare(self, x: Any, target: Any) -> tuple[Any, Any]:
        """Data as the kernel takes them, on the parameters' device: once before many `run`.

        Raises ValueError, in the words of a refusal, for data that it cannot train on: shapes that
        do not fit, labels that are no class (also those that the loss would ignore).
        """
        device = self._stages[0].linear.weight.device
        x, target = (to_device(raw_array(value), device) for value in (x, target))
        inputs, outputs = self._stages[0].linear.in_features, self._stages[-1].linear.out_features
        if x.ndim < 2 or (x.ndim > 2 and not self._flattens) or x.size != len(x) * inputs:
            raise ValueError(f"samples of shape {x.shape[1:]} are not {inputs} numbers")
        x = _as(x.reshape(len(x), inputs), np.float32)
        if self._loss["loss"] == "mse":
            target = _as(target, np.float32)
            if target.shape == (len(x),) and outputs == 1:
                target = target.reshape(-1, 1)
            if target.shape != (len(x), outputs):
                raise ValueError(f"targets of shape {target.shape} are not ({len(x)}, {outputs})")
            return x, target
        if target.shape != (len(x),) or target.dtype.kind not in "iub":
            raise ValueError(
                f"targets of shape {target.shape} and dtype {target.dtype} are no labels"
            )
        xp = array_module(device)
        low, high = (int(edge(target)) for edge in (xp.min, xp.max)) if len(x) else (0, 0)
        if low < 0 or high >= outputs:
            raise ValueError(f"labels from {low} to {high} are not 0 to {outputs - 1}")
        return x, _as(target, np.int64)

    # ---- training --------------------------------------------------------------------------------

    def run(
        self, x: Any, target: Any, order: Any, lr_of_step: float | Sequence[Any],
        generator: Generator | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Train for ``len(order)`` steps. Returns (losses, correct), arrays on the device.

        Parameters
        ----------
        x, target : all samples, as `prepare` gives them
        order : (steps, batch) int64, the samples of each step, -1 behind the last of a short one:
            what `batches_of` makes
        lr_of_step : the learning rate of every step, or one for all; or (steps, values) with all
            of `Optimizer.hyper_values` for every step
        generator : of dropout's masks; None for gpunn's own, from which the layers draw, too

        The optimizer's step count goes on by as many steps, and gradients are left at None. Its
        ``param_groups`` are read, not changed.
        """
        optimizer, steps = self._optimizer, len(order)
        optimizer.follow_parameters()
        (group,), ((arena,),) = optimizer.param_groups, optimizer._arenas
        if steps == 0:
            empty = arena.parameters[:0]
            return empty, _as(empty, np.int32)
        cohort = self._cohort(arena)
        states = {
            name: arena.require_state(name, value)
            for name, value in optimizer.state_names(group).items()
        }
        hyper = self._hyper_rows(group, cohort, steps, lr_of_step)
        seed = offset = 0
        if self._dropouts:
            generator = default_generator if generator is None else generator
            seed, offset = generator.take(steps * self._dropouts)
        offsets = {id(t): start for t, start in zip(arena.tensors, arena.offsets, strict=True)}
        results = mlp_train(
            x, target, uploader(arena.device).upload(order), arena.parameters,
            uploader(arena.device).upload(hyper), *states.values(),
            layers=network_of(self._stages, lambda p: offsets[id(p)]).layers, rule=optimizer.rule,
            nesterov=bool(group.get("nesterov")),
            decoupled=bool(group.get("decoupled_weight_decay")), max_norm=self._max_norm,
            seed=seed, offset=offset, **self._loss,
        )  # fmt: skip
        self._keep(group, arena, cohort, hyper, steps)
        return results

    def _cohort(self, arena: Any) -> Any:
        """The one cohort of all parameters."""
        if len(arena.cohorts) != 1:
            raise ValueError(
                "FusedNetwork: parameters of the optimizer have made different numbers of steps; "
                "train them layer by layer."
            )
        return arena.cohorts[0]

    def _hyper_rows(self, group: dict[str, Any], cohort: Any, steps: int, rates: Any) -> np.ndarray:
        """`hyper` of every step, as writing the learning rate and `advance_step` would make it."""
        optimizer, slots = self._optimizer, HYPER[self._optimizer.rule]
        values = optimizer.hyper_values(group)
        rows = np.zeros((steps, len(slots)))
        rows[:, : len(values)] = values
        rates = np.asarray(rates, np.float64)
        if rates.shape not in ((), (steps,), (steps, len(values))):
            raise ValueError(
                f"FusedNetwork: lr_of_step has shape {rates.shape}; give {steps} learning rates, "
                f"or one, or {len(values)} hyperparameters for each step"
            )
        if rates.ndim == 2:
            rows[:, : len(values)] = rates
        else:
            rows[:, 0] = rates
        if not optimizer.counts_steps(group):
            return rows
        at = slots.index("step")
        count = self._count(cohort, at) + np.arange(1, steps + 1)
        rows[:, at] = count
        if optimizer.rule == "adam":
            rows[:, at + 1] = 1 - rows[:, 1] ** count
            rows[:, at + 2] = np.sqrt(1 - rows[:, 2] ** count)
        else:
            rows[:, at + 1] = np.where(count == 1, 1.0, 1 - rows[:, 2])
        return rows

    def _count(self, cohort: Any, slot: int) -> float:
        """The steps made so far: from the device, unless nobody but us has made one since."""
        if self._counted is not None:
            hyper, made, count = self._counted
            if hyper is cohort.hyper and made == self._optimizer._steps_made:
                return count
        return float(cohort.hyper[slot])

    def _keep(
        self, group: dict[str, Any], arena: Any, cohort: Any, hyper: np.ndarray, steps: int
    ) -> None:
        """Leave the optimizer as the steps one by one would have."""
        last = hyper[-1]
        uploader(arena.device).upload(last, out=cohort.hyper)  # nobody waits for the kernel here
        count = len(self._optimizer.hyper_values(group))
        cohort.values = tuple(last[:count].tolist())
        self._optimizer._steps_made += steps
        slot = HYPER[self._optimizer.rule].index("step")
        self._counted = (cohort.hyper, self._optimizer._steps_made, float(last[slot]))
        for tensor in arena.tensors:
            tensor.grad = None
            tensor._cell[0] += 1  # a graph that saved the old value must not be used

    # ---- explaining ------------------------------------------------------------------------------

    def explain(
        self, multiprocessors: int = 132, shared_limit: int = 227 * 1024,
        clock: float = _H200_CLOCK,
    ) -> list[ExplainedPart]:  # fmt: skip
        """The parts of a step in the kernel ``mlp_train``, for an H200 or another chip.

        Estimates, scaled to what three networks took on an H100.
        """
        network, clip = network_of(self._stages), self._max_norm is not None
        plan = choose(network, self.batch_size, clip, True, multiprocessors, shared_limit)
        parts = estimate_parts(
            network, self.batch_size, clip, plan.blocks, plan.resident, plan.members
        )
        return [
            ExplainedPart(p.name, _what(p, plan), plan.blocks, p.clocks / clock, p.limit)
            for p in parts
        ]

    def pays(self) -> bool:
        """Whether a step here is estimated to be shorter than layer by layer in a captured graph.

        For an H200, from what an H100 took.
        """
        own = sum(part.seconds for part in self.explain())
        launches = 3 + 2 * self._dropouts
        layered = launches * _LAUNCH
        for stage in self._stages:
            products = 2.0 * self.batch_size * stage.linear.in_features * stage.linear.out_features
            layered += 3 * max(_LAUNCH, products / _PRODUCTS)
        return own <= layered

    def __repr__(self) -> str:
        widths = [self._stages[0].linear.in_features]
        widths += [stage.linear.out_features for stage in self._stages]
        return f"FusedNetwork({'-'.join(map(str, widths))}, batch {self.batch_size})"
