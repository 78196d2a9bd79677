"""`Loop`: one call of `Trainer.fit`, from its first epoch or from a checkpoint to its last."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gpunn.autograd.random import manual_seed
from gpunn.train.callbacks import CallbackList
from gpunn.train.checkpoint import random_state, restore_random
from gpunn.train.checkpointing import Checkpointing
from gpunn.train.fused_epoch import FusedEpochs, fused_epochs
from gpunn.train.inputs import model_dtype, split_batch
from gpunn.train.parts import epoch_seed, grouped
from gpunn.train.ranks import broadcast_buffers, shared_record, with_rows
from gpunn.train.resume import Place, adopt, check, random_holders, restore
from gpunn.train.running import NonFiniteLoss, TrainingError


class Loop:
    """Train `trainer` on a loader for as many epochs as it says.

    Parameters
    ----------
    loader, validation : batches; validation may be None
    callbacks : all of them
    saver : writes and reads checkpoints

    Attributes
    ----------
    group, rank : who trains together, and the number of this process among them
    fused : epochs in one kernel, while that is how it trains
    place : where it stands within an epoch; None between two
    """

    def __init__(
        self, trainer: Any, loader: Any, validation: Any, callbacks: CallbackList,
        saver: Checkpointing,
    ):  # fmt: skip
        self.trainer, self.loader, self.validation = trainer, loader, validation
        self.callbacks, self.saver = callbacks, saver
        self.group = trainer.group
        self.rank = 0 if self.group is None else self.group.rank
        self.fused = self._choose_way()
        self.place: Place | None = None
        self._saved: Any = None  # the state to go on from, until it is put back
        self._checked = False  # labels against classes, at the first step

    def _choose_way(self) -> FusedEpochs | None:
        """Epochs in one kernel, if that is wanted and can be done; sets the trainer's `way`."""
        trainer = self.trainer
        compiled = trainer.step.compiled is not None
        trainer.way = "compiled" if compiled else "step by step"
        if not (trainer.device.type == "cuda" if trainer.fused is None else trainer.fused):
            return None
        found = fused_epochs(trainer, self.loader, self.callbacks)
        if isinstance(found, FusedEpochs):
            trainer.way = "one kernel"
            return found
        if trainer.fused:
            raise ValueError(
                f"Trainer: fused=True, but one kernel cannot train this: {found.reason}; leave "
                "fused out to train step by step where that is so"
            )
        trainer.way += f" (not one kernel: {found.reason})"
        return None

    def run(self) -> None:
        """Train; afterwards the trainer's history says how it ended."""
        trainer, was_training = self.trainer, self.trainer.model.training
        with self.saver.around(self):
            ended = self._find_place()
            try:
                self.callbacks("on_train_begin", trainer)
                if self._saved is not None and self._saved["place"] is None:
                    self._restore()
                self.saver.start(self)
                self._epochs(ended)
            except KeyboardInterrupt:
                trainer.history.interrupted = True
                trainer.history.stop_reason = "interrupted"
            finally:
                self.callbacks("on_train_end", trainer)
                trainer.model.train(was_training)
                if trainer.way == "compiled" and trainer.step.compiled is None:
                    trainer.way = "step by step (it could not be compiled)"
            if self.group is not None:
                self.group.watch.phase("what follows the training")

    def _find_place(self) -> bool:
        """Take over how far a checkpoint had come; whether it had come to the end."""
        if self.saver.found is None:
            return False
        (path, state), self.saver.found = self.saver.found, None
        check(self, path, state)
        adopt(self, state)
        trainer, self._saved = self.trainer, state
        done, last = trainer.epoch, trainer.first_epoch + trainer.epochs - 1
        stopped = trainer._stop is not None and state["place"] is None
        if stopped or done >= last:
            why = f"; {trainer._stop}" if stopped else ""
            self.saver.say(f"nothing is left to train: {path} is of epoch {done} of {last}{why}")
            self._saved = {**state, "place": None}
            return True
        step = f", step {state['place']['step'] + 1}" if state["place"] else ""
        self.saver.say(f"goes on from {path}: epoch {done + 1} of {last}{step}")
        return False

    def _restore(self) -> None:
        restore(self, self._saved)
        self._saved = None

    def _epochs(self, ended: bool) -> None:
        trainer = self.trainer
        last = trainer.first_epoch + trainer.epochs - 1
        while not ended:
            self._epoch(last)
            ended = trainer.epoch >= last or trainer._stop is not None
        if trainer._stop is not None:
            trainer.history.stop_reason = trainer._stop

    def _epoch(self, last: int) -> None:
        trainer, number = self.trainer, self.trainer.epoch + 1
        begun = time.perf_counter()
        if trainer.seed is not None:
            manual_seed(epoch_seed(trainer.seed, trainer.epoch, self.rank))
        self.callbacks("on_epoch_begin", trainer, number)
        place = Place(number, trainer.optimizer.param_groups[0]["lr"], begun)
        trainer.step.mean.reset()
        trainer._reset_metrics()
        self.place = place
        if self._saved is not None:
            self._restore()
        if place.record is None:
            place.record = self._train(place)
        record = {**place.record, **self._validate()}
        record["learning_rate"] = float(place.rate)
        record["seconds"] = time.perf_counter() - place.begun
        if self.group is not None:
            record = shared_record(self.group, record)
        trainer.epoch, self.place = number, None
        trainer.history.append(record)
        self.callbacks("on_epoch_end", trainer, number, trainer.history.records[-1])
        if self.group is not None:
            reasons = self.group.exchange(trainer._stop)
            trainer._stop = next((reason for reason in reasons if reason is not None), None)
        self.saver.after_epoch(self, final=number >= last or trainer._stop is not None)

    def _train(self, place: Place) -> dict[str, float]:
        """What was measured in the steps of an epoch, or of the rest of it."""
        trainer = self.trainer
        trainer.model.train()
        try:
            if not self._in_one_kernel(place):
                self._steps(place)
            if self.group is not None:
                trainer.step.mean.merge()
                for metric in trainer.metrics:
                    metric.merge(self.group)
                broadcast_buffers(self.group, trainer.model)
            return {"epoch": place.number, **trainer.running()}
        except NonFiniteLoss as error:
            raise self._diverged(place.number, error) from None

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        self.saver.before_validation(self)
        if self.group is not None:
            self.group.watch.phase("the validation")
        found = self.trainer._measure(
            self.validation, "validation", lambda: self.saver.in_validation(self), self.group
        )
        return {f"validation_{name}": v for name, v in found.items() if np.ndim(v) == 0}

    # ---- the steps of an epoch -------------------------------------------------------------------

    def _in_one_kernel(self, place: Place) -> bool:
        if self.fused is None:
            return False

        def after(steps: int) -> None:
            place.step += steps
            place.batches += steps
            self.saver.after_step(self, steps)

        reason = self.fused.run(place, self.callbacks, self.saver.room, after)
        if reason:
            self.fused = None
            self.trainer.way = f"step by step (no longer one kernel: {reason})"
        return not reason

    def _steps(self, place: Place) -> None:
        """Step by step, or compiled."""
        trainer, begun = self.trainer, place.step
        if not self._checked:
            trainer.step.check(self.loader)
            self._checked = True
        dtype = model_dtype(trainer.model)
        try:
            for parts in self._parts(place):
                for number, (batch, rows) in enumerate(parts):
                    inputs, target = split_batch(batch, trainer.device, dtype, "train")
                    last = number + 1 == len(parts)
                    trainer.step(inputs, target, number == 0, len(parts), last, rows)
                place.step += 1
                place.batches += len(parts)
                if self.group is not None:
                    self.group.watch.step(place.number, place.step)
                self.callbacks("on_batch_end", trainer, place.number, place.step)
                self.saver.after_step(self)
        finally:  # also when no more batches come: the thread must not stay under profile
            if trainer.step.profiler is not None:
                trainer.step.profiler.finish()
        if place.step == begun == 0:
            raise ValueError(
                f"train: epoch {place.number} gave no batches"
                + ("; a generator gives its batches only once: pass a list or a DataLoader"
                   if place.number > trainer.first_epoch else "")
            )  # fmt: skip

    def _parts(self, place: Place) -> Iterator[Sequence[Any]]:
        """The batches of each weight update with their rows; the last of an epoch may have fewer"""
        batches = with_rows(self._batches(place), self.group)
        if self.trainer.accumulate == 1:
            return ((batch,) for batch in batches)
        return grouped(batches, self.trainer.accumulate)

    def _batches(self, place: Place) -> Iterable[Any]:
        """The loader; one that does not know its place goes by those that were trained on before.

        It does so with the random states that it began the epoch with, and then all goes on with
        those of now.
        """
        if hasattr(self.loader, "load_state_dict"):
            return self.loader
        owners = self.trainer.model, random_holders(self)
        if not place.batches:
            place.begin = random_state(*owners) if self.saver.on else None
            return self.loader
        now = random_state(*owners)
        if place.begin is not None:
            restore_random(place.begin, *owners)
        batches = iter(self.loader)
        found = sum(1 for _ in itertools.islice(batches, place.batches))
        if found < place.batches:
            raise ValueError(
                f"train: epoch {place.number} gave {found} batches, and {place.batches} of it were "
                "trained on before the checkpoint; it must give the same ones again"
            )
        restore_random(now, *owners)
        return batches

    def _diverged(self, epoch: int, error: NonFiniteLoss) -> TrainingError:
        trainer = self.trainer
        rate = trainer.optimizer.param_groups[0]["lr"]
        arrays = getattr(getattr(self.loader, "dataset", None), "arrays", ())
        bad = [
            f"field {number} of the training data holds NaN or infinity: remove or fill those rows"
            for number, array in enumerate(arrays)
            if array.dtype.kind == "f" and not math.isfinite(float(array.astype(np.float64).sum()))
        ]
        remedies = bad or [
            f"use a smaller learning rate (it is {rate:g}), clip the gradients "
            "(gradient_clip_norm=1.0), scale the inputs to mean 0 and deviation 1"
        ]
        steps = f" of {trainer.steps}" if trainer.steps else ""
        step = math.ceil(error.step / trainer.accumulate)  # it has counted batches
        return TrainingError(
            f"the loss became {error.value} in epoch {epoch}, step {step}{steps}; "
            + "; ".join(remedies)
        )
