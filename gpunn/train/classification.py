"""Classification jobs: train the model and write its run folder; go on with an interrupted run."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpunn
from gpunn import nn, optim
from gpunn.autograd.random import manual_seed
from gpunn.data import DataLoader, Normalizer, RandomAffine, Split
from gpunn.device import Device
from gpunn.io import write_text
from gpunn.train import run_folder as files
from gpunn.train.blas_threads import one_blas_thread
from gpunn.train.callbacks import EarlyStopping, LearningRateScheduler
from gpunn.train.checkpoint import Checkpoints
from gpunn.train.configuration import config_from_dict, config_to_dict, config_to_toml
from gpunn.train.history import History
from gpunn.train.jobs import JOBS, ClassificationJob
from gpunn.train.plots import confusion_matrix_figure, save_figure
from gpunn.train.ranks import as_group, placed
from gpunn.train.trained import TrainedModel
from gpunn.train.trainer import Trainer


@dataclass
class JobResult:
    """What a job gives back.

    Attributes
    ----------
    folder : the run folder; trained : the model; history : one record an epoch
    metrics : test_accuracy, test_loss, validation_accuracy, validation_loss, test_samples, epochs,
        best_epoch, seconds, interrupted
    confusion : counts [true, predicted] on the test data
    notes : what could not be written, and why
    """

    folder: Path
    trained: TrainedModel
    history: History
    metrics: dict[str, Any]
    confusion: np.ndarray
    notes: list[str]


def run_classification(
    job: ClassificationJob,
    config: Any = None,
    output: str | os.PathLike[str] | None = None,
    verbose: bool = True,
    say: Callable[[str], None] = print,
    profile: bool = False,
) -> JobResult:
    """Train, measure on the held-out data, and write the run folder.

    Parameters
    ----------
    job : from `JOBS`
    config : its configuration, None for the defaults. The same configuration gives the same
        weights bit for bit on the same device.
    output : the run folder, which must not exist yet; None makes a new one under ``runs/``
    verbose : say what is trained and show the progress, through `say`
    profile : profile some steps, and put the tables and the trace into the run folder

    Checkpoints are written into the folder's ``checkpoints/``; `resume_classification` goes on from
    them. If the training fails before there is one besides the first, the folder is removed.

    Raises ImportError if the data's package is missing, and what `Trainer.fit` raises. Missing
    matplotlib only leaves out its files, with a note.
    """
    group = as_group("auto")
    config = placed(config or job.config(), group)
    split, test_rows = job.split(config)
    folder = files.of_rank(group, lambda: files.new_run_folder(job.name, output))
    with files.kept_if_progress(folder):
        write_text(folder / files.CONFIG, config_to_toml(config, job.name))
        return _run(job, config, folder, split, test_rows, verbose, say, profile)


def resume_classification(
    folder: str | os.PathLike[str], verbose: bool = True, say: Callable[[str], None] = print
) -> JobResult:
    """Go on with a run that was interrupted or killed; it ends as it would have.

    Parameters
    ----------
    folder : the run folder
    verbose, say : as of `run_classification`

    Raises FileNotFoundError if it has no checkpoints; ValueError if the run is complete;
    FileFormatError if its checkpoints are damaged; and what `run_classification` raises.
    """
    group = as_group("auto")
    extra = _resumable(folder) if group is None else group.on_main(lambda: _resumable(folder))
    place = files.of_rank(group, lambda: Path(folder))
    job = JOBS[extra["job"]]
    config = config_from_dict(job.config, extra["config"], f"the checkpoint in {folder}")
    config = placed(config, group)
    split, test_rows = job.split(config)
    return _run(job, config, place, split, test_rows, verbose, say)


def _resumable(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The job and the configuration of a run, from its last checkpoint."""
    extra = files.last_checkpoint(folder)["extra"]
    if extra.get("job") not in JOBS:
        raise ValueError(f"the checkpoints in {folder} are not of a job of gpunn train")
    return {name: extra[name] for name in ("job", "config")}


def _run(
    job: ClassificationJob, config: Any, folder: Path, split: Split, test_rows: np.ndarray,
    verbose: bool, say: Callable[[str], None], profile: bool = False,
) -> JobResult:  # fmt: skip
    """Train from the beginning, or from the last checkpoint in the folder, and write the rest.

    Of ranks that train together rank 0 alone speaks and writes.
    """
    group, device = as_group("auto"), Device(config.device)
    main = group is None or group.main
    verbose, profile = verbose and main, profile and main
    manual_seed(config.seed)
    model = job.model(config).to(device)
    if verbose:
        for line in describe(job, config, split, model, device):
            say(line)
    normalizer = Normalizer(per_feature=False).fit(split.train[0])
    trained = TrainedModel(job, config, model, normalizer, device)
    checkpoints = Checkpoints(
        folder / files.CHECKPOINTS,
        extra={"job": job.name, "config": config_to_dict(config)},
        advice=f"gpunn train --resume {shlex.quote(str(folder))}",
    )
    start = time.perf_counter()
    with one_blas_thread():
        history = fit(trained, split, verbose, folder if profile else False, checkpoints)
    seconds = max(time.perf_counter() - start, sum(record["seconds"] for record in history))
    metrics, confusion = measure(trained, split, history, seconds)
    if not main:
        return JobResult(folder, trained, history, metrics, confusion, [])
    trained.save(folder)
    notes = write_results(folder, trained, history, metrics, confusion)
    x, y = split.test
    write_predictions(folder / files.PREDICTIONS, trained.probabilities(x), y, test_rows)
    return JobResult(folder, trained, history, metrics, confusion, notes)


