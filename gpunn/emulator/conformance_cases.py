"""What a conformance case is, and the cases of threads, memory and clusters by kernel file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Problem:
    """A launch's arguments, and the arrays it writes with what they must hold afterwards."""

    arguments: Sequence[Any]
    expected: Sequence[tuple[np.ndarray, np.ndarray]]


Make = Callable[[np.random.Generator], Problem]


@dataclass(frozen=True)
class Case:
    """One kernel with one input.

    `covers` names the functions of ptx.cuh, `expression` the kernel in ``kernels/cuda/<source>``,
    `arch` is the number of the first architecture, `make` makes a problem from a generator.
    """

    name: str
    covers: tuple[str, ...]
    source: str
    expression: str
    make: Make = field(repr=False)
    block: int = 32
    grid: int = 1
    shared: int = 0
    arch: int = 80


CASES: list[Case] = []


def case(name: str, covers: str, kernel: str, **launch) -> Callable[[Make], Make]:
    """Decorate what makes the problem. `covers`: names by spaces; `kernel`: "file expression"."""

    def add(make: Make) -> Make:
        file, expression = kernel.split(" ", 1)
        source = f"conformance/{file}.cu"
        CASES.append(Case(name, tuple(covers.split()), source, expression, make, **launch))
        return make

    return add


def some_integers(rng, *shape) -> np.ndarray:
    return rng.integers(-1000, 1000, shape).astype(np.int32)


LANES = np.arange(32)
G, T = LANES // 4, LANES % 4


def _elementwise(shape, function) -> Make:
    """A kernel that takes int32 numbers and gives as many."""

    def make(rng):
        source = some_integers(rng, *shape)
        out = np.zeros_like(source)
        return Problem((source, out), [(out, function(source).astype(np.int32))])

    return make


# ---- memory.cu -----------------------------------------------------------------------------------


