"""What `step_kernels` found, as text for people and as a section of docs/performance.md."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Any

from gpunn.bench.current import Digests, Files, job_is_current
from gpunn.bench.step_calls import lost, merged
from gpunn.bench.tables import markdown as markdown_table
from gpunn.bench.tables import seconds_text, significant

TITLE = "### Where the time of a step goes\n"
INTRODUCTION = """
Each kind of call in a step, timed alone behind it. *Lost*: what all of them take in a step beyond
their floor, with warm caches; *cold*: a call whose arrays are not in the L2 cache.
"""
WIDTHS = (100, 140)  # of tables of text, in characters: the least, and where there is no terminal
LARGEST, LIBRARY = 10, 8  # rows of a job on the page: losses, and kernels that CUPTI told of


def _microseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return "<0.01" if 0 < seconds < 1e-8 else significant(seconds * 1e6)


def _fitted(headers: Sequence[str], cells: list[list[str]], right: Sequence[int], shrink: dict):
    """A table as wide as the terminal; where there is none, as a file is read."""
    from gpunn.profiling.tables import fitted

    wide = max(WIDTHS[0], shutil.get_terminal_size((WIDTHS[1], 24)).columns)
    return fitted(headers, cells, right, shrink, wide)


def title(row: dict[str, Any]) -> str:
    """The job in a line, with the times of its whole step."""
    precision = f", {row['precision']}" if "precision" in row else ""
    text = f"{row['job']}, batch {row['batch']}{precision}"
    if "calls" not in row:
        return text  # CUPTI told of it, and nothing else was done in time
    if not row["sum_seconds"]:
        floors = seconds_text(row["floor_seconds"])
        return f"{text}: the floors together are {floors}, by {row['floors_by']}"
    parts = [row["reason"]] if "reason" in row else []
    if "step_seconds" in row:
        parts.append(f"{seconds_text(row['step_seconds'])} compiled")
    if "graph_seconds" in row:
        parts.append(f"{seconds_text(row['graph_seconds'])} its graph alone")
    parts.append(f"{seconds_text(row['sum_seconds'])} the sum of its calls")
    if row["cold_sum_seconds"] != row["sum_seconds"]:
        parts.append(f"{seconds_text(row['cold_sum_seconds'])} with cold caches")
    parts.append(f"{seconds_text(row['floor_seconds'])} their floors by {row['floors_by']}")
    return f"{text}: {'; '.join(parts)}"


# ---- text ----------------------------------------------------------------------------------------


def text(row: dict[str, Any], top: int = 40) -> str:
    """A row of the results in aligned tables of at most `top` lines."""
    if "experiments" in row:
        return phases_text(row)
    from gpunn.profiling.tables import wrapped

    parts = [wrapped(title(row))]
    if row.get("calls"):
        parts.append(_calls_text(row["calls"], top))
    parts += [_profile_text(one, top) for one in row.get("profiles", ())]
    return "\n\n".join(parts)


def _calls_text(calls: Sequence[dict[str, Any]], top: int) -> str:
    from gpunn.profiling.tables import SHORT

    measured = any(call.get("seconds") is not None for call in calls)
    cells = []
    for call in calls[:top]:
        times = [_microseconds(call.get("seconds")), _microseconds(call.get("cold_seconds"))]
        if measured:
            last = call["reason"] if "reason" in call else _microseconds(lost(call))
        else:
            last = _microseconds(call["count"] * call["floor"])
        cells.append([
            SHORT[call["phase"]], call["layer"], call["primitive"], call["shapes"], call["dtype"],
            f"{call['count']} x {len(call['kernels'])}", *(times if measured else []),
            _microseconds(call["floor"]), last, call["bound"],
        ])  # fmt: skip
    numbers = ["us", "cold", "floor", "lost a step"] if measured else ["floor us", "of a step"]
    headers = ["phase", "layer", "primitive", "shapes", "dtype", "launches", *numbers, "limit"]
    shrink = {3: "start", 1: "end", 2: "start"}
    found = _fitted(headers, cells, range(5, 6 + len(numbers)), shrink)
    rest = calls[top:]
    if not rest:
        return found
    kind = "lost in" if measured else "the floors of"
    what = sum(map(lost, rest) if measured else (c["count"] * c["floor"] for c in rest))
    return f"{found}\n{seconds_text(what)} {kind} {len(rest)} more kinds of calls"


def _profile_text(profile: dict[str, Any], top: int) -> str:
    from gpunn.profiling.tables import wrapped

    if "reason" in profile:
        return wrapped(f"by CUPTI, {profile['by']}: {profile['reason']}")
    cells = [
        [one["name"], significant(one["count"]), _microseconds(one["seconds"] / one["count"]),
         _microseconds(one["seconds"])]
        for one in profile["kernels"][:top]
    ]  # fmt: skip
    found = _fitted(["kernel", "count", "us each", "us a step"], cells, range(1, 4), {0: "start"})
    return f"{_profile_title(profile)}:\n{found}"


def _profile_title(profile: dict[str, Any]) -> str:
    return (
        f"by CUPTI, {profile['by']}, {seconds_text(profile['gpu_seconds'])} of kernels in a step "
        f"of {seconds_text(profile['span_seconds'])}"
    )


def phases_text(row: dict[str, Any]) -> str:
    """The experiments with `mlp_train`, and what they say of its parts."""
    from gpunn.text import table

    headers, cells = _phases_cells(row)
    return f"{_phases_title(row)}:\n\n{table(headers, cells, right=range(2, len(headers)))}"


def _phases_title(row: dict[str, Any]) -> str:
    factors = ", ".join(
        f"{part} {seconds_text(row['parts'][part])} ({factor:.2f} x its estimate)"
        for part, factor in row["factors"].items()
    )
    return (
        f"Parts of a step inside mlp_train, fitted: {factors}; the worst experiment is off by "
        f"{row['worst']:.0%}"
    )


def _phases_cells(row: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    cells = []
    for one in row["experiments"]:
        seconds = one.get("seconds")
        cells.append([
            one["name"] + ("" if one["fitted"] else " (not fitted)"),
            "-".join(map(str, one["widths"])), str(one["batch"]), f"{one['blocks']}, {one['team']}",
            *(_microseconds(one["parts"][part]) for part in row["factors"]),
            _microseconds(sum(one["parts"].values())), _microseconds(one["fit"]),
            one.get("reason", "") if seconds is None else _microseconds(seconds),
        ])  # fmt: skip
    headers = ["experiment", "network", "batch", "blocks, team", *row["factors"],
               "estimated us", "fitted us", "measured us"]  # fmt: skip
    return headers, cells


# ---- the page ------------------------------------------------------------------------------------


def markdown(files: Files, digests: Digests) -> str:
    """A section of docs/performance.md from result files, the newest first; "" from none.

    Of each job's calls and of each profile what the newest file says that measured its present
    kernels (`digests`).
    """
    current = [
        row
        for _, result in reversed(files)
        for row in result.step_kernels
        if job_is_current(result, [row], digests)
    ]
    rows = [row for row in merged(current) if row.get("primitives")]
    return "\n".join([TITLE + INTRODUCTION, *map(_section, rows)]) if rows else ""


def _section(row: dict[str, Any]) -> str:
    if "experiments" in row:
        return f"{_phases_title(row)}:\n\n{markdown_table(*_phases_cells(row), 2)}"
    calls = [call for call in row.get("calls", ()) if "seconds" in call][:LARGEST]
    parts = [f"{title(row)}.\n"]
    if calls:
        cells = [
            [f"`{call['primitive']}`", f"`{call['layer']}`" if call["layer"] else "", call["phase"],
             call["dtype"], _kernel_names(call), str(call["count"]),
             _microseconds(call["seconds"]), _microseconds(call.get("cold_seconds")),
             _microseconds(call["floor"]), _microseconds(lost(call))]
            for call in calls
        ]  # fmt: skip
        headers = ["primitive", "layer", "phase", "dtype", "kernels", "count", "us", "cold us",
                   "floor us", "lost us"]  # fmt: skip
        parts.append(markdown_table(headers, cells, 5))
    for profile in row.get("profiles", ()):
        if "reason" in profile:
            parts.append(f"No kernels by CUPTI of {profile['by']}: {profile['reason']}.\n")
            continue
        cells = [
            [f"`{_without_bars(one['name'][:90])}`", significant(one["count"]),
             _microseconds(one["seconds"])]
            for one in profile["kernels"][:LIBRARY]
        ]  # fmt: skip
        said = _profile_title(profile)
        heads = ["kernel", "count", "us a step"]
        parts.append(f"{said[0].upper()}{said[1:]}:\n\n{markdown_table(heads, cells, 1)}")
    return "\n".join(parts)


def _kernel_names(call: dict[str, Any]) -> str:
    names = (re.match(r"\w*", one["kernel"])[0] for one in call["kernels"])
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _without_bars(text: str) -> str:
    return text.replace("|", "/").replace("`", "'")
