"""Ctrl-C and SIGTERM, noted while a training is at work and heeded where it can stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from gpunn.distributed.watch import terminated

_SAID = b"\nstops after this step, with a checkpoint; once more: at once, without\n"


class Signals:
    """What came while it listened.

    Parameters
    ----------
    said : written to standard error when the first comes

    Attributes
    ----------
    asked : the number of the signal that came first, or None
    """

    def __init__(self, said: bytes = _SAID) -> None:
        self.asked: int | None = None
        self._said = said

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the first signal is only noted; the second does what it does elsewhere.

        Outside the main thread, to which signals go, nothing is done.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
        if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, terminated):
            before[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
        # None is a handler that another language has set; Python cannot put it back.
        before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}

        def note(number: int, frame: Any) -> None:
            if self.asked is None:
                self.asked = number
                with contextlib.suppress(OSError):
                    os.write(2, self._said)  # print may be what was interrupted
                return
            signal.signal(number, before[number])
            signal.raise_signal(number)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def leave(self) -> None:
        """Raise what the signal stands for: KeyboardInterrupt, or SystemExit of SIGTERM."""
        if self.asked == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.asked is not None:
            raise KeyboardInterrupt
