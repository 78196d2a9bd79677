"""Data-parallel steps timed on 1, 2, … ranks: ours beside PyTorch's DistributedDataParallel.

`measure` starts the ranks itself, all on this machine: fresh processes for each library and number
of ranks, in turns, round after round, so that a busy machine meets all of them alike; ours by
mpirun, PyTorch's with ``RANK`` and ``WORLD_SIZE``. Ratios are made within a round, and what is told
is the median of rounds.

weak    each rank has the batch of one process: the global batch grows with the ranks
strong  the global batch is that of one process, and each rank has a part of it
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpunn.bench.scaling_rank import ALONE, WITH, WITHOUT
from gpunn.bench.training import LOSS_TOLERANCE, disagreement
from gpunn.errors import GpunnError

JOBS = ("mlp-784-256-128-10", "cnn-32-64", "gpt-small")
BATCHES = {"cnn-32-64": 8}  # of a rank, where the job's own would make long steps
BYTES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
GPU_JOBS = ("mlp-784-256-128-10", "cnn-airbench", "gpt-2-124M")
GPU_BYTES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 25 << 20, 1 << 28)
OURS, TORCH = "gpunn", "torch"
TIMEOUT = 300.0  # seconds for all that one start measures


class ScalingError(GpunnError, RuntimeError):
    """Ranks of the benchmark failed, or did not end in time."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    libraries : `OURS`, `TORCH`
    ranks : how many; 1 is always among them
    jobs, kinds : of `training_jobs.JOBS`; "weak", "strong"
    batches : of a rank ("weak") or of all ("strong"), where the job's own is not meant
    bytes : sizes of the all-reduces that are timed by themselves
    rounds : how often each is started
    blocks, seconds : how many samples a start takes, and how long each lasts
    device : "cpu" or "cuda"
    """

    libraries: tuple[str, ...] = (OURS, TORCH)
    ranks: tuple[int, ...] = (1, 2)
    jobs: tuple[str, ...] = JOBS
    kinds: tuple[str, ...] = ("weak", "strong")
    batches: tuple[tuple[str, int], ...] = tuple(BATCHES.items())
    bytes: tuple[int, ...] = BYTES
    rounds: int = 5
    blocks: int = 5
    seconds: float = 0.05
    device: str = "cpu"

    def starts(self) -> list[tuple[int, str, int]]:
        """(round, library, ranks) of every start, in order: the libraries take turns."""
        return [
            (number, library, ranks)
            for number in range(self.rounds)
            for ranks in sorted({1, *self.ranks})
            for library in self.libraries[:: 1 if number % 2 == 0 else -1]
        ]


def has_torch() -> bool:
    """Whether PyTorch is installed, with its package for several processes."""
    return importlib.util.find_spec("torch") is not None


# ---- the ranks -----------------------------------------------------------------------------------


def mpirun() -> str:
    """The mpirun of this environment, else that of the machine. ScalingError if there is none."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.is_file() else shutil.which("mpirun")
    if found is None:
        raise ScalingError("there is no mpirun: pip install 'gpunn[distributed]'")
    return found


