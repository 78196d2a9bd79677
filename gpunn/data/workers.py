"""Workers of a `DataLoader`: threads or processes that make batches ahead, given in their order.

What is done for a batch is a `Job`, a function of the sample numbers and a key alone. So it does
not matter who does it, or when: with any number of workers the batches have the same bits.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpunn.data.dataset import TensorDataset, collate, gather, is_plain, takes
from gpunn.data.parts import Part, knows_parts, resolved
from gpunn.errors import WorkerError

KINDS = ("thread", "process")
PATIENCE = 5.0  # seconds that a worker has for the sample it is at, when the loop is left


class Stopped(Exception):
    """The loop was left; nobody waits for this batch."""


class Failure(NamedTuple):
    """What went wrong in a worker: in words, so that it can come from another process."""

    name: str
    text: str
    trace: str
    sample: int | None
    error: BaseException | None  # in a thread


@dataclass
class Job:
    """How a batch is made: gathered or collated from the dataset, then transformed."""

    dataset: Any
    collate_fn: Callable[..., Any] | None = None
    transform: Any = None

    def __call__(
        self, indices: Any, key: tuple[int, ...], stopped: Callable[..., Any] = bool
    ) -> Any:
        """The fields of the batch with these sample numbers; `key` is the random numbers' seed.

        Of a `Part` they are its rows of the fields of the whole batch, with the same bits.
        """
        if isinstance(indices, Part):
            return self._part(indices, key, stopped)
        if fuses(self.transform, self.dataset, self.collate_fn):
            first, *rest = self.dataset.arrays
            images = self.transform.gather(first, indices, generator(key))
            return (images, *(gather(array, indices) for array in rest))
        fields = self.fetch(indices, stopped)
        return fields if self.transform is None else self.transform(fields, generator(key))

    def _part(self, part: Part, key: tuple[int, ...], stopped: Callable[..., Any]) -> Any:
        """The rows of a part: only they are read, unless the transform needs the whole batch."""
        transform, dataset, indices = self.transform, self.dataset, part.indices
        if transform is None:
            return self.fetch(indices, stopped)
        wanted = getattr(transform, "whole_fields", ())
        arrays, places = resolved(dataset, part.whole) if wanted else (dataset, part.whole)
        separate = is_plain(arrays, TensorDataset) and self.collate_fn is None
        if not knows_parts(transform) or (wanted and not separate):
            return part.cut(self(part.whole, key, stopped), type(transform).__name__)
        rng = generator(key)
        if fuses(transform, dataset, self.collate_fn) and hasattr(transform, "gather_part"):
            first, *rest = dataset.arrays
            images = transform.gather_part(first, indices, rng, part.start)
            return (images, *(gather(array, indices) for array in rest))
        if wanted:
            own = part._replace(whole=places).indices
            fields = tuple(gather(array, own) for array in arrays.arrays)
            whole = {number: gather(arrays.arrays[number], places) for number in wanted}
            return transform.part(fields, rng, part.start, part.rows, whole)
        return transform.part(self.fetch(indices, stopped), rng, part.start, part.rows)

    def fetch(self, indices: Any, stopped: Callable[..., Any] = bool) -> Any:
        """The samples, stacked or collated; between two of them it asks whether to go on."""
        if self.collate_fn is None and takes(self.dataset):
            return self.dataset.take(indices)
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self.dataset)))
        return (self.collate_fn or collate)([self._sample(int(i), stopped) for i in indices])

    def _sample(self, index: int, stopped: Callable[..., Any]) -> Any:
        if stopped():
            raise Stopped
        try:
            return self.dataset[index]
        except Exception as error:
            with contextlib.suppress(AttributeError):
                error.__dict__["_gpunn_sample"] = index
            raise


def fuses(transform: Any, dataset: Any, collate_fn: Any) -> bool:
    """Whether a transform gathers the samples itself while it reads them."""
    usual = is_plain(dataset, TensorDataset) and collate_fn is None
    return usual and hasattr(transform, "gather")


def generator(key: tuple[int, ...]) -> np.random.Generator:
    """The random numbers of one batch; `key` is (seed, epoch, batch)."""
    # The 1 keeps this stream apart from the one that orders the samples.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([*key, 1])))


def _attempt(
    job: Callable[..., Any], indices: Any, key: Any, stopped: Callable[..., Any], keep: bool
) -> Any:
    """What the job gives, or a `Failure`."""
    try:
        return job(indices, key, stopped)
    except Exception as error:
        sample = getattr(error, "_gpunn_sample", None)
        trace = traceback.format_exc()
        kept = error if keep else None
        return Failure(type(error).__name__, str(error), trace, sample, kept)


# ---- in a process --------------------------------------------------------------------------------

_job: Any = None  # a Job
_stop: Any = None


def _begin(pickled: bytes, stop: Any) -> None:
    """What a process does first: Ctrl-C is for the main one, which then says stop."""
    import signal

    global _job, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stop = stop
    _job = pickle.loads(pickled)


def _end_with_parent() -> None:
    """Also when the main process was killed and could say nothing: the pool's queue never ends."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _in_process(indices: Any, key: Any) -> Any:
    return _attempt(_job, indices, key, _stop.is_set, keep=False)


