"""The roofline of a benchmark result: arithmetic intensity against the rate that was reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from gpunn.bench.cases import shape_text
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import Row
from gpunn.bench.tables import seconds_text, significant
from gpunn.report.charts import PEERS, Chart, Frame, Key, axes, colour, frame
from gpunn.report.svg import element, group, picture, span, text_width

_LEAST = 0.5  # percent of the floor below which a point would only stretch the axes


def roofline(rows: Sequence[Row], ceilings: Ceilings, device: str) -> Chart | None:
    """Rows that compute something as points, ours filled and named, under both ceilings.

    A case that was timed as a stream and as a graph has the faster of the two. What is far below
    its roof is named in the caption. None without a point.
    """
    every = fastest([row for row in rows if row.flops > 0 and row.bytes > 0])
    points = [row for row in every if row.percent_of_floor >= _LEAST] or every
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
    roofs = roofs or dict(ceilings.rates)
    limits = _limits(points, ceilings, roofs)

    def draw(width: int) -> Markup:
        height = 560 if width > 600 else 420
        made = frame(width, height, *limits)
        parts = [axes(made, "arithmetic intensity, FLOP per byte", "FLOP/s reached")]
        ours = [row for row in points if row.ours]
        roof = _Roof(made, ceilings.copy, roofs, [_place(made, row) for row in ours])
        parts += roof.lines()
        for row in sorted(points, key=lambda row: row.ours):
            number = (
                series[row.implementation, row.dtype]
                if row.ours
                else (PEERS + peers.index(row.implementation))
            )
            parts.append(_point(made, row, number))
        parts += roof.labels()
        parts.append(_names(made, ours, roof.boxes(), width))
        return picture(width, height, parts, f"Roofline of {device}: {alt}")

    alt = _in_words(points, ceilings)
    return Chart(device, draw, alt, keys, full=True, caption=_caption(points, every))


def _limits(
    points: Sequence[Row], ceilings: Ceilings, roofs: dict[str, float]
) -> tuple[tuple[float, float, bool], tuple[float, float, bool]]:
    """The ends of both axes, which are logarithmic."""
    ridges = [2 * rate / ceilings.copy for rate in roofs.values()]
    rates = [row.flops / row.timing.median for row in points]
    x = span([*(row.flops / row.bytes for row in points), *ridges], log=True)
    y = span([*rates, *roofs.values()], log=True, room=0.06)
    return (*x, True), (*y, True)


def _in_words(points: Sequence[Row], ceilings: Ceilings) -> str:
    shares = [row.percent_of_floor for row in points if row.ours]
    if not shares:
        return "peers only"
    return (
        f"{len(shares)} measurements of ours under a copy bandwidth of "
        f"{ceilings.copy / 1e9:,.0f} GB/s; the median reaches "
        f"{statistics.median(shares):.0f}% of its ceiling"
    )


def _caption(points: Sequence[Row], every: Sequence[Row]) -> str:
    text = (
        "Each point is a primitive with a shape and a dtype. The nearer to the roof, the less "
        "there is to gain; the roofs were measured in the same run."
    )
    above = {row.bound for row in points if row.percent_of_floor > 102}
    if "memory" in above:
        text += " Points above the slope found data in a cache, which is faster than memory."
    if "compute" in above:
        text += " Points above a level roof beat the product that it was measured with."
    far = list(dict.fromkeys(row.primitive for row in every if row.ours and row not in points))
    if far:
        text += f" Not drawn, as it is far below the roof: {', '.join(far)}."
    return text


def flops_text(rate: float) -> str:
    """FLOP/s with a unit: of a GPU TFLOP/s, of a CPU GFLOP/s."""
    scale, unit = (1e12, "TFLOP/s") if rate >= 0.9995e12 else (1e9, "GFLOP/s")
    return f"{significant(rate / scale)} {unit}"


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Of the modes of each case and contestant the faster one, in the order of the rows."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row.primitive, row.shape, row.dtype, row.implementation, row.device)
        if key not in best or row.timing.median < best[key].timing.median:
            best[key] = row
    return list(best.values())


@dataclass(frozen=True)
class _Roof:
    """The ceilings of a frame: a slope by the copy bandwidth, a level line for each dtype."""

    made: Frame
    copy: float
    rates: dict[str, float]
    points: Sequence[tuple[float, float]]  # of ours, in pixels

    @property
    def _slope(self) -> tuple[float, float, float, float]:
        """Both ends of the slope."""
        x, y = self.made.x, self.made.y
        left = max(x.low, y.low / self.copy)
        right = min(max(self.rates.values(), default=y.high) / self.copy, x.high)
        return x.at(left), y.at(left * self.copy), x.at(right), y.at(right * self.copy)

    def lines(self) -> list[Markup]:
        """The roofs themselves."""
        x1, y1, x2, y2 = self._slope
        found = [element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="roof")]
        for rate in self.rates.values():
            y = self.made.y.at(rate)
            end = self.made.x.end
            found.append(element("line", x1=self._ridge(rate), y1=y, x2=end, y2=y, class_="roof"))
        return found

    def labels(self) -> list[Markup]:
        """What each roof is."""
        x, y, turn, text = self._copy_label()
        move = f"translate({x:.1f} {y - 6:.1f}) rotate({turn:.1f})"
        found = [element("text", text, class_="note", transform=move)]
        for left, at, text in self._level_labels():
            found.append(element("text", text, x=left, y=at, class_="note"))
        return found

    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Where no name may stand: along the slope, and the labels."""
        x1, y1, x2, y2 = self._slope
        steps = max(1, int((x2 - x1) / 8))
        found = []
        for step in range(steps + 1):
            x, y = x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps
            found.append((x - 4, y - 4, x + 4, y + 4))
        x, y, degrees, text = self._copy_label()
        turn = math.radians(degrees)
        for step in range(0, int(text_width(text, 11)), 8):
            at, down = x + step * math.cos(turn), step * math.sin(turn)
            found.append((at - 4, y + down - 20, at + 10, y + down - 2))
        for left, at, text in self._level_labels():
            found.append((left, at - 12, left + text_width(text, 11), at + 4))
        for rate in self.rates.values():
            y = self.made.y.at(rate)
            found.append((self._ridge(rate), y - 2, self.made.x.end, y + 2))
        return found

    def _ridge(self, rate: float) -> float:
        x = self.made.x
        return x.at(min(max(rate / self.copy, x.low), x.high))

    def _copy_label(self) -> tuple[float, float, float, str]:
        """Where it begins on the slope, its turn in degrees: where the fewest points are near."""
        x1, y1, x2, y2 = self._slope
        text = f"copy {self.copy / 1e9:,.0f} GB/s"
        turn = math.atan2(y2 - y1, x2 - x1)
        wide = text_width(text, 11) * math.cos(turn)
        best = (math.inf, x1)
        for share in (0.04, 0.2, 0.35, 0.5, 0.65, 0.8):
            left = x1 + share * (x2 - x1)
            near = sum(left - 8 < x < left + wide + 8 for x, _ in self.points)
            if left + wide < x2:
                best = min(best, (near, left))
        left = best[1]
        y = y1 + (left - x1) * math.tan(turn)
        return left, y, math.degrees(turn), text

    def _level_labels(self) -> list[tuple[float, float, str]]:
        """(left, base line, text), one for roofs that lie close together.

        The highest stands above its roofs where they begin, the others below theirs at the right
        end: there the slope leaves the most room.
        """
        groups: list[list[tuple[str, float]]] = []
        for dtype, rate in sorted(self.rates.items(), key=lambda item: -item[1]):
            if groups and self.made.y.at(rate) - self.made.y.at(groups[-1][-1][1]) < 18:
                groups[-1].append((dtype, rate))
            else:
                groups.append([(dtype, rate)])
        found: list[tuple[float, float, str]] = []
        for near in groups:
            text = "product: " + ", ".join(f"{name} {flops_text(rate)}" for name, rate in near)
            if len({flops_text(rate).split()[1] for _, rate in near}) == 1:  # the unit once
                unit = text.rpartition(" ")[2]
                text = text.replace(f" {unit},", ",")
            last = max(self.made.x.start, self.made.x.end - text_width(text, 11))
            highest = not found
            left = min(self._ridge(near[0][1]) + 4, last) if highest else last
            edge = near[0] if highest else near[-1]
            found.append((left, self.made.y.at(edge[1]) + (-6 if highest else 14), text))
        return found


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
    made: Frame, rows: Sequence[Row], taken: list[tuple[float, float, float, float]], width: int
) -> Markup:
    """The names of as many primitives as have room beside their largest point."""
    largest: dict[str, Row] = {}
    for row in rows:
        if row.primitive not in largest or row.flops > largest[row.primitive].flops:
            largest[row.primitive] = row
    points = [_place(made, row) for row in rows]
    taken = taken + [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    size, most = (11, 40) if width > 600 else (10, 10)
    parts: list[Markup] = []
    for row in sorted(largest.values(), key=lambda row: -row.flops)[:most]:
        parts += _name(made, row, taken, points, size)
    return group(parts, aria_hidden="true")


def _place(made: Frame, row: Row) -> tuple[float, float]:
    return made.x.at(row.flops / row.bytes), made.y.at(row.flops / row.timing.median)


def _name(
    made: Frame, row: Row, taken: list[Any], points: Sequence[tuple[float, float]], size: int
) -> list[Markup]:
    """A name at the first place that is free, which is then taken; nothing if none is."""
    x, y = _place(made, row)
    wide = text_width(row.primitive, size)
    inner = (made.x.start, made.y.end, made.x.end, made.y.start)
    for dx, dy, end in _PLACES:
        left = x + dx - (wide if end else 0)
        box = (left, y + dy - size, left + wide, y + dy + 2)
        inside = all(a <= b for a, b in zip(inner[:2] + box[2:], box[:2] + inner[2:], strict=True))
        far = math.hypot(dx, dy - 4) > 20
        others = [(a, b) for a, b in points if far or math.hypot(a - x, b - y) > 20]
        if any(_overlap(box, (a - 14, b - 9, a + 14, b + 9)) for a, b in others):
            continue  # it would seem to name that point
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            look = "point-name" + (" end" if end else "")
            parts = [element("text", row.primitive, x=x + dx, y=y + dy, class_=look)]
            if far:
                ends = {"x1": x, "y1": y, "x2": x + dx + (2 if end else -2), "y2": y + dy - 4}
                parts.insert(0, element("line", **ends, class_="leader"))
            return parts
    return []
