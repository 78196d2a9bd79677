"""What a history and predictions say about a training: sentences for the top of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.report.page import Finding
from gpunn.train.plots.curves import best_epoch, overfitting_gap
from gpunn.train.plots.scores import class_report

_RISE = 0.05  # of the validation loss over its best: more than the noise of an epoch
_FEW = 100  # test samples below which an accuracy says little


def of_history(history: Any) -> list[Finding]:
    """NaN, interruption, overfitting, a loss that still falls or never fell."""
    if not len(history):
        return [Finding("warning", "The history holds no epoch.")]
    found = []
    if broken := _not_finite(history):
        found.append(broken)
    if history.interrupted:
        found.append(
            Finding("warning", f"The training was interrupted in or after epoch {len(history)}.")
        )
    if history.stop_reason:
        found.append(Finding("note", f"It ended early: {history.stop_reason}."))
    if broken:
        return found
    if "loss" not in history:  # of a loop of one's own, which measures what it likes
        return found
    loss = np.array(history["loss"], float)
    if len(loss) >= 3 and loss[-1] > 0.98 * loss[0]:
        found.append(
            Finding(
                "bad",
                f"The training loss went from {loss[0]:.4g} to {loss[-1]:.4g}: "
                "the model hardly learned. Try another learning rate.",
            )
        )
    if "validation_loss" in history:
        found += _validation(history)
    else:
        found.append(
            Finding("note", "There were no validation data, so overfitting cannot be told.")
        )
    return found


def _not_finite(history: Any) -> Finding | None:
    for name in history.metrics():
        for record in history:
            if name in record and not np.isfinite(record[name]):
                return Finding("bad", f"{name} is {record[name]} in epoch {record['epoch']:g}.")
    return None


def _validation(history: Any) -> list[Finding]:
    found = []
    losses = np.array(history["validation_loss"], float)
    epochs = np.array(history["epoch"], float)
    at = int(np.nanargmin(losses))
    lowest, last = losses[at], losses[-1]
    best = best_epoch(history)
    kept = f" The model bears the weights of epoch {best}." if history.best_epoch else ""
    if lowest > 0 and last > (1 + _RISE) * lowest and len(losses) - at > 2:
        found.append(
            Finding(
                "warning",
                f"Overfitting: the validation loss was lowest in epoch "
                f"{epochs[at]:g} ({lowest:.4g}) and {last / lowest - 1:.0%} higher at "
                f"the end ({last:.4g}).{kept}",
            )
        )
    elif _still_falls(losses):
        found.append(
            Finding(
                "note",
                "The validation loss still fell at the end: more epochs may make the model better.",
            )
        )
    gap = overfitting_gap(history, "accuracy")
    if gap and gap.at_best > 0.03:
        found.append(
            Finding(
                "warning",
                f"At epoch {gap.epoch} the accuracy on the training data "
                f"is {100 * gap.at_best:.1f} points above that on the validation data.",
            )
        )
    gap = overfitting_gap(history)
    if gap and gap.at_best < 0 and gap.at_end < 0:
        found.append(
            Finding(
                "note",
                "Validation has a lower loss than training: usual where "
                "training is made harder, by dropout, label smoothing or changed "
                "images.",
            )
        )
    return found


def _still_falls(losses: np.ndarray) -> bool:
    """Whether the last fifth of the epochs brought more than two percent, and the last kept it."""
    if len(losses) < 5:
        return False
    cut = len(losses) - max(2, len(losses) // 5)
    before, after = np.nanmin(losses[:cut]), np.nanmin(losses[cut:])
    return bool(before > 0 and after < 0.98 * before and losses[-1] <= 1.01 * after)


def of_classes(matrix: np.ndarray, names: Sequence[str]) -> list[Finding]:
    """Classes that are missed, and whether there are enough samples to tell."""
    found, total = [], int(matrix.sum())
    report = class_report(matrix)
    overall = np.trace(matrix) / total if total else 0.0
    empty = [name for name, row in zip(names, report, strict=True) if not row["support"]]
    if empty:
        found.append(Finding("warning", f"Without a test sample: {', '.join(empty)}."))
    weak = [
        f"{name} ({row['recall']:.0%})"
        for name, row in zip(names, report, strict=True)
        if row["support"] and row["recall"] < overall - 0.1
    ]
    if weak:
        found.append(
            Finding("warning", f"Found much less often than the others: {', '.join(weak)}.")
        )
    if total < _FEW:
        found.append(
            Finding("note", f"Only {total} test samples: the interval of the accuracy is wide.")
        )
    return found
