"""Quantiles of tomorrow's return without a network, for finance.py.

A `walk` has ``returns`` of all days, in per cent, ``spans``, from low to high, in per cent too, and
``known``, the volatility that was known a day before each. A forecast of a day takes the days
before it alone; what is fitted is fitted to the days before `first`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np


def recent_quantiles(
    walk: Any, first: int, last: int, levels: Sequence[float], days: int
) -> np.ndarray:
    """The quantiles of the last so many returns before each day, (last - first, levels)."""
    windows = np.lib.stride_tricks.sliding_window_view(walk.returns, days)
    return np.quantile(windows[first - days : last - days], levels, axis=1).T


def riskmetrics(walk: Any, first: int, last: int, levels: Sequence[float]) -> np.ndarray:
    """Normal quantiles with the exponential mean of squared returns as the variance."""
    normal = np.array([NormalDist().inv_cdf(level) for level in levels])
    return walk.known[first:last, None] * normal


def range_regression(walk: Any, first: int, last: int, levels: Sequence[float]) -> np.ndarray:
    """A linear model of what the network sees: tomorrow's range from low to high, in logarithms, by
    the ranges of the last 1, 5 and 21 days (F. Corsi's HAR, 2009) and today's return, a fall apart;
    and with it the quantiles of the returns, in units of the range foreseen."""
    ranges, longest = np.log(walk.spans), 21
    sums = np.concatenate([[0.0], np.cumsum(ranges)])
    days = np.arange(longest, last)
    move = walk.returns[days - 1] / walk.known[days - 1]
    means = [(sums[days] - sums[days - count]) / count for count in (1, 5, longest)]
    rows = np.stack([np.ones(len(days)), *means, move, np.minimum(move, 0)], axis=1)
    known = first - longest  # rows of the days before `first`
    weights, *_ = np.linalg.lstsq(rows[:known], ranges[longest:first])
    foreseen = np.exp(rows @ weights)
    units = np.quantile(walk.returns[longest:first] / foreseen[:known], levels)
    return foreseen[known:, None] * units


def garch(walk: Any, first: int, last: int, levels: Sequence[float], **kind: Any) -> np.ndarray:
    """A GARCH model, `kind` as of ``arch.arch_model``."""
    from arch import arch_model

    model = arch_model(walk.returns[:last], mean="Constant", vol="GARCH", **kind)
    fitted = model.fit(last_obs=first, disp="off").params
    # By its definition the volatility of a day comes from the returns before it alone.
    volatility = np.asarray(model.fix(fitted).conditional_volatility)[first:last]
    shape = fitted[model.distribution.parameter_names()]
    return fitted["mu"] + volatility[:, None] * model.distribution.ppf(list(levels), shape)


def autoregression(walk: Any, first: int, last: int, lags: int = 5) -> np.ndarray:
    """The mean of each return by least squares on the `lags` returns before it."""
    before = np.lib.stride_tricks.sliding_window_view(walk.returns, lags)[:-1]  # of day k + lags
    rows = np.concatenate([np.ones((len(before), 1)), before], axis=1)
    weights, *_ = np.linalg.lstsq(rows[: first - lags], walk.returns[lags:first])
    return rows[first - lags : last - lags] @ weights


def drift_of(walk: Any, first: int, last: int) -> np.ndarray:
    """The median of the returns before `first`, for each day."""
    return np.full(last - first, np.median(walk.returns[:first]))
