"""What the benchmark of scaling found, and what its model says, as cells and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpunn.bench.scaling_model import USUAL, Way, Work, efficiency
from gpunn.bench.tables import seconds_text

Cells = tuple[list[str], list[list[str]]]
STEPS_RIGHT = 4  # the columns from this one on are numbers
SUMS_RIGHT = 0


def steps_cells(rows: Sequence[dict[str, Any]]) -> Cells:
    """Headers and cells of the steps."""
    headers = ["scaling", "job", "precision", "by", "ranks", "global batch", "a step", "spread",
               "without reduction", "reduction alone", "hidden", "over one rank",
               "efficiency"]  # fmt: skip
    cells = []
    for row in (row for row in rows if row["kind"] != "sum"):
        kind = row["kind"] if row["ranks"] > 1 else "one rank"
        start = [kind, row["job"], row["precision"], row["by"], str(row["ranks"])]
        start.append(str(row["batch"]))
        if "reason" in row:
            cells.append([*start, row["reason"], *[""] * 6])
            continue
        rounds = row["rounds"]["step"]
        spread = f"{100 * (max(rounds) - min(rounds)) / row['step']:.0f}%"
        cells.append([
            *start, seconds_text(row["step"]), spread,
            *(seconds_text(row[name]) if name in row else "" for name in ("without", "alone")),
            f"{100 * max(0.0, row['hidden']):.0f}%" if "hidden" in row else "",
            f"{row['over_one']:.2f}x" if "over_one" in row else "",
            f"{100 * row['efficiency']:.0f}%" if "efficiency" in row else "",
        ])  # fmt: skip
    return headers, cells


def sums_cells(rows: Sequence[dict[str, Any]]) -> Cells:
    """Headers and cells of the all-reduces by themselves: seconds, and bytes a second of a rank."""
    sums = [row for row in rows if row["kind"] == "sum"]
    libraries = list(dict.fromkeys(row["by"] for row in sums))
    headers = ["ranks", "bytes", *libraries, *(f"{name}, GB/s" for name in libraries)]
    cells = []
    for ranks, size in sorted({(row["ranks"], row["bytes"]) for row in sums}):
        times = {row["by"]: row["alone"] for row in sums
                 if (row["ranks"], row["bytes"]) == (ranks, size)}  # fmt: skip
        cells.append([
            str(ranks), f"{size:,}",
            *(seconds_text(times[name]) if name in times else "" for name in libraries),
            *(f"{size / times[name] / 1e9:.3g}" if name in times else "" for name in libraries),
        ])  # fmt: skip
    return headers, cells


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences: how much longer than one rank's our step is, beside PyTorch's."""
    found = []
    for ours in (row for row in rows if row["by"] == "gpunn" and row["kind"] == "weak"):
        key = ("kind", "job", "ranks")
        peer = next((row for row in rows if row["by"] == "torch"
                     and all(row.get(name) == ours[name] for name in key)), None)  # fmt: skip
        if peer and "over_one" in ours and "over_one" in peer:
            better = ours["over_one"] <= peer["over_one"]
            found.append(f"{ours['job']} on {ours['ranks']} ranks: {ours['over_one']:.2f} times "
                         f"the step of one rank, PyTorch {peer['over_one']:.2f}: "
                         f"{'no worse' if better else 'worse'}.")  # fmt: skip
    return found


def one_rank_cells(tests: Sequence[dict[str, Any]]) -> Cells:
    """Headers and cells of what the stage "one rank" of a run on a GPU timed, if it did."""
    headers = ["job", "batch", "the step", "by one rank over NCCL", "longer by"]
    times = [test["times"] for test in tests if "times" in test]
    return headers, [
        [one["job"], str(one["batch"]), seconds_text(one["plain"]), seconds_text(one["rank"]),
         f"{100 * (one['over'] - 1):+.1f}%"]
        for one in times
    ]  # fmt: skip


# ---- the picture ---------------------------------------------------------------------------------


def draw(rows: Sequence[dict[str, Any]], works: Sequence[Work], path: str | Path) -> None:
    """Efficiency over ranks, as measured and as modelled, into a file.

    ValueError if there is nothing of either.
    """
    from gpunn.train.plots import new_figure, save_figure

    panels = [kind for kind in ("weak", "strong") if _series(rows, kind)]
    count = len(panels) + bool(works)
    if not count:
        raise ValueError("there is nothing to draw: no row of several ranks and no model")
    figure = new_figure(5.4 * count, 4.2)
    axes = list(figure.subplots(1, count, squeeze=False).flat)
    for one in axes:
        one.set(ylabel="efficiency", ylim=(0, 1.08), xscale="log")
        one.xaxis.set_minor_locator(_no_ticks())
    for kind, one in zip(panels, axes, strict=False):
        _measured(one, rows, kind)
    if works:
        _modelled(axes[-1], works)
    for one in axes:
        one.grid(True, color="#dddddd", lw=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        one.legend(fontsize=7.5, framealpha=0.9, edgecolor="none", loc="lower left", handlelength=3)
    save_figure(figure, Path(path))


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _series(
    rows: Sequence[dict[str, Any]], kind: str
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(job, library) -> ranks and efficiency, from one rank on."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row["kind"] == kind and "efficiency" in row and "reason" not in row:
            points = found.setdefault((row["job"], row["by"]), [(1, 1.0)])
            points.append((row["ranks"], row["efficiency"]))
    return found


def _measured(axes: Any, rows: Sequence[dict[str, Any]], kind: str) -> None:
    from gpunn.train.plots.figures import MARKS, PALETTE

    series = _series(rows, kind)
    jobs = list(dict.fromkeys(job for job, _ in series))
    for (job, by), points in series.items():
        number = jobs.index(job)
        axes.plot(
            *zip(*sorted(points), strict=True), color=PALETTE[number % len(PALETTE)],
            marker=MARKS[number % len(MARKS)], ls="-" if by == "gpunn" else "--", lw=1.6, ms=5,
            label=f"{job}, {by}",
        )  # fmt: skip
    ticks = sorted({ranks for points in series.values() for ranks, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="ranks")
    device = next(row["device"] for row in rows if row["kind"] == kind)
    axes.set_title(f"{kind} scaling, measured ({device})", fontsize=10)


def _modelled(axes: Any, works: Sequence[Work]) -> None:
    from gpunn.train.plots.figures import PALETTE

    counts = [2**power for power in range(11)]
    for number, work in enumerate(works):
        color = PALETTE[number % len(PALETTE)]
        source = "" if work.source == "measured" else f", {work.source}"
        for way, dashes in ((USUAL, "-"), (Way(overlap=False), ":")):
            values = [efficiency(work, gpus, way) for gpus in counts]
            label = f"{work.name} ({work.batch}){source}" if way.overlap else None
            axes.plot(counts, values, color=color, ls=dashes, lw=1.6, label=label)
    axes.set_xticks([1, 8, 64, 1024], ["1", "8", "64", "1024"])
    axes.set(xlabel="GPUs")
    axes.set_title("weak scaling, a model (dotted: nothing overlaps)", fontsize=10)
