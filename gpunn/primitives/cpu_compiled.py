"""Compiled helpers for the NumPy implementations, where a pass over memory for each step is slow.

They are plain loops in ``compiled/``, which Numba compiles when a large array first needs one, and
keeps on disk. Without Numba, for small arrays and for 16-bit ones NumPy does the work: that path is
always there, and the tests hold both to the same values. A helper lets go of the interpreter, so
the threads are those of `cpu_threads`. ``GPUNN_CPU_COMPILED=0`` leaves all helpers out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from types import ModuleType

import numpy as np

LARGE = 1 << 17  # elements from which compiling, or reading what was compiled, is worth its time
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

_forced: bool | None = None  # by `forced`: always or never, whatever the size


def loops(family: str, dtype, elements: int) -> ModuleType | None:
    """The functions of ``compiled/<family>.py``, or None where NumPy is to do the work."""
    wanted = elements >= LARGE if _forced is None else _forced
    if not wanted or dtype not in DTYPES or os.environ.get("GPUNN_CPU_COMPILED") == "0":
        return None
    return _load(family)


@contextlib.contextmanager
def forced(compiled: bool):
    """For tests: inside it helpers are taken for arrays of any size, or never."""
    global _forced
    before, _forced = _forced, compiled
    try:
        yield
    finally:
        _forced = before


@functools.cache
def _load(family: str) -> ModuleType | None:
    if not _available():
        return None
    return importlib.import_module(f"gpunn.primitives.compiled.{family}")


@functools.cache
def _available() -> bool:
    """Whether Numba is there and compiles; importing it takes half a second."""
    try:
        import numba
    except ImportError:  # not installed, or not for this NumPy
        return False
    return not numba.config.DISABLE_JIT


def compiled(function):
    """A function that Numba compiles for the types it is first called with.

    What was compiled is kept beside the source, in the user's cache folder or in NUMBA_CACHE_DIR;
    where none of them can be written, for this process alone. No reordering of sums, so that the
    result is that of the loop as it stands; a division by zero is as in NumPy.
    """
    import numba

    compile_ = functools.partial(numba.njit, nogil=True, error_model="numpy")
    try:
        return compile_(cache=True)(function)
    except (RuntimeError, OSError):  # no folder for the cache
        return compile_()(function)
