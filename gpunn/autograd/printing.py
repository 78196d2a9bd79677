"""How a Tensor shows itself: its values, then what is not the ordinary: device, dtype, gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.dtypes import bool_, float32, int64
from gpunn.device import to_numpy

_PREFIX = "tensor("


def describe(tensor: Any) -> str:
    """``tensor([1., 2.], device='cuda:0', dtype=float64, grad_fn=<MulBackward>)``"""
    array = to_numpy(tensor._array)
    if array.dtype.kind == "V":
        array = array.astype(np.float32)
    values = np.array2string(
        array, separator=", ", prefix=_PREFIX, precision=4, threshold=1000, edgeitems=3
    )
    parts = [values]
    if array.size == 0 and array.ndim > 1:
        parts.append(f"size={tuple(array.shape)}")
    if tensor.device.type != "cpu":
        parts.append(f"device='{tensor.device}'")
    if tensor.dtype not in (float32, int64, bool_):
        parts.append(f"dtype={tensor.dtype.name}")
    if tensor._node is not None:
        parts.append(f"grad_fn=<{tensor._node.name}>")
    elif tensor._requires_grad:
        parts.append("requires_grad=True")
    return _PREFIX + ", ".join(parts) + ")"
