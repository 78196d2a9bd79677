"""From the host to a GPU while it computes: pinned buffers, a stream of copies, events.

    stage    the array is copied into a pinned buffer                     any thread of the host
    start    that buffer is copied to the GPU, on a stream for copies     beside the computation
    take     the computation's stream waits for the copy's event          the GPU waits, not Python

A pinned buffer is filled again only after the event of the copy that reads it. The memory of an
uploaded array is written again only after what was queued when its last user let it go: so copies
never run into kernels that still read, and nobody counts steps.

All calls of CuPy are in `CupyTransfers`; the tests have a driver that only writes down the order.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from typing import Any

import numpy as np

from gpunn.device import probe
from gpunn.device.arrays import as_array, device_of, is_cupy, to_device
from gpunn.device.device import Device, as_device

# Up to here an array is a handful of numbers, such as the hyperparameters of a step: there are many
# buffers for them, so that the host can be as many steps ahead of the GPU.
SMALL, SMALL_BUFFERS = 1 << 14, 64


class CupyTransfers:
    """The few functions of CuPy that transfers need; tests have others.

    Streams and events are whatever `stream`, `current` and `event` give.
    """

    def __init__(self, device: Device):
        self._device, cupy = device, probe.import_cupy()
        self._cupy, self._runtime = cupy, cupy.cuda.runtime
        self._to_device = cupy.cuda.runtime.memcpyHostToDevice

    def activate(self):
        """A context in which this thread uses the GPU."""
        return self._device.activate()

    def stream(self):
        """A new stream that waits for no other, not even for the default one."""
        return self._cupy.cuda.Stream(non_blocking=True)

    def current(self):
        """The stream on which this thread computes."""
        return self._cupy.cuda.get_current_stream(self._device.index)

    def capturing(self, stream) -> bool:
        """Whether what is queued on `stream` goes into a graph."""
        return bool(self._runtime.streamIsCapturing(stream.ptr))

    def record(self, stream):
        """A new event that comes when all that is queued on `stream` is done."""
        event = self._cupy.cuda.Event(block=True, disable_timing=True)
        event.record(stream)
        return event

    def wait(self, stream, event) -> None:
        """What is queued on `stream` from now on runs after `event`."""
        stream.wait_event(event)

    def synchronize(self, event) -> None:
        """The host waits for `event`; other threads of Python go on."""
        event.synchronize()

    def done(self, event) -> bool:
        """Whether `event` has come."""
        return event.done

    def pinned(self, size: int) -> np.ndarray:
        """Page-locked memory of the host as an array of bytes."""
        return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def memory(self, size: int):
        """Memory of the GPU, in the order of the current stream."""
        return self._cupy.cuda.alloc(size)

    def array(self, memory, shape, dtype, owner):
        """An array on `memory`; it and its views keep `owner`."""
        cuda = self._cupy.cuda
        lent = cuda.UnownedMemory(memory.ptr, memory.mem.size, owner, self._device.index)
        return self._cupy.ndarray(shape, dtype, cuda.MemoryPointer(lent, 0))

    def copy(self, target, source: np.ndarray, stream) -> None:
        """Queue a copy of pinned bytes into the array `target`."""
        self._runtime.memcpyAsync(
            target.data.ptr, source.ctypes.data, source.nbytes, self._to_device, stream.ptr
        )


class Uploader:
    """Brings arrays of the host to a device without making anyone wait who need not.

    On a GPU through pinned buffers and a stream of its own; on the emulator by an ordinary copy; on
    the CPU arrays stay what they are. Arrays that are on the device already pass. The uploaded
    array is used on the stream that is current when it is taken. Staging may be done by any thread,
    the rest by one.

    Parameters
    ----------
    device : where to; None for the default device
    depth : pinned buffers of one size, of arrays beyond 16 KiB: so many copies can be under way
        before the host waits for the oldest

    Examples
    --------
    >>> import numpy as np
    >>> uploader = Uploader("cpu")
    >>> uploader.upload(np.ones(3)).sum()
    np.float64(3.0)
    """

    def __init__(self, device: Device | str | None = None, depth: int = 3, driver: Any = None):
        if depth < 1:
            raise ValueError(f"Uploader: depth must be 1 or more, got {depth}")
        self.device = as_device(device)
        if driver is None and self.device.type == "cuda":
            driver = CupyTransfers(self.device)
        self._link = None if driver is None else _Link(driver, depth)

    @property
    def asynchronous(self) -> bool:
        """Whether copies run beside the computation, so that it pays to begin them early."""
        return self._link is not None

    def upload(self, array: Any, out: Any = None):
        """`array` on the device, ready for what is queued next on the current stream.

        Parameters
        ----------
        array : a NumPy array, or one of the device
        out : an array of the device to copy into, of the same shape and dtype and C-contiguous; the
            copy runs in the order of the current stream, after what still reads `out`

        Returns
        -------
        `out`, or an array whose memory is used for other batches once nobody holds it

        Raises
        ------
        ValueError, TypeError : an `out` that does not fit; RuntimeError : inside a captured step
        """
        if out is None:
            return self.start(array).take()
        array = as_array(array)
        self._check(array, out)
        if type(array) is not np.ndarray:  # on some device
            out[...] = to_device(array, self.device)
        elif self._link is None:
            out[...] = array
        else:
            self._link.copy_into(array, out)
        return out

    def start(self, array: Any) -> Upload:
        """Begin to copy `array`, an array or what `stage` gave; ``.take()`` gives it there.

        The copy runs beside what is being computed; only what is queued after `take` waits for it.
        """
        if not isinstance(array, Staged):
            array = self.stage(array)
        if array.buffer is None:
            return Upload(to_device(array.array, self.device))
        return self._link.start(array)

    def stage(self, array: Any) -> Staged:
        """Copy `array` into a pinned buffer: the part of `start` that another thread can do.

        After it `array` may be changed; on the CPU and the emulator it is only held.
        """
        array = as_array(array)
        if self._link is None or type(array) is not np.ndarray:
            return Staged(array)
        return self._link.stage(array)

    def close(self) -> None:
        """Let go of the buffers, after the copies under way. Arrays that were taken stay good."""
        if self._link is not None:
            self._link.close()

    def _check(self, array, out) -> None:
        if array.dtype != out.dtype:
            raise TypeError(
                f"Uploader.upload: out has dtype {out.dtype} and the array {array.dtype}; convert "
                f"it with array.astype({out.dtype.name!r})"
            )
        if array.shape != out.shape:
            raise ValueError(
                f"Uploader.upload: out has shape {tuple(out.shape)} and the array "
                f"{tuple(array.shape)}; they must agree"
            )
        if not out.flags.c_contiguous:
            raise ValueError("Uploader.upload: out has gaps; give a C-contiguous array")
        known = isinstance(out, np.ndarray) or is_cupy(out)
        if known and device_of(out) != self.device:
            raise ValueError(
                f"Uploader.upload: out is on {device_of(out)}, and this uploader brings arrays to "
                f"{self.device}"
            )


class Staged:
    """An array of the host that waits for `Uploader.start`; made by `Uploader.stage`."""

    __slots__ = ("array", "buffer", "_idle")

    def __init__(self, array, buffer: _Pinned | None = None, idle: collections.deque | None = None):
        self.array, self.buffer, self._idle = array, buffer, idle

    def sent(self, event) -> None:
        """The buffer is free again after `event`."""
        buffer, self.buffer = self.buffer, None
        buffer.event = event
        self._idle.append(buffer)

    def __del__(self):
        if self.buffer is not None:  # of a batch that nobody asked for
            self.sent(None)


class Upload:
    """A copy under way; made by `Uploader.start`."""

    __slots__ = ("_array", "_event", "_driver")

    def __init__(self, array, event=None, driver=None):
        self._array, self._event, self._driver = array, event, driver

    def take(self):
        """The array, for use on the current stream, which waits for the copy."""
        if self._event is not None:
            self._driver.wait(self._driver.current(), self._event)
            self._event = None
        return self._array


class _Pinned:
    """A pinned buffer, and the event after which it may be filled again."""

    __slots__ = ("bytes", "event")

    def __init__(self, memory: np.ndarray):
        self.bytes, self.event = memory, None


class _Lease:
    """The memory of one uploaded array; held by the array and its views, last seen in `returned`.

    What is to be done with it waits there for the next upload: a destructor may run in any thread
    at any time.
    """

    __slots__ = ("size", "memory", "copied", "_returned")

    def __init__(self, size: int, memory, returned: collections.deque):
        self.size, self.memory, self._returned = size, memory, returned
        self.copied = None  # the event of the copy into it

    def __del__(self):
        self._returned.append((self.size, self.memory, self.copied))


def _rounded(size: int) -> int:
    """A size of buffers: at most an eighth more, so that similar sizes share them."""
    step = max(512, 1 << max(0, size.bit_length() - 4))
    return max(1, -(-size // step)) * step


class _Link:
    """The way to one GPU: the copy stream, the pinned buffers, the memory of uploaded arrays."""

    def __init__(self, driver, depth: int):
        self.driver, self.depth = driver, depth
        self.lock = threading.Lock()
        with driver.activate():
            self.stream = driver.stream()
        self._forget()

    def _forget(self) -> None:
        # By size, the oldest first: pinned buffers, memory of the GPU; and how many there are.
        self.idle: dict = collections.defaultdict(collections.deque)
        self.free: dict = collections.defaultdict(collections.deque)
        self.pinned: dict = collections.Counter()
        self.made: dict = collections.Counter()
        self.returned: collections.deque = collections.deque()

    # ---- the host's side -------------------------------------------------------------------------

    def stage(self, array: np.ndarray) -> Staged:
        buffer, idle = self._buffer(_rounded(array.nbytes))
        place = buffer.bytes[: array.nbytes].view(array.dtype).reshape(array.shape)
        staged = Staged(place, buffer, idle)
        np.copyto(place, array)
        return staged

    def _buffer(self, size: int) -> tuple[_Pinned, collections.deque]:
        """A pinned buffer that no copy reads any more; a new one while there are few of them.

        With the queue that it belongs into when it is sent. New ones are made too while all of them
        are staged: to wait for those might be to wait for the very thread that asks.
        """
        most = SMALL_BUFFERS if size <= SMALL else self.depth
        with self.lock:
            idle, buffer = self.idle[size], None
            if idle and (self.pinned[size] >= most or self._is_free(idle[0])):
                buffer = idle.popleft()
            else:
                self.pinned[size] += 1
        with self.driver.activate():
            if buffer is None:
                return _Pinned(self.driver.pinned(size)), idle
            if buffer.event is not None:
                self.driver.synchronize(buffer.event)
                buffer.event = None
        return buffer, idle

    def _is_free(self, buffer: _Pinned) -> bool:
        return buffer.event is None or self.driver.done(buffer.event)

    # ---- the GPU's side --------------------------------------------------------------------------

    def start(self, staged: Staged) -> Upload:
        driver, source = self.driver, staged.array
        with driver.activate():
            compute = self._computing()
            size = _rounded(source.nbytes)
            lease = _Lease(size, self._memory(size, compute), self.returned)
            array = driver.array(lease.memory, source.shape, source.dtype, lease)
            event = lease.copied = self._copy(array, staged, self.stream)
        return Upload(array, event, driver)

    def copy_into(self, array: np.ndarray, out) -> None:
        """On the computing stream: a copy that waits for it, and for which it waits, overlaps no
        more on a stream of its own, and needs two events more."""
        with self.driver.activate():
            compute = self._computing()
            self._copy(out, self.stage(array), compute)

    def _copy(self, target, staged: Staged, stream):
        if staged.array.size:
            source = staged.buffer.bytes[: staged.array.nbytes]
            self.driver.copy(target, source, stream)
        event = self.driver.record(stream)
        staged.sent(event)
        return event

    def _computing(self):
        stream = self.driver.current()
        if self.driver.capturing(stream):
            raise RuntimeError(
                "Uploader: an upload inside a step that is being captured would be repeated with "
                "old data; upload before the step, into its input"
            )
        return stream

    def _memory(self, size: int, compute):
        """Memory for the copy stream to write; the stream waits for whoever may still read it."""
        driver, free = self.driver, self.free[size]
        self._collect(compute)
        # One more than copies under way, and one that is being computed with.
        if free and (self.made[size] > self.depth + 1 or driver.done(free[0][1])):
            memory, event, _ = free.popleft()
        else:
            # It comes from the computing stream's share of the pool: whoever had it before computed
            # there. And it goes back there, where whoever gets it next will compute.
            memory, event = driver.memory(size), driver.record(compute)
            self.made[size] += 1
        driver.wait(self.stream, event)
        return memory

    def _collect(self, compute) -> None:
        """Take back the memory of arrays that nobody holds any more, and keep a few of each size"""
        if not self.returned:
            return
        event = self.driver.record(compute)  # after all that was queued with these arrays
        for _ in range(len(self.returned)):
            size, memory, copied = self.returned.popleft()
            free = self.free[size]
            if len(free) > self.depth + 1 and self.driver.done(copied):
                self.made[size] -= 1  # back to the pool: someone had held many batches
            else:
                free.append((memory, event, copied))

    def close(self) -> None:
        driver = self.driver
        with driver.activate():
            end = driver.record(self.stream)
            driver.wait(driver.current(), end)  # memory that goes back was written here last
            driver.synchronize(end)
            for buffers in self.idle.values():
                for buffer in buffers:
                    if buffer.event is not None:
                        driver.synchronize(buffer.event)
        self._forget()

    def __del__(self):
        with contextlib.suppress(Exception):  # at the end of the interpreter nothing is sure
            self.close()


@functools.cache
def uploader(device: Device) -> Uploader:
    """The one for small things that any part of the program brings to a device, by ``out=``."""
    return Uploader(device)


def free_memory(device: Device | str) -> int | None:
    """Bytes that new arrays could take on a GPU, CuPy's own reserve included; None elsewhere."""
    device = as_device(device)
    if device.type != "cuda":
        return None
    cupy = probe.import_cupy()
    with device.activate():
        free, _ = cupy.cuda.runtime.memGetInfo()
        return free + cupy.get_default_memory_pool().free_bytes()
