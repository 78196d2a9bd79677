"""`ProgressBar`: one bar over the whole training on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import IO, Any

from gpunn.train.callbacks import Callback

_SHORT = {"validation_loss": "val loss", "validation_accuracy": "val accuracy"}
_NOT_SHOWN = ("epoch", "learning_rate", "seconds")


class ProgressBar(Callback):
    """Show the epoch, the loss and the metrics while training.

    On a terminal: one tqdm bar over all epochs, redrawn at most every `refresh` seconds (reading
    the running loss waits for the device, so it is not done at every step). Elsewhere (a log file,
    a pipe): a plain line for the first epoch, about 20 more over the training, and the last one.

    Parameters
    ----------
    file : where to write; standard output if None
    refresh : seconds between two looks at the running loss
    lines : how many plain lines at most, besides the first and the last
    """

    main_only = True

    def __init__(self, file: IO[str] | None = None, refresh: float = 0.2, lines: int = 20):
        self.file, self.refresh, self.lines = file, float(refresh), max(1, int(lines))
        self._bar: Any = None

    def on_train_begin(self, trainer: Any) -> None:
        self._out = self.file or sys.stdout
        self._shown = 0.0
        self._validation: dict[str, float] = {}
        self._printed: int | None = None
        self._last: tuple[int, dict[str, float]] | None = None
        self._every = max(1, round(trainer.epochs / self.lines))
        self._width = len(str(trainer.epochs))
        self._bar = self._make_bar(trainer) if self._out.isatty() else None

    def _make_bar(self, trainer: Any) -> Any:
        from tqdm import tqdm

        columns = shutil.get_terminal_size().columns
        self._digits = 4 if columns >= 120 else 3  # a narrow terminal gets shorter numbers
        total = None if trainer.steps is None else trainer.epochs * trainer.steps
        known = "{bar:20} {n_fmt}/{total_fmt} steps  {elapsed}<{remaining}  {desc}"
        if columns < 120:
            known = "{bar:8} {desc} {remaining}"
        return tqdm(
            total=total,
            file=self._out,
            ncols=columns - 1,
            mininterval=self.refresh,
            initial=getattr(trainer, "steps_before", 0),
            bar_format=known if total else "{n_fmt} steps  {desc}  {elapsed}",
        )

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        self._title = self._epoch(trainer, epoch)

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._shown >= self.refresh:
            self._shown = now
            self._describe({**trainer.running(collected=False), **self._validation})
        self._bar.update()

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        self._last = (epoch, dict(record))
        if self._bar is not None:
            # Between epochs the bar keeps showing the last validation beside the running loss.
            self._validation = {k: v for k, v in record.items() if k.startswith("validation_")}
            self._describe(record)
        elif epoch == trainer.first_epoch or epoch % self._every == 0:
            self._line(trainer, epoch, record)

    def on_train_end(self, trainer: Any) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
        elif self._last is not None and self._printed != self._last[0]:
            self._line(trainer, *self._last)

    def _describe(self, record: dict[str, float]) -> None:
        text = f"{self._title}  {_text(record, self._digits)}"
        if self._digits < 4:
            text = text.removeprefix("epoch ").replace("  ", " ")
        self._bar.set_description_str(text, refresh=False)

    def _line(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        text = f"{self._epoch(trainer, epoch)}  {_text(record)}  {record['seconds']:.2f} s"
        print(text, file=self._out, flush=True)
        self._printed = epoch

    def _epoch(self, trainer: Any, epoch: int) -> str:
        last = trainer.first_epoch + trainer.epochs - 1
        return f"epoch {epoch:{self._width}d}/{last}"


def _text(record: dict[str, float], digits: int = 4) -> str:
    shown = ((name, value) for name, value in record.items() if name not in _NOT_SHOWN)
    return "  ".join(
        f"{_SHORT.get(name, name.replace('_', ' '))} {_number(value, digits)}"
        for name, value in shown
    )


def _number(value: float, digits: int) -> str:
    plain = 1e-3 <= abs(value) < 1e4 or value == 0
    return f"{value:.{digits}f}" if plain else f"{value:.{digits - 1}e}"
