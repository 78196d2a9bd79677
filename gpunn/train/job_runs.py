"""Running jobs: train, measure, and write the run folder; go on with a run; measure one again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gpunn
from gpunn.device import as_device
from gpunn.io import write_text
from gpunn.train import run_folder as files
from gpunn.train.blas_threads import one_blas_thread
from gpunn.train.classification import JobResult, resume_classification, run_classification
from gpunn.train.configuration import build, config_to_dict, config_to_toml, read_config
from gpunn.train.job import Job, Outcome
from gpunn.train.jobs import ClassificationJob
from gpunn.train.run import Run, RunInterrupted
from gpunn.train.scripts import find_job

Say = Callable[[str], None]


@dataclass
class RunResult:
    """What a run of a `Job` gives back.

    Attributes
    ----------
    folder : the run folder; job, config : what was run
    outcome : what was measured; None if the run was interrupted
    metrics : what ``metrics.json`` holds
    notes : what could not be written, and why
    """

    folder: Path
    job: Job
    config: Any
    outcome: Outcome | None
    metrics: dict[str, Any]
    notes: list[str]


def run_job(
    job: Job | ClassificationJob,
    config: Any = None,
    output: str | os.PathLike[str] | None = None,
    verbose: bool = True,
    say: Say = print,
    profile: bool = False,
) -> RunResult | JobResult:
    """Train, measure on the held-out data, and write the run folder.

    Parameters
    ----------
    job : from `find_job`, or one of your own
    config : its configuration, None for the defaults. The same configuration gives the same
        weights bit for bit on the same device.
    output : the run folder, which must not exist yet; None makes a new one under ``runs/``
    verbose : say what is trained and show the progress, through `say`
    profile : profile some steps, and put the tables and the trace into the run folder

    If the training fails before there is a checkpoint besides the first, the folder is removed.
    Raises ImportError if the data's package is missing, and what `Trainer.fit` raises. Missing
    matplotlib only leaves out its files, with a note.
    """
    if isinstance(job, ClassificationJob):
        return run_classification(job, config, output, verbose, say, profile)
    config = _placed(config or job.config())
    folder = files.new_run_folder(job.name, output)
    try:
        write_text(folder / files.CONFIG, config_to_toml(config, job.name))
        return _run(Run(job, config, folder, verbose, say, profile))
    except BaseException as error:
        if not files.has_progress(folder):
            shutil.rmtree(folder)
            notes = getattr(error, "__notes__", [])  # of how to go on from what is gone now
            notes[:] = [note for note in notes if str(folder) not in note]
        raise


def resume_job(
    folder: str | os.PathLike[str], verbose: bool = True, say: Say = print
) -> RunResult | JobResult:
    """Go on with a run of `run_job` that was interrupted or killed; it ends as it would have.

    Raises FileNotFoundError if it is no run folder; ValueError if the run is complete;
    FileFormatError if its checkpoints are damaged; and what `run_job` raises.
    """
    job = job_of(folder)
    if not isinstance(job, Job):
        return resume_classification(folder, verbose, say)
    files.refuse_complete(Path(folder))
    return _run(opened(folder, verbose=verbose, say=say), resumed=True)


def evaluate_run(folder: str | os.PathLike[str], device: Any = None) -> Outcome:
    """Measure a complete run of a `Job` again, from the files in its folder; nothing is written.

    Raises as `opened`, and FileNotFoundError if the run is not complete.
    """
    run = opened(folder, device, verbose=False)
    run.keeps = False
    with one_blas_thread():
        return run.job.evaluate(run)


def opened(
    folder: str | os.PathLike[str], device: Any = None, verbose: bool = True, say: Say = print
) -> Run:
    """The run in a folder, as `Job.evaluate` and `Job.predict` take it.

    `device`: another one than it was trained on. FileNotFoundError if it is no run folder;
    ValueError if it is not of a `Job`; ConfigurationError if its configuration is damaged.
    """
    job = job_of(folder)
    if not isinstance(job, Job):
        raise ValueError(f"{folder} is a run of {'no job' if job is None else job.name}")
    file = read_config(folder)
    config = build(job.config, [file.layer()], file.problems)
    if device is not None:
        config = _placed(replace(config, device=str(device)))
    return Run(job, config, Path(folder), verbose, say)


def job_of(folder: str | os.PathLike[str]) -> Any:
    """The job that a run folder is of; None if its configuration does not say."""
    if not (Path(folder) / files.CONFIG).is_file():
        return None
    return find_job(read_config(folder).job)


def _placed(config: Any) -> Any:
    """The configuration with the device that "auto" stands for here."""
    named = None if config.device == "auto" else config.device
    return replace(config, device=str(as_device(named)))


def _run(run: Run, resumed: bool = False) -> RunResult:
    job, started, worked = run.job, time.perf_counter(), time.process_time()
    outcome = None
    about = {"job": job.name, "interrupted": True, "device": str(run.device)}
    run.say(f"{job.title}\n  device      {run.device}\n  data        {job.data}")
    try:
        with one_blas_thread():
            job.train(run)
            run.begin()
            outcome = job.evaluate(run)
    except (RunInterrupted, KeyboardInterrupt):
        if not files.has_progress(run.folder):
            raise KeyboardInterrupt from None
    else:
        seconds = max(time.perf_counter() - started, run.seconds)
        about |= {"interrupted": False, **asdict(outcome), "seconds": round(seconds, 3)}
        if not resumed:
            about["cpu_seconds"] = round(time.process_time() - worked, 3)
    about["gpunn"] = gpunn.__version__
    files.write_json(run.folder / files.METRICS, about)
    return RunResult(run.folder, job, run.config, outcome, about, run.notes)


def as_dict(result: RunResult) -> dict[str, Any]:
    """A result for programs."""
    return {
        "job": result.job.name,
        "folder": str(result.folder),
        "metrics": result.metrics,
        "config": config_to_dict(result.config),
        "notes": result.notes,
    }
