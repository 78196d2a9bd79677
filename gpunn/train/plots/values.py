"""Pictures for regression, time series and attention."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpunn.train.plots.figures import (
    BEST,
    MARKS,
    PALETTE,
    TRAINING,
    VALIDATION,
    finished,
    legend,
    literal,
    new_figure,
    panels,
    plain,
    values_of,
)


def _vector(values: Any, what: str, length: int | None = None) -> np.ndarray:
    array = values_of(values, what).astype(float)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or not len(array) or (length is not None and len(array) != length):
        expected = "(samples,)" if length is None else f"({length},)"
        raise ValueError(f"{what} has shape {np.shape(values)}; expected {expected}")
    return array


def plot_regression(
    true: Any,
    predicted: Any,
    *,
    unit: str = "",
    title: str = "Predictions",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Predicted against true values, and the errors against the predictions.

    `true` and `predicted` are (samples,) or (samples, 1); `unit` is written at the axes. The title
    tells R², the mean absolute error and the root of the mean square. In the second panel a fan or
    a bend shows what the model has not learned. Returns the Figure. ValueError for shapes that do
    not match.
    """
    true = _vector(true, "true")
    predicted = _vector(predicted, "predicted", len(true))
    errors = predicted - true
    spread = float(np.sum((true - true.mean()) ** 2))
    r2 = f"R² {1 - np.sum(errors**2) / spread:.3f}, " if spread else ""
    in_unit = f" {unit}" if unit else ""
    figure = new_figure(10.0, 4.6)
    left, right = figure.subplots(1, 2)
    dots = {"s": 14, "color": TRAINING, "alpha": 0.55, "lw": 0}
    left.scatter(true, predicted, **dots)
    span = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    left.plot(span, span, color=BEST, lw=1, ls=":", label="perfect")
    label = f", {unit}" if unit else ""
    left.set(xlabel=f"true{label}", ylabel=f"predicted{label}")
    legend(left, loc="upper left")
    right.scatter(predicted, errors, **dots)
    right.axhline(0, color=BEST, lw=1, ls=":")
    bias = float(errors.mean())
    right.axhline(bias, color=VALIDATION, lw=1.4, ls="--", label=f"mean error {bias:+.3g}{in_unit}")
    right.set(xlabel=f"predicted{label}", ylabel=f"error (predicted − true){label}")
    legend(right)
    plain(left)
    plain(right)
    figure.suptitle(
        f"{title}: {r2}mean absolute error {np.abs(errors).mean():.3g}{in_unit}, "
        f"root mean square {np.sqrt(np.mean(errors**2)):.3g}{in_unit}",
        fontsize=11.5,
        fontweight="bold",
    )
    return finished(figure, path)


def plot_forecast(
    times: Any,
    observed: Any,
    forecast_times: Any,
    forecast: Any,
    low: Any = None,
    high: Any = None,
    *,
    interval: str = "90 % interval",
    xlabel: str = "time",
    ylabel: str = "value",
    title: str = "Forecast",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """A time series and its forecast, with the band between `low` and `high`.

    Parameters
    ----------
    times, observed : of what was seen, (steps,); numbers or NumPy dates, and values
    forecast_times, forecast : of the forecast; where the times overlap those seen, the error shows
    low, high : the borders of the band, both or neither; the legend tells how many of the values
        seen lie in it

    Returns the Figure. ValueError for shapes that do not match.
    """
    times, forecast_times = np.asarray(times), np.asarray(forecast_times)
    observed = _vector(observed, "observed", len(times))
    forecast = _vector(forecast, "forecast", len(forecast_times))
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or neither")
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots()
    if low is not None:
        low = _vector(low, "low", len(forecast))
        high = _vector(high, "high", len(forecast))
        seen = dict(zip(times.tolist(), observed, strict=True))
        inside = [
            lo <= seen[t] <= hi
            for t, lo, hi in zip(forecast_times.tolist(), low, high, strict=True)
            if t in seen
        ]
        covered = f", holds {sum(inside)} of {len(inside)}" if inside else ""
        axes.fill_between(
            forecast_times,
            low,
            high,
            color=VALIDATION,
            alpha=0.18,
            lw=0,
            label=f"{interval}{covered}",
        )
    axes.plot(times, observed, color=TRAINING, lw=1.6, label="observed")
    axes.plot(forecast_times, forecast, color=VALIDATION, lw=1.8, ls="--", label="forecast")
    axes.axvline(forecast_times[0], color=BEST, lw=1, ls=":", label="forecast begins")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=12, fontweight="bold", pad=24)
    axes.margins(x=0.01)
    plain(axes)
    axes.legend(
        fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0
    )
    return finished(figure, path)


