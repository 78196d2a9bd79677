"""Operands of the tensor-core products of sm_90a: what tensor copies (TMA) can read, and its map.

Tensor copies read matrices whose rows or whose K are contiguous, at pitches of 16 bytes. All else,
and the operands of the float32 modes, is first written anew by kernels/cuda/matmul_prepare.cu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from gpunn.primitives.matmul_problem import Problem

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)

# What each mode makes of an operand: dtype and planes. "native" keeps the dtype.
MODES = {
    "native": (None, 1),
    "split": (BFLOAT16, 3),
    "tf32": (FLOAT32, 1),
    "bfloat16": (BFLOAT16, 1),
}


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix for each of outer x inner: `size` rows (of A, or columns of B) by K.

    Strides in elements; an `outer_stride` or `inner_stride` of 0 is one matrix for all.
    """

    array: Any
    size: int
    K: int
    row_stride: int
    k_stride: int
    outer: int
    outer_stride: int
    inner: int
    inner_stride: int


def operand_of(p: Problem, which: str) -> Operand:
    """Operand "a" or "b" of a problem."""
    (outer, a_outer, b_outer), (inner, a_inner, b_inner) = p.batch_strides
    if which == "a":
        return Operand(p.a, p.M, p.K, p.a_m, p.a_k, outer, a_outer, inner, a_inner)
    return Operand(p.b, p.N, p.K, p.b_n, p.b_k, outer, b_outer, inner, b_inner)


def addressable(o: Operand, chip) -> bool | None:
    """Whether tensor copies can read an operand as it is: True with contiguous rows, False with
    contiguous K, None if not."""
    pack = 16 // o.array.itemsize
    batches = [s for s in (o.outer_stride, o.inner_stride) if s]
    if not chip.aligned(16, o.array) or any(s % pack or s < 0 for s in batches):
        return None

    def fits(extent: int, stride: int) -> bool:
        return extent == 1 or (stride > 0 and stride % pack == 0)

    if (o.k_stride == 1 or o.K == 1) and fits(o.size, o.row_stride):
        return False
    if (o.row_stride == 1 or o.size == 1) and fits(o.K, o.k_stride):
        return True
    return None


@dataclass(frozen=True, slots=True)
class Ready:
    """An operand that tensor copies can read, as the kernel is told of it.

    A map knows only an address: without `array` the memory of an operand that was written anew
    would be free for the next one before the product is launched.
    """

    array: Any
    map: Any
    rows_contiguous: bool
    near: int
    far: int


def ready(launch, o: Operand, tile_rows: int, share: int, mode: str, needs_k: bool, flags) -> Ready:
    """The operand, written anew first where it must be.

    tile_rows, share : rows of a tile, of which each of `share` blocks of a cluster loads a part
    needs_k : K must be contiguous
    flags : for the split modes, see matmul_prepare.cu
    """
    dtype, planes = MODES[mode]
    rows_contiguous = addressable(o, launch) if mode == "native" else None
    if rows_contiguous is None or (rows_contiguous and needs_k):
        o = prepared(launch, o, dtype or o.array.dtype, planes, flags)
        rows_contiguous = False
    line = 64 if planes > 1 else 128
    width = line // o.array.itemsize
    inner = o.inner if o.inner_stride else 1
    outer = o.outer if o.outer_stride else 1
    near, far = int(inner > 1), int(outer > 1)
    strides = (o.outer_stride or 16, o.inner_stride or 16)
    if planes > 1:  # the planes are the outermost dimension, the matrices are numbered through
        plane = outer * inner * o.size * o.row_stride
        strides = (plane, o.size * o.row_stride)
        far *= inner
        outer, inner = planes, outer * inner
    if rows_contiguous:
        shape, box = (outer, inner, o.K, o.size), (1, 1, width // share, 64)
        strides = (*strides, o.k_stride, 1)
    else:
        shape, box = (outer, inner, o.size, o.K), (1, 1, tile_rows // share, width)
        strides = (*strides, o.row_stride, 1)
    made = tensor_map(o.array, shape, strides, box, line)
    return Ready(o.array, made, rows_contiguous, near, far)


def prepared(launch, o: Operand, dtype, planes: int, flags) -> Operand:
    """The operand written anew by matmul_prepare.cu: K contiguous, one plane or several."""
    width = 16 // dtype.itemsize
    pitch = -(-o.K // width) * width
    outer = o.outer if o.outer_stride else 1
    inner = o.inner if o.inner_stride else 1
    array = launch.empty((planes, outer, inner, o.size, pitch), dtype)
    tiles = outer * inner * -(-o.size // 64) * -(-pitch // 64)
    launch.sibling("matmul_prepare.cu")(
        f"prepare<{launch.ctype(o.array.dtype)}, {launch.ctype(dtype)}, {planes}>",
        grid=(min(tiles, 4 * launch.multiprocessors),),
        block=(256,),
        args=(
            o.array, array, *map(np.int64, (o.size, o.K, o.row_stride, o.k_stride, pitch)),
            np.uint32(outer), np.uint32(inner), np.int64(o.outer_stride),
            np.int64(o.inner_stride), flags,
        ),
    )  # fmt: skip
    return Operand(
        array, o.size, o.K, pitch, 1, o.outer, inner * o.size * pitch * (outer > 1),
        o.inner, o.size * pitch * (inner > 1),
    )  # fmt: skip


def tensor_map(array, shape, strides, box, swizzle: int):
    """The TensorMap of a view of an array, strides in elements."""
    from gpunn.emulator.tensor_map import TensorMap  # not on the path of `import gpunn`

    return TensorMap(mapped(array, shape, strides), box, swizzle=swizzle)


def mapped(array, shape, strides):
    """A view of an array for a TensorMap, strides in elements."""
    bytes_ = tuple(stride * array.itemsize for stride in strides)
    if isinstance(array, np.ndarray):
        return np.lib.stride_tricks.as_strided(array, shape, bytes_)
    return _Place(array.data.ptr, array.dtype, shape, bytes_)


class _Place:
    """As much of an array on a GPU as a map needs: a map that is remembered keeps no memory."""

    def __init__(self, address: int, dtype, shape, strides):
        self.data, self.ptr = self, address
        self.dtype, self.shape, self.strides, self.ndim = dtype, shape, strides, len(shape)

    def at(self, address: int) -> _Place:
        """The same at another address, for recipes (device/recipe.py)."""
        return _Place(address, self.dtype, self.shape, self.strides)
