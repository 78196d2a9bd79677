"""``gpunn evaluate``: measure the model of a run folder on labelled data."""

from __future__ import annotations

import argparse
from typing import Any

from gpunn.cli.predict import common_arguments, samples_of
from gpunn.text import aligned, table

DESCRIPTION = """\
Measure the model of a run folder on labelled data: each class's share of right answers, the
accuracy and the cross-entropy.
"""

EXAMPLES = """\
DATA is a file with labels: .npz (arrays x and y) or .csv (a column named label, or the last one
where there is no header); without DATA, the samples that were held out of the run.

examples:
  gpunn evaluate runs/digits-…
  gpunn evaluate runs/digits-… labelled.npz
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure the model of a run folder on labelled data",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common_arguments(parser)
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="a labelled file (default: the held-out samples)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 0."""
    from gpunn.train import TrainedModel

    trained = TrainedModel.load(args.folder, args.device)
    x, y, _ = samples_of(trained, args.data, need_labels=True)
    result = trained.evaluate(x, y)
    counts = result["confusion_matrix"]
    right, samples = counts.diagonal(), counts.sum(axis=1)
    shares = [f"{r / s:.4f}" if s else "-" for r, s in zip(right, samples, strict=True)]
    rows = [
        (number, samples[number], right[number], shares[number], _mistakes(counts[number], number))
        for number in range(len(counts))
    ]
    print(table(["class", "samples", "right", "share", "taken for"], rows, right=[0, 1, 2, 3]))
    print()
    accuracy = f"{result['accuracy']:.4f}  ({right.sum()} of {len(y)})"
    print(aligned([("accuracy", accuracy), ("cross-entropy", f"{result['loss']:.4f}")], indent=""))
    return 0


def _mistakes(row: Any, own: int) -> str:
    """Which classes the samples of one class were taken for, and how often."""
    wrong = [(count, number) for number, count in enumerate(row) if count and number != own]
    return ", ".join(f"{number} ({count})" for count, number in sorted(wrong, reverse=True))
