"""Which packages are installed, in which version, and what gpunn needs each for."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any

import gpunn


@dataclass(frozen=True)
class Package:
    """An optional package: its names on the index, what needs it, what to install for it."""

    names: tuple[str, ...]
    what: str
    install: str

    def found(self) -> str | None:
        """The version of the one that is installed, with its name if there are several; or None."""
        for name in self.names:
            version = version_of(name)
            if version is not None:
                return version if len(self.names) == 1 else f"{name} {version}"
        return None


OPTIONAL = (
    Package(("cupy-cuda12x", "cupy-cuda13x", "cupy"), "the kernels on a GPU", "gpunn[cuda12]"),
    Package(("numba-cuda",), "the Numba kernels", "gpunn[numba]"),
    Package(("numba",), "faster loops on the CPU", "gpunn[numba]"),
    Package(("mpi4py",), "several processes", "gpunn[distributed]"),
    Package(("nvidia-nccl-cu12", "nvidia-nccl-cu13"), "several GPUs", "gpunn[distributed-cuda12]"),
    Package(("scikit-learn",), "gpunn.sklearn, the digits", "gpunn[sklearn]"),
    Package(("matplotlib",), "pictures of runs and benchmarks", "gpunn[plots]"),
    Package(("jinja2",), "gpunn report", "gpunn[report]"),
    Package(("onnx",), "ONNX export and import", "gpunn[onnx]"),
    Package(("onnxruntime",), "running what was exported", "onnxruntime"),
    Package(("tensorboardX", "tensorboard"), "logs for TensorBoard", "gpunn[tensorboard]"),
    Package(("shtab",), "shell completion", "gpunn[completion]"),
    Package(("torch",), "comparing with PyTorch", "torch"),
)


def version_of(name: str) -> str | None:
    """The version of an installed package, from its metadata: nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, Any]:
    """The versions that a report of a fault should name; None for what is not there."""
    from gpunn.device import probe

    cuda: dict[str, Any] = {}
    for finding in probe.findings():
        cuda[finding.name] = finding.detail if finding.passed else None
    required = ("numpy", "ml_dtypes", "safetensors", "tqdm")
    return {
        "gpunn": gpunn.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version_of(name) for name in required},
        "optional": {package.names[0]: package.found() for package in OPTIONAL},
        "cuda": cuda,
    }
