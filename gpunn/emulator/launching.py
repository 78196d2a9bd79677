"""From a launch's arguments to the runtime, and from its findings back to lines of the source."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.emulator import build as building
from gpunn.emulator import config, toolchain
from gpunn.emulator.reporting import raise_findings, raise_if_freed
from gpunn.emulator.tensor_map import TensorMap

MAX_SHARED = 227 * 1024
MAX_COOPERATIVE = 256
# log2 of the bytes of a cell of shadow memory. A launch that meets a smaller access is run again
# with smaller cells, and the kernel remembers them.
COARSEST = 4
BOOLEAN, INTEGER, UNSIGNED, FLOATING = 1, 2, 3, 4
_mapping = threading.Lock()  # the runtime keeps areas for the next launch, whichever thread's it is
_KINDS = {"b": BOOLEAN, "i": INTEGER, "u": UNSIGNED, "f": FLOATING}


class Options(ctypes.Structure):
    """As struct Options of host/runtime/state.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in
          ("threads", "check", "schedule", "preempt", "cluster", "cooperative")),
        ("seed", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("timeout", ctypes.c_double),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("shared_granule", ctypes.c_int),
        ("guard_count", ctypes.c_int),
        ("guards", ctypes.POINTER(ctypes.c_uint64)),
    ]  # fmt: skip


