"""What the runtime reports of a launch, in words: lines of the source, arguments, elements."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.emulator import build as building
from gpunn.emulator import findings, toolchain
from gpunn.emulator.findings import (
    Finding,
    LifetimeError,
    Place,
    RaceError,
    UninitializedReadError,
)
from gpunn.emulator.tensor_map import TensorMap

_FIRST = (findings.DivergenceError,)
_MEMORY = {2: "static shared memory", 3: "dynamic shared memory"}


def raise_findings(made: building.Compiled, arrays: list, text: str) -> None:
    """Raise the error that the runtime's lines of text stand for, if there is one.

    `arrays` are the array arguments as `launching` has mapped them.
    """
    rows = [line.split("\t") for line in text.splitlines()]
    rows = [row for row in rows if len(row) >= 17]
    wanted = {int(row[i]) for row in rows for i in (1, 2) if int(row[i])}
    places = resolve(made.build.path, wanted)
    found = []
    for row in rows:
        numbers = [int(field) for field in row[:16]]
        one = _finding(made, arrays, places, numbers, "\t".join(row[16:]))
        if one is not None:
            found.append(one)
    # A read before the write that it should have waited for: the race says more.
    races = [_spot(r, r.other) for r in found if r.other and r.error is RaceError]
    found = [f for f in found if f.error is not UninitializedReadError or _spot(f, f) not in races]
    if found:
        # Where threads lost each other, what they did to memory is a consequence.
        found.sort(key=lambda one: one.error not in _FIRST)
        raise found[0].error(found)


def raise_if_freed(made: building.Compiled, number: int, map: TensorMap) -> None:
    """Raise a LifetimeError if the memory behind a tensor map is free, or another array's by now.

    The place is that of the Python that asked for the memory, if it is known.
    """
    if map.lifetime is None or not map.lifetime.over:
        return
    path, line = map.lifetime.place
    text = (
        f"{made.called(number)} is a tensor map of memory that was freed before this launch: keep "
        f"its array{', made at this line,' if line else ''} until the kernel has run"
    )
    memory = f"{map.array.dtype} as {map.array.shape}, all of it or a part"
    place = Place(path, line, _source_line(path, line))
    raise LifetimeError([Finding(LifetimeError, made.name, text, place, None, memory, number)])


def _spot(finding: Finding, place: Any) -> tuple:
    """A line and the kind of memory that it uses."""
    return place.file, place.line, finding.memory.split(",")[0]


def _finding(made, arrays, places, numbers, text) -> Finding | None:
    fault, at, other_at, bx, by, bz, tx, ty, tz, *where, other_block, other, rank = numbers
    place = _placed(places.get(at), (bx, by, bz), (tx, ty, tz))
    second = None
    if other_at:
        who = "an asynchronous copy or the tensor cores" if other == -2 else ""
        second = _placed(places.get(other_at), None, None, who or _thread(other, other_block, rank))
    if fault == findings.IF_LINES_DIFFER and (
        second is None or (second.file, second.line) == (place.file, place.line)
    ):
        return None
    memory, argument, index = _memory(made, arrays, *where)
    error = findings.FAULTS[fault]
    return Finding(error, made.name, text, place, second, memory, argument, index)


def _thread(number: int, block: int, rank: int) -> str:
    return f"thread {number} of block {block}" if number >= 0 else ""


def _placed(found: Place | None, block, thread, who="") -> Place:
    found = found or Place("", 0, "")
    return Place(found.file, found.line, found.text, found.callers, block, thread, who)


def _memory(made, arrays: list, kind: int, address: int, base: int, rank: int):
    """(words, argument number, index) of the memory that a finding is about."""
    if kind in _MEMORY:
        whose = f" of block {rank} of the cluster" if rank >= 0 else ""
        return f"{_MEMORY[kind]}{whose}, byte {address}", None, None
    if kind == 4:
        return f"address {address:#x}", None, None
    if kind != 1 or not arrays:
        return "", None, None
    inside = [a for a in arrays if a.holds(address)]
    meant = [a for a in arrays if a.area.device == base] or arrays
    near = inside[0] if inside else min(meant, key=lambda a: _distance(a, address))
    element = (address - near.device) // near.array.itemsize
    index: Any = element
    shape = near.array.shape
    if inside and near.array.ndim > 1 and near.array.flags.c_contiguous:
        index = tuple(int(i) for i in np.unravel_index(element, shape))
    words = f"{made.called(near.number)}, {near.array.dtype} of shape {shape}, element {index}"
    return words, near.number, index


def _distance(array, address: int) -> int:
    start = array.area.device + array.low - array.area.host
    end = start + array.high - array.low
    return start - address if address < start else address - end


def resolve(shared_object: Path, offsets: set[int]) -> dict[int, Place]:
    """Source lines of places in a shared object, with those that they were inlined into."""
    if not offsets:
        return {}
    ordered = sorted(offsets)
    command = ["addr2line", "-a", "-i", "-e", str(shared_object)]
    # A place is where a call returns to: the line is that of the byte before.
    done = subprocess.run(
        [*command, *(hex(offset - 1) for offset in ordered)], capture_output=True, text=True
    )
    places, chain = {}, {}
    for line in done.stdout.splitlines():
        if re.fullmatch(r"0x[0-9a-f]+", line):
            chain = places.setdefault(int(line, 16) + 1, [])
        else:
            chain.append(line)
    return {offset: _innermost(lines) for offset, lines in places.items()}


def _innermost(lines: list[str]) -> Place:
    frames = []
    for line in lines:
        path, _, rest = line.rpartition(":")
        number = re.match(r"\d+", rest)
        if number and path and path != "??":
            frames.append((path, int(number[0])))
    outside = [f for f in frames if not _private(f[0])]
    if not outside:
        return Place("", 0, "")
    (path, number), *around = outside
    callers = tuple(
        f"{os.path.basename(file)}:{line}" for file, line in around if not file.endswith(".cpp")
    )
    return Place(path, number, _source_line(path, number), callers)


def _private(path: str) -> bool:
    """Whether a file is the emulator's own or a wrapper of PTX: findings belong to who calls it."""
    return path.startswith(_HOST) or os.path.basename(path).startswith("ptx")


_HOST = str(toolchain.HOST)


@functools.lru_cache(maxsize=64)
def _lines(path: str, changed: float) -> tuple[str, ...]:
    return tuple(Path(path).read_text(encoding="utf-8", errors="replace").splitlines())


def _source_line(path: str, number: int) -> str:
    try:
        return _lines(path, os.stat(path).st_mtime)[number - 1].rstrip()
    except (OSError, IndexError):
        return ""
