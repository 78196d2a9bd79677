"""Kernels compiled for the host: a shared object for a source, some kernels and a way to run."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpunn.device.sources import kernels_folder
from gpunn.emulator import source as reading
from gpunn.emulator import toolchain
from gpunn.errors import CompileError

FAST, CHECKED, COVERAGE = "fast", "checked", "coverage"
MAX_PARAMETERS = 64


class Parameter(ctypes.Structure):
    """As emu::Parameter of shim_launch.h."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in ("size", "category", "pointer", "target_size", "target_category")
    ]


class Signature(ctypes.Structure):
    """As emu::Signature of shim_launch.h."""

    _fields_ = [
        ("count", ctypes.c_int),
        ("parameter", Parameter * MAX_PARAMETERS),
        ("max_threads", ctypes.c_int),
        ("cluster", ctypes.c_int * 3),
    ]


@dataclass
class Compiled:
    """A kernel that can be called: its trampoline, what it takes, and where it comes from."""

    name: str
    build: Build
    entry: ctypes._CFuncPtr
    signature: Signature
    declaration: reading.Declaration | None

    def called(self, number: int) -> str:
        """What messages call an argument: its number, and its name in the source if it has one."""
        names = self.declaration.parameters if self.declaration else ()
        known = f" ({names[number]})" if number < len(names) and names[number] else ""
        return f"argument {number}{known}"


@dataclass
class Build:
    """A shared object with kernels: its path and library."""

    path: Path
    library: ctypes.CDLL
    kernels: dict[str, Compiled]

    @functools.cached_property
    def symbols(self) -> dict[str, tuple[int, int]]:
        """Variables of the shared object: name -> (address or offset, bytes)."""
        done = subprocess.run(["nm", "-S", str(self.path)], capture_output=True, text=True)
        found = re.findall(r"^(\w+) (\w+) [BDbdVuvWw] (\S+)$", done.stdout, re.MULTILINE)
        return {name: (int(address, 16), int(size, 16)) for address, size, name in found}

    @functools.cached_property
    def guards(self):
        """Offsets, in thread-local storage, of flags that the compiler puts beside variables."""
        offsets = sorted(at for name, (at, _) in self.symbols.items() if name.startswith("_ZGV"))
        return (ctypes.c_uint64 * len(offsets))(*offsets)

    @property
    def dynamic_offset(self):
        """The function that says where dynamic shared memory lies in thread-local storage."""
        return self.library.emu_dynamic_shared

    def dump_coverage(self) -> None:
        """Write the counts of executed lines to gcov's files, and start again from zero."""
        self.library.emu_dump_coverage()


def build(path: Path, names: Sequence[str], options: Sequence[str], mode: str) -> Build:
    """Compile kernels of a source, or take them from the cache."""
    toolchain.runtime()  # its functions must be there when the kernels are loaded
    made = _Plan(path.resolve(), tuple(names), tuple(options), mode)
    target = toolchain.folder() / f"{path.stem}-{mode}-{made.key()}.so"
    library = _opened(target) if target.exists() else None
    if library is None:
        with toolchain.locked(target):
            library = _opened(target) if target.exists() else None
            if library is None:
                made.compile(target)
                library = ctypes.CDLL(str(target))
    library.emu_dynamic_shared.restype = ctypes.c_size_t
    result = Build(target, library, {})
    for number, name in enumerate(names):
        signature = Signature()
        getattr(library, f"emu_signature_{number}")(ctypes.byref(signature))
        entry = getattr(library, f"emu_kernel_{number}")
        declared = made.declarations.get(reading.base_name(name))
        result.kernels[name] = Compiled(name, result, entry, signature, declared)
    return result


def _opened(target: Path) -> ctypes.CDLL | None:
    """The shared object, or None if the file is damaged."""
    try:
        return ctypes.CDLL(str(target))
    except OSError:
        target.unlink(missing_ok=True)
        return None


