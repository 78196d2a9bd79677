"""The host compiler and CUDA's headers: found, asked for their versions, and used.

Everything compiled is kept in the cache folder under a digest of all that went into it. Entries
are renamed into place when they are whole; a lock for each keeps two processes from making the
same one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpunn.device.compiler import cache_folder
from gpunn.errors import CompileError, DeviceError

HOST = Path(__file__).resolve().parent / "host"
MINIMUM = {"g++": 11, "clang": 14}
INSTALL = (
    "install one: apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), "
    "xcode-select has none that fits; or set GPUNN_CXX to its path"
)


@dataclass(frozen=True)
class Compiler:
    """A host compiler: its path, "g++" or "clang", and its major version."""

    path: str
    kind: str
    version: int

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"


@functools.cache
def compiler() -> Compiler:
    """The compiler to use: GPUNN_CXX, else g++, else clang++. DeviceError if there is none."""
    asked = os.environ.get("GPUNN_CXX")
    names = [asked] if asked else ["g++", "clang++"]
    if not asked:
        names += [f"{name}-{v}" for name in ("g++", "clang++") for v in range(20, 10, -1)]
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        found = _identify(path)
        if found.version >= MINIMUM[found.kind]:
            return found
        if asked:
            raise DeviceError(
                f"GPUNN_CXX={asked} is {found}; the emulator needs g++ {MINIMUM['g++']} or "
                f"clang {MINIMUM['clang']} or newer."
            )
    if asked:
        raise DeviceError(f"GPUNN_CXX={asked} is no program that can be run.")
    raise DeviceError(
        f"The emulator compiles kernels with a C++ compiler (g++ {MINIMUM['g++']} or clang "
        f"{MINIMUM['clang']}, or newer), and none was found: {INSTALL}."
    )


def _identify(path: str) -> Compiler:
    command = [path, "-dM", "-E", "-x", "c++", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    macros = dict(re.findall(r"#define (__\w+__) (\d+)\b", done.stdout))
    if "__clang_major__" in macros:
        return Compiler(path, "clang", int(macros["__clang_major__"]))
    if "__GNUC__" in macros:
        return Compiler(path, "g++", int(macros["__GNUC__"]))
    raise DeviceError(f"{path} is neither g++ nor clang: {done.stderr.strip()[:200]}")


@functools.cache
def header_folders() -> tuple[str, ...]:
    """Folders with CUDA's headers for 16-bit numbers and vectors. DeviceError if there are none."""
    candidates: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        candidates += sorted(root.glob("cu[0-9]*/include"), reverse=True)
        candidates.append(root / "cuda_runtime" / "include")
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            candidates.append(Path(os.environ[variable]) / "include")
    candidates.append(Path("/usr/local/cuda/include"))
    for folder in candidates:
        if all((folder / f).is_file() for f in ("cuda_fp16.h", "cuda_bf16.h", "vector_types.h")):
            return (str(folder),)
    raise DeviceError(
        "The emulator needs CUDA's headers (cuda_fp16.h, vector_types.h), but no GPU: "
        "pip install 'gpunn[emulator]', or set CUDA_PATH to a CUDA toolkit."
    )


def require() -> str:
    """Raise a DeviceError unless kernels can be compiled and run here; say with what."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise DeviceError(
            f"The emulator runs on Linux (x86-64, aarch64), not on {sys.platform} "
            f"{platform.machine()}; use device 'cpu', or a container."
        )
    found = compiler()
    for program in ("addr2line",):
        if shutil.which(program) is None:
            raise DeviceError(f"The emulator needs {program} (apt install binutils).")
    return f"{found}, headers in {header_folders()[0]}"


# ---- compiling -----------------------------------------------------------------------------------


@functools.cache
def processor_flags() -> tuple[str, ...]:
    """Instructions to use: those of AVX2 where the processor has them."""
    if platform.machine() != "x86_64":
        return ()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        flags = set(re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)[1].split())
        if {"avx2", "fma", "f16c"} <= flags:
            return ("-mavx2", "-mfma", "-mf16c")
    return ()


@functools.cache
def host_digest() -> str:
    """A digest of the shim and the runtime, of the compiler and of CUDA's headers."""
    # Its place, too: findings tell the emulator's own files by it.
    parts = (str(HOST), compiler(), header_folders(), processor_flags())
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(HOST.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(HOST)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def folder() -> Path:
    """Where compiled kernels are kept."""
    made = cache_folder() / "emulator"
    made.mkdir(parents=True, exist_ok=True)
    return made


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a cache entry, so that it is made once."""
    import fcntl

    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: list[str], what: str) -> None:
    """Run the compiler; CompileError with its messages if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(
            f"{what} does not compile for the host with {compiler()}:\n{readable(done.stderr)}"
            + (_PTX if re.search(r"Assembler messages|in .asm.|asm operand", done.stderr) else "")
        )


_PTX = (
    "\nThe source has inline PTX, which the emulator cannot run: use the wrappers of "
    "kernels/cuda/ptx.cuh, or give the function another body under #ifdef GPUNN_EMULATOR."
)


def readable(messages: str) -> str:
    """The compiler's messages without what only concerns the emulator, and not too long."""
    lines = [line for line in messages.splitlines() if not line.startswith("In file included from")]
    return "\n".join(lines[:60])[:6000]


def shim(flags: Sequence[str]) -> Path:
    """The shim to include, compiled once for these flags where the compiler can do that (g++).

    Reading CUDA's headers is most of the time that a small kernel takes to compile.
    """
    header = HOST / "shim.h"
    if compiler().kind != "g++":
        return header
    key = hashlib.sha256(repr((host_digest(), tuple(flags))).encode()).hexdigest()[:24]
    target = folder() / f"shim-{key}" / "shim.h"
    made = target.with_name("shim.h.gch")
    if not made.exists():
        target.parent.mkdir(exist_ok=True)
        with locked(target):
            if not made.exists():
                target.write_text(f'#include "{header}"\n')
                temporary = made.with_suffix(f".{os.getpid()}.tmp")
                system = [f"-isystem{folder}" for folder in header_folders()]
                command = [compiler().path, *flags, f"-I{HOST / 'include'}", *system]
                command += ["-x", "c++-header", str(target), "-o", str(temporary)]
                run(command, "the emulator's shim")
                os.replace(temporary, made)
    return target


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime library, compiled at the first use."""
    require()
    target = folder() / f"runtime-{host_digest()[:24]}.so"
    if not target.exists():
        with locked(target):
            if not target.exists():
                temporary = target.with_suffix(f".{os.getpid()}.tmp")
                options = ("-std=c++17", "-O3", "-g", "-fPIC", "-shared", *processor_flags())
                source = str(HOST / "runtime.cpp")
                command = [compiler().path, *options, "-o", str(temporary), source]
                run([*command, "-lpthread", "-ldl"], "the emulator's runtime")
                os.replace(temporary, target)
    return ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