def start(library: str, ranks: int, plan: Plan) -> list[dict[str, Any]]:
    """The rows of `scaling_rank.rows`, from as many fresh processes. ScalingError if they fail."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "GPUNN_DEVICE": "cpu"}
    if plan.device == "cuda" and library == OURS:
        del environment["GPUNN_DEVICE"]  # each rank takes its own
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        told = asdict(plan) | {"library": library, "batches": dict(plan.batches)}
        told["store"] = str(Path(folder) / "store")
        (Path(folder) / "plan.json").write_text(json.dumps(told), encoding="utf-8")
        own = [sys.executable, "-m", "gpunn.bench.scaling_rank", f"{folder}/plan.json"]
        if library == TORCH:
            commands = [
                ([*own, str(results)], environment | {"RANK": str(r), "WORLD_SIZE": str(ranks)})
                for r in range(ranks)
            ]
        elif ranks == 1:
            commands = [([*own, str(results)], environment)]
        else:
            commands = [([mpirun(), "-n", str(ranks), *own, str(results)], environment)]
        run_all(commands, f"{library} on {ranks} ranks", Path(folder))
        return json.loads(results.read_text(encoding="utf-8"))


def run_all(commands: Sequence[tuple[list[str], dict[str, str]]], what: str, folder: Path) -> None:
    """Run them at the same time; the first that fails, or none ending in time, ends all."""
    with contextlib.ExitStack() as stack:
        running = []
        for number, (command, environment) in enumerate(commands):
            log = stack.enter_context((folder / f"log{number}").open("w+b"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, process)
            running.append((process, log))
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until and any(one.poll() is None for one, _ in running):
            if any(one.poll() for one, _ in running):
                break
            time.sleep(0.02)
        failed = [one for one in running if one[0].poll()]
        for process, log in failed or [one for one in running if one[0].poll() is None]:
            code, _ = process.poll(), log.seek(0)
            state = f"did not end within {TIMEOUT:.0f} s" if code is None else f"ended with {code}"
            raise ScalingError(f"{what}: a process {state}\n{log.read().decode()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---- rounds --------------------------------------------------------------------------------------


def measure(
    plan: Plan,
    said: Callable[[str], Any] = print,
    starter: Callable[[str, int, Plan], list[dict[str, Any]]] = start,
) -> list[dict[str, Any]]:
    """All of a plan: what `summaries` makes of the rounds. `said` is told of every start."""
    starts, begin = plan.starts(), time.monotonic()
    found: list[dict[str, Any]] = []
    for number, (round_, library, ranks) in enumerate(starts):
        rows = starter(library, ranks, plan)
        found += [row | {"by": library, "round": round_} for row in rows]
        took = time.monotonic() - begin
        left = took / (number + 1) * (len(starts) - number - 1)
        said(f"[{number + 1}/{len(starts)}] round {round_ + 1}, {library} on {ranks} "
             f"rank{'s' * (ranks > 1)}: {took:.0f} s, {left:.0f} s to go")  # fmt: skip
    return summaries(found)


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each library, job, kind and number of ranks, and for each size of all-reduce.

    ``step``, ``without`` and ``alone`` are medians of rounds in seconds, ``rounds`` holds what they
    are of. For several ranks also, each the median of ratios made within a round: ``over_one``, the
    step's time over that of one rank with the batch of one process; ``efficiency``: its inverse
    ("weak"), or that over the number of ranks ("strong"); ``hidden``: the share of the reduction's
    own time by which the step is not longer than without it, below 0 if it costs more than that.
    Rows whose losses are not those of the first with the same global batch have a ``reason``.
    """
    grouped: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in rows:
        key = (row["kind"], row.get("job"), row.get("bytes"), row["ranks"], row["by"])
        grouped.setdefault(key, {})[row["round"]] = row
    made = []
    for (kind, job, size, ranks, by), by_round in _sorted(grouped):
        first = next(iter(by_round.values()))
        row = {"kind": kind, "by": by, "ranks": ranks, "device": first["device"]}
        row |= {"bytes": size} if kind == "sum" else {"job": job, "batch": first["batch"]}
        medians = {
            name: [statistics.median(one["times"][name]) for one in by_round.values()]
            for name in first["times"]
        }
        row["rounds"] = medians
        row |= {name: statistics.median(values) for name, values in medians.items()}
        if kind != "sum":
            row |= {"losses": first["losses"], "precision": first.get("precision", "fp32")}
            one = grouped.get(("weak", job, None, 1, by), {})
            row |= _ratios(row, by_round, one)
        made.append(row)
    for row in made:
        _judge(row, made)
    return made


def _sorted(grouped: dict[tuple[Any, ...], Any]) -> Iterator[tuple[Any, Any]]:
    """As they came, but one after the other what is compared: kind, job, ranks, library."""
    jobs = list(dict.fromkeys(key[1] for key in grouped))
    kinds = ("weak", "strong", "sum")

    def place(key: tuple[Any, ...]) -> tuple[int, ...]:
        return kinds.index(key[0]), jobs.index(key[1]), key[2] or 0, key[3]

    for key in sorted(grouped, key=place):
        yield key, grouped[key]


def _ratios(
    row: dict[str, Any], by_round: dict[int, dict[str, Any]], one: dict[int, dict[str, Any]]
) -> dict[str, float]:
    """Those of `summaries`; `one`: by round, the same by a single process."""
    base = {number: statistics.median(found["times"][WITH]) for number, found in one.items()}
    rounds, made = row["rounds"], {}
    over = [
        step / base[number]
        for number, step in zip(by_round, rounds[WITH], strict=True)
        if number in base
    ]
    if over and row["ranks"] > 1:
        made["over_one"] = statistics.median(over)
        shares = 1 if row["kind"] == "weak" else row["ranks"]
        made["efficiency"] = 1 / (made["over_one"] * shares)
    if WITHOUT in rounds:
        both = list(zip(rounds[WITH], rounds[WITHOUT], rounds[ALONE], strict=True))
        made["hidden"] = statistics.median(1 - (step - without) / a for step, without, a in both)
    return made


def _judge(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Give it a ``reason`` if its losses are not those of the first with the same global batch."""
    if row["kind"] == "sum":
        return
    same = next(r for r in rows if r.get("job") == row["job"] and r["batch"] == row["batch"])
    apart = disagreement(same["losses"], row["losses"])
    if not apart <= LOSS_TOLERANCE[row["precision"]]:
        row["reason"] = (
            f"the losses differ by {apart:.1e} of their size from those of {same['by']} on "
            f"{same['ranks']} rank{'s' * (same['ranks'] > 1)}"
        )
