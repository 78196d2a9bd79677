"""Small networks, trained by a compiled step and by the step itself: the same bits must come out.

With all that changes from step to step: dropout, a learning rate on a schedule, the running
statistics of batch norm, a loss scale; and in the middle the state is loaded back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.device.device import Device
from gpunn.optim.lr_scheduler import OneCycleLR
from gpunn.train.precision import Precision

STEPS = 7  # the first runs as it is, three more until it is captured, then replays
PRECISIONS = ("fp32", "bf16", "fp16")


class _Reader(nn.Module):
    """An LSTM in both directions whose last output is classified."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


def _perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(9, 13), nn.ReLU(), nn.Dropout(0.3), nn.Linear(13, 7), nn.GELU(), nn.Linear(7, 4)
    )


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 9, 4),
    )  # fmt: skip


def _transformer() -> nn.Module:
    return models.GPT(models.GPTConfig(11, 6, 1, 2, 8, dropout=0.1))


# name -> what makes the network, and what its optimizer
NETWORKS: dict[str, tuple[Callable, Callable]] = {
    "perceptron": (_perceptron, lambda p: optim.AdamW(p, lr=1e-2)),
    "convolutional": (
        _convolutional, lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "reader": (_Reader, lambda p: optim.RMSprop(p, lr=1e-2)),
    "transformer": (_transformer, lambda p: optim.Adam(p, lr=1e-2)),
}  # fmt: skip


def batches(name: str, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and labels of each step."""
    rng = np.random.default_rng(5)
    shapes = {"perceptron": (steps, 6, 9), "convolutional": (steps, 3, 2, 6, 6)}
    if name in shapes:
        x = rng.standard_normal(shapes[name]).astype(np.float32)
        y = rng.integers(0, 4, shapes[name][:2])
    else:
        x = rng.integers(0, 11, (steps, 3, 6))
        y = rng.integers(0, 4, (steps, 3)) if name == "reader" else np.roll(x, -1, 2)
    return list(zip(x, y, strict=True))


@dataclass
class Trained:
    """What a training left: a loss and a checksum of the scores for each step, all arrays that it
    changed by name, the state of `gpunn.random`, and the step."""

    losses: list[tuple[float, float]]
    state: dict[str, np.ndarray]
    random: dict[str, int]
    step: Any


def train(
    name: str, device: Device | str, compiled: bool, precision: str | None = None,
    reload: bool = False,
) -> Trained:  # fmt: skip
    """Train for `STEPS` steps; with `reload`, go back two steps and train for as many again."""
    gpunn.manual_seed(3)
    make, update = NETWORKS[name]
    model = make().to(device)
    optimizer = update(model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.03, total_steps=2 * STEPS + 1)
    how = Precision(precision, device, optimizer)

    def step(x, y):
        optimizer.zero_grad()
        with how.products():
            with how.forward():
                scores = model(x)
                scores = scores.reshape(-1, scores.shape[-1])
                loss = F.cross_entropy(scores, y.reshape(-1)) + 0.01 * (scores * scores).mean()
            how.scaled(loss).backward()
        how.unscale()
        optim.clip.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        how.update()
        return loss, {"scores": scores}

    run = gpunn.compile(step, name=name) if compiled else step
    losses = []

    def go_on(some: list) -> None:
        for x, y in some:
            loss, more = run(gpunn.tensor(x, device=device), gpunn.tensor(y, device=device))
            scores = more["scores"].detach().to(np.float32)
            losses.append((float(loss.item()), float(scores.numpy().sum())))
            schedule.step()

    data = batches(name, 2 * STEPS)
    go_on(data[: STEPS - 2])
    kept = {k: v.numpy().copy() for k, v in model.state_dict().items()}, optimizer.state_dict()
    go_on(data[STEPS - 2 : STEPS])
    if reload:
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
        go_on(data[STEPS:])
    return Trained(losses, _state(model, optimizer), gpunn.random.get_rng_state(), run)


def _state(model: nn.Module, optimizer: Any) -> dict[str, np.ndarray]:
    found = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    found |= {f"{k}.grad": p.grad.numpy() for k, p in model.named_parameters()}
    for number, entry in optimizer.state_dict()["state"].items():
        found |= {f"{key} of parameter {number}": np.asarray(v) for key, v in entry.items()}
    return found


def differences(one: Trained, other: Trained) -> list[str]:
    """In words, where two trainings are not the same, bit for bit."""
    found = []
    pairs = zip(one.losses, other.losses, strict=True)
    apart = [i for i, (a, b) in enumerate(pairs) if not np.array_equal(a, b, equal_nan=True)]
    if apart:
        i = apart[0]
        found.append(f"step {i + 1}: {one.losses[i]}, compiled {other.losses[i]}")
    for name, value in one.state.items():
        if value.tobytes() != other.state[name].tobytes():
            count = int(np.sum(value != other.state[name]))
            found.append(f"{name}: {count} of {value.size} numbers differ")
    if one.random != other.random:
        found.append(f"gpunn.random: {one.random}, compiled {other.random}")
    return found


def check(name: str, precision: str, device: Device) -> dict[str, Any]:
    """A network on a device in one precision: a result as the stages of the run on hardware have.

    It passes if the compiled step did what the step itself does, and was replayed. ``arena`` is the
    memory of the captured step in bytes: all of it, the most in use at one time, and what it would
    be if nothing were shared.
    """
    plain = train(name, device, compiled=False, precision=precision, reload=True)
    again = train(name, device, compiled=True, precision=precision, reload=True)
    reasons = differences(plain, again)
    variant = list(again.step._variants.values())[-1]
    wanted = "planned" if device.type == "cpu" else "captured"
    if variant.state != wanted:
        reasons.append(f"the step is {variant.state}, not {wanted}")
    plan = getattr(variant.memory, "plan", None)
    case = f"{name}, {precision}"
    return {
        "passed": not reasons, "checked": 1 + len(plain.state),
        "failures": [{"case": case, "reason": reason} for reason in reasons[:5]],
        "losses": [plain.losses[0][0], plain.losses[-1][0]], "captures": variant.captures,
        "launches": getattr(variant.graph, "launches", None),
        "arena": plan and {"size": plan.size, "peak": plan.peak, "unshared": plan.total},
        "unplanned": list(getattr(variant.memory, "unplanned", (0, 0))),
    }  # fmt: skip
