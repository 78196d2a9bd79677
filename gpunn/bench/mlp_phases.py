"""How the time of a step inside `mlp_train` divides among its phases, without touching the kernel.

A step has a phase of rows, a phase of weights, and meetings of all blocks (docs/kernels/mlp.md);
inside one launch no clock tells them apart. But networks, batches and numbers of blocks can be
chosen so that a part grows while others stay, and `mlp_plan.estimate_parts` says how much:

=====================  ==========================================================================
experiment             what it tells apart
=====================  ==========================================================================
batch 8 beside 128     rows: one group of 8 rows instead of 16, no block waits for a slower one;
                       weights: a sixteenth of the sums; meetings: as before
batch 512              both phases four times as long; meetings as before
layers 1, 3, 7         rows: the latency of one product after the other; two meetings however many
width 64, 256, 512     rows: bytes of the weights that every team reads; weights: tiles
16, 66 blocks          the same work on fewer blocks: both phases longer, the meeting smaller
one block, resident    no meetings at all, and the same network on 8 blocks: with them
clipped                one meeting more, and the gradient once through memory
SGD beside Adam        the weights phase without its two states; the model does not tell these
                       apart, so it is shown and not fitted
=====================  ==========================================================================

The three factors by which the measured parts differ from the estimated ones are fitted by least
squares of the relative error, none of them below zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import gpunn.kernels
from gpunn.bench.timing import Contestant, clock_for, interleave
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.primitives.mlp_plan import Network, Plan, choose, estimate_parts
from gpunn.primitives.mlp_samples import arena, chain, hyper_rows
from gpunn.profiling.chips import Chip

PARTS = ("rows", "weights", "meetings")
# What Python does for a launch is hidden behind those before it.
LONG_SAMPLE, SHORT_SAMPLE = 1e-2, 1e-4  # seconds, on a GPU and elsewhere
SAMPLES = 4096  # of the data; the steps go through them in random order
_RATES = {
    "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, "sgd": {"lr": 1e-3},
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """Steps of one network: widths of its layers, batch, and what is said to the kernel."""

    name: str
    widths: tuple[int, ...]
    batch: int = 128
    rule: str = "adam"
    max_norm: float | None = None
    blocks: int | None = None

    @property
    def fitted(self) -> bool:
        """Whether the model knows what this does."""
        return self.rule == "adam"


_AS_TRAINED, _SHORT = (784, 256, 128, 10), (64, 128, 128, 10)
EXPERIMENTS = (
    Experiment("as trained", _AS_TRAINED),
    Experiment("batch 8", _AS_TRAINED, 8),
    Experiment("batch 512", _AS_TRAINED, 512),
    Experiment("clipped", _AS_TRAINED, max_norm=1e9),
    Experiment("SGD", _AS_TRAINED, rule="sgd"),
    Experiment("16 blocks", _AS_TRAINED, blocks=16),
    Experiment("66 blocks", _AS_TRAINED, blocks=66),
    Experiment("small", _SHORT),
    Experiment("small, batch 8", _SHORT, 8),
    Experiment("1 layer", (64, 10)),
    Experiment("3 layers of 64", (64, 64, 64, 10)),
    Experiment("7 layers of 64", (64, *(64,) * 6, 10)),
    Experiment("width 512", (512, 512, 512, 10)),
    Experiment("one block", (16, 16, 10), 8, blocks=1),
    Experiment("the same on 8 blocks", (16, 16, 10), 8, blocks=8),
)
# For a dry run: those that a CPU makes at once.
SMALL: dict[str, Any] = {
    "steps": 2,
    "samples": 2,
    "experiments": EXPERIMENTS[-2:] + EXPERIMENTS[9:11],
}


# ---- what is expected ----------------------------------------------------------------------------


def plan_of(experiment: Experiment, chip: Chip) -> tuple[Network, Plan]:
    """The network, and how the launch code will run it on a chip."""
    layers, _ = chain(experiment.widths)
    network = Network(tuple(layer.complete() for layer in layers))
    plan = choose(
        network, experiment.batch, experiment.max_norm is not None, True, chip.multiprocessors,
        chip.shared_limit, experiment.blocks,
    )  # fmt: skip
    return network, plan


def expected(experiment: Experiment, chip: Chip) -> dict[str, Any]:
    """The experiment as a JSON object, with the seconds that `mlp_plan` estimates of each part."""
    network, plan = plan_of(experiment, chip)
    clip = experiment.max_norm is not None
    parts = estimate_parts(
        network, experiment.batch, clip, plan.blocks, plan.resident, plan.members
    )
    found = asdict(experiment) | {
        "blocks": plan.blocks, "team": plan.members, "resident": plan.resident,
        "fitted": experiment.fitted,
    }  # fmt: skip
    return found | {"parts": {part.name: part.clocks / chip.clock for part in parts}}


# ---- the fit -------------------------------------------------------------------------------------


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``factors``: how many times as long as estimated each part takes; and how well that fits.

    `rows` have ``parts`` (seconds by name), ``seconds`` measured, and ``fitted``. ``worst`` is the
    largest relative error of any, ``condition`` that of the estimates: above 100 the experiments
    hardly tell the parts apart. Raises ValueError for fewer experiments than parts.
    """
    rows = [row for row in rows if row["fitted"] and row.get("seconds")]
    if len(rows) < len(PARTS):
        raise ValueError(f"{len(rows)} experiments were timed; {len(PARTS)} parts need as many")
    matrix = np.array([[row["parts"][part] / row["seconds"] for part in PARTS] for row in rows])
    best: tuple[float, np.ndarray] = (math.inf, np.zeros(len(PARTS)))
    for count in range(1, len(PARTS) + 1):  # which parts are not zero
        for chosen in itertools.combinations(range(len(PARTS)), count):
            factors = np.zeros(len(PARTS))
            factors[list(chosen)] = np.linalg.lstsq(
                matrix[:, chosen], np.ones(len(rows)), rcond=None
            )[0]
            error = float(np.sum((matrix @ factors - 1) ** 2))
            if (factors >= 0).all() and error < best[0]:
                best = (error, factors)
    factors = best[1]
    scaled = matrix / np.linalg.norm(matrix, axis=0)
    return {
        "factors": {part: float(one) for part, one in zip(PARTS, factors, strict=True)},
        "worst": float(np.max(np.abs(matrix @ factors - 1))),
        "condition": float(np.linalg.cond(scaled)),
    }


