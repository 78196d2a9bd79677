"""Switching the recording of gradients off and on: `no_grad`, `enable_grad`, `set_grad_enabled`."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class _State(threading.local):
    enabled = True  # operations are recorded for `backward`
    low: Any = None  # the 16-bit dtype of products inside `autocast`, else None
    block: Any = None  # what lasts as long as the outermost `autocast` block
    watch: Any = None  # who is told by `backward` of the gradients that have come


state = _State()  # each thread has its own switch, as in PyTorch


@contextlib.contextmanager
def watching(watch: Any) -> Iterator[None]:
    """Within, `backward` calls ``watch.came(leaf, walk)`` for each gradient of a leaf.

    So for each node that a leaf goes into, when the node's turn is over, whether it gave a gradient
    or not: ``walk.uses[id(leaf)]`` times, if the gradient reaches all of these nodes.
    """
    before, state.watch = state.watch, watch
    try:
        yield
    finally:
        state.watch = before


def is_grad_enabled() -> bool:
    """Whether operations of this thread are recorded for `backward`."""
    return state.enabled


class _Switch:
    """Context manager and decorator: record operations inside if `mode`, else not."""

    def __init__(self, mode: bool):
        self.mode = bool(mode)
        self._before: list[bool] = []

    def __enter__(self) -> Self:
        self._before.append(state.enabled)
        state.enabled = self.mode
        return self

    def __exit__(self, *exception: object) -> None:
        state.enabled = self._before.pop()

    def __call__(self, function: F) -> F:
        mode = self.mode

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with _Switch(mode):
                return function(*args, **kwargs)

        return cast(F, wrapped)


class set_grad_enabled(_Switch):
    """Record operations from now on if `mode`, else not; as a statement, a context or a decorator.

    As a context or a decorator it holds for the block or the function alone.
    """

    def __init__(self, mode: bool):
        super().__init__(mode)
        self._outside = state.enabled  # what the end of the block goes back to
        state.enabled = self.mode

    def __enter__(self) -> Self:
        state.enabled = self._outside
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._outside = state.enabled

    def __call__(self, function: F) -> F:
        state.enabled = self._outside
        return super().__call__(function)


class no_grad(_Switch):
    """``with no_grad():`` or ``@no_grad()``: nothing inside is recorded for `backward`."""

    _mode = False

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        switch = super().__new__(cls)
        if function is None:
            return switch
        _Switch.__init__(switch, cls._mode)  # written as @no_grad, without parentheses
        return switch(function)

    def __init__(self, function: Callable[..., Any] | None = None):
        super().__init__(self._mode)


class enable_grad(no_grad):
    """``with enable_grad():`` records again inside a `no_grad` block."""

    _mode = True
