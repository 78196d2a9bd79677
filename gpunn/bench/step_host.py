"""What compiled steps cost and save on a machine without a GPU.

On the CPU: eager and compiled steps in turns, and the memory that arrays take from the system. And
what a replay costs the host on a GPU: a step is captured on the emulator, then a driver that does
nothing takes the place of what was captured; what remains is the Python of a call, by its parts.
"""

from __future__ import annotations

import functools
import importlib.util
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.bench import training
from gpunn.bench.timing import Contestant, CpuClock, Timing, interleave
from gpunn.bench.training_jobs import Job
from gpunn.compiled import CompiledStep
from gpunn.compiled.signature import split
from gpunn.device.device import Device
from gpunn.device.graph import CudaGraph
from gpunn.models.resnet import BasicBlock
from gpunn.optim.lr_scheduler import OneCycleLR

UNTIL_CAPTURED = 6  # calls; the first meets parameters without gradients

# ---- on the CPU ----------------------------------------------------------------------------------


def on_cpu(job: Job, samples: int, seconds: float = 0.02) -> dict[str, Any]:
    """Eager and compiled steps of a job in turns, and the memory of their arrays.

    Gives ``eager`` and ``compiled``, each with `timing`; `faults`: pages that the kernel had to
    give in a step; and `grown`: the bytes that NumPy's arrays hold more after ten steps than
    before. `compiled` also has (count, bytes) of what a step took from the plan, `served`, beside
    it, `unplanned`, and of that newly from the system, `fresh`; and the size of its `arena`.
    """
    cpu, memories = Device("cpu"), []
    steps = {}
    for name in ("eager", "compiled"):
        with _noting(memories):
            steps[name] = training.our_step(job, cpu, compiled=name == "compiled")
            training.losses(steps[name], 10)
    found, failed = interleave(
        [Contestant(name, step) for name, step in steps.items()], CpuClock(), samples, seconds
    )
    if failed:
        raise RuntimeError(f"{job.name}: {failed}")
    result = {
        name: {"timing": found[name], "faults": _faults(step),
               "grown": _grown(functools.partial(_go_on, step))}
        for name, step in steps.items()
    }  # fmt: skip
    planned = [memory for memory in memories if memory.plan is not None]
    if planned:
        memory = planned[-1]
        names = ("served", "unplanned", "fresh")
        result["compiled"] |= {name: getattr(memory, name) for name in names}
        result["compiled"]["arena"] = memory.plan.size
    return result


def _go_on(step: Callable[[int], Any]) -> None:
    for i in range(10):
        step(i)


def _faults(step: Callable[[int], Any]) -> float | None:
    """Page faults of a step; None where the system does not say."""
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _go_on(step)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10


def _grown(run: Callable[[], Any]) -> int:
    """Bytes of NumPy's arrays that a run leaves behind."""
    own = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(2):
            run()
            traces = tracemalloc.take_snapshot().filter_traces([own]).traces
            sizes.append(sum(trace.size for trace in traces))
    finally:
        tracemalloc.stop()
    return sizes[1] - sizes[0]


class _noting:
    """A context that puts every new `CpuStepMemory` into a list."""

    def __init__(self, found: list):
        self.found = found

    def __enter__(self) -> None:
        from gpunn.device.cpu_memory import CpuStepMemory

        self.kind, self.init = CpuStepMemory, CpuStepMemory.__init__

        def init(memory, *args, **kwargs):
            self.init(memory, *args, **kwargs)
            self.found.append(memory)

        CpuStepMemory.__init__ = init

    def __exit__(self, *_) -> None:
        self.kind.__init__ = self.init


# ---- the host's part of a replay -----------------------------------------------------------------


class NoGraphs:
    """A driver of graphs that does nothing."""

    @staticmethod
    def launch(graph: Any) -> None:
        """Launches nothing."""

    @staticmethod
    def copy(target: Any, source: Any) -> None:
        """Copies nothing."""


