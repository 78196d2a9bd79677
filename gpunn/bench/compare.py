"""Two runs beside each other: what became slower, beyond the spread and a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpunn.bench.cases import shape_text
from gpunn.bench.measure import Row
from gpunn.bench.results import Results


@dataclass(frozen=True)
class Change:
    """One row in both runs: medians before and now, and "slower", "faster" or "" for no change."""

    name: tuple[str, str, str, str, str]
    old: float
    new: float
    verdict: str

    @property
    def ratio(self) -> float:
        """The time now over the time before."""
        return self.new / self.old


def compare(old: Sequence[Row], new: Sequence[Row], threshold: float = 0.05) -> list[Change]:
    """Our rows that both runs have, the worst first.

    A row is slower if its median grew by more than `threshold` and even its faster quartile is
    now above the slower quartile of before; faster is the same the other way round.
    """
    before = {row.key: row for row in old if row.ours}
    found = []
    for row in new:
        if row.ours and row.key in before:
            found.append(_change(before[row.key], row, threshold))
    return sorted(found, key=lambda change: -change.ratio)


def _change(old: Row, new: Row, threshold: float) -> Change:
    (old_low, old_high), (new_low, new_high) = old.timing.quartiles, new.timing.quartiles
    ratio = new.timing.median / old.timing.median
    verdict = ""
    if ratio > 1 + threshold and new_low > old_high:
        verdict = "slower"
    elif ratio < 1 / (1 + threshold) and new_high < old_low:
        verdict = "faster"
    name = (new.primitive, shape_text(new.shape), new.dtype, new.implementation, new.mode)
    return Change(name, old.timing.median, new.timing.median, verdict)


def parse_threshold(text: str) -> float:
    """``"5%"`` and ``"0.05"`` as 0.05. ValueError says what is expected."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise ValueError(f"threshold {text!r} is not understood; write for example 5% or 0.05")
    return value


def same_machine(old: Results, new: Results) -> str:
    """Empty, or a sentence: the two runs are from different machines and tell little."""
    for what in ("gpu", "cpu"):
        a, b = old.environment["machine"].get(what), new.environment["machine"].get(what)
        if a != b:
            return f"The old run was on another machine ({what}: {a}, now {b}): times tell little."
    return ""
