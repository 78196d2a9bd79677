"""Cases: a primitive on a shape in a dtype, and its inputs on a device."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import gpunn.kernels
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.device.probe import import_cupy
from gpunn.primitives import matmul_precision
from gpunn.primitives.registry import Cost, Primitive
from gpunn.primitives.samples import accumulator_dtype
from gpunn.text import known

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
# The dtype of a case whose arrays are integers or always of one dtype.
FIXED = "-"
# On a CPU default shapes are cut down to these: elements of an array, or M N K of a product.
CPU_ELEMENTS, CPU_PRODUCT = 1 << 22, 1 << 30
# Arguments that stay in the accumulator's dtype when the others have 16 bits.
STATE = {
    "momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg", "grad_avg", "state_sum",
    "log_normalizer", "total", "grad_loss", "neg_log_likelihood", "log_alpha", "cos", "sin",
    "log_sum_exp", "mean", "reciprocal", "spread", "variance", "moments", "means", "count",
}  # fmt: skip
MAX_COPIES = 64


@dataclass(frozen=True)
class Case:
    """One row to measure: the primitive's name, the shape as typed, the dtype's name."""

    primitive: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def key(self) -> str:
        """As text: ``softmax_forward 4096x1024 float32``."""
        return f"{self.primitive} {shape_text(self.shape)} {self.dtype}"


@dataclass
class Inputs:
    """Arguments of one call on a device; `out` is None if the primitive makes or changes others."""

    args: tuple
    kwargs: dict[str, Any]
    out: Any = None

    def call(self, made: Primitive):
        """Run the primitive on them."""
        if self.out is None:
            return made(*self.args, **self.kwargs)
        return made(*self.args, **self.kwargs, out=self.out)


@dataclass
class Workload:
    """What all contestants of a case get: sets of inputs to rotate through, the cost, the cache.

    `cache` is "cold" if what calls touch of all sets together is at least twice the last-level
    cache (each call then finds its data in memory), else "warm".
    """

    case: Case
    sets: list[Inputs]
    cost: Cost
    cache: str
    names: tuple[str, ...] = field(default=())


def element(dtype: str) -> np.dtype:
    """The dtype of arrays by a benchmark's name for it: "tf32" is float32 at that precision."""
    return DTYPES["float32" if dtype == "tf32" else dtype]


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """The precision of float32 products that a benchmark's name for a dtype means."""
    before = matmul_precision.get_matmul_precision()
    matmul_precision.set_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        matmul_precision.set_matmul_precision(before)


def parse_shape(text: str) -> tuple[int, ...]:
    """``"4096x1024"`` as (4096, 1024). ValueError says what is wrong."""
    parts = text.lower().replace("*", "x").split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"shape {text!r} is not understood; write for example 4096x1024")
    return tuple(map(int, parts))


def shape_text(shape: Sequence[int]) -> str:
    """(4096, 1024) as ``"4096x1024"``."""
    return "x".join(map(str, shape))


def select(names: Iterable[str]) -> list[Primitive]:
    """Primitives by name or family, or "all", in the table's order.

    KeyError, with the nearest name or all that there are, for another.
    """
    table, wanted = gpunn.kernels.table(), list(names)
    chosen: set[str] = set()
    for name in wanted:
        found = {p.name for p in table.values() if name in ("all", p.family)}
        if name in table:  # a primitive may bear its family's name
            found = {name}
        if not found:
            every = dict.fromkeys([*table, *(p.family for p in table.values()), "all"])
            raise KeyError(f"{name} is no primitive{known(name, every)}")
        chosen |= found
    return [primitive for primitive in table.values() if primitive.name in chosen]


def cases_of(
    made: Primitive, shapes: Sequence[tuple[int, ...]] | None, dtypes: Sequence[str], device: Device
) -> list[Case]:
    """The cases of one primitive: every shape (the primitive's own if None) in every dtype."""
    if not shapes:
        shapes = made.bench_shapes
        if device.type == "cpu":
            shapes = tuple(dict.fromkeys(map(cut_down, shapes)))
    if not depends_on_dtype(made):
        dtypes = (FIXED,)
    return [Case(made.name, tuple(shape), dtype) for shape in shapes for dtype in dtypes]


