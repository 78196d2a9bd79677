"""`torch.cuda`'s everyday names: is there a GPU, which one, wait for it, free its cache.

>>> import gpunn
>>> device = gpunn.device("cuda" if gpunn.cuda.is_available() else "cpu")

CuPy is imported only where a GPU may be there.
"""

from __future__ import annotations

from typing import Any

from gpunn.autograd.random import manual_seed
from gpunn.device import Device, as_device, default_device, probe, synchronize

__all__ = [
    "current_device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "is_available",
    "manual_seed",
    "manual_seed_all",
    "memory_allocated",
    "synchronize",
]

manual_seed_all = manual_seed  # one generator serves all devices


def is_available() -> bool:
    """Whether a GPU can really be used; `gpunn doctor` says why not."""
    return probe.cuda_usable()


def device_count() -> int:
    """The number of GPUs, 0 if none can be used."""
    return probe.import_cupy().cuda.runtime.getDeviceCount() if is_available() else 0


def current_device() -> int:
    """The number of the GPU that gpunn would use. Raises DeviceError without one."""
    return _gpu(None).index


def get_device_name(device: Device | str | int | None = None) -> str:
    """The marketing name of a GPU. Raises DeviceError if it cannot be used."""
    name = _properties(device)["name"]
    return name.decode() if isinstance(name, bytes) else name


def get_device_capability(device: Device | str | int | None = None) -> tuple[int, int]:
    """The compute capability, such as (9, 0). Raises DeviceError if it cannot be used."""
    properties = _properties(device)
    return properties["major"], properties["minor"]


def memory_allocated(device: Device | str | int | None = None) -> int:
    """The bytes that arrays hold on a GPU, 0 without one."""
    if not is_available():
        return 0
    with _gpu(device).activate():
        return probe.import_cupy().get_default_memory_pool().used_bytes()


def empty_cache() -> None:
    """Give the memory that CuPy keeps for later back to the driver; nothing without a GPU."""
    if is_available():
        probe.import_cupy().get_default_memory_pool().free_all_blocks()


def _gpu(device: Device | str | int | None) -> Device:
    if isinstance(device, int):
        return Device(f"cuda:{device}")
    if device is None:
        chosen = default_device()
        return chosen if chosen.type == "cuda" else Device("cuda")
    return as_device(device)


def _properties(device: Device | str | int | None) -> dict[str, Any]:
    found = _gpu(device)
    if found.type != "cuda":
        raise ValueError(f"device: {found} is no GPU; name one such as 'cuda' or 'cuda:1'")
    return probe.import_cupy().cuda.runtime.getDeviceProperties(found.index)
