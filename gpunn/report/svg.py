"""Elements of SVG as escaped text, and axes with round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """An element; names lose a trailing ``_`` and get ``-`` for ``_``, None leaves one out.

    Texts of children and values are escaped unless they are `Markup`.
    """
    parts = []
    for name, value in attributes.items():
        if value is not None:
            text = number(value) if isinstance(value, float) else value
            parts.append(f' {name.rstrip("_").replace("_", "-")}="{escape(text)}"')
    inside = "".join(map(escape, children))
    return Markup(
        f"<{tag}{''.join(parts)}>{inside}</{tag}>" if inside else f"<{tag}{''.join(parts)}/>"
    )


def number(value: float) -> str:
    """A coordinate with a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def group(children: list[Markup], **attributes: object) -> Markup:
    """A ``<g>`` around elements."""
    return element("g", Markup("").join(children), **attributes)


def picture(width: float, height: float, children: list[Markup], alt: str) -> Markup:
    """The ``<svg>`` of so many pixels, told as `alt` to those who cannot see it."""
    return element(
        "svg",
        Markup("").join(children),
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=float(width),
        height=float(height),
        role="img",
        aria_label=alt,
    )


def path_of(x: list[float], y: list[float]) -> str:
    """The ``d`` of a line through points; it breaks where a coordinate is not finite."""
    parts, pen_up = [], True
    for px, py in zip(x, y, strict=True):
        if not (math.isfinite(px) and math.isfinite(py)):
            pen_up = True
            continue
        parts.append(f"{'M' if pen_up else 'L'}{number(px)} {number(py)}")
        pen_up = False
    return "".join(parts)


def text_width(text: str, size: float = 12) -> float:
    """About how wide a text is in the page's font, in pixels; rather too much than too little."""
    return 0.6 * size * len(text)


@dataclass(frozen=True)
class Axis:
    """From values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; NaN where it has none."""
        if self.log:
            if not value > 0:
                return math.nan
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the axis, about `count` of them."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        first, last = math.log10(self.low), math.log10(self.high)
        if last - first < 1.2:
            factors: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7)
            every = 1
        elif last - first < 2.5:
            factors, every = (1, 2, 5), 1
        else:
            factors, every = (1,), max(1, math.ceil((last - first) / count))
        return [
            factor * 10.0**power
            for power in range(math.floor(first), math.ceil(last) + 1)
            for factor in factors
            if power % every == 0
            and self.low * (1 - 1e-9) <= factor * 10.0**power <= self.high * (1 + 1e-9)
        ]


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: list[float], log: bool = False, room: float = 0.05) -> tuple[float, float]:
    """Limits of an axis that holds the values, with some room; never of no length."""
    usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(usable), max(usable)
    if log:
        room_factor = max((high / low) ** room, 1.05)
        return low / room_factor, high * room_factor
    width = high - low or max(abs(high), 1.0) * 0.1
    return low - room * width, high + room * width


def short(value: float) -> str:
    """A tick's label: at most four digits, large ones with a prefix such as k, M, G."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e4 or abs(value) >= 1e18:
        return (
            np.format_float_positional(value, 4, fractional=False, trim="-")
            if (1e-4 <= abs(value) < 1e4)
            else f"{value:.3g}"
        )
    power = 3 * math.floor(math.log10(abs(value) * (1 + 1e-9)) / 3)
    prefix = {3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}[power]
    return f"{value / 10.0**power:.4g}{prefix}"
