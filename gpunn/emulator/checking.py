"""Run kernels of a source in checked mode in many orders, and gather what is found.

`gpunn check` is this with a command line around it.

>>> report = check("saxpy.cu", ["saxpy<<<4, 256>>>(float[1000], float[1000], 2.5f, 1000)"])
>>> report.clean
True
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpunn.device.launch import DEFAULT_SHARED
from gpunn.emulator import build as building
from gpunn.emulator import launch_text
from gpunn.emulator import source as reading
from gpunn.emulator.findings import EmulatorError, Finding
from gpunn.emulator.launch_text import Launch, Wanted
from gpunn.emulator.module import RawModule
from gpunn.emulator.tensor_map import TensorMap

DATA_SEED = 0  # the arguments are the same in all runs, so that results can be compared


@dataclass
class Run:
    """All launches once, in one order."""

    schedule: str
    seed: int
    seconds: float = 0.0
    accesses: int = 0
    findings: int = 0
    result: str = ""  # "the same" as the first run's, "differs", or "" if there was a finding

    def __str__(self) -> str:
        return f"random, seed {self.seed}" if self.schedule == "random" else self.schedule


@dataclass
class Found:
    """One fault, as it was first seen, and the runs in which it was."""

    finding: Finding
    runs: list[Run] = field(default_factory=list)


@dataclass
class Report:
    """What `check` saw. `launches` are in words, with the types of the arguments."""

    source: Path
    launches: list[str]
    runs: list[Run]
    found: list[Found]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.found


def check(
    path: str | os.PathLike,
    launches: Sequence[str],
    *,
    options: Sequence[str] = (),
    seeds: int = 10,
    first_seed: int = 0,
    cluster: Sequence[int] | None = None,
    cooperative: bool = False,
    preempt: int = 0,
    timeout: float = 60.0,
) -> Report:
    """Run the launches one after the other: in order, in reverse, and in `seeds` random orders.

    Parameters
    ----------
    path : a CUDA C++ source
    launches : texts as `launch_text` reads them; they share the arrays that they name
    options : as for `RawModule`
    seeds, first_seed : how many random orders, and the first one's seed
    cluster, cooperative, preempt, timeout : as for `Kernel` and `Settings`

    Raises
    ------
    ValueError, TypeError : a launch that cannot be read or does not fit its kernel
    CompileError, DeviceError : the source does not compile, or nothing can be compiled here
    """
    if not launches:
        raise ValueError("there is no launch to check")
    if seeds < 0:
        raise ValueError(f"seeds is {seeds}; expected 0 or more")
    read = [launch_text.read(text) for text in launches]
    source = Path(path)
    names = list(dict.fromkeys(launch.kernel for launch in read))
    declared = _declared(source, names)
    module = RawModule(
        path=source,
        options=options,
        name_expressions=[name for name in names if "<" in name],
        enable_cooperative_groups=cooperative,
    )
    prepared = [
        _Prepared(launch, module, declared[launch.kernel], cluster, preempt, timeout)
        for launch in read
    ]
    runs = [Run("in order", 0), Run("reverse", 0)]
    runs += [Run("random", seed) for seed in range(first_seed, first_seed + seeds)]
    report = Report(source, [], runs, [])
    first: list[np.ndarray] | None = None
    seen: dict[tuple, Found] = {}
    for run in runs:
        arrays, texts = _run(run, prepared, seen)
        report.launches = report.launches or texts
        if run.findings:
            continue
        if first is None:
            first = arrays
        run.result = "the same" if all(map(_equal, first, arrays)) else "differs"
    report.found = list(seen.values())
    return report


@dataclass
class _Prepared:
    """A launch with its compiled kernel."""

    launch: Launch
    module: RawModule
    declaration: str
    cluster: Sequence[int] | None
    preempt: int
    timeout: float

    def __post_init__(self):
        self.kernel = self.module.get_function(self.launch.kernel)
        made = self.module.compiled(self.launch.kernel, building.CHECKED)
        self.wanted = _wanted(made, self.declaration)
        if len(self.launch.arguments) != len(self.wanted):
            raise TypeError(
                f"{self.launch.kernel} takes {len(self.wanted)} arguments, the launch has "
                f"{len(self.launch.arguments)}:\n  {self.declaration}\n  {self.launch.text}"
            )
        if self.launch.shared > DEFAULT_SHARED:
            self.kernel.max_dynamic_shared_size_bytes = self.launch.shared

    def make(self, named: dict, random: np.random.Generator) -> list:
        """Fresh arguments."""
        pairs = zip(self.launch.arguments, self.wanted, strict=True)
        values = [argument.make(wanted, named, random) for argument, wanted in pairs]
        for argument, wanted, value in zip(self.launch.arguments, self.wanted, values, strict=True):
            _check_target(argument, wanted, value)
        return values

    def __call__(self, values: list, run: Run) -> None:
        self.kernel(
            self.launch.grid,
            self.launch.block,
            values,
            shared_mem=self.launch.shared,
            cluster=self.cluster,
            check=True,
            schedule=run.schedule,
            seed=run.seed,
            preempt=self.preempt,
            timeout=self.timeout,
        )

    def words(self, values: list) -> str:
        """The launch with the types and shapes of its arguments."""
        grid, block = (
            str(numbers[0]) if len(numbers) == 1 else str(numbers)
            for numbers in (self.launch.grid, self.launch.block)
        )
        shared = f", {self.launch.shared}" if self.launch.shared else ""
        arguments = ", ".join(map(_shown, values))
        return f"{self.launch.kernel}<<<{grid}, {block}{shared}>>>({arguments})"


def _run(run: Run, prepared: list[_Prepared], seen: dict[tuple, Found]):
    """All launches once; the arrays afterwards, and the launches in words."""
    random, named = np.random.default_rng(DATA_SEED), {}
    everything = [(one, one.make(named, random)) for one in prepared]
    start = time.perf_counter()
    try:
        for one, values in everything:
            one(values, run)
            run.accesses += one.kernel.accesses
    except EmulatorError as error:
        run.findings = len(error.findings)
        run.accesses += one.kernel.accesses
        for finding in error.findings:
            other = finding.other and (finding.other.file, finding.other.line)
            place = (finding.file, finding.line)
            key = (finding.error, finding.kernel, place, other, finding.argument)
            found = seen.setdefault(key, Found(finding))
            if run not in found.runs:
                found.runs.append(run)
        if not error.findings:
            raise
    run.seconds = time.perf_counter() - start
    arrays = [_array(value) for _, values in everything for value in values]
    return [a for a in arrays if a is not None], [one.words(values) for one, values in everything]


def _array(value):
    value = value.array if isinstance(value, TensorMap) else value
    return value if isinstance(value, np.ndarray) else None


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return first.tobytes() == second.tobytes()


def _shown(value) -> str:
    if value is None:
        return "null"
    if isinstance(value, TensorMap):
        return f"TensorMap of {_shown(np.asarray(value.array))}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return f"{value.dtype} {value}"


# ---- what the source declares --------------------------------------------------------------------


def declarations(path: str | os.PathLike) -> dict[str, str]:
    """The kernels of a source as it declares them, by name: ``saxpy(float* y, const float* x)``."""
    source = Path(path)
    text = reading.without_comments(source.read_text(encoding="utf-8", errors="replace"))
    found = {}
    for name, declared in reading.kernels(text).items():
        inside = _between_brackets(text, name)
        parameters = [" ".join(part.split()) for part in reading.split(inside) if part != "void"]
        template = f"template <{', '.join(declared.template)}> " if declared.template else ""
        found[name] = f"{template}{name}({', '.join(parameters)})"
    return found


def _between_brackets(text: str, name: str) -> str:
    """The parameters of the kernel `name` in a text without comments."""
    for start in re.finditer(r"\b__global__\b", text):
        head = re.compile(rf"[^;{{}}]*?\b{name}\s*\(").match(text, start.end())
        if head is None:
            continue
        depth, position = 1, head.end()
        while depth and position < len(text):
            depth += {"(": 1, ")": -1}.get(text[position], 0)
            position += 1
        return text[head.end() : position - 1]
    return ""


def _declared(source: Path, names: list[str]) -> dict[str, str]:
    """Name expression -> declaration; ValueError if the source has no such kernel."""
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    known, found = declarations(source), {}
    for name in names:
        declaration = known.get(reading.base_name(name))
        if declaration is None:
            listed = "".join(f"\n  {text}" for text in known.values())
            raise ValueError(
                f"{source} has no kernel {reading.base_name(name)!r}"
                + (f"; it has{listed}" if known else ": it has no __global__ function at all")
            )
        if declaration.startswith("template") and "<" not in name:
            raise ValueError(
                f"{name} is a template: name the arguments to compile it with, as in "
                f"{name}<float, 4><<<grid, block>>>(…)\n  {declaration}"
            )
        found[name] = declaration
    return found


def _wanted(made: building.Compiled, declaration: str) -> list[Wanted]:
    """The kernel's parameters: their words, and the dtypes as compiled, where those are clear."""
    template = made.declaration.template or () if made.declaration else ()
    values = reading.split(made.name[made.name.find("<") + 1 : made.name.rfind(">")])
    meaning = {name.split()[-1]: value for name, value in zip(template, values, strict=False)}
    head = re.match(r"(?:template <.*?> )?\w+\(", declaration)
    parts = reading.split(declaration[head.end() : -1]) if head else []
    result = []
    for number in range(made.signature.count):
        parameter = made.signature.parameter[number]
        words = parts[number] if len(parts) == made.signature.count else f"parameter {number}"
        if parameter.pointer:
            size, category = parameter.target_size, parameter.target_category
        else:
            size, category = parameter.size, parameter.category
        dtype = _dtype(words, size, category, meaning)
        result.append(Wanted(words, bool(parameter.pointer), dtype))
    return result


def _dtype(words: str, size: int, category: int, meaning: dict[str, str]) -> np.dtype | None:
    """The dtype of a parameter; the two of 16 bits are told apart by the words of the source."""
    if category == 1:
        return np.dtype(bool)
    if category in (2, 3):
        return np.dtype(f"{'i' if category == 2 else 'u'}{size}")
    if category == 4 and size in (4, 8):
        return np.dtype(f"f{size}")
    kind = re.sub(r"[*&]|\b(__restrict__|__restrict|const|__grid_constant__)\b", " ", words)
    kind = kind.strip().rpartition(" ")[0].strip()
    dtype = launch_text.dtype_of(meaning.get(kind, kind))
    return dtype if dtype is not None and dtype.itemsize == size else None


def _check_target(argument, wanted: Wanted, value) -> None:
    """An array of elements that are not those of the pointer is most often a mistake."""
    if not (wanted.pointer and isinstance(value, np.ndarray) and wanted.dtype is not None):
        return
    if value.dtype.itemsize != wanted.dtype.itemsize:
        raise ValueError(
            f"argument {argument.text!r} is an array of {value.dtype}, but {wanted.words!r} points "
            f"to {wanted.dtype}"
        )
