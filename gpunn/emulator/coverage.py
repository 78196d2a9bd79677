"""Which lines of device code have run in the emulator, counted by gcov.

    GPUNN_EMULATOR_COVERAGE=1 GCOV_PREFIX=counts python my_script.py
    python -m gpunn.emulator.coverage counts --minimum 95

With the environment variables set, every process that launches kernels unchecked adds its counts
to the files in the folder, also several at a time. (Checked launches are not counted.) For tests
there is ``pytest --emulator-coverage``. Only g++ can do it.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gpunn.device.sources import kernels_folder
from gpunn.emulator import toolchain
from gpunn.errors import DeviceError
from gpunn.text import table

EVERYTHING = ("*.cu", "*.cuh")


@dataclass
class FileLines:
    """One source: the lines that can be executed, and how often each was."""

    path: Path
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        """Lines that were never executed."""
        return sorted(line for line, count in self.counts.items() if not count)

    @property
    def executed(self) -> int:
        """How many lines were executed."""
        return len(self.counts) - len(self.missing)

    def text(self, line: int) -> str:
        """The line itself."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[line - 1].strip() if line <= len(lines) else ""


@dataclass
class Lines:
    """All sources, and those of which no kernel was compiled."""

    files: list[FileLines]
    not_compiled: list[Path]

    @property
    def total(self) -> int:
        """Lines that can be executed."""
        return sum(len(file.counts) for file in self.files)

    @property
    def executed(self) -> int:
        """Lines that were."""
        return sum(file.executed for file in self.files)

    @property
    def percent(self) -> float:
        """100 · executed / total; 0 if there is nothing."""
        return 100 * self.executed / self.total if self.total else 0.0

    def shortfall(self, minimum: float) -> str:
        """Why this is less than `minimum` percent, or "" if it is not."""
        if self.not_compiled and minimum > 0:
            names = ", ".join(path.name for path in self.not_compiled)
            return f"no kernel of {names} was compiled"
        if self.percent < minimum:
            return f"{self.percent:.1f}% of the device code were executed, less than {minimum:g}%"
        return ""

    def summary(self) -> str:
        """One sentence, and the lines that were not executed."""
        text = f"device code: {self.percent:.1f}% of {self.total} lines executed"
        missing = [f"{f.path.name}:{spans(f.missing)}" for f in self.files if f.missing]
        missing += [f"{path.name} (not compiled)" for path in self.not_compiled]
        return text + (f"; not executed: {' '.join(missing)}" if missing else "")

    def __str__(self) -> str:
        rows = [
            (
                file.path.name,
                len(file.counts),
                file.executed,
                f"{100 * file.executed / len(file.counts):.1f}%",
                spans(file.missing),
            )
            for file in self.files
        ]
        rows += [(path.name, "", "", "", "not compiled") for path in self.not_compiled]
        rows.append(("all", self.total, self.executed, f"{self.percent:.1f}%", ""))
        return table(["file", "lines", "executed", "", "not executed"], rows, right=(1, 2, 3))


def spans(lines: Sequence[int]) -> str:
    """``3,7-9`` for [3, 7, 8, 9]."""
    groups: list[list[int]] = []
    for line in lines:
        if groups and line == groups[-1][1] + 1:
            groups[-1][1] = line
        else:
            groups.append([line, line])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in groups)


# ---- counting ------------------------------------------------------------------------------------


def start(folder: str | os.PathLike) -> None:
    """Count from now on, in this process and in those that it starts, into files in `folder`.

    Raises DeviceError if the compiler cannot count lines.
    """
    gcov_program()
    os.environ["GPUNN_EMULATOR_COVERAGE"] = "1"
    os.environ["GCOV_PREFIX"] = str(Path(folder).resolve())


def dump() -> None:
    """Add what this process has counted so far to the files. It also happens when a process ends,
    unless it is killed."""
    for path in sorted(_loaded()):
        ctypes.CDLL(path).emu_dump_coverage()  # loaded already: this only finds it


