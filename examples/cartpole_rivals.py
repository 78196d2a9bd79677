"""What the network of cartpole.py is compared with: an engineer's controllers, and random play."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cartpole import Task

Act = Callable[[np.ndarray], np.ndarray]  # observations (n, …) -> actions


def lqr(a: np.ndarray, b: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The gain K of the linear-quadratic regulator: ``u = -K x`` for ``x' = a x + b u``.

    It minimises the sum of ``xᵀ q x + uᵀ r u`` over all steps; found by iterating the Riccati
    equation backwards in time until it stands still.
    """
    p = q
    for _ in range(10_000):
        gain = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        following = q + a.T @ p @ (a - b @ gain)
        if np.allclose(following, p, rtol=1e-12, atol=0):
            break
        p = following
    return gain


def balance_cart() -> Act:
    """CartPole-v1 by an LQR of its equations about the upright pole; of its force only the sign.

    Masses of cart and pole 1 and 0.1 kg, half the pole 0.5 m, a push 10 N, a step 0.02 s.
    """
    total, pole, half, gravity, step = 1.1, 0.1, 0.5, 9.8, 0.02
    inertia = half * (4 / 3 - pole / total)
    a, b = np.eye(4), np.zeros((4, 1))
    a[0, 1] = a[2, 3] = step
    a[1, 2] = -step * pole * half / total * gravity / inertia
    a[3, 2] = step * gravity / inertia
    b[1, 0] = step * (1 / total + pole * half / total / total / inertia)
    b[3, 0] = -step / total / inertia
    gain = lqr(a, b, np.diag([1.0, 0.1, 10.0, 0.1]), np.array([[0.01]]))
    return lambda observations: (observations @ -gain[0] > 0).astype(np.int64)


def swing_up() -> Act:
    """Pendulum-v1 by energy: pump it up to that of the upright rest, then hold it there by an LQR.

    Mass 1 kg, length 1 m, gravity 10 m/s², a step 0.05 s, a torque of 2 Nm at most (Åström and
    Furuta, Automatica 36 (2000) 287). The LQR minimises the environment's own costs near the top.
    """
    step = 0.05
    a = np.array([[1 + 15 * step**2, step], [15 * step, 1]])
    b = np.array([[3 * step**2], [3 * step]])
    gain = lqr(a, b, np.diag([1.0, 0.1]), np.array([[0.001]]))[0]

    def act(observations: np.ndarray) -> np.ndarray:
        cosine, sine, speed = observations.T
        angle = np.arctan2(sine, cosine)
        missing = 5 - (speed**2 / 6 + 5 * cosine)  # joules; torque · speed is how fast it changes
        pump = np.where(speed >= 0, 1, -1) * np.clip(10 * missing, -2, 2)
        hold = -(gain[0] * angle + gain[1] * speed)
        near = (np.abs(angle) < 0.5) & (np.abs(hold) < 4)
        return np.where(near, hold, pump)[:, None].astype(np.float32)

    return act


def at_random(task: Task, seed: int) -> Act:
    """Play without looking."""
    rng = np.random.default_rng(seed)
    if task.limit:
        return lambda seen: rng.uniform(-task.limit, task.limit, (len(seen), 1)).astype(np.float32)
    return lambda seen: rng.integers(task.actions, size=len(seen))
