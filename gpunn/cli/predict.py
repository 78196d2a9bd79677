"""``gpunn predict``: use the model of a run folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gpunn.text import table

_SHOWN = 10  # rows of predictions that are printed

DESCRIPTION = """\
Predict with the model of a run folder: prints the first predictions with their probabilities and
writes all of them as CSV.
"""

EXAMPLES = """\
DATA is a file with one sample a row: .npy, .npz (array x), .csv (with a header or not); or
digits-test, the images that were held out of the run.

examples:
  gpunn predict runs/digits-… digits-test
  gpunn predict runs/digits-… images.npy --output answers.csv --probabilities
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = subparsers.add_parser(
        "predict",
        help="predict with the model of a run folder",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common_arguments(parser)
    parser.add_argument("data", metavar="DATA", help="a file, or digits-test")
    parser.add_argument(
        "--output", metavar="FILE.csv", help="where to write (default: in the run folder)"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="write the probability of every class"
    )
    parser.set_defaults(run=run)


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What predict and evaluate both take."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="from gpunn train")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1 or emulator (default: a GPU if one is usable)"
    )


def samples_of(trained: Any, data: str | None, need_labels: bool):
    """x, y (or None) and the rows' numbers of a file or of the held-out samples."""
    from gpunn.data.files import read_samples

    if data is None or (data == f"{trained.job.name}-test" and not Path(data).exists()):
        return trained.test_data()
    samples = read_samples(data, trained.job.shape, trained.job.classes, need_labels)
    return samples.x, samples.y, None


def run(args: argparse.Namespace) -> int:
    """Predict, print the first rows, write the CSV file; returns 0."""
    from gpunn.train import TrainedModel
    from gpunn.train.classification import write_predictions

    trained = TrainedModel.load(args.folder, args.device)
    x, labels, rows = samples_of(trained, args.data, need_labels=False)
    probabilities = trained.probabilities(x)
    output = Path(args.output or Path(args.folder) / f"predictions-{Path(args.data).stem}.csv")
    write_predictions(output, probabilities, labels, rows, args.probabilities)
    print(_prediction_table(probabilities, labels, rows))
    if len(x) > _SHOWN:
        print(f"… and {len(x) - _SHOWN} more")
    if labels is not None:
        right = int((probabilities.argmax(axis=1) == labels).sum())
        print(f"\naccuracy  {right / len(x):.4f}  ({right} of {len(x)})")
    print(f"\nwrote {len(x)} predictions to {output}")
    doubt = trained.doubt(x)
    if doubt:
        print(f"note: {doubt}", file=sys.stderr)
    return 0


def _prediction_table(probabilities: Any, labels: Any, rows: Any) -> str:
    header = ["row", "prediction", "probability", "second", "probability"]
    lines = []
    for position, scores in enumerate(probabilities[:_SHOWN]):
        row = position if rows is None else rows[position]
        first, second = (-scores).argsort(kind="stable")[:2]
        line = [row, first, f"{scores[first]:.4f}", second, f"{scores[second]:.4f}"]
        if labels is not None:
            line += [labels[position], "" if labels[position] == first else "wrong"]
        lines.append(line)
    if labels is not None:
        header += ["label", ""]
    return table(header, lines, right=range(len(header)))
