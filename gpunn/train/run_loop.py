"""Loops of a job's own training: progress, checkpoints, resuming."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpunn.autograd.random import manual_seed
from gpunn.train import run_folder as files
from gpunn.train.checkpoint import load_checkpoint, numbered, save_checkpoint, state_of
from gpunn.train.checkpoint_file import CheckpointError
from gpunn.train.history import History
from gpunn.train.signals import Signals

if TYPE_CHECKING:
    from gpunn.train.run import Run

_NAMED = ("model", "optimizer", "scheduler", "scaler", "loader")  # of save_checkpoint
_KEPT = 2


def run_loop(
    run: Run, count: int, name: str, every: int, parts: dict[str, Any]
) -> Iterator[tuple[int, dict[str, float]]]:
    """See `Run.loop`."""
    if count < 1 or every < 1:
        raise ValueError(f"loop: count and every must be 1 or more, got {count} and {every}")
    kept = _Kept(run.folder / files.CHECKPOINTS / name, parts)
    history, first = kept.load()
    if first:
        run.say(f"goes on from iteration {first} of {count}" if first < count else
                f"nothing is left to train: all {count} iterations were made")  # fmt: skip
    progress, signals = _Progress(run, count, first), Signals()
    try:
        with signals.listening():
            for number in range(first, count):
                started = time.perf_counter()
                record: dict[str, float] = {}
                # The numbers of an iteration depend on the seed and its own number alone.
                manual_seed(_mixed(run.config.seed, number))
                yield number, record
                seconds = time.perf_counter() - started
                history.append({"epoch": number + 1, **record, "seconds": seconds})
                progress.show(history)
                asked = signals.asked is not None
                if asked or (number + 1) % every == 0 or number + 1 == count:
                    kept.save(history, number + 1)
                if asked:
                    break
    finally:
        progress.close()
    run._keep(name, history)
    if signals.asked is not None:
        run.say(f"stopped; go on with {run.advice}")
        signals.leave()


class _Kept:
    """The checkpoints of a loop: `parts` by name, its history, and how many iterations were made.

    Their files are numbered from 2: 1 would be the one before anything was made, as of `fit`.
    """

    def __init__(self, folder: Path, parts: dict[str, Any]):
        self.folder = folder
        self.named = {key: part for key, part in parts.items() if key in _NAMED}
        self.others = {key: part for key, part in parts.items() if key not in _NAMED}
        for key, part in self.others.items():
            state_of(part, f"part {key!r}, a")

    def load(self) -> tuple[History, int]:
        """Fill the parts from the last checkpoint, if there is one."""
        history = History()
        if not self.folder.is_dir() or not numbered(self.folder):
            return history, 0
        for path in self.folder.glob(".checkpoint-*.safetensors"):  # half written, then killed
            path.unlink()
        extra = load_checkpoint(self.folder, **self.named)
        there = extra.get("parts")
        if not isinstance(there, dict) or set(there) != set(self.others):
            raise CheckpointError(
                f"the checkpoints in {self.folder} are of another training; begin a new run"
            )
        for key, part in self.others.items():
            part.load_state_dict(there[key])
        history.load_state_dict(extra["history"])
        return history, extra["made"]

    def save(self, history: History, made: int) -> None:
        """Write a checkpoint after `made` iterations."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(
            self.folder / f"checkpoint-{made + 1:08d}.safetensors",
            **self.named,
            extra={
                "history": history.state_dict(),
                "made": made,
                "parts": {key: part.state_dict() for key, part in self.others.items()},
            },
        )
        for _, path in numbered(self.folder)[_KEPT:]:
            path.unlink()


def _mixed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**63


class _Progress:
    """A bar on a terminal, else some twenty lines."""

    def __init__(self, run: Run, count: int, first: int):
        self.run, self.count, self.every = run, count, max(1, count // 20)
        self.bar: Any = None
        if run.verbose and sys.stdout.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=count, initial=first, file=sys.stdout, dynamic_ncols=True)

    def show(self, history: History) -> None:
        """After an iteration."""
        record = history[-1]
        text = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if key != "seconds")
        if self.bar is not None:
            self.bar.set_description_str(text.partition("  ")[2], refresh=False)
            self.bar.update()
        elif record["epoch"] % self.every == 0 or record["epoch"] in (1, self.count):
            self.run.say(text.replace("epoch", "iteration", 1))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
