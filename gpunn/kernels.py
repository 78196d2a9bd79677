"""Every primitive as a plain function on arrays, with ``out=``.

>>> import numpy as np
>>> from gpunn import kernels
>>> kernels.softmax_forward(np.zeros((1, 2), np.float32))
array([[0.5, 0.5]], dtype=float32)

NumPy arrays are computed on the CPU. CuPy, PyTorch and Numba arrays on a GPU are taken without a
copy and computed there by our CUDA C++ kernels, or by the Numba ones inside
``with kernels.using("numba"):``. `table()` lists the rows.
"""

from gpunn.primitives import (  # noqa: F401  importing a family fills the table
    activation,
    clip,
    cross_entropy,
    loss,
    matmul as _matmul,
    optimizer,
    random,
    reduce,
    softmax,
)
from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.registry import TABLE, Cost, Primitive, using

globals().update(TABLE)

__all__ = ["ACTIVATIONS", "Cost", "Primitive", "table", "using", *TABLE]


def table() -> dict[str, Primitive]:
    """All primitives by name."""
    return dict(TABLE)
