"""What mpirun starts for test_failures.py: four steps in which one rank, or all, do something else.

mpirun -n 2 python tests/distributed/failing.py WHAT RANK    (RANK -1: on all)
"""

import os
import signal
import sys
import time

import numpy as np

from gpunn import distributed
from gpunn.distributed import mpi, watching


def fail(what):
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "raise":
        raise ValueError("the loss is bad")
    elif what == "sleep":
        time.sleep(60)
    elif what == "exit":
        sys.exit(3)


def main(what, rank):
    if what.startswith("far-"):  # as if every rank had a host of its own
        watching._memory = lambda group, place: None
        mpi.MpiLink.local = lambda self: (0, 1)
    group = distributed.init()
    if group.main:
        group.watch.advise("gpunn train --resume runs/x")
    for step in range(1, 5):
        if step == 4 and rank in (group.rank, -1):
            fail(what.removeprefix("far-"))
        group.all_reduce(np.ones(3))
        group.watch.step(2, step)
    print(f"rank {group.rank} is done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
