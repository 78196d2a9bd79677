"""`mlp_train` and recurrent layers as problems that a rule chooses a plan for."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gpunn.bench.cases import element
from gpunn.bench.choices.ways import CLOCK, Maker, Way, checked, replaced, run_with
from gpunn.primitives import (
    mlp_launch,
    mlp_plan,
    mlp_samples,
    recurrent_launch,
    recurrent_plan,
    rows,
)

MLP_STEPS = 30  # of training in one call of `mlp_train`


@dataclass(frozen=True)
class Mlp:
    """`MLP_STEPS` steps of Adam by `mlp_train` on a network of these widths."""

    kind: ClassVar[str] = "mlp"
    primitive: ClassVar[str] = "mlp_train"
    source: ClassVar[str] = "mlp_train.cu"
    dtype: ClassVar[str] = "float32"

    widths: tuple[int, ...]
    batch: int

    @property
    def key(self) -> str:
        """As text: ``mlp-784-256-128-10 128``."""
        return f"mlp-{'-'.join(map(str, self.widths))} {self.batch}"

    @property
    def bytes(self) -> float:
        """Bytes of the samples of a call: the rest stays in the caches anyway."""
        return 4.0 * MLP_STEPS * self.batch * self.widths[0]

    def inputs(self, make: Maker) -> tuple:
        """The checked arguments of a call."""
        # Captured graphs read the plans' tables, of which a full cache would free some.
        mlp_launch._tables.clear()
        rng, (layers, size) = np.random.default_rng(5), mlp_samples.chain(self.widths)
        count = MLP_STEPS * self.batch
        values = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        order = rng.permutation(count).reshape(MLP_STEPS, self.batch)
        host = (
            rng.integers(0, self.widths[-1], count), order,
            mlp_samples.arena(rng, layers, size).astype(np.float32),
            mlp_samples.hyper_rows("adam", MLP_STEPS, **values),
            np.zeros(size, np.float32), np.zeros(size, np.float32),
        )  # fmt: skip
        x = make.random((count, self.widths[0]), np.dtype(np.float32))
        return checked("mlp_train", x, *map(make.place, host), layers=layers, rule="adam")

    def options(self, inputs: tuple, launch: Any) -> list[Way]:
        """Those that `mlp_plan.choose` estimates."""
        work, parameters = inputs[-1], inputs[3]
        chip = (launch.aligned(16, parameters), launch.multiprocessors, launch.shared_limit)
        case = (work.network, self.batch, work.max_norm is not None)
        clocks: dict[tuple[int, bool, int], float] = {}

        def note(network, batch, clip, *plan):
            clocks[plan] = found = estimate(network, batch, clip, *plan)
            return found

        estimate, choose = mlp_plan.estimate, mlp_plan.choose.__wrapped__
        with replaced(mlp_plan, "estimate", note):
            choose(*case, *chip)
        ways = []
        for cycles, blocks, members, resident in sorted(
            (cycles, blocks, members, resident)
            for (blocks, resident, members), cycles in clocks.items()
        ):  # as choose() itself compares them
            wanted = (blocks, resident, members)
            prefer = functools.partial(_prefer, wanted)
            with replaced(mlp_plan, "estimate", prefer):  # choose() makes the plan of just this one
                plan = choose(*case, *chip)
            parts = mlp_plan.estimate_parts(*case, *wanted)
            ways.append(Way(
                f"{blocks} blocks of {members}{' resident' if resident else ''}", cycles / CLOCK,
                functools.partial(run_with, "mlp_train", mlp_launch, plan),
                {part.name: part.clocks / CLOCK for part in parts},
            ))  # fmt: skip
        return ways


def _prefer(wanted: tuple, network, batch, clip, *plan) -> float:
    """An estimate by which only one plan is good."""
    return 0.0 if plan == wanted else 1.0


# ---- recurrent layers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Recurrent:
    """All steps of a recurrent layer in float32 or 16 bits; `way` is "forward" or "backward"."""

    kind: ClassVar[str] = "recurrent"
    source: ClassVar[str] = "recurrent.cu"

    mode: str
    steps: int
    batch: int
    hidden: int
    dtype: str
    way: str

    @property
    def primitive(self) -> str:
        """The primitive's name."""
        return f"recurrent_{self.way}"

    @property
    def key(self) -> str:
        """As text: ``lstm 64 steps of 64x512 bfloat16 forward``."""
        return (
            f"{self.mode} {self.steps} steps of {self.batch}x{self.hidden} {self.dtype} {self.way}"
        )

    @property
    def bytes(self) -> float:
        """Bytes of the gates and the outputs."""
        columns = (recurrent_plan.GATES[self.mode] + 1) * self.hidden
        return float(self.steps * self.batch * columns * element(self.dtype).itemsize)

    def inputs(self, make: Maker) -> tuple:
        """The checked arguments of a call."""
        dtype, count = element(self.dtype), recurrent_plan.GATES[self.mode]
        sequence, columns = (self.steps, self.batch), count * self.hidden
        weight = make.random((columns, self.hidden), dtype, 0.5 / math.sqrt(self.hidden))
        gates = make.random((*sequence, columns), dtype, 0.25)
        if self.way == "forward":
            bias = make.random((columns,), dtype, 0.25)
            return checked(self.primitive, gates, weight, bias, mode=self.mode)
        grad, output, inner = (make.random((*sequence, self.hidden), dtype, 0.25) for _ in range(3))
        if count == 1:  # the modes without gates keep none
            gates = inner = None
        return checked(
            self.primitive, grad, None, None, output, gates, inner, weight, mode=self.mode
        )

    def options(self, inputs: tuple, launch: Any) -> list[Way]:
        """Step by step, and every plan of `recurrent_plan` that fits."""
        chip = rows.Chip(launch.arch, launch.multiprocessors, launch.shared_limit)
        itemsize, back = element(self.dtype).itemsize, self.way == "backward"
        gates = recurrent_plan.GATES[self.mode]
        plans: list[recurrent_plan.Plan | None] = [None]
        plans += recurrent_plan._plans(chip, self.batch, self.hidden, itemsize, gates, back)
        return [
            Way(
                _plan_name(plan), self.clocks(plan, chip.multiprocessors) / CLOCK,
                functools.partial(run_with, self.primitive, recurrent_launch, plan),
            )
            for plan in plans
        ]  # fmt: skip

    def clocks(self, plan: recurrent_plan.Plan | None, processors: int) -> float:
        """The estimate of `recurrent_plan._choose`, which keeps it to itself; None: by steps."""
        rule, gates = recurrent_plan, recurrent_plan.GATES[self.mode]
        work, rate = gates * self.hidden**2, rule._RATE[element(self.dtype).itemsize]
        if plan is None:
            return self.steps * (2 * rule._LAUNCH + self.batch * work / (rate * processors))
        together = max(1, processors // plan.members)
        height = plan.units if self.way == "backward" else gates * plan.units
        if element(self.dtype).itemsize == 2:
            height = -(-height // rule.FRAGMENT) * rule.FRAGMENT
        depth = work // self.hidden if self.way == "backward" else self.hidden
        step = plan.tiles * rule.COLUMNS * height * depth / rate
        if plan.vectors:
            step += rule._MEET["grid"] + rule._MEMBER * plan.members + plan.vectors / rule._COPY
        else:
            step += rule._MEET["cluster" if plan.members > 1 else "block"]
        launches = 2 if plan.vectors else 1
        waves = -(-plan.teams // together)
        return launches * rule._LAUNCH + waves * (rule._LOAD + self.steps * step)


def _plan_name(plan: recurrent_plan.Plan | None) -> str:
    if plan is None:
        return "steps"
    form = "grid" if plan.vectors else "cluster" if plan.members > 1 else "block"
    return f"{form} {plan.members} of {plan.units} x{plan.teams} s{plan.tiles}"
