"""``gpunn evaluate``: measure the model of a run folder on labelled data."""

from __future__ import annotations

import argparse
from typing import Any

from gpunn.cli.arguments import add_command, add_json, add_quiet, only_result, print_json
from gpunn.cli.predict import common_arguments, samples_of
from gpunn.text import aligned, table

DESCRIPTION = """\
Measure the model of a run folder on labelled data. Of digits: the accuracy and the cross-entropy,
of each class how many of its samples were found (recall), how many of those taken for it were right
(precision), and what its samples were taken for. Of other jobs: what the training measured at its
end, on the data that it held out, beside the baselines.
"""

EXAMPLES = """\
DATA is a file with labels: .npz (arrays x and y) or .csv (a column named label, or the last one
where there is no header); without DATA, the samples that were held out of the run.

examples:
  gpunn evaluate runs/digits-…
  gpunn evaluate runs/digits-… labelled.npz
  gpunn evaluate runs/digits-… --at-least 0.97 --quiet || echo "not good enough"
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = add_command(
        subparsers,
        "evaluate",
        help="measure the model of a run folder on labelled data",
        description=DESCRIPTION,
        examples=EXAMPLES,
        no="worse than --at-least",
    )
    common_arguments(parser)
    add = parser.add_argument
    add("data", metavar="DATA", nargs="?", help="a labelled file (default: the held-out samples)")
    add("--at-least", type=float, metavar="X",
        help="exit with 1 if the accuracy, or what the job measures, is worse than X: below it, or "
        "above it where lower is better")  # fmt: skip
    add_json(parser)
    add_quiet(parser, "no table of classes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 0, or 1 if the accuracy is below what was asked for."""
    from gpunn.train import Job, TrainedModel, job_of

    if isinstance(job_of(args.folder), Job):
        from gpunn.cli.outcome import evaluation

        with only_result(args.json):
            measured, text, enough = evaluation(args)
        if args.json:
            print_json(measured)
        else:
            print(text)
        return 0 if enough else 1
    if args.at_least is not None and not 0 <= args.at_least <= 1:
        raise ValueError(f"--at-least is {args.at_least:g}; an accuracy lies between 0 and 1")
    with only_result(args.json):
        trained = TrainedModel.load(args.folder, args.device)
        x, y, _ = samples_of(trained, args.data, need_labels=True)
        result = trained.evaluate(x, y)
    classes = by_class(result["confusion_matrix"])
    if args.json:
        print_json({"folder": args.folder, "data": args.data, "samples": len(y),
                    **result, "classes": classes})  # fmt: skip
    else:
        if not args.quiet:
            print(class_table(classes) + "\n")
        right = sum(one["right"] for one in classes)
        accuracy = f"{result['accuracy']:.4f}  ({right} of {len(y)})"
        rows = [("accuracy", accuracy), ("cross-entropy", f"{result['loss']:.4f}")]
        print(aligned(rows, indent=""))
    return 1 if args.at_least is not None and result["accuracy"] < args.at_least else 0


def by_class(counts: Any) -> list[dict[str, Any]]:
    """Of each class its samples, the right ones, recall, precision, F1, and what it was taken for.

    `counts` is the confusion matrix [true, predicted]. A ratio without samples is None.
    """
    found = []
    for number, row in enumerate(counts):
        samples, taken, right = int(row.sum()), int(counts[:, number].sum()), int(row[number])
        wrong = {other: int(count) for other, count in enumerate(row) if count and other != number}
        found.append({
            "class": number,
            "samples": samples,
            "right": right,
            "recall": right / samples if samples else None,
            "precision": right / taken if taken else None,
            "f1": 2 * right / (samples + taken) if samples + taken else None,
            "taken_for": dict(sorted(wrong.items(), key=lambda item: item[::-1], reverse=True)),
        })  # fmt: skip
    return found


def class_table(classes: list[dict[str, Any]]) -> str:
    """The classes as text."""
    rows = [
        (
            one["class"],
            one["samples"],
            one["right"],
            *("-" if one[name] is None else f"{one[name]:.4f}"
              for name in ("recall", "precision", "f1")),
            ", ".join(f"{number} ({count})" for number, count in one["taken_for"].items()),
        )
        for one in classes
    ]  # fmt: skip
    headers = ["class", "samples", "right", "recall", "precision", "F1", "taken for"]
    return table(headers, rows, right=range(6))
