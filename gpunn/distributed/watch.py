"""`Watch`: what a rank tells the process that watches the job (`gpunn.distributed.watcher`)."""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from gpunn.distributed import watcher

if TYPE_CHECKING:
    from gpunn.distributed.group import Group

_TAKEN = 5  # seconds after which a watcher that takes nothing is given up
_VERDICT = 15.0  # seconds that a failed rank waits to be ended
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OWN = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})


_live: LiveWatch | None = None


def fail_if_watched(text: str, error: BaseException, code: int) -> None:
    """If this process is a watched rank, say `text` of the error and end all; else do nothing."""
    if _live is not None and _live.watched:
        _live.fail(text, one_line(error), code)


class Watch:
    """Does nothing: for a process that is alone, or that nobody watches."""

    watched = False

    def step(self, epoch: int, step: int) -> None:
        """The step `step` of the epoch `epoch` is done."""

    def phase(self, text: str) -> None:
        """What is done now besides steps, such as "the validation"; "" when steps go on."""

    def advise(self, text: str) -> None:
        """What to type to go on from the last checkpoint; "" for none."""

    def failed(self, error: BaseException | str, code: int = 1) -> NoReturn:
        """Say the error, its traceback or the sentence, and end all processes. Does not return."""
        text = error if isinstance(error, str) else traced(error)
        _flush(text.rstrip("\n") + "\n")
        os._exit(code)

    def close(self) -> None:
        """This rank has come to its end: wait until all have."""


