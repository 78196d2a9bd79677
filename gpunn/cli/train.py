"""``gpunn train``: train a ready-made job and write a run folder."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import Any

from gpunn.text import aligned

DESCRIPTION = """\
Train a network on real data: a progress bar with loss and accuracy, early stopping, and a run
folder with the model (safetensors), the history (CSV), the curves and the confusion matrix (PNG)
and the configuration that reproduces it (TOML).
"""

EXAMPLES = """\
examples:
  gpunn train digits                                train on handwritten digits (seconds)
  gpunn train digits --epochs 5 --limit 300         a quick look
  gpunn train digits --hidden 512 256 --seed 3      another network, another split
  gpunn train --config runs/digits-…/config.toml    the same model again, bit for bit
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on real data and write a run folder",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", help="the job to train; known: digits")
    parser.add_argument("--config", metavar="FILE", help="settings from a run's config.toml")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1 or emulator (default: a GPU if one is usable)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs at most")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples a step")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="its highest value")
    parser.add_argument(
        "--hidden", type=int, nargs="+", metavar="N", help="widths of the hidden layers"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is random")
    parser.add_argument(
        "--precision", choices=["fp32", "tf32", "bf16", "fp16"], help="of products (default: fp32)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="profile some steps; tables and trace in the folder"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only N samples")
    parser.add_argument(
        "--output", metavar="DIR", help="the run folder, new (default: runs/<job>-<time>)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; returns 0, or 130 if it was interrupted (what was trained is kept)."""
    from gpunn.train import find_job, run_job
    from gpunn.train.run_folder import config_from_dict, read_toml

    name, settings = args.job, {}
    if args.config is not None:
        name, settings = read_toml(args.config)
        if args.job not in (None, name):
            raise ValueError(f"{args.config} is of the job {name!r}, not {args.job!r}")
    if name is None:
        raise ValueError("say which job to train, for example: gpunn train digits")
    job = find_job(name)
    config = job.configure(
        config_from_dict(job.config, settings, args.config or "configuration"),
        device=args.device,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        hidden=None if args.hidden is None else tuple(args.hidden),
        seed=args.seed,
        limit=args.limit,
        precision=args.precision,
    )
    result = run_job(job, config, args.output, verbose=not args.quiet, profile=args.profile)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(summary(result), flush=True)
    return 130 if result.metrics["interrupted"] else 0


def summary(result: Any) -> str:
    """The closing table and what to try next."""
    from gpunn.train import run_folder as files

    metrics, folder = result.metrics, result.folder
    count = metrics["test_samples"]
    right = round(metrics["test_accuracy"] * count)
    best = metrics["best_epoch"]
    epochs = f"{metrics['epochs']} of at most {metrics['epochs_at_most']}"
    if metrics["interrupted"]:
        epochs += ", interrupted"
    if best is not None:
        epochs += f"; the model is that of epoch {best}"
    table = aligned(
        [
            ("test accuracy", f"{metrics['test_accuracy']:.4f}  ({right} of {count})"),
            ("validation accuracy", f"{metrics['validation_accuracy']:.4f}"),
            ("test loss", f"{metrics['test_loss']:.4f}"),
            ("epochs", epochs),
            ("time", f"{metrics['seconds']:.1f} s on {metrics['device']}"),
            ("run folder", str(folder)),
        ]
    )
    command = how_called()
    predict = f"{command} predict {quote(str(folder))} {result.trained.job.name}-test"
    steps = [(predict, "look at predictions")]
    if (folder / files.CONFIG).exists() and not metrics["interrupted"]:
        again = f"{command} train --config {quote(str(folder / files.CONFIG))}"
        steps.append((again, "train the same model again"))
    if (folder / files.CURVES).exists():
        steps.append((str(folder / files.CURVES), "see how it learned"))
    return f"\n{table}\n\ntry next:\n{aligned(steps)}"


def how_called() -> str:
    """What to type for the command: its name if the shell finds it, else the path just used."""
    called = Path(sys.argv[0])
    if called.name != "gpunn" or shutil.which("gpunn") or not called.is_file():
        return "gpunn"
    called = called.resolve()
    here = Path.cwd()
    return quote(str(called.relative_to(here) if called.is_relative_to(here) else called))
