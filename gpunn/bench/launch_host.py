"""Our launch path without a GPU: a driver that does nothing, and stand-ins for arrays on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpunn.device.cuda_launch import CudaLauncher, _Kernel
from gpunn.device.device import Device


class _Memory:
    """As CuPy's MemoryPointer."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int):
        self.ptr = ptr


class StandIn:
    """What launch code looks at in an array on a GPU: shape, dtype, address; there are no values.

    It is made from a NumPy array, and views of it are made by NumPy.
    """

    FIRST, APART = 1 << 40, 1 << 32
    _number = itertools.count()

    def __init__(self, array: np.ndarray, address: int | None = None):
        self.array = array
        if address is None:
            address = self.FIRST + next(self._number) * self.APART
        self.data = _Memory(address)
        self.shape, self.dtype, self.size, self.ndim = (
            array.shape, array.dtype, array.size, array.ndim,
        )  # fmt: skip
        self.itemsize, self.nbytes = array.itemsize, array.nbytes
        self.strides, self.flags = array.strides, array.flags

    @classmethod
    def of(cls, value: Any) -> Any:
        """A stand-in for an array, also in a dataclass; anything else as it is."""
        if isinstance(value, np.ndarray):
            return cls(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(value, **{n: cls.of(getattr(value, n)) for n in names})
        return value

    @classmethod
    def some(cls) -> StandIn:
        """A stand-in for some array."""
        return cls(np.empty(1, np.float32))

    def __getattr__(self, name: str):  # reshape, view, T …
        found = getattr(self.array, name)
        if callable(found):
            return lambda *args: self._derived(found(*args))
        return self._derived(found)

    def __getitem__(self, key) -> Any:
        return self._derived(self.array[key])

    def _derived(self, value: Any) -> Any:
        """What NumPy made of the array; a view lies where it lies in the array."""
        if isinstance(value, np.ndarray) and np.may_share_memory(value, self.array):
            shift = value.ctypes.data - self.array.ctypes.data
            return type(self)(value, self.data.ptr + shift)
        return self.of(value)


class NoDriver:
    """A driver that is called as CuPy's and does nothing; it says that it is an H200."""

    class Error(RuntimeError):
        """Never raised."""

        status = 0

    _stream = SimpleNamespace(ptr=0)

    @staticmethod
    def launch(function, x, y, z, wide, high, deep, shared, stream, pointers, extra) -> None:
        """Launches nothing."""

    def stream(self, index: int):
        """A stream."""
        return self._stream

    def current(self) -> int:
        """The only device."""
        return 0

    @staticmethod
    def properties(index: int) -> dict[str, Any]:
        """Those of an H200."""
        return {"arch": "sm_90a", "multiProcessorCount": 132, "sharedMemPerBlockOptin": 227 * 1024}


class HostLauncher(CudaLauncher):
    """The launcher for a GPU as far as the driver's call; nothing is compiled or loaded."""

    def __init__(self, source: str):
        super().__init__(source, Device("cpu"), NoDriver())

    def _load(self, expression: str) -> _Kernel:
        raw = SimpleNamespace(
            kernel=SimpleNamespace(ptr=1), shared_size_bytes=0, max_dynamic_shared_size_bytes=0
        )
        return _Kernel(raw, None)

    def empty(self, shape, dtype) -> StandIn:
        return StandIn(np.empty(shape, dtype))

    def sibling(self, source: str) -> HostLauncher:
        return host_launcher(source)


@functools.cache
def host_launcher(source: str) -> HostLauncher:
    """The launcher of one source; made once."""
    return HostLauncher(source)
