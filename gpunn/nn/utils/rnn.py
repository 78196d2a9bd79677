"""Sequences of several lengths in one batch: padded, packed, and back, with PyTorch's names.

A `PackedSequence` holds the steps of all sequences without padding, step after step, the longest
sequence first. The recurrent layers take and return one; inside, they work on the padded form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.functions.recurrent import pick_rows, place_rows
from gpunn.autograd.functions.shape import cat, reshape, transpose
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import is_array, to_numpy

__all__ = [
    "PackedSequence",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpack_sequence",
    "unpad_sequence",
]


class PackedSequence(NamedTuple):
    """Sequences without padding. Made by `pack_padded_sequence` or `pack_sequence`.

    Attributes
    ----------
    data : (sum of the lengths, …), step 0 of all sequences, then step 1 of those that have one …
    batch_sizes : int64 on the CPU, how many sequences have each step; falls
    sorted_indices : int64 on the CPU: the sequence that comes first, second …; None as given
    unsorted_indices : where each sequence has gone, the inverse
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    @property
    def device(self) -> Any:
        """The device of the data."""
        return self.data.device

    @property
    def dtype(self) -> Any:
        """The dtype of the data."""
        return self.data.dtype

    @property
    def is_cuda(self) -> bool:
        """Whether the data lies on a GPU."""
        return self.data.is_cuda

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """With the data moved or converted as by `Tensor.to`."""
        return self._replace(data=self.data.to(*args, **kwargs))

    def cpu(self) -> PackedSequence:
        """With the data on the CPU."""
        return self.to("cpu")

    def cuda(self) -> PackedSequence:
        """With the data on a GPU."""
        return self.to("cuda")

    @property
    def sorted_lengths(self) -> np.ndarray:
        """The lengths, the longest first."""
        sizes = to_numpy(self.batch_sizes._array)
        count = int(sizes[0]) if len(sizes) else 0
        return (sizes[None, :] > np.arange(count)[:, None]).sum(1)


def check_lengths(name: str, lengths: Any, steps: int, batch: int) -> np.ndarray:
    """`lengths` as int64 on the CPU; an error unless it is `batch` whole numbers, 1 to `steps`."""
    if isinstance(lengths, Tensor):
        lengths = lengths._array
    array = to_numpy(lengths) if is_array(lengths) else np.asarray(lengths)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: lengths have dtype {array.dtype}; expected whole numbers, one for each "
            "sequence. Convert them to int64."
        )
    if array.shape != (batch,):
        raise ValueError(
            f"{name}: lengths have shape {array.shape}; expected ({batch},), one for each sequence"
        )
    wrong = np.flatnonzero((array < 1) | (array > steps))
    if len(wrong):
        raise ValueError(
            f"{name}: lengths[{wrong[0]}] is {array[wrong[0]]}, and the sequences have {steps} "
            f"steps; expected 1 to {steps}"
        )
    return array.astype(np.int64)


