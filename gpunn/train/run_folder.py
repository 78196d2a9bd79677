"""Run folders: where a training job keeps its model, measurements, pictures and configuration."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpunn.io import write_text
from gpunn.text import plain
from gpunn.train.checkpoint import newest, numbered

MODEL, NORMALIZER = "model.safetensors", "normalizer.safetensors"
CONFIG, METRICS, HISTORY = "config.toml", "metrics.json", "history.csv"
CURVES, CONFUSION, PREDICTIONS = "curves.png", "confusion_matrix.png", "test_predictions.csv"
CHECKPOINTS = "checkpoints"  # a folder


def new_run_folder(job: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Make a new folder: `output` if given, else ``runs/<job>-YYYYmmdd-HHMMSS[-n]``.

    FileExistsError if `output` is there and not an empty folder: no run is ever overwritten.
    """
    if output is not None:
        folder = Path(output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"{folder} exists already; choose a new folder, so that no run is overwritten"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    number = 1
    while True:  # another process may make the same name between a look and mkdir: mkdir decides
        folder = Path("runs") / f"{job}-{stamp}{'' if number == 1 else f'-{number}'}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def of_rank(group: Any, make: Callable[[], Path]) -> Path:
    """What `make` gives, on rank 0 of a group; the other ranks get a folder of their own.

    It is removed when their process ends: they can write what rank 0 writes, and nobody sees it.
    Errors of `make` are raised on all ranks. Without a group it is `make` alone.
    """
    if group is None:
        return make()
    made = group.on_main(lambda: str(make()))
    if not group.main:
        _private.append(tempfile.TemporaryDirectory(prefix="gpunn-rank-"))
        made = _private[-1].name
    return Path(made)


_private: list[Any] = []  # until the process ends


def last_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest checkpoint of an unfinished run, as `checkpoint_file.read` gives it.

    FileNotFoundError if there is no such run or checkpoint; ValueError if the run is complete;
    FileFormatError if no checkpoint can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder: it does not exist")
    refuse_complete(folder)
    if not (folder / CHECKPOINTS).is_dir():
        raise FileNotFoundError(f"{folder} has no checkpoints to go on from")
    return newest(folder / CHECKPOINTS)[1]


def refuse_complete(folder: Path) -> None:
    """ValueError if the run is complete, so that there is nothing to go on with."""
    if not (folder / METRICS).is_file():
        return
    metrics = read_json(folder / METRICS)
    if not metrics.get("interrupted"):
        epochs = f" ({metrics['epochs']} epochs)" if "epochs" in metrics else ""
        raise ValueError(f"the run in {folder} is complete{epochs}; there is nothing to go on with")


def has_progress(folder: Path) -> bool:
    """Whether a run has a checkpoint besides the one before its first step, or was trained."""
    checkpoints = folder / CHECKPOINTS
    if (folder / METRICS).is_file():
        return True
    if not checkpoints.is_dir():
        return False
    places = [checkpoints, *(place for place in checkpoints.iterdir() if place.is_dir())]
    return any(number > 1 for place in places for number, _ in numbered(place))


@contextlib.contextmanager
def kept_if_progress(folder: Path) -> Iterator[None]:
    """Within, a new run; if it fails without progress to go on from, the folder is removed."""
    try:
        yield
    except BaseException as error:
        if not has_progress(folder):
            shutil.rmtree(folder)
            notes = getattr(error, "__notes__", [])  # of how to go on from what is gone now
            notes[:] = [note for note in notes if str(folder) not in note]
        raise


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON; NaN and infinity, which JSON has not, as null."""
    text = json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file. ValueError if it is damaged, or no dictionary."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no measurements of a run: it is no JSON object")
    return values
