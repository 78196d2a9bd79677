"""Configurations of training jobs: what a setting may be, and TOML files with errors by line.

A configuration is a frozen dataclass whose fields are made by `setting`, which states their
meaning and their range once: `check` enforces it, `commented_toml` prints it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import platform
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpunn
from gpunn.train.run_folder import CONFIG
from gpunn.train.toml_positions import KeyPath, Positions, find_positions

_SHOWN = 20  # mistakes at most, each a line

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class Setting:
    """What is said of a setting besides its type and default; of a list it is said of each item.

    Attributes
    ----------
    meaning : a phrase for people
    low, above, below : the least value; a bound that it must exceed; one that it must stay under
    choices : the values allowed, or where there is a `pattern` examples of them
    pattern : what a text must match as a whole, in any case
    unset : what None stands for
    """

    meaning: str
    low: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    unset: str = ""

    def range_text(self) -> str:
        """What is allowed: "0 or more", "at least 0 and below 1", "one of relu, tanh"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = [f"above {self.above:g}"] if self.above is not None else []
        if self.low is not None and self.below is None:
            bounds.append(f"{self.low:g} or more")
        elif self.low is not None:
            bounds.append(f"at least {self.low:g}")
        bounds += [f"below {self.below:g}"] if self.below is not None else []
        return " and ".join(bounds)

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is within the range."""
        if self.pattern:
            return re.fullmatch(self.pattern, value.strip(), re.IGNORECASE) is not None
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A dataclass field with its default, its meaning and what `Setting` takes besides."""
    return dataclasses.field(default=default, metadata={"setting": Setting(meaning, **limits)})


def device_setting() -> Any:
    """The field ``device`` of a configuration: "auto", "cpu", "cuda", "cuda:1" … or "emulator"."""
    return setting(
        "auto",
        "where to train; auto is a GPU if one is usable",
        choices=("auto", "cpu", "cuda", "cuda:1", "emulator"),
        pattern=r"auto|cpu(:0)?|cuda(:\d+)?|emulator(:0)?",
    )


@functools.cache
def settings_of(kind: Any) -> dict[str, tuple[Setting, Any, Any]]:
    """Of each field of a configuration: what is said of it, its type, its default."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (field.metadata.get("setting", Setting("")), hints[field.name], field.default)
        for field in dataclasses.fields(kind)
    }


@dataclass(frozen=True)
class Problem:
    """One mistake: which setting (and which item of a list), where it stands, a sentence."""

    path: KeyPath
    text: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class ConfigurationError(ValueError):
    """Settings that cannot be used; `problems` has each with its place."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        lines = [str(problem) for problem in problems[:_SHOWN]]
        if len(problems) > 1:
            lines.insert(0, f"{len(problems)} mistakes in the settings")
        if len(problems) > _SHOWN:
            lines.append(f"… and {len(problems) - _SHOWN} more")
        super().__init__("\n  ".join(lines))


def check(config: Any) -> None:
    """Hold every field of a configuration to its type and range; for its ``__post_init__``.

    Whole numbers become floats and lists tuples where the type says so. What fields say about each
    other is what ``config.conflicts()`` yields, if there is one: (field, sentence). Raises a
    ConfigurationError that has them all.
    """
    problems: list[Problem] = []
    kind: Any = type(config)
    for name, (said, hint, _) in settings_of(kind).items():
        value, wrong = _checked(name, getattr(config, name), hint, said)
        problems += wrong
        if not wrong:
            object.__setattr__(config, name, value)
    if not problems and hasattr(config, "conflicts"):
        problems = [Problem((name,), text) for name, text in config.conflicts()]
    if problems:
        raise ConfigurationError(problems)


def _checked(name: str, value: Any, hint: Any, said: Setting) -> tuple[Any, list[Problem]]:
    """The value in its own type, and what is wrong with it."""
    if isinstance(hint, types.UnionType):  # "int | None"
        if value is None:
            return None, []
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is not tuple:
        value, wrong = _scalar(name, value, hint, said)
        return value, [Problem((name,), wrong)] if wrong else []
    item = typing.get_args(hint)[0]
    if not isinstance(value, (list, tuple)):
        plural = {int: "whole numbers", float: "numbers", str: "texts"}[item]
        text = f"{name} must be a list of {plural}, got {_shown(value)}"
        return value, [Problem((name,), text)]
    parts = [_scalar(f"{name}[{at}]", part, item, said) for at, part in enumerate(value)]
    problems = [Problem((name, at), wrong) for at, (_, wrong) in enumerate(parts) if wrong]
    return tuple(part for part, _ in parts), problems


