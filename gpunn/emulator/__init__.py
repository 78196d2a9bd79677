"""The emulator: CUDA C++ kernels compiled by the host's compiler, run on the CPU, and checked.

>>> from gpunn import emulator
>>> kernel = emulator.RawKernel(source, "my_kernel")       # as cupy.RawKernel
>>> kernel((blocks,), (threads,), (x, y, np.int32(n)))     # NumPy arrays

In checked mode, the default, every access of the kernel is looked at: races, accesses out of
bounds, reads of what nothing wrote, missing waits and fences. Each kind of fault is an exception of
its own, a subclass of `EmulatorError`, that names the line, the thread and the element.
docs/emulator.md is the manual.
"""

from gpunn.emulator.config import Settings, settings
from gpunn.emulator.findings import (
    BarrierError,
    ConstWriteError,
    DeadlockError,
    DivergenceError,
    EmulatorError,
    Finding,
    LifetimeError,
    MisalignedAccessError,
    MissingFenceError,
    MissingWaitError,
    OutOfBoundsError,
    Place,
    RaceError,
    StackOverflowError,
    TrapError,
    UninitializedReadError,
)
from gpunn.emulator.module import Kernel, RawKernel, RawModule
from gpunn.emulator.tensor_map import TensorMap

__all__ = [
    "BarrierError",
    "ConstWriteError",
    "DeadlockError",
    "DivergenceError",
    "EmulatorError",
    "Finding",
    "Kernel",
    "LifetimeError",
    "MisalignedAccessError",
    "MissingFenceError",
    "MissingWaitError",
    "OutOfBoundsError",
    "Place",
    "RaceError",
    "RawKernel",
    "RawModule",
    "Settings",
    "StackOverflowError",
    "TensorMap",
    "TrapError",
    "UninitializedReadError",
    "settings",
]
