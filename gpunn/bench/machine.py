"""What a result was measured on: the machine, the versions, the commit, the sources."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpunn
import gpunn.kernels
from gpunn.device import probe, sources
from gpunn.device.device import Device
from gpunn.device.launch import RecordingLauncher, device_properties
from gpunn.primitives.registry import Primitive

LIBRARIES = {
    "numpy": ("numpy",),
    "ml_dtypes": ("ml_dtypes",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "torch": ("torch",),
    "triton": ("triton",),
    "jax": ("jax",),
    "numba": ("numba",),
    "numba_cuda": ("numba-cuda",),
    "mpi4py": ("mpi4py",),
    "mpich": ("mpich",),
    "openmpi": ("openmpi",),
}


def checkout() -> Path:
    """The folder that holds the package: the root of a checkout."""
    return Path(gpunn.__file__).resolve().parent.parent


# ---- the machine ---------------------------------------------------------------------------------


def machine(device: Device) -> dict[str, Any]:
    """The machine as a flat dictionary; what cannot be told is None."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": _memory_bytes(),
        "gpu": None,
    }
    if device.type == "cuda":
        found |= _gpu(device.index)
    return found


def cpu_name() -> str:
    """The CPU's model as the system names it."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if name := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return name[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cpu_cache_bytes() -> int | None:
    """Bytes of the first core's largest cache, if the system tells."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text().strip()
            sizes.append(int(text.rstrip("KM")) * units.get(text[-1], 1))
    return max(sizes, default=None)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def noting_launcher(source: str, device: Device) -> RecordingLauncher:
    """A launcher that only notes, and looks like the device's GPU to launch code; without one, like
    an H200."""
    launch = RecordingLauncher(source)
    if device.type == "cuda":
        found = device_properties(device.index)
        launch.arch, launch.multiprocessors = found["arch"], found["multiProcessorCount"]
        launch.shared_limit = found["sharedMemPerBlockOptin"]
    return launch


def _gpu(index: int) -> dict[str, Any]:
    runtime = probe.import_cupy().cuda.runtime
    properties = device_properties(index)
    name = properties["name"]
    found = {
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "arch": properties["arch"],
        "multiprocessors": properties["multiProcessorCount"],
        "gpu_memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "driver": _driver(),
        "driver_cuda": probe.release(runtime.driverGetVersion()),
        "cuda_runtime": probe.release(runtime.runtimeGetVersion()),
        "nvrtc": None,
    }
    with contextlib.suppress(Exception):
        from cupy.cuda import nvrtc

        found["nvrtc"] = ".".join(map(str, nvrtc.getVersion()))
    return found


def _driver() -> str | None:
    """The driver's own version number, such as 580.95.05."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if number := re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text):
            return number[1]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return answer.stdout.split()[0] if answer.stdout.split() else None
    return None


def versions() -> dict[str, str | None]:
    """Versions of Python, gpunn and the libraries that matter; None for one that is not there."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "gpunn": gpunn.__version__,
    }
    for name, distributions in LIBRARIES.items():
        found[name] = None
        for distribution in distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution)
                break
    return found


# ---- the commit ----------------------------------------------------------------------------------


def commit() -> dict[str, Any]:
    """{"commit": the hash or None, "clean": whether the tree has no change, or None if unknown}.

    ``GPUNN_COMMIT`` stands in where a copy of the tree has come without its history.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        return {"commit": os.environ.get("GPUNN_COMMIT") or None, "clean": None}
    # A result file written before does not make the tree another one.
    status = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {"commit": head, "clean": None if status is None else status == ""}


def _git(*arguments: str) -> str | None:
    if not (checkout() / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(checkout()), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


# ---- the sources ---------------------------------------------------------------------------------


def source_digests() -> dict[str, dict[str, str]]:
    """For every primitive the digests of the code that its implementations run."""
    return {name: digests_of(made) for name, made in gpunn.kernels.table().items()}


def digests_of(made: Primitive) -> dict[str, str]:
    """{"cuda": …, "numba": …, "numpy": …}: what must be unchanged for a measurement to hold.

    Comments, docstrings and blank lines do not count: a header that cites its own measurement must
    not make that measurement out of date.
    """
    home = Path(inspect.getfile(made._specification))
    if home.suffix == ".py" and home.is_file():
        specification = _family_digest(home)
    else:  # an extension typed into an interpreter or a notebook
        code = made._specification.__code__
        specification = _combine(code.co_code.hex(), repr(code.co_names))
    found = {"numpy": specification}
    if "cuda" in made.implementations:
        sources_ = map(_cuda_digest, made.cuda_sources)
        found["cuda"] = _combine(specification, *sources_)
    if "numba" in made.implementations:
        path = sources.numba_path(made.numba_source)
        text = path.read_text("utf-8") if path.is_file() else ""  # beside its specification
        found["numba"] = _combine(specification, _python_digest(text))
    return found


# Modules of floor 2 that decide nothing about how a kernel is launched.
_COMMON = {"registry", "call", "samples", "parity"}


@functools.cache
def _family_digest(path: Path) -> str:
    """A digest of a family's file and of what it takes from its neighbours, samples left out."""
    seen, todo, parts = set(), [path], []
    while todo:
        file = todo.pop()
        if file in seen or file.stem in _COMMON or file.stem.endswith("_samples"):
            continue
        seen.add(file)
        digest, neighbours = _python_facts(file.read_text("utf-8"))
        parts.append(f"{file.name} {digest}")
        todo += [path.with_name(f"{name}.py") for name in neighbours]
    return _combine(*sorted(parts))


def _combine(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# Strings, because a # in them begins no comment, and comments. (Up to Python 3.11 a string in the
# braces of an f-string has other quotes than it.) `tokenize` gives the same, ten times as slowly.
_STRING_OR_COMMENT = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}"""
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>\#[^\n]*)""",
    re.DOTALL,
)


def _python_digest(text: str) -> str:
    """A digest of Python source without comments, docstrings and blank lines."""
    return _python_facts(text)[0]


@functools.cache
def _python_facts(text: str) -> tuple[str, tuple[str, ...]]:
    """The digest of `_python_digest`, and the modules of gpunn.primitives that are imported.

    What does not count is found by position and cut out of the text, because what `ast.unparse`
    gives back changes from one Python to the next.
    """
    kept = _STRING_OR_COMMENT.sub(lambda m: "" if m["comment"] else m[0], text).splitlines()
    names: list[str] = []
    for node in _statements(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "gpunn.primitives":
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, name = node.module.rpartition(".")
            names += [name] if package == "gpunn.primitives" else []
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            first = node.body[0]
            kept[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return _combine(*(line.rstrip() for line in kept if line.strip())), tuple(names)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A module and all its statements; much faster than `ast.walk`, which goes into expressions."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, name, ()):
            yield from _statements(child)


_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)


@functools.cache
def _cuda_digest(name: str) -> str:
    """A digest of a CUDA source and of every file of ours that it includes, without comments."""
    parts = []
    for file, text in sources.texts(name):
        code = _COMMENT.sub(lambda m: m[0] if m[0].startswith('"') else " ", text)
        parts += [file, *(" ".join(line.split()) for line in code.splitlines() if line.strip())]
    return _combine(*parts)


def command_line() -> list[str]:
    """How this process was started, for a result file; of whole paths the last part."""
    return [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
