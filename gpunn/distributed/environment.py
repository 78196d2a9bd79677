"""Who started this process, and as which of how many: read from the environment, without MPI."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gpunn.errors import GpunnError


class JoinError(GpunnError, RuntimeError):
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


# What tells rank, size, local rank and local size, by launcher.
_TORCHRUN = ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OPEN_MPI = ("mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
             "OMPI_COMM_WORLD_LOCAL_SIZE")  # fmt: skip
# MPICH and Intel MPI (Hydra); of srun --mpi=pmi2 and other launchers the first two
_PMI = ("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
# Of a step: the script of sbatch and the shell of salloc may have SLURM_PROCID, and are alone.
_SLURM = ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """How this process was started. ValueError for variables that contradict each other.

    Where one launcher has started another, and both have left their variables, it is the inner one.
    """
    known = os.environ if environment is None else environment
    # Nobody starts another within these, and their variables go no further than their processes.
    for sign, variables in (
        ("TORCHELASTIC_RUN_ID", _TORCHRUN),
        ("OMPI_COMM_WORLD_RANK", _OPEN_MPI),
        ("MPI_LOCALRANKID", _PMI),
    ):
        if sign in known and (launch := _read(known, variables)):
            return launch
    # A shell in a step of one task has variables too, and more may be started from it.
    return next((launch for launch in _outer(known) if launch.size > 1), Launch())


def _outer(known: Mapping[str, str]) -> Iterator[Launch]:
    slurm = _read(known, _SLURM)
    if slurm is not None and _by_plugin(known):
        yield replace(slurm, by="mpi")
    elif slurm is None and (other := _read(known, _PMI)):
        yield other
    # Both names are those of others, too; without an address nobody could meet.
    if ("MASTER_ADDR" in known or "NCCL_COMM_ID" in known) and (by_hand := _read(known, _TORCHRUN)):
        yield by_hand
    if slurm is not None:
        yield slurm


def _by_plugin(known: Mapping[str, str]) -> bool:
    """Whether srun used an MPI plugin for this step; a shell around it may have left variables."""
    rank, size = known["SLURM_PROCID"], known["SLURM_STEP_NUM_TASKS"]
    pmi2 = known.get("PMI_RANK") == rank and known.get("PMI_SIZE") == size
    return pmi2 or known.get("PMIX_RANK") == rank


def _read(known: Mapping[str, str], variables: tuple[str, ...]) -> Launch | None:
    """What these variables say; None if rank or size is not there."""
    by, rank, size, local_rank, local_size = variables
    if rank not in known or size not in known:
        return None
    numbers = [_number(known, name) for name in (rank, size)]
    if not 0 <= numbers[0] < numbers[1]:
        raise ValueError(f"{rank}={numbers[0]} and {size}={numbers[1]}: that is no rank of it")
    if local_rank not in known and known.get("SLURM_STEP_NUM_TASKS") == known[size]:
        local_rank, local_size = "SLURM_LOCALID", ""
    local = [_number(known, local_rank)] if local_rank in known else []
    if local and local_size in known:
        local.append(_number(known, local_size))
    elif local and not local_size and "SLURM_STEP_TASKS_PER_NODE" in known:
        local.append(_tasks_here(known))
    return Launch(by, *numbers, *local)


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
