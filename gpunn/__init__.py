"""gpunn: training neural networks on NVIDIA GPUs with hand-written CUDA kernels.

>>> import gpunn
>>> from gpunn import nn, optim
>>> import gpunn.nn.functional as F

Tensors, layers and optimizers bear PyTorch's names. `gpunn.kernels` are the kernels as plain
functions on arrays, `gpunn.models` well-known networks, `gpunn.train` the Trainer, `gpunn.data`
datasets and loaders, `gpunn.io` model files. Nothing here imports CuPy, Numba, matplotlib or
scikit-learn before they are needed.
"""

import builtins as _builtins
import importlib as _importlib
import typing as _typing

from gpunn import autograd, errors, kernels
from gpunn.autograd import *  # noqa: F403
from gpunn.autograd import random
from gpunn.device import Device as device
from gpunn.device import default_device, set_default_device, synchronize
from gpunn.primitives.matmul_precision import get_matmul_precision, set_matmul_precision

__version__ = "0.1.0"

__all__ = [
    "autograd",
    "default_device",
    "device",
    "errors",
    "get_matmul_precision",
    "kernels",
    "random",
    "set_default_device",
    "set_matmul_precision",
    "synchronize",
]
__all__ += autograd.__all__
# gpunn.sum and gpunn.float are there, but a star import leaves Python's own alone
__all__[:] = [name for name in __all__ if not hasattr(_builtins, name)]

if _typing.TYPE_CHECKING:  # what `__getattr__` below brings when it is first asked for
    from gpunn import (
        amp,
        bench,
        cuda,
        data,
        extend,
        io,
        models,
        nn,
        onnx,
        optim,
        profiling,
        report,
        sklearn,
        train,
    )
    from gpunn.compiled import compile
    from gpunn.io import load, save
    from gpunn.profiling import profile

    __all__ += [
        "amp",
        "bench",
        "cuda",
        "data",
        "extend",
        "io",
        "models",
        "nn",
        "onnx",
        "optim",
        "profiling",
    ]
    __all__ += ["report", "sklearn", "train", "compile", "load", "save", "profile"]

_LAZY = (
    "amp",
    "bench",
    "cuda",
    "data",
    "extend",
    "io",
    "models",
    "nn",
    "onnx",
    "optim",
    "profiling",
    "report",
    "sklearn",
    "train",
)


if not _typing.TYPE_CHECKING:  # where every name is known, a wrong one is found

    def __getattr__(name: str) -> _typing.Any:
        if name in _LAZY:
            return _importlib.import_module(f"gpunn.{name}")
        if name == "compile":
            return _importlib.import_module("gpunn.compiled").compile
        if name == "profile":
            return _importlib.import_module("gpunn.profiling").profile
        if name in ("save", "load"):
            return getattr(_importlib.import_module("gpunn.io"), name)
        raise AttributeError(f"module 'gpunn' has no attribute {name!r}")
