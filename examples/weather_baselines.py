"""Forecasts without a network, for weather.py: persistence, climatology, linear regressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

OWN = 1e-3  # the penalty on the weights of the target's own past


def ridge(
    x: np.ndarray, y: np.ndarray, penalty: float | np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Linear regression with a penalty on the squared weights of scaled columns, one for all or
    one for each, as a function."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z, centre = (x - mean) / scale, y.mean(0)
    pull = len(z) * np.diag(np.broadcast_to(penalty, z.shape[1]))
    weights = np.linalg.solve(z.T @ z + pull, z.T @ (y - centre))
    return lambda new: ((new - mean) / scale) @ weights + centre


def own_past(x: np.ndarray) -> np.ndarray:
    """Of windows (n, steps, columns): the target's past, and the clock at the last step."""
    return np.concatenate([x[:, :, 0], x[:, -1, -4:]], axis=1)


def everything(x: np.ndarray, recent: int) -> np.ndarray:
    """Of windows: the target's past, the clock, and all other columns of the `recent` steps."""
    return np.concatenate([own_past(x), x[:, -recent:, 1:-4].reshape(len(x), -1)], axis=1)


Forecast = Callable[[np.ndarray], np.ndarray]  # windows (n, steps, columns) -> (n, horizon)


def autoregression(x: np.ndarray, y: np.ndarray) -> Forecast:
    """Linear regression of what follows windows on the target's own past and the clock."""
    fitted = ridge(own_past(x), y, OWN)
    return lambda new: fitted(own_past(new))


def regression(x: np.ndarray, y: np.ndarray, task: Any) -> Forecast:
    """Linear regression on all inputs; those besides the own past are many and alike, and so their
    weights are held more tightly."""
    rows, own = everything(x, task.recent), own_past(x).shape[1]
    fitted = ridge(rows, y, np.repeat([OWN, task.penalty], [own, rows.shape[1] - own]))
    return lambda new: fitted(everything(new, task.recent))


def climatology(walk: Any, rows: np.ndarray) -> np.ndarray:
    """What is usual at `rows`: the mean of that hour over the 14 days before; for days, of the
    season, two waves through the year, fitted to the time before the test."""
    period = walk.task.period
    if period > 1:
        return np.mean([walk.raw[rows - k * period] for k in range(1, 15)], axis=0)
    waves = np.concatenate([np.ones((len(walk.x), 1)), walk.x[:, -4:]], axis=1)
    fitted, *_ = np.linalg.lstsq(waves[: walk.begin], walk.raw[: walk.begin])
    return (waves @ fitted)[rows]


def simple_forecasts(walk: Any, part: Any) -> dict[str, np.ndarray]:
    """What the forecasts of a part are compared with, (windows, horizon) each, in the unit."""
    task = walk.task
    (x, y), new = part.train.whole(), part.test.whole()[0]
    rows = (part.test.starts + task.window)[:, None] + np.arange(task.horizon)
    found = {
        "linear autoregression": walk.degrees(autoregression(x, y)(new)),
        "linear regression on all inputs": walk.degrees(regression(x, y, task)(new)),
        "climatology": climatology(walk, rows),
        "persistence": walk.degrees(np.repeat(new[:, -1:, 0], task.horizon, axis=1)),
    }
    if task.period > 1:
        found["the same hour of the day before"] = walk.degrees(new[:, -task.period :, 0])
    return found


def linear_quantiles(walk: Any, part: Any, levels: Sequence[float]) -> np.ndarray:
    """Quantiles (windows, horizon, levels) of the linear regression on all inputs: its forecast and
    the quantiles of its errors in training, by how far ahead."""
    x, y = part.train.whole()
    fitted = regression(x, y, walk.task)
    errors = np.quantile(y - fitted(x), levels, axis=0).T
    forecast = fitted(part.test.whole()[0])
    return walk.degrees(forecast[:, :, None] + errors)
