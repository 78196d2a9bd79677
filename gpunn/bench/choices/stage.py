"""The stage "choices" of the run on hardware: compile what the ways need, then time them.

The ways of a problem are timed interleaved, in replayed graphs. The problems that are known least,
and of these the heaviest, come first.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpunn.bench.cases import copies_for, last_level_cache, precision, room_for_copies
from gpunn.bench.choices.plans import MLP_STEPS
from gpunn.bench.choices.problems import (
    Problem,
    described,
    from_json,
    rounded,
    to_json,
    verdict,
    ways_of,
)
from gpunn.bench.choices.ways import Maker, Way
from gpunn.bench.machine import noting_launcher
from gpunn.bench.timing import Contestant, captured, clock_for, interleave, one_line
from gpunn.device.device import Device
from gpunn.device.launch import RecordingLauncher, device_properties

if TYPE_CHECKING:
    from gpunn.bench.hardware import Run

COMPILING = 0.5  # of the seconds, at most
TOGETHER = 4  # kernels that one child compiles before it takes the next item
# Ways whose estimate is beyond this multiple of the least are left out; sooner where the least is
# long: there estimates are nearer the truth, and a poor way takes the time of many others.
WORTH_TIMING, LONG_WORTH_TIMING, LONG_SECONDS = 4.0, 2.5, 5e-5
SAMPLES, SAMPLE_SECONDS = 5, 2e-4
# A graph lasts so long and has so many calls at most, or a call for each set of inputs; these are
# so many at most, and as many as short calls get through in so long.
GRAPH_SECONDS, GRAPH_CALLS, SETS, TURN_SECONDS = 1e-4, 10, 8, 2e-4

Kernel = tuple[str, str]  # source and expression


def choices(run: Run, seconds: float) -> str:
    """Every way that the rules choose among, timed."""
    from gpunn.bench.choices.listing import all_problems, tiny_problems

    begin = time.monotonic()
    items = [
        {"id": f"choices {one.problem.key}", "problem": to_json(one.problem), "where": one.where}
        for one in (tiny_problems() if run.tiny else all_problems())
    ]
    items, said = run.known.first(items, lambda item: ("choice", _key(item)))
    needed = {item["id"]: kernels_of(from_json(item["problem"]), run.device) for item in items}
    missing: dict[Kernel, str] = {}
    if run.device.type == "cuda":
        kernels = dict.fromkeys(k for of in needed.values() for some in of.values() for k in some)
        left = seconds - (time.monotonic() - begin)
        missing = compile_all(run, list(kernels), COMPILING * left)
    for item in items:
        item["skip"] = {
            name: missing[kernel]
            for name, some in needed[item["id"]].items()
            for kernel in some
            if kernel in missing
        }
    compiled = time.monotonic() - begin
    outcome = run.supervise("choices", items, seconds - compiled)
    for item in items:
        found = outcome.results.get(item["id"], {}).get("choice")
        if found is not None:
            run.found.choices.append(found)
    text = f"{summary(run.found.choices)} of {len(items)}; {said}"
    return f"{text}; listed and compiled in {compiled:.0f} s"


def _key(item: dict[str, Any]) -> str:
    return item["id"].removeprefix("choices ")


def summary(found: list[dict[str, Any]]) -> str:
    """How many problems, and what the choices cost beside the fastest ways."""
    regrets = [one["regret"] for one in found if one["regret"]]
    if not regrets:
        return "0 problems"
    mean = math.exp(sum(map(math.log, regrets)) / len(regrets))
    return f"the choices take {mean:.2f} times the fastest ways of {len(regrets)} problems"


def kernels_of(problem: Problem, device: Device) -> dict[str, list[Kernel]]:
    """The kernels of each way that is worth timing, by its name; nothing is launched."""
    launch = noting_launcher(problem.source, device)
    with precision(problem.dtype):
        ways, inputs = ways_of(problem, launch)
        reasons, needed = left_out(ways), {}
        for way in ways:
            if way.name not in reasons:
                launch.launches.clear()
                way.run(launch, inputs)
                needed[way.name] = list(dict.fromkeys(launch.launches))
    return needed


def compile_all(run: Run, kernels: list[Kernel], seconds: float) -> dict[Kernel, str]:
    """Compile in several processes, the first ones first. Returns why kernels are not there."""
    arch = device_properties(run.device.index)["arch"]
    by_source: dict[str, list[str]] = {}
    for source, expression in kernels:
        by_source.setdefault(source, []).append(expression)
    items, place = [], {kernel: number for number, kernel in enumerate(kernels)}
    for source, some in by_source.items():
        for start in range(0, len(some), TOGETHER):
            items.append({"id": f"for choices: {source} {start // TOGETHER}", "source": source,
                          "arch": arch, "expressions": some[start : start + TOGETHER]})  # fmt: skip
    items.sort(key=lambda item: place[item["source"], item["expressions"][0]])
    outcome = run.supervise("compile", items, seconds, jobs=max(1, min(16, os.cpu_count() or 2)))
    missing: dict[Kernel, str] = {}
    for item in items:  # what does not compile, the launch will tell
        name = item["id"]
        if name not in outcome.results:
            why = outcome.crashed.get(name) or outcome.not_run.get(name) or "it was not compiled"
            reason = f"its kernel: {why[:200]}"
            missing |= {(item["source"], one): reason for one in item["expressions"]}
    return missing


# ---- in a child ----------------------------------------------------------------------------------


def time_one(item: dict[str, Any], device: Device, tiny: bool) -> dict[str, Any]:
    """Time one problem in a child; a result as the stages have it."""
    sizes = (2, 1e-5) if tiny else (SAMPLES, SAMPLE_SECONDS)
    found, failed = measure(from_json(item["problem"]), device, item["skip"], *sizes)
    failures = [{"case": name, "reason": reason} for name, reason in failed.items()]
    return {
        "passed": not failures,
        "checked": sum("median" in one for one in found["options"]),
        "failures": failures,
        "choice": found | {"where": item["where"], "problem": item["problem"]},
    }


def launcher_of(problem: Problem, device: Device) -> Any:
    """What launches a problem on a device; on a CPU one that launches nothing, for dry runs."""
    if device.type == "cuda":
        from gpunn.device.cuda_launch import cuda_launcher

        return cuda_launcher(problem.source, device)
    return RecordingLauncher(problem.source)


def left_out(ways: list[Way]) -> dict[str, str]:
    """Why ways are not worth timing, by their names."""
    least = min(way.estimate for way in ways)
    limit = LONG_WORTH_TIMING if least >= LONG_SECONDS else WORTH_TIMING
    reason = f"its estimate is beyond {limit:g} times the least"
    return {way.name: reason for way in ways if way.estimate > limit * least}


def measure(
    problem: Problem, device: Device, skip: dict[str, str] | None = None,
    samples: int = SAMPLES, sample_seconds: float = SAMPLE_SECONDS,
) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
    """Time the ways of a problem. Returns an object for result files, and why ways failed.

    skip : why ways, by their names, are not to be run: what lacks a kernel, for example
    """
    each = MLP_STEPS if problem.kind == "mlp" else 1  # its estimate is that of a step
    with precision(problem.dtype), clock_for(device) as clock:
        launch = launcher_of(problem, device)
        place = device if device.type == "cuda" else None
        sets = [problem.inputs(Maker(place))]
        ways = problem.options(sets[0], launch)
        cache, copies = last_level_cache(device), 1
        if device.type == "cuda":
            short = TURN_SECONDS / (each * min(way.estimate for way in ways))
            room = room_for_copies(device)
            copies = max(1, min(SETS, int(short), copies_for(problem.bytes, cache, room)))
        sets += [problem.inputs(Maker(place)) for _ in range(copies - 1)]
        reasons = left_out(ways) | (skip or {})
        failed, contestants = {}, []
        for way in ways:
            if way.name in reasons:
                continue
            contestant = Contestant(way.name, _in_turns(way, launch, sets))
            if device.type == "cuda":
                calls = min(GRAPH_CALLS, math.ceil(GRAPH_SECONDS / (each * way.estimate)))
                try:
                    contestant = captured(contestant, clock, max(copies, calls))
                except Exception as error:
                    failed[way.name] = one_line(error)
                    continue
            contestants.append(contestant)
        times, more = interleave(contestants, clock, samples, sample_seconds)
    failed |= more
    found = described(problem, ways, reasons | failed)
    found["device"], found["mode"] = str(device), "graph" if device.type == "cuda" else "cpu"
    found["cache"] = "cold" if problem.bytes * copies >= 2 * cache else "warm"
    for option in found["options"]:
        timing = times.get(option["name"])
        if timing is not None:
            option["median"] = rounded(timing.median / each)
            option["quartiles"] = [rounded(one / each) for one in timing.quartiles]
    return found | verdict(found), failed


def _in_turns(way: Way, launch: Any, sets: list) -> Callable[[int], None]:
    return lambda i: way.run(launch, sets[i % len(sets)])
