"""Timing candidates: two processes for each case, one from either tree, that work in turns."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from gpunn.bench import supervise
from gpunn.bench.candidate_patch import Candidate, Timed
from gpunn.bench.machine import checkout
from gpunn.bench.products import LAUNCH_BOUND_SECONDS
from gpunn.bench.timing import Timing, rotated
from gpunn.bench.training import disagreement
from gpunn.device.device import Device

SAMPLES = 12  # of each side
PAIRS = 6  # cases prepared at the same time, in two processes each
ANSWER_SECONDS = 60.0  # of a child: longer, and it hangs
NO_TIME = "no time was left"
# By how much a product's error may grow. TF32 operands that are cut off instead of rounded double
# it. What is below the second number is as exact as float32 sums in any order.
ERROR_GROWTH, EXACT = 1.5, 5e-7
# How it begins that gpunn and CuPy, NumPy, or CUDA's two interfaces say that there is none left.
OUT_OF_MEMORY = re.compile("MemoryError|OUT_OF_MEMORY|MemoryAllocation")


class NotTimed(Exception):
    """A case has no time; the text says why."""


class Side:
    """A child that prepares cases from one tree and times them when asked; see `candidate_child`.

    A child that died or was stopped is started again by the next request.
    """

    def __init__(self, tree: Path, device: Device, tiny: bool, errors: Path):
        self.tree, self.errors = tree, errors
        self._command = [sys.executable, "-m", "gpunn.bench.candidate_child", "--device",
                         str(device), *(["--tiny"] if tiny else [])]  # fmt: skip
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._pump: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether there is a child."""
        return self._child is not None

    def start(self) -> None:
        """Start the child, if there is none."""
        if self._child is not None and self._child.poll() is None:
            return
        self.stop()
        with open(self.errors, "wb") as sink:
            self._child = subprocess.Popen(
                self._command, cwd=self.tree, env=supervise.child_environment(2 * PAIRS, self.tree),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True,
                start_new_session=os.name == "posix",
            )  # fmt: skip
        self._answers = queue.Queue()
        self._pump = threading.Thread(
            target=_read_all, args=(self._child.stdout, self._answers), daemon=True
        )
        self._pump.start()

    def ask(self, action: str, **arguments: Any) -> None:
        """Send a request; the next thing to do is to take its answer."""
        self.start()
        assert self._child is not None and self._child.stdin is not None
        with contextlib.suppress(OSError):  # if it is gone, `answer` will tell
            self._child.stdin.write(json.dumps({"do": action, **arguments}) + "\n")
            self._child.stdin.flush()

    def answer(self, until: float, seconds: float | None = None) -> dict[str, Any]:
        """The answer to the request. NotTimed if it is an error or does not come in time."""
        wait = min(ANSWER_SECONDS if seconds is None else seconds, until - time.monotonic())
        try:
            line = self._answers.get(timeout=max(wait, 0.0))
        except queue.Empty:
            self.stop()
            late = time.monotonic() >= until
            reason = NO_TIME if late else f"stopped: no answer within {ANSWER_SECONDS:g} s"
            raise NotTimed(reason) from None
        if line is None:
            assert self._child is not None
            code = self._child.wait()
            self.stop()
            raise NotTimed(f"the process ended with code {code}: {supervise.tail(self.errors)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if answer["lost"]:
                self.stop()
            raise NotTimed(answer["error"])
        return answer

    def call(self, action: str, until: float, **arguments: Any) -> dict[str, Any]:
        """A request and its answer."""
        if time.monotonic() >= until:
            raise NotTimed(NO_TIME)
        self.ask(action, **arguments)
        return self.answer(until)

    def stop(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is None:
            return
        supervise.stop(child)
        if self._pump is not None:
            self._pump.join(5)
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # what it has not read can no longer be written
                if pipe is not None:
                    pipe.close()


def _read_all(pipe: IO[str], answers: queue.Queue[str | None]) -> None:
    """Put every line into the queue, and None at the end."""
    for line in pipe:
        answers.put(line)
    answers.put(None)


def time_candidates(
    chosen: Sequence[Candidate], trees: dict[str, Path], device: Device, until: float,
    scratch: Path, tiny: bool = False,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Time the cases of each candidate, the first of all before the second of any.

    Returns by name what result files have as ``cases``; a case that was not timed has a ``reason``.
    `trees` are the patched ones, `scratch` is a folder for what children say.
    """
    width = min(PAIRS, len(chosen))
    olds = [Side(checkout(), device, tiny, scratch / f"old-{i}.txt") for i in range(width)]
    news = {
        one.name: Side(trees[one.name], device, tiny, scratch / f"{one.name}.txt")
        for one in chosen
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {one.name: [] for one in chosen}
    rounds = 1 if tiny else max((len(one.timed) for one in chosen), default=0)
    try:
        if time.monotonic() < until:
            _release([*olds, *news.values()], until)  # starts them, and waits until all are there
        for number in range(rounds):
            todo = [one for one in chosen if number < len(one.timed)]
            for start in range(0, len(todo), width):
                group = todo[start : start + width]
                pairs = [
                    (old, news[one.name], one.timed[number])
                    for old, one in zip(olds, group, strict=False)
                ]
                rows = _time_group(pairs, until, tiny)
                for i, (one, pair) in enumerate(zip(group, pairs, strict=True)):
                    if OUT_OF_MEMORY.search(rows[i].get("reason", "")):  # others have left theirs
                        rows[i : i + 1] = _time_group([pair], until, tiny)
                    found[one.name].append(rows[i])
    finally:
        for side in (*olds, *news.values()):
            side.stop()
    return found


def _time_group(
    pairs: Sequence[tuple[Side, Side, Timed]], until: float, tiny: bool
) -> list[dict[str, Any]]:
    """Prepare some cases at the same time, then time one after the other; a row each."""
    rows: list[dict[str, Any]] = [{"kind": one.kind, "case": one.key} for _, _, one in pairs]
    if time.monotonic() >= until:
        return [row | {"reason": NO_TIME} for row in rows]
    for old, new, one in pairs:
        for side in (old, new):
            side.ask("prepare", kind=one.kind, key=one.key)
    begin = time.monotonic()
    for (old, new, _), row in zip(pairs, rows, strict=True):
        answers = {}
        for label, side in (("before", old), ("after", new)):
            try:
                answers[label] = side.answer(until, begin + ANSWER_SECONDS - time.monotonic())
            except NotTimed as error:
                row.setdefault("reason", f"{label}: {error}")
        if "reason" not in row:
            row |= _compared(answers["before"], answers["after"])
    for (old, new, _), row in zip(pairs, rows, strict=True):
        if "reason" not in row:
            try:
                row |= in_turns(old, new, until, 2 if tiny else SAMPLES)
            except NotTimed as error:
                row["reason"] = str(error)
        _release([side for side in (old, new) if side.running], until)
    return rows


def _release(sides: Sequence[Side], until: float) -> None:
    """Let all give their memory back; those that do not run are started."""
    for side in sides:
        side.ask("release")
    for side in sides:
        with contextlib.suppress(NotTimed):
            side.answer(until)


def _compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is known of a case before it is timed; a reason not to time it, if the losses of a step
    differ or the result of a product is less exact than before."""
    if "off" in before:
        off = {"before": before["off"], "after": after["off"]}
        if not off["after"] <= max(EXACT, ERROR_GROWTH * off["before"]):  # NaN is not either
            return {"reason": "its error is {after:.1e}, before {before:.1e}".format(**off)}
        return {"cache": before["cache"], "errors": off}
    if "losses" not in before:
        return {"cache": before["cache"]}
    apart = disagreement(before["losses"], after["losses"], before["compared"])
    if not apart <= before["tolerance"]:
        return {"reason": f"the losses differ from those before by {apart:.1e} of their size"}
    return {}


def in_turns(old: Side, new: Side, until: float, samples: int = SAMPLES) -> dict[str, Any]:
    """Samples of both sides in turns, of what they have prepared: ``mode``, ``before`` and
    ``after`` (seconds a call), ``ratio`` (median before over median after, above 1 the new one is
    faster) and ``spread`` (the larger distance of quartiles over the median)."""
    sides = (old, new)
    said = [side.call("calibrate", until) for side in sides]
    found: dict[str, Any] = {}
    short = min(one["seconds"] for one in said) < LAUNCH_BOUND_SECONDS
    if short and all(one["may_graph"] for one in said):
        try:
            said = [side.call("calibrate", until, graph=True) for side in sides]
        except NotTimed as error:
            found["note"] = f"not captured into a graph: {error}"
            said = [side.call("calibrate", until) for side in sides]
    found["mode"] = ", then ".join(dict.fromkeys(one["mode"] for one in said))
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(samples):
        for which in rotated((0, 1), number):
            answer = sides[which].call("sample", until, number=number + 1)
            times[which].append(answer["seconds"])
    before, after = (Timing(tuple(values)) for values in times)
    return found | {
        "before": times[0], "after": times[1], "ratio": before.median / after.median,
        "spread": max(before.spread, after.spread),
    }  # fmt: skip
