"""One thread for NumPy's matrix products, for runs that repeat bit for bit."""

from __future__ import annotations

import contextlib
from typing import Any


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """A context in which NumPy's matrix products use one thread, where threadpoolctl is installed.

    The products of a job are too small to gain from a second thread, lose much when other programs
    want the cores, and could round differently on a machine with another number of cores.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(1, user_api="blas")