class _Plan:
    """One compilation: the files that go into it, the generated end of the source, the options."""

    def __init__(self, path: Path, names: tuple[str, ...], options: tuple[str, ...], mode: str):
        self.path, self.names, self.mode = path, names, mode
        self.options = host_options(options)
        files = _closure(path, tuple(self._folders()))
        self.texts = {file: _text(file) for file in files}
        self.declarations = _declarations(path, self.texts[path])

    def _folders(self) -> list[Path]:
        given = [Path(option[2:]) for option in self.options if option.startswith("-I")]
        return [*given, kernels_folder() / "cuda"]

    def key(self) -> str:
        """A digest of all that goes into the shared object."""
        digest = hashlib.sha256(toolchain.host_digest().encode())
        for file, text in sorted(self.texts.items()):
            digest.update(f"{file}\0{text}\0".encode())
        digest.update(json.dumps([self.names, self.options, self.mode, self._flags()]).encode())
        return digest.hexdigest()[:32]

    def _flags(self) -> list[str]:
        clang = toolchain.compiler().kind == "clang"
        flags = ["-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-w", "-fno-strict-aliasing"]
        # Calls in tail position would lose the place that a finding names.
        flags += ["-fno-optimize-sibling-calls", "-fno-omit-frame-pointer"]
        # A large frame must meet the guard page, not step over it.
        flags += ["-fstack-clash-protection"]
        flags += toolchain.processor_flags()
        if clang:  # an undefined value passed on unread would be a licence to drop branches
            flags += ["-ftrivial-auto-var-init=pattern"]
        if not clang:  # shared memory of templates must be this object's alone
            flags += ["-fno-gnu-unique", "-fno-extern-tls-init"]
        if self.mode == CHECKED:
            volatile = ["-mllvm", "-tsan-distinguish-volatile=1"]
            if not clang:
                volatile = ["--param", "tsan-distinguish-volatile=1"]
            undefined = "bounds,alignment,shift-exponent,integer-divide-by-zero"
            flags += ["-O1", "-fsanitize=thread", *volatile, f"-fsanitize={undefined}"]
        elif self.mode == COVERAGE:
            flags += ["-O1", "--coverage", "-fprofile-update=single"]
        else:
            flags += ["-O2"]
        return flags

    def _ending(self) -> str:
        """What follows the source: dynamic shared memory, and an entry for each kernel."""
        # Macros for the source alone: on the command line they would meet the shim, too.
        lines = [
            *_definitions(self.options),
            f'#include "{self.path}"',
            "extern \"C\" { __attribute__((aligned(1024))) thread_local unsigned char "
            "emu_dynamic[emu::MAX_DYNAMIC_SHARED]; }",
            'extern "C" EMU_NOSAN size_t emu_dynamic_shared() '
            "{ return reinterpret_cast<size_t>(emu_dynamic); }",
        ]
        for name in reading.dynamic_shared_names(self.texts.values()):
            lines.append(
                f'asm(".globl {name}\\n.type {name},%tls_object\\n.set {name},emu_dynamic");'
            )
        if self.mode == CHECKED and toolchain.compiler().kind == "clang":
            lines.append(_CHECKED_COPIES)
        if self.mode == COVERAGE:
            lines.append('extern "C" { void __gcov_dump(); void __gcov_reset(); '
                         "void emu_dump_coverage() { __gcov_dump(); __gcov_reset(); } }")
        for number, name in enumerate(self.names):
            bounds = cluster = prelude = ""
            declared = self.declarations.get(reading.base_name(name))
            if declared is not None:
                known = reading.template_definitions(declared, name)
                if known is not None:
                    prelude, bounds, cluster = known, declared.bounds, declared.cluster
            lines.append(f"static int emu_bounds_{number}() {{ {prelude} return {bounds or 0}; }}")
            lines.append(
                f"static emu::Cluster emu_cluster_{number}() {{ {prelude} return {{"
                + ", ".join(f"static_cast<int>({part})" for part in reading.split(cluster))
                + "}; }"
            )
            lines.append(f"EMU_KERNEL({number}, emu_bounds_{number}, emu_cluster_{number}, {name})")
        return "\n".join(lines) + "\n"

    def compile(self, target: Path) -> None:
        """Write the shared object to `target`."""
        base = target.with_suffix("")
        stub, unit = base.with_suffix(".cpp"), f"{base}.o"
        stub.write_text(self._ending())
        includes = [f"-I{folder}" for folder in (toolchain.HOST / "include", *self._folders())]
        system = [f"-isystem{folder}" for folder in toolchain.header_folders()]
        compiler = toolchain.compiler().path
        command = [compiler, *self._flags(), "-include", str(toolchain.shim(self._flags()))]
        others = [o for o in self.options if not o.startswith(("-D", "-U", "-I"))]
        command += [*includes, *system, *others, "-c", str(stub), "-o", unit]
        toolchain.run(command, str(self.path))
        # Without the sanitizers' libraries: the runtime has the functions that their code calls.
        temporary = f"{base}.{os.getpid()}.tmp"
        # Symbolic: a kernel may bear the name of a function of the C library.
        link = [compiler, "-shared", "-Wl,-Bsymbolic", "-o", temporary, unit]
        toolchain.run(link + (["--coverage"] if self.mode == COVERAGE else []), str(self.path))
        os.replace(temporary, target)
        if self.mode != COVERAGE:  # gcov looks for its notes beside the object
            os.unlink(unit)


