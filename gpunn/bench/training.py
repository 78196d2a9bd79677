"""Whole training steps, timed: ours and PyTorch's in turns, from the same weights and batches.

Contestants
    gpunn                   zero_grad, forward, loss, backward, update, as a user writes it
    gpunn compiled          the same step under `gpunn.compile`
    gpunn fused             many steps by one kernel, where the network is a small perceptron
    torch, torch fused      the same step of PyTorch, and with an optimizer of fused=True
    torch.compile           forward and loss compiled, on a GPU
    torch reduce-overhead   the same with mode="reduce-overhead": CUDA graphs

All compute in one precision. PyTorch has what makes it fast: cuDNN (which may try its kernels out),
channels-last images, flash attention, autocast. Before anything is timed all go through the same
losses; calls that trace, compile or capture lie in that part.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.bench.timing import Contestant, clock_for, interleave, one_line
from gpunn.bench.training_jobs import (
    BATCHES,
    COMPILE,
    EAGER,
    FUSED,
    JOBS,
    LEARNING_RATE,
    REDUCE,
    Job,
    digits,
    initial_state,
    jobs_on,
    mlp,
)
from gpunn.bench.training_tables import judged, table_of
from gpunn.device.device import Device
from gpunn.primitives.registry import intercepting, listening

__all__ = [
    "JOBS", "Job", "check", "contestants", "jobs_on", "losses", "our_step", "run_job",
    "table_of",
]  # fmt: skip

STEPS_COMPARED = 20
# Of a loss. Two correct trainings drift apart by rounding; the first steps stay far below this. In
# bfloat16 every result is off by up to 2^-9 of its size (measured on CPUs: 1e-4 for a language
# model, 3e-3 for the CNN, whose batch norms make more of it).
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
FUSED_STEPS = 4 * BATCHES  # of one launch
COMPILED = (REDUCE, COMPILE)
OURS, OUR_COMPILED, OUR_FUSED = "gpunn", "gpunn compiled", "gpunn fused"


@dataclass
class Racer:
    """Something to compare and time: `run(i)` makes `calls` steps, `losses(n)` the first n."""

    run: Callable[[int], Any]
    losses: Callable[[int], list[float]]
    calls: int = 1
    library: str = "gpunn"


# ---- ours ----------------------------------------------------------------------------------------


def our_step(
    job: Job, device: Device, batches=None, compiled: bool = False, group: Any = None,
    model: Any = None,
) -> Callable[[int], Any]:  # fmt: skip
    """step(i) trains our network on the i-th batch and returns the loss (a Tensor).

    With a `group` the gradients of its ranks are added up. `model`: the network, if it is there.
    """
    import gpunn
    from gpunn import distributed, optim

    model = our_model(job, device) if model is None else model
    optimizer = job.update(optim, model.parameters())
    pairs = our_batches(job, device, batches)
    low = job.precision == "bf16"
    around = contextlib.nullcontext
    if group is not None:
        around = distributed.GradientSync(optimizer, group).backward

    def train(inputs, labels):
        optimizer.zero_grad()
        with gpunn.autocast("bfloat16") if low else contextlib.nullcontext():
            loss = our_loss(job, model, inputs, labels)
        with around():
            loss.backward()
        optimizer.step()
        return loss

    if compiled:  # as the Trainer does it: the loss need not be copied, it is looked at first
        train = gpunn.compile(train, copy_outputs=False, name=job.name)
    return lambda i: train(*pairs[i % len(pairs)])


def our_model(job: Job, device: Device) -> Any:
    from gpunn import nn

    with intercepting(lambda call, args: None):  # no weights are drawn: all are loaded
        model = job.network(nn)
    model = model.to(device)
    model.load_state_dict(initial_state(job))
    return model


def our_batches(job: Job, device: Device, batches=None) -> list[tuple[Any, Any]]:
    import gpunn

    pairs = [
        (gpunn.tensor(x, device=device), gpunn.tensor(y, device=device))
        for x, y in zip(*(batches or _data(job)), strict=True)
    ]
    if job.channels_last:
        pairs = [(x.to(memory_format=gpunn.channels_last), y) for x, y in pairs]
    return pairs


@functools.lru_cache(maxsize=1)
def _data(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """The batches, which all contestants read: large ones take longer to draw than to train on."""
    return job.data()


def our_loss(job: Job, model: Any, inputs: Any, labels: Any) -> Any:
    import gpunn.nn.functional as F

    if hasattr(model, "loss"):
        return model.loss(inputs, labels)
    return (F.sequence_cross_entropy if job.per_position else F.cross_entropy)(
        model(inputs), labels
    )


def our_fused(job: Job, device: Device) -> Racer:
    """`FUSED_STEPS` steps a run. ValueError, saying why, for what one kernel does not train."""
    from gpunn import nn, optim
    from gpunn.device import to_device, to_numpy
    from gpunn.train.fused import fused_plan

    model = our_model(job, device)
    optimizer = job.update(optim, model.parameters())
    network = fused_plan(model, nn.CrossEntropyLoss(), optimizer, batch_size=job.batch)
    if not network:
        raise ValueError(network.reason)
    x, labels = (values.reshape(-1, *values.shape[2:]) for values in job.data())
    x, labels = network.prepare(x, labels)
    rows = np.arange(len(labels), dtype=np.int64).reshape(-1, job.batch)
    order = to_device(np.tile(rows, (FUSED_STEPS // len(rows), 1)), device)

    def losses(steps: int) -> list[float]:
        first = to_device(rows[np.arange(steps) % len(rows)], device)
        return to_numpy(network.run(x, labels, first, LEARNING_RATE)[0]).tolist()

    return Racer(lambda i: network.run(x, labels, order, LEARNING_RATE), losses, len(order))


# ---- PyTorch's -----------------------------------------------------------------------------------


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def torch_step(job: Job, device: Device, kind: str) -> Callable[[int], Any]:
    """The same by PyTorch; `kind` is the name of the contestant."""
    import torch
    import torch.nn.functional as F

    where = torch.device(str(device))
    state = {name: torch.from_numpy(value) for name, value in initial_state(job).items()}
    with where:  # the weights of a large network are drawn soonest on a GPU
        model = job.network(torch.nn)
    model.load_state_dict(state)
    pairs = [
        (torch.from_numpy(x).to(where), torch.from_numpy(y).to(where))
        for x, y in zip(*_data(job), strict=True)
    ]
    if job.channels_last:
        model = model.to(memory_format=torch.channels_last)
        pairs = [(x.to(memory_format=torch.channels_last), y) for x, y in pairs]
    optimizer = job.update(torch.optim, model.parameters(), fused=kind != EAGER)
    low = job.precision == "bf16"

    def objective(inputs, labels):
        with torch.autocast(where.type, torch.bfloat16, enabled=low):
            scores = model(inputs)
            return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1))

    if kind in (COMPILE, REDUCE):
        mode = "reduce-overhead" if kind == REDUCE else "default"
        objective = torch.compile(objective, mode=mode)

    def step(i: int):
        inputs, labels = pairs[i % len(pairs)]
        optimizer.zero_grad()
        loss = objective(inputs, labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


@contextlib.contextmanager
def torch_as_fast_as_exact() -> Iterator[None]:
    """float32 means float32, also in cuDNN, and cuDNN may try which kernel is the fastest."""
    if not has_torch():
        yield
        return
    import torch

    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32
    cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32 = False, True, False
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32 = before


# ---- all together --------------------------------------------------------------------------------


def contestants(
    job: Job, device: Device, compiled: Sequence[str] = COMPILED
) -> dict[str, Callable[[], Racer]]:
    """What makes each, by name; ours first. `compiled`: which of those that torch.compile makes."""

    def stepping(make: Callable, *args: Any, library: str = "gpunn") -> Callable[[], Racer]:
        def made() -> Racer:
            step = make(job, device, *args)
            return Racer(step, lambda steps: losses(step, steps), library=library)

        return made

    found = {OURS: stepping(our_step), OUR_COMPILED: stepping(our_step, None, True)}
    if job.name.startswith("mlp"):
        found[OUR_FUSED] = lambda: our_fused(job, device)
    if not has_torch():
        return found
    import torch

    if device.type == "cuda" and not torch.cuda.is_available():
        return found
    kinds = (EAGER, FUSED, *(compiled if device.type == "cuda" else ()))
    return found | {kind: stepping(torch_step, kind, library="torch") for kind in kinds}


def losses(step: Callable[[int], Any], steps: int = STEPS_COMPARED) -> list[float]:
    """The losses of the first steps."""
    return [float(step(i).item()) for i in range(steps)]


def watched(racer: Racer, steps: int, used: set[str]) -> list[float]:
    """The losses of the first steps; the names of our primitives that run are put into `used`."""

    def note(call, args, run):
        used.add(call.primitive.name)
        return run(call, args)

    with listening(note) if racer.library == "gpunn" else contextlib.nullcontext():
        return racer.losses(steps)


def disagreement(a: Sequence[float], b: Sequence[float], steps: int = STEPS_COMPARED) -> float:
    """The largest relative difference of two loss curves within the first steps."""
    a, b = np.array(a[:steps]), np.array(b[:steps])
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-12)))


def run_job(
    job: Job, device: Device, samples: int, compiled: Sequence[str], threads: int,
    seconds: float = 0.02, curve: int | None = None, budget: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compare the losses of `curve` steps, then time the contestants in turns; a row each.

    A sample lasts `seconds` at least; where `budget` seconds do not suffice for all samples there
    are fewer. Rows without times have a ``reason``. ``over_ours`` is a contestant's time over ours,
    layer by layer and not compiled.
    """
    curve = max(curve or job.curve, 5)  # traced, recorded, captured, and then replayed
    with torch_as_fast_as_exact(), clock_for(device) as clock:
        found = _compared(job, contestants(job, device, compiled), curve)
        racers = [
            Contestant(name, one.racer.run, one.racer.calls, one.racer.library)
            for name, one in found.items()
            if not one.reason
        ]
        if budget is not None:
            least = sum(max(seconds, f.step_seconds * f.racer.calls) for f in found.values()
                        if not f.reason)  # fmt: skip
            samples = max(3, min(samples, int(budget / least)))
        timings, failed = interleave(racers, clock, samples, sample_seconds=seconds)
    rows = []
    for name, one in found.items():
        row: dict[str, Any] = {
            "job": job.name, "batch": job.batch, "device": str(device), "contestant": name,
            "threads": threads, "flops": job.flops, "precision": job.precision,
        }  # fmt: skip
        if one.reason or name in failed:
            row["reason"] = one.reason or failed[name]
        else:
            timing, ours = timings[name], timings.get(OURS)
            row |= {
                "median": timing.median, "quartiles": list(timing.quartiles),
                "samples": list(timing.samples), "inner": timing.inner,
                "losses": [one.curve[0], one.curve[-1]],
                "over_ours": timing.median / ours.median if ours else None,
            }  # fmt: skip
        row |= {"curve": one.curve, "primitives": sorted(one.primitives)}
        rows.append(row)
    for row in rows:
        row |= judged(job, row, rows)
    return rows


