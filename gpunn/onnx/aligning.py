"""Several runs of a model as one: what is the same in all, and what goes with a size of the input.

The model runs with every dynamic axis at two sizes, in all combinations, then once with all of them
at a third, and with other values each time. Whatever is the same in all runs is part of the model.
A number that differs is written as a polynomial of the sizes, which the last run must confirm, or
found as a size of some tensor; an array that differs must have a pattern, see `patterns`. What
fits neither came from the values of the example, and the model is refused.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np

from gpunn.onnx.recording import FILLED, Call, ExportError, Recorder, Value, values_in


@dataclass(frozen=True)
class Varying:
    """An integer that differs between the runs: its value in each, the sizes it is made of."""

    values: tuple[int, ...]
    terms: tuple[tuple[tuple[str, ...], int], ...] | None  # ((names of axes, factor), …)

    def __str__(self) -> str:
        """As ONNX names a dimension: batch, 4*batch, batch*time + 1; or ?"""
        if self.terms is None:
            return "?"
        parts = []
        for names, factor in self.terms:
            text = "*".join(names)
            parts.append(text if names and factor == 1 else f"{factor}*{text}" if names else
                         str(factor))  # fmt: skip
        return " + ".join(parts).replace("+ -", "- ")


class Plan:
    """The dynamic axes, and their sizes in each run.

    Parameters
    ----------
    sizes : the size of each named axis in the example. Those of axes in front of all others (the
        batch) grow by one and three. The others are doubled, and for the last run tripled: so they
        stay multiples of what a model needs, as of 2^depth in a U-Net; but where the model takes
        one more than that, it is one more, so that no half of an even number passes for a rule.
    batches : the names of first axes
    """

    def __init__(self, sizes: dict[str, int], batches: set[str]):
        if len(sizes) > 3:
            raise ExportError(
                f"export: {len(sizes)} dynamic axes have names ({', '.join(sizes)}); at most 3 can "
                "be followed. Give axes that always have one size one name"
            )
        self.names = tuple(sizes)
        base = {name: max(2, size) for name, size in sizes.items()}
        grown = {name: n + 1 if name in batches else 2 * n for name, n in base.items()}
        self.runs: list[dict[str, int]] = []
        for picked in itertools.product((False, True), repeat=len(sizes)):
            chosen = zip(self.names, picked, strict=True)
            self.runs.append({name: (grown if big else base)[name] for name, big in chosen})
        # What the last run may be: the first of these with which the model runs.
        self.checks = [
            {name: n + 3 if name in batches else 3 * n + more for name, n in base.items()}
            for more in ((1, 0) if sizes else (0,))
        ]

    def settle(self, check: dict[str, int]) -> None:
        """Add the last run."""
        self.runs.append(check)

    def number(self, values: tuple[int, ...]) -> int | Varying:
        """An integer of every run as one: itself where all are equal."""
        if len(set(values)) == 1:
            return values[0]
        return Varying(values, self._terms(values))

    def _terms(self, values):
        """The polynomial, linear in each size, that gives the values; None if there is none."""
        if not self.names:
            return None
        *corners, check = self.runs
        base, grown = corners[0], corners[-1]
        # The values at the corners, turned into factors of products of sizes one axis at a time.
        table = np.array([Fraction(value) for value in values[:-1]], object)
        table = table.reshape((2,) * len(self.names))
        for axis, name in enumerate(self.names):
            low, high = np.take(table, 0, axis), np.take(table, 1, axis)
            slope = (high - low) / Fraction(grown[name] - base[name])
            table = np.stack([low - slope * base[name], slope], axis)
        terms, total = [], Fraction(0)
        for place in itertools.product((1, 0), repeat=len(self.names)):
            factor = table[place]
            if factor:
                names = tuple(n for n, on in zip(self.names, place, strict=True) if on)
                total += factor * math.prod(check[name] for name in names)
                terms.append((names, factor))
        if total != values[-1] or any(factor.denominator != 1 for _, factor in terms):
            return None
        return tuple((names, int(factor)) for names, factor in terms)


def align(runs: list[Recorder], results: list[list[Value]], plan: Plan) -> list[Value]:
    """Merge the runs into the first one, whose calls then hold for all; gives its results."""
    for calls in zip(*(run.calls for run in runs), strict=False):
        if len({(call.kind, call.path) for call in calls}) > 1:
            other = next(call for call in calls if call.kind != calls[0].kind or
                         call.path != calls[0].path)  # fmt: skip
            _other_path(f"it runs {calls[0]}", f"it runs {other}", plan)
        _merge_call(calls, plan)
    counts = sorted({len(run.calls) for run in runs})
    if len(counts) > 1:
        _other_path(f"it runs {counts[0]} operations", f"{counts[-1]}", plan)
    merged = []
    for values in zip(*results, strict=True):
        merged.append(_merge(values, None, plan))
    return merged


def _other_path(one: str, other: str, plan: Plan) -> NoReturn:
    by = f"sizes of {', '.join(plan.names)} and other values" if plan.names else "values"
    raise ExportError(
        f"export: with other {by} the model takes another path: once {one}, once {other}. An ONNX "
        "graph has one path: take conditions and loops that depend on the inputs out of forward, "
        "and layers that keep something from call to call."
    )


def _merge_call(calls: tuple[Call, ...], plan: Plan) -> None:
    first = calls[0]
    first.arguments = _merge(tuple(call.arguments for call in calls), first, plan)
    for outputs in itertools.zip_longest(*(call.outputs for call in calls)):
        if any(value is None for value in outputs):
            _other_path(f"{first} has {len(first.outputs)} results", "another number", plan)
        _merge_value(outputs, first, plan)


def _merge_value(values: tuple[Value, ...], call: Call | None, plan: Plan) -> Value:
    """One value for all runs; the first run's object, changed once."""
    first = values[0]
    alike = {(v.origin, v.name, v.index, None if v.call is None else v.call.number, v.dtype,
              len(v.shape), v.array is None and v.arrays is None) for v in values}  # fmt: skip
    if len(alike) > 1:
        where = f"{call} gets" if call else "the result is"
        raise ExportError(
            f"export: {where} different things in two runs of the model (a tensor of shape "
            f"{values[0].shape} and one of {values[-1].shape}); a layer may keep something from "
            "one call to the next, or forward may depend on the inputs' values or sizes."
        )
    if any(isinstance(size, Varying) for size in first.shape) or first.arrays is not None:
        return first
    arrays = tuple(value.array for value in values)
    first.shape = tuple(plan.number(sizes) for sizes in zip(*(v.shape for v in values),
                                                            strict=True))  # fmt: skip
    if first.origin != "parameter" and arrays[0] is not None:
        if not all(_same(arrays[0], array) for array in arrays[1:]):
            first.arrays, first.array = arrays, None
    return first


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    return a is b or a.tobytes() == b.tobytes()


