"""The profile as a trace in Chrome's format, which Perfetto shows too.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: an object with a
list of events; ``"ph": "X"`` is something with a beginning and a duration in microseconds,
``"C"`` a counter, ``"M"`` gives rows their names. Events of a row must lie inside each other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpunn.io import write_text
from gpunn.profiling.recording import Entry

HOST, DEVICE = 1, 2
_ROWS = {"layers": 1, "forward": 2, "backward": 3, "update": 4}


def events(report) -> list[dict[str, Any]]:
    """The events of a report."""
    on_gpu = report.device.startswith("cuda")
    main = DEVICE if on_gpu else HOST
    found = _names(HOST, "host" if on_gpu else report.device, ("layers",) if on_gpu else _ROWS)
    if on_gpu:
        found += _names(DEVICE, report.device, tuple(_ROWS)[1:])
    for entry in report.entries:
        if entry.kind == "kernel":
            found.append(_event(entry, main, _ROWS[entry.phase], entry.start, entry.seconds))
            if not on_gpu:
                continue
        found.append(_event(entry, HOST, _ROWS["layers"], entry.host_start, entry.host_seconds))
    if report.memory is not None:
        for time, used in zip(report.memory.times, report.memory.bytes, strict=True):
            found.append({
                "name": "memory", "ph": "C", "ts": time * 1e6, "pid": main,
                "args": {"bytes": used},
            })  # fmt: skip
    return found


def _names(process: int, name: str, rows) -> list[dict[str, Any]]:
    found = [{"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}]
    for row in rows:
        found.append({
            "name": "thread_name", "ph": "M", "pid": process, "tid": _ROWS[row],
            "args": {"name": row},
        })  # fmt: skip
        found.append({
            "name": "thread_sort_index", "ph": "M", "pid": process, "tid": _ROWS[row],
            "args": {"sort_index": _ROWS[row]},
        })  # fmt: skip
    return found


def _event(entry: Entry, process: int, row: int, start: float, seconds: float) -> dict[str, Any]:
    args: dict[str, Any] = {"layer": entry.layer, "phase": entry.phase}
    if entry.what:
        args["what"] = entry.what
    if entry.kind == "kernel":
        args |= {
            "shapes": entry.shapes, "dtype": entry.dtype, "flops": entry.flops,
            "bytes": entry.bytes,
        }  # fmt: skip
        if entry.seconds > 0:
            args |= {
                "GB/s": entry.bytes / entry.seconds / 1e9,
                "GFLOP/s": entry.flops / entry.seconds / 1e9,
            }
    return {
        "name": entry.name, "cat": entry.kind, "ph": "X", "ts": start * 1e6, "dur": seconds * 1e6,
        "pid": process, "tid": row, "args": args,
    }  # fmt: skip


def save(report, path: str | Path) -> None:
    """Write the trace."""
    whole = {
        "traceEvents": events(report), "displayTimeUnit": "ms",
        "otherData": {"device": report.device, "steps": report.steps},
    }  # fmt: skip
    write_text(path, json.dumps(whole, separators=(",", ":"), allow_nan=False))
