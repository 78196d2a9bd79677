"""Training steps to compare: ours on two devices, or ours and PyTorch's, from the same weights."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.bench.timing import Contestant, clock_for, interleave, one_line
from gpunn.device.device import Device

STEPS_COMPARED = 20
# Two correct float32 trainings drift apart by rounding; twenty steps stay far below this.
LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Job:
    """A network, written once for both libraries, and the batches it is trained on.

    `network` is a function of the module `nn`, gpunn's or PyTorch's; `products` are the multiply-
    adds of each layer for one example, the first layer's first.
    """

    name: str
    batch: int
    input_shape: tuple[int, ...]
    classes: int
    products: tuple[int, ...]
    network: Callable[[Any], Any]

    @property
    def flops(self) -> float:
        """Of the products of one step: forward, and backward to weights and inputs."""
        return 2.0 * self.batch * (3 * sum(self.products) - self.products[0])


def mlp(layers: Sequence[int], batch: int) -> Job:
    """``mlp-784-256-128-10``: linear layers with ReLU between them."""
    pairs = list(zip(layers, layers[1:], strict=False))

    def network(nn):
        parts = []
        for fan_in, fan_out in pairs:
            parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*parts[:-1])

    products = tuple(a * b for a, b in pairs)
    name = "mlp-" + "-".join(map(str, layers))
    return Job(name, batch, (layers[0],), layers[-1], products, network)


def cnn(batch: int) -> Job:
    """``cnn-32-64``: two convolutions of 3x3 on one 28x28 channel, a pool, two linear layers."""

    def network(nn):
        return nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(),
            nn.Conv2d(32, 64, 3), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    products = (26 * 26 * 9 * 32, 24 * 24 * 9 * 32 * 64, 64 * 12 * 12 * 128, 128 * 10)
    return Job("cnn-32-64", batch, (1, 28, 28), 10, products, network)


def lstm(batch: int) -> Job:
    """``lstm-32-128``: 50 steps of 32 numbers through an LSTM, the last output classified."""
    steps, inputs, hidden, classes = 50, 32, 128, 10

    def network(nn):
        class Reader(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.LSTM(inputs, hidden, batch_first=True)
                self.head = nn.Linear(hidden, classes)

            def forward(self, x):
                return self.head(self.layer(x)[0][:, -1])

        return Reader()

    gates = 4 * hidden
    products = (steps * inputs * gates, steps * hidden * gates, hidden * classes)
    return Job("lstm-32-128", batch, (steps, inputs), classes, products, network)


JOBS = (
    mlp((784, 256, 128, 10), 128),
    mlp((64, 256, 128, 10), 32),
    mlp((64, 256, 128, 10), 128),
    mlp((64, 256, 128, 10), 512),
    cnn(64),
    lstm(64),
)


def data(job: Job, batches: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Random batches with labels that a network can learn: inputs and labels."""
    rng, size = np.random.default_rng(7), math.prod(job.input_shape)
    x = rng.standard_normal((batches, job.batch, size), dtype=np.float32)
    teacher = rng.standard_normal((size, job.classes), dtype=np.float32)
    labels = (x @ teacher).argmax(-1).astype(np.int64)
    return x.reshape(batches, job.batch, *job.input_shape), labels


def digits(batch: int = 128) -> tuple[np.ndarray, np.ndarray] | None:
    """Batches of scikit-learn's handwritten digits in [0, 1]; None without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        return None
    from gpunn.data.digits import load_digits

    x, y = load_digits()
    whole = len(x) // batch * batch
    return (x[:whole] / 16).reshape(-1, batch, x.shape[1]), y[:whole].reshape(-1, batch)


def initial_state(job: Job) -> dict[str, np.ndarray]:
    """The state dict that both libraries begin with, drawn by our layers on the CPU."""
    import gpunn
    from gpunn import nn

    gpunn.manual_seed(11)
    model = job.network(nn).to("cpu")
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def our_step(job: Job, device: Device, batches=None) -> Callable[[int], Any]:
    """step(i) trains our network on the i-th batch and returns the loss (a Tensor)."""
    import gpunn
    import gpunn.nn.functional as F
    from gpunn import nn, optim

    model = job.network(nn).to(device)
    model.load_state_dict(initial_state(job))
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    pairs = [
        (gpunn.tensor(x, device=device), gpunn.tensor(y, device=device))
        for x, y in zip(*(batches or data(job)), strict=True)
    ]

    def step(i: int):
        inputs, labels = pairs[i % len(pairs)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_step(job: Job, device: Device, kind: str) -> Callable[[int], Any]:
    """The same by PyTorch: `kind` is "torch", "torch fused" (AdamW) or "torch.compile"."""
    import torch
    import torch.nn.functional as F

    where = torch.device(str(device))
    model = job.network(torch.nn).to(where)
    state = initial_state(job)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=kind != "torch")
    pairs = [
        (torch.from_numpy(x).to(where), torch.from_numpy(y).to(where))
        for x, y in zip(*data(job), strict=True)
    ]

    def objective(inputs, labels):
        return F.cross_entropy(model(inputs), labels)

    if kind == "torch.compile":
        mode = "reduce-overhead" if where.type == "cuda" else "default"
        objective = torch.compile(objective, mode=mode)

    def step(i: int):
        inputs, labels = pairs[i % len(pairs)]
        optimizer.zero_grad()
        loss = objective(inputs, labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def contestants(job: Job, device: Device, compiled: bool) -> dict[str, Callable[[int], Any]]:
    """Everything to time, ready to step; ours first."""
    found = {"gpunn": our_step(job, device)}
    if importlib.util.find_spec("torch") is None:
        return found
    import torch

    if device.type == "cuda" and not torch.cuda.is_available():
        return found
    found["torch"] = torch_step(job, device, "torch")
    found["torch fused"] = torch_step(job, device, "torch fused")
    if compiled and device.type == "cuda":
        found["torch.compile"] = torch_step(job, device, "torch.compile")
    return found


def losses(step: Callable[[int], Any], steps: int = STEPS_COMPARED) -> list[float]:
    """The losses of the first steps."""
    return [float(step(i).item()) for i in range(steps)]


def disagreement(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest relative difference of two loss curves."""
    return float(np.max(np.abs(np.subtract(a, b)) / np.maximum(np.abs(a), 1e-12)))


