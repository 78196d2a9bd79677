"""What the emulator finds: one exception for each kind of fault, and `Finding` with the details."""

from __future__ import annotations

from dataclasses import dataclass

from gpunn.errors import GpunnError


@dataclass(frozen=True)
class Place:
    """A line of a source, and the thread that was there (None where that is not known)."""

    file: str
    line: int
    text: str  # the line itself
    callers: tuple[str, ...] = ()  # "file:line" of the functions around it, innermost first
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    who: str = ""  # if it was no thread

    def __str__(self) -> str:
        where = f"{self.file.rsplit('/', 1)[-1]}:{self.line}" if self.line else "an unknown place"
        if self.block is not None and self.thread is not None:
            where += f", block {self.block}, thread {self.thread}"
        elif self.who:
            where += f", {self.who}"
        return where


@dataclass(frozen=True)
class Finding:
    """One fault of a kernel.

    Attributes
    ----------
    error : the class of the exception that stands for this kind of fault
    kernel : the kernel's name expression
    file, line : the source line to look at
    block, thread : who did it
    message : what happened
    argument : number of the array argument concerned, or None
    index : the element concerned (a tuple for arrays of several dimensions), or None
    memory : the memory concerned, in words
    place, other : this access and, of a race, the other one
    """

    error: type[EmulatorError]
    kernel: str
    message: str
    place: Place
    other: Place | None = None
    memory: str = ""
    argument: int | None = None
    index: int | tuple[int, ...] | None = None

    @property
    def file(self) -> str:
        """The file of the line to look at."""
        return self.place.file

    @property
    def line(self) -> int:
        """The line to look at, from 1."""
        return self.place.line

    @property
    def block(self):
        """blockIdx of the thread."""
        return self.place.block

    @property
    def thread(self):
        """threadIdx of the thread."""
        return self.place.thread

    def __str__(self) -> str:
        lines = [f"{self.kernel} at {self.place}: {self.message}"]
        if self.memory:
            lines.append(f"  memory: {self.memory}")
        lines += _quoted(self.place)
        if self.other is not None:
            lines.append(f"  the other access: {self.other}")
            lines += _quoted(self.other)
        return "\n".join(lines)


def _quoted(place: Place) -> list[str]:
    lines = [f"  {place.line:5} | {place.text}"] if place.text else []
    return lines + [f"        called from {caller}" for caller in place.callers]


class EmulatorError(GpunnError, RuntimeError):
    """A kernel did something that it must not do. `findings` holds every fault of the launch."""

    def __init__(self, findings: list[Finding] | str):
        self.findings: list[Finding] = findings if isinstance(findings, list) else []
        text = findings if isinstance(findings, str) else "\n".join(map(str, findings))
        super().__init__(text)


class RaceError(EmulatorError):
    """Two threads use the same memory, one writes, and nothing orders the two accesses."""


class OutOfBoundsError(EmulatorError):
    """An access outside of an argument, of shared memory, or of an array of known size."""


class MisalignedAccessError(EmulatorError):
    """An access at an address that is not a multiple of its size."""


class UninitializedReadError(EmulatorError):
    """Shared memory is read that nothing has written."""


class MissingWaitError(EmulatorError):
    """An asynchronous copy or wgmma was not waited for."""


class MissingFenceError(EmulatorError):
    """An ordinary access and the asynchronous proxy meet without the fence between them."""


class DeadlockError(EmulatorError):
    """No thread can go on, or the launch took longer than its time limit."""


class DivergenceError(EmulatorError):
    """Threads that should meet at one operation are at different ones."""


class BarrierError(EmulatorError):
    """A barrier is used in a way that it does not allow."""


class ConstWriteError(EmulatorError):
    """A write to an argument that the kernel declares const."""


class StackOverflowError(EmulatorError):
    """A thread's local memory is full."""


class TrapError(EmulatorError):
    """An assertion, __trap(), a division by zero, a shift by too many bits."""


class LifetimeError(EmulatorError):
    """The shared memory of a block of the cluster is used after the block's end, or a tensor map
    after its array has gone."""


# In the order of enum Fault in host/runtime/state.h.
FAULTS: tuple[type[EmulatorError], ...] = (
    RaceError, OutOfBoundsError, MisalignedAccessError, UninitializedReadError, MissingWaitError,
    MissingFenceError, DeadlockError, DivergenceError, BarrierError, ConstWriteError,
    StackOverflowError, TrapError, LifetimeError, DivergenceError,
)  # fmt: skip
IF_LINES_DIFFER = 13
