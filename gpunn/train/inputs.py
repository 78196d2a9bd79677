"""What users hand to the Trainer, turned into batches on the model's device, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gpunn.autograd.tensor import Tensor, raw_array, wrap
from gpunn.data import DataLoader, TensorDataset
from gpunn.data.dataset import as_dataset
from gpunn.device import Device, array_module, device_of, is_array, to_device

_REGRESSION = ("MSELoss", "L1Loss", "HuberLoss", "SmoothL1Loss", "BCELoss", "BCEWithLogitsLoss")


def model_device(model: Any) -> Device | None:
    """The device of the model's first parameter; None if it has no parameters."""
    for parameter in model.parameters():
        return parameter.device
    return None


def model_dtype(model: Any) -> np.dtype:
    """The dtype of the model's first parameter; float32 if it has no parameters."""
    for parameter in model.parameters():
        return parameter.dtype
    return np.dtype(np.float32)


def as_loader(
    data: Any,
    name: str,
    batch_size: int,
    device: Device,
    *,
    shuffle: bool = False,
    seed: int = 0,
    transform: Callable[..., Any] | None = None,
) -> Any:
    """`data` as something that can be iterated over in batches, once an epoch.

    A DataLoader or another iterable of batches passes; ``(x, y)`` arrays or a dataset get a
    DataLoader. ValueError for empty data or lengths that differ; TypeError for anything else.
    """
    has_items = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, Iterable) and not has_items and not isinstance(data, Tensor):
        if transform is not None:
            raise ValueError(f"{name}: give transform to the DataLoader, not to fit")
        return data
    try:
        dataset = as_dataset(data, name)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix(f"{name}: ")
        raise type(error)(f"{name}: {text}") from None
    return DataLoader(dataset, batch_size, shuffle, seed=seed, transform=transform, device=device)


def cast(array: Any, dtype: np.dtype) -> Any:
    """Floating arrays in the model's dtype, small integers as int64, all else as it is.

    So are bytes of images, of 4 dimensions, for an `ImageAugmentation` in the model.
    """
    if array.dtype == dtype or array.dtype == np.int64:
        return array
    if array.dtype == np.uint8 and array.ndim == 4:
        return array
    if array.dtype.kind == "f" or (array.dtype.kind == "V" and array.dtype.itemsize == 2):
        return array.astype(dtype)
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    return array


def _tensor(value: Any, device: Device, dtype: np.dtype) -> Tensor:
    array = value.array if isinstance(value, Tensor) else raw_array(value)
    moved = cast(to_device(array, device), dtype)
    return value if isinstance(value, Tensor) and moved is array else wrap(moved)


def split_batch(
    batch: Any, device: Device, dtype: np.dtype, name: str
) -> tuple[list[Tensor], Tensor]:
    """A batch ``(x, …, y)`` as (inputs, target) Tensors on `device`.

    ValueError if it has fewer than two fields or no samples, or the numbers of samples differ.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        kind = f"{len(batch)} field" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(f"{name}: a batch must be (x, y), got {kind}; give targets too")
    fields = [_tensor(value, device, dtype) for value in batch]
    lengths = {field.shape[0] if field.ndim else 0 for field in fields}
    if len(lengths) > 1 or lengths == {0}:
        shapes = ", ".join(str(field.shape) for field in fields)
        problem = "is empty" if lengths == {0} else "has fields of different lengths"
        raise ValueError(f"{name}: a batch {problem} (shapes {shapes})")
    return fields[:-1], fields[-1]


def input_batches(data: Any, batch_size: int, device: Device, dtype: np.dtype) -> Iterator[Any]:
    """Batches of model inputs from one array, or a dataset or loader (whose last field is dropped
    where samples have several, because it is the target)."""
    if isinstance(data, Tensor) or is_array(data) or isinstance(data, list):
        loader = as_loader(TensorDataset(raw_array(data)), "predict", batch_size, device)
    else:
        loader = as_loader(data, "predict", batch_size, device)
    for batch in loader:
        fields = list(batch) if isinstance(batch, (tuple, list)) else [batch]
        fields = fields[:-1] if len(fields) > 1 else fields
        yield [_tensor(value, device, dtype) for value in fields]


def match_target(loss: Any, prediction: Tensor, target: Tensor) -> Tensor:
    """The target as regression losses need it: floating, and (n, 1) where only the 1 is missing."""
    if type(loss).__name__ not in _REGRESSION:
        return target
    array = target.array
    if array.dtype.kind in "iub":
        array = array.astype(prediction.dtype)
    if prediction.shape == (*array.shape, 1):
        array = array.reshape(prediction.shape)
    return target if array is target.array else wrap(array)


def check_labels(loader: Any, loss: Any, prediction: Tensor) -> None:
    """Before the first weight update: every label of an array dataset is a class of the model.

    ValueError that names the range found and the range expected. Only for cross-entropy with
    integer labels; it reads the labels once.
    """
    dataset = getattr(loader, "dataset", None)
    if not hasattr(loss, "ignore_index") or not isinstance(dataset, TensorDataset):
        return
    labels = dataset.arrays[-1]
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or prediction.ndim != 2:
        return
    xp = array_module(device_of(labels))
    counted = labels[labels != loss.ignore_index]
    if counted.size == 0:
        raise ValueError(f"every label is ignore_index ({loss.ignore_index}): nothing to learn")
    low, high = int(xp.min(counted)), int(xp.max(counted))
    classes = prediction.shape[1]
    if low >= 0 and high < classes:
        return
    remedy = (
        "subtract 1 from the labels"
        if low == 1 and high == classes
        else "give the last layer as many outputs as there are classes, or correct the labels"
    )
    raise ValueError(
        f"labels run from {low} to {high}, but the model has {classes} outputs, for the classes "
        f"0 to {classes - 1}; {remedy}"
    )
