"""``gpunn predict``: use the model of a run folder."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from pathlib import Path
from typing import Any

from gpunn.cli.arguments import (
    DEVICE,
    add_command,
    add_json,
    add_quiet,
    at_least,
    only_result,
    print_json,
)
from gpunn.text import table

DESCRIPTION = """\
Predict with the model of a run folder: prints the first predictions and writes all of them as CSV,
or as JSON where --output ends in .json.
"""

EXAMPLES = """\
Of a run of digits DATA is a file with one sample a row: .npy, .npz (array x), .csv (with a header
or not); or digits-test, the images that were held out of the run. The end of a training says what
it is of other jobs: a sentence to translate, a text to go on with, a recording.

examples:
  gpunn predict runs/digits-… digits-test
  gpunn predict runs/digits-… images.npy --output answers.csv --probabilities
  gpunn predict runs/digits-… images.csv --json | jq '.predictions[].prediction'
  gpunn predict runs/translation-… "Open a new notebook"
  gpunn predict runs/text-… "The import statement"
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = add_command(
        subparsers,
        "predict",
        help="predict with the model of a run folder",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    common_arguments(parser)
    add = parser.add_argument
    add("data", metavar="DATA", help="a file, digits-test, or what the job takes: see below")
    add("--output", metavar="FILE",
        help="where to write, .csv or .json (default: a .csv in the run folder; with --json: "
        "nowhere)")  # fmt: skip
    add("--probabilities", action="store_true", help="of digits: write that of every class")
    add("--rows", type=int, default=10, metavar="N", help="how many to print (default: 10)")
    add_json(parser)
    add_quiet(parser, "print no predictions, only where they are")
    parser.set_defaults(run=run)


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What predict and evaluate both take."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="from gpunn train")
    parser.add_argument("--device", help=DEVICE)


def samples_of(trained: Any, data: str | None, need_labels: bool) -> tuple[Any, Any, Any]:
    """x, y (or None) and the rows' numbers of a file or of the held-out samples."""
    from gpunn.data.files import read_samples

    if data is None or (data == f"{trained.job.name}-test" and not Path(data).exists()):
        return trained.test_data()
    samples = read_samples(data, trained.job.shape, trained.job.classes, need_labels)
    return samples.x, samples.y, None


def run(args: argparse.Namespace) -> int:
    """Predict, print the first rows, write the file; returns 0."""
    from gpunn.io import check_target
    from gpunn.train import Job, TrainedModel, job_of
    from gpunn.train.classification import write_predictions

    at_least("rows", args.rows, 0)
    output = target(args)
    if args.output is not None:
        check_target(args.output)  # now rather than after the work
    if isinstance(job_of(args.folder), Job):
        return run_script(args, output)
    with only_result(args.json):
        trained = TrainedModel.load(args.folder, args.device)
        x, labels, rows = samples_of(trained, args.data, need_labels=False)
        probabilities = trained.probabilities(x)
    result = as_json(args, probabilities, labels, rows)
    if output is not None and output.suffix.lower() == ".json":
        from gpunn.train.run_folder import write_json

        write_json(output, result)
    elif output is not None:
        write_predictions(output, probabilities, labels, rows, args.probabilities)
    if args.json:
        print_json(result)
    else:
        print_text(args, probabilities, labels, rows)
        print(f"wrote {len(x)} predictions to {output}")
    doubt = trained.doubt(x)
    if doubt:
        print(f"note: {doubt}", file=sys.stderr)
    return 0


def run_script(args: argparse.Namespace, output: Path | None) -> int:
    """Predict with a run of a `gpunn.train.Job`; returns 0."""
    from gpunn.cli.outcome import predictions, print_predictions, stream, write_rows
    from gpunn.train.run_folder import write_json

    if args.probabilities:
        raise ValueError("--probabilities is of runs of digits; leave it out")
    with only_result(args.json):
        rows, text = stream(predictions(args), show=not args.json and not args.quiet)
    result = {"folder": args.folder, "data": args.data}
    result |= {"text": text} if text else {}
    result |= {"predictions": rows} if rows or not text else {}
    if args.output is None and not rows and not args.quiet:
        output = None  # a text was printed already
    if output is not None and output.suffix.lower() == ".json":
        write_json(output, result)
    elif output is not None:
        write_rows(output, rows or [{"text": text}])
    if args.json:
        print_json(result)
        return 0
    print_predictions(args, rows)
    if output is not None:
        count = len(rows) or 1
        print(f"wrote {count} prediction{'' if count == 1 else 's'} to {output}")
    return 0


def target(args: argparse.Namespace) -> Path | None:
    """Where to write. ValueError for a suffix that is not known."""
    if args.output is None:
        stem = args.data
        with contextlib.suppress(OSError, ValueError):  # a text that no file could be named
            stem = Path(stem).stem if Path(stem).is_file() else stem
        stem = re.sub(r"[^\w-]+", "-", stem)[:40]
        name = f"predictions-{stem}.csv"
        return None if args.json else Path(args.folder) / name
    output = Path(args.output)
    if output.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--output {output}: write a name that ends in .csv or .json")
    return output


def as_json(args: argparse.Namespace, probabilities: Any, labels: Any, rows: Any) -> dict[str, Any]:
    """All predictions for programs."""
    predicted = probabilities.argmax(axis=1)
    predictions = []
    for position, scores in enumerate(probabilities):
        one: dict[str, Any] = {"row": int(position if rows is None else rows[position])}
        if labels is not None:
            one["label"] = int(labels[position])
        one["prediction"] = int(predicted[position])
        one["probability"] = float(scores[predicted[position]])
        if args.probabilities:
            one["probabilities"] = scores.tolist()
        predictions.append(one)
    result: dict[str, Any] = {"folder": args.folder, "data": args.data, "samples": len(predicted)}
    if labels is not None:
        result["accuracy"] = float((predicted == labels).mean())
    return {**result, "predictions": predictions}


def print_text(args: argparse.Namespace, probabilities: Any, labels: Any, rows: Any) -> None:
    """The first predictions and how many were right."""
    count = len(probabilities)
    if args.rows and not args.quiet:
        print(_prediction_table(probabilities, labels, rows, args.rows))
        if count > args.rows:
            print(f"… and {count - args.rows} more")
        print()
    if labels is not None:
        right = int((probabilities.argmax(axis=1) == labels).sum())
        print(f"accuracy  {right / count:.4f}  ({right} of {count})\n")


def _prediction_table(probabilities: Any, labels: Any, rows: Any, shown: int) -> str:
    header = ["row", "prediction", "probability", "second", "probability"]
    lines = []
    for position, scores in enumerate(probabilities[:shown]):
        row = position if rows is None else rows[position]
        first, second = (-scores).argsort(kind="stable")[:2]
        line = [row, first, f"{scores[first]:.4f}", second, f"{scores[second]:.4f}"]
        if labels is not None:
            line += [labels[position], "" if labels[position] == first else "wrong"]
        lines.append(line)
    if labels is not None:
        header += ["label", ""]
    return table(header, lines, right=range(len(header)))