class ArrayArgument(ctypes.Structure):
    """As struct ArrayArgument of host/runtime/state.h."""

    _fields_ = [
        ("host", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("granule", ctypes.c_int),
        ("read_only", ctypes.c_int),
        ("device", ctypes.c_uint64),
    ]


class _Array:
    """One array among the arguments: its memory, and after mapping its address for the kernel."""

    __slots__ = ("number", "array", "low", "high", "first", "read_only", "area")

    def __init__(self, number: int, array: np.ndarray, read_only: bool):
        self.number, self.array, self.read_only = number, array, read_only
        self.first = array.ctypes.data
        if array.flags.c_contiguous:
            self.low, self.high = self.first, self.first + array.nbytes
        else:
            self.low, self.high = np.lib.array_utils.byte_bounds(array)
        self.area: ArrayArgument | None = None

    @property
    def device(self) -> int:
        """The address of the first element, for the kernel."""
        return self.area.device + self.first - self.area.host

    def holds(self, address: int) -> bool:
        """Whether an address of the kernel's lies in the array's memory."""
        start = self.area.device + self.low - self.area.host
        return start <= address < start + self.high - self.low


def launch(
    kernel: Any,
    made: building.Compiled,
    settings: config.Settings,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int,
    cluster: int | Sequence[int] | None,
) -> None:
    """Run a compiled kernel; see `Kernel.__call__`."""
    name, signature = made.name, made.signature
    grid, block = _three("grid", name, grid), _three("block", name, block)
    size = _cluster_size(name, made, cluster, grid)
    _check_launch(kernel, made, grid, block, shared)
    if len(args) != signature.count:
        raise TypeError(f"{name}: takes {signature.count} arguments, got {len(args)}")
    values, arrays = [], []
    for number, value in enumerate(args):
        values.append(_argument(made, number, value, arrays))
        if settings.check and isinstance(value, TensorMap):
            raise_if_freed(made, number, value)
    areas = _areas(arrays, kernel)
    runtime = toolchain.runtime()
    with _mapping:
        mapped = runtime.emu_map(areas, len(areas))
    if not mapped:
        raise MemoryError(f"{name}: no memory for copies of the arguments")
    try:
        storage = (ctypes.c_void_p * max(1, len(values)))()
        kept = []
        for number, value in enumerate(values):
            data = value() if callable(value) else value
            kept.append(data)
            storage[number] = data.ctypes.data
        options = Options(
            _host_threads(settings),
            settings.check,
            config.SCHEDULES.index(settings.schedule),
            settings.preempt,
            size,
            kernel.module.cooperative,
            settings.seed,
            settings.stack * 1024,
            settings.timeout,
            (ctypes.c_uint32 * 3)(*grid),
            (ctypes.c_uint32 * 3)(*block),
            shared,
            kernel._granules.get("shared", COARSEST),
            len(made.build.guards),
            made.build.guards,
        )
        text = ctypes.create_string_buffer(1 << 15)
        statistics = (ctypes.c_uint64 * 2)()
        count = 0
        if all(grid):
            count = runtime.emu_launch(
                made.entry, storage, made.build.dynamic_offset, ctypes.byref(options), areas,
                len(areas), text, len(text), statistics,
            )  # fmt: skip
        kernel.switches, kernel.accesses = statistics
        kernel._granules["shared"] = options.shared_granule
        for array in arrays:
            kernel._granules[array.number] = array.area.granule
        if count:
            raise_findings(made, arrays, text.value.decode(errors="replace"))
    finally:
        with _mapping:
            runtime.emu_unmap(areas, len(areas))


@functools.cache
def _processors() -> int:
    return len(os.sched_getaffinity(0))


# ---- what a launch asks for ----------------------------------------------------------------------


def _three(what: str, name: str, given: Sequence[int]) -> tuple[int, int, int]:
    numbers = (given,) if isinstance(given, (int, np.integer)) else tuple(given)
    if not 1 <= len(numbers) <= 3 or any(int(n) != n or n < 0 for n in numbers):
        raise ValueError(f"{name}: {what} is {given!r}; expected one to three numbers")
    return (*map(int, numbers), *(1,) * (3 - len(numbers)))


def _cluster_size(name, made, cluster, grid) -> int:
    declared = tuple(made.signature.cluster)
    if cluster is not None:
        given = _three("cluster", name, cluster)
        if declared[0] and declared != given:
            raise ValueError(f"{name}: cluster {given} is not its __cluster_dims__ {declared}")
        declared = given
    if not declared[0]:
        return 1
    if declared[1:] != (1, 1):
        raise ValueError(
            f"{name}: a cluster of {declared}; the emulator takes clusters along x only, (n, 1, 1)"
        )
    if declared[0] > 16 or grid[0] % declared[0]:
        raise ValueError(
            f"{name}: clusters of {declared[0]} blocks (16 at most) must divide grid.x = {grid[0]}"
        )
    return declared[0]


def _check_launch(kernel, made, grid, block, shared) -> None:
    name, threads = made.name, block[0] * block[1] * block[2]
    if not 1 <= threads <= 1024 or block[2] > 64:
        raise ValueError(
            f"{name}: a block of {block} has {threads} threads; a GPU takes 1 to 1024, 64 along z"
        )
    if made.signature.max_threads and threads > made.signature.max_threads:
        raise ValueError(
            f"{name}: a block of {threads} threads, but its __launch_bounds__ allow "
            f"{made.signature.max_threads}: a GPU refuses this launch"
        )
    if grid[0] >= 1 << 31 or grid[1] > 65535 or grid[2] > 65535:
        raise ValueError(f"{name}: a grid of {grid}; a GPU takes (2^31 - 1, 65535, 65535) at most")
    if not 0 <= shared <= MAX_SHARED:
        raise ValueError(f"{name}: {shared} bytes of shared memory; a block has {MAX_SHARED}")
    if shared > kernel.max_dynamic_shared_size_bytes:
        raise ValueError(
            f"{name}: {shared} bytes of dynamic shared memory; a GPU takes more than "
            f"{kernel.max_dynamic_shared_size_bytes} only after kernel."
            f"max_dynamic_shared_size_bytes = {shared}"
        )
    if kernel.module.cooperative and grid[0] * grid[1] * grid[2] > MAX_COOPERATIVE:
        raise ValueError(
            f"{name}: a cooperative launch of {grid[0] * grid[1] * grid[2]} blocks; the emulator "
            f"takes {MAX_COOPERATIVE} at most, since all must exist at once"
        )


# ---- arguments -----------------------------------------------------------------------------------


def _host_threads(settings: config.Settings) -> int:
    """One where lines are counted: gcc takes its counters for loop variables as well (as Linux
    found), so a second thread that counts would change how often a loop runs."""
    if settings.coverage and not settings.check:
        return 1
    return settings.threads or _processors()


def _argument(made: building.Compiled, number: int, value: Any, arrays: list[_Array]):
    """The argument's bytes as an array, or a function that gives them once memory is mapped."""
    parameter = made.signature.parameter[number]
    if isinstance(value, TensorMap):
        if parameter.size != 128:
            raise TypeError(
                f"{made.name}: {made.called(number)} is a TensorMap, but the kernel takes "
                f"{_wanted(parameter)}"
            )
        array = _Array(number, np.asarray(value.array), read_only=False)
        arrays.append(array)
        return lambda: value.pack(array.device)
    if not parameter.pointer:
        return _value(made, number, parameter, value)
    if value is None or (isinstance(value, (int, np.integer)) and value == 0):
        return np.zeros(1, np.uint64)
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{made.name}: {made.called(number)} is {_described(value)}; the kernel takes a "
            "pointer: pass a NumPy array, or None for a null pointer"
        )
    if (
        parameter.target_category == FLOATING
        and value.dtype.itemsize != parameter.target_size
        and value.dtype.kind in "fi"  # unsigned integers may stand for raw bits
    ):
        raise TypeError(
            f"{made.name}: {made.called(number)} is an array of {value.dtype}, but the kernel "
            f"reads floating-point numbers of {parameter.target_size} bytes: convert it, or pass "
            "array.view(dtype) if that is meant"
        )
    if parameter.pointer == 1 and not value.flags.writeable:
        raise ValueError(
            f"{made.name}: {made.called(number)} is a read-only array, but the kernel does not "
            "declare the pointer const: pass a copy, or declare it"
        )
    array = _Array(number, value, read_only=parameter.pointer == 2)
    arrays.append(array)
    return lambda: np.array([array.device], np.uint64)


