"""Which problems the choices are timed on: those inside whole training steps, and a sweep.

The problems of a step are noted while the step goes through its launch code, which launches nothing
(as in `gpunn.profiling.explainer`). Every source, a step or a sweep, has the weight 1 and shares it
out among its problems: a step by the estimated time of each, a sweep evenly. The heaviest problems
are timed first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

import gpunn
from gpunn import models, optim
from gpunn.bench import products, training_jobs
from gpunn.bench.choices.plans import Mlp, Recurrent
from gpunn.bench.choices.problems import Problem, ways_of
from gpunn.bench.choices.products import Convolution, Product
from gpunn.bench.choices.ways import replaced
from gpunn.device import device
from gpunn.nn import functional as F
from gpunn.primitives import (
    convolution_plan,
    matmul_launch,
    matmul_plan,
    recurrent_launch,
    recurrent_plan,
)
from gpunn.primitives.registry import intercepting
from gpunn.profiling.chips import CHIPS
from gpunn.profiling.explainer import note
from gpunn.profiling.ready import ReadyStep, ready_step
from gpunn.train.precision import Precision

RESNET_BATCH = 128
MLP_BATCHES = (16, 128, 512, 1024)
LARGE_RECURRENT = (64, 16, 1024)  # steps, sequences, hidden units, beside those of the jobs
# The weight of a step's products in the dtype that the job does not have; those that read and
# write more than so many bytes are left out, as all of their ways take seconds.
OTHER_DTYPE, OTHER_BYTES = 0.25, 1e9


@dataclass(frozen=True)
class Posed:
    """A problem, how much it matters, and where it comes from: a step and how often it is in one,
    such as ``{"gpt-2-124M": 12}``, or a sweep."""

    problem: Problem
    weight: float
    where: dict[str, int]


# ---- steps ---------------------------------------------------------------------------------------


def noted(step: ReadyStep) -> Counter[Problem]:
    """The products, convolutions and recurrent layers of a step, and how often each is launched."""
    found: Counter[Problem] = Counter()
    launch_pass = convolution_plan._launch

    def product(launch, problem):
        found[Product.of(problem)] += 1
        return matmul_plan.choose(launch, problem)

    def convolution(launch, one):
        found[Convolution.of(one)] += 1
        launch_pass(launch, one)

    def recurrent(launch, shape, itemsize, mode, back):
        dtype, way = {2: "bfloat16", 4: "float32"}[itemsize], "backward" if back else "forward"
        found[Recurrent(mode, *shape, dtype, way)] += 1
        return recurrent_plan.choose(launch, shape, itemsize, mode, back)

    with (
        replaced(matmul_launch, "choose", product),
        replaced(convolution_plan, "_launch", convolution),
        replaced(recurrent_launch, "choose", recurrent),
    ):
        note(step, step.model, CHIPS["h200"])
    return found


def _job(name: str) -> training_jobs.Job:
    (job,) = (job for job in training_jobs.JOBS if job.name == name)
    return job


def _gpt() -> Counter[Problem]:
    """Those of GPT-2 124M: of a GPT with one layer, which is soon made, and the layer's often."""
    whole, job = models.GPTConfig(), _job("gpt-2-124M")
    with _unfilled():
        model = models.GPT(replace(whole, n_layer=1)).train()
    tokens = gpunn.tensor(np.zeros((job.batch, *job.input_shape), np.int64))
    update = optim.SGD(model.parameters(), lr=1e-3)
    how = Precision(job.precision, "cpu", update)
    loss: Callable = F.sequence_cross_entropy
    found = noted(ReadyStep(job.name, model, loss, update, (tokens,), tokens, how))
    for problem in found:
        if isinstance(problem, Product):
            if whole.vocab_size not in (problem.M, problem.N, problem.K):  # not of the head
                found[problem] *= whole.n_layer
    return found


def _ready(name: str, precision: str, batch: int | None = None) -> Callable[[], Counter[Problem]]:
    def make() -> Counter[Problem]:
        with _unfilled():
            step = ready_step(name, batch, precision=precision)
        return noted(step)

    return make


def _unfilled() -> AbstractContextManager[None]:
    """Run no primitive: random weights would take the host longer than all the rest."""
    return intercepting(lambda call, args: None)


