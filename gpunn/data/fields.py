"""The fields of a batch, nested in tuples and dicts as samples are, and their way to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpunn.autograd.functions.layout import in_axes, memory_order
from gpunn.autograd.tensor import Tensor
from gpunn.data.dataset import collate
from gpunn.device.transfer import Uploader


def each(function: Callable[..., Any], fields: Any) -> Any:
    """`function` of every array of a batch; lists become tuples, strings stay what they are."""
    if isinstance(fields, dict):
        return {key: each(function, value) for key, value in fields.items()}
    if isinstance(fields, (tuple, list)) and not isinstance(fields, Moving):
        return tuple(each(function, value) for value in fields)
    return fields if isinstance(fields, (str, bytes)) else function(fields)


def array_of(value: Any) -> Any:
    """The array of a field: of a Tensor, an array, or a number or a list of them."""
    if isinstance(value, Tensor):
        return value.array
    return value if hasattr(value, "dtype") else collate([value])[0]


def tensor(value: Any) -> Tensor:
    """A field as a Tensor."""
    return value if isinstance(value, Tensor) else Tensor(array_of(value))


class Moving(NamedTuple):
    """An array on its way: what `Uploader` made of it, and the order of its axes in memory."""

    upload: Any
    order: tuple[int, ...] | None


def staged(uploader: Uploader) -> Callable[..., Any]:
    """A function that makes an array ready to be uploaded, in any thread."""

    def stage(value: Any) -> Moving:
        array = array_of(value)
        order = memory_order(array) if isinstance(array, np.ndarray) else None
        array = array if order is None else array.transpose(order)
        return Moving(uploader.stage(array), order)

    return stage


def started(uploader: Uploader) -> Callable[..., Any]:
    """A function that begins to upload an array, or what `staged` made of one."""
    stage = staged(uploader)

    def start(value: Any) -> Moving:
        value = value if isinstance(value, Moving) else stage(value)
        return Moving(uploader.start(value.upload), value.order)

    return start


def taken(moving: Moving) -> Any:
    """The uploaded array, its axes lying in memory as they did."""
    upload, order = moving
    array = upload.take()
    return array if order is None else in_axes(array, order)
