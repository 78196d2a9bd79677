"""Running jobs: train, measure, and write the run folder; go on with a run; measure one again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gpunn
from gpunn.distributed import Group
from gpunn.io import FileFormatError, write_text
from gpunn.train import run_folder as files
from gpunn.train.blas_threads import one_blas_thread
from gpunn.train.checkpoint import numbered
from gpunn.train.checkpoint_file import CheckpointError
from gpunn.train.checkpointing import locked
from gpunn.train.classification import JobResult, resume_classification, run_classification
from gpunn.train.configuration import (
    build,
    config_from_dict,
    config_to_dict,
    config_to_toml,
    read_config,
)
from gpunn.train.job import Job, Outcome
from gpunn.train.jobs import ClassificationJob
from gpunn.train.ranks import as_group, by_itself, placed
from gpunn.train.run import Run, RunInterrupted
from gpunn.train.running import TrainingError
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
    group = as_group("auto")
    config = placed(config or job.config(), group)
    folder = files.of_rank(group, lambda: files.new_run_folder(job.name, output))
    with files.kept_if_progress(folder):
        write_text(folder / files.CONFIG, config_to_toml(config, job.name))
        main = group is None or group.main
        run = Run(job, config, folder, verbose and main, say, profile and main)
        return _run(run, group)


def resume_job(
    folder: str | os.PathLike[str], verbose: bool = True, say: Say = print
) -> RunResult | JobResult:
    """Go on with a run of `run_job` that was interrupted or killed; it ends as it would have.

    A run that was killed before its first checkpoint begins anew; one whose training is complete
    is only measured. Raises FileNotFoundError if it is no run folder; ValueError if the run is
    complete; ConfigurationError if its settings are damaged, or are none of the job by now;
    FileFormatError if its checkpoints are damaged; BlockingIOError if another process is at work
    on it; and what `run_job` raises.
    """
    group = as_group("auto")
    found = _resumable(folder) if group is None else group.on_main(lambda: _resumable(folder))
    if not found:
        return resume_classification(folder, verbose, say)
    place = files.of_rank(group, lambda: Path(folder))
    job = find_job(found["job"])
    config = placed(config_from_dict(job.config, found["config"], str(folder)), group)
    main = group is None or group.main
    return _run(Run(job, config, place, verbose and main, say), group, resumed=True)


def _resumable(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The name and the configuration of the `Job` that a run is of; {} for a classification."""
    job = job_of(folder)
    if not isinstance(job, Job):
        checkpoints = Path(folder) / files.CHECKPOINTS
        if job is None and checkpoints.is_dir() and not numbered(checkpoints):
            raise FileNotFoundError(
                f"{folder} has no {files.CONFIG}, which says what to go on with; begin a new run"
            )
        return {}
    files.refuse_complete(Path(folder))
    return {"job": job.name, "config": config_to_dict(opened(folder).config)}


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
        config = placed(replace(config, device=str(device)), None)
    return Run(job, config, Path(folder), verbose, say)


def job_of(folder: str | os.PathLike[str]) -> Any:
    """The job that a run folder is of; None if there is no such folder with a configuration.

    ConfigurationError if that is damaged; ValueError for a job that there is not.
    """
    if not (Path(folder) / files.CONFIG).is_file():
        return None
    name = read_config(folder).job
    try:
        return find_job(name)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / files.CONFIG}: {error}") from None


def _run(run: Run, group: Group | None, resumed: bool = False) -> RunResult:
    """Train, unless that was done, and measure; an interruption or an error says how to go on."""
    handle = locked(run.folder, f"another process is at work on the run in {run.folder}")
    try:
        with one_blas_thread():
            return _trained_and_measured(run, group, resumed)
    except (RunInterrupted, KeyboardInterrupt) as error:
        kept = files.has_progress(run.folder)
        if group is not None and isinstance(error, RunInterrupted):  # to all after the same step
            kept = group.share(kept)
        if not kept:
            raise KeyboardInterrupt from None
        about = _about(run) | (_trained(run) or {})
        files.write_json(run.folder / files.METRICS, about)
        return RunResult(run.folder, run.job, run.config, None, about, run.notes)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            error.add_note('What the examples need: pip install "gpunn[gallery]"')
        # Of a training that diverges, or with damaged or foreign checkpoints, it comes to the same.
        again = not isinstance(error, (TrainingError, CheckpointError, FileFormatError))
        told = any(str(run.folder) in note for note in getattr(error, "__notes__", ()))
        if again and not told and files.has_progress(run.folder):
            error.add_note(f"What was trained is kept; go on with {run.advice}.")
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _trained_and_measured(run: Run, group: Group | None, resumed: bool) -> RunResult:
    job, started, worked = run.job, time.perf_counter(), time.process_time()
    run.say(f"{job.title}\n  device      {run.device}\n  data        {job.data}")
    before = _trained(run) if resumed else None
    if group is not None:
        before = group.share(before)
    if before is None:
        job.train(run)
        if run.profiles:
            run.note(f"nothing was profiled: {job.name} trains in a loop of its own")
        seconds = max(time.perf_counter() - started, run.seconds)
        kept = sorted(path.name for path in run.folder.iterdir() if path.is_file())
        before = {"trained": kept, "seconds": round(seconds, 3), "notes": list(run.notes)}
        files.write_json(run.folder / files.METRICS, _about(run) | before)
    else:
        run.say("nothing is left to train; it is measured")
        run.notes += before["notes"]
    if group is not None and not group.main:  # rank 0 measures
        about = _about(run) | {"interrupted": False}
        return RunResult(run.folder, job, run.config, None, about, [])
    started = time.perf_counter()
    run.begin()
    with by_itself():
        outcome = job.evaluate(run)
    seconds = before["seconds"] + time.perf_counter() - started
    about = _about(run) | {"interrupted": False, **asdict(outcome), "seconds": round(seconds, 3)}
    if not resumed:
        about["cpu_seconds"] = round(time.process_time() - worked, 3)
    files.write_json(run.folder / files.METRICS, about)
    return RunResult(run.folder, job, run.config, outcome, about, run.notes)


def _about(run: Run) -> dict[str, Any]:
    """What the measurements of a run say of it while there are none."""
    return {"job": run.job.name, "interrupted": True, "device": str(run.device),
            "gpunn": gpunn.__version__}  # fmt: skip


def _trained(run: Run) -> dict[str, Any] | None:
    """Of a run that was trained and not measured: its files, seconds and notes; else None."""
    if not (run.folder / files.METRICS).is_file():
        return None
    metrics = files.read_json(run.folder / files.METRICS)
    kept, seconds, notes = (metrics.get(name) for name in ("trained", "seconds", "notes"))
    if not isinstance(seconds, (int, float)):
        return None
    if not isinstance(kept, list) or not isinstance(notes, list):
        return None
    there = all((run.folder / str(name)).is_file() for name in kept)
    return {"trained": kept, "seconds": seconds, "notes": notes} if there else None


def as_dict(result: RunResult) -> dict[str, Any]:
    """A result for programs."""
    return {
        "job": result.job.name,
        "folder": str(result.folder),
        "metrics": result.metrics,
        "config": config_to_dict(result.config),
        "notes": result.notes,
    }
