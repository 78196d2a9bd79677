"""What the link between GPUs needs of CuPy and NCCL, and how NCCL is found."""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.device import probe
from gpunn.device.device import Device
from gpunn.device.transfer import CupyTransfers
from gpunn.distributed.environment import JoinError

_NOT_READY = 600  # cudaErrorNotReady


def import_nccl() -> Any:
    """The module cupy.cuda.nccl with NCCL loaded, or a JoinError that says how to get it."""
    cupy = probe.import_cupy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own advice; the error below has ours
        from cupy.cuda import nccl
    if nccl.available:
        return nccl
    reason = "this CuPy was built without it"
    try:
        importlib.import_module("cupy_backends.cuda.libs.nccl")
    except ImportError as error:
        reason = str(error)
    major = cupy.cuda.driver.get_build_version() // 1000
    raise JoinError(
        f"several GPUs are connected by NCCL, which CuPy cannot load ({reason}); install it: "
        f"pip install 'gpunn[distributed-cuda{major}]'"
    )


class CupyNccl(CupyTransfers):
    """The few functions of CuPy that the link needs, beside those for streams and events.

    Attributes
    ----------
    error : what NCCL's functions raise
    """

    def __init__(self, device: Device):
        self._nccl = import_nccl()
        super().__init__(device)
        self.error: type[Exception] = self._nccl.NcclError

    def done(self, event: Any) -> bool:
        """Whether `event` has come. Raises what the GPU has met, where it would never come."""
        runtime = self._cupy.cuda.runtime
        status = runtime.eventQuery(event.ptr)
        if status not in (0, _NOT_READY):
            raise runtime.CUDARuntimeError(status)
        return status == 0

    def unique_id(self) -> bytes:
        """The id of a new job; with NCCL_COMM_ID that of the job at this address."""
        return bytes(self._nccl.get_unique_id())

    def communicator(self, size: int, identity: bytes, rank: int) -> Any:
        """Join; waits for all ranks."""
        return self._nccl.NcclCommunicator(size, identity, rank)

    def group(self, calls: Callable[[], None]) -> None:
        """Make several calls one operation."""
        self._nccl.groupStart()
        try:
            calls()
        finally:
            self._nccl.groupEnd()

    def check(self, communicator: Any) -> None:
        """Raise if something went wrong meanwhile."""
        communicator.check_async_error()

    def abort(self, communicator: Any) -> None:
        """End its kernels, then let go of it."""
        communicator.abort()

    def destroy(self, communicator: Any) -> None:
        """Let go of it; nothing is under way."""
        communicator.destroy()

    def keep(self, communicator: Any) -> None:
        """Never let it be destroyed by Python's counting of references."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(communicator))

    def pointer(self, array: Any) -> int:
        """The address of an array on the GPU."""
        return int(array.data.ptr)

    def on_host(self, array: Any) -> bool:
        """Whether it is an array of NumPy."""
        return isinstance(array, np.ndarray)

    def here(self, array: Any) -> bool:
        """Whether it is on this GPU."""
        return bool(array.device.id == self._device.index)

    def upload(self, array: np.ndarray) -> Any:
        """A copy on the GPU, on the current stream."""
        return self._cupy.asarray(array)

    def download(self, array: Any) -> np.ndarray:
        """A copy on the host, which waits for it."""
        return array.get()

    def empty(self, size: int) -> Any:
        """So many bytes of the GPU."""
        return self._cupy.empty(size, np.uint8)
