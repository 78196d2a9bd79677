"""Run folders: where a training job keeps its model, measurements, pictures and configuration."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import os
import platform
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

import gpunn
from gpunn.io import write_text

MODEL, NORMALIZER = "model.safetensors", "normalizer.safetensors"
CONFIG, METRICS, HISTORY = "config.toml", "metrics.json", "history.csv"
CURVES, CONFUSION, PREDICTIONS = "curves.png", "confusion_matrix.png", "test_predictions.csv"


def new_run_folder(job: str, output: str | os.PathLike | None = None) -> Path:
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


def config_to_toml(config: Any, job: str) -> str:
    """A configuration (a dataclass of numbers, texts, booleans and tuples) as TOML.

    Fields that are None are left out, which is how TOML says it. ImportError without tomli-w.
    """
    try:
        import tomli_w
    except ImportError as error:
        raise ImportError(
            f"{CONFIG} needs tomli-w, which is not installed; run: pip install tomli-w"
        ) from error
    values = {name: value for name, value in config_to_dict(config).items() if value is not None}
    head = (
        f"# gpunn {gpunn.__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}\n"
        f"# Train the same model again: gpunn train --config <this file>\n"
    )
    return head + tomli_w.dumps({"job": job, job: values})


def config_to_dict(config: Any) -> dict[str, Any]:
    """The fields of a configuration, tuples as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def read_toml(path: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """The job's name and its settings from a configuration file.

    FileNotFoundError; ValueError if it is not TOML, or has no ``job``.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    job = document.get("job")
    if not isinstance(job, str):
        raise ValueError(f'{path} does not name its job; write for example: job = "digits"')
    extra = set(document) - {"job", job}
    if extra or not isinstance(document.get(job, {}), dict):
        raise ValueError(f"{path}: expected 'job' and the table [{job}], got also {sorted(extra)}")
    return job, document.get(job, {})


def config_from_dict(kind: type, values: dict[str, Any], where: str = "configuration") -> Any:
    """A configuration of dataclass `kind` from settings; fields left out take their defaults.

    ValueError for a name that it does not have (with the nearest that it has), or a value of
    another type.
    """
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(hints)}"
            raise ValueError(f"{where}: there is no setting {name!r}{hint}")
        arguments[name] = _converted(name, value, hints[name], where)
    return kind(**arguments)


def _converted(name: str, value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # "int | None": TOML has no null, so None is never read
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, (list, tuple)):
            return tuple(_converted(name, part, item, where) for part in value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    kind = "list" if typing.get_origin(hint) is tuple else hint.__name__
    raise ValueError(f"{where}: {name} must be of type {kind}, got {value!r}")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file. ValueError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
