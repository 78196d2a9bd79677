"""The ONNX operators that gpunn runs, one file a family; importing this fills the table."""

from gpunn.onnx.operators import (  # noqa: F401
    activation,
    attention,
    control,
    convolution,
    elementwise,
    image,
    indexing,
    loss,
    norm,
    pooling,
    quantize,
    random,
    recurrent,
    reduction,
    shape,
    types,
)
from gpunn.onnx.operators.registry import find, names, versions

__all__ = ["find", "names", "versions"]