def _scalar(name: str, value: Any, hint: type, said: Setting) -> tuple[Any, str]:
    if hint in (int, float) and isinstance(value, np.number):
        value = value.item()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        return value, f"{name} must be {_KINDS[hint]}, got {_shown(value)}"
    if said.allows(value):
        return value, ""
    near = difflib.get_close_matches(str(value), () if said.pattern else said.choices, n=1)
    hint_text = f"did you mean {_shown(near[0])}? It" if near else "it"
    limit = said.range_text()
    if isinstance(value, float) and not math.isfinite(value):
        limit = f"a finite number, {limit}" if limit else "a finite number"
    return value, f"{name} is {_shown(value)}; {hint_text} must be {limit}"


def _shown(value: Any) -> str:
    try:
        return toml_value(value)
    except TypeError:
        return repr(value)


# ---- from several places to one configuration ---------------------------------------------------


@dataclass
class Layer:
    """Settings that were given in one place, and `where` each of them stands, for errors."""

    values: dict[str, Any]
    where: Callable[[KeyPath], str]


def build(kind: type, layers: Sequence[Layer], problems: Sequence[Problem] = ()) -> Any:
    """A configuration of `kind` from layers, of which later ones win; the rest are defaults.

    Raises a ConfigurationError with everything that is wrong: `problems` found before, names that
    there are not (with the nearest that there is), values of another type or out of range.
    """
    found: list[Problem] = []
    given, owners = {}, {}
    known = settings_of(kind)
    for layer in layers:
        for name, value in layer.values.items():
            if name in known:
                given[name], owners[name] = value, layer
            else:
                found.append(Problem((name,), unknown(name, known), layer.where((name,))))
    try:
        made = kind(**given)
    except ConfigurationError as error:
        for problem in error.problems:
            owner = owners.get(str(problem.path[0]))
            place = owner.where(problem.path) if owner else problem.place
            found.append(dataclasses.replace(problem, place=place))
    if found or problems:
        names = [name for layer in layers for name in layer.values]
        order = {name: at for at, name in enumerate(names)}  # of a file that of its lines
        found.sort(key=lambda problem: order.get(str(problem.path[0]), -1))
        raise ConfigurationError([*problems, *found])
    return made


