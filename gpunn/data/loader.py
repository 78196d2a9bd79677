"""`DataLoader`: batches of a dataset, shuffled by seed and epoch, that can stop and go on.

A batch takes four steps: it is made on the host (by workers, if there are any, ahead of time),
staged in pinned memory, sent to the GPU on a stream of its own while the batch before is computed
with, and given. With data that are on the GPU already only the first and the last are left, there.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.random import default_generator
from gpunn.data.dataset import TensorDataset, array_dataset, as_dataset, is_plain
from gpunn.data.fields import each, staged, started, taken, tensor
from gpunn.data.loader_checks import check_state, checked_count, described
from gpunn.data.parts import Part, checked_part, knows_parts
from gpunn.data.sequences import checked_lengths, like_lengths
from gpunn.data.splits import permutation, resolve_seed
from gpunn.data.workers import KINDS, Batches, Job, Workers, generator
from gpunn.device import Device, device_of, to_device
from gpunn.device.transfer import Uploader, free_memory
from gpunn.text import bytes_text

RESIDENT_SHARE = 0.5  # of a GPU's free memory that data may take to be kept there
AHEAD = 2  # batches on their way to a GPU while one is computed with


class DataLoader:
    """Iterate over a dataset in batches of Tensors.

    Each ``for`` loop over the loader is one epoch. The order of an epoch depends only on
    ``(seed, epoch, number of samples)``, so that the same seed gives the same batches on every
    machine, and training that was stopped can go on in the middle of an epoch.

    Parameters
    ----------
    dataset : a `Dataset`, ``(x, y)`` arrays, one array, or any sequence of samples
    batch_size : samples in a batch, 1 or more
    shuffle : a new order each epoch
    lengths : of the samples, if they are sequences of different lengths, whole numbers (samples,):
        shuffling then puts sequences of like length into one batch (see `TrimPadding`)
    generator : a NumPy Generator (or an object with ``initial_seed()``) that gives the seed
    seed : the seed itself; if neither is given, that of `gpunn.manual_seed`
    drop_last : leave out the last batch if it is not full
    transform : ``transform(fields, rng) -> fields`` on each batch of arrays, as `RandomAffine`
        does; `rng` is a NumPy Generator that depends only on (seed, epoch, batch). One that has
        ``on_device = True``, such as `ImageAugmentation`, runs on `device`, after the upload.
    collate_fn : makes a batch of a list of samples, in place of stacking them
    device : where the batches go; None leaves them where the data are
    resident : whether arrays are kept on the device: True, False, or "auto": if they take at most
        half of the GPU's free memory, and there is no work for workers on the host. Else each batch
        is uploaded, two ahead, through pinned memory. `plan` says what was chosen.
    num_workers : threads or processes that make batches ahead, in their order and with the same
        bits; 0 makes them here, when they are asked for. Data that are on a device need none.
    worker_kind : "thread" for what lets go of the interpreter (NumPy, reading and decoding files),
        "process" for what computes in Python itself. Processes get a copy of the dataset each.
    prefetch_factor : batches that each worker has begun
    persistent_workers : keep the workers from one epoch to the next; `close` ends them
    pin_memory : accepted as PyTorch scripts give it, and without effect: what goes to a GPU always
        goes through pinned memory
    part : (rank, size): give that rank's rows of every batch alone (see `set_part`)

    Attributes
    ----------
    part : as above; (0, 1) for whole batches
    rows : (own, whole) of the batch just given: how many of its rows are this rank's own, and how
        many the whole batch has

    A batch is what a sample is: a tuple of Tensors for ``(x, y)``, a dict for mappings, else one
    Tensor.

    Leaving the loop, by ``break``, by an error or by Ctrl-C, ends the workers after the sample that
    each is at.

    Raises
    ------
    ValueError for an empty dataset, a batch size below 1, or no full batch with drop_last;
    TypeError for what cannot be sent to worker processes. In the loop WorkerError, at its batch,
    for what failed in a worker.

    Examples
    --------
    >>> from gpunn.data import DataLoader
    >>> loader = DataLoader(([[0.0], [1.0], [2.0]], [0, 1, 2]), batch_size=2)
    >>> [y.numpy().tolist() for x, y in loader]
    [[0, 1], [2]]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        generator: Any = None,
        seed: int | None = None,
        drop_last: bool = False,
        lengths: Any = None,
        transform: Callable[[Any, np.random.Generator], Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        device: Any = None,
        resident: bool | str = "auto",
        num_workers: int = 0,
        worker_kind: str = "thread",
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory: bool = False,
        part: tuple[int, int] = (0, 1),
    ):
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be an integer ≥ 1, got {batch_size!r}")
        if seed is not None and generator is not None:
            raise ValueError("DataLoader: give either seed or generator, not both")
        self.num_workers = checked_count("num_workers", num_workers, 0)
        self.prefetch_factor = checked_count("prefetch_factor", prefetch_factor or 2, 1)
        if worker_kind not in KINDS:
            raise ValueError(
                f"DataLoader: worker_kind is {worker_kind!r}; expected 'thread' or 'process'"
            )
        self.worker_kind, self.persistent_workers = worker_kind, bool(persistent_workers)
        self.dataset = as_dataset(dataset, "DataLoader")
        self.batch_size = int(batch_size)
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        self.lengths = None if lengths is None else checked_lengths(lengths, len(self.dataset))
        if self.lengths is not None and not shuffle:
            raise ValueError(
                "DataLoader: lengths change how samples are shuffled; give shuffle=True, or sort "
                "the samples by length"
            )
        self.collate_fn, self.device = collate_fn, device
        self.transform: Any = transform
        source = generator if seed is None else seed
        self.seed = resolve_seed(default_generator if source is None else source)
        self._next_epoch = 0  # of the next `for` loop
        self._resume_at = 0  # its first batch
        self._running: tuple[int, int] | None = None  # (epoch, batches given) of an open loop
        self.rows = (0, 0)
        self.set_part(*part)
        if len(self) == 0:
            raise ValueError(
                f"DataLoader: {len(self.dataset)} samples make no full batch of "
                f"{self.batch_size}; use a smaller batch_size or drop_last=False"
            )
        self._workers: Workers | None = None  # kept from epoch to epoch
        self._place(resident)

    # ---- where the data are ----------------------------------------------------------------------

    def _place(self, resident: bool | str) -> None:
        """Choose where the arrays are kept, and bring them there."""
        if resident not in (True, False, "auto"):
            raise ValueError(
                f"DataLoader: resident is {resident!r}; expected True, False or 'auto'"
            )
        whole = array_dataset(self.dataset) if self.collate_fn is None else None
        if resident is True and (whole is None or self.device is None):
            raise ValueError(
                "DataLoader: resident=True keeps arrays on a device; it needs device= and "
                f"a dataset of arrays without collate_fn, not {type(self.dataset).__name__}"
            )
        target = None if self.device is None else Device(self.device)
        why = ""
        if target is not None and whole is not None and resident:
            why = self._reason_to_keep(whole, target) if resident == "auto" else ""
            if not why:
                if not isinstance(self.dataset, TensorDataset):  # a part of one: no more than that
                    self.dataset = TensorDataset(*self.dataset.take(slice(None)))
                self.dataset = self.dataset.to(target)  # once, not at every batch
        arrays = getattr(self.dataset, "arrays", ()) if whole is not None else ()
        there = {device_of(array) for array in arrays}
        on_host = not any(place.type != "cpu" for place in there)
        remote = target is not None and target.type != "cpu" and there != {target}
        self._uploader = Uploader(target, depth=AHEAD + 1) if target is not None else None
        self._late = getattr(self.transform, "on_device", False) and remote
        self._knows_parts = knows_parts(self.transform) and not hasattr(
            self.transform, "whole_fields"
        )
        self._active = self.num_workers if on_host else 0
        self._job = Job(self.dataset, self.collate_fn, None if self._late else self.transform)
        self.plan = described(self, target, arrays, remote, why, AHEAD)

    def _reason_to_keep(self, whole: TensorDataset, target: Device) -> str:
        """Why arrays stay on the host; "" if they need not."""
        on_device = self.transform is None or getattr(self.transform, "on_device", False)
        if target.type != "cpu" and self.num_workers and not on_device:
            return "because workers are to transform them there"
        if target.type == "cpu" and any(isinstance(array, np.memmap) for array in whole.arrays):
            return "because they are read from a file as they are needed"
        size = sum(a.nbytes for a in whole.arrays if device_of(a) != target)
        size = size * len(self.dataset) // max(1, len(whole))
        free = free_memory(target) if target.type == "cuda" else None
        if free is not None and size > RESIDENT_SHARE * free:
            return (
                f"because they need {bytes_text(size)} and {target} has {bytes_text(free)} free, "
                f"of which they may take {RESIDENT_SHARE:.0%}"
            )
        return ""

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next ``for`` loop gives, from 0."""
        return self._next_epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``for`` loop give epoch number `epoch`, from its first batch."""
        self._next_epoch, self._resume_at, self._running = int(epoch), 0, None

    def order(self, epoch: int) -> np.ndarray:
        """The sample numbers of epoch `epoch` in the order in which they are given."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        order = permutation(len(self.dataset), self.seed, epoch)
        if self.lengths is None:
            return order
        return like_lengths(order, self.lengths, self.batch_size, self.seed, epoch)

    def set_part(self, rank: int, size: int) -> None:
        """From the next ``for`` loop on, give the rows of rank `rank` among `size` of each batch.

        Those are rows ``[B rank // size, B (rank + 1) // size)`` of the B rows that the batch would
        have: the ranks' batches one after the other are the whole batch, bit for bit, whatever the
        transform draws. Lengths, order, epochs and `state_dict` remain those of whole batches.

        Only those rows are read and sent, and given to `collate_fn`. A transform must know parts
        for that: gpunn's own do, and one with a method ``part(fields, rng, start, count)``, which
        gives the rows from `start` on of what its call gives for a batch of `count` rows; `fields`
        holds these rows alone, and `rng` is as for the call. For others the whole batch is made,
        and cut.

        Where a batch has fewer rows than there are ranks, some get its first row, which is not
        theirs: `rows` tells. To shuffle alike all ranks need the same seed: give one. ValueError
        unless 0 <= rank < size.
        """
        self.part = checked_part("DataLoader", rank, size)

    def in_parts(self, rank: int, size: int) -> Iterator[Any]:
        """What a ``for`` loop over the loader gives after ``set_part(rank, size)``, without it."""
        return self._epoch(checked_part("DataLoader", rank, size))

    def __iter__(self) -> Iterator[Any]:
        return self._epoch(self.part)

    def _epoch(self, part: tuple[int, int]) -> Iterator[Any]:
        epoch, first = self._next_epoch, self._resume_at
        self.given(epoch, first)  # from here on: what is interrupted at its first batch repeats it
        return self._batches(epoch, first, part)

    def given(self, epoch: int, batches: int) -> None:
        """Stand where a ``for`` loop stands that has given so many batches of `epoch`.

        For those who take the `order` of an epoch and not its batches.
        """
        self._next_epoch, self._resume_at = epoch + 1, 0
        self._running = (epoch, batches) if batches < len(self) else None

    def _batches(self, epoch: int, first: int, part: tuple[int, int]) -> Iterator[Any]:
        with contextlib.closing(self._given(epoch, first, part)) as batches:
            for number, fields in enumerate(batches, first):
                span = self._span(number)
                mine = Part.of(span, span.stop - span.start, *part)
                if self._late:
                    fields = self._transformed(fields, mine, (self.seed, epoch, number))
                last = number + 1 == len(self)
                self._running = None if last else (epoch, number + 1)
                self.rows = (mine.own, mine.rows)
                yield each(tensor, fields)

    def _transformed(self, fields: Any, part: Part, key: tuple[int, ...]) -> Any:
        """The uploaded rows of a part, or of the whole batch, after the transform."""
        if part.stop - part.start == part.rows:
            return self.transform(fields, generator(key))
        if self._knows_parts:
            return self.transform.part(fields, generator(key), part.start, part.rows)
        return part.cut(self.transform(fields, generator(key)), type(self.transform).__name__)

    def _span(self, number: int) -> slice:
        """Where batch `number` lies in the order of an epoch."""
        end = min((number + 1) * self.batch_size, len(self.dataset))
        return slice(number * self.batch_size, end)

    def _work(
        self, epoch: int, first: int, part: tuple[int, int]
    ) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
        """What each batch is made of: its name, the sample numbers, the seed of its randomness."""
        order = self._placed(self.order(epoch)) if self.shuffle else None
        whole = part == (0, 1) or (self._late and not self._knows_parts)
        for number in range(first, len(self)):
            span = self._span(number)
            indices: Any = span if order is None else order[span]
            if not whole:
                indices = Part.of(indices, span.stop - span.start, *part)
            yield f"batch {number} of epoch {epoch}", indices, (self.seed, epoch, number)

    def _placed(self, order: np.ndarray) -> Any:
        """The order where the arrays are: on a GPU it goes there once an epoch, not each batch."""
        if not is_plain(self.dataset, TensorDataset) or self.collate_fn is not None:
            return order
        places = {device_of(array) for array in self.dataset.arrays}
        return to_device(order, places.pop()) if len(places) == 1 else order

    def _given(self, epoch: int, first: int, part: tuple[int, int]) -> Generator[Any]:
        """Batches where they are wanted; on a GPU the next ones are on their way already."""
        uploader, made = self._uploader, self._made(epoch, first, part)
        with contextlib.closing(made):
            if uploader is None:
                yield from made
                return
            ahead = AHEAD if uploader.asynchronous else 0
            under_way: collections.deque[Any] = collections.deque()
            end: Any = None  # why there are no more
            while True:
                while end is None and len(under_way) <= ahead:
                    try:
                        under_way.append(each(started(uploader), next(made)))
                    except Exception as error:  # StopIteration is one
                        end = error  # at its turn, after the batches before it
                if under_way:
                    yield each(taken, under_way.popleft())
                elif isinstance(end, StopIteration):
                    return
                else:
                    raise end

    def _made(self, epoch: int, first: int, part: tuple[int, int]) -> Any:
        """Batches as they are made on the host, or on the device of data that are there."""
        work = self._work(epoch, first, part)
        if not self._active:
            for _, indices, key in work:
                yield self._job(indices, key)
            return
        workers = self._workers or self._new_workers()
        if self.persistent_workers and self._workers is None:
            self._workers = workers
        batches = Batches(workers, work, self._active * self.prefetch_factor)
        try:
            yield from batches
        finally:
            batches.cancel()
            if workers.broken and workers is self._workers:
                self._workers = None  # the next epoch gets new ones
            if workers is not self._workers:
                workers.stop()

    def _new_workers(self) -> Workers:
        job: Any = self._job
        if self.worker_kind == "thread" and self._uploader is not None:
            make, stage = self._job, staged(self._uploader)

            # the copy into pinned memory is theirs, too
            def job(indices: Any, key: Any, stopped: Any) -> Any:
                return each(stage, make(indices, key, stopped))

        return Workers(job, self._active, self.worker_kind)

    def close(self) -> None:
        """End persistent workers and let go of pinned memory; the loader can be used again."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.stop()
        if self._uploader is not None:
            self._uploader.close()

    def __del__(self) -> None:
        workers = self.__dict__.get("_workers")
        if workers is not None:
            with contextlib.suppress(Exception):
                workers.stop()

    # ---- stop and go on --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: seed, epoch, the next batch in it, and what that depends on.

        Inside a ``for`` loop the batch just given counts as done.
        """
        epoch, batch = self._running or (self._next_epoch, self._resume_at)
        return {
            "seed": self.seed, "epoch": epoch, "batch": batch, "samples": len(self.dataset),
            "batch_size": self.batch_size,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken: the next ``for`` loop gives the rest of that epoch.

        ValueError if the state belongs to a dataset of another length, or is not complete, or is in
        the middle of an epoch with batches of another size.
        """
        check_state(state, len(self.dataset), self.batch_size, len(self))
        self.seed = resolve_seed(state["seed"])
        self._next_epoch, self._resume_at = int(state["epoch"]), int(state["batch"])
        self._running = None
