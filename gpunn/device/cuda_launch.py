"""`CudaLauncher`: runs our CUDA C++ kernels on a GPU, with as little Python as there can be.

A small network is bound by what the host does at each launch, so the path of a launch is: one look
into a dictionary for the kernel, one `pack_into` of all arguments into memory that is there already
(`arguments.Layout`), and CuPy's bare call of ``cuLaunchKernel`` on CuPy's current stream. Loading,
asking for more shared memory and explaining what went wrong happen beside that path.
``gpunn bench launch`` shows what is left of it.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

from gpunn.device import arguments, probe, sources
from gpunn.device.arrays import empty
from gpunn.device.device import Device
from gpunn.device.launch import DEFAULT_SHARED, Launcher, device_properties
from gpunn.errors import LaunchError

INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


class CupyDriver:
    """The few functions of CuPy that a launcher needs; tests and `gpunn bench` have others.

    Attributes
    ----------
    launch : ``cuLaunchKernel``: function, grid and block as three numbers each, bytes of dynamic
        shared memory, stream, address of the pointers to the arguments, 0
    launch_together : the same by ``cuLaunchCooperativeKernel``: all blocks exist at once
    stream : function(device index) -> CuPy's current stream of this thread there
    properties : function(device index) -> what `device_properties` gives
    current : function() -> the number of the GPU that is current in this thread
    Error : what `launch` raises
    """

    def __init__(self):
        cuda = probe.import_cupy().cuda
        self.launch, self.stream = cuda.driver.launchKernel, cuda.get_current_stream
        self._together = cuda.driver.launchCooperativeKernel
        self.properties = device_properties
        self.current, self.Error = cuda.runtime.getDevice, cuda.driver.CUDADriverError

    def launch_together(self, *arguments) -> None:
        """As `launch`; the driver's function does not take the 0 at the end."""
        self._together(*arguments[:-1])

    def load(self, cubin: bytes, symbol: str):
        """CuPy's kernel of some machine code, on the current device."""
        import tempfile  # not on the path of `import gpunn`

        cupy = probe.import_cupy()
        with tempfile.TemporaryDirectory(prefix="gpunn-") as folder:
            file = Path(folder) / "kernel.cubin"  # RawModule takes machine code only from a file
            file.write_bytes(cubin)
            return cupy.RawModule(path=str(file)).get_function(symbol)

    def bind(self, device: Device) -> None:
        """Give this thread, which has not yet used the GPU, a context on it."""
        runtime = probe.import_cupy().cuda.runtime
        runtime.setDevice(device.index)
        runtime.memGetInfo()


class _Kernel:
    """A kernel that is loaded: its handle, and how its arguments lie."""

    __slots__ = ("raw", "function", "allowed", "sizes", "layout")

    def __init__(self, raw, sizes: tuple[int, ...] | None):
        self.raw, self.function = raw, raw.kernel.ptr
        self.allowed = DEFAULT_SHARED - raw.shared_size_bytes  # bytes of dynamic shared memory
        self.sizes = sizes  # of the parameters, as the machine code declares them
        self.layout: arguments.Layout | None = None

    def arrange(self, args) -> None:
        """Choose the layout for arguments of these types; TypeError if they do not fit."""
        layout = arguments.layout_of(args)
        if self.sizes is not None and layout.sizes != self.sizes:
            raise TypeError(
                f"the arguments have {layout.sizes} bytes, but the kernel declares {self.sizes}"
            )
        self.layout = layout

    def allow(self, shared: int) -> None:
        """Ask for this much dynamic shared memory; a launch must not want more than was asked."""
        self.raw.max_dynamic_shared_size_bytes = self.allowed = shared


class CudaLauncher(Launcher):
    """Runs kernels of one source file on one GPU through CuPy."""

    def __init__(self, source: str, device: Device, driver: Any = None):
        self.source, self.device = source, device
        self._driver = driver or CupyDriver()
        properties = self._driver.properties(device.index)
        self.arch = properties["arch"]
        self.multiprocessors = properties["multiProcessorCount"]
        self.shared_limit = properties["sharedMemPerBlockOptin"]
        together = source in sources.COOPERATIVE
        self._launch = self._driver.launch_together if together else self._driver.launch
        self._stream = self._driver.stream
        self._current = self._driver.current
        self._index = device.index
        self._kernels: dict[str, _Kernel] = {}

    def __call__(self, expression: str, grid, block, args, shared: int = 0, _tries=0) -> None:
        try:
            kernel = self._kernels[expression]
            if shared > kernel.allowed:
                kernel.allow(shared)
            if len(grid) == 1:
                (x,), y, z = grid, 1, 1
            else:
                x, y, z = (*grid, 1)[:3]
            if not (x and y and z):
                return  # no blocks, as in the emulator; the driver would refuse it
            if len(block) == 1:
                (wide,), high, deep = block, 1, 1
            else:
                wide, high, deep = (*block, 1)[:3]
            layout = kernel.layout
            try:
                storage = layout.spare.pop()
            except IndexError:
                storage = layout.storage()
            layout.write(storage, args)
            self._launch(
                kernel.function, x, y, z, wide, high, deep, shared, self._stream(self._index).ptr,
                storage[1], 0,
            )  # fmt: skip
            layout.spare.append(storage)
        except Exception as error:
            self._again(error, _tries, expression, grid, block, args, shared)

    def is_current(self) -> bool:
        """Whether the launcher's GPU is the current one of this thread, as launches need it."""
        return self._current() == self._index

    def _again(self, error: Exception, tries: int, expression, grid, block, args, shared) -> None:
        """After a launch that failed: do what it lacked and launch again, or say what is wrong."""
        try:
            if tries == 3 or not self._mended(error, expression, args):
                raise error
        except Exception as reason:
            kinds = (self._driver.Error, TypeError, ValueError, OverflowError, struct.error)
            if isinstance(reason, kinds):
                raise LaunchError(
                    f"{self.source}: {expression} could not run on {self.device} with grid {grid}, "
                    f"block {block} and {shared} bytes of shared memory: {reason}"
                ) from reason
            raise
        self(expression, grid, block, args, shared, tries + 1)

    def _mended(self, error: Exception, expression: str, args) -> bool:
        """Whether the reason of an error may be gone now."""
        kernel = self._kernels.get(expression)
        if kernel is None:
            kernel = self._load(expression)
            kernel.arrange(args)
            self._kernels[expression] = kernel
            return True
        if isinstance(error, self._driver.Error):
            if error.status != INVALID_CONTEXT:
                return False
            self._driver.bind(self.device)
            return True
        before = kernel.layout
        kernel.arrange(args)  # such as None where an array was at first
        return kernel.layout is not before

    def _load(self, expression: str) -> _Kernel:
        from gpunn.device import compiler  # not on the path of `import gpunn`

        made = compiler.build(self.source, (expression,), self.arch)
        symbol = made.symbols[expression]
        with self.device.activate():
            raw = self._driver.load(made.cubin, symbol)
            return _Kernel(raw, arguments.parameter_sizes(made.cubin, symbol))

    def empty(self, shape, dtype):
        return empty(shape, dtype, self.device)

    def sibling(self, source: str) -> CudaLauncher:
        return cuda_launcher(source, self.device)


@functools.cache
def cuda_launcher(source: str, device: Device) -> CudaLauncher:
    """The launcher of one source on one GPU; made once."""
    return CudaLauncher(source, device)
