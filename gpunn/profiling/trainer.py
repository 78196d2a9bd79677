"""`StepProfiler`: profiles a few steps of a training and writes what it found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpunn.io import write_text
from gpunn.profiling.context import profile, region
from gpunn.profiling.report import Report

TABLES, TRACE, MEMORY = "profile.txt", "trace.json", "memory.png"


class StepProfiler:
    """Profiles steps `first` to ``first + steps - 1`` of a training, as the Trainer runs them.

    Call ``with profiler.around_step():`` around each step. The earlier ones warm up: caches fill,
    kernels are compiled. What lies between two profiled steps (waiting for data, callbacks) is in
    the profile too. After the last one, or when `finish` is called earlier, the tables go to
    ``profile.txt`` and the trace to ``trace.json`` in `folder`, or, without a folder, the table by
    kernel is printed. Everything else costs a step one comparison.

    Parameters
    ----------
    first : number of the first step to profile, from 1
    steps : how many
    folder : where the files go, made if it is not there; None prints
    options : as of `profile`: memory, model, device, nvtx

    Attributes
    ----------
    report : the `Report`, None before the end
    """

    def __init__(
        self,
        first: int = 3,
        steps: int = 5,
        folder: str | os.PathLike | None = None,
        **options: Any,
    ):
        for name, value in (("first", first), ("steps", steps)):
            if value < 1:
                raise ValueError(f"StepProfiler: {name} is {value}; expected 1 or more")
        self.first, self.steps = int(first), int(steps)
        self.folder = None if folder is None else Path(folder)
        self._options = options
        self._count = 0  # steps begun
        self._profiled = 0  # steps ended inside the profile
        self._running: profile | None = None
        self._open: Report | None = None
        self.report: Report | None = None

    @contextlib.contextmanager
    def around_step(self) -> Iterator[None]:
        """To be put around every step."""
        self._count += 1
        if self.report is not None or self._count < self.first:
            yield
            return
        if self._running is None:
            self._running = profile(**self._options)
            self._open = self._running.__enter__()
        try:
            with region("step"):
                yield
        except BaseException:
            self._end()  # a step that broke off: nobody may stay under profile
            raise
        self._profiled += 1
        if self._profiled == self.steps:
            self.finish()

    def finish(self) -> Report | None:
        """End the profile if it is running, write what it found, and return it."""
        if self._running is None:
            return self.report
        self._end()
        if self._profiled:
            self.report = self._open
            self.report.steps = self._profiled
            self._write()
        return self.report

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(None, None, None)

    def _write(self) -> None:
        report = self.report
        if self.folder is None:
            print(report.table())
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = [report.table("kernel"), report.table("layer"), report.table("call")]
        write_text(self.folder / TABLES, "\n\n\n".join(parts) + "\n")
        report.save_trace(self.folder / TRACE)
        if report.memory is not None:
            report.plot_memory(self.folder / MEMORY)
