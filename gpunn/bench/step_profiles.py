"""The kernels of a step as the GPU itself tells them, by CUPTI through `torch.profiler`.

CUPTI sees every kernel of the process, whoever launched it: PyTorch's, cuDNN's, ours, CuPy's, also
those inside a replayed graph. So a kernel of ours and the library's that does the same can stand
side by side. Where PyTorch is not there, or the machine does not allow CUPTI, there is a reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KEPT = 40  # kernels of a step that are told one by one; the others are one row
NAME = 240  # characters of a name: templates tell much, and more than that nothing
WORK = {"kernel": "", "gpu_memcpy": "copy: ", "gpu_memset": "fill: "}  # kinds of events -> before


class NoProfile(RuntimeError):
    """CUPTI tells nothing here; the text says why."""


def kernel_times(run: Callable[[int], Any], runs: int, steps: int = 1) -> dict[str, Any]:
    """What the GPU does in `runs` calls of ``run(i)``, each of `steps` steps; times of one step.

    Gives ``kernels``, the longest first: `name`, `count` and `seconds` of a step; ``gpu_seconds``,
    the sum; and ``span_seconds``, from the first beginning to the last end, over the steps.
    Raises NoProfile where nothing is told.
    """
    if importlib.util.find_spec("torch") is None:
        raise NoProfile("PyTorch is not installed, and its profiler is what asks CUPTI")
    import torch
    from torch.profiler import ProfilerActivity

    if not torch.cuda.is_available():
        raise NoProfile("PyTorch sees no GPU here")
    return summed(traced(run, runs, [ProfilerActivity.CUDA], torch.cuda.synchronize), runs * steps)


def traced(
    run: Callable[[int], Any], runs: int, activities: list[Any], wait: Callable[[], Any]
) -> list[dict[str, Any]]:
    """The events of `runs` calls, behind one more that is not noted: in it CUPTI is attached."""
    from torch.profiler import profile, schedule

    # A process with CUDA graphs from which CUPTI was detached may crash when it is attached again.
    os.environ["TEARDOWN_CUPTI"] = "0"
    events: list[dict[str, Any]] = []

    def export(found: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="gpunn-") as folder:
            path = Path(folder) / "trace.json"
            found.export_chrome_trace(str(path))
            events.extend(json.loads(path.read_text("utf-8"))["traceEvents"])

    once = schedule(wait=0, warmup=1, active=1, repeat=1)
    with profile(activities=activities, schedule=once, on_trace_ready=export) as profiler:
        for calls in (1, runs):
            for i in range(calls):
                run(i)
            wait()
            profiler.step()
    return events


def summed(events: Iterable[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The events of a trace in Chrome's format, as `kernel_times` gives them.

    Only what the GPU worked on counts: ranges that users name lie over kernels and are no work.
    Raises NoProfile without any.
    """
    mine = [event for event in events if event.get("ph") == "X" and event.get("cat") in WORK]
    if not mine:
        raise NoProfile(
            "CUPTI told of no kernel: this machine may not allow it (the driver's option "
            "NVreg_RestrictProfilingToAdminUsers), or another profiler holds it"
        )
    sums: dict[str, list[float]] = {}
    for event in mine:
        one = sums.setdefault(short_name(WORK[event["cat"]] + event["name"]), [0, 0.0])
        one[0] += 1
        one[1] += event["dur"] * 1e-6
    kernels = [
        {"name": name, "count": count / steps, "seconds": seconds / steps}
        for name, (count, seconds) in sorted(sums.items(), key=lambda one: -one[1][1])
    ]
    if len(kernels) > KEPT:
        rest = kernels[KEPT:]
        total = {key: sum(one[key] for one in rest) for key in ("count", "seconds")}
        kernels[KEPT:] = [{"name": f"{len(rest)} others", **total}]
    begin = min(event["ts"] for event in mine)
    end = max(event["ts"] + event["dur"] for event in mine)
    return {
        "kernels": kernels,
        "gpu_seconds": sum(one["seconds"] for one in kernels),
        "span_seconds": (end - begin) * 1e-6 / steps,
    }


def short_name(name: str) -> str:
    """A kernel's name without what all of them have, and cut."""
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\(anonymous namespace\)::|at::native::|at_cuda_detail::", "", name)
    name = re.sub(r"\([^()]*\)( \[clone [^\]]*\])?$", "", name)  # the types of its arguments
    name = name.rstrip()
    return name if len(name) <= NAME else name[: NAME - 1] + "…"