def unknown(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """The sentence for a setting that there is not."""
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"there is no setting {name!r}; {hint}"


def config_from_dict(kind: type, values: dict[str, Any], where: str = "configuration") -> Any:
    """A configuration of dataclass `kind` from settings; fields left out take their defaults.

    Raises as `build`, which see; `where` is put before each mistake.
    """
    return build(kind, [Layer(values, lambda path: where)])


def config_to_dict(config: Any) -> dict[str, Any]:
    """The fields of a configuration, tuples as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


# ---- files --------------------------------------------------------------------------------------


@dataclass
class ConfigFile:
    """A configuration file that is TOML: its job, its settings, and what is wrong around them."""

    path: Path
    job: str
    values: dict[str, Any]
    positions: Positions
    problems: list[Problem]

    def where(self, path: KeyPath) -> str:
        """FILE:LINE of a setting, or of an item of a list."""
        return f"{self.path}:{self.positions.of((self.job, *path))}"

    def layer(self) -> Layer:
        """The settings, for `build`."""
        return Layer(self.values, self.where)


def read_config(path: str | os.PathLike[str]) -> ConfigFile:
    """Read a configuration file, or that of a run folder; its settings are not looked at yet.

    FileNotFoundError; ConfigurationError, with the line, if it is not TOML or names no job.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = Problem((), "this is not UTF-8 text", f"{path}:{line}")
        raise ConfigurationError([wrong]) from None
    positions = find_positions(text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(list(_not_toml(path, text, error, positions))) from None
    except (ValueError, RecursionError) as error:  # of what is TOML, but larger than Python takes
        reason, line = "a number has too many digits", 1
        if isinstance(error, RecursionError):
            reason, line = "it is nested too deeply", max(positions.lines.values(), default=1)
        elif digits := re.search("[0-9_]{1000}", text):
            line = text.count("\n", 0, digits.start()) + 1
        wrong = Problem((), f"this cannot be read: {reason}", f"{path}:{line}")
        raise ConfigurationError([wrong]) from None
    job = document.pop("job", None)
    if not isinstance(job, str):
        place = f"{path}:{positions.of(('job',))}"
        text = 'it does not name its job; write for example: job = "digits"'
        raise ConfigurationError([Problem(("job",), text, place)])
    values = document.pop(job, {})
    problems = [
        Problem((name,), _misplaced(name, value, job), f"{path}:{positions.of((name,))}")
        for name, value in document.items()
    ]
    if not isinstance(values, dict):
        text = f"{job!r} must be a table; write [{job}] and its settings below"
        problems.append(Problem((job,), text, f"{path}:{positions.of((job,))}"))
        values = {}
    return ConfigFile(path, job, values, positions, problems)


def _misplaced(name: str, value: Any, job: str) -> str:
    if isinstance(value, dict) or (isinstance(value, list) and value and type(value[0]) is dict):
        return f"the table [{name}] is not known; expected 'job' and the table [{job}]"
    return f"{name!r} stands outside a table; put it below [{job}]"


def _not_toml(
    path: Path, text: str, error: tomllib.TOMLDecodeError, positions: Positions
) -> Iterator[Problem]:
    """What tomllib found, or better: which keys are there twice."""
    said = re.fullmatch(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
    words = said[1] if said else str(error)
    if words.startswith("Cannot") and positions.twice:
        for key, first, second in positions.twice:
            name = ".".join(map(str, key))
            yield Problem(key, f"{name} is there twice, first in line {first}", f"{path}:{second}")
        return
    lines = text.split("\n")
    line = int(said[2]) if said and said[2] else len(text.rstrip().split("\n"))
    visible = "".join(one if one.isprintable() else " " for one in lines[line - 1])
    shown = textwrap.shorten(visible, 60, placeholder=" …")
    column = f" at column {said[3]}" if said and said[3] else ""
    words = words[:1].lower() + words[1:]
    yield Problem((), f"this is not TOML ({words}{column}): {shown}", f"{path}:{line}")


def toml_value(value: Any) -> str:
    """A number, text, boolean or list of these as TOML. TypeError for anything else."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise TypeError(f"{value!r} is no setting")


def config_to_toml(config: Any, job: str) -> str:
    """A configuration as TOML; fields that are None are left out, which is how TOML says it."""
    values = {name: value for name, value in config_to_dict(config).items() if value is not None}
    lines = [
        f"# gpunn {gpunn.__version__}, Python {platform.python_version()}, NumPy {np.__version__}",
        "# Train the same model again: gpunn train --config <this file>",
        f"job = {toml_value(job)}",
        "",
        f"[{job}]",
        *(f"{name} = {toml_value(value)}" for name, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def commented_toml(config: Any, job: str) -> str:
    """The same with every setting's meaning, range and default, to be edited."""
    lines = [
        f"# Settings of the job {job}. Change what you like, leave out what you like, and train "
        "with:",
        "# gpunn train --config FILE",
        f"job = {toml_value(job)}",
        "",
        f"[{job}]",
    ]
    kind: Any = type(config)
    for name, (said, _, default) in settings_of(kind).items():
        value = getattr(config, name)
        text = f"# {name} =" if value is None else f"{name} = {toml_value(value)}"
        each = "each " if isinstance(default, tuple) and not said.choices else ""
        usual = f"not set ({said.unset})" if default is None else toml_value(default)
        limit = said.range_text()
        facts = f"{each}{limit}; default: {usual}" if limit else f"default: {usual}"
        lines += textwrap.wrap(said.meaning, 96, initial_indent="# ", subsequent_indent="# ")
        if len(facts) > 64:
            lines += textwrap.wrap(facts, 96, initial_indent="# ", subsequent_indent="# ")
            lines += [text, ""]
        else:
            lines += [f"{text:32}  # {facts}", ""]
    return "\n".join(lines)
