"""`init`: make the processes of a job a `Group`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from gpunn.device import Device, probe, set_default_device
from gpunn.device.device import as_device
from gpunn.distributed.environment import JoinError, Launch, launched
from gpunn.distributed.group import Group
from gpunn.distributed.link import AloneLink, Link

if TYPE_CHECKING:
    from gpunn.distributed.mpi import MpiLink
    from gpunn.distributed.watch import Watch

_group: Group | None = None
_inherited: list[Group | None] = []  # of the process that forked this one, for good


def current() -> Group | None:
    """The group that `init` made; None before, and for a process that is alone."""
    return _group


def init() -> Group | None:
    """Join the processes that were started together; None if this one is alone.

    How they were started is read from the environment (`launched`): mpirun of MPICH or Open MPI,
    SLURM's srun, torchrun. Each process takes the GPU of its local rank, if there are GPUs, and
    that becomes the default device; one that sees a single GPU takes that. Called again it returns
    the same group. A process that one of them has forked is alone.

    Raises JoinError if they cannot: mpi4py or NCCL is missing, there are more processes on a
    host than GPUs, or processes that were started without MPI have no GPU.
    """
    global _group
    if _group is not None or _inherited:
        return _group
    launch = launched()
    if launch.size == 1:
        return None
    _group = _over_mpi(launch) if launch.by == "mpi" else _over_nccl(launch)
    _share_cores(_group.local_size)
    os.register_at_fork(after_in_child=_forget)
    atexit.register(_leave)
    return _group


def _over_mpi(launch: Launch) -> Group:
    host = _mpi_link(launch)
    launch = Launch("mpi", host.rank, host.size, *host.local())
    group = Group(launch, host)
    group.watch = _watched(group)  # before the GPUs: an error of one rank there ends all
    group.join_gpus(_device_link(launch, host))
    return group


def _over_nccl(launch: Launch) -> Group:
    devices = _device_link(launch, None)
    if devices is None:
        raise JoinError(
            f"this is process {launch.rank} of {launch.size} by the variables of {launch.by}, and "
            "without a GPU only MPI connects processes: start them by mpirun"
            + (", or by srun --mpi=pmi2" if launch.by == "slurm" else "")
            + "; or let each train by itself, with Trainer(distributed=False)"
        )
    group = Group(launch, devices, devices)
    group.watch = _watched(group)
    return group


def _watched(group: Group) -> Watch:
    from gpunn.distributed.watching import watch  # of POSIX: a process that is alone needs it not

    return watch(group)


def alone(device: str | Device | None = None) -> Group:
    """A group of this process alone, to try with one what several do.

    On a GPU sums go through NCCL, in the buckets and on the streams of a larger job; elsewhere
    nothing is to be done. `device`: None for the default device. Raises JoinError without NCCL.

    >>> alone("cpu")
    <rank 0 of 1, no link>
    """
    where = as_device(device)
    if where.type != "cuda":
        return Group(Launch(), AloneLink())
    from gpunn.distributed.nccl import NcclLink

    return Group(Launch(), AloneLink(), NcclLink(Launch(), where))


def _share_cores(processes: int) -> None:
    """Let NumPy's matrix products of each process on a host use its share of the cores.

    Unless the user has said how many, or the launcher has bound the processes to cores.
    """
    said = any(name in os.environ for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if said or cores < (os.cpu_count() or 1):
        return
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_limits

        threadpool_limits(max(1, cores // processes), user_api="blas")


def _mpi_link(launch: Launch) -> MpiLink:
    try:
        _check_library(launch)
        from gpunn.distributed.mpi import MpiLink

        link = MpiLink()
    except JoinError:
        raise
    except (ImportError, RuntimeError) as error:
        without = "; or, between GPUs, do without MPI: srun --mpi=none"
        raise JoinError(
            f"this is process {launch.rank} of {launch.size} of an MPI job, and mpi4py cannot be "
            f"used ({' '.join(str(error).split())}); install it: pip install 'gpunn[distributed]', "
            "or mpi4py alone where another MPI has started it"
            + (without if "SLURM_STEP_ID" in os.environ else "")
        ) from error
    if link.size != launch.size:
        raise JoinError(
            f"{launch.size} processes were started, and the MPI library that mpi4py found sees "
            f"{link.size}: mpirun (or srun's plugin) is of another MPI. Use the mpirun of the same "
            "environment, or install mpi4py for this one"
        )
    return link


def _check_library(launch: Launch) -> None:
    """Raise JoinError before MPICH's wheel, which knows no PMIx, ends the process there."""
    if "PMIX_RANK" not in os.environ or "PMI_RANK" in os.environ or "mpi4py.MPI" in sys.modules:
        return
    import importlib.metadata

    import mpi4py

    before = mpi4py.rc.initialize, mpi4py.rc.finalize
    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    mpi4py.rc.initialize, mpi4py.rc.finalize = before
    if MPI.get_vendor()[0] == "MPICH" and any(importlib.metadata.distributions(name="mpich")):
        raise JoinError(
            f"Open MPI's mpirun or srun --mpi=pmix has started this process {launch.rank} of "
            f"{launch.size}, and mpi4py finds another MPI, the package mpich: use the mpirun "
            "beside this Python, or srun --mpi=pmi2; or pip uninstall mpich, so that mpi4py finds "
            "Open MPI"
        )
    if not MPI.Is_initialized():
        MPI.Init_thread()


def _device_link(launch: Launch, host: Link | None) -> Link | None:
    """Take the GPU of this rank and join the others by NCCL; None on machines without GPUs."""
    wanted = os.environ.get("GPUNN_DEVICE", "").strip()
    # Not whether the first GPU can be used: to try that takes memory of it, in every process.
    usable = wanted not in ("cpu", "emulator") and probe.gpus_in_sight()
    if host is not None:
        without = [rank for rank, has in enumerate(host.exchange(b"G" * usable)) if not has]
        if 0 < len(without) < host.size:
            raise JoinError(
                f"of {host.size} ranks these have no GPU that can be used, and the others have: "
                f"{', '.join(map(str, without))}. gpunn doctor on their hosts says why; or train "
                "without GPUs, with GPUNN_DEVICE=cpu for all"
            )
    if not usable:
        return None
    from gpunn.distributed.gpus import own_gpu
    from gpunn.distributed.nccl import NcclLink

    device = own_gpu(launch, host)
    set_default_device(device)
    return NcclLink(launch, device, host)


def _forget() -> None:
    """In a forked child: the connections are its parent's, who still uses them."""
    global _group
    if _group is not None:
        _inherited.append(_group)
        _group = None


def _leave() -> None:
    """At the end of the process, which MPI ends for all together."""
    global _group
    if _group is not None:
        _group.watch.close()
        _group.close()
        _group = None