def plot_quantiles(
    levels: Sequence[float],
    predicted: Any,
    true: Any,
    *,
    title: str = "Calibration of the quantiles",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """How often what came lay below each predicted quantile, against how often it should.

    Parameters
    ----------
    levels : of the quantiles, from 0 to 1, such as (0.05, 0.5, 0.95)
    predicted : (samples, levels), or name → that for several models
    true : (samples,)

    On the diagonal the intervals can be believed. Above it at the left and below it at the right
    they are too narrow. Returns the Figure. ValueError for shapes that do not match.
    """
    shares = np.asarray(levels, float)
    true = _vector(true, "true")
    models = predicted if isinstance(predicted, Mapping) else {"": predicted}
    figure = new_figure(5.2, 5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=BEST, lw=1, ls=":", label="perfect")
    for number, (name, values) in enumerate(models.items()):
        array = values_of(values, "predicted").astype(float)
        if array.shape != (len(true), len(shares)):
            raise ValueError(
                f"predicted has shape {array.shape}; expected {(len(true), len(shares))}, a row "
                "for each true value and a column for each level"
            )
        below = (true[:, None] <= array).mean(axis=0)
        style = {"color": PALETTE[number % len(PALETTE)], "marker": MARKS[number % len(MARKS)]}
        axes.plot(shares, below, ms=5, lw=1.6, label=literal(name) or "model", **style)
    axes.set(xlabel="predicted share below", ylabel="observed share below")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(title, fontsize=12, fontweight="bold")
    plain(axes)
    legend(axes, loc="upper left")
    return finished(figure, path)


def plot_attention(
    weights: Any,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    *,
    title: str = "Attention",
    columns: int = 4,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Attention weights as heat maps: a row a query, a column a key, a panel a head.

    Parameters
    ----------
    weights : (queries, keys) or (heads, queries, keys), shares of each row
    queries, keys : texts of the tokens; `keys` are the queries unless given

    All heads share one scale. Returns the Figure. ValueError for shapes that do not match.
    """
    array = values_of(weights, "weights").astype(float)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.size:
        raise ValueError(
            f"weights have shape {np.shape(weights)}; expected (queries, keys) or (heads, …)"
        )
    heads, rows, wide = array.shape
    keys = queries if keys is None and rows == wide else keys
    for texts, size, what in ((queries, rows, "queries"), (keys, wide, "keys")):
        if texts is not None and len(texts) != size:
            raise ValueError(f"{len(texts)} {what} for weights of shape {array.shape}")
    columns = min(columns, heads)
    lines = -(-heads // columns)
    cell = min(0.32, 4.5 / max(rows, wide)) if heads == 1 else min(0.24, 2.6 / max(rows, wide))
    figure = new_figure(
        max(4.6, columns * (wide * cell + 0.9) + 0.9), max(3.2, lines * (rows * cell + 1.0) + 0.5)
    )
    top = float(np.nanmax(array)) or 1.0
    for head, axes in enumerate(panels(figure, heads, columns)):
        shown = axes.imshow(
            array[head], cmap="viridis", vmin=0, vmax=top, aspect="auto", interpolation="nearest"
        )
        if heads > 1:
            axes.set_title(f"head {head}", fontsize=10)
        size = 9 if max(rows, wide) <= 24 else 6.5
        if keys is not None:
            axes.set_xticks(
                range(wide),
                [literal(text) for text in keys],
                rotation=60,
                ha="right",
                rotation_mode="anchor",
            )
        if queries is not None:
            axes.set_yticks(range(rows), [literal(text) for text in queries])
        axes.tick_params(labelsize=size, length=2)
        axes.set(xlabel="key", ylabel="query")
    bar = figure.colorbar(shown, ax=figure.axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("attention weight", fontsize=9)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return finished(figure, path)