class LiveWatch(Watch):
    """A rank's connection to the watcher, and the thread that answers it.

    Attributes
    ----------
    watched : whether the watcher is there; if it goes, the training goes on unwatched
    """

    def __init__(self, group: Group, connection: socket.socket, memory: mmap.mmap | None):
        self.watched, self._pid = True, os.getpid()
        self._group, self._connection = group, connection
        self._lock = threading.Lock()
        self._bye = threading.Event()
        self._phase = self._advice = self._note = ""
        self._steps = None
        if memory is not None:
            self._steps = memoryview(memory)[watcher.WORD :].cast("q")
        self._wakes, self._woken = socket.socketpair()
        self._hooks = sys.excepthook, threading.excepthook
        self._connection.settimeout(None)
        self._connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _TAKEN, 0)
        )
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sys.excepthook, threading.excepthook = self._failed, self._thread_failed
        self._listen_to_signals()
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._listen, name="gpunn-watch", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # of a rank whose `init` fails in what follows
        global _live
        _live = self

    # ---- what the training tells -----------------------------------------------------------------

    def step(self, epoch: int, step: int) -> None:
        number = watcher.packed(epoch, step)
        if self._steps is not None:
            self._steps[self._group.rank] = number
        elif self.watched:
            self._send({"step": number})
        if self._phase:
            self.phase("")

    def phase(self, text: str) -> None:
        if text != self._phase:
            self._phase = text
            self._send({"phase": text})

    def advise(self, text: str) -> None:
        if text != self._advice:
            self._advice = text
            self._send({"advice": text})

    def failed(self, error: BaseException | str, code: int = 1) -> NoReturn:
        if isinstance(error, str):
            # Its first line is compared: rank 0 alone may know more, such as how to go on.
            self.fail(error, error.partition("\n")[0], code)
        self.fail(traced(error), one_line(error), code)

    def fail(self, text: str, same: str, code: int) -> NoReturn:
        """`failed` with this text; it is said once if all ranks fail with the same `same`."""
        _flush("")
        self._send({"failed": text, "same": same, "code": code})
        until = time.monotonic() + _VERDICT
        while self.watched and time.monotonic() < until:
            time.sleep(0.01)  # the other thread ends the process
        super().failed(f"gpunn: rank {self._group.rank} ({self._group.host}):\n{text}", code)

    def close(self) -> None:
        if not self.watched:
            return
        self._send({"done": True})
        while self.watched and not self._bye.wait(0.5):
            pass
        self.watched = False
        with contextlib.suppress(OSError):
            self._woken.send(b"\0")
        self._thread.join(1.0)
        self._forget()
        if sys.excepthook == self._failed:
            sys.excepthook = self._hooks[0]
        if threading.excepthook == self._thread_failed:
            threading.excepthook = self._hooks[1]

    # ---- errors and signals ----------------------------------------------------------------------

    def _failed(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if os.getpid() != self._pid:  # a child
            self._hooks[0](kind, error, trace)
        elif not self.watched:
            end_at_error(self._hooks[0], kind, error, trace)
        elif not isinstance(error, KeyboardInterrupt):
            self.failed(error.with_traceback(trace))
        elif self._group.main:  # once is enough
            self._hooks[0](kind, error, trace)

    def _thread_failed(self, arguments: Any) -> None:
        """A process goes on when a thread fails, alone or not; but who it was is told."""
        name = getattr(arguments.thread, "name", "?")
        if self.watched:
            sys.stderr.write(f"gpunn: rank {self._group.rank} ({self._group.host}):\n")
            self._note = f"its thread {name} failed: {one_line(arguments.exc_value)}"
        self._hooks[1](arguments)

    def _listen_to_signals(self) -> None:
        """Learn of Ctrl-C and SIGTERM even where the main thread is within MPI and cannot."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, terminated)
        self._woken.setblocking(False)
        before = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)

    # ---- the connection --------------------------------------------------------------------------

    def _send(self, message: dict[str, Any]) -> None:
        if self.watched:
            try:
                with self._lock:
                    self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self.watched = False

    def _listen(self) -> None:
        """Of the thread: do what the watcher asks, until it is gone."""
        buffer = b""
        poll = select.poll()
        connection, wakes = self._connection.fileno(), self._wakes.fileno()
        for descriptor in (connection, wakes):
            poll.register(descriptor, select.POLLIN)
        while self.watched:
            try:
                ready = [descriptor for descriptor, _ in poll.poll()]
                if wakes in ready:
                    for number in self._wakes.recv(64):
                        if number in _SIGNALS:
                            self._send({"signal": number})
                if connection not in ready:
                    continue
                data = self._connection.recv(4096)
            except (OSError, ValueError):
                data = b""
            if not data:
                self.watched = False
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self._send({"at": self._at()})
        elif "bye" in message:
            self._bye.set()
        elif "end" in message:
            # The main thread may hold the lock of a stream for ever.
            flusher = threading.Thread(target=_flush, args=("",), daemon=True)
            flusher.start()
            flusher.join(0.5)
            os._exit(message["end"])

    def _at(self) -> dict[str, Any]:
        """Where this rank is: for the watcher's message."""
        group, waits = self._group, self._group.waits_for
        since = waits[1] if waits else group.moved
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        return {
            "waits": waits[0] if waits else None,
            "idle": time.monotonic() - since,
            "moves": group.moves,
            "queue": group.on_gpus,
            "line": line_of(frame) if frame else "its end",
            "note": self._note,
        }

    def _forget(self) -> None:
        """Close it, here: after a fork the child has copies, which would hide the parent's end."""
        self.watched = False
        self._steps = None
        with contextlib.suppress(ValueError):  # in another thread than the main one
            if signal.getsignal(signal.SIGTERM) is terminated:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            before = signal.set_wakeup_fd(-1)
            if before not in (-1, self._woken.fileno()):
                signal.set_wakeup_fd(before)
        for connection in (self._connection, self._wakes, self._woken):
            connection.close()


def terminated(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM in a job, where there is none: an end in good order.

    In a child of a rank that got the signal before it forgot the handler: what there is without.
    """
    if _live is not None and _live._pid != os.getpid():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    raise SystemExit(128 + number)


def end_at_error(
    say: Callable[[type[BaseException], BaseException, Any], Any],
    kind: type[BaseException],
    error: BaseException,
    trace: Any,
) -> None:
    """Of a rank that nobody watches: say it and end without MPI, so that its launcher ends all.

    In good order it would wait for the others, which wait for it.
    """
    say(kind, error, trace)
    if not isinstance(error, KeyboardInterrupt):
        _flush("")
        os._exit(1)


def _flush(text: str) -> None:
    """Let go of what was printed, and print `text` to standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def traced(error: BaseException) -> str:
    """The traceback as Python prints it."""
    return "".join(traceback.format_exception(error))


def one_line(error: BaseException | None) -> str:
    """ "ValueError: its text"; of a `RemoteError` the type that rank 0 had."""
    return f"{getattr(error, 'kind', type(error).__name__)}: {error}"


def line_of(frame: FrameType) -> str:
    """ "train.py:37 (in loss)": the innermost line that is neither gpunn's nor a library's."""
    each: FrameType | None = frame
    while each is not None:
        name = each.f_code.co_filename
        if not name.startswith((_OWN, "<", *_LIBRARIES)):
            here = os.getcwd() + os.sep
            return f"{name.removeprefix(here)}:{each.f_lineno} (in {each.f_code.co_name})"
        each = each.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} (in {frame.f_code.co_name})"
