"""What commands say of runs of a `gpunn.train.Job`: its outcome, its predictions."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from gpunn.text import aligned, number_text, plain, table


def outcome_rows(outcome: Any) -> list[tuple[str, str]]:
    """The network, the baselines, further numbers, for `aligned`."""
    better = "higher" if outcome.higher_is_better else "lower"
    seen = f"on {outcome.samples:,} {outcome.what} never seen; {better} is better"
    return [
        (outcome.metric, f"{number_text(outcome.value, outcome.unit)}  ({seen})"),
        *(
            (f"  against {name}", number_text(value, outcome.unit))
            for name, value in outcome.baselines.items()
        ),
        *((name, number_text(value)) for name, value in outcome.more.items()),
    ]


def run_summary(result: Any) -> str:
    """The closing table of a run, and what to try next."""
    from gpunn.cli.train import how_called

    folder, command = quote(str(result.folder)), how_called()
    if result.outcome is None:
        resume = f"{command} train --resume {folder}"
        return f"\ninterrupted; what was trained is kept. Go on with:\n  {resume}"
    seconds = f"{result.metrics['seconds']:.1f} s on {result.metrics['device']}"
    rows = [*outcome_rows(result.outcome), ("time", seconds), ("run folder", str(result.folder))]
    parts = ["", aligned(rows)]
    parts += [f"  {note}" for note in result.outcome.notes]
    steps = [(f"{command} report {folder}", "a page with the curves and the pictures")]
    if result.job.predict is not None:
        steps.insert(0, (f"{command} predict {folder} DATA", f"DATA is {result.job.takes}"))
    pictures = sorted(path.name for path in result.folder.glob("*.png"))
    if pictures:
        steps.append((str(result.folder), f"pictures: {', '.join(pictures)}"))
    return "\n".join([*parts, "", "try next:", aligned(steps)])


def evaluation(args: Any) -> tuple[dict[str, Any], str, bool]:
    """`gpunn evaluate` of a run of a `Job`: for programs, for people, whether it is good enough."""
    from gpunn.train import evaluate_run

    if args.at_least is not None and not math.isfinite(args.at_least):
        raise ValueError(f"--at-least is {args.at_least}; it must be a finite number")
    if args.data is not None:
        raise ValueError(
            f"{args.folder} is measured on the data that its job held out; leave out {args.data}"
        )
    outcome = evaluate_run(args.folder, args.device)
    rows = outcome_rows(outcome)
    text = aligned(rows[:1] if args.quiet else rows, indent="")
    if not args.quiet:
        text = "\n".join([text, *outcome.notes])
    sign = 1 if outcome.higher_is_better else -1
    enough = args.at_least is None or sign * (outcome.value - args.at_least) >= 0
    return {"folder": args.folder, **asdict(outcome)}, text, enough


def predictions(args: Any) -> Iterator[dict[str, Any] | str]:
    """What the job of a run folder predicts for ``args.data``."""
    from gpunn.train import opened
    from gpunn.train.blas_threads import one_blas_thread

    run = opened(args.folder, args.device, verbose=False)
    if run.job.predict is None:
        raise ValueError(
            f"{args.folder} is a run of {run.job.name}, which predicts nothing from a command line"
        )
    run.keeps = False
    with one_blas_thread():
        yield from run.job.predict(run, args.data)


def print_predictions(args: Any, rows: list[dict[str, Any]]) -> None:
    """The first rows as a table."""
    if not rows or args.quiet or not args.rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = [[_cell(row.get(name, "")) for name in names] for row in rows[: args.rows]]
    numeric = [
        at for at, name in enumerate(names)
        if all(isinstance(row.get(name) or 0, (int, float)) for row in rows)
    ]  # fmt: skip
    print(table(names, shown, right=numeric))
    if len(rows) > args.rows:
        print(f"… and {len(rows) - args.rows} more")


def _cell(value: Any) -> str:
    """A value in one line of a table."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write predictions as CSV."""
    import csv
    import io

    from gpunn.io import write_text

    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def stream(pieces: Iterator[dict[str, Any] | str], show: bool) -> tuple[list[dict[str, Any]], str]:
    """The rows and the whole text; texts are printed as they come, if they shall be shown."""
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
            if show:
                print(piece, end="", flush=True)
        else:
            rows.append(plain(piece))  # NumPy's numbers as Python's
    if texts and show:
        sys.stdout.write("\n")
    return rows, "".join(texts)
