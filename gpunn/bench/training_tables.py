"""What the benchmark of whole steps found, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpunn.bench.training_jobs import Job


def judged(job: Job, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``target``, how many times faster than which peers this row should be, and ``reached``.

    `reached` is None where that was not measured: the targets are for GPUs.
    """
    targets = [target for target in job.targets if target.ours == row["contestant"]]
    if not targets:
        return {"target": "", "reached": None}
    times = {other["contestant"]: other["median"] for other in rows if "median" in other}
    verdicts = []
    for target in targets:
        peers = [times[peer] for peer in target.peers if peer in times]
        if "median" in row and peers and row["device"].startswith("cuda"):
            verdicts.append(min(peers) / row["median"] >= target.times)
    missed = False in verdicts
    known = missed or len(verdicts) == len(targets)
    return {"target": "; ".join(map(str, targets)), "reached": not missed if known else None}


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    from gpunn.bench.tables import seconds_text, significant
    from gpunn.text import table

    cells = []
    for row in rows:
        start = [row["job"], row["batch"], row["device"], row["threads"], row["contestant"]]
        if "reason" in row:
            cells.append([*start, "-", "", "", "", row["reason"], ""])
            continue
        low, high = row["quartiles"]
        cells.append([
            *start, seconds_text(row["median"]), f"{100 * (high - low) / row['median']:.0f}%",
            f"{1 / row['median']:,.0f}", significant(row["flops"] / row["median"] / 1e9),
            f"{row['over_ours']:.2f}x" if row["over_ours"] else "", target_text(row),
        ])  # fmt: skip
    headers = ["job", "batch", "device", "threads", "by", "step", "spread", "steps/s", "GFLOP/s",
               "time over ours", "target on a GPU"]  # fmt: skip
    return table(headers, cells, right=(1, 3, 5, 6, 7, 8, 9))


def target_text(row: dict[str, Any]) -> str:
    """A row's target and whether it is reached."""
    verdict = {True: ": reached", False: ": missed", None: ""}[row.get("reached")]
    return f"{row.get('target', '')}{verdict}"


# ---- the curves ----------------------------------------------------------------------------------

# Told apart by the colour-blind too (Paul Tol's bright scheme). Curves that agree lie on each
# other, so each is thinner than the one before and has dashes of its own.
_STYLES = {
    "gpunn": ("#4477aa", "-"), "gpunn compiled": ("#66ccee", "-"), "gpunn fused": ("#228833", "-"),
    "torch": ("#ee6677", "--"), "torch fused": ("#ccbb44", "-."),
    "torch.compile": ("#aa3377", ":"), "torch reduce-overhead": ("#222222", (0, (1, 4))),
}  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], path: str | Path) -> int:
    """The loss curves of each job, ours over PyTorch's, into a file; how many panels that are.

    ValueError if no row has a curve.
    """
    from gpunn.train.plots import new_figure, save_figure

    jobs: dict[tuple, list] = {}
    for row in rows:
        if row.get("curve"):
            jobs.setdefault((row["job"], row["batch"], row["device"]), []).append(row)
    if not jobs:
        raise ValueError("no row has a loss curve")
    wide = min(3, len(jobs))
    high = -(-len(jobs) // wide)
    figure = new_figure(5.2 * wide, 3.6 * high)
    panels = iter(figure.subplots(high, wide, squeeze=False).flat)
    for ((job, batch, device), found), axes in zip(jobs.items(), panels, strict=False):
        _panel(axes, found)
        title = f"{job}, batch {batch}, {device}, {found[0].get('precision', 'fp32')}"
        axes.set_title(title, fontsize=10)
    for axes in panels:  # those left over
        axes.set_visible(False)
    figure.suptitle("The same training by each contestant", fontsize=12, fontweight="bold")
    save_figure(figure, Path(path))
    return len(jobs)


def _panel(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        color, dashes = _STYLES.get(row["contestant"], ("#999999", "-"))
        steps = range(1, len(row["curve"]) + 1)
        width = max(1.0, 3.6 - 0.5 * number)
        axes.plot(steps, row["curve"], color=color, ls=dashes, lw=width, label=row["contestant"])
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(True, color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
