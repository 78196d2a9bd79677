"""Names for the types that the public functions take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpunn.device import Device

if TYPE_CHECKING:
    from gpunn.autograd.tensor import Tensor

DTypeLike: TypeAlias = "np.dtype[Any] | type[Any] | str | None"  # None: the usual one
DeviceLike: TypeAlias = "Device | str | None"  # None: the default device
Operand: TypeAlias = "Tensor | float | np.ndarray[Any, Any] | np.number[Any] | np.bool_"
Dims: TypeAlias = "int | Sequence[int] | None"  # None: all of them
Size: TypeAlias = "int | Sequence[int]"
