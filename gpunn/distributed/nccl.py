"""`NcclLink`: collectives between GPUs by NCCL, through CuPy's binding.

All run on one stream of their own, so that they are in one order and beside the computation:

    current stream   … gradients | event                    | waits for done | update …
    this stream                  | waits, allReduce, done   |

Within a capture the events fork this stream off the captured one and join it again, so that NCCL's
kernels become part of the graph. All calls of CuPy are in `CupyNccl`; the tests have others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.device.device import Device
from gpunn.distributed.environment import JoinError, Launch
from gpunn.distributed.gpus import agree
from gpunn.distributed.link import Done, Link, Pending
from gpunn.distributed.nccl_driver import CupyNccl
from gpunn.distributed.rendezvous import hand_over, meeting_place
from gpunn.errors import GpunnError

# ncclDataType_t and ncclRedOp_t, of nccl.h
_TYPES = {
    "int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5, "float16": 6,
    "float32": 7, "float64": 8, "bfloat16": 9,
}  # fmt: skip
_BYTES, _SUM = 1, 0
CLOSE_SECONDS = 10.0  # for what is under way; after that someone is not coming
ABORT_SECONDS = 5.0


class NcclLink(Link):
    """The GPUs of all processes of a job; all ranks make it together.

    Arrays may also be NumPy's: they travel through the GPU.

    Memory needs no care beyond the usual: an operation waits for what was queued on the current
    stream, and what is queued there after ``wait`` waits for it. So memory that goes back to CuPy's
    pool after ``wait``, which is the pool of that stream, is not written before it is done. Until
    ``wait`` the link holds the array. A captured step has its arrays in an arena that lives as long
    as the graph.

    Parameters
    ----------
    launch : rank and size
    device : the GPU of this process, as `own_gpu` gives it
    host : the link over MPI, which brings NCCL's id of the job to all; without it they get it as
        `rendezvous` says

    Raises JoinError if NCCL is missing or the ranks cannot join.
    """

    name = "NCCL"

    def __init__(
        self, launch: Launch, device: Device, host: Link | None = None, driver: Any = None
    ):
        self.rank, self.size, self.device = launch.rank, launch.size, device
        self._communicator: Any = None
        self._under_way: set[_Queued] = set()
        self._kept = False  # whether graphs hold the communicator
        self._driver, identity = self._meet(launch, host, driver)
        with self._driver.activate():
            try:
                self._communicator = self._driver.communicator(self.size, identity, self.rank)
            except self._driver.error as error:
                raise JoinError(
                    f"rank {self.rank} of {self.size} could not join the others by NCCL on "
                    f"{device} ({error}). With NCCL_DEBUG=WARN NCCL says why; if two ranks have "
                    "one GPU, show each process a GPU of its own (CUDA_VISIBLE_DEVICES)"
                ) from error
            self._stream = self._driver.stream()
            self._one = self._driver.upload(np.zeros(1, np.int32))
        # What NCCL does before its first operation need not be captured later.
        self.begin_barrier().wait()

    def _meet(self, launch: Launch, host: Link | None, driver: Any) -> tuple[Any, bytes]:
        """The driver, and the job's id from rank 0."""
        place, identity, problem = None, b"", ""
        everyone = "NCCL_COMM_ID" in os.environ  # each makes the same one from the address
        try:
            driver = driver or CupyNccl(self.device)
            if host is None and launch.size > 1 and not everyone:
                place = meeting_place(launch)
            if launch.rank == 0 or everyone:
                identity = self._identity(driver)
        except GpunnError as error:
            if host is None:
                raise
            problem = str(error)
        if host is not None:
            agree(host, problem)
            identity = host.exchange(identity)[0]
        elif place is not None:
            identity = hand_over(launch, place, identity)
        return driver, identity

    def _identity(self, driver: Any) -> bytes:
        try:
            with driver.activate():
                return driver.unique_id()
        except driver.error as error:
            address = os.environ.get("NCCL_COMM_ID")
            raise JoinError(
                f"NCCL on rank {self.rank} of {self.size} gives no id for the job ({error}): "
                + (f"is NCCL_COMM_ID={address} of the form address:port, and is there a network "
                   "interface in its subnet?" if address else "is there a network interface? "
                   "NCCL_SOCKET_IFNAME may name one; with NCCL_DEBUG=WARN NCCL says more")
            ) from error  # fmt: skip

    # ---- arrays ----------------------------------------------------------------------------------

    def begin(self, array: Any, root: int | None = None) -> Pending:
        code = self._code(array)
        if not array.size:
            return Done()
        place = self._placed(array)
        at, count = self._driver.pointer(place), array.size

        def call(communicator: Any, stream: int) -> None:
            if root is None:
                communicator.allReduce(at, at, count, code, _SUM, stream)
            else:
                communicator.reduce(at, at, count, code, _SUM, root, stream)

        what = f"the sum of {_described(array)}"
        back = array if place is not array and root in (None, self.rank) else None
        pending = _Queued(self, *self._queue(call, what), place, back)
        self._under_way.add(pending)
        return pending

    def broadcast(self, array: Any, root: int = 0) -> None:
        if not array.size:
            return
        place = self._placed(array)
        at, count = self._driver.pointer(place), array.nbytes
        self._through(
            lambda comm, stream: comm.broadcast(at, at, count, _BYTES, root, stream),
            f"the broadcast of {_described(array)}", place, array,
        )  # fmt: skip

    def all_gather(self, flat: Any, bounds: list[tuple[int, int]]) -> None:
        self._check_bounds(flat, bounds)
        if not flat.size:
            return
        place, itemsize = self._placed(flat), flat.itemsize
        at = self._driver.pointer(place)
        parts = [(at + start * itemsize, (stop - start) * itemsize) for start, stop in bounds]
        first, size = parts[0]
        even = all(part == (first + rank * size, size) for rank, part in enumerate(parts))

        def call(communicator: Any, stream: int) -> None:
            if even:
                mine = parts[self.rank][0]
                communicator.allGather(mine, first, size, _BYTES, stream)
                return
            for rank, (start, count) in enumerate(parts):
                if count:
                    communicator.broadcast(start, start, count, _BYTES, rank, stream)

        def grouped(communicator: Any, stream: int) -> None:
            self._driver.group(lambda: call(communicator, stream))

        what = f"the all-gather of {_described(flat)}"
        self._through(call if even else grouped, what, place, flat)

    def _through(self, call: Callable[[Any, int], None], what: str, place: Any, array: Any) -> None:
        """Do it on this link's stream, in the order of the current one."""
        back = array if place is not array else None
        _Queued(self, *self._queue(call, what), place, back).wait()

    def _queue(self, call: Callable[[Any, int], None], what: str) -> tuple[Any, bool]:
        """Queue it after the current stream; gives the event of its end, and if it is captured."""
        driver = self._driver
        if self._communicator is None:
            raise RuntimeError(f"rank {self.rank}: {what}: this link to the other GPUs was closed")
        with driver.activate():
            current = driver.current()
            captured = driver.capturing(current)
            if captured and not self._kept:
                # NCCL destroys a communicator, and even aborts it, only when all graphs that it is
                # in are gone, and waits for that: so this one stays until the process ends.
                driver.keep(self._communicator)
                self._kept = True
            driver.wait(self._stream, driver.record(current))
            try:
                call(self._communicator, self._stream.ptr)
            except driver.error as error:
                raise RuntimeError(
                    f"rank {self.rank} of {self.size}: {what} failed ({error}). With "
                    "NCCL_DEBUG=WARN NCCL says why"
                ) from error
            return driver.record(self._stream), captured

    def _placed(self, array: Any) -> Any:
        """The array on the GPU: itself, or a copy of a NumPy array."""
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise ValueError(f"NCCL: an array must have no gaps, and {_described(array)} has")
        if not self._driver.on_host(array):
            if not self._driver.here(array):
                raise ValueError(
                    f"NCCL: {_described(array)} is not on {self.device}, the GPU of rank "
                    f"{self.rank}; move it there"
                )
            return array
        self._refuse_capture("a NumPy array")
        with self._driver.activate():
            return self._driver.upload(array.reshape(-1, order="A").view(np.uint8))

    def _code(self, array: Any) -> int:
        name = np.dtype(array.dtype).name
        if name not in _TYPES:
            raise TypeError(
                f"NCCL: {name} cannot be added up, in {_described(array)}; there are "
                f"{', '.join(_TYPES)}"
            )
        return _TYPES[name]

    def _check_bounds(self, flat: Any, bounds: list[tuple[int, int]]) -> None:
        right = all(0 <= start <= stop <= flat.size for start, stop in bounds)
        if len(bounds) != self.size or not right:
            raise ValueError(
                f"NCCL: all_gather needs the part of each of {self.size} ranks within the "
                f"{flat.size} elements, got {bounds}"
            )

    def _refuse_capture(self, what: str) -> None:
        with self._driver.activate():
            if self._driver.capturing(self._driver.current()):
                raise RuntimeError(
                    f"NCCL: {what} inside a step that is being captured would be exchanged once, "
                    "and repeated with old values; do it outside of the step"
                )

    # ---- values of the host ----------------------------------------------------------------------

    def exchange(self, data: bytes) -> list[bytes]:
        self._refuse_capture("a value of the host")
        lengths = self._gathered(np.array([len(data)], np.int64).view(np.uint8)).view(np.int64)
        longest = int(lengths.max())
        padded = np.zeros(longest, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        parts = zip(self._gathered(padded), lengths[:, 0].tolist(), strict=True)
        return [part[:length].tobytes() for part, length in parts]

    def _gathered(self, mine: np.ndarray) -> np.ndarray:
        """The bytes of each rank, shape (size, bytes); all have as many."""
        if not mine.size:
            return np.zeros((self.size, 0), np.uint8)
        driver = self._driver
        with driver.activate():
            here, place = driver.upload(mine), driver.empty(self.size * mine.size)
            start, at = driver.pointer(here), driver.pointer(place)
            event, _ = self._queue(
                lambda comm, stream: comm.allGather(start, at, mine.size, _BYTES, stream),
                "an exchange of values",
            )
            driver.wait(driver.current(), event)
            self._until(event)
            return driver.download(place).reshape(self.size, mine.size)

    def begin_barrier(self) -> Pending:
        self._refuse_capture("a barrier")
        at = self._driver.pointer(self._one)
        event, _ = self._queue(
            lambda comm, stream: comm.allReduce(at, at, 1, _TYPES["int32"], _SUM, stream),
            "a barrier",
        )
        return _Barrier(self, event)

    def _until(self, event: Any) -> None:
        """The host waits, and looks whether a rank is gone."""
        begun = time.monotonic()
        while not self._driver.done(event):
            self.check()
            if time.monotonic() - begun > 1e-3:
                time.sleep(2e-4)

    # ---- the end ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise RuntimeError, and end what is under way, if NCCL knows that a rank is gone.

        It knows of network connections that broke; of a rank that hangs, or dies on the same host,
        it knows nothing.
        """
        if self._communicator is None:
            return
        try:
            self._driver.check(self._communicator)
        except self._driver.error as error:
            self.abort()
            raise RuntimeError(
                f"rank {self.rank} of {self.size}: NCCL has lost another rank or met an error "
                f"({error}). If a process of the job ended, see what it said; with NCCL_DEBUG=WARN "
                "NCCL says more"
            ) from error

    def abort(self) -> None:
        """Let go of it without waiting for the others: what is under way ends, with any values."""
        communicator, self._communicator = self._communicator, None
        if communicator is None:
            return
        # Its kernels are told to end at once. Then it waits for the graphs that it is in; nobody
        # waits for that.
        thread = threading.Thread(
            target=self._driver.abort, args=(communicator,), name="gpunn abort", daemon=True
        )
        thread.start()
        thread.join(ABORT_SECONDS)
        self._under_way.clear()

    def close(self) -> None:
        """Let go of it; all ranks do. What is under way is waited for, but not for long."""
        if self._communicator is None:
            return
        driver = self._driver
        with driver.activate():
            if not self._came_to_its_end():
                self.abort()
                return
            communicator, self._communicator = self._communicator, None
            if not self._kept:
                driver.destroy(communicator)
        self._under_way.clear()

    def _came_to_its_end(self) -> bool:
        """Whether all that was begun is done, within `CLOSE_SECONDS`."""
        begun = time.monotonic()
        try:
            event = self._driver.record(self._stream)
            while not self._driver.done(event):
                if time.monotonic() - begun > CLOSE_SECONDS:
                    return False
                time.sleep(1e-3)
        except RuntimeError:  # a fault of the GPU, which others have told
            return False
        return True


class _Queued(Pending):
    """An operation on the link's stream; what it works on lives until `wait`."""

    def __init__(self, link: NcclLink, event: Any, captured: bool, place: Any, back: Any):
        self._link, self._event, self._captured = link, event, captured
        self._place, self._back = place, back

    def poke(self) -> bool:
        # An event of a capture says nothing until it is replayed.
        if self._event is None or self._captured:
            return self._event is None
        return bool(self._link._driver.done(self._event))

    def wait(self) -> None:
        if self._event is None:
            return
        link, driver = self._link, self._link._driver
        with driver.activate():
            driver.wait(driver.current(), self._event)
            if self._back is not None:
                link._until(self._event)
                flat = driver.download(self._place).view(self._back.dtype)
                self._back[...] = flat.reshape(self._back.shape, order=_order(self._back))
        self._event = self._place = self._back = None
        link._under_way.discard(self)


class _Barrier(Pending):
    """All ranks are there when its event has come; the host waits for that."""

    def __init__(self, link: NcclLink, event: Any):
        self._link, self._event = link, event

    def poke(self) -> bool:
        return bool(self._link._driver.done(self._event))

    def wait(self) -> None:
        self._link._until(self._event)


def _order(array: Any) -> str:
    return "C" if array.flags.c_contiguous else "F"


def _described(array: Any) -> str:
    return f"an array of shape {tuple(array.shape)} {np.dtype(array.dtype).name}"
