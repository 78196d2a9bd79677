"""Learning curves: by epoch with the overfitting gap, by batch with a smoothed line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.train.history import resolve_mode
from gpunn.train.plots.figures import (
    BEST,
    PALETTE,
    TRAINING,
    VALIDATION,
    finished,
    legend,
    new_figure,
    plain,
    values_of,
)

_LONG = {"mae": "mean absolute error", "mse": "mean squared error", "r2": "R²"}
_NOT_CURVES = ("epoch", "seconds", "learning_rate")
_DECADES = 30  # values that differ by more are only legible on a logarithmic scale


@dataclass(frozen=True)
class Gap:
    """How much worse validation was than training, in the unit of the metric.

    `epoch` is the best epoch (else the last), `at_best` the gap there and `at_end` at the end;
    negative where validation was better, as it is with dropout.
    """

    metric: str
    epoch: int
    at_best: float
    at_end: float


def curve_names(history: Any) -> list[str]:
    """The metrics of a history that have a curve: the loss first, without the prefix validation."""
    return [
        name
        for name in history.metrics()
        if name not in _NOT_CURVES and not name.startswith("validation_")
    ]


def metric_title(name: str) -> str:
    """A metric's name for people: "mae" is "Mean absolute error"."""
    text = _LONG.get(name, name.replace("_", " "))
    return text[0].upper() + text[1:]


def best_epoch(history: Any) -> int | None:
    """The epoch whose weights the model bears, else that of the best validation loss, else None."""
    if history.best_epoch is not None:
        return history.best_epoch
    if "validation_loss" in history and np.isfinite(history["validation_loss"]).any():
        return int(history.best("validation_loss")["epoch"])
    return None


def overfitting_gap(history: Any, metric: str = "loss") -> Gap | None:
    """The gap between training and validation, or None without (finite) validation of that metric.

    Epochs without a finite value are passed over.
    """
    if metric not in history or f"validation_{metric}" not in history:
        return None
    sign = -1.0 if resolve_mode(metric) == "max" else 1.0
    gaps = sign * (np.array(history[f"validation_{metric}"]) - np.array(history[metric]))
    known = np.isfinite(gaps)
    if not known.any():
        return None
    gaps, epochs = gaps[known], np.array(history["epoch"])[known]
    best = best_epoch(history)
    at = int(np.argmin(np.abs(epochs - (epochs[-1] if best is None else best))))
    return Gap(metric, int(epochs[at]), float(gaps[at]), float(gaps[-1]))


def is_logarithmic(name: str, values: np.ndarray) -> bool:
    """Whether a metric's curve needs a logarithmic axis: it falls through orders of magnitude."""
    values = values[np.isfinite(values)]
    return bool(
        resolve_mode(name) == "min"
        and values.size
        and values.min() > 0
        and values.max() > _DECADES * values.min()
    )