def cut_down(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its first dimension halved until a CPU gets through it quickly."""
    limit = CPU_PRODUCT if len(shape) == 3 else CPU_ELEMENTS
    first, *rest = shape
    while first > 1 and first * math.prod(rest) > limit:
        first //= 2
    return (first, *rest)


def depends_on_dtype(made: Primitive) -> bool:
    """Whether any input of the primitive comes in the dtype of the case."""
    if made.bench_in_float32:
        return False
    shape = tuple(min(n, 8) for n in made.bench_shapes[0]) if made.bench_shapes else (8, 8)
    try:
        wide = host_inputs(made, shape, "float64")
    except Exception:  # a shape that the primitive has no inputs for: the user will be told
        return True
    values = [v for v in (*wide.args, *wide.kwargs.values()) if hasattr(v, "dtype")]
    narrow = host_inputs(made, shape, "float32")
    others = [v for v in (*narrow.args, *narrow.kwargs.values()) if hasattr(v, "dtype")]
    return any(a.dtype != b.dtype for a, b in zip(values, others, strict=True))


# ---- inputs --------------------------------------------------------------------------------------


def cast(name: str, value: Any, dtype: np.dtype) -> Any:
    """An input in `dtype` if it came in float32; state and scalars (losses, norms and their
    gradients) in the accumulator's dtype; others as they are."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.float32:
        narrow = value.ndim and name not in STATE
        with np.errstate(all="ignore"):  # what random numbers will be written to holds anything
            wanted = dtype if narrow else accumulator_dtype(dtype)
            return np.asarray(value).astype(wanted, copy=False)
    return value


class QuickRandom(np.random.Generator):
    """A generator whose large arrays repeat a random block, which is drawn once a process.

    A benchmark needs numbers that are not zero and not alike, not a quarter of a billion
    independent ones, which would take seconds for each array. A large array is a view of one long
    repetition, from another place for each draw, that cannot be written to; with `own`, a copy.
    """

    BLOCK = (1 << 20) + 7  # odd, so that rows of a power of two differ
    _SHIFT = 7919
    _long: dict[tuple[str, str], np.ndarray] = {}  # shared by all generators, as long as was asked

    def __init__(self, bits: np.random.BitGenerator, own: bool = False):
        super().__init__(bits)
        self._own, self._draws = own, 0

    def standard_normal(self, size=None, dtype=np.float64, out=None):
        """As in NumPy, but for the repetition."""
        return self._repeated("standard_normal", size, dtype, out)

    def random(self, size=None, dtype=np.float64, out=None):
        """As in NumPy, but for the repetition."""
        return self._repeated("random", size, dtype, out)

    def _repeated(self, how, size, dtype, out):
        count = 1 if size is None else math.prod(np.atleast_1d(size).tolist())
        if out is not None or count <= self.BLOCK:
            return getattr(super(), how)(size, dtype, out)
        self._draws += 1
        start, key = self._SHIFT * self._draws % self.BLOCK, (how, np.dtype(dtype).name)
        long = self._long.get(key)
        if long is None or len(long) < start + count:
            block = getattr(np.random.default_rng(0), how)(self.BLOCK, dtype)
            long = self._long[key] = np.resize(block, count + self.BLOCK)
            long.flags.writeable = False
        found = long[start : start + count].reshape(size)
        return found.copy() if self._own else found


def drawn_inputs(made: Primitive, shape: tuple[int, ...], seed: int) -> tuple[tuple, dict]:
    """Benchmark inputs by `QuickRandom`; with copies where a primitive changes what it drew."""
    try:
        return made._inputs(QuickRandom(np.random.PCG64(seed)), tuple(shape))
    except ValueError as error:
        if "read-only" not in str(error):
            raise
    return made._inputs(QuickRandom(np.random.PCG64(seed), own=True), tuple(shape))


def host_inputs(made: Primitive, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Inputs:
    """Random inputs for a shape on the CPU, rounded to the dtype; not to be written to."""
    try:
        args, kwargs = drawn_inputs(made, shape, seed)
    except (ValueError, IndexError) as error:
        like = " or ".join(map(shape_text, made.bench_shapes[:1])) or "another"
        raise ValueError(
            f"shape {shape_text(shape)} does not suit {made.name}; it takes for example {like}"
        ) from error
    target, names = dtype_of(dtype), inspect.signature(made).parameters
    return Inputs(
        tuple(cast(name, value, target) for name, value in zip(names, args, strict=False)),
        {name: cast(name, value, target) for name, value in kwargs.items()},
    )


def dtype_of(name: str) -> np.dtype:
    """A case's dtype for NumPy; float32 where the case has none."""
    return DTYPES.get(name, DTYPES["float32"])


def moved(inputs: Inputs, device: Device | str) -> Inputs:
    """A fresh copy of the inputs on a device."""
    xp = arrays.array_module(device)

    def move(value):
        return xp.array(value) if hasattr(value, "shape") else value

    return Inputs(
        tuple(map(move, inputs.args)),
        {name: move(value) for name, value in inputs.kwargs.items()},
        None if inputs.out is None else xp.empty_like(inputs.out),
    )


def takes_out(made: Primitive) -> bool:
    """Whether the primitive has an ``out=`` for its (first) result."""
    parameter = inspect.signature(made).parameters.get("out")
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY


def workload(case: Case, device: Device, copies: int | None = None) -> Workload:
    """The inputs of a case on a device: one set on a CPU, on a GPU enough for a cold cache."""
    made = gpunn.kernels.table()[case.primitive]
    host = host_inputs(made, case.shape, case.dtype)
    first = moved(host, device)
    with device.activate() if device.type == "cuda" else _nothing():
        cost = made.cost_of(*first.args, **first.kwargs)
        result = first.call(made)
        if takes_out(made) and "out" not in first.kwargs:
            first.out = result[0] if isinstance(result, tuple) else result
        cache = last_level_cache(device)
        # What is changed in place is read and written, but lies in memory once; of a table only
        # some rows are read.
        touched = min(cost.bytes, memory_of(first))
        if copies is None:
            on_gpu = device.type == "cuda"
            copies = copies_for(touched, cache, room_for_copies(device)) if on_gpu else 1
        sets = [first, *(moved(first, device) for _ in range(copies - 1))]
    cold = touched * copies >= 2 * cache
    return Workload(case, sets, cost, "cold" if cold else "warm")


def memory_of(inputs: Inputs) -> int:
    """Bytes of the arrays of a call. (What it makes anew each time lies where the last one lay.)"""
    values = (*inputs.args, *inputs.kwargs.values(), inputs.out)
    return sum(value.nbytes for value in values if hasattr(value, "shape"))


class _nothing:
    """A context for devices that need none."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def copies_for(nbytes: float, cache: int, room: float) -> int:
    """Sets of inputs of `nbytes` that overflow a cache twice, within `room` bytes of memory."""
    wanted = math.ceil(2 * cache / max(nbytes, 1))
    affordable = int(room // max(nbytes, 1))
    return max(1, min(wanted, affordable, MAX_COPIES))


def room_for_copies(device: Device) -> float:
    """Bytes of a GPU's memory that copies of inputs may take: a quarter of what is free."""
    return import_cupy().cuda.runtime.memGetInfo()[0] / 4


def last_level_cache(device: Device) -> int:
    """Bytes of the L2 cache of a GPU, or of the CPU's largest cache (32 MiB if it is not told)."""
    if device.type == "cuda":
        from gpunn.device.launch import device_properties

        return int(device_properties(device.index)["l2CacheSize"])
    from gpunn.bench.machine import cpu_cache_bytes

    return cpu_cache_bytes() or 32 << 20