def describe(
    job: ClassificationJob, config: Any, split: Split, model: Any, device: Device
) -> list[str]:
    """A few lines on what is about to be trained."""
    train, validation, test = (len(part[1]) for part in split)
    shape = " x ".join(map(str, job.shape))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = " - ".join(map(str, (np.prod(job.shape), *config.hidden, job.classes)))
    changed = ", changed a little at random in each epoch" if config.augments else ""
    return [
        f"{job.title}: {train + validation + test:,} {job.what} of {shape}, {job.classes} classes",
        f"  device      {device}",
        f"  data        {train:,} to train on{changed}; {validation} for validation, "
        f"{test} to test",
        f"  model       {widths}, {config.activation}, dropout {config.dropout:g}: "
        f"{parameters:,} parameters",
        f"  training    AdamW, one-cycle learning rate up to {config.learning_rate:g}, batches of "
        f"{config.batch_size}, at most {config.epochs} epochs"
        + ("" if config.precision == "fp32" else f", {config.precision}"),
    ]


def fit(
    trained: TrainedModel,
    split: Split,
    verbose: bool,
    profile: Any = False,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train `trained.model` on the split by its configuration; `profile` as of the Trainer.

    With `checkpoints` it goes on from the last of them, if there is one.
    """
    config, scale = trained.config, trained.normalizer.transform
    x, y = split.train
    transform = None
    if config.augments:
        # The background of a normalised image is not 0 but the normalised 0.
        paper = float(scale(np.zeros((1, 1), np.float32))[0, 0])
        transform = RandomAffine(
            trained.job.shape,  # type: ignore[arg-type]  # its own check says what is wrong
            config.rotation, config.scale, config.shift, fill=paper
        )
    loader = DataLoader(
        (scale(x), y),
        config.batch_size,
        shuffle=True,
        seed=config.seed,
        transform=transform,
        device=trained.device,
    )
    trainer = Trainer(
        trained.model,
        nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        lambda parameters: optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        ),
        metrics=["accuracy"],
        callbacks=[EarlyStopping("validation_loss", patience=config.patience)],
        device=trained.device,
        seed=config.seed,
        scheduler=lambda optimizer: LearningRateScheduler(
            optim.lr_scheduler.OneCycleLR(
                optimizer, config.learning_rate, total_steps=config.epochs * len(loader)
            ),
            every="batch",
        ),
        precision=config.precision,
        profile=profile,
    )
    validation = (scale(split.validation[0]), split.validation[1])
    return trainer.fit(
        loader,
        validation,
        epochs=config.epochs,
        verbose=verbose,
        checkpoint=checkpoints,
        resume=None if checkpoints is None else "auto",
    )


def measure(
    trained: TrainedModel, split: Split, history: History, seconds: float
) -> tuple[dict[str, Any], np.ndarray]:
    """The final figures for ``metrics.json``, and the confusion matrix of the test data."""
    validation, test = trained.evaluate(*split.validation), trained.evaluate(*split.test)
    metrics = {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "validation_accuracy": validation["accuracy"],
        "validation_loss": validation["loss"],
        "test_samples": len(split.test[1]),
        "epochs": len(history),
        "epochs_at_most": trained.config.epochs,
        "best_epoch": history.best_epoch,
        "seconds": round(seconds, 3),
        "interrupted": history.interrupted,
        "device": str(trained.device),
        "gpunn": gpunn.__version__,
    }
    return metrics, test["confusion_matrix"]


def write_results(
    folder: Path,
    trained: TrainedModel,
    history: History,
    metrics: dict[str, Any],
    confusion: np.ndarray,
) -> list[str]:
    """Write measurements and pictures; returns notes on what was left out."""
    files.write_json(folder / files.METRICS, metrics)
    history.to_csv(folder / files.HISTORY)
    job, notes = trained.job, []
    try:
        figure = confusion_matrix_figure(confusion, title=f"{job.title}, test {job.what}")
        save_figure(figure, folder / files.CONFUSION)
        if len(history):
            title = f"{job.title}: how it learned"
            history.plot(folder / files.CURVES, title, _note(trained.config))
    except ImportError as error:
        notes.append(str(error))
    return notes


def _note(config: Any) -> str:
    """Why the training curve may lie on the wrong side of the validation curve."""
    parts = ["with dropout"] if config.dropout else []
    parts += ["on images changed at random"] if config.augments else []
    return f"training is measured {' and '.join(parts)}" if parts else ""


def write_predictions(
    path: Path,
    probabilities: np.ndarray,
    labels: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    every_class: bool = False,
) -> None:
    """Write predictions as CSV: row, label (if known), prediction, probability [, p0, p1, …].

    `rows` are the numbers of the samples, from 0; by default their positions.
    """
    predicted = probabilities.argmax(axis=1)
    columns = ["row", *(["label"] if labels is not None else []), "prediction", "probability"]
    if every_class:
        columns += [f"p{number}" for number in range(probabilities.shape[1])]
    lines = [",".join(columns)]
    for position, scores in enumerate(probabilities):
        cells = [str(position if rows is None else rows[position])]
        if labels is not None:
            cells.append(str(labels[position]))
        cells += [str(predicted[position]), f"{scores[predicted[position]]:.6g}"]
        if every_class:
            cells += [f"{score:.6g}" for score in scores]
        lines.append(",".join(cells))
    write_text(path, "\n".join(lines) + "\n")
