"""Checkpoints for loops of one's own, and the parts of which those of the `Trainer` are made.

>>> save_checkpoint("run/last.safetensors", model=model, optimizer=optimizer, extra={"epoch": 3})
>>> epoch = load_checkpoint("run/last.safetensors", model=model, optimizer=optimizer)["epoch"]

`gpunn.train.resume` writes and reads them for `Trainer.fit`; what a file looks like is said in
`gpunn.train.checkpoint_file`.
"""

from __future__ import annotations

import os
import random as python_random
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gpunn
from gpunn.autograd.random import Generator, get_rng_state, set_rng_state
from gpunn.autograd.tensor import Tensor
from gpunn.device import to_device
from gpunn.io import FileFormatError
from gpunn.train import checkpoint_file
from gpunn.train.checkpoint_file import CheckpointError

_NAME = re.compile(r"checkpoint-(\d+)(-.*)?\.safetensors")


@dataclass(frozen=True)
class Checkpoints:
    """Where `Trainer.fit` keeps checkpoints and how often it writes one.

    Whatever comes first: so many epochs, steps (weight updates) or seconds since the last one. One
    is also written at the start, at the end, and at Ctrl-C.

    Parameters
    ----------
    folder : of one run alone; made if it is missing
    epochs : every so many epochs; None for not by epochs
    steps : every so many steps, also within an epoch; None for not by steps
    seconds : after so many seconds, looked at after each step (in one kernel: each launch); None
        for not by time
    keep : the last so many files stay, 1 or more. With 2 a damaged last one does no harm
    extra : values that are kept in each file, as `save_checkpoint` takes them
    advice : what to do to go on, as the end of a sentence for messages; None: the call of `fit`

    Raises ValueError for numbers below 1 (seconds: 0 or below), TypeError for what is no folder.
    """

    folder: str | os.PathLike[str]
    epochs: int | None = 1
    steps: int | None = None
    seconds: float | None = 600.0
    keep: int = 2
    extra: Mapping[str, Any] = field(default_factory=dict)
    advice: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)) or not os.fspath(self.folder):
            raise TypeError(
                f"Checkpoints: the folder is {self.folder!r}; give a path, such as 'runs/mine'"
            )
        for name in ("epochs", "steps", "keep"):
            value = getattr(self, name)
            if name != "keep" and value is None:
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
                raise ValueError(f"Checkpoints: {name} must be an integer ≥ 1, got {value!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"Checkpoints: seconds must be above 0, got {self.seconds!r}")


# ---- for loops of one's own ----------------------------------------------------------------------


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    loader: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write all that a training needs to go on exactly, whole or not at all.

    Random states (gpunn's, NumPy's and Python's global ones, and generators that the model's
    modules, the loader, its dataset or its transform hold) are always part of it.

    Parameters
    ----------
    path : the file, ``….safetensors``; its folder must be there
    model, optimizer, scheduler, scaler, loader : what has ``state_dict()``; None is left out. An
        `nn.Module` is saved with the buffers that its ``state_dict`` leaves out, and with which
        parameters are frozen.
    extra : more values: numbers, texts, None, arrays and Tensors, in dictionaries, lists, tuples

    Raises
    ------
    TypeError for what has no ``state_dict`` or cannot be held; OSError if the file cannot be
    written: then an older file at `path` is as it was.
    """
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "loader": loader}
    state: dict[str, Any] = {"gpunn": gpunn.__version__, "extra": dict(extra or {})}
    if model is not None:
        state["model"] = model_state(model)
    state |= {name: state_of(part, name) for name, part in parts.items() if part is not None}
    state["kinds"] = {name: type(part).__name__ for name, part in parts.items()}
    checkpoint_file.write(path, state | {"random": random_state(model, loader_parts(loader))})


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    loader: Any = None,
    random: bool = True,
) -> dict[str, Any]:
    """Put what `save_checkpoint` or `Trainer.fit` wrote into these objects; returns `extra`.

    Parameters
    ----------
    path : the file, or a folder of checkpoints, for the newest that can be read
    model, optimizer, scheduler, scaler, loader : what to fill; None is left alone
    random : also go on with the random numbers, for a training that is to be continued exactly

    Raises
    ------
    FileNotFoundError; FileFormatError for a damaged or foreign file; CheckpointError, naming the
    differences, if it belongs to another model or optimizer: then nothing was changed.
    """
    path = newest(path)[0] if Path(path).is_dir() else Path(path)
    state = checkpoint_file.read(path)
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "loader": loader}
    wanted = {"model": model, **parts}
    missing = [name for name, part in wanted.items() if part is not None and name not in state]
    if missing:
        raise CheckpointError(f"{path} holds no {' and no '.join(missing)}")
    problems = model_differences(state["model"], model) if model is not None else []
    kinds = state.get("kinds", {})
    problems += [
        f"the {name} is {kinds[name]} there and {type(part).__name__} here"
        for name, part in parts.items()
        if part is not None and kinds.get(name) not in (None, type(part).__name__)
    ]
    if optimizer is not None:
        problems += _optimizer_differences(state["optimizer"], optimizer)
    refuse(path, problems)
    for name in ("loader", "optimizer", "scheduler", "scaler"):  # first what may still refuse
        if (part := parts[name]) is not None:
            part.load_state_dict(state[name])
    if model is not None:
        restore_model(model, state["model"])
    if random and "random" in state:
        restore_random(state["random"], model, loader_parts(loader))
    return state.get("extra", {})


def refuse(path: str | os.PathLike[str], problems: list[str]) -> None:
    """Raise CheckpointError if a checkpoint differs from what it shall be put into."""
    if problems:
        raise CheckpointError(
            f"{path} belongs to another training: {'; '.join(problems)}. Make all as it was then, "
            "or begin a new run; load_checkpoint(path, model=…, random=False) takes the weights "
            "alone"
        )


# ---- files in a folder ---------------------------------------------------------------------------


def numbered(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(number, path) of the checkpoints of a folder, the newest first."""
    found = []
    for path in Path(folder).iterdir():
        if match := _NAME.fullmatch(path.name):
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def newest(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], list[Path]]:
    """The newest checkpoint that can be read, its content, and newer ones that are damaged.

    Warns of those, and of newer ones that the system does not let be read. FileNotFoundError if
    there is none at all; FileFormatError if none can be read.
    """
    bad: list[tuple[Path, Exception]] = []
    for _, path in numbered(folder):
        try:
            state = checkpoint_file.read(path)
        except (FileFormatError, OSError) as error:
            bad.append((path, error))
            continue
        for _, why in bad:
            warnings.warn(f"{why}; goes on from {path.name} instead", stacklevel=2)
        return path, state, [one for one, why in bad if isinstance(why, FileFormatError)]
    if bad:
        raise FileFormatError(
            f"no checkpoint in {folder} can be read: {'; '.join(str(why) for _, why in bad)}. To "
            "begin anew, use another folder"
        )
    raise FileNotFoundError(f"there is no checkpoint in {folder}")