def _value(made: building.Compiled, number: int, parameter, value: Any) -> np.ndarray:
    if isinstance(value, (bool, np.bool_)) and parameter.category == BOOLEAN:
        return np.array([value], np.bool_)
    if isinstance(value, int) and parameter.category in (INTEGER, UNSIGNED, BOOLEAN):
        kind = "u" if parameter.category != INTEGER else "i"
        try:
            return np.array([value], f"{kind}{parameter.size}")
        except OverflowError:
            raise ValueError(
                f"{made.name}: {made.called(number)} is {value}, which does not fit "
                f"{_wanted(parameter)}"
            ) from None
    if isinstance(value, float) and (parameter.category, parameter.size) == (FLOATING, 8):
        return np.array([value])
    if isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, np.ndarray | np.void):
        kind = _KINDS.get(value.dtype.kind, 0)
        fits = value.nbytes == parameter.size
        if kind and parameter.category and (kind == FLOATING) != (parameter.category == FLOATING):
            fits = False
        if value.dtype.kind == "V" and value.dtype.itemsize == parameter.size:  # bfloat16
            fits = True
        if fits:
            return np.atleast_1d(np.asarray(value)).copy()
    elif isinstance(value, (np.ndarray, np.void)) and value.nbytes == parameter.size:
        return np.atleast_1d(np.ascontiguousarray(value)).copy()
    elif isinstance(value, complex) and parameter.size == 16:
        return np.array([value])
    raise TypeError(
        f"{made.name}: {made.called(number)} is {_described(value)}, but the kernel takes "
        f"{_wanted(parameter)}"
    )


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, np.generic):
        return f"a {value.dtype} ({value.nbytes} bytes)"
    if isinstance(value, float):
        return f"the Python float {value!r} (a double of 8 bytes; write np.float32(…))"
    if isinstance(value, int):
        return f"the Python int {value!r}"
    return f"of type {type(value).__name__}"


def _wanted(parameter) -> str:
    if parameter.pointer:
        return "a pointer"
    kinds = {BOOLEAN: "a bool", INTEGER: "an integer", UNSIGNED: "an unsigned integer",
             FLOATING: "a floating-point number"}  # fmt: skip
    return f"{kinds.get(parameter.category, 'a value')} of {parameter.size} bytes"


def _areas(arrays: list[_Array], kernel: Any):
    """The arguments' memory as an array of ArrayArgument: those that overlap share one."""
    ordered = sorted(arrays, key=lambda a: (a.low, a.high))
    groups: list[list[_Array]] = []
    high = 0
    for array in ordered:
        if groups and array.low < high:
            groups[-1].append(array)
        else:
            groups.append([array])
            high = array.high
        high = max(high, array.high)
    areas = (ArrayArgument * len(groups))()
    for area, group in zip(areas, groups, strict=True):
        low = min(a.low for a in group)
        area.host, area.bytes = low, max(a.high for a in group) - low
        area.granule = min(kernel._granules.get(a.number, COARSEST) for a in group)
        area.read_only = all(a.read_only for a in group)
        for array in group:
            array.area = area
    return areas
