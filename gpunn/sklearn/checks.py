"""Arguments of estimators, looked at in `fit`."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def one_of(estimator: Any, name: str, allowed: Any) -> None:
    """ValueError unless the argument is one of the allowed names."""
    value = getattr(estimator, name)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")


def number(
    estimator: Any, name: str, low: float, below: float = math.inf, above: bool = False,
    whole: bool = False,
) -> None:  # fmt: skip
    """ValueError unless the argument is a number in [low, below), or `above` low."""
    value: Any = getattr(estimator, name)
    kind: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value < below or (
        above and value == low
    ):  # fmt: skip
        what = "an integer" if whole else "a number"
        bounds = f"{'above' if above else 'of at least'} {low:g}"
        bounds += f" and below {below:g}" if below < math.inf else ""
        raise ValueError(f"{name} is {value!r}; expected {what} {bounds}")
