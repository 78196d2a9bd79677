"""What a Trainer is made of: checked, and made where a description was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpunn.profiling import StepProfiler
from gpunn.train.callbacks import LearningRateScheduler


def make_schedule(scheduler: Any, optimizer: Any) -> LearningRateScheduler | None:
    """The callback that steps a schedule, from it, the schedule, or what makes one; or None."""
    ready = (type(None), LearningRateScheduler)
    if not isinstance(scheduler, ready) and not hasattr(scheduler, "step"):
        scheduler = scheduler(optimizer)
    return scheduler if isinstance(scheduler, ready) else LearningRateScheduler(scheduler)


def make_profiler(profile: Any, model: Any) -> StepProfiler | None:
    """What `profile` asks for."""
    if isinstance(profile, StepProfiler):
        return profile
    if profile is False or profile is None:
        return None
    return StepProfiler(folder=None if profile is True else profile, model=model)


def grouped(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """Lists of `count` items; the last may be shorter."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def check_parts(model: Any, loss: Any, optimizer: Any) -> None:
    """Raise TypeError for what is not a model, a loss or an optimizer."""
    if not hasattr(model, "parameters") or isinstance(model, type):
        raise TypeError(f"Trainer: model must be an nn.Module, got {_kind(model)}")
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            f"Trainer: loss must be callable, such as nn.CrossEntropyLoss(), got {_kind(loss)}"
        )
    if not is_made(optimizer) and not callable(optimizer):
        raise TypeError(
            "Trainer: optimizer must be an optimizer of gpunn.optim, or a function of the "
            f"parameters that makes one, got {_kind(optimizer)}"
        )


def is_made(optimizer: Any) -> bool:
    """Whether it is an optimizer, not a function or class that makes one."""
    return hasattr(optimizer, "step") and not isinstance(optimizer, type)


def _kind(value: Any) -> str:
    """What was given, for an error: its type, or that it is a class."""
    if isinstance(value, type):
        return f"the class {value.__name__} (add parentheses)"
    return repr(value) if isinstance(value, str) else type(value).__name__


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """One 63-bit seed for the random numbers of an epoch, others on every rank."""
    entropy = [seed, epoch, rank] if rank else [seed, epoch]
    words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
