"""`Link`: what carries arrays between ranks; `MpiLink` for the host's, `NcclLink` for GPUs'."""

from __future__ import annotations

from typing import Any


class Pending:
    """A collective that was begun."""

    def poke(self) -> bool:
        """Let it get on, without waiting; whether it is complete."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until it is complete; on a GPU, let the current stream wait."""
        raise NotImplementedError


class Done(Pending):
    """A collective that is complete."""

    def poke(self) -> bool:
        return True

    def wait(self) -> None:
        """It is complete."""


class Link:
    """Collectives on contiguous arrays. All ranks call the same ones in the same order.

    On a GPU they are queued on streams and nothing here waits for the device.

    Attributes
    ----------
    name : of the engine, for messages
    rank, size : of this process, and of the job
    """

    name: str
    rank: int
    size: int

    def begin(self, array: Any, root: int | None = None) -> Pending:
        """Begin to add up `array` over all ranks, in place: everywhere, or on rank `root` alone.

        Until ``wait`` it must not be touched. Without being `root`, what it holds afterwards is
        not defined.
        """
        raise NotImplementedError

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Make `array` everywhere what it is on `root`."""
        raise NotImplementedError

    def all_gather(self, flat: Any, bounds: list[tuple[int, int]]) -> None:
        """Give all ranks the part ``flat[start:stop]`` that rank r has by ``bounds[r]``."""
        raise NotImplementedError

    def exchange(self, data: bytes) -> list[bytes]:
        """What each rank gave, by rank. Waits."""
        raise NotImplementedError

    def begin_barrier(self) -> Pending:
        """Begin to wait for all ranks."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise RuntimeError if the engine knows that a rank is gone. Does not wait."""

    def close(self) -> None:
        """Let go of it; all ranks do."""
        raise NotImplementedError


class AloneLink(Link):
    """The link of a job of one process, in the memory of the host: there is nothing to do."""

    name = "no link"
    rank, size = 0, 1

    def begin(self, array: Any, root: int | None = None) -> Pending:
        return Done()

    def broadcast(self, array: Any, root: int = 0) -> None:
        """It is what it is."""

    def all_gather(self, flat: Any, bounds: list[tuple[int, int]]) -> None:
        """All of it is here."""

    def exchange(self, data: bytes) -> list[bytes]:
        return [data]

    def begin_barrier(self) -> Pending:
        return Done()

    def close(self) -> None:
        """Nothing was opened."""
