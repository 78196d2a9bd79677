"""The roofline of a benchmark result: arithmetic intensity against the rate that was reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from gpunn.bench.cases import shape_text
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import Row
from gpunn.bench.tables import seconds_text, significant
from gpunn.report.charts import PEERS, Chart, Frame, Key, axes, colour, frame
from gpunn.report.svg import element, group, picture, span, text_width


def roofline(rows: Sequence[Row], ceilings: Ceilings, device: str) -> Chart | None:
    """Rows that compute something as points, ours filled and named, under both ceilings.

    A case that was timed as a stream and as a graph has the faster of the two. None without a
    point.
    """
    points = fastest([row for row in rows if row.flops > 0 and row.bytes > 0])
    if not points:
        return None
    groups = list(dict.fromkeys((row.implementation, row.dtype) for row in points if row.ours))
    peers = list(dict.fromkeys(row.implementation for row in points if not row.ours))
    series = {key: number for number, key in enumerate(groups)}
    keys = [
        Key(series[key], f"{key[0]}, {'no dtype' if key[1] == '-' else key[1]}", "dot")
        for key in groups
    ]
    keys += [Key(PEERS + n, name, "ring", off=True) for n, name in enumerate(peers)]
    dtypes = list(dict.fromkeys(row.dtype for row in points))
    roofs = {dtype: ceilings.rate(dtype) for dtype in dtypes if dtype in ceilings.rates}
    if not roofs:
        roofs = dict(ceilings.rates)
    intensities = [row.flops / row.bytes for row in points]
    rates = [row.flops / row.timing.median for row in points]
    ridges = [rate / ceilings.copy for rate in roofs.values()]
    x_low, x_high = span([*intensities, *(ridge * 2 for ridge in ridges)], log=True)
    y_low, y_high = span([*rates, *roofs.values()], log=True, room=0.06)

    def draw(width: int) -> Markup:
        height = 560 if width > 600 else 420
        made = frame(width, height, (x_low, x_high, True), (y_low, y_high, True))
        parts = [axes(made, "arithmetic intensity, FLOP per byte", "FLOP/s reached")]
        lines, labels = _roofs(made, ceilings, roofs)
        parts += lines
        for row in sorted(points, key=lambda row: row.ours):
            number = (
                series[row.implementation, row.dtype]
                if row.ours
                else (PEERS + peers.index(row.implementation))
            )
            parts.append(_point(made, row, number))
        ours = [row for row in points if row.ours]
        parts += labels
        parts.append(_names(made, ours, ceilings, roofs, width))
        return picture(width, height, parts, f"Roofline of {device}: {alt}")

    count = sum(row.ours for row in points)
    shares = sorted(row.percent_of_floor for row in points if row.ours)
    alt = (
        f"{count} measurements of ours under a copy bandwidth of "
        f"{ceilings.copy / 1e9:,.0f} GB/s; the median reaches "
        f"{shares[len(shares) // 2]:.0f}% of its ceiling"
        if shares
        else "peers only"
    )
    caption = (
        "Each point is a primitive with a shape and a dtype. The nearer to the roof, the less "
        "there is to gain; the roofs were measured in the same run."
    )
    if any(row.percent_of_floor > 100 for row in points):
        caption += " Points above a roof found their data in a cache, which is faster than memory."
    return Chart(device, draw, alt, keys, full=True, caption=caption)


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Of the modes of each case and contestant the faster one, in the order of the rows."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row.primitive, row.shape, row.dtype, row.implementation, row.device)
        if key not in best or row.timing.median < best[key].timing.median:
            best[key] = row
    return list(best.values())


def _roofs(
    made: Frame, ceilings: Ceilings, roofs: dict[str, float]
) -> tuple[list[Markup], list[Markup]]:
    """The lines of the ceilings and their labels."""
    x, y, copy = made.x, made.y, ceilings.copy
    left = max(x.low, y.low / copy)
    ridge = min(max(roofs.values(), default=y.high) / copy, x.high)
    x1, y1, x2, y2 = x.at(left), y.at(left * copy), x.at(ridge), y.at(ridge * copy)
    lines = [element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="roof")]
    place = left * (ridge / left) ** 0.05
    turn = math.degrees(math.atan2(y2 - y1, x2 - x1))
    move = f"translate({x.at(place):.1f} {y.at(place * copy) - 6:.1f}) rotate({turn:.1f})"
    labels = [element("text", f"copy {copy / 1e9:,.0f} GB/s", class_="note", transform=move)]
    for dtype, rate in roofs.items():
        at = y.at(rate)
        start = x.at(min(max(rate / copy, x.low), x.high))
        lines.append(element("line", x1=start, y1=at, x2=x.end, y2=at, class_="roof"))
        text, begin = _roof_text(dtype, rate), _roof_start(made, ceilings, rate)
        labels.append(element("text", text, x=begin, y=at - 5, class_="note"))
    return lines, labels


def _roof_text(dtype: str, rate: float) -> str:
    return f"{dtype} product {significant(rate / 1e12)} TFLOP/s"


def _roof_start(made: Frame, ceilings: Ceilings, rate: float) -> float:
    """Where the label of a roof begins: at its left end, if there is room."""
    ridge = made.x.at(min(max(rate / ceilings.copy, made.x.low), made.x.high))
    return max(made.x.start, min(ridge + 4, made.x.end - 190))


def _point(made: Frame, row: Row, series: int) -> Markup:
    tip = (
        f"{row.primitive} {shape_text(row.shape)}\n{row.dtype}, {row.implementation}, {row.mode}, "
        f"{row.cache}\n{seconds_text(row.timing.median)}, {row.percent_of_floor:.0f}% of the "
        f"floor ({row.bound})"
    )
    return element(
        "circle",
        cx=made.x.at(row.flops / row.bytes),
        cy=made.y.at(row.flops / row.timing.median),
        r=5 if row.ours else 4,
        class_=f"{'dot' if row.ours else 'ring'} s{colour(series)}",
        data_series=series,
        data_tip=tip,
    )


# Where a name may stand beside its point: close by, else further away with a line to it.
_PLACES = [
    (9, 4, False),
    (-9, 4, True),
    (8, -8, False),
    (8, 16, False),
    (-8, -8, True),
    (-8, 16, True),
] + [
    (round(radius * math.cos(turn)), round(radius * math.sin(turn)) + 4, math.cos(turn) < 0)
    for radius in (24, 36, 50, 66)
    for turn in (index * math.pi / 8 for index in range(16))
]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _names(
    made: Frame, rows: Sequence[Row], ceilings: Ceilings, roofs: dict[str, float], width: int
) -> Markup:
    """The names of as many primitives as have room beside their largest point."""
    largest: dict[str, Row] = {}
    for row in rows:
        if row.primitive not in largest or row.flops > largest[row.primitive].flops:
            largest[row.primitive] = row
    taken: list[tuple[float, float, float, float]] = []
    for rate in roofs.values():  # their labels
        left, y = _roof_start(made, ceilings, rate), made.y.at(rate)
        taken.append((left, y - 18, left + 190, y + 4))
    taken += [(x - 5, y - 5, x + 5, y + 5) for x, y in (_place(made, row) for row in rows)]
    size, most = (11, 40) if width > 600 else (10, 10)
    parts: list[Markup] = []
    for row in sorted(largest.values(), key=lambda row: -row.flops)[:most]:
        parts += _name(made, row, taken, size)
    return group(parts, aria_hidden="true")


def _place(made: Frame, row: Row) -> tuple[float, float]:
    return made.x.at(row.flops / row.bytes), made.y.at(row.flops / row.timing.median)


def _name(made: Frame, row: Row, taken: list[Any], size: int) -> list[Markup]:
    """A name at the first place that is free, which is then taken; nothing if none is."""
    x, y = _place(made, row)
    wide = text_width(row.primitive, size)
    inner = (made.x.start, made.y.end, made.x.end, made.y.start)
    for dx, dy, end in _PLACES:
        left = x + dx - (wide if end else 0)
        box = (left, y + dy - size, left + wide, y + dy + 2)
        inside = all(a <= b for a, b in zip(inner[:2] + box[2:], box[:2] + inner[2:], strict=True))
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            look = "point-name" + (" end" if end else "")
            parts = [element("text", row.primitive, x=x + dx, y=y + dy, class_=look)]
            if math.hypot(dx, dy - 4) > 20:
                ends = {"x1": x, "y1": y, "x2": x + dx + (2 if end else -2), "y2": y + dy - 4}
                parts.insert(0, element("line", **ends, class_="leader"))
            return parts
    return []
