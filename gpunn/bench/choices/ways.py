"""Ways to make a problem: what they are, their arrays, and how a rule is made to show them all."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpunn.kernels
from gpunn.device import arrays
from gpunn.device.device import Device
from gpunn.primitives import (
    convolution_mma,
    convolution_simt,
    convolution_wgmma,
    matmul_mma,
    matmul_simt,
    matmul_wgmma,
)
from gpunn.primitives.matmul_option import Option
from gpunn.primitives.registry import intercepting
from gpunn.profiling.chips import CHIPS

CLOCK = CHIPS["h200"].clock  # cycles a second, for the rules that estimate cycles


@dataclass(frozen=True)
class Way:
    """One way to make a problem.

    name : short, and no other way of the problem has it
    estimate : seconds by the rule, of a whole call (of `mlp_train`: of one step)
    run : ``run(launch, inputs)`` launches it
    parts : the estimate by parts in seconds, where the rule adds up several
    """

    name: str
    estimate: float
    run: Callable[[Any, Any], None]
    parts: dict[str, float] | None = None


class Maker:
    """Makes the arrays of a set of inputs: random ones on a device, or, without one, memory of the
    host that is never touched, for launchers that launch nothing."""

    BLOCK = (1 << 20) + 7  # random numbers, repeated: see cases.QuickRandom

    def __init__(self, device: Device | None):
        self.device, self.made = device, 0

    def random(self, shape: tuple[int, ...], dtype: np.dtype, scale: float = 1.0) -> Any:
        """Normal random numbers times `scale`, other ones for each array of a set."""
        if self.device is None:
            return np.empty(shape, dtype)
        self.made += 1
        found, block = arrays.empty(shape, dtype, self.device), _block(dtype, scale, self.device)
        _repeat(found.reshape(-1), block[7919 * self.made % (self.BLOCK // 2) :])
        return found

    def place(self, host: np.ndarray) -> Any:
        """An array of the host on the device."""
        return host if self.device is None else arrays.to_device(host, self.device)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Memory for a result."""
        if self.device is None:
            return np.empty(shape, dtype)
        return arrays.empty(shape, dtype, self.device)


def _repeat(target: Any, block: Any) -> None:
    """Fill a vector with a block of numbers again and again: on the device, by a few copies that
    double what is there. From the host 2 GB would take longer than all that is timed."""
    done = min(len(block), len(target))
    _copy(target[:done], block[:done])
    while done < len(target):
        more = min(done, len(target) - done)
        _copy(target[done : done + more], target[:more])
        done += more


def _copy(target: Any, source: Any) -> None:
    if isinstance(target, np.ndarray):
        target[...] = source
    else:  # bytes, as CuPy does not copy all of our dtypes; on the current stream
        target.data.copy_from_device_async(source.data, source.nbytes)


@functools.lru_cache(maxsize=8)
def _block(dtype: np.dtype, scale: float, device: Device) -> Any:
    numbers = np.random.default_rng(7).standard_normal(Maker.BLOCK, np.float32)
    return arrays.to_device((scale * numbers).astype(dtype), device)


@contextlib.contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` at the attribute `name` of a module inside a ``with`` block."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


# ---- options of products: each tile with every cut of K ------------------------------------------

# The modules that cut K into parts, the prefix of their options' names, and the functions, with
# their modules, that remember the best cut.
_CUTTING = (
    (matmul_simt, "simt", ((matmul_simt, "choices"),)),
    (convolution_simt, "simt", ((convolution_simt, "_choice"),)),
    (matmul_mma, "mma", ((matmul_mma, "_choices"), (convolution_mma, "_choices"))),
    (matmul_mma, "elements", ((convolution_mma, "_choices"),)),
    (matmul_wgmma, "wgmma", ((matmul_wgmma, "timed"), (convolution_wgmma, "timed"))),
)
_CUTS = 7  # in 1 to 64 parts, as `matmul_option.parts_of`
CUT_WORTH = 2.0  # other cuts than the best of a tile are of interest up to this multiple


def with_other_cuts(options: Callable[[], list[Option]]) -> list[Way]:
    """The options of a rule; and of each tile also with K in other numbers of parts.

    The rule itself offers each tile with one number of parts, that with the least estimate. The
    others come from its own functions, made to see one cut at a time.
    """
    found = {one.name: one for one in options()}
    least = min(one.seconds for one in found.values())
    for module, prefix, remembering in _CUTTING:
        if not any(name.startswith(prefix) for name in found):
            continue
        real = module.parts_of
        for cut in range(_CUTS):
            only = functools.partial(_one_cut, real, cut)
            with contextlib.ExitStack() as stack:
                stack.enter_context(replaced(module, "parts_of", only))
                for place, name in remembering:
                    stack.enter_context(replaced(place, name, getattr(place, name).__wrapped__))
                some = options()
            for one in some:
                if one.name.startswith(prefix) and one.seconds <= CUT_WORTH * least:
                    found.setdefault(one.name, one)
    return [Way(one.name, one.seconds, one.run) for one in found.values()]


def _one_cut(real: Callable, cut: int, *args, **kwargs) -> Iterator[tuple]:
    return itertools.islice(real(*args, **kwargs), cut, cut + 1)


# ---- primitives whose launch code asks a module for a plan ---------------------------------------


def checked(name: str, *args, **kwargs) -> tuple:
    """What a call of a primitive gives its implementations; nothing is run."""
    found: list[tuple] = []
    with intercepting(lambda call, run_args: found.append(run_args)):
        gpunn.kernels.table()[name](*args, **kwargs)
    return found[0]


def run_with(name: str, module: Any, plan: Any, launch: Any, inputs: tuple) -> None:
    """Run a primitive's launch code with this plan instead of the one that it would choose."""
    with replaced(module, "choose", lambda *args, **kwargs: plan):
        gpunn.kernels.table()[name].run_cuda(launch, inputs)