class _Thin18(nn.Module):
    """The layers and parameters of ResNet-18, all of them thin."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layers = nn.Sequential(*(
            block for channels in (width, 2 * width, 4 * width, 8 * width)
            for block in (
                BasicBlock(channels if channels == width else channels // 2, channels,
                           1 if channels == width else 2),
                BasicBlock(channels, channels),
            )
        ))  # fmt: skip
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def _perceptron() -> tuple[nn.Module, np.ndarray, int]:
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10)), np.ones((8, 64), np.float32), 8


def _residual() -> tuple[nn.Module, np.ndarray, int]:
    return _Thin18(), np.ones((2, 3, 8, 8), np.float32), 2


def _transformer() -> tuple[nn.Module, np.ndarray, int]:
    config = models.GPTConfig(11, 6, n_layer=12, n_head=2, n_embd=8, dropout=0.1)
    return models.GPT(config), np.ones((1, 6), np.int64), 6


# Small arrays: the emulator is slow, and the host's part depends on how many there are alone.
NETWORKS = {"mlp": _perceptron, "resnet-18": _residual, "gpt, 12 layers": _transformer}


def captured(name: str) -> tuple[CompiledStep, tuple, Callable[[], None]]:
    """A step on the emulator, captured, that then launches nothing; its arguments, and a schedule's
    next step."""
    gpunn.manual_seed(0)
    model, inputs, labels = NETWORKS[name]()
    model = model.to("emulator")
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    schedule = OneCycleLR(optimizer, max_lr=1e-2, total_steps=10**9)

    def step(x, y):
        optimizer.zero_grad()
        scores = model(x)
        loss = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), y)
        loss.backward()
        optimizer.step()
        return loss

    compiled = gpunn.compile(step, copy_outputs=False, name=name)
    arguments = (
        gpunn.tensor(inputs, device="emulator"),
        gpunn.tensor(np.zeros(labels, np.int64), device="emulator"),
    )
    for _ in range(UNTIL_CAPTURED):
        compiled(*arguments)
    variant = _variant(compiled)
    if variant.state != "captured":
        raise RuntimeError(f"{name}: the step is {variant.state}, not captured")
    variant.graph = CudaGraph(Device("emulator"), NoGraphs())
    return compiled, arguments, schedule.step


def _variant(step: CompiledStep) -> Any:
    return list(step._variants.values())[-1]


def of_replay(name: str, samples: int, seconds: float = 5e-3) -> tuple[int, dict[str, Timing]]:
    """How many parameters a network has, and the host's time for a replay: ``whole`` and its parts.

    ``with a schedule`` is a whole call after the learning rate has changed, so that it is uploaded
    (on the emulator that is a copy; the change itself is part of it).
    """
    step, arguments, change = captured(name)

    def changed(i: int) -> None:
        change()
        step(*arguments)

    runs: dict[str, Callable[[int], Any]] = {"whole": lambda i: step(*arguments)}
    runs |= {part: _calling(run) for part, run in _parts(step, arguments).items()}
    runs |= {"with a schedule": changed, "the schedule alone": lambda i: change()}
    found, failed = interleave([Contestant(*one) for one in runs.items()], CpuClock(), samples,
                               seconds)  # fmt: skip
    if failed:
        raise RuntimeError(f"{name}: {failed}")
    return len(step.parameters), found


def _calling(run: Callable[[], Any]) -> Callable[[int], Any]:
    return lambda i: run()


def _parts(step: CompiledStep, arguments: tuple) -> dict[str, Callable[[], Any]]:
    """The parts of a replayed call, in their order."""
    variant = _variant(step)
    tensors, trace, counter = list(arguments), variant.trace, variant._counter

    def before() -> None:
        for prepare in trace.before:
            prepare()

    def after() -> None:
        for finish in trace.after:
            finish()

    def random() -> None:
        if variant._draws:
            counter.follow()
            counter.advanced(variant._draws)

    def gradients() -> None:
        for parameter, gradient in variant._left:
            parameter.grad = gradient

    return {
        "signature": lambda: split(step.name, arguments, {}),
        "what it refers to": step.reach.changed,
        "modes": step._ambient,
        "its arrays": lambda: variant._holds(step),
        "inputs": lambda: variant._place(step, tensors),
        "hyperparameters": before,
        "random state": random,
        "launch": variant.graph.replay,
        "step count": after,
        "gradients": gradients,
        "outputs": lambda: variant._results(step),
    }
