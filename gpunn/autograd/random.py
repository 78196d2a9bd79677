"""Random numbers: one counter-based generator for all devices, and its state.

Philox4x32-10 turns (seed, offset, index of the element) into the element's value, so nothing is
drawn in sequence: one seed gives the same weights, the same dropout masks and the same shuffles in
NumPy and on every GPU. The generator holds a seed and an offset; each draw takes the next offset.

Launches that are captured into a CUDA graph are repeated with the same arguments, so there the seed
and the offset must lie in device memory: a *counter*, a uint64 array [seed, offset]. While a
generator is capturing, its draws name the counter and count from 0; the kernels add the two.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpunn.device import Device, as_device, device_of, tracing
from gpunn.errors import StepError

_MASK = (1 << 64) - 1


class Draw(NamedTuple):
    """What a random primitive takes, as keywords: ``random_normal(out, **draw._asdict())``.

    Without a counter the numbers themselves; with one `seed` is 0 and `offset` counts from the
    offset that the counter holds when the kernel runs.
    """

    seed: int
    offset: int
    counter: Any = None


class Captured:
    """The draws of one generator while it is capturing: how many, and where the counter lies."""

    __slots__ = ("counter", "device", "draws", "generator")

    def __init__(self, generator: Generator, counter: Any):
        self.generator, self.counter, self.device = generator, counter, device_of(counter)
        self.draws = 0


# By thread: what loaders draw beside a step that is being captured is no part of it.
_capturing: dict[int, Captured] = {}


class Generator:
    """A seed and the number of draws made with it. Starts from a seed of the operating system."""

    __slots__ = ("_offset", "_seed")

    def __init__(self, seed: int | None = None):
        self._offset = 0
        if seed is None:
            self.seed()
        else:
            self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start again from `seed` (any integer; taken modulo 2^64)."""
        self._seed, self._offset = int(seed) & _MASK, 0
        return self

    def seed(self) -> int:
        """Start from a seed that the operating system draws; returns it."""
        self.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        return self._seed

    def initial_seed(self) -> int:
        """The seed in use."""
        return self._seed

    def take(self, draws: int = 1) -> tuple[int, int]:
        """(seed, offset) for the next draw; moves the offset on by `draws`."""
        offset = self._offset
        self._offset = offset + draws
        return self._seed, offset

    def draw(self, device: Device | str | None, draws: int = 1) -> Draw:
        """The next draw, for an array on `device`; moves the offset on by `draws`.

        While this thread is `capturing`, a draw from the counter instead. Raises StepError if
        the counter lies on another device, or counts for another generator.
        """
        captured = _capturing.get(threading.get_ident()) if _capturing else None
        if captured is None:
            return Draw(*self.take(draws))
        device = as_device(device)
        if device != captured.device:
            raise StepError(
                f"Generator.draw: random numbers for {device} are asked for while a step on "
                f"{captured.device} is captured, and a captured step cannot repeat what is drawn "
                f"elsewhere; make them on {captured.device}, or before the step."
            )
        if captured.generator is not self:
            raise StepError(
                "Generator.draw: a step is captured, and this generator is not the one that its "
                "counter stands for, so every repetition would draw the same numbers; use gpunn's "
                "own generator in the step, or draw before it."
            )
        offset = captured.draws
        captured.draws = offset + draws
        return Draw(0, offset, captured.counter)

    @contextlib.contextmanager
    def capturing(self, counter: Any) -> Iterator[Captured]:
        """Within, this thread's draws are relative to `counter` and leave the generator alone.

        `counter` is a uint64 array [seed, offset] of shape (2,) on the device of the step. Gives an
        object whose `draws` counts them: how far `kernels.advance_counter` has to move the counter,
        and `take` the generator, for each repetition.

        Raises RuntimeError if this thread is capturing already, TypeError or ValueError for a
        counter that is no such array.
        """
        thread = threading.get_ident()
        if thread in _capturing:
            raise RuntimeError("Generator.capturing: this thread is capturing a step already.")
        dtype = getattr(counter, "dtype", type(counter).__name__)
        if dtype != np.uint64:
            raise TypeError(f"Generator.capturing: counter is {dtype}; expected a uint64 array.")
        if counter.shape != (2,):
            raise ValueError(
                f"Generator.capturing: counter has shape {counter.shape}; expected (2,), the seed "
                "and the offset."
            )
        _capturing[thread] = captured = Captured(self, counter)
        try:
            yield captured
        finally:
            del _capturing[thread]

    def counter_values(self) -> np.ndarray:
        """[seed, offset] of the next draw: what a counter must hold before the step runs."""
        return np.array([self._seed, self._offset & _MASK], np.uint64)

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to continue exactly here: {"seed": …, "offset": …}."""
        return {"seed": self._seed, "offset": self._offset}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue from a state that `get_state` gave. Raises ValueError for anything else."""
        try:
            seed, offset = int(state["seed"]), int(state["offset"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"set_state: expected a dict with seed and offset from get_state, got {state!r:.80}"
            ) from None
        self._seed, self._offset = seed & _MASK, offset

    def __repr__(self) -> str:
        return f"Generator(seed={self._seed}, offset={self._offset})"


default_generator = Generator()


def _outside_steps(name: str) -> None:
    if tracing.state.trace is not None:
        tracing.state.trace.refuse(
            f"{name} sets the state of the random numbers, which a replay would not",
            "call it before the step",
        )


def manual_seed(seed: int) -> Generator:
    """Seed gpunn's generator, for all devices; returns it."""
    _outside_steps("manual_seed()")
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed gpunn's generator from the operating system; returns the seed."""
    _outside_steps("seed()")
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of gpunn's generator."""
    return default_generator.initial_seed()


def get_rng_state() -> dict[str, int]:
    """The state of gpunn's generator, for a checkpoint."""
    return default_generator.get_state()


def set_rng_state(state: dict[str, int]) -> None:
    """Continue gpunn's generator from `get_rng_state`."""
    _outside_steps("set_rng_state()")
    default_generator.set_state(state)


get_state, set_state = get_rng_state, set_rng_state
