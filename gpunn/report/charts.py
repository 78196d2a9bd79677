"""Charts as SVG: drawn twice, for a wide and for a narrow page, in the colours of its theme.

Whatever bears `data-tip` shows that text when pointed at; what bears `data-series` can be switched
off by the legend. Both are done by templates/page.js.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from gpunn.report.svg import Axis, element, group, path_of, picture, short, span, text_width

FULL, HALF, NARROW = 1000, 500, 352  # pixels


GAP, PEERS = 90, 50  # series of the overfitting gap, and of peers from there on
_COLOURS = 7
_COLUMNS = 60  # of a curve that tell their values


def colour(series: int) -> int:
    """The number of the colour in which a series is drawn."""
    if series == GAP:
        return 1  # as the validation
    return _COLOURS - 1 if series >= PEERS else series % _COLOURS


@dataclass(frozen=True)
class Key:
    """An entry of a legend: the number of its series, its name, how its mark looks."""

    series: int
    name: str
    mark: str = "line"  # line, dashed, band, dot, ring
    off: bool = False

    @property
    def colour(self) -> int:
        """The number of its colour."""
        return colour(self.series)


@dataclass(frozen=True)
class Chart:
    """A drawing for any width, in words as `alt`, with what stands under it."""

    title: str
    draw: Callable[[int], Markup]
    alt: str
    keys: Sequence[Key] = ()
    full: bool = False
    caption: str = ""

    @property
    def wide(self) -> Markup:
        """For a page on a desk."""
        return self.draw(FULL if self.full else HALF)

    @property
    def narrow(self) -> Markup:
        """For a phone."""
        return self.draw(NARROW)


@dataclass(frozen=True)
class Line:
    """A curve: a value for each x, in the colour number `series`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    series: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """The two axes of a panel, and the size of the picture."""

    x: Axis
    y: Axis
    width: float
    height: float


def frame(
    width: float,
    height: float,
    x: tuple[float, float, bool],
    y: tuple[float, float, bool],
    left: float | None = None,
) -> Frame:
    """Axes in a picture of that size; the left edge has room for the longest label."""
    if left is None:
        ticks = Axis(*y[:2], 0, 1, y[2]).ticks()
        left = 30 + max((text_width(short(tick)) for tick in ticks), default=20)
    return Frame(
        Axis(x[0], x[1], left, width - 12, x[2]),
        Axis(y[0], y[1], height - 40, 10, y[2]),
        width,
        height,
    )


