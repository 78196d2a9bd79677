"""Each rank's part of a batch, where several processes train together on one batch.

Rank r of n has the rows ``[B r // n, B (r + 1) // n)`` of a batch of B rows: parts differ by one
row at most, and one after the other they are the batch. A rank whose part is empty, as there are
fewer rows than ranks, is given the first row of the batch, so that shapes stay what a model
expects, and is told that none of its rows is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gpunn.data.dataset import Subset, is_plain


def share(rows: int, rank: int, size: int) -> tuple[int, int]:
    """(start, stop) of the rows of rank `rank` among `size`, of a batch of `rows`."""
    return rows * rank // size, rows * (rank + 1) // size


def checked_part(name: str, rank: Any, size: Any) -> tuple[int, int]:
    """(rank, size). ValueError that names the caller unless 0 <= rank < size, whole numbers."""
    whole = all(hasattr(n, "__index__") and not isinstance(n, bool) for n in (rank, size))
    if not whole or not 0 <= rank < size:
        raise ValueError(
            f"{name}: part is ({rank!r}, {size!r}); expected (rank, size), whole numbers with "
            "0 <= rank < size"
        )
    return int(rank), int(size)


class Part(NamedTuple):
    """The rows of a batch that one rank gets: in place of the sample numbers of a whole batch.

    Attributes
    ----------
    whole : the sample numbers of the whole batch, an array or a slice
    start, stop : which of them this rank gets, at least one
    rows : rows of the whole batch
    own : how many of the rows that it gets count as its own: all, or 0
    """

    whole: Any
    start: int
    stop: int
    rows: int
    own: int

    @classmethod
    def of(cls, whole: Any, count: int, rank: int, size: int) -> Part:
        """That of rank `rank` among `size`."""
        start, stop = share(count, rank, size)
        if start == stop:
            return cls(whole, 0, 1, count, 0)
        return cls(whole, start, stop, count, stop - start)

    @property
    def indices(self) -> Any:
        """The sample numbers of the rows that this rank gets."""
        if isinstance(self.whole, slice):
            return slice(self.whole.start + self.start, self.whole.start + self.stop)
        return self.whole[self.start : self.stop]

    def cut(self, fields: Any, name: str) -> Any:
        """This rank's rows of a whole batch. ValueError for a field that has other rows.

        `fields` is nested as samples are, in tuples, lists and dicts; `name` made it.
        """
        if isinstance(fields, dict):
            return {key: self.cut(value, name) for key, value in fields.items()}
        texts = isinstance(fields, (tuple, list)) and all(
            isinstance(value, (str, bytes)) for value in fields
        )
        if isinstance(fields, (tuple, list)) and not texts:
            return tuple(self.cut(value, name) for value in fields)
        if rows_of(fields) != self.rows:
            what = f"shape {fields.shape}" if hasattr(fields, "shape") else repr(fields)[:60]
            raise ValueError(
                f"DataLoader: of a batch of {self.rows} samples {name} made a field of {what}, of "
                "which no rank can take its part: the first axis is not that of the samples. Let "
                "it keep them, or define its method part (see docs/distributed.md)"
            )
        return fields[self.start : self.stop]


def knows_parts(transform: Any) -> bool:
    """Whether a transform's `part` gives the rows that its call gives of the whole batch.

    It does not where a subclass redefines the call and leaves `part` as it was.
    """
    if not callable(getattr(transform, "part", None)):
        return False
    return "part" in getattr(transform, "__dict__", ()) or _goes_with(
        type(transform), "part", {"__call__", "gather", "images"}
    )


def _goes_with(kind: type, name: str, others: set[str]) -> bool:
    """Whether the method `name` is of the class that defines `others`, or of one below it."""
    for one in kind.__mro__:
        if name in vars(one):
            return True
        if others & set(vars(one)):
            return False
    return False


def resolved(dataset: Any, indices: Any) -> tuple[Any, Any]:
    """The dataset that this one is a subset of, if it is, and the sample numbers there."""
    while is_plain(dataset, Subset):
        dataset, indices = dataset.dataset, dataset.indices[indices]
    return dataset, indices


def rows_of(field: Any) -> int | None:
    """The rows of a field: an array, a Tensor, or a list; None of what has none."""
    shape = getattr(field, "shape", None)
    if shape is not None:
        return shape[0] if len(shape) else None
    return len(field) if isinstance(field, (list, tuple)) else None


def part_of_batch(batch: Any, rank: int, size: int) -> tuple[Any, int, int]:
    """One rank's part of a batch that is there as a whole.

    Parameters
    ----------
    batch : a tuple, list or dict of fields, or one field; fields are arrays or Tensors on any
        device, or lists, with one row for each sample
    rank, size : which part, of how many

    Returns
    -------
    batch : of the same form; views where fields are arrays. Where the part is empty, with the first
        row
    own : rows that are this rank's own
    whole : rows of the whole batch

    A batch without rows is returned as it is. ValueError where fields differ in their rows.
    """
    rank, size = checked_part("part_of_batch", rank, size)
    nested = isinstance(batch, (tuple, list, dict))
    fields = list(batch.values()) if isinstance(batch, dict) else list(batch) if nested else [batch]
    counts = [rows_of(field) for field in fields]
    if len(set(counts)) != 1 or counts[0] is None:
        shown = ", ".join("no rows" if n is None else f"{n} rows" for n in counts) or "no fields"
        raise ValueError(
            f"a batch of a {type(batch).__name__} with {shown} cannot be parted among {size} "
            "processes; expected fields with one row for each sample"
        )
    if counts[0] == 0:
        return batch, 0, 0
    part = Part.of(None, counts[0], rank, size)
    cut = [field[part.start : part.stop] for field in fields]
    if isinstance(batch, dict):
        made: Any = dict(zip(batch, cut, strict=True))
    else:
        made = (cut if isinstance(batch, list) else tuple(cut)) if nested else cut[0]
    return made, part.own, part.rows


def parts_of(data: Iterable[Any], rank: int, size: int) -> Iterator[tuple[Any, int, int]]:
    """(batch, own rows, rows of the whole batch) of each batch that `data` gives.

    A `DataLoader` makes no more than these rows; the batches of others, and of one whose class
    redefines how it is gone through, are cut by `part_of_batch`. ValueError for a DataLoader that
    has been given another part.
    """
    loader: Any = data
    knows = _goes_with(type(data), "in_parts", {"__iter__"})
    given = getattr(loader, "part", (0, 1)) if knows or hasattr(data, "set_part") else (0, 1)
    if given != (0, 1) and not (knows and given == (rank, size)):
        raise ValueError(
            f"the DataLoader gives part {given[0]} of {given[1]}, and this is process {rank} of "
            f"{size}; leave its part out: the Trainer takes each process's own"
        )
    if not knows:
        for batch in data:
            yield part_of_batch(batch, rank, size)
        return
    for batch in loader.in_parts(rank, size):
        yield (batch, *loader.rows)
