"""Floor 1: devices, their memory, the compiler of kernels and the launchers.

Nothing here knows what a layer is; nothing here imports CuPy or Numba until a GPU is asked for.
"""

from gpunn.device.arrays import (
    array_module,
    as_array,
    device_of,
    empty,
    is_array,
    pointer,
    synchronize,
    to_device,
    to_numpy,
)
from gpunn.device.device import Device, as_device, default_device, set_default_device

__all__ = [
    "Device",
    "array_module",
    "as_array",
    "as_device",
    "default_device",
    "device_of",
    "empty",
    "is_array",
    "pointer",
    "set_default_device",
    "synchronize",
    "to_device",
    "to_numpy",
]
