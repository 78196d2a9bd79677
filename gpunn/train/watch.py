"""`GradientWatch`: histograms and norms of weights and gradients while they are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import wide
from gpunn.device import array_module, device_of, to_numpy
from gpunn.device.quiet import quietly
from gpunn.train.callbacks import Callback

_COLUMNS = ("minimum", "maximum", "mean", "deviation", "norm", "not_finite")


@dataclass(frozen=True)
class Statistics:
    """A weight or a gradient at one step; NaN and infinity are counted apart from all else.

    Attributes
    ----------
    kind : "weights" or "gradients"
    size : how many elements
    minimum, maximum, mean, deviation, norm : of the finite elements; NaN if there are none
    not_finite : how many elements are NaN or infinite
    counts, edges : a histogram of the finite elements; None without
    """

    kind: str
    size: int
    minimum: float
    maximum: float
    mean: float
    deviation: float
    norm: float
    not_finite: int
    counts: np.ndarray | None = None
    edges: np.ndarray | None = None


def statistics(arrays: list[Any], bins: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """(len(arrays), 6) numbers as `Statistics` names them, and (len(arrays), bins) counts.

    Computed where the arrays are; all are fetched together, once for the numbers and once for the
    histograms, which run from each minimum to its maximum. An entry None gives NaN and 0.
    """
    found = np.full((len(arrays), len(_COLUMNS)), np.nan)
    counts = None if bins is None else np.zeros((len(arrays), bins), np.int64)
    there = [number for number, array in enumerate(arrays) if array is not None and array.size]
    if not there:
        return found, counts
    xp = array_module(device_of(arrays[there[0]]))
    with quietly():
        values = {number: wide(arrays[number]) for number in there}
        sums = to_numpy(xp.stack([_sums(xp, values[number]) for number in there]))
        low, high, total, squares, finite = sums.T
        mean = total / finite
        deviation = np.sqrt(np.maximum(squares / finite - mean**2, 0.0))
        sizes = np.array([values[number].size for number in there])
        low, high = (np.where(finite > 0, edge, np.nan) for edge in (low, high))
        columns = (low, high, mean, deviation, np.sqrt(squares), sizes - finite)
        found[there] = np.stack(columns, axis=1)
        if counts is not None and bins is not None:
            filled = [number for number in there if math.isfinite(found[number, 0])]
            if filled:
                counts[filled] = to_numpy(
                    xp.stack([_counted(xp, values[n], bins, *found[n, :2]) for n in filled])
                )
    return found, counts


def _sums(xp: Any, array: Any) -> Any:
    finite = xp.isfinite(array)
    inside = xp.where(finite, array, 0).astype(np.float64)
    parts = (
        xp.where(finite, array, np.inf).min(), xp.where(finite, array, -np.inf).max(),
        inside.sum(), (inside * inside).sum(), finite.sum(),
    )  # fmt: skip
    return xp.stack([part.astype(np.float64) for part in parts])


def _span(low: float, high: float, bins: int) -> tuple[float, float]:
    """Ends of a histogram, apart where values are so close that its bins would have no width."""
    room = 4 * bins * float(np.spacing(max(abs(low), abs(high), 1e-300)))
    if high - low > room:
        return low, high
    room = room if low < high else max(0.5, room)
    return low - room, high + room


def _counted(xp: Any, array: Any, bins: int, low: float, high: float) -> Any:
    # In float64, as neighbouring float32 numbers must still have edges between them.
    outside = xp.where(xp.isfinite(array), array, np.inf).astype(np.float64)
    return xp.histogram(outside, bins=bins, range=_span(low, high, bins))[0]


class GradientWatch(Callback):
    """Keep histograms and norms of every weight and its gradient, every so many steps.

    What is looked at is the gradient as the step has left it, after clipping, and the weight after
    its update. It is computed on the device and fetched when it is due. Given to a
    `TensorBoardLogger` as ``watch=`` it shows there.

    Parameters
    ----------
    every : look every so many steps; None: after each epoch, which lets one kernel train small
        networks (such a kernel leaves no gradients)
    bins : of the histograms, from minimum to maximum; None for none
    weights, gradients : what to look at

    Attributes
    ----------
    names : what was looked at: "0.weight", "0.weight.gradient", …
    steps, epochs : when, (looks,): weight updates over all epochs, and epoch numbers
    values : (looks, names, 6): minimum, maximum, mean, deviation, norm, how many are not finite
    """

    def __init__(
        self,
        every: int | None = 100,
        bins: int | None = 64,
        weights: bool = True,
        gradients: bool = True,
    ):
        for name, value in (("every", every), ("bins", bins)):
            if value is not None and value < 1:
                raise ValueError(f"GradientWatch: {name} must be 1 or more, got {value}")
        if not (weights or gradients):
            raise ValueError("GradientWatch: watch weights, gradients or both")
        self.every, self.bins = every, bins
        self.weights = bool(weights)
        self.gradients = self.reads_gradients = bool(gradients)
        self._forget()

    def _forget(self) -> None:
        self.names: list[str] = []
        self._step = 0
        self._when: list[tuple[int, int]] = []
        self._values: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._sizes: list[int] = []

    @property
    def wants_steps(self) -> bool:
        """Whether every step must be made by itself; without, one kernel may train for many."""
        return self.every is not None

    @property
    def steps(self) -> np.ndarray:
        """The steps of all looks."""
        return np.array([step for step, _ in self._when], np.int64)

    @property
    def epochs(self) -> np.ndarray:
        """The epochs of all looks."""
        return np.array([epoch for _, epoch in self._when], np.int64)

    @property
    def values(self) -> np.ndarray:
        """All numbers: (looks, names, 6)."""
        return np.array(self._values).reshape(len(self._values), len(self.names), len(_COLUMNS))

    def series(self, name: str, what: str = "norm") -> np.ndarray:
        """One number of `Statistics` over all looks: ``watch.series("0.weight.gradient")``.

        KeyError, naming what there is, for another name.
        """
        at = self._place(name)
        if what not in _COLUMNS:
            raise KeyError(f"GradientWatch has no {what!r}; it has {', '.join(_COLUMNS)}")
        return self.values[:, at, _COLUMNS.index(what)]

    def _place(self, name: str) -> int:
        if name not in self.names:
            known = ", ".join(self.names) or "nothing yet"
            raise KeyError(f"GradientWatch has not looked at {name!r}; it has seen {known}")
        return self.names.index(name)

    def look(self, number: int, name: str) -> Statistics:
        """What was found at look `number` (-1 is the last) for one name.

        KeyError for another name, IndexError for a look that there was not.
        """
        at = self._place(name)
        if not -len(self._values) <= number < len(self._values):
            raise IndexError(f"GradientWatch: look {number} of {len(self._values)} looks")
        row = self._values[number][at]
        counts = edges = None
        if self.bins is not None and math.isfinite(row[0]):
            counts = self._counts[number][at]
            edges = np.linspace(*_span(row[0], row[1], self.bins), self.bins + 1)
        kind = "gradients" if name.endswith(".gradient") else "weights"
        bad = 0 if math.isnan(row[5]) else int(row[5])
        known = dict(zip(_COLUMNS[:5], row[:5].tolist(), strict=True))
        return Statistics(
            kind, self._sizes[at], **known, not_finite=bad, counts=counts, edges=edges
        )

    def latest(self) -> dict[str, Statistics]:
        """What the last look found, by name; gradients that were not there are left out.

        Empty before the first look.
        """
        if not self._values:
            return {}
        return {
            name: self.look(-1, name)
            for name, row in zip(self.names, self._values[-1], strict=True)
            if not math.isnan(row[5])
        }

    def on_train_begin(self, trainer: Any) -> None:
        if trainer.epoch == 0 and not getattr(trainer, "resumed", False):
            self._forget()

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        self._step += 1
        if self.every is not None and self._step % self.every == 0:
            self._take(trainer, epoch)

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        if self.every is None:
            self._take(trainer, epoch)

    def _take(self, trainer: Any, epoch: int) -> None:
        arrays: dict[str, Any] = {}
        sizes = []
        for name, parameter in trainer.model.named_parameters():
            if self.weights:
                arrays[name] = parameter.array
                sizes.append(parameter.array.size)
            if self.gradients:
                gradient = parameter.grad
                arrays[f"{name}.gradient"] = None if gradient is None else gradient.array
                sizes.append(parameter.array.size)
        if self.names and self.names != list(arrays):
            raise ValueError(
                "GradientWatch: the model has other parameters than before; use another watch"
            )
        self.names, self._sizes = list(arrays), sizes
        values, counts = statistics(list(arrays.values()), self.bins)
        self._when.append((self._step, epoch))
        self._values.append(values)
        if counts is not None:
            self._counts.append(counts)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "names": list(self.names),
            "sizes": list(self._sizes),
            "when": np.array(self._when, np.int64).reshape(-1, 2),
            "values": self.values,
            "counts": np.array(self._counts, np.int64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        counts = np.asarray(state["counts"])
        bins = counts.shape[2] if counts.ndim == 3 else None
        if len(state["when"]) and bins != self.bins:
            raise ValueError(
                f"GradientWatch: bins is {self.bins}, and {bins} in the checkpoint; use the same"
            )
        self._step, self.names = int(state["step"]), list(state["names"])
        self._sizes = list(state["sizes"])
        self._when = [(int(step), int(epoch)) for step, epoch in state["when"]]
        self._values = list(np.asarray(state["values"]))
        self._counts = list(counts)
