"""One pass of a convolution as the products that its kernels make: what every launch code gets."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn.errors import UnsupportedError
from gpunn.primitives.convolution_problem import Geometry
from gpunn.primitives.matmul_problem import Finish

OUTPUT, INPUT, WEIGHT = "OUTPUT", "INPUT", "WEIGHT"  # what is made; as in convolution.cuh
LONGEST = 1 << 29  # places in one dimension: the kernels' mark of a place outside

# struct Convolution of convolution.cuh.
_STRUCTURE = np.dtype(
    [(name, np.int32) for name in (
        "batch", "channels", "outputs", "groups", "group_channels", "group_outputs",
    )]
    + [(name, np.int32, 3) for name in (
        "size", "out", "kernel", "stride", "low", "dilation", "common", "inverse",
    )]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass: ``result = finish(a @ b)`` for each group, and for each phase of `INPUT`.

    made : `OUTPUT` (a = x, b = weight), `INPUT` (a = grad_output, b = weight) or `WEIGHT`
        (a = grad_output, b = x)
    shape : in three dimensions
    finish : with ``out`` as (rows, channels made), or (outputs, taps and channels) for `WEIGHT`
    """

    made: str
    a: Any
    b: Any
    shape: Geometry
    finish: Finish

    @property
    def out(self):
        """The result."""
        return self.finish.out

    def aligned(self, launch, width: int) -> bool:
        """Whether both operands can be moved in packs of `width` elements."""
        shape, pack = self.shape, width * self.a.itemsize
        channels = shape.group_channels % width == 0
        outputs = self.made == OUTPUT or shape.group_outputs % width == 0
        return channels and outputs and launch.aligned(pack, self.a, self.b)

    def vector(self, launch, width: int) -> bool:
        """Whether the result is written in packs of `width` elements."""
        made = self.shape.group_outputs if self.made == OUTPUT else self.shape.group_channels
        pack = width * self.out.itemsize
        return made % width == 0 and launch.aligned(pack, *self.finish.written, self.finish.bias)


@functools.lru_cache(maxsize=4096)
def sizes(made: str, shape: Geometry) -> tuple[int, int, int, int]:
    """(rows, columns, depth, matrices) of the products; of the largest phase for `INPUT`."""
    positions = shape.batch * math.prod(shape.out)
    if made == OUTPUT:
        depth = shape.taps * shape.group_channels
        return positions, shape.group_outputs, depth, shape.groups
    if made == WEIGHT:
        columns = shape.taps * shape.group_channels
        return shape.group_outputs, columns, positions, shape.groups
    steps = [s // math.gcd(s, d) for s, d in zip(shape.stride, shape.dilation, strict=True)]
    rows = math.prod(-(-n // s) for n, s in zip(shape.size, shape.stride, strict=True))
    taps = math.prod(-(-k // s) for k, s in zip(shape.kernel, steps, strict=True))
    phases = math.prod(map(min, shape.stride, shape.size))
    depth = taps * shape.group_outputs
    return shape.batch * rows, shape.group_channels, depth, shape.groups * phases


@functools.lru_cache(maxsize=4096)
def structure(shape: Geometry) -> np.void:
    """The kernels' argument of type ``Convolution``."""
    longest = max(
        s + low + high
        for s, low, high in zip(shape.size, shape.low, shape.high, strict=True)
    )
    if longest >= LONGEST or max(shape.batch, shape.channels, shape.outputs) >= 1 << 31:
        raise UnsupportedError(
            f"convolution: an input of shape {shape.input_shape} has {longest} places in one "
            f"dimension with its padding; the GPU kernels count fewer than {LONGEST}"
        )
    made = np.zeros((), _STRUCTURE)
    for name in ("batch", "channels", "outputs", "groups", "group_channels", "group_outputs",
                 "size", "out", "kernel", "stride", "low", "dilation"):  # fmt: skip
        made[name] = getattr(shape, name)
    common = [math.gcd(s, d) for s, d in zip(shape.stride, shape.dilation, strict=True)]
    made["common"] = common
    made["inverse"] = [
        pow(d // g, -1, s // g) if s > g else 0
        for s, d, g in zip(shape.stride, shape.dilation, common, strict=True)
    ]
    return made[()]
