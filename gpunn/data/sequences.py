"""Sequences of different lengths: padded to one array, batched with their like, cut where all end.

A padded step costs as much as a real one. `DataLoader` with ``lengths=`` puts sequences of like
length into one batch, and `TrimPadding` cuts from a batch what is padding in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.data.splits import permutation
from gpunn.device import to_numpy

POOL = 50  # batches among whose samples those of like length are put together


def pad_sequences(
    sequences: Sequence[Any],
    length: int | None = None,
    value: float = 0,
    dtype: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as one array, and their lengths.

    Parameters
    ----------
    sequences : arrays or lists (steps, …) that agree in all axes but the first
    length : steps of the result; longer sequences are cut. By default that of the longest
    value : what stands behind a sequence's end
    dtype : of the result; by default that of the sequences together

    Returns
    -------
    padded : (sequences, length, …)
    lengths : int64 (sequences,), without the padding

    ValueError for no sequences, shapes that do not match, or a length below 1.

    Examples
    --------
    >>> padded, lengths = pad_sequences([[5, 6, 7], [8]])
    >>> padded.tolist(), lengths.tolist()
    ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("pad_sequences: there are no sequences; give one or more")
    shapes = {array.shape[1:] if array.ndim else None for array in arrays}
    if None in shapes or len(shapes) > 1:
        raise ValueError(
            "pad_sequences: expected arrays that agree in all axes but the first, got shapes "
            f"{', '.join(str(array.shape) for array in arrays[:4])} …"
        )
    if length is not None and length < 1:
        raise ValueError(f"pad_sequences: length must be 1 or more, got {length}")
    lengths = np.array([len(array) for array in arrays], np.int64)
    steps = int(lengths.max()) if length is None else int(length)
    lengths = np.minimum(lengths, steps)
    if dtype is None:  # an empty list has no dtype of its own
        known = {array.dtype for array in arrays if array.size} or {np.dtype(np.int64)}
        dtype = np.result_type(*known)
    padded = np.full((len(arrays), steps, *(shapes.pop() or ())), value, dtype)
    for row, array, count in zip(padded, arrays, lengths, strict=True):
        row[:count] = array[:count]
    return padded, lengths


class TrimPadding:
    """Cut from each batch the steps that are padding in all its sequences; a loader's transform.

    Parameters
    ----------
    sequences : which fields of a batch are padded sequences (samples, steps, …)
    lengths : which field holds their lengths
    multiple : steps are left up to the next multiple of this, so that few different shapes come up:
        where steps are compiled each shape is traced once

    As ``transform=`` of a `DataLoader`. Of arrays on a GPU each batch waits there for its longest
    length; with ``resident=False`` the data are cut on the host, and nothing waits. Where several
    processes share a batch, all cut to the longest of the whole batch, as one process does.
    """

    def __init__(self, sequences: Sequence[int] = (0,), lengths: int = 1, multiple: int = 8):
        if multiple < 1:
            raise ValueError(f"TrimPadding: multiple must be 1 or more, got {multiple}")
        self.sequences, self.lengths, self.multiple = tuple(sequences), int(lengths), int(multiple)
        self.whole_fields = (self.lengths,)  # that `part` is given as the whole batch has them

    def __call__(self, fields: Any, rng: Any = None) -> tuple[Any, ...]:
        """`fields`, a batch's arrays, with the sequences cut."""
        return self._cut(fields, fields[self.lengths])

    def part(
        self, fields: Any, rng: Any, start: int, count: int, whole: dict[int, Any]
    ) -> tuple[Any, ...]:
        """Some rows of a batch, cut as the whole one; `whole` has its `whole_fields`."""
        return self._cut(fields, whole[self.lengths])

    def _cut(self, fields: Any, lengths: Any) -> tuple[Any, ...]:
        """`fields` up to the longest of `lengths`."""
        longest = int(lengths.max())
        steps = -(-max(longest, 1) // self.multiple) * self.multiple
        return tuple(
            field[:, :steps] if number in self.sequences else field
            for number, field in enumerate(fields)
        )


def like_lengths(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    """A shuffled `order` rearranged so that each batch holds sequences of like length.

    The order is cut into pools of `POOL` batches; each is sorted by length, and the batches of all
    are shuffled by (seed, epoch). A last batch that is not full stays the last: it is the end of
    `order`, of any lengths, so that dropping it leaves out no kind of sequence.
    """
    whole, size = len(order) // batch_size, POOL * batch_size
    full, rest = np.split(order, [whole * batch_size])
    pools = np.split(full, range(size, len(full), size))
    ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = ordered.reshape(whole, batch_size)[permutation(whole, seed, epoch, 1)]
    return np.concatenate([batches.reshape(-1), rest])


def checked_lengths(lengths: Any, samples: int) -> np.ndarray:
    """Lengths on the CPU. ValueError unless they are whole numbers, one for each sample."""
    lengths = to_numpy(raw_array(lengths))
    if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"DataLoader: lengths have dtype {lengths.dtype} and shape {lengths.shape}; expected "
            f"a whole number for each of the {samples} samples"
        )
    return lengths
