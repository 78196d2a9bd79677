"""The tables of a report: by kernel, by layer, call by call; as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass

from gpunn.bench.tables import seconds_text, significant
from gpunn.profiling.recording import Entry
from gpunn.text import table

BY = ("kernel", "layer", "call")
SHORT = {"forward": "fwd", "backward": "bwd", "update": "upd"}
WIDTHS = (80, 100)  # of the text, in characters
_SMALL = 0.01  # operations below this share are summed up in one row


def columns() -> int:
    """The width of the text: that of the terminal within limits, the most where there is none."""
    least, most = WIDTHS
    return min(max(shutil.get_terminal_size((most, 24)).columns, least), most)


@dataclass
class _Sum:
    """What belongs together."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    floor: float = 0.0

    def add(self, entry: Entry, ceilings) -> None:
        self.calls += 1
        self.seconds += entry.own
        self.flops += entry.flops
        self.bytes += entry.bytes
        if ceilings is not None and entry.kind == "kernel":
            self.floor += _floor(entry, ceilings)


def _floor(entry: Entry, ceilings) -> float:
    return max(entry.bytes / ceilings.copy, entry.flops / ceilings.rate(entry.dtype))


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _rates(found: _Sum, ceilings) -> list[str]:
    if not found.seconds or not (found.bytes or found.flops):
        cells = ["", ""]
    else:
        cells = [
            significant(found.bytes / found.seconds / 1e9),
            significant(found.flops / found.seconds / 1e9),
        ]
    if ceilings is not None:
        cells.append(_share(found.floor, found.seconds) if found.floor else "")
    return cells


def _limit_header(ceilings) -> list[str]:
    return [] if ceilings is None else ["of limit"]


