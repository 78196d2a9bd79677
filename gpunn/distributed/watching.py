"""`watch`: start the process that watches the job, and connect all ranks to it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import math
import mmap
import os
import secrets
import select
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from gpunn.distributed import watcher
from gpunn.distributed.environment import JoinError
from gpunn.distributed.watch import LiveWatch, Watch, end_at_error

if TYPE_CHECKING:
    from gpunn.distributed.group import Group

TIMEOUT = 600.0  # seconds without any progress, unless GPUNN_DISTRIBUTED_TIMEOUT says otherwise
_CONNECT = 5.0  # seconds for one address
_SIOCGIFADDR = 0x8915  # asks Linux for the address of a network interface


def watch(group: Group) -> Watch:
    """Start the watcher, on rank 0, and connect all ranks to it. All ranks take part.

    Where that cannot be done (no process can be started, or no address of rank 0 can be reached)
    rank 0 says so in a line, and the ranks that are not connected get a `Watch` that does nothing.
    Raises JoinError, on all ranks, if GPUNN_DISTRIBUTED_TIMEOUT is no number of seconds.
    """
    memory, place = _start(group) if group.main else (None, {})
    place = group.share(place)
    if "invalid" in place:
        raise JoinError(place["invalid"])
    problem = place.get("problem", "")
    connected = None if problem else _connect(group, place)
    reached = group.exchange(connected is not None)
    if memory is not None:
        os.close(memory)  # all have opened it by now
    if group.main and not all(reached):
        missing = [str(rank) for rank, has in enumerate(reached) if not has]
        problem = problem or f"rank 0 cannot be reached at {', '.join(place['addresses'])}"
        print(f"gpunn: ranks {', '.join(missing)} are not watched: {problem}", file=sys.stderr)
    if connected is not None:
        return LiveWatch(group, *connected)
    sys.excepthook = functools.partial(end_at_error, sys.excepthook)
    return Watch()


def timeout() -> float:
    """Seconds without any progress after which a job is taken to hang; 0: never.

    From GPUNN_DISTRIBUTED_TIMEOUT. ValueError for what is no such number.
    """
    text = os.environ.get("GPUNN_DISTRIBUTED_TIMEOUT", "").strip()
    with contextlib.suppress(ValueError):
        seconds = float(text) if text else TIMEOUT
        if seconds >= 0:  # which NaN is not
            return 0.0 if math.isinf(seconds) else seconds
    raise ValueError(
        f"GPUNN_DISTRIBUTED_TIMEOUT={text!r} is no number of seconds; give for example 600, or 0 "
        "to wait for ever"
    )


def _start(group: Group) -> tuple[int | None, dict[str, Any]]:
    """On rank 0: start it. Gives the descriptor of the shared memory and what the others need."""
    try:
        seconds = timeout()
    except ValueError as error:
        return None, {"invalid": str(error)}
    if not hasattr(select, "epoll"):
        return None, {"problem": f"that needs Linux, and this is {sys.platform}"}
    one_host = group.local_size == group.size
    words = {"token": secrets.token_hex(16), "welcome": secrets.token_hex(16)}
    try:
        listener = _listener(one_host)
        memory = os.memfd_create("gpunn-steps")  # its name is nowhere: nothing stays behind
        os.ftruncate(memory, watcher.WORD + 8 * group.size)
        os.pwrite(memory, words["token"].encode(), 0)
        inherited = {"listen": listener.fileno(), "memory": memory}
        settings = {"size": group.size, "timeout": seconds, **words, **inherited}
        process = subprocess.Popen(
            # Isolated: a file of the working folder must not stand in for the standard library.
            [sys.executable, "-I", "-S", watcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=tuple(inherited.values()),
            start_new_session=True,
            cwd="/",
        )
        assert process.stdin is not None
        with process.stdin as pipe:  # not in its arguments, which all users of the host can see
            pipe.write(json.dumps(settings).encode() + b"\n")
    except OSError as error:
        return None, {"problem": f"no process can be started for it ({error})"}
    # Nobody waits for it: it outlives the ranks, and Python need not say so.
    process.returncode = 0
    place = {"port": listener.getsockname()[1], "addresses": _addresses(one_host), **words}
    place["memory"] = f"/proc/{os.getpid()}/fd/{memory}"
    listener.close()
    return memory, place


def _listener(one_host: bool) -> socket.socket:
    if one_host:
        return socket.create_server(("127.0.0.1", 0), backlog=128)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", 0), backlog=1024)


def _addresses(one_host: bool) -> list[str]:
    """Where rank 0 may be reached; its name may be known to it alone, as 127.0.1.1."""
    found = ["127.0.0.1"]
    if one_host:
        return found
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    found += [socket.gethostname(), socket.getfqdn()]
    return [one for one in dict.fromkeys(found) if one == found[0] or not one.startswith("127.")]


def _connect(group: Group, place: dict[str, Any]) -> tuple[socket.socket, mmap.mmap | None] | None:
    """The connection of this rank, and the memory for its steps if it is on the watcher's host."""
    memory = _memory(group, place)
    hello = {"token": place["token"], "rank": group.rank, "host": group.host, "pid": os.getpid(),
             "memory": memory is not None}  # fmt: skip
    for address in place["addresses"]:
        if address == "127.0.0.1" and memory is None and group.local_size < group.size:
            continue  # that is this host, not rank 0's
        connection = None
        with contextlib.suppress(OSError, ValueError):
            connection = socket.create_connection((address, place["port"]), timeout=_CONNECT)
            connection.sendall(json.dumps(hello).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and (data := connection.recv(256)):
                answer += data
            if json.loads(answer) == {"welcome": place["welcome"]}:
                return connection, memory
        if connection is not None:
            connection.close()
    return None


def _memory(group: Group, place: dict[str, Any]) -> mmap.mmap | None:
    """The steps of all ranks, if this one is on the host of rank 0."""
    size = watcher.WORD + 8 * group.size
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(place["memory"], os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, watcher.WORD, 0) == place["token"].encode():
                return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    return None