def training_curves(
    history: Any,
    title: str = "Training",
    note: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """A panel for the loss and one for each metric, against the epoch.

    Training is drawn solid and validation dashed; a vertical line marks the epoch whose weights the
    model bears (`history.best_epoch`, else the best validation loss, if there was validation).
    Where validation is worse than training the gap between them, by which overfitting is told, is
    shaded, and its size at the best epoch and at the end stands below the title. `note` is written
    below in small letters.

    Returns the Figure. ValueError for an empty history.
    """
    if not len(history):
        raise ValueError("the history is empty; there is nothing to draw")
    names = curve_names(history)
    best = best_epoch(history)
    figure = new_figure(max(6.0, 4.8 * len(names)), 4.2)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _curve_panel(axes, history, name, best)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    if note:
        figure.supxlabel(note, fontsize=9, color=BEST)
    return finished(figure, path)


def _curve_panel(axes: Any, history: Any, name: str, best: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = np.array(history["epoch"])
    few = dict(marker="o", markersize=3) if len(epochs) < 12 else {}
    training = np.array(history[name], float)
    axes.plot(epochs, training, color=TRAINING, lw=1.8, label="training", **few)
    other = f"validation_{name}"
    values = training
    if other in history:
        validation = np.array(history[other], float)
        values = np.concatenate([training, validation])
        axes.plot(epochs, validation, color=VALIDATION, lw=1.8, ls="--", label="validation", **few)
        worse = validation > training if resolve_mode(name) == "min" else validation < training
        if worse.any():
            shade = {"color": VALIDATION, "alpha": 0.15, "lw": 0, "interpolate": True}
            axes.fill_between(epochs, training, validation, worse, label="overfitting gap", **shade)
    if best is not None:
        axes.axvline(best, color=BEST, lw=1.0, ls=":", label=f"best epoch, {best}")
        record = history.records[int(np.argmin(np.abs(epochs - best)))]
        if other in record:
            axes.plot([best], [record[other]], "o", color=VALIDATION, ms=6, mec="white", zorder=5)
    axes.set_title(metric_title(name), fontsize=11)
    if gap := overfitting_gap(history, name):
        _note_gap(axes, gap, int(epochs[-1]))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric_title(name).lower())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    _value_axis(axes, name, values)
    plain(axes)
    axes.grid(True, color="#eeeeee", lw=0.5, which="minor")
    legend(axes)


def _note_gap(axes: Any, gap: Gap, last: int) -> None:
    text = f"gap {gap.at_best:+.3g} at epoch {gap.epoch}"
    if gap.epoch != last:
        text += f", {gap.at_end:+.3g} at the end"
    axes.text(
        0.5, 1.0, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=8.5, color=BEST
    )
    axes.set_title(axes.get_title(), fontsize=11, pad=17)


def _value_axis(axes: Any, name: str, values: np.ndarray) -> None:
    if is_logarithmic(name, values):
        axes.set_yscale("log")
    elif "accuracy" in name and np.isfinite(values).any():
        low = np.nanmin(values)
        axes.set_ylim(max(0.0, low - 0.05 * (1 - low)), 1.0 + 0.03 * (1 - low))


def smoothed(values: Any, smoothing: float = 0.95) -> np.ndarray:
    """The exponential mean of a noisy curve, corrected for its start; NaN is passed over.

    Each value counts `smoothing` times as much as the one after it: 0 leaves the curve as it is.
    ValueError unless 0 ≤ smoothing < 1.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1")
    found, mean, weight = [], 0.0, 0.0
    for value in np.asarray(values, float):
        if np.isfinite(value):
            mean = smoothing * mean + (1 - smoothing) * value
            weight = smoothing * weight + (1 - smoothing)
        found.append(mean / weight if weight else np.nan)
    return np.array(found)


def plot_batches(
    curves: Mapping[str, Any] | Sequence[float],
    smoothing: float = 0.95,
    *,
    title: str = "Loss by step",
    ylabel: str = "loss",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Noisy curves of one value a step: the values pale, their exponential mean on top.

    Parameters
    ----------
    curves : values of one curve, or name → values for several
    smoothing : see `smoothed`

    Returns the Figure. ValueError without a value.
    """
    if not isinstance(curves, Mapping):
        curves = {"": curves}
    arrays = {
        name: values_of(curve, "a curve").astype(float).reshape(-1)
        for name, curve in curves.items()
    }
    if not arrays or not all(map(len, arrays.values())):
        raise ValueError("there is no value to draw")
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    for number, (name, array) in enumerate(arrays.items()):
        steps, color = np.arange(1, len(array) + 1), PALETTE[number % len(PALETTE)]
        prefix = f"{name}, " if name else ""
        if smoothing:
            axes.plot(steps, array, color=color, lw=0.8, alpha=0.3, label=f"{prefix}each step")
        label = f"{prefix}smoothed ({smoothing:g})" if smoothing else name or "each step"
        axes.plot(steps, smoothed(array, smoothing), color=color, lw=1.9, label=label)
    if is_logarithmic("loss", np.concatenate(list(arrays.values()))):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=ylabel)
    axes.set_title(title, fontsize=12, fontweight="bold")
    plain(axes)
    legend(axes)
    return finished(figure, path)