class _Pickler(pickle.Pickler):
    """Sends arrays that are mapped from a file by the name of the file, not by their bytes."""

    def reducer_override(self, mapped: Any) -> Any:
        value = mapped  # whose type mypy would narrow to one without `_mmap`
        if type(mapped) is not np.memmap or value.mode not in ("r", "r+", "w+"):
            return NotImplemented
        if value.filename is None or value._mmap is None or value.size == 0:
            return NotImplemented
        if not value.flags.c_contiguous:
            return NotImplemented
        # A slice has the attributes of the whole: where it begins is seen by its address.
        start = np.frombuffer(value._mmap, np.uint8).ctypes.data
        offset = value.offset - value.offset % mmap.ALLOCATIONGRANULARITY
        offset += value.ctypes.data - start
        return np.memmap, (value.filename, value.dtype, "r", offset, value.shape)


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _pickled(job: Job) -> bytes:
    arrays = getattr(job.dataset, "arrays", ())
    remedy = "use worker_kind='thread'"
    for array in arrays:
        if type(array) is not np.ndarray and not isinstance(array, np.memmap):
            raise ValueError(
                f"DataLoader: worker processes take data on the CPU, and the dataset holds "
                f"{type(array).__module__.partition('.')[0]} arrays on a device; {remedy}, or give "
                "NumPy arrays"
            )
    for what in ("dataset", "collate_fn", "transform"):
        try:
            _dumps(getattr(job, what))
        except Exception as error:
            raise TypeError(
                f"DataLoader: worker processes need a copy of {what}, and it cannot be pickled "
                f"({error}); {remedy}, or define its class and functions at the top of a module "
                "(no lambda, open file or connection)"
            ) from error
    return _dumps(job)


def _context() -> Any:
    """How processes are started: never by a bare fork, which copies locks that threads hold."""
    import multiprocessing

    known = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")


# ---- workers -------------------------------------------------------------------------------------


class _Threads:
    """As a ThreadPoolExecutor, but one that is stuck does not keep the interpreter from ending."""

    def __init__(self, count: int, name: str):
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        from concurrent.futures import Future

        future: Any = Future()
        self._tasks.put((future, function, args))
        return future

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, args = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as error:  # comes out where the result is asked for
                    future.set_exception(error)
            del task, future, function, args  # a thread that waits holds no batch

    def shutdown(self, wait: bool) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()


