"""NumPy's floating-point warnings, off where arithmetic travels through NaN and infinity.

A GPU does not warn, and on the CPU the same arithmetic should not either: overflow to infinity and
0 / 0 are results. To switch NumPy's warnings off costs most of a microsecond, and a step of a small
network does so two dozen times. So a compiled step switches them off once (`quietly`), and `quiet`
then has nothing to do.
"""

from __future__ import annotations

import contextlib
import threading

import numpy as np


class _State(threading.local):
    quiet = False  # whether somebody further out has switched the warnings off


_state = _State()
_NOTHING = contextlib.nullcontext()


def quiet() -> contextlib.AbstractContextManager:
    """A context without floating-point warnings of NumPy."""
    return _NOTHING if _state.quiet else np.errstate(all="ignore")


class quietly:
    """A context without warnings in which `quiet` costs nothing; for a whole step."""

    __slots__ = ("_before", "_errors")

    def __enter__(self) -> None:
        self._before, self._errors = _state.quiet, np.errstate(all="ignore")
        self._errors.__enter__()
        _state.quiet = True

    def __exit__(self, *exception) -> None:
        _state.quiet = self._before
        self._errors.__exit__(*exception)
