"""``gpunn train``: train a ready-made job and write a run folder."""

from __future__ import annotations

import argparse
import shutil
import sys
import tomllib
from pathlib import Path
from shlex import quote
from typing import Any

from gpunn.cli import ranks
from gpunn.cli.arguments import (
    DEVICE,
    PRECISIONS,
    add_command,
    add_json,
    add_quiet,
    only_result,
    print_json,
)
from gpunn.text import aligned

DESCRIPTION = """\
Train a network on real data and measure it on data that it never saw, beside a baseline: a
progress bar, and a run folder with the model (safetensors), the history (CSV), pictures (PNG) and
the configuration that reproduces it (TOML).
"""

EXAMPLES = """\
Later ones win: the defaults, --config FILE, --set, the other options.

examples:
  gpunn train --list                                the jobs that there are
  gpunn train digits                                train on handwritten digits (seconds)
  gpunn train digits --epochs 5 --limit 300         a quick look
  gpunn train digits --hidden 512 256 --seed 3      another network, another split
  gpunn train digits --set weight_decay=0.1 --set "hidden=[64, 32]"
  gpunn train text --set model=lstm --set file=mine.txt
  gpunn train digits --show-config > mine.toml      every setting with its meaning and range
  gpunn train --config mine.toml --json             train by a file, the result for a program
  gpunn train --config runs/digits-…                the same model again, bit for bit
  gpunn train --resume runs/digits-…                go on with a run that was interrupted or killed
  mpirun -n 4 gpunn train digits                    train with four processes, one for each GPU
"""

# Options that are settings of the job under the same name.
_SETTINGS = ("device", "epochs", "batch_size", "learning_rate", "hidden", "seed", "precision",
             "limit")  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``gpunn``."""
    parser = add_command(
        subparsers,
        "train",
        help="train a network on real data and write a run folder",
        description=DESCRIPTION,
        examples=EXAMPLES,
        no="training failed: the loss became NaN or infinite",
        interrupted="what was trained is kept (143: by SIGTERM, likewise)",
    )
    add = parser.add_argument
    add("job", nargs="?", metavar="JOB", help="the job to train, such as digits: see --list")
    add("--list", action="store_true", help="print the jobs with a line on each, and do not train")
    add("--config", metavar="FILE", help="settings from a TOML file or a run folder")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="any setting, as in the file; may be given several times")  # fmt: skip
    add("--show-config", action="store_true",
        help="print the settings with meaning and range as TOML, and do not train")  # fmt: skip
    add("--device", help=DEVICE)
    add("--epochs", type=int, metavar="N", help="epochs at most")
    add("--batch-size", type=int, metavar="N", help="samples a step")
    add("--learning-rate", type=float, metavar="X", help="its highest value")
    add("--hidden", type=int, nargs="+", metavar="N", help="widths of the hidden layers")
    add("--seed", type=int, metavar="N", help="of everything that is random")
    add("--precision", choices=PRECISIONS, help="of products (default: fp32)")
    add("--limit", type=int, metavar="N", help="use only N samples")
    add("--profile", action="store_true", help="profile some steps; tables and trace in the folder")
    add("--output", metavar="DIR", help="the run folder, new (default: runs/<job>-<time>)")
    add("--resume", metavar="DIR", help="go on with the run in DIR; it ends as it would have")
    add_json(parser)
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; returns 0, 1 if the loss broke, 130 if interrupted (what was trained is kept)."""
    with ranks.results_of_rank_0() as main:
        return train(args, main)