# ---- parts ---------------------------------------------------------------------------------------


def state_of(part: Any, name: str) -> Any:
    """``part.state_dict()``. TypeError if it cannot be stored and restored."""
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        raise TypeError(
            f"checkpoint: the {name} {type(part).__name__} has no state_dict() and "
            "load_state_dict(), so a training with it cannot be continued exactly"
        )
    return part.state_dict()


def model_state(model: Any) -> dict[str, Any]:
    """Parameters and buffers, those too that ``state_dict`` leaves out, and what is frozen."""
    state = dict(state_of(model, "model"))
    frozen = [name for name, parameter in _parameters(model) if not parameter.requires_grad]
    more = {name: buffer for name, buffer in _buffers(model) if name not in state}
    return {"state": state, "more": more, "frozen": frozen}


def restore_model(model: Any, saved: Mapping[str, Any]) -> None:
    """Write what `model_state` gave into the arrays that the model has."""
    model.load_state_dict(saved["state"])
    for name, buffer in _buffers(model):
        values = saved["more"].get(name)
        if values is not None and values.shape == buffer.shape:
            buffer.detach()[...] = Tensor(to_device(values, buffer.device))
    frozen = set(saved["frozen"])
    for name, parameter in _parameters(model):
        if parameter.requires_grad == (name in frozen):
            parameter.requires_grad = name not in frozen


def _parameters(model: Any) -> Iterator[tuple[str, Any]]:
    return model.named_parameters() if hasattr(model, "named_parameters") else iter(())


def _buffers(model: Any) -> Iterator[tuple[str, Any]]:
    return model.named_buffers() if hasattr(model, "named_buffers") else iter(())


def model_differences(saved: Mapping[str, Any], model: Any) -> list[str]:
    """What differs between a saved model and this one: names, shapes, dtypes; [] if nothing does"""
    there = {name: _kind(value) for name, value in saved["state"].items()}
    here = {name: _kind(value) for name, value in state_of(model, "model").items()}
    problems = [
        f"{name} is {there[name]} there and {here[name]} here"
        for name in there
        if name in here and here[name] != there[name]
    ]
    for what, one, other in (("lacks", there, here), ("has another parameter", here, there)):
        names = [name for name in one if name not in other]
        if names:
            problems.append(f"the model here {what} {_few(names)}")
    return problems if len(problems) <= 4 else [*problems[:3], f"and {len(problems) - 3} more"]


def _optimizer_differences(saved: Mapping[str, Any], optimizer: Any) -> list[str]:
    """Groups of other sizes: the numbers of parameters there and here."""
    there = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in optimizer.param_groups]
    differ = f"the optimizer has groups of {there} parameters there and of {here} here"
    return [differ] if there != here else []


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def loader_parts(loader: Any, name: str = "the loader") -> dict[str, Any]:
    """A loader and what it draws from or calls, where generators may be held, by name."""
    found = {name: loader}
    for part in ("transform", "collate_fn"):
        found[f"{name}'s {part}"] = getattr(loader, part, None)
    while (loader := getattr(loader, "dataset", None)) is not None:  # a part of another dataset
        name += "'s dataset"
        found[name] = loader
    return found


def random_state(model: Any = None, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The global random states, and those of generators that modules or other objects hold."""
    held = {name: _generator_state(value) for name, value in _generators(model, others or {})}
    return {
        "gpunn": get_rng_state(),
        "numpy": np.random.get_state(),
        "python": python_random.getstate(),
        "held": held,
    }


def restore_random(
    state: Mapping[str, Any], model: Any = None, others: Mapping[str, Any] | None = None
) -> None:
    """Go on from `random_state`."""
    set_rng_state(state["gpunn"])
    np.random.set_state(state["numpy"])
    python_random.setstate(state["python"])
    for name, generator in _generators(model, others or {}):
        if name in state["held"]:
            _set_generator_state(generator, state["held"][name])


def _generators(model: Any, others: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Generators that the modules of the model, or other objects, have among their attributes."""
    owners = list(model.named_modules()) if hasattr(model, "named_modules") else []
    kinds = (Generator, np.random.Generator, np.random.RandomState, python_random.Random)
    for place, owner in [*owners, *others.items()]:
        for name, value in getattr(owner, "__dict__", {}).items():
            if isinstance(value, kinds) and not isinstance(value, python_random.SystemRandom):
                yield f"{place}.{name}", value


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, python_random.Random):
        return generator.getstate()
    return generator.get_state()


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, python_random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
