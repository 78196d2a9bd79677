"""CUDA C++ to machine code: NVRTC, its report, and a cache on disk. No GPU is needed.

A *build* is one source file with a set of template instantiations ("name expressions") for one
architecture. Builds are kept in the cache folder under a digest of all that went into them, so
that a change of a source, a header or the compiler makes a new one. Files are written whole and
renamed into place, and several processes may share the folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpunn.device import probe, sources
from gpunn.errors import CompileError


@dataclass(frozen=True)
class KernelReport:
    """What the compiler says of one kernel. Sizes in bytes, `registers` per thread."""

    expression: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class Build:
    """Machine code of one source: `cubin`, `symbols` (expression → symbol) and the report."""

    source: str
    arch: str
    cubin: bytes
    symbols: dict[str, str]
    reports: tuple[KernelReport, ...] = ()
    warnings: tuple[str, ...] = ()
    path: Path | None = field(default=None, compare=False)


def cache_folder() -> Path:
    """``GPUNN_CACHE`` if set, else the platform's cache folder for gpunn."""
    if os.environ.get("GPUNN_CACHE"):
        return Path(os.environ["GPUNN_CACHE"])
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "gpunn"


def build(source: str, expressions: Iterable[str], arch: str) -> Build:
    """Compile ``kernels/cuda/<source>`` for `arch` ("sm_90a"), or take it from the cache.

    Raises DeviceError if the compiler or headers are missing and CompileError with the compiler's
    own messages if the source does not compile.
    """
    probe.require_compiler()
    _check_arch(arch)
    names = tuple(sorted(set(expressions)))
    path = _path(source, names, arch)
    cached = _read(path)
    if cached is not None:
        return cached
    made = _compile(source, names, arch)
    return _write(path, made)


def is_built(source: str, expressions: Iterable[str], arch: str) -> bool:
    """Whether `build` would find this in the cache."""
    return _read(_path(source, tuple(sorted(set(expressions))), arch)) is not None


def _path(source: str, names: tuple[str, ...], arch: str) -> Path:
    return cache_folder() / "cubin" / f"{_key(source, names, arch)}.cubin"


def _check_arch(arch: str) -> None:
    from cupy.cuda import nvrtc

    known = nvrtc.getSupportedArchs()
    found = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if not found or int(found[1]) not in known:
        version = ".".join(map(str, nvrtc.getVersion()))
        raise CompileError(
            f"{arch} is not an architecture that this NVRTC {version} knows; it knows "
            f"{', '.join(f'sm_{n}' for n in known)} (and sm_90a, sm_100a …)"
        )


def _options(arch: str, source: str = "") -> tuple[str, ...]:
    includes = (*sources.include_folders(source), *probe.cuda_include_folders())
    return (
        f"--gpu-architecture={arch}",
        "--std=c++17",
        "-default-device",
        "-lineinfo",
        "--ptxas-options=-v",
        # A constant that one instantiation of a template leaves unused is no mistake.
        "--diag-suppress=177",
        *(f"-I{folder}" for folder in includes),
    )


def _key(source: str, names: tuple[str, ...], arch: str) -> str:
    from cupy.cuda import nvrtc

    parts = (
        "1",  # the layout of the cache entry
        sources.source_digest(source),
        repr(nvrtc.getVersion()),
        _headers_version(),
        *(o for o in _options(arch, source) if not o.startswith("-I")),
        *names,
    )
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{Path(source).stem}-{arch}-{digest[:32]}"


@functools.cache
def _headers_version() -> str:
    """The number of CUDA's headers, from cuda_runtime_api.h or cuda.h, else their folder."""
    for folder in probe.cuda_include_folders():
        for name, macro in (("cuda_runtime_api.h", "CUDART_VERSION"), ("cuda.h", "CUDA_VERSION")):
            with contextlib.suppress(OSError):
                text = (Path(folder) / name).read_text(errors="replace")
                if found := re.search(rf"#define\s+{macro}\s+(\d+)", text):
                    return found[1]
    return repr(probe.cuda_include_folders())


def _compile(source: str, names: tuple[str, ...], arch: str) -> Build:
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(sources.cuda_source(source), source, (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, _options(arch, source))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise CompileError(
                f"kernels/cuda/{source} does not compile for {arch}:\n{log}"
            ) from error
        log = nvrtc.getProgramLog(program)
        # CuPy cuts the last byte off, taking it for the end of a string.
        cubin = nvrtc.getCUBIN(program) + b"\0"
        symbols = {name: _text(nvrtc.getLoweredName(program, name)) for name in names}
    finally:
        nvrtc.destroyProgram(program)
    # ptxas tells of wgmma that it had to serialise without the word "warning".
    told = ("warning", "potential performance loss")
    warnings = tuple(line for line in log.splitlines() if any(w in line.lower() for w in told))
    return Build(source, arch, cubin, symbols, _reports(log, symbols), warnings)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")


def _reports(log: str, symbols: dict[str, str]) -> tuple[KernelReport, ...]:
    """The compiler's lines on each kernel, in the order of the expressions."""
    expression_of = {symbol: expression for expression, symbol in symbols.items()}
    reports: dict[str, KernelReport] = {}
    entry, stack = None, (0, 0, 0)
    for line in log.splitlines():
        if found := _ENTRY.search(line):
            entry, stack = found[1], (0, 0, 0)
        elif found := _STACK.search(line):
            stack = tuple(map(int, found.groups()))
        elif (found := _USED.search(line)) and entry in expression_of:
            shared = _SHARED.search(found[2])
            name = expression_of[entry]
            reports[name] = KernelReport(
                name, int(found[1]), int(shared[1]) if shared else 0, *stack
            )
    return tuple(reports[name] for name in symbols if name in reports)


# ---- the cache: one file an entry, a line of JSON and then the machine code ----------------------


def _write(path: Path, made: Build) -> Build:
    header = {
        "source": made.source,
        "arch": made.arch,
        "symbols": made.symbols,
        "reports": [asdict(report) for report in made.reports],
        "warnings": made.warnings,
        "sha256": hashlib.sha256(made.cubin).hexdigest(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n" + made.cubin)
        os.replace(temporary, path)
    except OSError:
        pass  # a full or read-only cache folder costs time, not correctness
    return made


def _read(path: Path) -> Build | None:
    """The entry, or None if it is not there or not whole."""
    try:
        head, _, cubin = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        if hashlib.sha256(cubin).hexdigest() != header["sha256"]:
            return None
        return Build(
            header["source"],
            header["arch"],
            cubin,
            header["symbols"],
            tuple(KernelReport(**report) for report in header["reports"]),
            tuple(header["warnings"]),
            path,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
