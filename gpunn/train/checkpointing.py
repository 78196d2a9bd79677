"""When `Trainer.fit` writes checkpoints, and what it finds in their folder.

A run can be continued exactly from where a weight update is complete. So a checkpoint is only
written there: after a step, after the steps of an epoch and before its validation, after an epoch.
Ctrl-C is noted when it comes and heard at the next such place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpunn.distributed import Group
from gpunn.train import checkpoint_file
from gpunn.train.checkpoint import Checkpoints, newest, numbered
from gpunn.train.checkpoint_file import CheckpointError
from gpunn.train.ranks import Agreement
from gpunn.train.resume import before_validation, optional_state, training_state
from gpunn.train.running import TrainingError
from gpunn.train.signals import Signals

_PIECE = 256 << 20  # bytes of a checkpoint that are sent at a time


class Checkpointing:
    """The checkpoints of one call of `fit`; does nothing where none are wanted.

    Parameters
    ----------
    wanted : `Checkpoints`, a folder, or None
    resume : as of `Trainer.fit`
    say : told how the run goes on
    group : ranks that train together. Rank 0 reads and writes for all; when to write, and that a
        signal came, the ranks agree on after each step, so that all stop after the same one.

    Attributes
    ----------
    on : whether checkpoints are wanted
    found : (path, state) of the checkpoint to go on from, until the loop takes it; or None
    last : the newest one that was written or read
    """

    def __init__(
        self, wanted: Any, resume: Any, say: Callable[[str], None], group: Group | None = None
    ):
        self.on, self.group = wanted is not None, group
        self._main = group is None or group.main
        self._agreement = None if group is None else Agreement(group, 3)
        if not isinstance(wanted, Checkpoints):
            wanted = Checkpoints(wanted if self.on else ".")
        self.wanted: Checkpoints = wanted
        self.folder, self.say = Path(wanted.folder), say
        self._place = self.folder.absolute()  # callbacks may change the working directory
        self.last: Path | None = None
        self.found: tuple[Path, dict[str, Any]] | None = None
        self._signals = Signals() if group is None else Signals(_said(group, self.on))
        self._stopped = False  # by it
        self._number, self._failed = 0, False
        self._lock: int | None = None
        self._epochs = self._steps = 0  # since the last one
        self._time = time.monotonic()
        self._resume = resume

    # ---- the folder ------------------------------------------------------------------------------

    def _find(self) -> None:
        resume, explicit = self._resume, None
        auto = resume in ("auto", True)
        if not auto and resume not in (None, False):
            if not isinstance(resume, (str, os.PathLike)):
                raise TypeError(
                    f"fit: resume is {resume!r}; expected 'auto', True, False or a path"
                )
            explicit = Path(resume)
            if not explicit.exists():
                raise FileNotFoundError(f"fit: resume={str(resume)!r}: there is no such file")
        if auto and not self.on:
            raise ValueError(f"fit: resume={resume!r} needs checkpoint=FOLDER, to look there")
        if resume is True and not self.folder.is_dir():
            raise FileNotFoundError(f"fit: resume=True: there is no folder {self.folder}")
        there = self._open()
        if there and not auto and (explicit is None or not self._inside(explicit)):
            raise FileExistsError(
                f"fit: {self.folder} holds the checkpoints of a run already (the last is "
                f"{there[0][1].name}); go on with it by resume='auto', or begin a new one in "
                "another folder"
            )
        if resume is True and not there:
            raise FileNotFoundError(f"fit: there is no checkpoint in {self.folder} to resume from")
        if explicit is not None:
            self._read(explicit)
        elif there:
            self._read(self.folder)

    def _find_together(self) -> None:
        """Rank 0 looks; what it found is sent to the others, who need not see its disk."""
        if self.group is None:
            self._find()
            return
        self.group.on_main(self._find)
        found = self.found if self._main else None
        path = self.group.share(found and str(found[0]))
        self._number = self.group.share(self._number)
        self.group.watch.advise(self.advice() if self.on and path else "")
        if path is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = None if found else Path(folder) / Path(path).name
            _send(self.group, found and found[0], copy)
            if copy is not None:
                self.found = Path(path), checkpoint_file.read(copy)
                self.last = Path(path)

    def _read(self, path: Path) -> None:
        if not path.is_dir():
            self.found = path, checkpoint_file.read(path)
        else:
            good, state, damaged = newest(path)
            self.found = good, state
            for bad in damaged:
                if path.resolve() == self.folder.resolve():  # it would count as one that is kept
                    with contextlib.suppress(OSError):
                        os.replace(bad, bad.with_name(bad.name + ".damaged"))
        self.last = self.found[0]

    def _open(self) -> list[tuple[int, Path]]:
        """Make and lock the folder, remove what a killed process left; what checkpoints it has."""
        if not self.on:
            return []
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(
                f"fit: checkpoint={str(self.folder)!r} is a file; give a folder for this run's"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(
            self.folder,
            f"fit: another training writes its checkpoints to {self.folder}; choose another folder",
        )
        for path in self.folder.glob(".checkpoint-*.safetensors"):  # half written: of `atomic_path`
            with contextlib.suppress(OSError):
                path.unlink()
        there = numbered(self.folder)
        self._number = there[0][0] if there else 0
        return there

    def _inside(self, path: Path) -> bool:
        folder = self.folder.resolve()
        return path.resolve() == folder or path.resolve().parent == folder

    def _leave(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- around a run ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def around(self, loop: Any) -> Iterator[None]:
        """Within, Ctrl-C is noted; an error is told where the run can go on.

        It begins with a look for what to go on from: `found`.
        """
        listens = self.on or self.group is not None
        try:
            self._find_together()
            with self._signals.listening() if listens else contextlib.nullcontext():
                yield
                self._hear_all()
            if self._signals.asked == signal.SIGTERM and not self._stopped:  # after the last step
                self._signals.leave()
        except Exception as error:
            if self.on and self.last and self._main and not isinstance(error, CheckpointError):
                error.add_note(self._note(error))
            raise
        finally:
            self._leave()
            if self._stopped:
                self.say(f"stopped; go on with {self.advice()}")

    def _hear_all(self) -> None:
        """After the last step: whether SIGTERM came to any rank, perhaps during the last save."""
        if self._agreement is None or self.group is None:
            return
        self._agreement.last()  # lets it end, where it is under way
        told = self.group.exchange(self._signals.asked)
        self._signals.asked = signal.SIGTERM if signal.SIGTERM in told else None

    def _note(self, error: Exception) -> str:
        if isinstance(error, TrainingError):  # from there it would come to the same
            return (
                f"The last checkpoint before is {self.last}; gpunn.train.load_checkpoint(path, "
                "model=…, random=False) takes its weights."
            )
        return f"The last checkpoint is {self.last}; go on with {self.advice()}."

    def advice(self) -> str:
        """What to type to go on."""
        if self.wanted.advice is not None:
            return self.wanted.advice
        return f"fit(…, checkpoint={str(self.folder)!r}, resume='auto')"

    def start(self, loop: Any) -> None:
        """Before the first step: a checkpoint that proves that there can be some."""
        if self.on and not loop.trainer.resumed:
            self._save(loop)

    def room(self) -> int | None:
        """How many steps may be made before the next look here."""
        steps = self.wanted.steps if self.on else None
        return None if steps is None else max(1, steps - self._steps)

    def after_step(self, loop: Any, steps: int = 1) -> None:
        """After weight updates. KeyboardInterrupt if Ctrl-C was noted."""
        self._steps += steps
        if not self._listens:
            return
        asked, due = self._wishes()
        if (asked or due) and not _epoch_given(loop):
            self._save(loop)
            self._leave_if(asked)

    def before_validation(self, loop: Any) -> None:
        """All steps of the epoch are made."""
        if not self._listens:
            return
        if self.on:
            loop.place.before = before_validation(loop)
        asked, due = self._wishes()
        if asked or due:
            self._save(loop)
            self._leave_if(asked)

    def in_validation(self, loop: Any) -> None:
        """After each of its batches."""
        if not self._listens:
            return
        asked, _ = self._wishes()
        if asked:
            self._save(loop)
            self._leave_if(asked)

    def after_epoch(self, loop: Any, final: bool) -> None:
        """After the callbacks' ``on_epoch_end``; `final` if it is the last one."""
        if not self._listens:
            return
        self._epochs += 1
        asked, due = self._wishes()
        due = due or (self.wanted.epochs is not None and self._epochs >= self.wanted.epochs)
        if due or final or asked:
            self._save(loop)
        if not final or asked == signal.SIGTERM:
            self._leave_if(asked)

    @property
    def _listens(self) -> bool:
        return self.on or self.group is not None

    def _wishes(self) -> tuple[int, bool]:
        """(the signal that asks to stop or 0, whether a checkpoint is due), alike on all ranks."""
        wanted, asked = self.wanted, self._signals.asked or 0
        late = wanted.seconds is not None and time.monotonic() - self._time >= wanted.seconds
        if self._agreement is not None:
            wishes = [asked == signal.SIGINT, asked == signal.SIGTERM, late and self._main]
            interrupted, terminated, late = self._agreement.ask(wishes)
            asked = signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0
        return int(asked), late or (wanted.steps is not None and self._steps >= wanted.steps)

    def _leave_if(self, asked: int) -> None:
        if asked:
            self._stopped = True
            self._signals.asked = asked  # it may have come to another rank alone
            self._signals.leave()

    def _save(self, loop: Any) -> None:
        if not self.on:
            return
        place = loop.place
        epoch, step = loop.trainer.epoch, place.step if place is not None else 0
        name = f"checkpoint-{self._number + 1:06d}-epoch-{epoch}-step-{step}.safetensors"
        self._epochs = self._steps = 0
        self._time = time.monotonic()
        # Where ranks train together all take part in it: one must not go on from an error there.
        state = None if self.group is None else training_state(loop)
        try:
            state = training_state(loop) if state is None else state
            state["extra"] = dict(self.wanted.extra)
            if self._main:
                checkpoint_file.write(self._place / name, state)
        except (OSError, MemoryError, TypeError, ValueError) as error:
            if self.last is None:  # nothing is lost yet, and it would never work
                raise
            if not self._failed and self._main:
                warnings.warn(
                    f"no checkpoint could be written ({error}); the training goes on, and "
                    f"{self.last} stays the last one until it can be",
                    stacklevel=4,
                )
            self._failed = True
            return
        self._failed, self._number = False, self._number + 1
        self.last = self.folder / name
        if self.group is not None:
            self.group.watch.advise(self.advice())
        if not self._main:
            return
        with contextlib.suppress(OSError):
            for _, path in numbered(self._place)[self.wanted.keep :]:
                path.unlink()


def _said(group: Group, on: bool) -> bytes:
    """What a rank says when a signal comes."""
    if not group.main:
        return b""
    kept = ", with a checkpoint" if on else ""
    return f"\nall ranks stop after the next step{kept}\n".encode()


def _send(group: Group, path: Path | None, copy: Path | None) -> None:
    """Write rank 0's file at `path` to `copy` on the others, piece by piece: it may be large."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(path, "rb")) if path else None
        target = stack.enter_context(open(copy, "wb")) if copy else None
        while piece := group.exchange_bytes(source.read(_PIECE) if source else b"")[0]:
            if target:
                target.write(piece)


def _epoch_given(loop: Any) -> bool:
    """Whether the step was the last of its epoch: then the loader stands at the next already."""
    state = optional_state(loop.loader)
    if isinstance(state, Mapping) and "batch" in state:
        return state["batch"] == 0
    return loop.place.step == loop.trainer.steps


def locked(folder: Path, otherwise: str) -> int | None:
    """A handle that keeps other processes out of the folder while it is open, where that works.

    BlockingIOError, which says `otherwise`, if another process is in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(otherwise) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle
