"""`DataLoader`: batches of a dataset, shuffled by seed and epoch, that can stop and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.random import default_generator
from gpunn.autograd.tensor import Tensor
from gpunn.data.dataset import TensorDataset, as_dataset, collate, take
from gpunn.data.splits import permutation, resolve_seed
from gpunn.device import device_of, to_device


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
    generator : a NumPy Generator (or an object with ``initial_seed()``) that gives the seed
    seed : the seed itself; if neither is given, that of `gpunn.manual_seed`
    drop_last : leave out the last batch if it is not full
    transform : ``transform(fields, rng) -> fields`` on each batch of arrays, as `RandomAffine`
        does; `rng` is a NumPy Generator that depends only on (seed, epoch, batch)
    collate_fn : makes a batch of a list of samples, in place of stacking them
    device : where the batches go; None leaves them where the data are
    num_workers, pin_memory, persistent_workers : accepted as PyTorch scripts give them, and without
        effect: batches are made in this process, array data in one gather for each batch

    A batch is what a sample is: a tuple of Tensors for ``(x, y)``, a dict for mappings, else one
    Tensor.

    Raises
    ------
    ValueError for an empty dataset, a batch size below 1, or no full batch with drop_last.

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
        transform: Callable[[Any, np.random.Generator], Any] | None = None,
        collate_fn: Callable[[list], Any] | None = None,
        device: Any = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ):
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be an integer ≥ 1, got {batch_size!r}")
        if seed is not None and generator is not None:
            raise ValueError("DataLoader: give either seed or generator, not both")
        self.dataset = as_dataset(dataset, "DataLoader")
        self.batch_size = int(batch_size)
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        self.transform, self.collate_fn, self.device = transform, collate_fn, device
        source = generator if seed is None else seed
        self.seed = resolve_seed(default_generator if source is None else source)
        self._next_epoch = 0  # of the next `for` loop
        self._resume_at = 0  # its first batch
        self._running: tuple[int, int] | None = None  # (epoch, batches given) of an open loop
        if len(self) == 0:
            raise ValueError(
                f"DataLoader: {len(self.dataset)} samples make no full batch of "
                f"{self.batch_size}; use a smaller batch_size or drop_last=False"
            )
        if device is not None and isinstance(self.dataset, TensorDataset) and collate_fn is None:
            self.dataset = self.dataset.to(device)  # once, not at every batch

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
        return permutation(len(self.dataset), self.seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._next_epoch, self._resume_at
        self._next_epoch, self._resume_at = epoch + 1, 0
        return self._batches(epoch, first)

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        order = self._placed(self.order(epoch)) if self.shuffle else None
        for number in range(first, len(self)):
            span = slice(number * self.batch_size, (number + 1) * self.batch_size)
            fields = self._fetch(span if order is None else order[span])
            if self.transform is not None:
                fields = self.transform(fields, self._generator(epoch, number))
            last = number + 1 == len(self)
            self._running = None if last else (epoch, number + 1)
            yield _as_tensors(fields, self.device)

    def _placed(self, order: np.ndarray):
        """The order where the arrays are: on a GPU it goes there once an epoch, not each batch."""
        if not isinstance(self.dataset, TensorDataset) or self.collate_fn is not None:
            return order
        places = {device_of(array) for array in self.dataset.arrays}
        return to_device(order, places.pop()) if len(places) == 1 else order

    def _fetch(self, indices: np.ndarray | slice) -> Any:
        if self.collate_fn is None:
            return take(self.dataset, indices)
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self.dataset)))
        return self.collate_fn([self.dataset[int(index)] for index in indices])

    def _generator(self, epoch: int, batch: int) -> np.random.Generator:
        # The 1 keeps this stream apart from the one that orders the samples.
        key = np.random.SeedSequence([self.seed, epoch, batch, 1])
        return np.random.Generator(np.random.PCG64(key))

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: seed, epoch and the next batch in it.

        Inside a ``for`` loop the batch just given counts as done.
        """
        epoch, batch = self._running or (self._next_epoch, self._resume_at)
        return {"seed": self.seed, "epoch": epoch, "batch": batch, "samples": len(self.dataset)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken: the next ``for`` loop gives the rest of that epoch.

        ValueError if the state belongs to a dataset of another length, or is not complete.
        """
        missing = {"seed", "epoch", "batch", "samples"} - set(state)
        if missing:
            raise ValueError(f"DataLoader: the state lacks {sorted(missing)}")
        if state["samples"] != len(self.dataset):
            raise ValueError(
                f"DataLoader: the state is of a dataset of {state['samples']} samples, "
                f"this one has {len(self.dataset)}"
            )
        if not 0 <= state["batch"] <= len(self):
            raise ValueError(
                f"DataLoader: the state is at batch {state['batch']} of an epoch that has "
                f"{len(self)}; was batch_size another?"
            )
        self.seed = resolve_seed(state["seed"])
        self._next_epoch, self._resume_at = int(state["epoch"]), int(state["batch"])
        self._running = None


def _as_tensors(fields: Any, device: Any) -> Any:
    if isinstance(fields, dict):
        return {key: _as_tensors(value, device) for key, value in fields.items()}
    if isinstance(fields, (tuple, list)):
        return tuple(_as_tensors(value, device) for value in fields)
    if not isinstance(fields, Tensor):
        fields = Tensor(fields if hasattr(fields, "dtype") else collate([fields])[0])
    return fields if device is None else Tensor(to_device(fields.array, device))
