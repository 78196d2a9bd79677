"""What the network of tanks.py is compared with: linear prediction, the true equations, PID."""

from __future__ import annotations

from typing import Any

import numpy as np
from tanks_experiments import Profile, follow
from tanks_plant import RIM, STEP, VOLTS, Recording, advance, at_rest


class LinearModel:
    """ARX: the next levels are a linear function of the last `order` levels and voltages."""

    def __init__(self, weights: np.ndarray):
        self.weights = weights  # (3 · order + 1, 2)
        self.order = len(weights) // 3
        self.responses: dict[int, np.ndarray] = {}

    @classmethod
    def fit(cls, recording: Recording, order: int) -> LinearModel:
        """Least squares of the next levels over all samples."""
        rows, targets = [], []
        for now in range(order - 1, recording.volts.shape[1] - 1):
            window = slice(now - order + 1, now + 1)
            rows.append(cls.row(recording.levels[:, window], recording.volts[:, window]))
            targets.append(recording.levels[:, now + 1])
        found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)
        return cls(found[0])

    @staticmethod
    def row(levels: np.ndarray, volts: np.ndarray) -> np.ndarray:
        """(n, order, 2) and (n, order) to (n, 3 · order + 1)."""
        return np.concatenate([levels.reshape(len(volts), -1), volts, np.ones((len(volts), 1))], 1)

    def rollout(
        self, levels: np.ndarray, volts: np.ndarray, plan: np.ndarray, limits: Any = (0, RIM)
    ) -> np.ndarray:
        """As of `NetworkModel`; as there, a tank is neither fuller than full nor emptier."""
        levels, steps, order = levels[:, -self.order :], plan.shape[1], self.order
        inputs = np.concatenate([volts, plan], 1)[:, volts.shape[1] - order + 1 :]
        for at in range(steps):
            following = self.row(levels[:, at:], inputs[:, at : at + order]) @ self.weights
            levels = np.concatenate([levels, following.clip(*limits)[:, None]], 1)
        return levels[:, order:]

    def linearise(
        self, levels: np.ndarray, volts: np.ndarray, plan: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As of `NetworkModel`; the derivative is that without the limits, the same everywhere."""
        steps = plan.shape[1]
        if steps not in self.responses:
            none = np.zeros((steps + 1, self.order, 2)), np.zeros((steps + 1, self.order))
            plans = np.concatenate([np.eye(steps), np.zeros((1, steps))])
            found = self.rollout(*none, plans, (-np.inf, np.inf))[..., 1]
            self.responses[steps] = (found[:-1] - found[-1]).T
        derivative = np.broadcast_to(self.responses[steps], (len(plan), steps, steps))
        return self.rollout(levels, volts, plan)[..., 1], derivative


class TrueModel:
    """The equations themselves, for the bound: what a perfect model would reach."""

    def rollout(self, levels: np.ndarray, volts: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """As of `NetworkModel`."""
        current, found = levels[:, -1], []
        for at in range(plan.shape[1]):
            current = advance(current, plan[:, at])
            found.append(current)
        return np.stack(found, 1)

    def linearise(
        self, levels: np.ndarray, volts: np.ndarray, plan: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As of `NetworkModel`; by differences."""
        rigs, steps = plan.shape
        changed = np.concatenate([np.zeros((1, steps)), 1e-4 * np.eye(steps)])
        plans = (plan[:, None] + changed).reshape(-1, steps)
        found = self.rollout(np.repeat(levels[:, -1:], steps + 1, 0), volts, plans)[..., 1]
        found = found.reshape(rigs, steps + 1, steps)
        return found[:, 0], (found[:, 1:] - found[:, :1]).transpose(0, 2, 1) / 1e-4


class PID:
    """A PID controller with feed-forward, a filtered derivative of the level, and anti-windup.

    `gains` (rigs, 6) or (6,): V for each cm, the integral and the derivative time in s, by how many
    steps it looks ahead at the reference; and the feed-forward: the share of the voltage that holds
    a level, as a calibration of the rig tells it, and how many steps ahead that level is looked up.
    Anti-windup is by back-calculation.
    """

    def __init__(self, gains: np.ndarray):
        (self.gain, self.integral_time, self.derivative_time, self.lead, self.share,
         self.share_lead) = np.moveaxis(gains, -1, 0)  # fmt: skip

    def start(self, levels: np.ndarray, volts: np.ndarray) -> None:
        """Begin at rest."""
        self.integral, self.filtered = (1 - self.share) * volts, 100 * levels[:, 1]

    def __call__(self, measured: np.ndarray, reference: np.ndarray) -> np.ndarray:
        level, rigs = 100 * measured[:, 1], np.arange(len(measured))
        error = 100 * reference[rigs, self.lead.astype(int)] - level
        known = self.share * at_rest(reference[rigs, self.share_lead.astype(int)])[1]
        # A first-order filter; its time constant is a fifth of the derivative time, at least STEP.
        share = STEP / (STEP + np.maximum(self.derivative_time / 5, STEP))
        slope = share * (level - self.filtered) / STEP
        self.filtered = self.filtered + share * (level - self.filtered)
        wanted = self.gain * (error - self.derivative_time * slope) + self.integral + known
        volts = np.clip(wanted, 0, VOLTS)
        self.integral = self.integral + STEP / self.integral_time * (
            self.gain * error + volts - wanted
        )
        return volts


def tune_pid(profile: Profile, seed: Any) -> np.ndarray:
    """The gains with the least tracking error on these profiles, by differential evolution.

    All settings of a generation are tried at once, on rigs of their own.
    """
    try:
        from scipy.optimize import differential_evolution
    except ImportError:
        raise ImportError(
            "the PID controller is tuned by SciPy, which is not installed; run: pip install scipy, "
            'or pip install "gpunn[gallery]" for all examples'
        ) from None
    count = len(profile.reference)

    def gains(found: np.ndarray) -> np.ndarray:
        """Of (6,) or (6, settings), the first two as logarithms."""
        return np.concatenate([np.exp(found[:2]), found[2:3], found[3:4].round(), found[4:5],
                               found[5:].round()])  # fmt: skip

    def errors(found: np.ndarray) -> np.ndarray:
        settings = gains(found).T
        many = Profile(
            *(np.tile(part, (len(settings), 1)) for part in (profile.reference, profile.inflow))
        )
        tracked = follow(PID(np.repeat(settings, count, 0)), many, seed).errors
        return (tracked**2).reshape(-1, count).mean(1)

    bounds = [(np.log(0.3), np.log(30)), (np.log(20), np.log(2000)), (0, 40), (0, 12), (0, 1),
              (0, 30)]  # fmt: skip
    search = differential_evolution(
        errors, bounds, seed=0, popsize=10, maxiter=50, polish=False, vectorized=True,
        updating="deferred",
    )  # fmt: skip
    return gains(search.x)
