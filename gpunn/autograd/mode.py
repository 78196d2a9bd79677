"""Switching the recording of gradients off and on: `no_grad`, `enable_grad`, `set_grad_enabled`."""

from __future__ import annotations

import functools
import threading


class _State(threading.local):
    enabled = True


state = _State()  # each thread has its own switch, as in PyTorch


def is_grad_enabled() -> bool:
    """Whether operations of this thread are recorded for `backward`."""
    return state.enabled


class set_grad_enabled:
    """Context manager and decorator: record operations inside if `mode`, else not.

    Unlike in PyTorch the switch is thrown on entering, not when the object is made.
    """

    def __init__(self, mode: bool):
        self.mode = bool(mode)
        self._before: list[bool] = []

    def __enter__(self):
        self._before.append(state.enabled)
        state.enabled = self.mode
        return self

    def __exit__(self, *exception):
        state.enabled = self._before.pop()

    def __call__(self, function):
        mode = self.mode

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with set_grad_enabled(mode):
                return function(*args, **kwargs)

        return wrapped


class no_grad(set_grad_enabled):
    """``with no_grad():`` or ``@no_grad()``: nothing inside is recorded for `backward`."""

    _mode = False

    def __new__(cls, function=None):
        switch = super().__new__(cls)
        if function is None:
            return switch
        switch.__init__()  # written as @no_grad, without parentheses
        return switch(function)

    def __init__(self, function=None):
        super().__init__(self._mode)


class enable_grad(no_grad):
    """``with enable_grad():`` records again inside a `no_grad` block."""

    _mode = True
