"""Threads for the NumPy implementations: pieces of one computation side by side on the CPU.

NumPy and BLAS let go of the interpreter while they compute, so a few Python threads are enough to
use the cores. There are as many as BLAS has been allowed (``OPENBLAS_NUM_THREADS`` and the like),
and while they run, each product stays on the thread that asked for it. What the pieces are must
not depend on the number of threads; then neither does the result.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np

from gpunn.device.cpu_memory import scattered

_lock = threading.Lock()
_inside = threading.local()
_active = 0  # computations that have BLAS set to one thread now
_restore = 1  # what it is to be set to afterwards
_pool = None  # (process, threads, executor)


@functools.cache
def _blas():
    """(get, set) the number of threads of the OpenBLAS that NumPy brings; None with another BLAS"""
    import ctypes

    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    except (AttributeError, OSError):
        return None
    for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_",
                 "openblas_{}_num_threads"):  # fmt: skip
        try:
            get, put = (getattr(library, name.format(verb)) for verb in ("get", "set"))
        except AttributeError:
            continue
        get.argtypes, get.restype = (), ctypes.c_int
        put.argtypes, put.restype = (ctypes.c_int,), None
        return get, put
    return None


def thread_count() -> int:
    """How many threads `for_each` uses; 1 where BLAS cannot be kept to the thread that calls it."""
    if getattr(_inside, "busy", False):
        return 1
    blas = _blas()
    if blas is None:
        return 1
    return _restore if _active else max(1, blas[0]())


def for_each(work: Callable, pieces: Sequence) -> None:
    """Call ``work(piece)`` for every piece, in any order, on several threads.

    A piece is taken by whichever thread is free. The first error is raised once all have stopped.
    """
    threads = min(thread_count(), len(pieces)) if len(pieces) > 1 else 1
    if threads < 2:
        with np.errstate(all="ignore"):
            for piece in pieces:
                work(piece)
        return
    left = iter(pieces)
    failed = threading.Event()

    def run(memory: contextlib.AbstractContextManager) -> None:
        _inside.busy = True
        try:
            with memory, np.errstate(all="ignore"):
                while not failed.is_set():
                    with _lock:
                        piece = next(left, left)
                    if piece is left:
                        return
                    work(piece)
        except BaseException:
            failed.set()
            raise
        finally:
            _inside.busy = False

    _keep_blas_single(True)
    try:
        with scattered() as memory:
            _run_on(threads, run, memory or contextlib.nullcontext)
    finally:
        _keep_blas_single(False)


def _run_on(threads: int, run: Callable, memory: Callable) -> None:
    """Call `run` here and on helpers, each with a context of its own that `memory` makes."""
    helpers = [_executor(threads).submit(run, memory()) for _ in range(threads - 1)]
    try:
        run(contextlib.nullcontext())
    finally:
        errors = [helper.exception() for helper in helpers]
    for error in filter(None, errors):
        raise error


@contextlib.contextmanager
def blas_on_one_thread():
    """Inside it each product stays on the thread that asks for it: for many small ones in a row."""
    if _blas() is None:
        yield
        return
    _keep_blas_single(True)
    try:
        yield
    finally:
        _keep_blas_single(False)


def _executor(threads: int):
    """The pool of this process with at least `threads` - 1 of them; a fork has to begin anew."""
    global _pool
    from concurrent.futures import ThreadPoolExecutor  # not on the path of `import gpunn`

    with _lock:
        if _pool is None or _pool[0] != os.getpid() or _pool[1] < threads:
            if _pool is not None and _pool[0] == os.getpid():
                _pool[2].shutdown(wait=False)
            _pool = os.getpid(), threads, ThreadPoolExecutor(threads - 1, "gpunn")
        return _pool[2]


def _keep_blas_single(begin: bool) -> None:
    """Set BLAS to one thread for the first of the computations under way, and back for the last."""
    global _active, _restore
    get, put = _blas()
    with _lock:
        if begin:
            if _active == 0:
                _restore = get()
                put(1)
            _active += 1
        else:
            _active -= 1
            if _active == 0:
                put(_restore)