# clang leaves the copies of structures to memcpy, which its sanitizer's library would replace.
_CHECKED_COPIES = """extern "C" {
void* emu_memcpy(void*, const void*, size_t, void*);
void* emu_memset(void*, int, size_t, void*);
#define EMU_COPY __attribute__((visibility("hidden"), noinline)) EMU_NOSAN
EMU_COPY void* memcpy(void* a, const void* b, size_t n) { return emu_memcpy(a, b, n, EMU_CALLER); }
EMU_COPY void* memmove(void* a, const void* b, size_t n) { return emu_memcpy(a, b, n, EMU_CALLER); }
EMU_COPY void* memset(void* a, int b, size_t n) { return emu_memset(a, b, n, EMU_CALLER); }
}"""

_TAKEN = ("-D", "-U", "-I", "-include")
_LONG = {"--define-macro": "-D", "--undefine-macro": "-U", "--include-path": "-I",
         "--pre-include": "-include"}  # fmt: skip


def host_options(options: Sequence[str]) -> tuple[str, ...]:
    """The options of NVRTC that mean something on the host: macros and include folders."""
    taken, rest = [], list(options)
    while rest:
        option = rest.pop(0)
        name, _, value = option.partition("=")
        if name in _LONG:
            option, value = _LONG[name], value or (rest.pop(0) if rest else "")
            taken += [option + value] if option != "-include" else [option, value]
        elif option in _TAKEN:
            value = rest.pop(0) if rest else ""
            taken += [option, value] if option == "-include" else [option + value]
        elif option.startswith(("-D", "-U", "-I")):
            taken.append(option)
        elif name in ("-std", "--std") and value in ("c++20", "c++23"):
            taken.append(f"-std={value}")
    return tuple(taken)


def _definitions(options: Sequence[str]) -> list[str]:
    """The options -D and -U as lines of the preprocessor."""
    lines = []
    for option in options:
        name, _, value = option[2:].partition("=")
        if option.startswith("-D"):
            lines.append(f"#define {name} {value if '=' in option else 1}")
        elif option.startswith("-U"):
            lines.append(f"#undef {name}")
    return lines


@functools.cache
def _text_of(path: Path, changed: int) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _text(path: Path) -> str:
    return _text_of(path, path.stat().st_mtime_ns)


def _closure(path: Path, folders: tuple[Path, ...]) -> list[Path]:
    if not path.is_file():
        raise CompileError(f"{path} is not a file")
    return reading.closure(path, folders)


@functools.cache
def _declarations(path: Path, text: str) -> dict[str, reading.Declaration]:
    return reading.kernels(text)