# ---- what is measured ----------------------------------------------------------------------------


def run_of(experiment: Experiment, device: Device, steps: int) -> Any:
    """A function that trains `steps` steps; all of its arrays lie on the device."""
    rng = np.random.default_rng(5)
    layers, size = chain(experiment.widths)
    samples = max(SAMPLES, experiment.batch) if device.type == "cuda" else 4 * experiment.batch
    order = rng.integers(0, samples, (steps, experiment.batch))
    host = [
        rng.standard_normal((samples, experiment.widths[0]), dtype=np.float32),
        rng.integers(0, experiment.widths[-1], samples), order,
        arena(rng, layers, size).astype(np.float32),
        hyper_rows(experiment.rule, steps, **_RATES[experiment.rule]),
    ]  # fmt: skip
    host += [np.zeros(size, np.float32)] * (2 if experiment.rule == "adam" else 0)
    xp = arrays.array_module(device)
    held = [xp.array(value) for value in host]  # copies: the states are two
    made = gpunn.kernels.table()["mlp_train"]
    how: dict[str, Any] = {
        "layers": layers, "rule": experiment.rule, "max_norm": experiment.max_norm,
        "blocks": experiment.blocks,
    }  # fmt: skip
    return lambda i: made(*held, **how)


def measure(
    chip: Chip, device: Device, steps: int = 256, samples: int = 5,
    experiments: Sequence[Experiment] = EXPERIMENTS,
) -> dict[str, Any]:  # fmt: skip
    """All experiments in turns, `steps` steps a launch, and the fit: a row of the results."""
    rows = [expected(experiment, chip) for experiment in experiments]
    with clock_for(device) as clock:
        racers = [Contestant(one.name, run_of(one, device, steps), steps) for one in experiments]
        long = LONG_SAMPLE if device.type == "cuda" else SHORT_SAMPLE
        timings, failed = interleave(racers, clock, samples, sample_seconds=long)
    for row in rows:
        if row["name"] in timings:
            row["seconds"] = timings[row["name"]].median
        else:
            row["reason"] = failed[row["name"]]
    found = fit(rows)
    for row in rows:
        row["fit"] = sum(found["factors"][part] * row["parts"][part] for part in PARTS)
    first = rows[0]["parts"]
    return {
        "job": "mlp_train phases", "batch": experiments[0].batch, "precision": "fp32",
        "device": str(device), "steps": steps, "experiments": rows, "primitives": ["mlp_train"],
        "parts": {part: found["factors"][part] * first[part] for part in PARTS}, **found,
    }  # fmt: skip
