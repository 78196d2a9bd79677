"""Who started this process, and as which of how many: read from the environment, without MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gpunn.errors import GpunnError


class LaunchError(GpunnError, RuntimeError):
    """The processes of a job cannot find each other."""


@dataclass(frozen=True)
class Launch:
    """How a process was started.

    Attributes
    ----------
    by : "mpi" (mpirun, or srun with an MPI plugin), "torchrun" (its variables, whoever set them),
        "slurm" (srun without an MPI plugin), or "" for a process that is alone
    rank, size : its number in the job, from 0, and how many there are
    local_rank, local_size : the same among those on this host
    """

    by: str = ""
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


# What tells rank, size, local rank and local size, by launcher; the first whose rank is there.
_VARIABLES = (
    # MPICH and Intel MPI (Hydra), and srun --mpi=pmi2
    ("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("mpi", "PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),  # srun --mpi=pmix
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # Of a step: the script of sbatch has SLURM_PROCID too, and is alone.
    ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)  # fmt: skip


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """How this process was started. ValueError for variables that contradict each other."""
    known = os.environ if environment is None else environment
    for by, rank, size, local_rank, local_size in _VARIABLES:
        if rank not in known or size not in known:
            continue
        numbers = [_number(known, name) for name in (rank, size)]
        local = [_number(known, name) for name in (local_rank, local_size) if name in known]
        if not 0 <= numbers[0] < numbers[1]:
            raise ValueError(f"{rank}={numbers[0]} and {size}={numbers[1]}: that is no rank of it")
        if not local_size and "SLURM_STEP_TASKS_PER_NODE" in known:
            local.append(_tasks_here(known))
        return Launch(by, *numbers, *local)
    return Launch()


def _number(known: Mapping[str, str], name: str) -> int:
    try:
        return int(known[name])
    except ValueError:
        raise ValueError(f"{name}={known[name]!r} is no whole number") from None


def _tasks_here(known: Mapping[str, str]) -> int:
    """The tasks on this node, from SLURM's short form: "4(x2),3" is 4, 4 and 3."""
    counts: list[int] = []
    for part in known["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[int(known.get("SLURM_NODEID", 0)) % len(counts)]
