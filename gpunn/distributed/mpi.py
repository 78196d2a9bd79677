"""`MpiLink`: collectives over MPI on arrays in the memory of the host.

mpi4py finds the MPI library: the one of the `mpich` wheel, Open MPI, or a cluster's own. Only its
functions on buffers are used; those that would pickle are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.dtypes import is_low
from gpunn.distributed.link import Link, Pending


class MpiLink(Link):
    """All processes of an MPI job.

    Sums of 16-bit floats are made in float32 and rounded once, as MPI knows no bfloat16.
    """

    name = "MPI"

    def __init__(self) -> None:
        from mpi4py import MPI  # initialises MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD.Dup()  # what others send on theirs does not meet ours
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self._begun: set[_Request] = set()  # keeps the arrays of those that nobody waits for

    def local(self) -> tuple[int, int]:
        """(rank, size) among the processes that share this host's memory."""
        shared = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        found = shared.Get_rank(), shared.Get_size()
        shared.Free()
        return found

    # ---- arrays ----------------------------------------------------------------------------------

    def begin(self, array: np.ndarray, root: int | None = None) -> Pending:
        sums, back = (array.astype(np.float32), array) if is_low(array.dtype) else (array, None)
        if root is None:
            request = self._comm.Iallreduce(self._mpi.IN_PLACE, sums)
        elif root == self.rank:
            request = self._comm.Ireduce(self._mpi.IN_PLACE, sums, root=root)
        else:
            request = self._comm.Ireduce(sums, None, root=root)
        return _Request(self._begun, request, sums, back if root in (None, self.rank) else None)

    def broadcast(self, array: np.ndarray, root: int = 0) -> None:
        self._comm.Bcast(array.view(np.uint8), root=root)

    def all_gather(self, flat: np.ndarray, bounds: list[tuple[int, int]]) -> None:
        itemsize, data = flat.itemsize, flat.view(np.uint8)
        counts = [(stop - start) * itemsize for start, stop in bounds]
        starts = [start * itemsize for start, _ in bounds]
        self._comm.Allgatherv(self._mpi.IN_PLACE, [data, counts, starts, self._mpi.BYTE])

    # ---- values of the host ----------------------------------------------------------------------

    def exchange(self, data: bytes) -> list[bytes]:
        sizes = np.zeros(self.size, np.int64)
        self._comm.Allgather(np.array([len(data)], np.int64), sizes)
        stops = np.cumsum(sizes)
        everything = np.empty(int(stops[-1]), np.uint8)
        parts = [everything, sizes, stops - sizes, self._mpi.BYTE]
        self._comm.Allgatherv(np.frombuffer(data, np.uint8), parts)
        return [
            everything[stop - size : stop].tobytes()
            for size, stop in zip(sizes, stops, strict=True)
        ]

    def begin_barrier(self) -> Pending:
        return _Request(self._begun, self._comm.Ibarrier())

    def abort(self, code: int) -> None:
        """End all processes of the job; does not return."""
        self._mpi.COMM_WORLD.Abort(code)

    def close(self) -> None:
        self._comm.Free()


class _Request(Pending):
    """A collective under way; it reads and writes its arrays until `wait`.

    An error may let go of it before: until it is complete it is in `begun`, with its arrays.
    """

    def __init__(
        self, begun: set[_Request], request: Any, array: Any = None, back: np.ndarray | None = None
    ):
        self._begun, self._request, self._array, self._back = begun, request, array, back
        begun.add(self)

    def poke(self) -> bool:
        done = bool(self._request.Test())
        if done:
            self._begun.discard(self)
        return done

    def wait(self) -> None:
        self._request.Wait()
        self._begun.discard(self)
        if self._back is not None:
            self._back[...] = self._array