@dataclass
class _Compared:
    """A contestant after the comparison: what it did, or the reason why it is not timed."""

    racer: Racer | None
    curve: list[float]
    reason: str
    primitives: set[str]
    step_seconds: float = 0.0


def _compared(job: Job, makers: dict[str, Callable[[], Racer]], curve: int) -> dict[str, _Compared]:
    found: dict[str, _Compared] = {}
    tolerance = LOSS_TOLERANCE[job.precision]
    for name, make in makers.items():
        used: set[str] = set()
        try:
            racer = make()
            values = watched(racer, curve, used)
            begin = time.perf_counter()
            racer.losses(2)
            step_seconds = (time.perf_counter() - begin) / 2
        except Exception as error:  # torch.compile without a compiler, for one
            if name == OURS:
                raise
            found[name] = _Compared(None, [], one_line(error), used)
            continue
        apart = disagreement(found[OURS].curve, values, job.compared) if name != OURS else 0.0
        reason = ""
        if not apart <= tolerance:
            reason = f"the losses differ from ours by {apart:.1e} of their size"
        found[name] = _Compared(racer, values, reason, used, step_seconds)
    return found


def check(name: str, device: Device, steps: int) -> dict[str, Any]:
    """The same training on the CPU and on the device: equal losses, and they fall.

    `name` is "digits" (real digits where scikit-learn is there, else random data) or "mlp".
    """
    job = mlp((64, 256, 128, 10), 128) if name == "digits" else JOBS[0]
    batches = (digits(job.batch) if name == "digits" else None) or job.data()
    expected = losses(our_step(job, Device("cpu"), batches), steps)
    got = losses(our_step(job, device, batches), steps)
    failures = []
    # Rounding grows with the steps; only the beginning is held to the tight bound.
    apart, allowed = disagreement(expected, got), LOSS_TOLERANCE["fp32"]
    if not apart <= allowed:
        text = f"losses differ by {apart:.1e} of their size, allowed {allowed:.0e}"
        failures.append({"case": f"{name}, first {STEPS_COMPARED} steps", "reason": text})
    first, last = np.mean(got[: steps // 2]), np.mean(got[steps // 2 :])
    if steps > STEPS_COMPARED and not last < first:
        text = f"the mean loss of the second half, {last}, is not below the first's, {first}"
        failures.append({"case": name, "reason": text})
    return {
        "passed": not failures, "checked": 1 + (steps > STEPS_COMPARED), "failures": failures,
        "difference": apart, "losses": [got[0], got[-1]], "steps": steps,
    }  # fmt: skip
