"""Datasets: something with a length that gives its i-th sample, or a whole batch at once.

A dataset is any object with ``__len__`` and ``__getitem__(i)``. One that can also gather many
samples in one go has ``take(indices) -> fields``; `TensorDataset` does it with one fancy index for
each array, on the device where the array lives, and that is what makes array data fast.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, raw_array
from gpunn.device import array_module, device_of, is_array, to_device


class Dataset:
    """Base class of datasets: define ``__len__`` and ``__getitem__(i)`` returning one sample.

    A sample is an array, or a tuple of arrays such as ``(x, y)``. Override `take` where many
    samples can be fetched faster together.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def take(self, indices: np.ndarray | slice) -> Any:
        """The samples at `indices`, stacked along a new first axis (arrays, not Tensors)."""
        return take(self, indices)


class TensorDataset(Dataset):
    """Arrays of equal length: sample i is ``(arrays[0][i], arrays[1][i], …)``.

    Parameters
    ----------
    *tensors : Tensors, NumPy or CuPy arrays, or nested sequences; at least one, of equal length
        in the first axis. Kept where they are; nothing is copied.

    Raises
    ------
    ValueError if there is none, one has no first axis, or the lengths differ.
    """

    def __init__(self, *tensors: Any):
        if not tensors:
            raise ValueError("TensorDataset: give at least one array, for example (x, y)")
        self.arrays = tuple(raw_array(value) for value in tensors)
        for position, array in enumerate(self.arrays):
            if array.ndim == 0:
                raise ValueError(
                    f"TensorDataset: array {position} is a single number; "
                    "each array needs one row for each sample"
                )
        lengths = [len(array) for array in self.arrays]
        if len(set(lengths)) > 1:
            shapes = ", ".join(str(array.shape) for array in self.arrays)
            raise ValueError(
                f"TensorDataset: the arrays have {lengths} samples (shapes {shapes}); "
                "they must have one row for each sample, in the same order"
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays as Tensors that share their memory."""
        return tuple(Tensor(array) for array in self.arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(Tensor(array[index]) for array in self.arrays)

    def take(self, indices: np.ndarray | slice) -> tuple[Any, ...]:
        """``(array[indices] for each array)``; a slice gives views."""
        return tuple(gather(array, indices) for array in self.arrays)

    def to(self, device: Any) -> TensorDataset:
        """The same dataset with its arrays on `device`, so that batches are made there."""
        made = copy.copy(self)
        made.arrays = tuple(to_device(array, device) for array in self.arrays)
        return made


class Subset(Dataset):
    """The samples of `dataset` at `indices`, in that order.

    IndexError if an index lies outside the dataset (negative ones count from its end).
    """

    def __init__(self, dataset: Any, indices: Iterable[int]):
        self.dataset = dataset
        self.indices = _checked_indices(indices, len(dataset))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (list, slice, np.ndarray)):
            return Subset(self.dataset, self.indices[index])
        return self.dataset[int(self.indices[index])]

    def take(self, indices: np.ndarray | slice) -> Any:
        """The samples at positions `indices` of this subset, stacked."""
        return take(self.dataset, self.indices[indices])


def _checked_indices(indices: Iterable[int], length: int) -> np.ndarray:
    indices = np.asarray(raw_array(indices) if not isinstance(indices, range) else indices)
    if indices.size == 0:
        return np.zeros(0, np.int64)
    if indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise ValueError(
            f"Subset: indices must be a flat list of integers, got {indices.dtype} of shape "
            f"{indices.shape}"
        )
    low, high = int(indices.min()), int(indices.max())
    if low < -length or high >= length:
        raise IndexError(
            f"Subset: index {high if high >= length else low} lies outside a dataset of "
            f"{length} samples"
        )
    return indices.astype(np.int64) % length


def gather(array: Any, indices: np.ndarray | slice) -> Any:
    """``array[indices]`` where the array lives; the indices travel to it."""
    if isinstance(indices, slice) or type(array) is np.ndarray:
        return array[indices]
    return array[to_device(indices, device_of(array))]


def takes(dataset: Any) -> bool:
    """Whether a dataset's own `take` gives its samples: one by one they may have been redefined."""
    for kind in type(dataset).__mro__:
        own = vars(kind)
        if kind is not Dataset and "take" in own:
            return True
        if "__getitem__" in own:
            return False
    return False


def is_plain(dataset: Any, base: type) -> bool:
    """Whether this is a `base`, or of a class that changes nothing in how that gives samples."""
    methods = ("__len__", "__getitem__", "take")
    return isinstance(dataset, base) and all(
        getattr(type(dataset), name) is getattr(base, name) for name in methods
    )


def take(dataset: Any, indices: np.ndarray | slice) -> Any:
    """The samples of any dataset at `indices`, stacked: by its own `take`, else one by one."""
    if takes(dataset):
        return dataset.take(indices)
    if isinstance(indices, slice):
        indices = np.arange(*indices.indices(len(dataset)))
    return collate([dataset[int(index)] for index in indices])


def collate(samples: Sequence[Any]) -> Any:
    """Stack samples along a new first axis: tuples field by field, mappings key by key. Strings
    stay strings, in a tuple.

    ValueError if `samples` is empty, or the shapes or the numbers of fields differ.
    """
    if not samples:
        raise ValueError("collate: the batch is empty; give at least one sample")
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, (tuple, list)):
        counts = {len(sample) for sample in samples}
        if len(counts) > 1:
            raise ValueError(f"collate: samples have different numbers of fields: {sorted(counts)}")
        return tuple(collate(list(column)) for column in zip(*samples, strict=True))
    if isinstance(first, (str, bytes)):
        return tuple(samples)
    arrays = [raw_array(sample) for sample in samples]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f"collate: samples have different shapes {sorted(shapes)}; pad or crop them to one "
            "shape, or pass collate_fn="
        )
    return array_module(device_of(arrays[0])).stack(arrays)


_SAMPLES = (tuple, Mapping, str, bytes)


def as_dataset(data: Any, name: str = "data") -> Any:
    """`data` as a dataset.

    A dataset passes. A tuple of arrays, such as ``(x, y)``, one array, or a list of numbers or of
    lists of numbers becomes a `TensorDataset`; a list of tuples, mappings or strings is a dataset
    of samples.
    TypeError for what is none of these; ValueError if it is empty.
    """
    if isinstance(data, tuple) and data:
        dataset = TensorDataset(*data)
    elif isinstance(data, Tensor) or is_array(data):
        dataset = TensorDataset(data)
    elif isinstance(data, list) and data and not isinstance(data[0], _SAMPLES):
        dataset = TensorDataset(data)
    elif isinstance(data, Mapping) and 0 not in data:
        raise TypeError(
            f"{name}: a {type(data).__name__} with the keys {', '.join(map(repr, [*data][:4]))} is "
            "no dataset; give its arrays as a tuple, such as (x, y), or a list of one dict for "
            "each sample"
        )
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        dataset = data
    else:
        raise TypeError(
            f"{name}: expected (x, y) arrays, a dataset or a DataLoader, got {type(data).__name__}"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name}: has no samples; give at least one")
    return dataset


def array_dataset(dataset: Any) -> TensorDataset | None:
    """The dataset of arrays that this is, or is a part of; not one that redefines its samples."""
    while is_plain(dataset, Subset):
        dataset = dataset.dataset
    return dataset if is_plain(dataset, TensorDataset) else None
