"""A step under trace: what it uses is noted, and what a replay could not repeat is refused.

`gpunn.compile` runs a step a few times with a `Trace` set for the thread. Code on every floor may
ask for it: an optimizer notes what must be done before and after each replay, a Tensor whose value
is read on the host says so. Where no trace is set, all of this is one question.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from gpunn.errors import StepError

_PACKAGE = str(Path(__file__).resolve().parent.parent)


class Trace:
    """One traced run of a step.

    Attributes
    ----------
    name : of the step, for errors
    before, after : what to call before and after each replay, in this order
    """

    def __init__(self, name: str):
        self.name = name
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []
        self._held: list[tuple[Callable[[], list], list]] = []

    def hold(self, function: Callable[[], list]) -> None:
        """Note the objects that `function` gives now, as a condition of every replay."""
        self._held.append((function, function()))

    def holds(self) -> bool:
        """Whether all functions given to `hold` still give the same objects."""
        for function, objects in self._held:
            now = function()
            if len(now) != len(objects):
                return False
            for one, other in zip(now, objects, strict=True):
                if one is not other:
                    return False
        return True

    def refuse(self, what: str, remedy: str) -> None:
        """Raise the StepError that says what the step did, where, and what to do instead."""
        raise StepError(f"compiled step {self.name}: {what}{_where()}; {remedy}")


class _State(threading.local):
    trace: Trace | None = None
    capture: Trace | None = None  # of a capture by the emulator, under a trace or without
    once = False  # inside `made_once`


state = _State()


@contextlib.contextmanager
def made_once() -> Iterator[None]:
    """What is made inside is kept for all later steps, such as a table or the state of a scaler.

    So it may come from the host, although a step that was traced does not make it again. Inside a
    capture it may not: the GPU cannot.
    """
    before, state.once = state.once, True
    try:
        yield
    finally:
        state.once = before


@contextlib.contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Set the trace of this thread inside a ``with`` block."""
    if state.trace is not None:
        raise StepError(
            f"compiled step {trace.name} is called inside the compiled step {state.trace.name}; "
            "compile only the outer one"
        )
    state.trace = trace
    try:
        yield trace
    finally:
        state.trace = None


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Refuse inside a ``with`` block what CuPy refuses while it captures, also without a trace."""
    before, state.capture = state.capture, Trace("that is captured")
    try:
        yield
    finally:
        state.capture = before


def host_read(what: str) -> None:
    """To be called where a value on the device is read by Python."""
    watcher = state.trace or state.capture
    if watcher is not None:
        watcher.refuse(
            f"{what} reads a value on the host",
            "return the tensor from the step and read it outside",
        )


def host_write(what: str) -> None:
    """To be called where an array of the host is copied to the device."""
    watcher = state.trace or state.capture
    if watcher is not None:
        watcher.refuse(
            f"{what} copies values of the host to the device",
            "make the tensor before the step, or pass it in as an argument",
        )


def waits(what: str, remedy: str) -> None:
    """To be called where a GPU could not do `what` while it is captured."""
    watcher = state.trace or state.capture
    if watcher is not None:
        watcher.refuse(f"{what} would have to wait for the GPU", remedy)


def shape_from_values(what: str) -> None:
    """To be called where the shape of a result depends on values."""
    watcher = state.trace or state.capture
    if watcher is not None:
        watcher.refuse(
            f"the shape of the result of {what} depends on values",
            "use a shape that is known beforehand, for example where(mask, x, 0)",
        )


def _where() -> str:
    """The place in the user's code, as " (file.py, line n)"."""
    frame = sys._getframe(2)
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return _place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def place_of(error: BaseException) -> str:
    """The place in the user's code where an error came from, as " (file.py, line n)", or ""."""
    found, step = "", error.__traceback__
    while step is not None:
        if _is_users(step.tb_frame.f_code.co_filename):
            found = _place(step.tb_frame.f_code.co_filename, step.tb_lineno)
        step = step.tb_next
    return found


def _is_users(file: str) -> bool:
    if file.startswith((_PACKAGE, "<", "cupy")):
        return False
    return not any(part in file for part in ("/cupy/", "/numpy/", "contextlib.py"))


def _place(file: str, line: int) -> str:
    return f" ({Path(file).name}, line {line})"
