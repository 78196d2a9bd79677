"""What the controllers of tanks.py have to do: references, disturbances, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tanks_plant import NOISE, OUTLET, RIM, STEP, advance, at_rest

AHEAD = 60  # steps of the reference that controllers are shown


@dataclass
class Profile:
    """What several rigs have to follow and to bear, (rigs, samples)."""

    reference: np.ndarray  # m
    inflow: np.ndarray  # m³/s into the lower tank, which nobody measures


def profiles(rng: np.random.Generator, rigs: int, minutes: int) -> Profile:
    """References of 3 to 15 cm, held and changed; and water poured in or drawn off now and then.

    A change is smooth and takes 100 to 300 s, which the rig can follow, though sometimes barely. A
    disturbance lasts 150 to 350 s and is at most as much water as 0.3 V at the pump.
    """
    samples = round(60 * minutes / STEP)
    reference, inflow = np.empty((rigs, samples)), np.zeros((rigs, samples))
    for row, water in zip(reference, inflow, strict=True):
        at, level = 0, rng.uniform(0.03, 0.15)
        while at < samples:
            change, stay = rng.integers(20, 60), rng.integers(10, 50)
            target = rng.uniform(0.03, 0.15)
            ease = (1 - np.cos(np.pi * np.arange(1, change + 1) / change)) / 2
            piece = np.concatenate([level + (target - level) * ease, np.full(stay, target)])
            row[at : at + len(piece)] = piece[: samples - at]
            at, level = at + len(piece), target
        at = rng.integers(20, 60)
        while at < samples:
            stay = rng.integers(30, 70)
            water[at : at + stay] = rng.uniform(-1e-6, 1e-6)
            at += stay + rng.integers(20, 60)
    return Profile(reference, inflow)


@dataclass
class Experiment:
    """What happened: (rigs, samples), levels with a last axis of 2."""

    levels: np.ndarray
    volts: np.ndarray
    reference: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Of each rig the root of the mean square of reference - level, in cm."""
        return 100 * np.sqrt(((self.reference - self.levels[..., 1]) ** 2).mean(1))


def follow(
    controller: Any, profile: Profile, seed: Any, noise: float = NOISE, outlet: Any = OUTLET
) -> Experiment:
    """Let a controller follow references; the same `seed` gives all the same noise."""
    rng = np.random.default_rng(seed)
    levels, volts = at_rest(profile.reference[:, 0])
    controller.start(levels, volts)
    rows = []
    samples = profile.reference.shape[1]
    ahead = np.concatenate([profile.reference, np.repeat(profile.reference[:, -1:], AHEAD, 1)], 1)
    for at in range(samples):
        measured = levels + noise * rng.standard_normal(levels.shape)
        volts = controller(measured, ahead[:, at : at + AHEAD + 1])
        rows.append((levels, volts))
        levels = advance(levels, volts, profile.inflow[:, at], outlet)
    seen, given = (np.stack(column, 1) for column in zip(*rows, strict=True))
    return Experiment(seen, given, profile.reference)


def root_mean_square(errors: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt((errors**2).mean()))


def read_reference(path: str) -> np.ndarray:
    """The levels of a CSV file, the last number of each line in cm, as (1, samples) in m."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; expected a CSV file of levels") from None
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        said = line.rpartition(",")[2].strip(' \t"')
        try:
            value = float(said) if ";" not in line else float("nan")
        except ValueError:
            value = float("nan")
        if not 0 < value <= 100 * RIM:
            if number == 1 and any(sign.isalpha() for sign in line):  # a header
                continue
            raise ValueError(
                f"{path}, line {number}: expected a level in cm with a decimal point, above 0 and "
                f"at most {100 * RIM:.0f}, behind the last comma if there are several columns, got "
                f"{line.strip()[:40]!r}"
            )
        values.append(value / 100)
    if not values:
        raise ValueError(f"{path}: there is no level in it; give one in cm for every {STEP:.0f} s")
    return np.array([values])
