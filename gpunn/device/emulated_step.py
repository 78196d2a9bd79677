"""The emulator's part in compiled steps: memory that is planned, and a graph of what was done.

While a `StepMemory` is set for the thread, arrays on the emulator lie in its blocks, as CuPy's do
on a GPU. While an `EmulatorGraph` captures, every launch and every piece of NumPy arithmetic on
such arrays is noted, with the arrays it reads and writes; `replay` does them again on the same
memory, without the Python between them. So what a captured CUDA graph would have frozen (an
address, a number given by value) is frozen here as well, and a test sees it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.device import tracing
from gpunn.device.emulated_memory import taken


class _State(threading.local):
    memory: Any = None  # a StepMemory
    graph: EmulatorGraph | None = None
    special = False  # whether there is either: what the usual path asks


state = _State()


class EmulatorGraph:
    """What a captured step does on the emulator, as a list of calls."""

    runs_while_capturing = True

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.launches = 0  # how many of them are kernels

    def make_room(self) -> None:
        """Nothing: the host has one memory."""

    def capture(self, run: Callable[[], Any]) -> Any:
        """Run, and note everything done to arrays on the emulator. What was there is forgotten.

        StepError for what a capture on a GPU could not hold: a value read by the host, an array of
        the host brought over, a wait.
        """
        self.calls.clear()
        self.launches = 0
        with _set(graph=self), tracing.capturing():
            return run()

    def replay(self) -> None:
        """Do it all again."""
        with np.errstate(all="ignore"):  # as a GPU, which says nothing of 1 / 0
            for call in self.calls:
                call()

    @staticmethod
    def copy(target: np.ndarray, source: np.ndarray) -> None:
        """Copy an argument of the step into its place."""
        target[...] = source


@contextlib.contextmanager
def _set(**values: Any) -> Iterator[None]:
    before = {name: getattr(state, name) for name in values}
    state.__dict__.update(values)
    state.special = state.memory is not None or state.graph is not None
    try:
        yield
    finally:
        state.__dict__.update(before)
        state.special = state.memory is not None or state.graph is not None


def using_memory(memory: Any):
    """A context in which new arrays on the emulator lie in blocks of a `StepMemory`."""
    return _set(memory=memory)


def host_memory(size: int) -> tuple[int, Any]:
    """For `StepMemory`: (address, owner) of bytes in the memory of the emulator, all 0xFF."""
    owner = taken(max(size, 1), np.uint8)
    return owner.ctypes.data, owner


def new(shape: tuple[int, ...], dtype: Any, order: tuple[int, ...] | None = None) -> np.ndarray:
    """A plain array in a block of the step's memory, or of the emulator's where there is no step.

    order : of the axes in memory
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if state.memory is None or size == 0:
        if order is None:
            return taken(shape, dtype)
        flat = taken(size, np.uint8)
    else:
        flat = np.asarray(state.memory.take(size))
    flat = flat.view(dtype) if size else np.empty(0, dtype)
    if order is None:
        return flat.reshape(shape)
    return flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def launch(kernel: Callable, arguments: tuple, run: Callable[[Callable, tuple], None]) -> None:
    """Run a kernel by ``run(kernel, arguments)`` and note that."""
    run(kernel, arguments)
    if state.graph is not None:
        lasting = tuple(map(_lasting, arguments))
        state.graph.calls.append(lambda: run(kernel, lasting))
        state.graph.launches += 1


def run(function: Callable, args: tuple, kwargs: dict | None = None, writes: bool = False) -> Any:
    """Compute with plain arrays, and note it; the result in the step's memory, as plain arrays.

    `writes` says that the call changes an array that is there and that its result is of no use. A
    result that is a view of one of the arguments stays what it is.
    """
    kwargs = kwargs or {}
    result = function(*args, **kwargs)
    sources = list(_arrays([args, kwargs]))
    buffers: list[np.ndarray | None] = []
    if not writes and result is not None:
        result = _each(result, lambda value: _moved(value, sources, buffers))
        if all(buffer is None for buffer in buffers):
            return result
    if state.graph is not None:
        args, kwargs, buffers = _lasting(args), _lasting(kwargs), _lasting(buffers)

        def again() -> None:
            made = function(*args, **kwargs)
            if buffers:
                _refill(buffers, made)

        state.graph.calls.append(again)
    return result


def _lasting(value: Any) -> Any:
    """The same memory, without keeping its block: what is noted must not make blocks live longer.

    The arena itself is kept by the views made of it.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.fields is not None:
            return value.copy()  # a structure, which a kernel gets by value
        found = None if state.memory is None else state.memory.arena_view(value)
        return value if found is None else found
    if isinstance(value, (tuple, list)):
        return type(value)(map(_lasting, value)) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {name: _lasting(part) for name, part in value.items()}
    if hasattr(value, "as_argument") and hasattr(value, "with_array"):  # a tensor map
        return value.with_array(_lasting(value.array))
    return value


def _moved(value: Any, sources: list, moved: list) -> Any:
    """One array of a result, in memory of the step, unless it is a view; None in `moved` then."""
    value = np.asarray(value)
    if value.base is not None and any(np.may_share_memory(value, source) for source in sources):
        moved.append(None)
        return value
    buffer = copied(value)
    moved.append(buffer)
    return buffer


def copied(value: np.ndarray) -> np.ndarray:
    """A copy as `new` makes arrays, its axes in memory in the order of those of `value`."""
    order = None
    if not value.flags.c_contiguous:
        order = tuple(sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis])))
    buffer = new(value.shape, value.dtype, order)
    np.copyto(buffer, value)
    return buffer


def _refill(buffers: list, result: Any) -> None:
    remaining = iter(buffers)

    def fill(value: Any) -> None:
        buffer = next(remaining)
        if buffer is not None:
            np.copyto(buffer, value)

    _each(result, fill)


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every array of a result; tuples and lists keep their kind."""
    if isinstance(value, (np.ndarray, np.generic)):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(part, function) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_each(part, function) for part in value)
    return value


def _arrays(values: Any) -> Iterator[np.ndarray]:
    if isinstance(values, np.ndarray):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _arrays(value)
    elif isinstance(values, dict):
        yield from _arrays(list(values.values()))


def host_read(what: str) -> None:
    """Refuse to read a value of the emulator while a graph captures."""
    if state.graph is not None:
        tracing.host_read(what)


def refuse_uploads(what: str, values: Any) -> None:
    """Refuse to compute with arrays of the host, which a GPU would have to copy first."""
    if state.graph is not None and any(
        type(value) is np.ndarray and value.ndim for value in _arrays(values)
    ):
        tracing.host_write(what)