def train(args: argparse.Namespace, main: bool) -> int:
    """The same in one process; `main`: whether it says what is to be noted."""
    from gpunn.train import TrainingError, resume_job, run_job
    from gpunn.train.configuration import commented_toml

    verbose = not args.quiet
    if args.list:
        return print_jobs(args)
    if args.resume is not None:
        refuse_settings(args)
    else:
        job, config = configuration(args)
        if args.show_config:
            print(commented_toml(config, job.name), end="")
            return 0
    try:
        with only_result(args.json):
            if args.resume is not None:
                result = resume_job(args.resume, verbose)
            else:
                result = run_job(job, config, args.output, verbose=verbose, profile=args.profile)
    except TrainingError as error:
        if args.debug:
            raise
        notes = getattr(error, "__notes__", ())  # where the last checkpoint before is
        return ranks.say_error("\n".join([f"gpunn train: {error}", *notes]), error, 1)
    for note in result.notes if main else ():
        print(f"note: {note}", file=sys.stderr)
    from gpunn.cli.outcome import run_summary
    from gpunn.train import RunResult
    from gpunn.train.job_runs import as_dict

    made: Any = as_json
    text: Any = summary
    if isinstance(result, RunResult):
        made, text = as_dict, run_summary
    if args.json:
        print_json(made(result))
    else:
        print(text(result), flush=True)
    return 130 if result.metrics["interrupted"] else 0


def print_jobs(args: argparse.Namespace) -> int:
    """The jobs, with a line on each."""
    from gpunn.train.scripts import job_lines

    lines = job_lines()
    if args.json:
        print_json({"jobs": [{"job": name, "about": about} for name, about in lines.items()]})
    else:
        print(aligned(list(lines.items()), indent=""))
    return 0


def refuse_settings(args: argparse.Namespace) -> None:
    """A run that goes on has its settings already; ValueError names what was given all the same."""
    names = ("job", "config", "set", "show_config", "output", "profile", *_SETTINGS)
    given = [name for name in names if getattr(args, name) not in (None, False, [])]
    if given:
        options = [name if name == "job" else f"--{name.replace('_', '-')}" for name in given]
        raise ValueError(
            f"--resume goes on with a run as it began; leave out {', '.join(options)}, or begin a "
            "new run"
        )


def configuration(args: argparse.Namespace) -> tuple[Any, Any]:
    """The job and its configuration from the file, --set and the options; all mistakes at once."""
    from gpunn.train import find_job
    from gpunn.train.configuration import ConfigurationError, Layer, Problem, build, read_config

    file = None if args.config is None else read_config(args.config)
    name: str | None = args.job or (file.job if file else None)
    if file and args.job not in (None, file.job):
        raise ValueError(f"{args.config} is of the job {file.job!r}, not {args.job!r}")
    if name is None:
        raise ValueError(
            "say which job to train, for example: gpunn train digits; gpunn train --list has all"
        )
    try:
        job = find_job(name)
    except ValueError as error:
        if file is None:
            raise
        place = f"{file.path}:{file.positions.of(('job',))}"
        raise ConfigurationError([Problem(("job",), str(error), place)]) from None
    given = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    layers = [file.layer()] if file else []
    layers += [
        Layer(overrides(args.set), lambda path: f"--set {path[0]}"),
        Layer(given, lambda path: f"--{str(path[0]).replace('_', '-')}"),
    ]
    return job, build(job.config, layers, file.problems if file else ())


def overrides(texts: list[str]) -> dict[str, Any]:
    """Settings from NAME=VALUE. A value that is not TOML is a text: activation=gelu will do."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip() and value.strip()):
            raise ValueError(f"--set {text}: write NAME=VALUE, for example --set epochs=10")
        try:
            document = tomllib.loads(f"x = {value.strip()}")
            values[name.strip()] = document["x"] if len(document) == 1 else value.strip()
        except (ValueError, RecursionError):
            values[name.strip()] = value.strip()
    return values


def as_json(result: Any) -> dict[str, Any]:
    """The result for programs: where it is, what was measured, how it was trained."""
    from gpunn.train.configuration import config_to_dict

    return {
        "job": result.trained.job.name,
        "folder": str(result.folder),
        "metrics": result.metrics,
        "config": config_to_dict(result.trained.config),
        "history": result.history.records,
        "notes": result.notes,
    }


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
    if metrics["interrupted"]:
        steps.insert(0, (f"{command} train --resume {quote(str(folder))}", "go on training"))
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
