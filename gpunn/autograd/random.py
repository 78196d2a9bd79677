"""Random numbers: one counter-based generator for all devices, and its state.

Philox4x32-10 turns (seed, offset, index of the element) into the element's value, so nothing is
drawn in sequence: one seed gives the same weights, the same dropout masks and the same shuffles in
NumPy and on every GPU. The generator holds a seed and an offset; each draw takes the next offset.
"""

from __future__ import annotations

import os

_MASK = (1 << 64) - 1


class Generator:
    """A seed and the number of draws made with it. Starts from a seed of the operating system."""

    __slots__ = ("_seed", "_offset")

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


def manual_seed(seed: int) -> Generator:
    """Seed gpunn's generator, for all devices; returns it."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed gpunn's generator from the operating system; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of gpunn's generator."""
    return default_generator.initial_seed()


def get_rng_state() -> dict[str, int]:
    """The state of gpunn's generator, for a checkpoint."""
    return default_generator.get_state()


def set_rng_state(state: dict[str, int]) -> None:
    """Continue gpunn's generator from `get_rng_state`."""
    default_generator.set_state(state)


get_state, set_state = get_rng_state, set_rng_state
