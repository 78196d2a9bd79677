"""Training with several processes, one for each GPU: on MPI and NCCL.

``mpirun -n 4 python train.py`` starts four processes; `init` makes them a `Group`, and a `Trainer`
does so by itself. See docs/distributed.md.
"""

from __future__ import annotations

from gpunn.distributed.environment import JoinError, Launch, launched
from gpunn.distributed.gradients import GradientSync
from gpunn.distributed.group import Group, RemoteError
from gpunn.distributed.loss import begin_divisor, global_mean
from gpunn.distributed.start import alone, current, init

__all__ = [
    "GradientSync",
    "Group",
    "JoinError",
    "Launch",
    "RemoteError",
    "alone",
    "begin_divisor",
    "current",
    "global_mean",
    "init",
    "launched",
]