class Workers:
    """A pool that does a job for many batches; `stop` leaves no thread and no process behind.

    Parameters
    ----------
    job : what to do; with threads any function ``job(indices, key, stopped)``
    count : workers, 1 or more
    kind : "thread" or "process"

    Attributes
    ----------
    broken : whether a process has ended by itself, after which the others are of no use
    """

    def __init__(self, job: Job, count: int, kind: str):
        self.kind, self._job, self.broken = kind, job, False
        if kind == "thread":
            self._stop: Any = threading.Event()
            self._pool: Any = _Threads(count, "gpunn-data")
        else:
            from concurrent import futures  # not on the path of `import gpunn`

            pickled, context = _pickled(job), _context()
            self._stop = context.Event()
            begin = (pickled, self._stop)
            self._pool = futures.ProcessPoolExecutor(count, context, _begin, begin)
        self._pending: set[Any] = set()

    def submit(self, indices: Any, key: Any) -> Any:
        """Begin with a batch; gives a Future, in which everything that goes wrong comes out."""
        from concurrent.futures import BrokenExecutor, Future

        if self.kind == "thread":
            future = self._pool.submit(_attempt, self._job, indices, key, self._stop.is_set, True)
        else:
            try:
                future = self._pool.submit(_in_process, indices, key)
            except BrokenExecutor as error:  # of batches before, which come first
                future = Future()
                future.set_exception(error)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def stop(self) -> None:
        """End now: what has not begun is dropped, a worker ends after the sample it is at."""
        from concurrent import futures

        self._stop.set()
        running = list(self._pending)
        for future in running:
            future.cancel()
        _, stuck = futures.wait(running, PATIENCE)
        if stuck and self.kind == "process":
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):
                process.kill()
        # A thread that is stuck in a dataset cannot be ended; it is not waited for.
        self._pool.shutdown(wait=not stuck or self.kind == "process")


class Batches:
    """Batches in their order, made by workers up to `ahead` before they are asked for.

    Parameters
    ----------
    workers : who makes them
    work : (what to call it, sample numbers, key) for each batch
    ahead : so many are under way
    """

    def __init__(
        self, workers: Workers, work: Iterator[tuple[str, Any, tuple[Any, ...]]], ahead: int
    ):
        self._workers, self._work, self._ahead = workers, iter(work), ahead
        self._begun: list[Any] = []

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Any:
        while len(self._begun) < self._ahead:
            try:
                name, indices, key = next(self._work)
            except StopIteration:
                break
            self._begun.append((name, indices, self._workers.submit(indices, key)))
        if not self._begun:
            raise StopIteration
        name, indices, future = self._begun.pop(0)
        try:
            made = future.result()
        except Exception as error:  # not of the job, which tells of its own
            raise self._lost(name, error) from error
        if isinstance(made, Failure):
            raise _told(made, name, indices) from made.error
        return made

    def _lost(self, name: str, error: Exception) -> WorkerError:
        from concurrent.futures import BrokenExecutor

        if not isinstance(error, BrokenExecutor):
            return WorkerError(f"DataLoader: {name} did not come back from its worker: {error!r}")
        self._workers.broken = True
        return WorkerError(
            f"DataLoader: a worker process ended before {name} was done: it was killed (for "
            "memory?), or could not start. A script whose loaders have worker processes must do "
            "its work under: if __name__ == '__main__':"
        )

    def cancel(self) -> None:
        """Drop what has not begun."""
        for *_, future in self._begun:
            future.cancel()
        self._begun.clear()


def _told(failure: Failure, name: str, indices: Any) -> WorkerError:
    at = f" at sample {failure.sample}" if failure.sample is not None else ""
    error = WorkerError(
        f"DataLoader: {name} ({samples_text(indices)}) failed in a worker{at}: "
        f"{failure.name}: {failure.text}"
    )
    if failure.error is None:
        error.add_note(f"In the worker process:\n{failure.trace}")
    return error


def samples_text(indices: Any) -> str:
    """The sample numbers of a batch, in words."""
    indices = indices.indices if isinstance(indices, Part) else indices
    if isinstance(indices, slice):
        return f"samples {indices.start} to {indices.stop - 1}"
    numbers: Sequence[int] = np.asarray(indices).reshape(-1).tolist()
    if len(numbers) > 6:
        shown = ", ".join(map(str, numbers[:3])) + f", … {numbers[-1]}"
        return f"{len(numbers)} samples: {shown}"
    return "samples " + ", ".join(map(str, numbers))
