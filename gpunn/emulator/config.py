"""How launches run if they do not say it themselves: `settings`, and environment variables."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

SCHEDULES = ("in order", "random", "reverse")


@dataclass(frozen=True)
class Settings:
    """How a launch runs.

    Attributes
    ----------
    check : look at every access of the kernel; None for "what the caller is used to" (a RawKernel
        checks, the device "emulator" does not)
    schedule : the order in which threads and blocks run: "in order", "reverse" or "random"
    seed : of the random order
    threads : threads of the operating system; 0 for one on each processor
    preempt : in checked mode, let others run after about so many accesses; 0 only at barriers
    timeout : seconds after which a launch is given up
    stack : KiB of local memory of a thread, as cudaLimitStackSize on a GPU
    coverage : compile so that executed lines are counted (not together with check; needs g++);
        runs on one thread of the operating system
    """

    check: bool | None = None
    schedule: str = "random"
    seed: int = 0
    threads: int = 0
    preempt: int = 0
    timeout: float = 60.0
    stack: int = 64
    coverage: bool = False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            listed = ", ".join(map(repr, SCHEDULES))
            raise ValueError(f"schedule is {self.schedule!r}; expected one of {listed}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed}; expected a number from 0 to 2^63 - 1")
        if not 16 <= self.stack <= 16384:
            raise ValueError(f"stack is {self.stack}; expected KiB, from 16 to 16384")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; expected seconds, more than 0")

    def updated(self, changes: dict[str, Any]) -> Settings:
        """These settings with those of `changes` that are not None."""
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given) if given else self


class _Active(threading.local):
    settings: Settings | None = None


_active = _Active()


def current() -> Settings:
    """The settings that hold here: of the innermost `settings` block, else of the environment."""
    return _active.settings or from_environment()


def from_environment() -> Settings:
    """GPUNN_EMULATOR_CHECK, _SCHEDULE, _SEED, _THREADS, _TIMEOUT and _COVERAGE."""

    def get(name: str, convert):
        text = os.environ.get(f"GPUNN_EMULATOR_{name}", "").strip()
        if not text:
            return None
        try:
            return convert(text)
        except ValueError as error:
            raise ValueError(f"GPUNN_EMULATOR_{name}={text}: {error}") from error

    found = {
        "check": get("CHECK", _truth),
        "schedule": get("SCHEDULE", str),
        "seed": get("SEED", int),
        "threads": get("THREADS", int),
        "timeout": get("TIMEOUT", float),
        "coverage": get("COVERAGE", _truth),
    }
    return Settings().updated(found)


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected 1 or 0")


@contextlib.contextmanager
def settings(**changes: Any) -> Iterator[Settings]:
    """Change how launches run inside a ``with`` block; the names are those of `Settings`.

    >>> with emulator.settings(check=True, schedule="random", seed=3):
    ...     y = gpunn.kernels.softmax_forward(x)
    """
    unknown = changes.keys() - Settings.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"settings: {', '.join(sorted(unknown))} is not known")
    before = _active.settings
    _active.settings = current().updated(changes)
    try:
        yield _active.settings
    finally:
        _active.settings = before
