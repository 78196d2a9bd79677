"""`TensorBoardLogger`: a training as event files that TensorBoard shows."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from gpunn.train.loggers import StepLogger
from gpunn.train.watch import GradientWatch, Statistics

_numbers = count()


class TensorBoardLogger(StepLogger):
    """Write event files that TensorBoard shows: ``tensorboard --logdir FOLDER``.

    The horizontal axis counts weight updates, for all that is written. Scalars: the loss and each
    metric after an epoch (``loss/training``, ``loss/validation``, …), ``epoch``, ``learning_rate``,
    ``seconds``, and with `every` the running means as ``step/…``. Texts: the model, and what it is
    trained by. A run that goes on from a checkpoint adds a file that takes back what the lost part
    had written.

    Parameters
    ----------
    folder : of this run; TensorBoard compares the runs of the folder above it
    every : also write the running loss and metrics, and the learning rate, every so many steps
    watch : histograms, norms and means of weights and gradients, whenever this `GradientWatch`
        looks; it is driven by the logger and need not be among the callbacks
    images : every so many epochs, pictures of the first layer's filters and of a
        `ConfusionMatrix` among the trainer's metrics; needs matplotlib
    image_shape : of one input image, to show the filters of a first layer that is no convolution
    figures : name -> function of the trainer giving a matplotlib Figure, for the same epochs
    text : name -> text to write once, such as a configuration

    Needs ``pip install "gpunn[tensorboard]"``; ImportError says so.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int | None = None,
        watch: GradientWatch | None = None,
        images: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        figures: Mapping[str, Callable[[Any], Any]] | None = None,
        text: Mapping[str, str] | None = None,
    ):
        super().__init__(every)
        if images is not None and images < 1:
            raise ValueError(f"TensorBoardLogger: images must be 1 or more, got {images}")
        _tensorboardx()
        self.folder, self.watch, self.image_shape = Path(folder), watch, image_shape
        self.images = images or (1 if figures else None)
        self.builtin_images, self.figures = images is not None, dict(figures or {})
        self.text = dict(text or {})
        self._file: Any = None

    @property
    def wants_steps(self) -> bool:
        return self.every is not None or (self.watch is not None and self.watch.wants_steps)

    def state_dict(self) -> dict[str, Any]:
        own = super().state_dict()
        return own if self.watch is None else own | {"watch": self.watch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.watch is not None and "watch" in state:
            self.watch.load_state_dict(state["watch"])

    # ---- when -----------------------------------------------------------------------------------

    def on_train_begin(self, trainer: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.watch is not None:
            self.watch.on_train_begin(trainer)
        super().on_train_begin(trainer)

    def begin(self, trainer: Any) -> None:
        self._write_texts(trainer)

    def go_back(self, place: dict[str, int]) -> None:
        # What was written for this very step stays, unless it can only be that of an epoch whose
        # end was lost.
        known = place["epoch_step"] == place["step"] or (
            self.every is not None and place["step"] % self.every == 0
        )
        events = _tensorboardx()
        start = events.SessionLog(status=events.SessionLog.START)
        self._write(events.Event(session_log=start), step=place["step"] + bool(known))

    def on_batch_end(self, trainer: Any, epoch: int, step: int) -> None:
        super().on_batch_end(trainer, epoch, step)
        self._watched("on_batch_end", trainer, epoch, step)

    def on_epoch_end(self, trainer: Any, epoch: int, record: dict[str, float]) -> None:
        super().on_epoch_end(trainer, epoch, record)
        self._watched("on_epoch_end", trainer, epoch, record)
        self._file.flush()

    def on_train_end(self, trainer: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _watched(self, event: str, *arguments: Any) -> None:
        if self.watch is None:
            return
        before = len(self.watch.steps)
        getattr(self.watch, event)(*arguments)
        if len(self.watch.steps) > before:
            self._write_watched(self.watch.latest())

    # ---- what -----------------------------------------------------------------------------------

    def write_step(self, trainer: Any, values: dict[str, float]) -> None:
        self.scalars({f"step/{n}": v for n, v in values.items() if n != "epoch"})

    def write_epoch(self, trainer: Any, record: dict[str, float]) -> None:
        named = {}
        for name, value in record.items():
            if name.startswith("validation_"):
                named[f"{name.removeprefix('validation_')}/validation"] = value
            elif name in ("epoch", "learning_rate", "seconds"):
                named[name] = value
            else:
                named[f"{name}/training"] = value
        self.scalars(named)
        if self.images is not None and record["epoch"] % self.images == 0:
            self._write_images(trainer)

    def scalars(self, values: Mapping[str, float]) -> None:
        """Write numbers for the present step, such as those of a callback of one's own."""
        events = _tensorboardx()
        self._summary(
            events.Summary.Value(tag=name, simple_value=float(value))
            for name, value in values.items()
            if np.ndim(value) == 0
        )

    def figure(self, name: str, figure: Any) -> None:
        """Write a matplotlib Figure as a picture for the present step."""
        events, file = _tensorboardx(), io.BytesIO()
        figure.savefig(file, format="png")
        width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
        image = events.Summary.Image(
            height=height, width=width, colorspace=4, encoded_image_string=file.getvalue()
        )
        self._summary([events.Summary.Value(tag=name, image=image)])

    def _write_images(self, trainer: Any) -> None:
        if self.builtin_images:
            from gpunn.train.metrics import ConfusionMatrix
            from gpunn.train.plots import confusion_matrix_figure, plot_filters
            from gpunn.train.plots.images import first_layer_weight

            dense = True
            with contextlib.suppress(ValueError):  # a model without filters
                dense = first_layer_weight(trainer.model)[1].ndim == 2
            if not dense or self.image_shape is not None:
                self.figure("filters", plot_filters(trainer.model, self.image_shape))
            for metric in trainer.metrics:
                if isinstance(metric, ConfusionMatrix):
                    self.figure(metric.name, confusion_matrix_figure(metric.compute()))
        for name, function in self.figures.items():
            self.figure(name, function(trainer))

    def _write_watched(self, found: dict[str, Statistics]) -> None:
        events, values = _tensorboardx(), []
        for name, one in found.items():
            kind, layer = one.kind, name.removesuffix(".gradient")
            if one.counts is not None and one.edges is not None and one.counts.sum():
                proto = events.HistogramProto(
                    min=one.minimum, max=one.maximum, num=float(one.counts.sum()),
                    sum=one.mean * float(one.counts.sum()), sum_squares=one.norm * one.norm,
                    bucket_limit=one.edges[1:].tolist(), bucket=one.counts.astype(float).tolist(),
                )  # fmt: skip
                values.append(events.Summary.Value(tag=f"{kind}/{layer}", histo=proto))
            for what in ("norm", "mean"):
                tag, value = f"{kind}_{what}/{layer}", getattr(one, what)
                values.append(events.Summary.Value(tag=tag, simple_value=value))
        self._summary(values)

    def _write_texts(self, trainer: Any) -> None:
        optimizer = trainer.optimizer
        group = {n: v for n, v in optimizer.param_groups[0].items() if n != "params"}
        about = {
            "loss": getattr(trainer.loss, "__name__", repr(trainer.loss)),
            "optimizer": f"{type(optimizer).__name__} {group}",
            "epochs": trainer.epochs,
            "steps of an epoch": trainer.steps,
            "device": trainer.device,
            "way": trainer.way,
            "seed": trainer.seed,
            "parameters": sum(p.array.size for p in trainer.model.parameters()),
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in about.items())
        texts = {
            "model": "\n".join(f"    {line}" for line in repr(trainer.model).splitlines()),
            "training": f"| | |\n|-|-|\n{table}",
            **self.text,
        }
        events = _tensorboardx()
        self._summary(value for n, t in texts.items() for value in events.text(n, t).value)

    def _summary(self, values: Any) -> None:
        events = _tensorboardx()
        self._write(events.Event(summary=events.Summary(value=list(values))), self.step)

    def _write(self, event: Any, step: int) -> None:
        if self._file is None:
            # The number makes names differ that are made within one second.
            ending = f".{os.getpid()}.{next(_numbers)}"
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = _tensorboardx().EventsWriter(str(self.folder / "events"), ending)
        event.step, event.wall_time = step, time.time()
        self._file.write_event(event)


class _Events:
    """What we need of tensorboardX."""

    def __init__(self) -> None:
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import HistogramProto, Summary
            from tensorboardX.summary import text
        except ImportError as error:
            raise ImportError(
                "TensorBoardLogger needs tensorboardX, which is not installed; run: "
                'pip install "gpunn[tensorboard]"'
            ) from error
        # Written at once: its other writer hands events to a thread, and a kill loses them.
        self.EventsWriter, self.Event, self.SessionLog = EventsWriter, Event, SessionLog
        self.HistogramProto, self.Summary, self.text = HistogramProto, Summary, text


_events: list[_Events] = []


def _tensorboardx() -> _Events:
    if not _events:
        _events.append(_Events())
    return _events[0]