def _loaded() -> set[str]:
    """Paths of the shared objects in this process that count lines."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        found = re.findall(r"(/\S.*/[^/\n]+-coverage-[0-9a-f]+\.so)$", maps.read(), re.MULTILINE)
    return {path for path in found if os.path.dirname(path).endswith("emulator")}


def collect(
    folder: str | os.PathLike,
    source: str | os.PathLike | None = None,
    patterns: Sequence[str] = EVERYTHING,
    leave_out: Sequence[str] = (),
) -> Lines:
    """Put together all counts in `folder`.

    Parameters
    ----------
    folder : given to `start`
    source : count only files in this folder, not in those below it; default: gpunn's kernels
    patterns, leave_out : count only files whose names match one of `patterns` and none of
        `leave_out`

    Raises
    ------
    FileNotFoundError : nothing was counted, or the cache has been emptied since
    DeviceError : there is no gcov that fits the compiler
    """
    program = gcov_program()
    home = Path(source).resolve() if source is not None else (kernels_folder() / "cuda").resolve()
    if not home.is_dir():
        raise FileNotFoundError(f"there is no folder {home}")
    counted = sorted(Path(folder).resolve().rglob("*.gcda"))
    if not counted:
        raise FileNotFoundError(
            f"nothing was counted in {folder}: no kernel was launched there without checks"
        )

    def wanted(path: Path) -> bool:
        matches = any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
        return matches and not any(fnmatch.fnmatch(path.name, pattern) for pattern in leave_out)

    # A source given as text is compiled from a copy: what was read from a file here counts for it.
    texts = {path.read_bytes(): path for path in home.glob("*.cu")}
    kept = toolchain.folder().resolve()

    @functools.cache
    def original(path: Path) -> Path:
        return texts.get(path.read_bytes(), path) if path.parent == kept else path

    files: dict[Path, FileLines] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for found in pool.map(lambda path: _counts(program, Path(folder).resolve(), path), counted):
            for path, line, count in found:
                path = original(path)
                if path.parent == home and wanted(path):
                    counts = files.setdefault(path, FileLines(path)).counts
                    counts[line] = counts.get(line, 0) + count
    sources = [path for path in sorted(home.glob("*.cu")) if wanted(path)]
    return Lines(
        [files[path] for path in sorted(files)], [path for path in sources if path not in files]
    )


def _counts(program: str, folder: Path, data: Path) -> list[tuple[Path, int, int]]:
    """(file, line, count) of one file of counts."""
    notes = data.with_suffix(".gcno")
    if not notes.exists():
        original = Path("/") / notes.relative_to(folder)
        if not original.is_file():
            raise FileNotFoundError(f"{original} is missing: the cache was emptied after the run")
        shutil.copy(original, notes)
    command = [program, "--json-format", "--stdout", data.name]
    done = subprocess.run(command, cwd=data.parent, capture_output=True, text=True)
    if done.returncode:
        raise DeviceError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    found = []
    for text in done.stdout.splitlines():
        read = json.loads(text)
        base = Path(read.get("current_working_directory", "/"))
        for file in read["files"]:
            path = Path(os.path.realpath(base / file["file"]))
            found += [(path, line["line_number"], line["count"]) for line in file["lines"]]
    return found


def gcov_program() -> str:
    """The gcov that belongs to the compiler. DeviceError if there is none."""
    compiler = toolchain.compiler()
    if compiler.kind != "g++":
        raise DeviceError(
            f"lines are counted by gcov, which needs g++; the compiler here is {compiler} "
            "(set GPUNN_CXX to a g++)"
        )
    beside = Path(compiler.path).with_name(Path(compiler.path).name.replace("g++", "gcov"))
    for name in (str(beside), f"gcov-{compiler.version}", "gcov"):
        path = shutil.which(name)
        if path is None:
            continue
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"(\d+)\.\d+", text.partition("\n")[0].rpartition(")")[2])
        if version and int(version[1]) == compiler.version:
            return path
    raise DeviceError(f"there is no gcov {compiler.version} for {compiler.path}: install it")


# ---- python -m gpunn.emulator.coverage -----------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if fewer lines than asked for were executed, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m gpunn.emulator.coverage",
        description="Which lines of device code have run in the emulator.",
        epilog="example: GPUNN_EMULATOR_COVERAGE=1 GCOV_PREFIX=counts python my_script.py; "
        "python -m gpunn.emulator.coverage counts --source kernels --minimum 95",
    )
    parser.add_argument("folder", help="the folder that GCOV_PREFIX named")
    parser.add_argument(
        "--source", metavar="FOLDER", help="count files of this folder (default: gpunn's kernels)"
    )
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="PATTERN", help="such as 'ptx*'"
    )
    parser.add_argument("--minimum", type=float, default=0.0, metavar="PERCENT")
    parser.add_argument("--lines", action="store_true", help="print the lines not executed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        lines = collect(given.folder, given.source, leave_out=given.leave_out)
    except (OSError, DeviceError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(as_json(lines), indent=1))
    else:
        print(lines)
        if given.lines:
            for file in lines.files:
                for line in file.missing:
                    print(f"{file.path.name}:{line}: {file.text(line)}")
    shortfall = lines.shortfall(given.minimum)
    if shortfall:
        print(shortfall, file=sys.stderr)
    return 1 if shortfall else 0


def as_json(lines: Lines) -> dict:
    """The counts for programs."""
    return {
        "lines": lines.total,
        "executed": lines.executed,
        "percent": round(lines.percent, 3),
        "files": {
            file.path.name: {
                "lines": len(file.counts),
                "executed": file.executed,
                "not executed": file.missing,
            }
            for file in lines.files
        },
        "not compiled": [path.name for path in lines.not_compiled],
    }


if __name__ == "__main__":
    sys.exit(main())
