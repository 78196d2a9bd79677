"""NCCL without GPUs: what `NcclLink` calls, by threads of one process as ranks, on NumPy arrays."""

import contextlib
import ctypes
import os
import threading

import ml_dtypes
import numpy as np

from gpunn.distributed.link import Link

TYPES = {
    0: np.int8, 1: np.uint8, 2: np.int32, 3: np.uint32, 4: np.int64, 5: np.uint64, 6: np.float16,
    7: np.float32, 8: np.float64, 9: ml_dtypes.bfloat16,
}  # fmt: skip
SECONDS = 20


class OnGpu(np.ndarray):
    """Stands for an array of CuPy."""


def on_gpu(values, dtype=None):
    return np.array(values, dtype).view(OnGpu)


class World:
    """Where the ranks of a job meet."""

    made = {}

    def __init__(self, size):
        self.slots, self.barrier = [None] * size, threading.Barrier(size)

    def meet(self, rank, value):
        """What each rank brought."""
        self.slots[rank] = value
        self.barrier.wait(SECONDS)
        found = list(self.slots)
        self.barrier.wait(SECONDS)
        return found


class Fault(Exception):
    """What NCCL's functions raise."""


class Stream:
    def __init__(self, name, ptr):
        self.name, self.ptr = name, ptr


def at(address, count, kind=1):
    """The elements at an address."""
    dtype = np.dtype(TYPES[kind])
    memory = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


class Communicator:
    def __init__(self, driver, world, rank):
        self.driver, self.world, self.rank = driver, world, rank

    def note(self, name, count, stream):
        if self.driver.fails:
            raise Fault(self.driver.fails)
        self.driver.log.append((name, count, stream))

    def allReduce(self, source, target, count, kind, operation, stream):
        self.reduce(source, target, count, kind, operation, None, stream)

    def reduce(self, source, target, count, kind, operation, root, stream):
        assert source == target and operation == 0
        self.note("reduce" if root is not None else "allReduce", count, stream)
        parts = self.world.meet(self.rank, at(source, count, kind).copy())
        wide = np.float64 if kind > 5 else parts[0].dtype
        total = np.sum([part.astype(wide) for part in parts], axis=0)
        at(target, count, kind)[:] = total if root in (None, self.rank) else 77

    def broadcast(self, source, target, count, kind, root, stream):
        assert source == target
        self.note("broadcast", count, stream)
        at(target, count, kind)[:] = self.world.meet(self.rank, at(source, count, kind).copy())[
            root
        ]

    def allGather(self, source, target, count, kind, stream):
        self.note("allGather", count, stream)
        parts = self.world.meet(self.rank, at(source, count, kind).copy())
        at(target, count * len(parts), kind)[:] = np.concatenate(parts)


class StandIn:
    """The driver of one rank.

    Attributes
    ----------
    log : what was called, in order
    captures : whether the current stream captures
    events : whether they have come
    fails : what NCCL says, if anything is wrong
    """

    error = Fault

    def __init__(self):
        self.log, self.captures, self.events, self.fails = [], False, True, ""
        self.compute, self.ids = Stream("compute", 1), 0
        self.number, self.kept, self.ended = 0, [], []

    # streams and events
    def activate(self):
        return contextlib.nullcontext()

    def stream(self):
        return Stream("nccl", 2)

    def current(self):
        return self.compute

    def capturing(self, stream):
        return self.captures

    def record(self, stream):
        self.number += 1
        self.log.append(("record", stream.name, self.number))
        return self.number

    def wait(self, stream, event):
        self.log.append(("wait", stream.name, event))

    def done(self, event):
        assert not self.captures, "an event of a capture cannot be asked"
        return self.events

    # NCCL
    def unique_id(self):
        if self.fails:
            raise Fault(self.fails)
        self.ids += 1
        address = os.environ.get("NCCL_COMM_ID")
        return address.encode().ljust(128) if address else os.urandom(128)

    def communicator(self, size, identity, rank):
        assert len(identity) == 128
        if self.fails:
            raise Fault(self.fails)
        world = World.made.setdefault(identity, World(size))
        world.meet(rank, None)
        return Communicator(self, world, rank)

    def group(self, calls):
        self.log.append("group")
        calls()
        self.log.append("end of group")

    def check(self, communicator):
        if self.fails:
            raise Fault(self.fails)

    def abort(self, communicator):
        self.ended.append("aborted")

    def destroy(self, communicator):
        self.ended.append("destroyed")

    def keep(self, communicator):
        self.kept.append(communicator)

    # arrays
    def pointer(self, array):
        return array.ctypes.data

    def on_host(self, array):
        return not isinstance(array, OnGpu)

    def here(self, array):
        return getattr(array, "index", 0) == 0

    def upload(self, array):
        return array.copy().view(OnGpu)

    def download(self, array):
        return np.array(array)

    def empty(self, size):
        return np.empty(size, np.uint8).view(OnGpu)


class HostLink(Link):
    """Stands for MPI."""

    name = "MPI"

    def __init__(self, world, rank, size):
        self.world, self.rank, self.size = world, rank, size

    def exchange(self, data):
        return self.world.meet(self.rank, data)


def on_ranks(size, function):
    """What ``function(rank)`` gives, or the exception that it raises, for each rank in a thread."""
    outcomes = [None] * size

    def run(rank):
        try:
            outcomes[rank] = function(rank)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
    return outcomes
