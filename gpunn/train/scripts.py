"""Where the jobs that are scripts are found: examples/ in a checkout, or inside the wheel.

Scripts of one's own join them through the environment: ``GPUNN_JOBS`` names scripts, or folders of
scripts, separated as in ``PATH``.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from gpunn.text import known
from gpunn.train.job import Job
from gpunn.train.jobs import JOBS

_DEFINES_A_JOB = re.compile(rb"^JOB\s*(:[^=\n]+)?=", re.MULTILINE)


def examples_folder() -> Path | None:
    """The scripts' folder: ``gpunn/_examples`` if installed, else ``examples``; None without."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_examples", package.parent / "examples"):
        if folder.is_dir():
            return folder
    return None


@functools.cache
def script_paths() -> dict[str, Path]:
    """The scripts that define a job, by its name: the gallery's, then those of ``GPUNN_JOBS``.

    A later script of the same name wins. Raises FileNotFoundError for a path in ``GPUNN_JOBS`` that
    is not there, ValueError for a script there with the name of a job that is no script.
    """
    folder = examples_folder()
    paths = sorted(folder.glob("*.py")) if folder else []
    for named in filter(None, os.environ.get("GPUNN_JOBS", "").split(os.pathsep)):
        place = Path(named).resolve()
        if not place.exists():
            raise FileNotFoundError(f"GPUNN_JOBS names {named}, which does not exist")
        paths += sorted(place.glob("*.py")) if place.is_dir() else [place]
    found = {path.stem: path for path in paths if _DEFINES_A_JOB.search(path.read_bytes())}
    for name in JOBS:
        if name in found:
            raise ValueError(f"{found[name]}: there is a job {name!r} already; rename the script")
    return found


def job_names() -> list[str]:
    """The names of all jobs of `gpunn train`."""
    return [*JOBS, *script_paths()]


def job_lines() -> dict[str, str]:
    """Of each job a line for people. No script is run for it: it is the first of its docstring."""
    lines = {name: f"{job.title} by a multilayer perceptron" for name, job in JOBS.items()}
    for name, path in script_paths().items():
        try:
            said = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        except (SyntaxError, ValueError) as error:
            said = f"cannot be read: {error}"
        lines[name] = said.partition("\n")[0].rstrip(".")
    return lines


@functools.cache
def _load(path: Path) -> Job:
    name = f"gpunn_example_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    sys.path.insert(0, str(path.parent))  # as when Python is given the script
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    job: Any = getattr(module, "JOB", None)
    if not isinstance(job, Job):
        raise ValueError(f"{path}: JOB is no gpunn.train.Job but {job!r}")
    if job.name != path.stem:
        raise ValueError(
            f"{path}: the job must be named {path.stem!r} as its script, not {job.name!r}"
        )
    return job


def find_job(name: str) -> Any:
    """The job of that name: a `ClassificationJob` or a `Job`.

    ValueError, naming those there are, if there is none.
    """
    if name in JOBS:
        return JOBS[name]
    paths = script_paths()
    if name not in paths:
        raise ValueError(f"there is no training job {name!r}{known(name, job_names())}")
    return _load(paths[name])