def axes(made: Frame, x_label: str, y_label: str, x_whole: bool = False) -> Markup:
    """Grid, ticks and the names of both axes."""
    x, y, parts = made.x, made.y, []
    across = max(3, int((x.end - x.start) / 75))
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(element("text", short(tick), x=x.start - 7, y=at + 4, class_="tick end"))
    for tick in x.ticks(across):
        if x_whole and tick != int(tick):
            continue
        at = x.at(tick)
        parts.append(element("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(element("text", short(tick), x=at, y=y.start + 17, class_="tick middle"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    middle = (x.start + x.end) / 2
    parts.append(element("text", x_label, x=middle, y=made.height - 6, class_="label middle"))
    high = (y.start + y.end) / 2
    parts.append(
        element(
            "text",
            y_label,
            transform=f"translate(12 {high:.0f}) rotate(-90)",
            class_="label middle",
        )
    )
    return group(parts, aria_hidden="true")


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    gap: tuple[int, int] | None = None,
    lower_is_better: bool = True,
    mark: tuple[float, str] | None = None,
    limits: tuple[float, float] | None = None,
    caption: str = "",
    height: int = 300,
) -> Chart:
    """Curves over a common x, such as learning curves.

    gap : two lines between which the ground is shaded where the second is worse than the first
    mark : an x with a dotted line, and what it is
    limits : of y; None for those of the values
    """
    xs = sorted({value for line in lines for value in line.x})
    low, high = limits or span([float(v) for line in lines for v in line.y], log)
    whole = all(float(value).is_integer() for value in xs)

    def draw(width: int) -> Markup:
        ends = (xs[0], xs[-1]) if len(xs) > 1 else (xs[0] - 1, xs[0] + 1)
        made = frame(width, height, (*ends, False), (low, high, log))
        parts = [axes(made, x_label, y_label, whole)]
        if gap:
            parts.append(_gap(made, lines[gap[0]], lines[gap[1]], lower_is_better))
        for line in lines:
            parts += _line(made, line)
        if mark:
            parts += _mark(made, *mark, top=lower_is_better)
        parts.append(_strips(made, lines, xs, x_label))
        return picture(width, height, parts, f"{title}. {alt}")

    alt = "; ".join(f"{line.name}: from {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in lines)
    keys = [Key(line.series, line.name, "dashed" if line.dashed else "line") for line in lines]
    if gap and _worse(lines[gap[0]], lines[gap[1]], lower_is_better):
        keys.append(Key(GAP, "overfitting gap", "band"))
    return Chart(title, draw, alt, keys if len(keys) > 1 else (), caption=caption)


def _line(made: Frame, line: Line) -> list[Markup]:
    """A curve, with dots where its points are few."""
    x, y = [made.x.at(v) for v in line.x], [made.y.at(v) for v in line.y]
    color = f"s{colour(line.series)}"
    style = f"curve {color}" + (" dashed" if line.dashed else "")
    parts = [element("path", d=path_of(x, y), class_=style, data_series=line.series)]
    if len(x) <= 12 and not line.dashed:
        look = {"r": 3.5, "class_": f"dot {color}", "data_series": line.series}
        points = [point for point in zip(x, y, strict=True) if math.isfinite(point[1])]
        parts += [element("circle", cx=px, cy=py, **look) for px, py in points]
    return parts


def _mark(made: Frame, x: float, text: str, top: bool) -> list[Markup]:
    """A dotted line at an x and what it is, on the side that has more room."""
    at = made.x.at(x)
    end = at > (made.x.start + made.x.end) / 2
    place = {"x": at + (-6 if end else 6), "y": made.y.end + 10 if top else made.y.start - 8}
    return [
        element("line", x1=at, x2=at, y1=made.y.start, y2=made.y.end, class_="mark"),
        element("text", text, **place, class_="note" + (" end" if end else "")),
    ]


def _worse(first: Line, second: Line, lower_is_better: bool) -> list[tuple[float, float, float]]:
    """x and both values, where the second curve is worse than the first."""
    return [
        (x, a, b)
        for x, a, b in zip(first.x, first.y, second.y, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (b > a) == lower_is_better and a != b
    ]


def _gap(made: Frame, first: Line, second: Line, lower_is_better: bool) -> Markup:
    """The ground between two curves where the second is worse."""
    parts = []
    points = [
        (made.x.at(x), made.y.at(a), made.y.at(b))
        for x, a, b in _worse(first, second, lower_is_better)
    ]
    step = (made.x.end - made.x.start) / max(1, len(first.x) - 1)
    run: list[tuple[float, float, float]] = []
    for point in [*points, None]:
        if run and (point is None or point[0] - run[-1][0] > 1.5 * step):
            outline = [(x, a) for x, a, _ in run] + [(x, b) for x, _, b in reversed(run)]
            if len(run) > 1:
                d = path_of(*map(list, zip(*outline, strict=True))) + "Z"
                parts.append(element("path", d=d, class_="gap"))
            run = []
        if point is not None:
            run.append(point)
    return group(parts, data_series=GAP)


def _strips(made: Frame, lines: Sequence[Line], xs: Sequence[float], x_label: str) -> Markup:
    """An invisible column around each x, or of many x every few, that tells the values there."""
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    xs = xs[:: -(-len(xs) // _COLUMNS)]
    parts = []
    for i, x in enumerate(xs):
        left = made.x.at((xs[i - 1] + x) / 2) if i else made.x.start
        right = made.x.at((x + xs[i + 1]) / 2) if i + 1 < len(xs) else made.x.end
        tip = [f"{x_label} {x:g}"]
        tip += [
            f"{line.name}: {found[x]:.4g}"
            for line, found in zip(lines, values, strict=True)
            if x in found
        ]
        parts.append(
            element(
                "rect",
                x=left,
                y=made.y.end,
                width=max(right - left, 0.5),
                height=made.y.start - made.y.end,
                class_="hit",
                data_tip="\n".join(tip),
            )
        )
    return group(parts, aria_hidden="true")


def histogram(
    title: str, edges: Sequence[float], counts: Sequence[float], *, x_label: str, caption: str = ""
) -> Chart:
    """Bars that touch: how many values lie between neighbouring edges."""
    top = max(counts) or 1

    def draw(width: int) -> Markup:
        made = frame(width, 190, (edges[0], edges[-1], False), (0, top * 1.05, False))
        parts = [axes(made, x_label, "how many")]
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            x, right, y = made.x.at(low), made.x.at(high), made.y.at(count)
            parts.append(
                element(
                    "rect",
                    x=x,
                    y=y,
                    width=max(right - x - 0.5, 0.5),
                    height=made.y.start - y,
                    class_="fill s0",
                    data_tip=f"{low:.3g} to {high:.3g}: {count:,.0f}",
                )
            )
        return picture(width, 190, parts, f"{title}. {alt}")

    alt = f"Histogram of {sum(counts):,.0f} values between {edges[0]:.3g} and {edges[-1]:.3g}"
    return Chart(title, draw, alt, caption=caption)


@dataclass(frozen=True)
class Ratio:
    """A row of `ratios`: what each contestant takes over ours, by the number of its colour."""

    name: str
    values: dict[int, tuple[float, str]] = field(default_factory=dict)  # series: ratio, tip


def ratios(
    title: str, rows: Sequence[Ratio], keys: Sequence[Key], *, x_label: str, full: bool = False
) -> Chart:
    """Bars to the left and right of 1 on a logarithmic axis: longer to the right is better.

    The bar ends at the least of a row's ratios and each ratio is a dot.
    """
    every = [ratio for row in rows for ratio, _ in row.values.values()]
    low, high = span([*every, 0.5, 2.0], log=True)
    line = 22

    def draw(width: int) -> Markup:
        height = line * len(rows) + 66
        left = min(max(text_width(row.name, 11.5) for row in rows) + 14, width * 0.46)
        x = Axis(low, high, left, width - 14, True)
        parts = [_ratio_axis(x, 14, height - 46)]
        for place, row in enumerate(rows):
            parts.append(_ratio_row(x, row, 14 + line * (place + 0.5)))
        at = (x.start + x.end) / 2
        parts.append(element("text", x_label, x=at, y=height - 8, class_="label middle"))
        return picture(width, height, parts, f"{title}. {alt}")

    faster = sum(min(r for r, _ in row.values.values()) >= 1 for row in rows)
    alt = f"Bars for {len(rows)} rows, of which {faster} are faster than every peer"
    return Chart(title, draw, alt, keys, full=full)


def _ratio_axis(x: Axis, top: float, bottom: float) -> Markup:
    parts: list[Markup] = []
    taken: list[float] = []
    for tick in sorted(x.ticks(5), key=lambda value: abs(math.log(value))):
        at = x.at(tick)
        parts.append(
            element("line", x1=at, x2=at, y1=top, y2=bottom, class_="axis" if tick == 1 else "grid")
        )
        if all(abs(at - other) > 36 for other in taken):  # the labels nearest to 1 come first
            taken.append(at)
            parts.append(element("text", f"{tick:g}×", x=at, y=bottom + 17, class_="tick middle"))
    return group(parts, aria_hidden="true")


def _ratio_row(x: Axis, row: Ratio, y: float) -> Markup:
    room = round((x.start - 14) / text_width("m", 11.5))
    name = row.name if len(row.name) <= room else row.name[: room - 1] + "…"
    tip = None if name == row.name else row.name
    parts = [element("text", name, x=x.start - 9, y=y + 4, class_="name end", data_tip=tip)]
    least = min(ratio for ratio, _ in row.values.values())
    start, end = sorted((x.at(1.0), x.at(least)))
    tone = "bar " + ("good" if least >= 1 else "bad")
    wide = max(end - start, 1.0)
    parts.append(element("rect", x=start, y=y - 6, width=wide, height=12, class_=tone))
    for series, (ratio, tip) in row.values.items():
        look = f"dot s{colour(series)}"
        parts.append(
            element(
                "circle", cx=x.at(ratio), cy=y, r=4.5, class_=look, data_series=series, data_tip=tip
            )
        )
    return group(parts)
