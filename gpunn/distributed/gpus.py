"""`own_gpu`: which GPU of its host a process takes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpunn.device import Device, probe
from gpunn.distributed.environment import JoinError, Launch
from gpunn.distributed.link import Link


class CupyGpus:
    """The few functions of CuPy that the choice needs; tests have others."""

    def count(self) -> int:
        """How many GPUs this process sees."""
        return int(probe.import_cupy().cuda.runtime.getDeviceCount())

    def bus(self, index: int) -> str:
        """Which of the host's it is, however they are numbered here; "" for a part of one (MIG)."""
        if " MIG " in probe.gpu_name(index):
            return ""
        return str(probe.import_cupy().cuda.Device(index).pci_bus_id)

    def device(self, index: int) -> Device:
        """The GPU, checked for use, and from now on CuPy's current one in this thread."""
        made = Device(f"cuda:{index}")
        probe.import_cupy().cuda.Device(index).use()
        return made


def own_gpu(
    launch: Launch,
    host: Link | None = None,
    driver: Any = None,
    environment: Mapping[str, str] | None = None,
) -> Device:
    """The GPU of the local rank, or the only one that this process sees. All ranks call it.

    With NCCL_MULTI_RANK_GPU_ENABLE=1, which NCCL knows from 2.30 on, processes may share a GPU.

    Raises JoinError if there are more processes on a host than GPUs; with MPI (`host`) also if
    two have the same one, and on all ranks. Without it, NCCL finds that out when they meet.
    """
    driver = driver or CupyGpus()
    known = os.environ if environment is None else environment
    device, bus = None, ""
    try:
        index, problem = _choice(launch, driver.count(), known)
        if not problem:
            device = driver.device(index)
            bus = "" if _shared(known) else driver.bus(index)
    except (RuntimeError, OSError) as error:  # the driver's, and DeviceError
        device, problem = None, f"rank {launch.rank} cannot use its GPU: {error}"
    if host is not None:
        agree(host, problem)
        places = host.exchange(f"{host_name()} {bus}".encode() if bus else b"")
        agree(host, _twice([text.decode() for text in places]))
    if device is None:
        raise JoinError(problem)
    return device


def _choice(launch: Launch, count: int, known: Mapping[str, str]) -> tuple[int, str]:
    """(which of the visible GPUs, what is wrong)"""
    # Who starts the processes may show each one GPU alone, and says so by this variable.
    if count == 1 and (known.get("CUDA_VISIBLE_DEVICES") or launch.local_size == 1):
        return 0, ""
    if launch.local_size <= count and launch.local_rank < count:
        return launch.local_rank, ""
    if count and _shared(known):
        return launch.local_rank % count, ""
    several = max(launch.local_size, launch.local_rank + 1)
    return 0, (
        f"{several} processes were started on {socket.gethostname()}, where each sees {count} "
        f"GPU{'s' * (count != 1)}: start at most {count} there (mpirun -ppn {count}, torchrun "
        f"--nproc-per-node {count}, srun --ntasks-per-node {count}), or show each process a GPU of "
        "its own (srun --gpus-per-task=1, or CUDA_VISIBLE_DEVICES)"
    )


def _shared(known: Mapping[str, str]) -> bool:
    return known.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"


def _twice(taken: list[str]) -> str:
    """What is wrong if two ranks have one GPU."""
    owner: dict[str, int] = {}
    for rank, place in enumerate(taken):
        first = owner.setdefault(place, rank)
        if place and first != rank:
            host, bus = place.split(" ")[0], place.split(" ")[-1]
            return (
                f"ranks {first} and {rank} both have the GPU {bus} of {host}: show each process a "
                "GPU of its own, or show all of them all GPUs, of which each then takes that of "
                "its local rank (CUDA_VISIBLE_DEVICES)"
            )
    return ""


def agree(host: Link, problem: str) -> None:
    """Raise JoinError on all ranks if one has a problem, so that none waits for it."""
    problems = [json.loads(text) for text in host.exchange(json.dumps(problem).encode())]
    for text in problems:
        if text:
            raise JoinError(text)


def host_name() -> str:
    """A name of this host that no other has, even where all are called localhost."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot}"