def _pairs(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """Lane l's register of each matrix: element (l / 4, l % 4 * 2) below the one right of it."""
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    low, high = matrices[:, G, 2 * T], matrices[:, G, 2 * T + 1]
    return (low.astype(np.uint32) | high.astype(np.uint32) << 16).T.copy()


def _matrices(count: int, transposed: bool) -> None:
    suffix, template = "_transposed" * transposed, f"<{count}, {str(transposed).lower()}>"

    @case(
        f"load_matrix{suffix} x{count}", f"load_matrix{suffix}", f"memory load_matrices{template}"
    )
    def load(rng):
        source = rng.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
        out = np.zeros((32, count), np.uint32)
        return Problem((source, out), [(out, _pairs(source[:count], transposed))])

    name = f"store_matrix{suffix}"

    @case(f"{name} x{count}", name, f"memory store_matrices{template}", arch=90)
    def store(rng):
        matrices = rng.integers(0, 1 << 16, (count, 8, 8)).astype(np.uint16)
        out = np.zeros_like(matrices)
        return Problem((_pairs(matrices, transposed), out), [(out, matrices)])


for _count, _transposed in itertools.product((1, 2, 4), (False, True)):
    _matrices(_count, _transposed)


def _copies(width: int) -> None:
    covers = "copy_async copy_async_commit copy_async_wait"

    @case(f"copy_async {width}", covers, f"memory copies<{width}>", block=64)
    def make(rng):
        source = rng.integers(1, 256, (2, 64, width)).astype(np.uint8)
        expected, out = source.copy(), np.zeros_like(source)
        expected[1, 2::3] = 0
        return Problem((source, out), [(out, expected)])


for _width in (4, 8, 16):
    _copies(_width)

case("copy_async_arrive", "copy_async_arrive", "memory counted_copies", block=64)(
    _elementwise((64, 4), lambda x: x)
)


def _flags(word: str) -> None:
    @case(f"flags {word}", "load_acquire store_release", f"memory flags<{word}>", block=64)
    def make(rng):
        flag, data, out = np.zeros(1, word), np.zeros(32, np.int32), np.zeros(32, np.int32)
        return Problem((flag, data, out), [(out, np.int32(3 * LANES[::-1]))])


_flags("uint32")
_flags("uint64")


@case("shared_address", "shared_address", "memory addresses", shared=2048)
def _addresses(rng):
    out = np.zeros(3, np.uint32)
    return Problem((out,), [(out, np.array([240, 0, 5], np.uint32))])


# ---- barrier.cu and control.cu -------------------------------------------------------------------


@case("named barriers", "barrier_sync barrier_arrive", "barrier named_barriers", block=128)
def _named_barriers(rng):
    out = np.zeros(64, np.int32)
    back = 5 * np.arange(64)[::-1] + 1
    return Problem((out,), [(out, back[::-1].astype(np.int32))])


_MBARRIER = "mbarrier_init mbarrier_invalidate mbarrier_arrive mbarrier_wait mbarrier_test"


@case("mbarrier phases", _MBARRIER, "barrier phases", block=64)
def _phases(rng):
    out, tests = np.zeros((5, 64), np.int32), np.zeros(4, np.int32)
    expected = np.full((5, 64), -1, np.int32)
    expected[:4] = 100 * np.arange(4)[:, None] + (np.arange(64) + 1) % 64
    return Problem((out, tests), [(out, expected), (tests, np.ones(4, np.int32))])


_CONTROLS = "elect_one launch_dependents wait_for_dependencies"


@case("controls", _CONTROLS, "control controls", block=64, arch=90)
def _controls(rng):
    out = np.zeros(64, np.int32)
    return Problem((out,), [(out, np.ones(64, np.int32))])


case("registers", "registers_raise registers_lower", "control share_registers", block=384, arch=90)(
    _elementwise((384,), lambda x: x + np.where(np.arange(384) < 128, 1, 2))
)

# ---- bulk.cu -------------------------------------------------------------------------------------

_ROUND_TRIP = (
    "bulk_load bulk_store bulk_commit bulk_wait bulk_wait_read mbarrier_expect "
    "mbarrier_arrive_expect fence_mbarrier_init fence_proxy_async"
)
case("bulk round trip", _ROUND_TRIP, "bulk bulk_round_trip", block=128, arch=90)(
    _elementwise((256,), lambda x: x + 1)
)


def _bulk_sum(name: str, dtype) -> None:
    @case(f"bulk_add {name}", "bulk_add", f"bulk bulk_sum<{name}>", grid=2, arch=90)
    def make(rng):
        source, out = rng.integers(-20, 20, (2, 64)).astype(dtype)
        total = out.astype(np.float32) + 2 * source.astype(np.float32)
        out = out.copy()
        return Problem((source.copy(), out), [(out, total.astype(dtype))])


_bulk_sum("float", np.float32)
_bulk_sum("__half", np.float16)
_bulk_sum("__nv_bfloat16", ml_dtypes.bfloat16)

_MULTICAST = "bulk_load_multicast cluster_rank cluster_sync"


@case("bulk_load_multicast", _MULTICAST, "bulk bulk_multicast", block=64, grid=4, arch=90)
def _bulk_multicast(rng):
    source, out = some_integers(rng, 256), np.zeros((4, 256), np.int32)
    expected = np.tile(source, (4, 1))
    expected[2] = -1  # the block that the mask leaves out
    return Problem((source, out), [(out, expected)])


_TO_PEER = "bulk_to_peer mbarrier_arrive_expect_remote"
case("bulk_to_peer", _TO_PEER, "bulk bulk_exchange", block=64, grid=2, arch=90)(
    _elementwise((2, 64), lambda x: x[::-1])
)

# ---- cluster.cu ----------------------------------------------------------------------------------

_CLUSTER = "cluster_rank cluster_size cluster_arrive cluster_wait cluster_sync map_shared"


@case("neighbours", _CLUSTER, "cluster neighbours", grid=8, arch=90)
def _neighbours(rng):
    out = np.zeros((8, 32), np.int32)
    block = np.arange(8)[:, None]
    rank, first = block % 4, block // 4 * 4
    expected = 1000 * (first + (rank + 1) % 4) + LANES[::-1] + 100000 * rank + 40000000
    return Problem((out,), [(out, expected.astype(np.int32))])


_REMOTE = "mbarrier_arrive_remote mbarrier_wait_cluster"


@case("remote arrivals", _REMOTE, "cluster remote_arrivals", grid=2, arch=90)
def _remote_arrivals(rng):
    out = np.zeros((2, 32), np.int32)
    expected = np.stack([100 + LANES[::-1], LANES[::-1]]).astype(np.int32)
    return Problem((out,), [(out, expected)])


@case("remote releases", "mbarrier_release_remote cluster_meet", "cluster remote_releases", grid=2,
      arch=90)  # fmt: skip
def _remote_releases(rng):
    out = np.zeros((2, 32), np.int32)
    return Problem((out,), [(out, np.stack([LANES, 10 + LANES]).astype(np.int32))])


def _remote_stores(name: str, dtype) -> None:
    @case(f"store_async {name}", "store_async", f"cluster remote_stores<{name}>", grid=2, arch=90)
    def make(rng):
        source = rng.integers(0, 1 << 31, (2, 32)).astype(dtype) * 3
        out = np.zeros_like(source)
        return Problem((source, out), [(out, source[::-1, ::-1].copy())])


_remote_stores("float", np.float32)
_remote_stores("uint64", np.uint64)


# ---- ptx_math.cuh --------------------------------------------------------------------------------


@case("power_of_2", "power_of_2", "math powers_of_2")
def _powers_of_2(rng):
    """Where the result has no rounding: whole powers, and what has no number for a result."""
    x = np.concatenate([[0, -0.0, np.inf, -np.inf, 128, -127], rng.integers(-126, 128, 26)])
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = np.exp2(x.astype(np.float64)).astype(np.float32)
    expected[x < -126] = 0
    out = np.zeros(32, np.float32)
    return Problem((x, out), [(out, expected)])
