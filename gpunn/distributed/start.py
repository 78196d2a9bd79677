"""`init`: make the processes of a job a `Group`."""

from __future__ import annotations

import atexit
import os

from gpunn.device import probe, set_default_device
from gpunn.distributed.environment import Launch, launched
from gpunn.distributed.group import Group
from gpunn.distributed.link import Link
from gpunn.errors import GpunnError

_group: Group | None = None


class LaunchError(GpunnError, RuntimeError):
    """The processes of a job cannot find each other."""


def current() -> Group | None:
    """The group that `init` made; None before, and for a process that is alone."""
    return _group


def init() -> Group | None:
    """Join the processes that were started together; None if this one is alone.

    How they were started is read from the environment (`launched`): mpirun of MPICH or Open MPI,
    SLURM's srun, torchrun. Each process takes the GPU of its local rank, if there are GPUs, and
    that becomes the default device; one that sees a single GPU takes that. Called again it returns
    the same group.

    Raises LaunchError if they cannot: mpi4py or NCCL is missing, there are more processes on a
    host than GPUs, or processes that were started without MPI have no GPU.
    """
    global _group
    if _group is not None:
        return _group
    launch = launched()
    if launch.size == 1:
        return None
    host = _mpi_link(launch) if launch.by == "mpi" else None
    if host is not None:
        launch = Launch("mpi", host.rank, host.size, *host.local())
    devices = _device_link(launch, host)
    if host is None and devices is None:
        raise LaunchError(
            f"this is process {launch.rank} of {launch.size} by the variables of {launch.by}, and "
            "without a GPU only MPI connects processes: start them by mpirun"
            + (", or by srun --mpi=pmi2" if launch.by == "slurm" else "")
        )
    _group = Group(launch, host or devices, devices)
    atexit.register(_leave)
    return _group


def _mpi_link(launch: Launch) -> Link:
    try:
        from gpunn.distributed.mpi import MpiLink

        link = MpiLink()
    except ImportError as error:
        raise LaunchError(
            f"this is process {launch.rank} of {launch.size} of an MPI job, and mpi4py cannot be "
            f"used ({error}); install it: pip install 'gpunn[distributed]'"
        ) from error
    if link.size != launch.size:
        raise LaunchError(
            f"{launch.size} processes were started, and the MPI library that mpi4py found sees "
            f"{link.size}: mpirun (or srun's plugin) is of another MPI. Use the mpirun of the same "
            "environment, or install mpi4py for this one"
        )
    return link


def _device_link(launch: Launch, host: Link | None) -> Link | None:
    """Take the GPU of this rank and join the others by NCCL; None on machines without GPUs."""
    if os.environ.get("GPUNN_DEVICE", "").strip() in ("cpu", "emulator") or not probe.cuda_usable():
        return None
    from gpunn.distributed.nccl import NcclLink, own_gpu

    device = own_gpu(launch)
    set_default_device(device)
    return NcclLink(launch, device, host)


def _leave() -> None:
    """At the end of the process, which MPI ends for all together."""
    global _group
    if _group is not None:
        _group.close()
        _group = None