def run_job(
    job: Job, device: Device, samples: int, compiled: bool, threads: int, seconds: float = 0.02
) -> list[dict[str, Any]]:
    """Check the trajectories, then time the contestants in turns; a row each.

    Rows without times have a ``reason``. ``over_ours`` is a contestant's time over ours.
    """
    steps = contestants(job, device, compiled)
    curves: dict[str, list[float]] = {}
    rejected: dict[str, str] = {}
    with clock_for(device) as clock:
        for name, step in steps.items():
            try:
                curves[name] = losses(step)
            except Exception as error:  # torch.compile without a compiler, for one
                if name == "gpunn":
                    raise
                rejected[name] = one_line(error)
                continue
            apart = disagreement(curves["gpunn"], curves[name])
            if not apart <= LOSS_TOLERANCE:
                rejected[name] = f"the losses differ from ours by {apart:.1e} of their size"
        library = {"gpunn": "gpunn"}
        racers = [
            Contestant(name, steps[name], library=library.get(name, "torch"))
            for name in curves
            if name not in rejected
        ]
        timings, failed = interleave(racers, clock, samples, sample_seconds=seconds)
    rejected |= failed
    rows = []
    for name in steps:
        row: dict[str, Any] = {
            "job": job.name, "batch": job.batch, "device": str(device), "contestant": name,
            "threads": threads, "flops": job.flops,
        }  # fmt: skip
        if name in rejected:
            row["reason"] = rejected[name]
        else:
            timing, ours = timings[name], timings.get("gpunn")
            row |= {
                "median": timing.median, "quartiles": list(timing.quartiles),
                "samples": list(timing.samples), "inner": timing.inner,
                "losses": [curves[name][0], curves[name][-1]],
                "over_ours": timing.median / ours.median if ours else None,
            }  # fmt: skip
        rows.append(row)
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    from gpunn.bench.tables import seconds_text, significant
    from gpunn.text import table

    cells = []
    for row in rows:
        start = [row["job"], row["batch"], row["device"], row["threads"], row["contestant"]]
        if "reason" in row:
            cells.append([*start, "-", "", "", "", row["reason"]])
            continue
        low, high = row["quartiles"]
        cells.append([
            *start, seconds_text(row["median"]), f"{100 * (high - low) / row['median']:.0f}%",
            f"{1 / row['median']:,.0f}", significant(row["flops"] / row["median"] / 1e9),
            f"{row['over_ours']:.2f}x" if row["over_ours"] else "",
        ])  # fmt: skip
    headers = ["job", "batch", "device", "threads", "by", "step", "spread", "steps/s", "GFLOP/s",
               "time over ours"]  # fmt: skip
    return table(headers, cells, right=(1, 3, 5, 6, 7, 8, 9))


def check(name: str, device: Device, steps: int) -> dict[str, Any]:
    """The same training on the CPU and on the device: equal losses, and they fall.

    `name` is "digits" (real digits where scikit-learn is there, else random data) or "mlp".
    """
    job = mlp((64, 256, 128, 10), 128) if name == "digits" else JOBS[0]
    batches = (digits(job.batch) if name == "digits" else None) or data(job)
    expected = losses(our_step(job, Device("cpu"), batches), steps)
    got = losses(our_step(job, device, batches), steps)
    failures = []
    # Rounding grows with the steps; only the beginning is held to the tight bound.
    apart = disagreement(expected[:STEPS_COMPARED], got[:STEPS_COMPARED])
    if not apart <= LOSS_TOLERANCE:
        text = f"losses differ by {apart:.1e} of their size, allowed {LOSS_TOLERANCE:.0e}"
        failures.append({"case": f"{name}, first {STEPS_COMPARED} steps", "reason": text})
    first, last = np.mean(got[: steps // 2]), np.mean(got[steps // 2 :])
    if steps > STEPS_COMPARED and not last < first:
        text = f"the mean loss of the second half, {last}, is not below the first's, {first}"
        failures.append({"case": name, "reason": text})
    return {
        "passed": not failures, "checked": 1 + (steps > STEPS_COMPARED), "failures": failures,
        "difference": apart, "losses": [got[0], got[-1]], "steps": steps,
    }  # fmt: skip
