"""The errors that gpunn raises itself. Each is one sentence or two: what, where, what to do."""

from __future__ import annotations

from typing import Any


class GpunnError(Exception):
    """Base of gpunn's own errors."""


class DeviceError(GpunnError, RuntimeError):
    """A device cannot be used; the text says what to install or set."""


class OutOfMemoryError(GpunnError, MemoryError):
    """A device has too little free memory for an allocation."""


class CompileError(GpunnError, RuntimeError):
    """A CUDA source did not compile; the text holds the compiler's log."""


class LaunchError(GpunnError, RuntimeError):
    """A kernel could not be launched, or failed while it ran."""


class UnsupportedError(GpunnError, NotImplementedError):
    """No implementation of a primitive runs for this device, dtype and shape."""


class StepError(GpunnError, RuntimeError):
    """A compiled step does something that a replay could not repeat; the text names it.

    `completed` says whether the step was done all the same, once; `result` is what it gave then.
    """

    completed = False
    result: Any = None


class FileFormatError(GpunnError, ValueError):
    """A file is damaged, or is not of the format that was expected."""


class WorkerError(GpunnError, RuntimeError):
    """A worker of a DataLoader failed; the text names the batch, its samples and the error."""
