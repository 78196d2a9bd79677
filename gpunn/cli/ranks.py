"""What the command line says once where mpirun or another launcher started it several times."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpunn.distributed.environment import Launch

# One of them is there if a launcher is (`gpunn.distributed.environment`, whose import takes time).
_TRACES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "RANK", "SLURM_PROCID")
WAIT = 1.0  # seconds that a silent rank lets those speak who do: its end may end them


@contextlib.contextmanager
def results_of_rank_0() -> Iterator[bool]:
    """Within, the other ranks print nothing to standard output; gives whether this is rank 0."""
    launch = _launch()
    if launch is None or launch.rank == 0:
        yield True
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield False


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Within, only rank 0 prints: help, and complaints about arguments that all were given."""
    with results_of_rank_0() as main:
        if main:
            yield
            return
        with contextlib.redirect_stderr(sys.stdout):
            try:
                yield
            except SystemExit as ended:
                if ended.code:
                    time.sleep(WAIT)
                raise


def say_error(text: str, error: BaseException, code: int) -> int:
    """Print an error, and give the exit code.

    In a job whose processes know each other that ends all of them, and does not return. Before they
    do, rank 0 says what every rank must meet, such as a wrong setting; what one host may lack (a
    file, a package) is said by one rank of each host, which names itself.
    """
    launch = _launch()
    if launch is None or launch.size == 1:
        print(text, file=sys.stderr)
        return code
    from gpunn.distributed.environment import JoinError
    from gpunn.distributed.watch import fail_if_watched

    fail_if_watched(text, error, code)
    of_this_host = isinstance(error, (OSError, ImportError, MemoryError, JoinError))
    if launch.rank == 0:
        print(text, file=sys.stderr)
    elif of_this_host and launch.local_rank == 0:
        print(f"rank {launch.rank} ({socket.gethostname()}): {text}", file=sys.stderr)
    if launch.rank > 0:
        time.sleep(WAIT)
    return code


def _launch() -> Launch | None:
    """None if no launcher has left its variables, or if they make no sense, which `init` says."""
    if not any(name in os.environ for name in _TRACES):
        return None
    from gpunn.distributed.environment import launched

    try:
        return launched()
    except ValueError:
        return None