def _merge(parts: tuple, call: Call | None, plan: Plan) -> Any:
    """Arguments of all runs as one."""
    first = parts[0]
    kinds = {type(part) for part in parts}
    if len(kinds) == 1:
        if isinstance(first, Value):
            return _merge_value(parts, call, plan)
        if isinstance(first, dict) and len({tuple(part) for part in parts}) == 1:
            return {key: _merge(tuple(p[key] for p in parts), call, plan) for key in first}
        if isinstance(first, (tuple, list)) and len({len(part) for part in parts}) == 1:
            merged = [_merge(each, call, plan) for each in zip(*parts, strict=True)]
            return type(first)(*merged) if hasattr(first, "_fields") else type(first)(merged)
        if type(first) is int or isinstance(first, np.integer):
            return plan.number(tuple(map(int, parts)))
        if first is FILLED or all(part == first or part is first for part in parts):
            return first
    raise ExportError(
        f"export: an argument of {call} is {first!r:.60} in one run of the model and "
        f"{parts[-1]!r:.60} in another with other inputs; only sizes can follow the inputs."
    )


def needed(results: list[Value], settled) -> set[int]:
    """The numbers of the calls that the results depend on.

    `settled(value)` says whether a value can be written down without its call.
    """
    found: set[int] = set()
    waiting = list(results)
    while waiting:
        value = waiting.pop()
        call = value.call
        if call is None or call.number in found or settled(value):
            continue
        found.add(call.number)
        waiting.extend(values_in(call.arguments))
    return found
