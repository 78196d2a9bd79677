"""The roofline picture: arithmetic intensity against the achieved rate, under both ceilings."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpunn.bench.cases import shape_text
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import Row
from gpunn.io.atomic import atomic_path

# Distinguishable also in grey and by most colour-blind readers (Okabe and Ito), each with a mark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "a picture needs matplotlib, which is not installed; run: pip install matplotlib"
        )


def plot(
    rows: Sequence[Row], ceilings: Ceilings, path: str | Path, title: str | None = None
) -> int:
    """Draw the rows that have FLOPs and return their number. Needs matplotlib.

    Ours are numbered and listed beside the picture with their percent of the floor.

    ValueError if no row has any; ImportError, saying what to install, without matplotlib.
    """
    points = [row for row in rows if row.flops > 0 and row.bytes > 0]
    if not points:
        raise ValueError("no measured row has FLOPs, so there is nothing to draw in a roofline")
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes, key = figure.subplots(1, 2, width_ratios=(2.6, 1))
    intensity = np.array([row.flops / row.bytes for row in points])
    rate = np.array([row.flops / row.timing.median for row in points])
    left, right = intensity.min() / 4, max(intensity.max() * 4, _ridge(ceilings, points) * 4)
    top = max(max(ceilings.rate(row.dtype) for row in points), rate.max())
    axes.set(
        xscale="log", yscale="log", xlim=(left, right), ylim=(rate.min() / 4, top * 4),
        xlabel="arithmetic intensity, FLOP per byte", ylabel="achieved FLOP/s",
        title=f"Roofline of {title or ceilings.device}",
    )  # fmt: skip
    axes.grid(True, which="major", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    _key(key, points)
    handles = _points(axes, points, intensity, rate)
    axes.legend(handles=handles, loc="lower right", framealpha=1, title="measured")
    figure.canvas.draw()
    figure.set_layout_engine("none")  # places on the picture are final from here on
    _ceilings(axes, ceilings, points, left, right)
    _number(figure, axes, points, intensity, rate)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi="figure", format=Path(path).suffix.lstrip(".") or "png")
    return len(points)


def _ridge(ceilings: Ceilings, rows: Sequence[Row]) -> float:
    """The intensity where the roofs meet."""
    return max(ceilings.rate(row.dtype) for row in rows) / ceilings.copy


def _ceilings(axes, ceilings: Ceilings, rows: Sequence[Row], left: float, right: float) -> None:
    rates = {dtype: ceilings.rate(dtype) for dtype in sorted({row.dtype for row in rows})}
    top = max(rates.values())
    x = np.array([left, top / ceilings.copy])
    axes.plot(x, x * ceilings.copy, color="0.25", linewidth=1.5)
    for dtype, rate in rates.items():
        axes.plot([rate / ceilings.copy, right], [rate, rate], color="0.25", linewidth=1.5)
        axes.annotate(
            f"{dtype} product {rate / 1e12:.3g} TFLOP/s", (right, rate), xytext=(-4, 4),
            textcoords="offset points", ha="right", va="bottom", fontsize=8, color="0.25",
        )  # fmt: skip
    # Along its line; both axes are logarithmic, so the line's angle depends on the picture.
    ends = [(x, x * ceilings.copy) for x in (left, 10 * left)]
    dx, dy = np.diff(axes.transData.transform(ends), axis=0)[0]
    axes.annotate(
        f"copy {ceilings.copy / 1e9:,.0f} GB/s", (left, left * ceilings.copy), xytext=(10, 14),
        textcoords="offset points", ha="left", va="bottom", fontsize=8, color="0.25",
        rotation=np.degrees(np.arctan2(dy, dx)), rotation_mode="anchor",
    )  # fmt: skip


def _points(axes, rows: Sequence[Row], intensity, rate) -> list:
    """Draw the points, one colour and mark a contestant; ours filled, peers hollow."""
    handles = []
    names = sorted({(not row.ours, row.implementation) for row in rows})
    for number, (peer, name) in enumerate(names):
        at = [i for i, row in enumerate(rows) if row.implementation == name]
        colour = COLOURS[number % len(COLOURS)]
        (line,) = axes.plot(
            intensity[at], rate[at], MARKS[number % len(MARKS)], color=colour, markersize=7,
            markerfacecolor="none" if peer else colour, markeredgewidth=1.4,
            label=name if peer else f"{name} (ours)",
        )  # fmt: skip
        handles.append(line)
    return handles


def _number(figure, axes, rows: Sequence[Row], intensity, rate) -> None:
    """Number our points, each number where it covers neither another one nor a point."""
    from matplotlib.text import Text  # an annotation's own extent would take its line in

    renderer = figure.canvas.get_renderer()
    marks = axes.transData.transform(np.column_stack([intensity, rate]))
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in marks]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    places = [(radius * np.cos(angle), radius * np.sin(angle))
              for radius in range(9, 160, 7) for angle in angles]  # fmt: skip
    for number, i in enumerate((i for i, row in enumerate(rows) if row.ours), start=1):
        for place in places:
            label = axes.annotate(
                str(number), (intensity[i], rate[i]), xytext=place, textcoords="offset points",
                fontsize=8, ha="center", va="center",
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5,
                            "shrinkA": 3, "shrinkB": 3},
            )  # fmt: skip
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)
            if place == places[-1] or not any(
                box.x0 < x1 and x0 < box.x1 and box.y0 < y1 and y0 < box.y1
                for x0, y0, x1, y1 in taken
            ):
                taken.append((box.x0, box.y0, box.x1, box.y1))
                break
            label.remove()


def _key(axes, rows: Sequence[Row]) -> None:
    """What the numbers stand for, and how near each comes to its roof."""
    axes.axis("off")
    lines = []
    for number, row in enumerate((row for row in rows if row.ours), start=1):
        name = f"{row.primitive} {shape_text(row.shape)} {row.dtype}"
        lines.append(f"{number:>3}  {row.percent_of_floor:4.0f}%  {name}")
    axes.text(
        0, 1, "     of floor\n" + "\n".join(lines), family="monospace", va="top", ha="left",
        fontsize=8 if len(lines) <= 40 else 8 * 40 / len(lines), transform=axes.transAxes,
        linespacing=1.3,
    )  # fmt: skip
