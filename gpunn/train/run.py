"""`Run`: one run of a `Job` as its script sees it: settings, device, and what its folder keeps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpunn import io
from gpunn.autograd.random import manual_seed
from gpunn.device import Device, as_device
from gpunn.io import write_text
from gpunn.train import run_folder as files
from gpunn.train.checkpoint import Checkpoints
from gpunn.train.history import History
from gpunn.train.job import Job
from gpunn.train.parts import make_profiler
from gpunn.train.plots import save_figure
from gpunn.train.ranks import as_group


class RunInterrupted(Exception):
    """A training was interrupted; what was trained is in its checkpoints."""


class Run:
    """What the functions of a `Job` are called with.

    Attributes
    ----------
    config : the configuration
    device : where to train
    folder : the run folder
    verbose : whether to show progress
    seconds : of the trainings so far, resumed ones included
    keeps : whether pictures and texts are written; a run that is only measured again writes none
    notes : what is to be said at the end
    profiles : whether some steps of the next `fit` shall be profiled
    """

    def __init__(
        self, job: Job, config: Any, folder: Path, verbose: bool = True,
        say: Callable[[str], None] = print, profile: bool = False,
    ):  # fmt: skip
        self.job, self.config, self.folder = job, config, Path(folder)
        self.device = Device(config.device) if config.device != "auto" else as_device(None)
        self.verbose, self._say, self.profiles = verbose, say, profile
        self.seconds = 0.0
        self.notes: list[str] = []
        self.keeps = True
        self.begin()

    def begin(self) -> None:
        """Start the random numbers by the seed: what follows does not depend on what was before."""
        manual_seed(self.config.seed)

    def say(self, text: str) -> None:
        """A line for people, unless the run is a quiet one."""
        if self.verbose:
            self._say(text)

    @property
    def advice(self) -> str:
        """What to type to go on with the run."""
        return f"gpunn train --resume {shlex.quote(str(self.folder))}"

    # ---- training ----------------------------------------------------------------------------

    def fit(
        self, trainer: Any, train: Any, validation: Any = None, name: str = "model", **options: Any
    ) -> History:
        """``trainer.fit`` with progress, checkpoints, resuming; keeps the history and its curves.

        Parameters
        ----------
        trainer, train, validation : as of `Trainer.fit`
        name : of what is trained, if a job trains several things: a name for each
        options : as of `Trainer.fit`: epochs, batch_size, transform …

        After an interruption nothing that follows in the script is run; when the run is resumed, a
        training that was complete is not repeated, and an interrupted one goes on.
        """
        if self.profiles:
            trainer.step.profiler = make_profiler(self.folder, trainer.model)
            self.profiles = False  # of the first training
        history = trainer.fit(
            train,
            validation,
            verbose=self.verbose,
            checkpoint=self._checkpoints(name),
            resume="auto",
            **options,
        )
        self._keep(name, history)
        if history.interrupted:
            raise RunInterrupted(name)
        return history

    def loop(
        self, count: int, name: str = "model", every: int = 10, **parts: Any
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Iterations of a training of one's own, with progress, checkpoints and resuming.

        Gives (iteration from 0, record); what is put into `record` goes into the history. All that
        changes from one iteration to the next must be in `parts` (``model=…, optimizer=…``, and
        others that have ``state_dict()`` and ``load_state_dict(state)`` of numbers, texts, arrays,
        lists and dictionaries of them), or come from gpunn's random numbers, or from the number of
        the iteration: then an interrupted run ends as it would have. A checkpoint is written every
        so many iterations, and at Ctrl-C or SIGTERM, which are heeded when an iteration is done.

        ValueError for counts below 1; TypeError for a part without these methods; CheckpointError
        if the checkpoints there are of other parts.

        Examples
        --------
        ``for number, record in run.loop(200, model=policy, optimizer=optimizer): …``
        """
        from gpunn.train.run_loop import run_loop

        if as_group("auto") is not None:
            raise ValueError(
                f"{self.job.name} trains in a loop of its own, which one process runs; start it "
                "without mpirun"
            )

        yield from run_loop(self, count, name, every, parts)

    def _checkpoints(self, name: str) -> Checkpoints:
        return Checkpoints(self.folder / files.CHECKPOINTS / name, advice=self.advice)

    def _keep(self, name: str, history: History) -> None:
        """Write a history and its curves; count its time."""
        extra = "" if name == "model" else f"-{name}"
        history.to_csv(self.folder / f"history{extra}.csv")
        self.seconds += sum(record.get("seconds", 0.0) for record in history)
        if len(history) > 1:
            try:
                title = "How it learned"  # a whole title may be wider than the picture
                history.plot(self.folder / f"curves{extra}.png", title)
            except ImportError as error:
                self.note(str(error))

    # ---- what is kept in the run folder -------------------------------------------------------

    def save(self, name: str, what: Any) -> None:
        """Write a module, or a dictionary of arrays, as NAME.safetensors."""
        io.save(what, self.folder / f"{name}.safetensors", metadata={"gpunn_job": self.job.name})

    def load(self, name: str, into: Any = None) -> Any:
        """Read what `save` wrote.

        `into` a module: it is filled, put on the device and into evaluation mode, and returned.
        None: a dictionary of NumPy arrays. FileNotFoundError if the run has no such file;
        ValueError if the file does not fit the module.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} holds no {path.name}: the run is not complete. Go on with: "
                f"{self.advice}"
            )
        if into is None:
            return io.load_arrays(path)
        into.to(self.device)
        try:
            into.load_state_dict(io.load(path, self.device))
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit its configuration: {error}") from None
        into.eval()
        return into

    def figure(self, name: str, draw: Callable[[], Any]) -> None:
        """Write the matplotlib figure that `draw()` makes as NAME.png.

        Without matplotlib the picture is left out with a note.
        """
        if not self.keeps:
            return
        try:
            save_figure(draw(), self.folder / f"{name}.png")
        except ImportError as error:
            self.note(str(error))

    def text(self, name: str, text: str) -> None:
        """Write a text as NAME, which has a suffix: "samples.txt"."""
        if self.keeps:
            write_text(self.folder / name, text)

    def note(self, text: str) -> None:
        """Something to be said at the end, once."""
        if text not in self.notes:
            self.notes.append(text)