def packed_rows(lengths: np.ndarray, order: np.ndarray | None = None) -> Any:
    """(rows of the padded steps in a packed one's order, the number of sequences at each step).

    `lengths` falls; sequence i stands in column ``order[i]`` of the padded array (T, B, …) seen as
    T*B rows.
    """
    batch = len(lengths)
    running = lengths[None, :] > np.arange(int(lengths.max(initial=0)))[:, None]
    step, place = np.nonzero(running)
    return step * batch + (place if order is None else order[place]), running.sum(1)


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Drop the padding of a batch of sequences.

    Parameters
    ----------
    input : (T, B, …), or (B, T, …) with `batch_first`
    lengths : B whole numbers from 1 to T, as a list, an array or a tensor
    enforce_sorted : the lengths must fall; False sorts them, and `pad_packed_sequence` and the
        recurrent layers bring everything back into the order that was given

    Raises TypeError for lengths that are not whole, ValueError for lengths out of range or, with
    `enforce_sorted`, not falling.
    """
    name = "pack_padded_sequence"
    if input.ndim < 2:
        raise ValueError(f"{name}: input has shape {input.shape}; expected two dimensions or more")
    padded = transpose(input, 0, 1) if batch_first else input
    steps, batch = padded.shape[:2]
    found = check_lengths(name, lengths, steps, batch)
    order = None
    if enforce_sorted:
        rises = np.flatnonzero(found[1:] > found[:-1])
        if len(rises):
            at = int(rises[0])
            raise ValueError(
                f"{name}: lengths[{at}] is {found[at]} and lengths[{at + 1}] is {found[at + 1]}, "
                "but with enforce_sorted they must fall. Pass enforce_sorted=False."
            )
    else:
        order = np.argsort(-found, kind="stable")
        found = found[order]
    rows, sizes = packed_rows(found, order)
    data = pick_rows(reshape(padded, steps * batch, *padded.shape[2:]), rows)
    if order is None:
        return PackedSequence(data, wrap(sizes))
    return PackedSequence(data, wrap(sizes), wrap(order), wrap(np.argsort(order)))


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The padded batch of a packed one, in the order in which the sequences were given.

    Returns (padded (T, B, …), or (B, T, …) with `batch_first`; lengths, int64 on the CPU). T is the
    longest length, or `total_length`, which must not be less.
    """
    lengths = sequence.sorted_lengths
    order = None
    if sequence.sorted_indices is not None:
        order = to_numpy(sequence.sorted_indices._array)
    steps, batch = int(lengths.max(initial=0)), len(lengths)
    if total_length is not None and total_length < steps:
        raise ValueError(
            f"pad_packed_sequence: total_length is {total_length}, and the longest sequence has "
            f"{steps} steps; expected {steps} or more"
        )
    rows, _ = packed_rows(lengths, order)
    steps = steps if total_length is None else total_length
    padded = place_rows(sequence.data, rows, steps * batch, padding_value)
    padded = reshape(padded, steps, batch, *sequence.data.shape[1:])
    if order is not None:
        lengths = lengths[np.argsort(order)]
    return (transpose(padded, 0, 1) if batch_first else padded), wrap(lengths)


def pad_sequence(
    sequences: Iterable[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Sequences (length, …) as one tensor (T, B, …), or (B, T, …) with `batch_first`.

    Missing steps are `padding_value`, behind a sequence or, with `padding_side` "left", before it.
    """
    sequences = list(sequences)
    if not sequences:
        raise ValueError("pad_sequence: expected at least one sequence, got none")
    if padding_side not in ("right", "left"):
        raise ValueError(
            f"pad_sequence: padding_side {padding_side!r} is not known; use 'right' or 'left'"
        )
    lengths = np.array([len(sequence) for sequence in sequences])
    steps, batch = int(lengths.max()), len(sequences)
    begin = steps - lengths if padding_side == "left" else np.zeros_like(lengths)
    rows = np.concatenate(
        [(start + np.arange(length)) * batch + place
         for place, (start, length) in enumerate(zip(begin, lengths, strict=True))]
    )  # fmt: skip
    data = cat(sequences)
    padded = place_rows(data, rows, steps * batch, padding_value)
    padded = reshape(padded, steps, batch, *data.shape[1:])
    return transpose(padded, 0, 1) if batch_first else padded


def unpad_sequence(padded: Tensor, lengths: Any, batch_first: bool = False) -> list[Tensor]:
    """The sequences of a padded batch, each without its padding: views."""
    padded = padded if batch_first else transpose(padded, 0, 1)
    found = check_lengths("unpad_sequence", lengths, padded.shape[1], padded.shape[0])
    return [padded[place, :length] for place, length in enumerate(found.tolist())]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Sequences (length, …) as a packed one; see `pack_padded_sequence`."""
    sequences = list(sequences)
    lengths = [len(sequence) for sequence in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, False, enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences of a packed one, in the order in which they were given."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
