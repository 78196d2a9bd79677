"""Every primitive as a plain function on arrays, with ``out=``.

>>> import numpy as np
>>> from gpunn import kernels
>>> kernels.softmax_forward(np.zeros((1, 2), np.float32))
array([[0.5, 0.5]], dtype=float32)

NumPy arrays are computed on the CPU. CuPy, PyTorch and Numba arrays on a GPU are taken without a
copy and computed there by our CUDA C++ kernels, or by the Numba ones inside
``with kernels.using("numba"):``. `table()` lists the rows.
"""

import importlib
from typing import TYPE_CHECKING

from gpunn.primitives.activation import ACTIVATIONS
from gpunn.primitives.matmul_tune import autotune
from gpunn.primitives.registry import TABLE, Cost, Primitive, using

# The families, in the order of the table; importing one adds its rows.
FAMILIES = (
    "matmul", "matmul_backward", "activation", "activation_bias", "softmax", "loss",
    "cross_entropy", "optimizer", "optimizer_samples", "clip", "scale", "cast", "amp", "random",
    "random_samples", "augment", "reduce", "convolution", "pooling", "resize", "pad", "layer_norm",
    "batch_norm", "sync_batch_norm", "group_norm", "recurrent", "attention", "embedding", "rotary",
    "ctc", "running_loss", "mlp",
)  # fmt: skip

for _family in FAMILIES:
    importlib.import_module(f"gpunn.primitives.{_family}")

# What the CPU does faster than by the plain references, which these take the place of.
for _family in ("activation_cpu", "attention_cpu"):
    importlib.import_module(f"gpunn.primitives.{_family}")

globals().update(TABLE)

if TYPE_CHECKING:  # every name of the table is one

    def __getattr__(name: str) -> Primitive: ...


__all__ = ["ACTIVATIONS", "Cost", "Primitive", "autotune", "table", "using", *TABLE]


def table() -> dict[str, Primitive]:
    """All primitives by name, in the order of the families, whatever was imported first.

    Those of extensions (`gpunn.extend`) come last, in the order in which they were declared; the
    files that ``GPUNN_EXTENSIONS`` names are loaded first.
    """
    from gpunn import extend

    extend.load_from_environment()
    place = {family: number for number, family in enumerate(FAMILIES)}
    return dict(sorted(TABLE.items(), key=lambda row: place.get(row[1].family, len(FAMILIES))))
