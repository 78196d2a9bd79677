"""Whether ranks that train together have been given the same data."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.data.dataset import TensorDataset, is_plain
from gpunn.data.parts import resolved, rows_of
from gpunn.device import to_numpy
from gpunn.distributed import Group


def same_data(group: Group, loader: Any, name: str) -> None:
    """Let a DataLoader shuffle as rank 0's; it may have drawn a seed of its own.

    RuntimeError, on all ranks, if one has other data than rank 0, as far as lengths and a few
    values of arrays tell: ranks that have been given parts would train on parts of parts.
    """
    seed = getattr(loader, "seed", None) if hasattr(loader, "in_parts") else None
    ranks = group.exchange([_sizes(loader), _glimpse(getattr(loader, "dataset", None)), seed])
    for rank, (sizes, values, _) in enumerate(ranks):
        differs = ""
        if sizes != ranks[0][0]:
            differs = f"rank 0 has {ranks[0][0]}, rank {rank} {sizes}"
        elif not _close(values, ranks[0][1]):
            differs = f"samples of rank {rank} have other values than those of rank 0"
        if differs:
            raise RuntimeError(
                f"Trainer: the ranks have different {name} data: {differs}. Give all data to each: "
                "it takes its own rows of every batch (and a seed to what splits them at random)"
            )
    if seed is not None:
        loader.seed = ranks[0][2]


def _close(some: list[float], others: list[float]) -> bool:
    """Not to the bit: machines may have normalised them with other rounding errors."""
    return len(some) == len(others) and np.allclose(some, others, rtol=1e-3, equal_nan=True)


def _sizes(loader: Any) -> str:
    """How much data a loader gives, in words."""
    if not hasattr(loader, "in_parts"):
        return f"{len(loader):,} batches" if hasattr(loader, "__len__") else "batches"
    shuffled = "shuffled" if loader.shuffle else "in order"
    return f"{len(loader.dataset):,} samples in batches of {loader.batch_size}, {shuffled}"


def _glimpse(dataset: Any) -> list[float]:
    """A few values of a few samples, if they are arrays."""
    if not hasattr(dataset, "__len__") or not len(dataset):
        return []
    found, numbers = resolved(dataset, np.linspace(0, len(dataset) - 1, 4).astype(np.int64))
    values: list[float] = []
    for array in found.arrays if is_plain(found, TensorDataset) else ():
        if array.dtype.kind not in "biuf":
            continue
        for number in numbers.tolist():
            row = to_numpy(array[number]).reshape(-1)
            places = np.linspace(0, row.size - 1, min(row.size, 8)).astype(np.int64)
            values += row[places].astype(np.float64).tolist()
    return values


def same_batches(batches: Iterable[Any], group: Group) -> Iterator[Any]:
    """`batches`, as long as all ranks have as many rows in each; of the first the same targets.

    RuntimeError on all ranks if not.
    Where one had no more, the others would wait for it. Where NCCL alone connects the ranks, only
    the first is looked at: for each look the hosts would wait for their GPUs.
    """
    found = iter(batches)
    for number in itertools.count(1):
        batch = next(found, None)
        if number == 1 or group.sums_numbers:
            ranks = group.exchange(_described(batch, whole=number == 1))
            for rank, there in enumerate(ranks):
                if there != ranks[0]:
                    raise RuntimeError(
                        f"Trainer: the ranks have been given different batches: number {number} is "
                        f"{ranks[0]} on rank 0 and {there} on rank {rank}. Each takes its rows of "
                        "every batch, so a loader of your own must give the same batches in all of "
                        "them: shuffle by one seed, or use gpunn.data.DataLoader"
                    )
        if batch is None:
            return
        yield batch


def _described(batch: Any, whole: bool) -> str:
    """How many rows a batch has, in words; if `whole`, a checksum of the targets, too."""
    if batch is None:
        return "missing"
    fields = batch if isinstance(batch, (tuple, list)) else ()
    text = f"of {rows_of(fields[-1]) if len(fields) else 'unknown'} rows"
    if not whole or not len(fields):
        return text
    return (
        f"{text} with targets of checksum {zlib.crc32(to_numpy(raw_array(fields[-1])).tobytes()):x}"
    )
