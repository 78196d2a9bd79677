"""Launchers: what a primitive's launch code calls to run a kernel.

All launchers of CUDA C++ look alike to the launch code, so the same lines run a kernel on a GPU
(`CudaLauncher` in cuda_launch.py) or in the emulator (`EmulatorLauncher` in emulator_launch.py) and
list the kernels that must compile (`RecordingLauncher`). `NumbaLauncher` runs the teaching
versions.
"""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import ml_dtypes
import numpy as np

from gpunn.device import probe, sources
from gpunn.device.arrays import empty, pointer
from gpunn.device.device import Device

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_CTYPES = {
    np.dtype(np.float16): "__half",
    BFLOAT16: "__nv_bfloat16",
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.int32): "int",
    np.dtype(np.int64): "long long",
    np.dtype(np.uint8): "unsigned char",
    np.dtype(np.uint32): "unsigned int",
    np.dtype(np.bool_): "bool",
}

# What a block may use, static and dynamic shared memory together, before its kernel asks for more.
DEFAULT_SHARED = 48 * 1024


class Launcher:
    """Common ground of the launchers of CUDA C++.

    Attributes
    ----------
    arch : the architecture kernels are compiled for, such as ``"sm_90a"``
    multiprocessors : their number, for grids that fill the chip
    shared_limit : bytes of dynamic shared memory that one block may use
    launches_nothing : its scratch is memory of the host, and what was launched cannot be repeated
    """

    arch: str
    multiprocessors: int
    shared_limit: int
    launches_nothing = False

    @staticmethod
    def ctype(dtype) -> str:
        """The C++ name of a NumPy dtype: float32 is ``float``, bfloat16 ``__nv_bfloat16``."""
        found = _CTYPES.get(dtype)  # at once for a dtype, the usual case
        return _CTYPES[np.dtype(dtype)] if found is None else found

    @staticmethod
    def aligned(alignment: int, *arrays) -> bool:
        """Whether every array given (None is passed over) starts at a multiple of `alignment`."""
        for array in arrays:
            if array is not None and pointer(array) % alignment:
                return False
        return True

    @staticmethod
    def alike(alignment: int, *arrays) -> bool:
        """Whether all arrays given start at one distance from multiples of `alignment`.

        A distance of whole elements: then the same index is aligned in each of them.
        """
        place = None
        for array in arrays:
            if array is not None:
                mine = pointer(array) % alignment
                if place is None:
                    place = mine
                    if mine % array.dtype.itemsize:
                        return False
                elif mine != place:
                    return False
        return True

    @staticmethod
    @functools.lru_cache(1 << 12)
    def int64(value: int) -> np.int64:
        """`numpy.int64(value)`, remembered: to make one takes NumPy as long as half a launch."""
        return np.int64(value)

    @staticmethod
    @functools.lru_cache(1 << 12)
    def int32(value: int) -> np.int32:
        """`numpy.int32(value)`, remembered like `int64`."""
        return np.int32(value)

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        raise NotImplementedError

    def empty(self, shape, dtype):
        """Scratch memory on the device of the launch."""
        raise NotImplementedError

    def sibling(self, source: str) -> Launcher:
        """The launcher of another source file on the same device and chip."""
        raise NotImplementedError

    def not_repeatable(self) -> None:
        """Launch code says that it did more than launches, for `recipe.Recorder`."""

    @property
    def plain(self) -> Launcher:
        """This launcher, or the one behind it that notes nothing."""
        return self


@functools.cache
def device_properties(index: int) -> dict[str, Any]:
    """CUDA's properties of GPU `index`, with ``arch`` as our compiler names it."""
    properties = dict(probe.import_cupy().cuda.runtime.getDeviceProperties(index))
    number = properties["major"] * 10 + properties["minor"]
    # From 9.0 on, the instructions of one generation (wgmma, tcgen05) need the letter.
    properties["arch"] = f"sm_{number}a" if number >= 90 else f"sm_{number}"
    return properties


class RecordingLauncher(Launcher):
    """Launches nothing and notes what would have been: ``launches`` holds (source, expression).

    It looks like an H200 unless told otherwise, so that the launch code chooses as it would there.
    """

    launches_nothing = True

    def __init__(
        self,
        source: str,
        arch: str = "sm_90a",
        multiprocessors: int = 132,
        shared_limit: int = 227 * 1024,
    ):
        self.source, self.arch = source, arch
        self.multiprocessors, self.shared_limit = multiprocessors, shared_limit
        self.launches: list[tuple[str, str]] = []

    def __call__(self, expression: str, grid, block, args, shared: int = 0) -> None:
        check_scalars(expression, args)
        self.launches.append((self.source, expression))

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def sibling(self, source: str) -> RecordingLauncher:
        """Like this one, and it notes its launches in the same list."""
        other = copy.copy(self)
        other.source = source
        return other


def check_scalars(expression: str, args) -> None:
    """Refuse Python numbers: CUDA would read 8 bytes where the kernel may declare 4."""
    for position, value in enumerate(args):
        if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
            raise TypeError(
                f"{expression}: argument {position} is a Python {type(value).__name__}; "
                "pass a NumPy scalar of the kernel's own type"
            )


def _plain(value):
    """What Numba's simulator takes, which copies whole arrays to and fro: no views, all writable"""
    if type(value) is np.ndarray and not (value.flags.forc and value.flags.writeable):
        return np.array(value, order="C")
    return value


class NumbaLauncher:
    """Runs the Numba kernels of one file, on a GPU or in Numba's CUDA simulator."""

    def __init__(self, source: str, device: Device):
        self.source, self.device = source, device
        probe.import_numba_cuda()
        self.module = sources.numba_module(source)

    def __call__(self, name: str, grid, block, args, shared: int = 0) -> None:
        kernel = getattr(self.module, name)
        if self.device.type != "cpu":
            kernel[grid, block, self._stream(), shared](*args)
            return
        with np.errstate(all="ignore"):  # the simulator computes with NumPy scalars
            plain = [_plain(value) for value in args]
            kernel[grid, block, 0, shared](*plain)
        for value, made in zip(args, plain, strict=True):
            if made is not value and value.flags.writeable:
                value[...] = made

    def _stream(self):
        from numba import cuda

        return cuda.external_stream(probe.import_cupy().cuda.get_current_stream().ptr)

    def empty(self, shape, dtype):
        return empty(shape, dtype, self.device)

    def not_repeatable(self) -> None:
        """As of `Launcher`: nobody takes notes here."""


@functools.cache
def numba_launcher(source: str, device: Device) -> NumbaLauncher:
    """The launcher of one Numba file on one device; made once."""
    return NumbaLauncher(source, device)


@functools.cache
def numba_simulated() -> bool:
    """Whether Numba runs CUDA kernels in its simulator (``NUMBA_ENABLE_CUDASIM=1``)."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
