"""`History`: what a training run measured, one record for each epoch."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpunn.io import write_text

_NOT_FINITE = ("nan", "inf", "-inf")
# Words in names of what should grow; a loss, an error or a distance shrinks whatever else it says.
_GROWING = (
    "accuracy", "r2", "precision", "recall", "f1", "auc", "matthews", "exact_match", "jaccard",
    "coverage", "bleu", "chrf",
)  # fmt: skip
_SHRINKING = ("loss", "error", "distance")


def resolve_mode(metric: str, mode: str = "auto") -> str:
    """``"min"`` or ``"max"``: whether a smaller or a larger value of `metric` is better.

    "auto" goes by the name: accuracy, r2, precision, recall, f1 (and f2, f0.5 …), auc,
    matthews_correlation, exact_match, jaccard, interval_coverage, bleu and chrf grow, all else
    (losses, mse, wer, perplexity, brier, calibration_error …) shrinks.
    """
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
    if mode != "auto":
        return mode
    name = metric.lower().removeprefix("validation_")
    if any(word in name for word in _SHRINKING):
        return "min"
    grows = any(word in name for word in _GROWING) or re.fullmatch(r"f\d+(\.\d+)?(_\w+)?", name)
    return "max" if grows else "min"


class History(Sequence[Any]):
    """The records of a training run, in the order of the epochs.

    Each record is a dictionary: ``epoch`` (from 1), ``loss``, the metrics by name, the same with
    the prefix ``validation_`` if there were validation data, ``learning_rate`` and ``seconds``.

    ``history["loss"]`` is the list of one value an epoch, ``history[-1]`` the last record.

    Attributes
    ----------
    interrupted : the run was stopped by Ctrl-C
    stop_reason : why it ended before its last epoch, else None
    best_epoch : the epoch whose weights the model bears, if `EarlyStopping` put them back
    """

    def __init__(self, records: Sequence[dict[str, float]] = ()):
        self.records: list[dict[str, float]] = [dict(record) for record in records]
        self.interrupted = False
        self.stop_reason: str | None = None
        self.best_epoch: int | None = None

    def append(self, record: dict[str, float]) -> None:
        """Add the record of an epoch."""
        self.records.append(dict(record))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return iter(self.records)

    def __contains__(self, metric: object) -> bool:
        return any(metric in record for record in self.records)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.records[key]
        if key not in self:
            raise KeyError(f"the history has no {key!r}; it has {', '.join(self.metrics())}")
        return [record.get(key, float("nan")) for record in self.records]

    def metrics(self) -> list[str]:
        """The names that occur in the records, in the order of their first appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def best(self, metric: str = "validation_loss", mode: str = "auto") -> dict[str, float]:
        """The record in which `metric` is best (the first, if several are equal).

        KeyError if no record has it, ValueError if it is NaN throughout.
        """
        sign = -1.0 if resolve_mode(metric, mode) == "max" else 1.0
        values = [sign * value for value in self[metric]]
        usable = [index for index, value in enumerate(values) if value == value]
        if not usable:
            raise ValueError(f"the history has no finite {metric!r}")
        return self.records[min(usable, key=values.__getitem__)]

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The records as CSV text with a header; also written to `path` if one is given.

        Numbers are written in the shortest form that reads back to the same value.
        """
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.metrics(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        if path is not None:
            write_text(path, buffer.getvalue())
        return buffer.getvalue()

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> History:
        """Read what `to_csv` wrote. ValueError if the file is not such a table."""
        history = cls()
        with open(path, encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    record = {
                        name: int(text) if name == "epoch" else float(text)
                        for name, text in row.items()
                        if text != ""
                    }
                except (TypeError, ValueError):
                    raise ValueError(f"{path}, line {line}: not a row of numbers") from None
                history.append(record)
        return history

    def state_dict(self) -> dict[str, Any]:
        """The whole history in plain values: its records, and how the run ended."""
        return {
            "records": [dict(record) for record in self.records],
            "interrupted": self.interrupted,
            "stop_reason": self.stop_reason,
            "best_epoch": self.best_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the history that `state_dict` was taken of."""
        self.records = [dict(record) for record in state["records"]]
        self.interrupted, self.stop_reason = bool(state["interrupted"]), state["stop_reason"]
        self.best_epoch = state["best_epoch"]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole history as JSON text; also written to `path` if one is given.

        Numbers read back as they were; NaN and infinity, which JSON lacks, are written as texts.
        """
        state = self.state_dict()
        records = [{name: _json_value(value) for name, value in r.items()} for r in self.records]
        text = json.dumps(state | {"records": records}, indent=1, allow_nan=False) + "\n"
        if path is not None:
            write_text(path, text)
        return text

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> History:
        """Read what `to_json` wrote. ValueError if the file is not such a history."""
        history = cls()
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            for record in state["records"]:
                record.update({n: float(v) for n, v in record.items() if v in _NOT_FINITE})
            history.load_state_dict(state)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a history as to_json writes it: {error}") from None
        return history

    def plot(
        self, path: str | os.PathLike[str] | None = None, title: str = "Training", note: str = ""
    ) -> Any:
        """Curves of the loss and the metrics, training against validation.

        Returns the matplotlib Figure, written to `path` (PNG, SVG, PDF by its suffix) if given.
        `note` is written below the curves.
        ImportError, saying what to install, without matplotlib.
        """
        from gpunn.train.plots import save_figure, training_curves

        figure = training_curves(self, title, note)
        if path is not None:
            save_figure(figure, Path(path))
        return figure

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epochs)"
        last = ", ".join(f"{name}={value:.4g}" for name, value in self.records[-1].items())
        return f"History({len(self)} epochs; last: {last})"


def _json_value(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return value
    value = float(value)  # NumPy's too
    return value if math.isfinite(value) else str(value)
