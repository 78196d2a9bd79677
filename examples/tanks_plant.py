"""The two tanks of tanks.py: their physics, and recordings of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# The laboratory rig. Levels are arrays (rigs, 2) in m, the upper tank first.
AREA = 28e-4  # m², of each tank
OUTLET = 7.1e-6  # m², of the hole in each tank
PUMP = 3.33e-6  # m³/s for each volt
GRAVITY, RIM, VOLTS = 9.81, 0.20, 10.0  # m/s², m, the most that the pump takes
STEP = 5.0  # s, between measurements
NOISE = 1e-3  # m, standard deviation of a measurement

PAST = 12  # measurements up to now that models are shown


def rates(levels: np.ndarray, volts: Any, inflow: Any, outlet: Any) -> np.ndarray:
    """How fast the levels change, in m/s. `inflow`, in m³/s, goes into the lower tank."""
    out = outlet * np.sqrt(2 * GRAVITY * np.maximum(levels, 0))
    into = np.stack(np.broadcast_arrays(PUMP * volts, out[:, 0] + inflow), 1)
    return (into - out) / AREA


def advance(levels: np.ndarray, volts: Any, inflow: Any = 0.0, outlet: Any = OUTLET) -> np.ndarray:
    """The levels of all rigs after a STEP with constant voltages: Runge-Kutta of fourth order."""
    h = STEP / 2
    for _ in range(2):
        k1 = rates(levels, volts, inflow, outlet)
        k2 = rates(levels + h / 2 * k1, volts, inflow, outlet)
        k3 = rates(levels + h / 2 * k2, volts, inflow, outlet)
        k4 = rates(levels + h * k3, volts, inflow, outlet)
        levels = np.clip(levels + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), 0, RIM)
    return levels


def at_rest(lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels and voltages at which the lower level stays where it is."""
    return np.stack([lower, lower], 1), OUTLET * np.sqrt(2 * GRAVITY * lower) / PUMP


@dataclass
class Recording:
    """What was recorded of several rigs. ``volts[:, t]`` acts from ``levels[:, t]`` to the next."""

    volts: np.ndarray  # (rigs, samples)
    levels: np.ndarray  # (rigs, samples, 2), with the noise of the sensors
    true: np.ndarray  # without


def record(rng: np.random.Generator, rigs: int, samples: int = 500) -> Recording:
    """Excite rigs by voltages that jump at random: long stays up to 5 V, short ones up to 10 V."""
    volts = np.empty((rigs, samples))
    for row in volts:
        at = 0
        while at < samples:
            short = rng.random() < 0.3
            stay = rng.integers(2, 8) if short else rng.integers(6, 40)
            row[at : at + stay] = rng.uniform(0, VOLTS if short else VOLTS / 2)
            at += stay
    levels = [at_rest(rng.uniform(0.02, 0.16, rigs))[0]]
    for at in range(samples - 1):
        levels.append(advance(levels[-1], volts[:, at]))
    true = np.stack(levels, 1)
    return Recording(volts, true + NOISE * rng.standard_normal(true.shape), true)


def stretches(recording: Recording, stride: int, steps: int) -> tuple[np.ndarray, ...]:
    """Pieces of the recordings, one every `stride` samples: PAST steps and `steps` that follow.

    Returns levels (n, PAST, 2), volts (n, PAST) that led to them, plan (n, steps), and what came of
    it, measured and true (n, steps, 2).
    """
    samples = recording.volts.shape[1]
    parts = []
    for now in range(PAST, samples - steps, stride):  # the last sample that is known
        past, future = slice(now - PAST + 1, now + 1), slice(now + 1, now + 1 + steps)
        parts.append((
            recording.levels[:, past], recording.volts[:, now - PAST : now],
            recording.volts[:, now : now + steps],
            recording.levels[:, future], recording.true[:, future],
        ))  # fmt: skip
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
