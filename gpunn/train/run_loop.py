"""Loops of a job's own training: progress, checkpoints, resuming."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpunn.autograd.random import manual_seed
from gpunn.train import run_folder as files
from gpunn.train.checkpoint import load_checkpoint, numbered, save_checkpoint
from gpunn.train.history import History

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
    named = {key: part for key, part in parts.items() if key in _NAMED}
    others = {key: part for key, part in parts.items() if key not in _NAMED}
    folder = run.folder / files.CHECKPOINTS / name
    history, first = History(), 0
    if folder.is_dir() and numbered(folder):
        extra = load_checkpoint(folder, **named)
        history.load_state_dict(extra["history"])
        first = extra["next"]
        for key, part in others.items():
            part.load_state_dict(extra["parts"][key])

    def save(following: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(
            folder / f"checkpoint-{following:08d}.safetensors",
            **named,
            extra={
                "history": history.state_dict(),
                "next": following,
                "parts": {key: part.state_dict() for key, part in others.items()},
            },
        )
        for _, path in numbered(folder)[_KEPT:]:
            path.unlink()

    progress = _Progress(run, count, first)
    try:
        for number in range(first, count):
            started = time.perf_counter()
            record: dict[str, float] = {}
            # The numbers of an iteration depend on the seed and its own number alone.
            manual_seed(_mixed(run.config.seed, number))
            yield number, record
            seconds = time.perf_counter() - started
            history.append({"epoch": number + 1, **record, "seconds": seconds})
            progress.show(history)
            if (number + 1) % every == 0 or number + 1 == count:
                save(number + 1)
    finally:
        progress.close()
    run._keep(name, history)


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
