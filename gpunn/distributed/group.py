"""`Group`: the ranks of a job, and what they do together."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.device import device_of, emulated_step
from gpunn.device.emulated import plain
from gpunn.distributed.environment import Launch
from gpunn.distributed.link import Link, Pending


class Group:
    """The processes of a job, each with a rank; made by `gpunn.distributed.init`.

    Every method that all ranks take part in says so; all of them must call it, in the same order.

    Attributes
    ----------
    rank, size : the number of this process, from 0, and how many there are
    local_rank, local_size : the same among those on this host
    main : whether this is rank 0, which writes and speaks
    """

    def __init__(self, launch: Launch, host: Link, devices: Link | None = None):
        self.rank, self.size = launch.rank, launch.size
        self.local_rank, self.local_size = launch.local_rank, launch.local_size
        self.host = socket.gethostname()
        self._host, self._devices = host, devices
        self.waits_for: tuple[str, float] | None = None  # what, since when: for who watches

    @property
    def main(self) -> bool:
        return self.rank == 0

    def __repr__(self) -> str:
        engines = [link.name for link in (self._host, self._devices) if link is not None]
        return f"<rank {self.rank} of {self.size}, {' and '.join(dict.fromkeys(engines))}>"

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
        with self.waiting("a collective"):
            emulated_step.run(function, (plain(array),), writes=True)

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

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        with self.waiting("a barrier"):
            self._host.begin_barrier().wait()

    # ---- who watches -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Within, this rank waits for the others, and is not the one that they wait for."""
        self.waits_for = what, time.monotonic()
        try:
            yield
        finally:
            self.waits_for = None

    def close(self) -> None:
        """Leave the job, when all do."""
        for link in (self._devices, self._host):
            if link is not None:
                link.close()
        self._devices = None


class Done(Pending):
    """A collective that is complete."""

    def poke(self) -> bool:
        return True

    def wait(self) -> None:
        """It is complete."""


class _Watched(Pending):
    """One whose ``wait`` is known to who watches."""

    def __init__(self, group: Group, pending: Pending):
        self._group, self._pending = group, pending

    def poke(self) -> bool:
        return self._pending.poke()

    def wait(self) -> None:
        with self._group.waiting("a reduction"):
            self._pending.wait()