# name -> (what gives its problems, whether its products are of interest in the other dtype as well)
STEPS: dict[str, tuple[Callable[[], Counter[Problem]], bool]] = {
    "gpt-2-124M": (_gpt, True),
    "cnn-airbench": (_ready("cnn-airbench", "bf16", _job("cnn-airbench").batch), False),
    "lstm-lm-512": (_ready("lstm-lm-512", "bf16"), True),
    "lstm-32-128": (_ready("lstm-32-128", "fp32"), True),
    f"resnet18-{RESNET_BATCH}": (_ready("resnet18", "bf16", RESNET_BATCH), False),
}


def of_step(name: str) -> Iterator[Posed]:
    """The problems of a step; its weight is shared out by the estimated times."""
    make, others = STEPS[name]
    before = gpunn.get_rng_state()  # steps that are made by name start random numbers anew
    try:
        with replaced(device, "_default", device.Device("cpu")):  # beside a GPU too
            found = make()
    finally:
        gpunn.set_rng_state(before)
    seconds = {
        problem: count * min(way.estimate for way in ways_of(problem)[0])
        for problem, count in found.items()
    }
    total = sum(seconds.values())
    for problem, count in found.items():
        yield Posed(problem, seconds[problem] / total, {name: count})
        if others and isinstance(problem, Product):
            dtype = "float32" if problem.dtype == "bfloat16" else "bfloat16"
            weight, other = OTHER_DTYPE * seconds[problem] / total, replace(problem, dtype=dtype)
            if other.bytes <= OTHER_BYTES:
                yield Posed(other, weight, {f"{name} in {dtype}": count})


# ---- sweeps --------------------------------------------------------------------------------------

_WORDS = {
    "": (), "relu": ("relu", "bias"), "gelu": ("gelu", "bias"),
    "backward": ("gelu", "backward", "column sums"), "weight gradient": ("row sums",),
}  # fmt: skip


def sweep() -> Iterator[Product]:
    """The products of `gpunn.bench.products` but float16's, the largest, and most of 4096^3."""
    for p in products.SWEEP:
        large = p.flops > 1.1 * 2 * 4096**3 or (p.flops > 1e11 and p.layout != "NN" and not p.fused)
        if p.dtype != "float16" and not large:
            yield Product(p.M, p.N, p.K, p.dtype, p.layout, p.batch, _WORDS[p.fused])


def mlps() -> Iterator[Mlp]:
    """The networks of the jobs that one kernel trains on a GPU, in several batches."""
    widths = {
        tuple(map(int, job.name.split("-")[1:])): None
        for job in training_jobs.JOBS
        if job.name.startswith("mlp") and job.on != "cpu"
    }
    return (Mlp(one, batch) for one in widths for batch in MLP_BATCHES)


def recurrents() -> Iterator[Recurrent]:
    """A layer that is larger than those of the jobs."""
    for dtype in ("bfloat16", "float32"):
        for way in ("forward", "backward"):
            yield Recurrent("lstm", *LARGE_RECURRENT, dtype, way)


# ---- all together --------------------------------------------------------------------------------


def all_problems() -> list[Posed]:
    """Every problem once, the heaviest first."""
    found = [posed for name in STEPS for posed in of_step(name)]
    for name, some in (("sweep", sweep()), ("mlp", mlps()), ("recurrent", recurrents())):
        some = list(dict.fromkeys(some))
        found += [Posed(problem, 1 / len(some), {name: 1}) for problem in some]
    together: dict[Problem, Posed] = {}
    for posed in found:
        other = together.get(posed.problem)
        if other is not None:
            posed = Posed(posed.problem, other.weight + posed.weight, other.where | posed.where)
        together[posed.problem] = posed
    return sorted(together.values(), key=lambda posed: -posed.weight)


def tiny_problems() -> list[Posed]:
    """One small problem of each kind, for dry runs."""
    conv = (2, 8, 8, (1, 5, 5), (1, 3, 3), (1, 5, 5), (1, 1, 1), (0, 1, 1), (0, 1, 1), (1, 1, 1), 1)
    some = (
        Product(24, 16, 40, "float32", "NT", words=("relu", "bias")),
        Convolution("OUTPUT", conv, "bfloat16"),
        Mlp((8, 8, 4), 4),
        Recurrent("lstm", 2, 3, 8, "float32", "forward"),
    )
    return [Posed(problem, 0.25, {"dry run": 1}) for problem in some]
