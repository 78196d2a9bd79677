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

from gpunn import autograd, errors, kernels
from gpunn.autograd import *  # noqa: F403
from gpunn.autograd import __all__ as _tensor_names
from gpunn.autograd import random
from gpunn.device import Device as device
from gpunn.device import default_device, set_default_device, synchronize
from gpunn.primitives.matmul_precision import get_matmul_precision, set_matmul_precision

__version__ = "0.1.0"

__all__ = [  # noqa: PLE0604
    # gpunn.sum and gpunn.float are there, but a star import leaves Python's own alone
    *(name for name in _tensor_names if not hasattr(_builtins, name)),
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

_LAZY = ("amp", "bench", "cuda", "data", "io", "models", "nn", "optim", "profiling", "train")


def __getattr__(name: str):
    if name in _LAZY:
        return _importlib.import_module(f"gpunn.{name}")
    if name == "compile":
        return _importlib.import_module("gpunn.compiled").compile
    if name == "profile":
        return _importlib.import_module("gpunn.profiling").profile
    if name in ("save", "load"):
        return getattr(_importlib.import_module("gpunn.io"), name)
    raise AttributeError(f"module 'gpunn' has no attribute {name!r}")