def _count(calls: int, steps: int) -> str:
    return significant(calls / steps) if calls % steps else str(calls // steps)


def by_kernel(report) -> str:
    """The primitives, the longest first, then what lay between them."""
    ceilings, steps = report.ceilings, report.steps
    sums: dict[str, _Sum] = {}
    between: dict[str, _Sum] = {}
    for entry in report.entries:
        group = sums if entry.kind == "kernel" else between
        group.setdefault(_between(entry), _Sum()).add(entry, ceilings)
    rows = []
    for name, found in sorted(sums.items(), key=lambda item: -item[1].seconds):
        rows.append([
            name, _count(found.calls, steps), seconds_text(found.seconds / steps),
            _share(found.seconds, report.seconds), seconds_text(found.seconds / found.calls),
            *_rates(found, ceilings),
        ])  # fmt: skip
    rows += _between_rows(report, between)
    headers = ["kernel", "calls", "time", "share", "each", "GB/s", "GFLOP/s"]
    text = fitted([*headers, *_limit_header(ceilings)], rows, range(1, 8), {0: "start"})
    return f"{text}\n\n{closing(report)}"


def _between(entry: Entry) -> str:
    """The row of what an entry took by itself."""
    if entry.kind in ("operation", "view"):
        return f"  in {entry.name}" + (" backward" if entry.phase == "backward" else "")
    if entry.kind == "layer":
        return "  in layers and optimizer"
    if entry.kind == "kernel":
        return entry.name
    return f"  in {entry.name}" if entry.parent >= 0 else "  outside layers"


def _between_rows(report, between: dict[str, _Sum]) -> list[list[str]]:
    total = sum(found.seconds for found in between.values())
    width = 6 if report.ceilings is None else 7
    rows = [["between kernels", "", seconds_text(total / report.steps),
             _share(total, report.seconds), *[""] * (width - 3)]]  # fmt: skip
    rest = 0.0
    for name, found in sorted(between.items(), key=lambda item: -item[1].seconds):
        if found.seconds < _SMALL * report.seconds:
            rest += found.seconds
            continue
        rows.append([name, _count(found.calls, report.steps),
                     seconds_text(found.seconds / report.steps),
                     _share(found.seconds, report.seconds), *[""] * (width - 3)])  # fmt: skip
    if rest:
        rows.append(["  others below 1% each", "", seconds_text(rest / report.steps),
                     _share(rest, report.seconds), *[""] * (width - 3)])  # fmt: skip
    return rows


def layer_sums(report, depth: int | None = None) -> dict[str, dict[str, float]]:
    """Layer -> seconds of its kernels by phase, "between" (what no kernel took), and "what"."""
    found: dict[str, dict] = {}
    for entry in report.entries:
        layer, what = entry.layer, entry.what
        if depth is not None and layer.count(".") >= depth:
            layer, what = ".".join(layer.split(".")[:depth]), ""
        row = found.setdefault(layer, {
            "what": what, "calls": 0, "forward": 0.0, "backward": 0.0, "update": 0.0,
            "between": 0.0,
        })  # fmt: skip
        row[entry.phase if entry.kind == "kernel" else "between"] += entry.own
        row["calls"] += entry.kind == "kernel"
        row["what"] = row["what"] or what
    return found


def by_layer(report, depth: int | None = None) -> str:
    """The layers in the order in which they first ran."""
    steps = report.steps
    sums = layer_sums(report, depth)
    if "" in sums:
        sums["outside layers"] = sums.pop("")  # the last row
    rows = []
    for name, row in sums.items():
        total = row["forward"] + row["backward"] + row["update"] + row["between"]
        kernels = [seconds_text(row[key] / steps) if row[key] else ""
                   for key in ("forward", "backward", "update")]  # fmt: skip
        rows.append([name, row["what"], _count(row["calls"], steps), *kernels,
                     seconds_text(row["between"] / steps), _share(total, report.seconds)])
    headers = ["layer", "what", "kernels", "forward", "backward", "update", "between", "share"]
    return fitted(headers, rows, range(2, 8), {0: "end", 1: "start"}) + f"\n\n{closing(report)}"


def by_call(report) -> str:
    """Every run of a primitive, in order."""
    ceilings = report.ceilings
    rows = []
    for entry in report.kernels:
        one = _Sum()
        one.add(entry, ceilings)
        rows.append([
            SHORT[entry.phase], entry.layer, entry.name, entry.shapes, seconds_text(entry.own),
            *_rates(one, ceilings),
        ])  # fmt: skip
    headers = ["phase", "layer", "kernel", "shapes", "time", "GB/s", "GFLOP/s"]
    headers += _limit_header(ceilings)
    text = fitted(headers, rows, range(4, len(headers)), {3: "start", 1: "end", 2: "start"})
    return f"{text}\n\n{closing(report)}"


def fitted(headers, rows, right, shrink: dict[int, str], width: int | None = None) -> str:
    """A table of at most `width` characters (default: `columns`) where that can be.

    shrink : column -> which part of its cells to keep, "start" or "end", if the table is too wide;
        the first named column gives way first, and none below 12 characters
    """
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for column, keep in shrink.items():
        excess = sum(widths) + 2 * (len(widths) - 1) - (width or columns())
        if excess <= 0:
            break
        widths[column] = room = max(12, widths[column] - excess)
        for row in rows:
            if len(row[column]) > room:
                cell = row[column]
                row[column] = "…" + cell[1 - room :] if keep == "end" else cell[: room - 1] + "…"
    return table(headers, rows, right=right)


def wrapped(text: str, start: str = "") -> str:
    """A sentence in lines of at most `columns` characters."""
    return textwrap.fill(
        text, columns(), initial_indent=start, subsequent_indent=" " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def closing(report) -> str:
    """The sentences below every table."""
    count, steps = len(report.kernels), report.steps
    each = " a step" if steps > 1 else ""
    runs = f"{_count(count, steps)} kernel run{'s' * (count != steps)}"
    text = (
        f"{runs}{each}, {seconds_text(report.kernel_seconds / steps)} "
        f"of {seconds_text(report.seconds / steps)}{each} on {report.device}"
    )
    if report.device.startswith("cuda"):
        text += f"; the host was done after {seconds_text(report.host_seconds / steps)}"
    lines = [text + (f" (mean of {steps} steps)." if steps > 1 else ".")]
    if not count:
        lines.append("What a captured graph replays is one piece: profile the step uncompiled.")
    if report.ceilings is not None:
        source = report.ceilings.how.get("copy", "known ceilings")
        lines.append(wrapped(
            f"Of limit: the least time by bandwidth ({source}) and rate, over the time taken."
        ))  # fmt: skip
    if report.memory is not None:
        lines.append(wrapped(f"Memory: {report.memory.text()}."))
    return "\n".join(lines)
