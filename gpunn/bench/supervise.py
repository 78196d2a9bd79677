"""Running items of a stage in child processes, so that none can take the others down.

A kernel that writes where it must not poisons the CUDA context of its whole process: every later
call fails. So the items of a stage run in a child, one after another; the child notes the begin
and the end of each in a file; and when it dies, hangs or gives itself up, the parent blames the
item under way and starts a new child with the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpunn.bench.machine import checkout

# The exit code of a child that found its CUDA context unusable.
POISONED = 77
POLL_SECONDS = 0.05
# How compute-sanitizer begins to tell of an error, while the program goes on.
FOUND = re.compile(
    rb"^=+ (?:Invalid|Misaligned|(?:Error|Warning): (?:Race|Potential))", re.MULTILINE
)


@dataclass
class Outcome:
    """What became of the items, by their ids: results, or why there is none."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def update(self, other: Outcome) -> None:
        """Take in another outcome."""
        self.results |= other.results
        self.crashed |= other.crashed
        self.not_run |= other.not_run


def supervise(
    stage: str,
    items: Sequence[dict[str, Any]],
    *,
    device: str,
    seconds: float,
    item_seconds: float = 60.0,
    jobs: int = 1,
    tiny: bool = False,
    prefix: Sequence[str] = (),
) -> Outcome:
    """Run the items of a stage in `jobs` children at a time within `seconds` in all.

    Each item is a JSON object with an ``"id"``; its ``"tree"``, if it has one, is the folder whose
    package runs it instead of this one. `prefix` stands before the child's command (a debugging
    tool). What is not done in time is listed as not run.
    """
    deadline = time.monotonic() + seconds
    trees: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        trees.setdefault(item.get("tree", str(checkout())), []).append(item)
    shares = [(tree, of_it[start::jobs]) for tree, of_it in trees.items() for start in range(jobs)]
    command = ["--device", device, *(["--tiny"] if tiny else [])]

    def run(share):
        tree, mine = share
        environment = child_environment(jobs, tree)
        return _run_share(stage, mine, command, prefix, deadline, item_seconds, environment, tree)

    outcome = Outcome()
    with ThreadPoolExecutor(jobs) as pool:
        for one in pool.map(run, (share for share in shares if share[1])):
            outcome.update(one)
    return outcome


def _run_share(
    stage: str,
    items: list[dict[str, Any]],
    command: list[str],
    prefix: Sequence[str],
    deadline: float,
    item_seconds: float,
    environment: dict[str, str],
    tree: str,
) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="gpunn-") as folder:
        while items:
            if time.monotonic() >= deadline:
                outcome.not_run |= {item["id"]: "no time was left" for item in items}
                break
            items = _one_child(
                stage, items, command, prefix, deadline, item_seconds, environment, tree,
                Path(folder), outcome,
            )  # fmt: skip
    return outcome


def _one_child(
    stage, items, command, prefix, deadline, item_seconds, environment, tree, folder: Path,
    outcome: Outcome,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run one child over the items; note what it did and return the items still to do."""
    todo, notes, errors = folder / "items.json", folder / "notes.jsonl", folder / "errors.txt"
    todo.write_text(json.dumps(items))
    notes.write_text("")
    arguments = [stage, *command, "--items", str(todo), "--notes", str(notes)]
    with open(errors, "wb") as sink:
        child = subprocess.Popen(
            [*prefix, sys.executable, "-m", "gpunn.bench.stages", *arguments],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=os.name == "posix",
        )
        why = _watch(child, notes, deadline, item_seconds)
    begun, ended = read_notes(notes)
    outcome.results |= ended
    rest = [item for item in items if item["id"] not in ended]
    said = tail(errors)
    if prefix and (rest or child.returncode not in (0, POISONED)):  # a debugging tool
        what = f"{Path(prefix[0]).name} {' '.join(prefix[1:3])} from {items[0]['id']}"
        if found := FOUND.search(text := errors.read_bytes()):  # perhaps before it was stopped
            outcome.crashed[what] = text[found.start() :][:1500].decode(errors="replace")
        elif not rest:
            outcome.crashed[what] = f"it ended with code {child.returncode}: {said}"
    if not rest:
        return []
    reason = why or f"the process ended with code {child.returncode}: {said}"
    if begun in {item["id"] for item in rest}:
        if "no time was left" in reason:
            outcome.not_run[begun] = reason
        else:
            outcome.crashed[begun] = reason
        return [item for item in rest if item["id"] != begun]
    # It gave up between two items, after a failure that is noted. (A tool has a code of its own.)
    if child.returncode == POISONED or (prefix and begun in ended and not why):
        return rest
    outcome.not_run |= {item["id"]: reason for item in rest}
    return []


def child_environment(jobs: int = 1, tree: str | Path | None = None) -> dict[str, str]:
    """The environment with a tree, by default the checkout, first on Python's path.

    `jobs` children at a time share the cores: each with as many threads as there are cores would
    make NumPy's products, the reference of most checks, slower and not faster.
    """
    old = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (str(tree or checkout()), old)))
    found = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if jobs > 1:
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        found |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    return found


def _watch(child: subprocess.Popen, notes: Path, deadline: float, item_seconds: float) -> str:
    """Wait for the child; kill it when the time is up and return why, else an empty string."""
    size, since = 0, time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            now, new = time.monotonic(), notes.stat().st_size
            if new != size:
                size, since = new, now
            if now > deadline:
                return "no time was left: stopped while it ran"
            if now - since > item_seconds:
                return f"stopped: it took more than {item_seconds:.0f} s"
    finally:
        stop(child)
    return ""


def stop(child: subprocess.Popen) -> None:
    """End a child that was started in a session of its own, with all that it has started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
    child.wait()


def read_notes(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The id of the item begun last, and the results of those that ended."""
    begun, ended = None, {}
    for line in path.read_text().splitlines():
        try:
            note = json.loads(line)
        except ValueError:  # the child was stopped while it wrote
            continue
        if "begin" in note:
            begun = note["begin"]
        else:
            ended[note["end"]] = note["result"]
    return begun, ended


def tail(path: Path, characters: int = 1500) -> str:
    """The end of what a child has said."""
    text = path.read_bytes().decode(errors="replace").strip()
    return text[-characters:] if text else "it said nothing"
