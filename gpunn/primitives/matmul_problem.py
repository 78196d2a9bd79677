"""What the launch code of every matrix product is given: the operands, and what is done to a sum.

Letters: ``out (M, N) = finish(a (M, K) @ b (K, N))`` for each matrix of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.samples import accumulator_dtype


@dataclass(slots=True)
class Finish:
    """What becomes of the sums; see kernels/cuda/matmul_epilogue.cuh.

    Without `saved` (forward): ``preactivation = scale sum + bias``, ``out = f(that) + residual``.
    With `saved` (backward): ``out = scale sum f'(saved) + residual``; `column_sums`, an array
    (N,), receives the sums of out over all its rows.
    With `row_sums`, an array (M,): the sums over K of `a`, unscaled; for single products only.

    All arrays are contiguous, of the dtype of `out`, and of its shape but for `bias` and the sums.
    `residual` may be `out` itself.
    """

    out: Any
    bias: Any = None
    preactivation: Any = None
    activation: str = "identity"
    alpha: float = 0.0
    scale: float = 1.0
    residual: Any = None
    saved: Any = None
    column_sums: Any = None
    row_sums: Any = None

    @property
    def backward(self) -> bool:
        """Whether the kernel multiplies by the activation's derivative instead of applying it."""
        return self.saved is not None

    @property
    def written(self) -> tuple:
        """The arrays like `out` that are read or written pack by pack (None among them)."""
        return self.out, self.preactivation, self.residual, self.saved

    def arrays(self) -> tuple:
        """The kernels' arguments from `bias` to `preactivation`."""
        return self.bias, self.saved, self.residual, self.out, self.preactivation

    def all_arrays(self) -> tuple:
        """Every array, None among them."""
        return (*self.arrays(), self.column_sums, self.row_sums)

    def numbers(self) -> tuple:
        """The kernels' arguments `activation`, `alpha` and `scale`."""
        real = accumulator_dtype(self.out.dtype).type
        return np.int32(ACTIVATIONS.index(self.activation)), real(self.alpha), real(self.scale)

    def matrix(self, index: int) -> Finish:
        """The same for one index of the first batch dimension, without sums of columns."""

        def one(x):
            return None if x is None else x[index]

        return replace(
            self, out=self.out[index], preactivation=one(self.preactivation),
            residual=one(self.residual), saved=one(self.saved), column_sums=None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One product: sizes, strides in elements, and at most two batch dimensions.

    `batch_strides` holds (size, stride of a, stride of b) of the outer and the inner batch
    dimension; a stride of 0 is a matrix that all share.
    """

    a: Any
    b: Any
    finish: Finish
    M: int
    N: int
    K: int
    a_m: int
    a_k: int
    b_k: int
    b_n: int
    batch_strides: tuple[tuple[int, int, int], tuple[int, int, int]]

    @property
    def out(self):
        """The result."""
        return self.finish.out

    @property
    def arrays(self) -> tuple:
        """All arrays that a product reads and writes, None among them, as recipes number them."""
        return (self.a, self.b, *self.finish.all_arrays())

    @property
    def batch(self) -> int:
        """Number of matrices."""
        return self.batch_strides[0][0] * self.batch_strides[1][0]

    def kind(self, launch) -> tuple:
        """All that the choice of a kernel may depend on, for use as a key."""
        finish = self.finish
        return (
            str(self.out.dtype), self.M, self.N, self.K, self.a_m, self.a_k, self.b_k, self.b_n,
            self.batch_strides, launch.aligned(16, self.a), launch.aligned(16, self.b),
            launch.aligned(16, *finish.written, finish.bias), finish.residual is not None,
            finish.preactivation is not None, finish.backward, finish.column_sums is not None,
            finish.row_sums is not None,
        )  # fmt: skip


def batch_dimensions(a, b, shape) -> list[tuple[int, int, int]]:
    """(size, stride of a, stride of b) of the batch dimensions in elements, merged if possible."""

    def strides(x):
        missing = len(shape) - (x.ndim - 2)
        own = zip(x.shape[:-2], x.strides[:-2], strict=True)
        return [0] * missing + [0 if n == 1 else s // x.itemsize for n, s in own]

    merged: list[tuple[int, int, int]] = []
    for size, of_a, of_b in zip(shape, strides(a), strides(b), strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1:] == (of_a * size, of_b * size):
            merged[-1] = (merged[-1][0] * size, of_a, of_b)
        else:
            merged.append((size, of_a, of_b))
    return merged


def problem_of(a, b, finish: Finish, dims) -> Problem:
    """The problem of operands with at most two (merged) batch dimensions `dims`."""
    outer, inner = [(1, 0, 0)] * (2 - len(dims)) + dims
    a_m, a_k = (stride // a.itemsize for stride in a.strides[-2:])
    b_k, b_n = (stride // b.itemsize for stride in b.strides[-2:])
    M, N = finish.out.shape[-2:]
    return Problem(a, b, finish, M, N, a.shape[-1], a_m, a_k, b_k, b_n, (outer, inner))
