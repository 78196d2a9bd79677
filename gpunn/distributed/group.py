"""`Group`: the ranks of a job, and what they do together."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.device import Device, device_of, emulated_step
from gpunn.device.emulated import plain
from gpunn.distributed.environment import Launch
from gpunn.distributed.link import Done, Link, Pending
from gpunn.distributed.watch import Watch
from gpunn.errors import GpunnError


class RemoteError(GpunnError, RuntimeError):
    """What rank 0 has raised, on another rank. Its text is that of the error, `kind` its type."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class Group:
    """The processes of a job, each with a rank; made by `gpunn.distributed.init`.

    Every method that all ranks take part in says so; all of them must call it, in the same order.

    Attributes
    ----------
    rank, size : the number of this process, from 0, and how many there are
    local_rank, local_size : the same among those on this host
    main : whether this is rank 0, which writes and speaks
    sums_numbers : whether `all_reduce` takes NumPy arrays; not where NCCL alone connects the ranks
    """

    def __init__(self, launch: Launch, host: Link, devices: Link | None = None):
        self.rank, self.size = launch.rank, launch.size
        self.local_rank, self.local_size = launch.local_rank, launch.local_size
        self.host = socket.gethostname()
        self._host, self._devices = host, devices
        self.sums_numbers = host is not devices
        self.counts = True  # see `counting`
        self.watch = Watch()  # `init` puts in its place what tells a watcher
        self.waits_for: tuple[str, float] | None = None  # what, since when: for who watches
        self.moves, self.moved = 0, time.monotonic()  # how often it waited, and until when

    @property
    def main(self) -> bool:
        return self.rank == 0

    def __repr__(self) -> str:
        engines = [link.name for link in (self._host, self._devices) if link is not None]
        return f"<rank {self.rank} of {self.size}, {' and '.join(dict.fromkeys(engines))}>"

    def join_gpus(self, devices: Link | None) -> None:
        """Take the link between GPUs, made after that between hosts; None for none."""
        self._devices = devices

    @property
    def on_gpus(self) -> bool:
        """Whether `init` has linked GPUs: what waits for others then is their queues."""
        return self._devices is not None

    def gpu(self) -> Device:
        """The GPU of this rank. RuntimeError if `init` found none."""
        device = getattr(self._devices, "device", None)
        if device is None:
            raise RuntimeError(
                f"{self!r} has no GPU: its processes were started for the CPU (GPUNN_DEVICE?), or "
                "the first GPU was made usable after gpunn.distributed.init"
            )
        return device

    # ---- arrays: all ranks take part -------------------------------------------------------------

    def all_reduce(self, array: Any) -> None:
        """Add up `array`, contiguous, over all ranks, in place."""
        self.begin_reduce(array).wait()

    def begin_reduce(self, array: Any, root: int | None = None) -> Pending:
        """Begin that; until ``wait`` the array must not be touched. `root`: only there."""
        if device_of(array).type == "emulator":
            self._on_emulator(lambda flat: self._host.begin(flat, root).wait(), array)
            return Done()
        return _Watched(self, self._link(array).begin(array, root))

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Make `array`, contiguous, everywhere what it is on rank `root`."""
        array = array.reshape(-1)
        if device_of(array).type == "emulator":
            self._on_emulator(lambda flat: self._host.broadcast(flat, root), array)
            return
        with self.waiting("a broadcast"):
            self._link(array).broadcast(array, root)

    def all_gather(self, flat: Any, bounds: list[tuple[int, int]]) -> None:
        """Give all ranks the parts ``flat[start:stop]`` of each; ``bounds[r]`` is rank r's."""
        if device_of(flat).type == "emulator":
            self._on_emulator(lambda whole: self._host.all_gather(whole, bounds), flat)
            return
        with self.waiting("an all-gather"):
            self._link(flat).all_gather(flat, bounds)

    def _link(self, array: Any) -> Link:
        if isinstance(array, np.ndarray):
            return self._host
        if self._devices is None:
            raise RuntimeError(
                f"{self!r} has no link between GPUs for an array on {device_of(array)}; call "
                "gpunn.distributed.init before the first GPU is used"
            )
        return self._devices

    def _on_emulator(self, function: Callable[[np.ndarray], None], array: Any) -> None:
        """Do it, and let a graph that captures note it, as it would note a call of NCCL."""

        def watched(flat: np.ndarray) -> None:
            with self.waiting("a collective"):  # in a replay, too
                function(flat)

        emulated_step.run(watched, (plain(array),), writes=True)

    @contextlib.contextmanager
    def counting(self, rows: tuple[int, int] | None) -> Iterator[None]:
        """Around the forward pass of a batch of which this rank has ``rows[0]`` rows of its own.

        With 0 it has another's row in their place (`gpunn.data`): its layers then take part in what
        those of all ranks do together, and what they are given does not count: it enters neither
        the statistics of a synchronised batch norm nor their gradients. None: all counts.
        """
        before, self.counts = self.counts, rows is None or rows[0] > 0
        try:
            yield
        finally:
            self.counts = before

    # ---- values of the host: all ranks take part, and wait ---------------------------------------

    def exchange(self, value: Any) -> list[Any]:
        """What each rank gave, by rank: numbers, texts, None, and lists and dictionaries of them.

        They travel as JSON; NaN and infinity, too, come as they were.
        """
        with self.waiting("an exchange"):
            return [json.loads(data) for data in self._host.exchange(json.dumps(value).encode())]

    def exchange_bytes(self, data: bytes) -> list[bytes]:
        """What each rank gave, by rank."""
        with self.waiting("an exchange"):
            return self._host.exchange(data)

    def share(self, value: Any) -> Any:
        """What rank 0 gave, of the kinds that `exchange` takes; the others' is left out."""
        return self.exchange(value if self.main else None)[0]

    def on_main(self, function: Callable[[], Any]) -> Any:
        """What `function` gives on rank 0, which alone calls it; of the kinds `exchange` takes.

        If it raises, all ranks do: the others a `RemoteError` of the same words.
        """
        value, error = None, None
        if self.main:
            try:
                value = function()
            except Exception as raised:
                error = raised
        value, words = self.share([value, error and [type(error).__name__, _words(error)]])
        if error is not None:
            raise error
        if words is not None:
            raise RemoteError(*words)
        return value

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        with self.waiting("a barrier"):
            self._host.begin_barrier().wait()

    # ---- who watches -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Within, this rank waits for the others, and is not the one that they wait for."""
        self.moves += 1
        self.waits_for = what, time.monotonic()
        try:
            yield
        finally:
            self.waits_for, self.moved = None, time.monotonic()

    def check(self) -> None:
        """Raise RuntimeError if NCCL knows that a rank is gone. Does not wait."""
        for link in (self._devices, self._host):
            if link is not None:
                link.check()

    def close(self) -> None:
        """Leave the job, when all do."""
        with self.waiting("the end of the others"):
            pending = self._host.begin_barrier()
            while not pending.poke():  # MPI's own waits keep a core busy, and rank 0 may need it
                time.sleep(0.002)
        for link in (self._devices, self._host):
            if link is not None:
                link.close()
        self._devices = None


class _Watched(Pending):
    """One whose ``wait`` is known to who watches."""

    def __init__(self, group: Group, pending: Pending):
        self._group, self._pending = group, pending

    def poke(self) -> bool:
        return self._pending.poke()

    def wait(self) -> None:
        with self._group.waiting("a reduction"):
            self._pending.wait()


def _words(error: Exception) -> str:
    """What an error says; of the operating system's errors the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
