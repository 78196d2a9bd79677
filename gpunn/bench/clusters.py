"""How many clusters of blocks the GPU runs at one time, by what its driver says.

A cluster lies within one of the groups that the multiprocessors stand in, and how many of a group
work differs from chip to chip: of 132 multiprocessors 33 clusters of 4 blocks need not fit. A grid
that stays on the chip must not have one cluster more than fit: it would begin when all others end.
"""

from __future__ import annotations

import ctypes
from typing import Any

from gpunn.device.device import Device
from gpunn.device.probe import import_cupy
from gpunn.errors import DeviceError

SIZES = (1, 2, 4, 8, 16)
THREADS = 256
# From the CUDA driver's cuda.h: CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
# CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, which sizes above 8 need.
_CLUSTER_DIMENSION, _ABOVE_EIGHT = 4, 14


class _Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class _Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]  # fmt: skip


def clusters(device: Device, driver: Any = None) -> dict[str, int]:
    """For each size of a cluster how many run at one time, with one block a multiprocessor.

    `driver` is libcuda, or what a test has in its place. DeviceError if it does not tell.
    """
    from gpunn.device.cuda_launch import cuda_launcher

    if driver is None:
        driver = ctypes.CDLL("libcuda.so.1")
    launch = cuda_launcher("running_loss.cu", device)
    shared = launch.shared_limit * 3 // 4  # no room for a second block
    with device.activate():
        kernel = launch._load("add_loss<float>")  # any will do: it is not launched
        kernel.allow(shared)
        import_cupy().cuda.driver.funcSetAttribute(kernel.function, _ABOVE_EIGHT, 1)
        return {
            str(size): active(driver, kernel.function, size, size * launch.multiprocessors, shared)
            for size in SIZES
        }


def active(driver: Any, function: int, size: int, blocks: int, shared: int) -> int:
    """What cuOccupancyMaxActiveClusters says of a kernel in clusters of `size` blocks."""
    attribute = _Attribute(_CLUSTER_DIMENSION, 0, (size, 1, 1))
    config = _Config((blocks, 1, 1), (THREADS, 1, 1), shared, None, ctypes.pointer(attribute), 1)
    found = ctypes.c_int(0)
    status = driver.cuOccupancyMaxActiveClusters(
        ctypes.byref(found), ctypes.c_void_p(function), ctypes.byref(config)
    )
    if status:
        raise DeviceError(
            f"cuOccupancyMaxActiveClusters, clusters of {size} blocks with {shared} bytes of "
            f"shared memory: the driver gave error {status}"
        )
    return found.value
