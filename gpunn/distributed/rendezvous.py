"""How processes that were started without MPI come to know NCCL's id of their job.

NCCL leaves it to its caller to bring the 128 bytes that rank 0 gets from it to the others. They
come to rank 0 by one TCP connection each, at an address that the launcher's variables tell. (NCCL
has a way of its own, the variable NCCL_COMM_ID, which is used if it is set. It wants a network
interface in the subnet of that address on every host, and its port free, and waits without end.)

    rank r > 0   [job, size, r]\\n                                       JSON, one line each way
    rank 0                          {"id": "<hex>"} or {"error": "…"}\\n
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from gpunn.distributed.environment import JoinError, Launch

SECONDS = 300.0  # until all are there: on a cluster, imports of many processes are slow
ANSWER_SECONDS = 10.0  # for one connection
_NODES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
# Ports that a job of SLURM gets by its number: below those that Linux gives to connections.
_FIRST_PORT, _PORTS = 20_000, 12_000


def meeting_place(launch: Launch, environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """(host, port) where rank 0 can be reached.

    From MASTER_ADDR, and the port after MASTER_PORT, on which torchrun itself listens. Under srun,
    where they are not set: the first host of the step, where SLURM puts task 0 (but for
    ``--distribution=arbitrary``), and a port by the number of the job and the step.
    (SLURM_LAUNCH_NODE_IPADDR is where srun runs, which with salloc is a login node.)

    Raises JoinError for what is missing or no port.
    """
    known = os.environ if environment is None else environment
    host, port = known.get("MASTER_ADDR"), known.get("MASTER_PORT")
    if launch.by == "slurm":
        nodes = next((known[name] for name in _NODES if known.get(name)), "")
        host = host or first_host(nodes)
        if not port and known.get("SLURM_JOB_ID", "").isdecimal():
            step = known.get("SLURM_STEP_ID", "")
            mixed = int(known["SLURM_JOB_ID"]) * 31 + int(step if step.isdecimal() else 0)
            return _named(launch, host), _FIRST_PORT + mixed % _PORTS
    host = _named(launch, host)
    if not port:
        raise JoinError(
            f"this is process {launch.rank} of {launch.size} by the variables of {launch.by}, and "
            "MASTER_PORT is not set: set it, the same for all, to a port of rank 0's host whose "
            "next one is free"
        )
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise JoinError(f"MASTER_PORT={port!r} is no port; give a number from 1 to 65534")
    return host, int(port) + 1 if int(port) < 65535 else int(port) - 1


def _named(launch: Launch, host: str | None) -> str:
    if host:
        return host
    more = ", and neither is SLURM_STEP_NODELIST" if launch.by == "slurm" else ""
    raise JoinError(
        f"this is process {launch.rank} of {launch.size} by the variables of {launch.by}, and "
        f"MASTER_ADDR is not set{more}: set it, the same for all, to the host of rank 0; or start "
        "the processes by mpirun"
    )


def first_host(nodes: str) -> str:
    """The first of SLURM's short form: "rack[2-4]n[01-16,20],login" begins with "rack2n01"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else "")


def _job(known: Mapping[str, str]) -> str:
    """What tells the attempts of jobs apart that meet at one address one after the other."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    return ".".join(known.get(name, "") for name in names)


def hand_over(
    launch: Launch, place: tuple[str, int], identity: bytes, seconds: float = SECONDS
) -> bytes:
    """Give rank 0's `identity` to all ranks, which all call this; theirs is left out.

    Raises JoinError if not all are there after so many `seconds`.
    """
    job, deadline = _job(os.environ), time.monotonic() + seconds
    if launch.rank == 0:
        _give(launch, place, identity, job, deadline)
        return identity
    return _fetch(launch, place, job, deadline, seconds)


def _give(
    launch: Launch, place: tuple[str, int], identity: bytes, job: str, deadline: float
) -> None:
    missing = set(range(1, launch.size))
    begun = time.monotonic()
    with _listening(place, launch.size) as server:
        while missing:
            server.settimeout(max(1e-3, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                few = ", ".join(map(str, sorted(missing)[:8])) + ", …" * (len(missing) > 8)
                raise JoinError(
                    f"rank 0 of {launch.size} waited {time.monotonic() - begun:.0f} s at port "
                    f"{place[1]} and these ranks did not come: {few}. Were they started, and with "
                    f"the same MASTER_ADDR and MASTER_PORT? Can their hosts reach {place[0]}?"
                ) from None
            # Who says nothing of use is no rank of ours, and is let go.
            with contextlib.suppress(OSError, ValueError), connection:
                connection.settimeout(ANSWER_SECONDS)
                hello = json.loads(_line(connection))
                missing -= _answer(connection, hello, [job, launch.size], identity)


def _answer(
    connection: socket.socket, hello: Any, expected: list[Any], identity: bytes
) -> set[int]:
    """Answer one; gives the rank that has the id now."""
    if not isinstance(hello, list) or len(hello) != 3 or not isinstance(hello[2], int):
        raise ValueError("no greeting of ours")
    if hello[:2] != expected:
        theirs, ours = (f"job {job!r} with {size} processes" for job, size in (hello[:2], expected))
        text = f"rank 0 there is of {ours}, and this process of {theirs}"
        connection.sendall(json.dumps({"error": text}).encode() + b"\n")
        return set()
    connection.sendall(json.dumps({"id": identity.hex()}).encode() + b"\n")
    return {hello[2]}


def _listening(place: tuple[str, int], size: int) -> socket.socket:
    """On all interfaces: on its own host, a host's name often stands for 127.0.1.1."""
    port, backlog = place[1], min(size, 4096)
    try:
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
            )
        except (OSError, ValueError):  # IPv6 is switched off
            return socket.create_server(("", port), backlog=backlog)
    except OSError as error:
        raise JoinError(
            f"rank 0 of {size} cannot listen on port {port} for the others ({error}): another "
            "process may use it. Set MASTER_PORT to one whose next is free (torchrun --master-port)"
        ) from error


def _fetch(
    launch: Launch, place: tuple[str, int], job: str, deadline: float, seconds: float
) -> bytes:
    hello, pause, reason = json.dumps([job, launch.size, launch.rank]), 0.02, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(place, timeout=min(ANSWER_SECONDS, left)) as connection:
                connection.sendall(hello.encode() + b"\n")
                answer = json.loads(_line(connection))
                if "id" in answer:
                    return bytes.fromhex(answer["id"])
                reason = answer["error"]
        except OSError as error:  # not there yet, or its name is not known yet
            reason = str(error)
        except (ValueError, TypeError, KeyError):
            reason = "what answers there is no process of gpunn"
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(1.0, pause * 1.5)
    raise JoinError(
        f"rank {launch.rank} of {launch.size} could not get the id of the job from rank 0 at "
        f"{place[0]}:{place[1]} within {seconds:.0f} s ({reason}). Is rank 0 there? Set "
        "MASTER_ADDR to its host and MASTER_PORT to a port whose next one this host may reach"
    )


def _line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.readline(4096)
