"""Where the kernels' source files are: in the wheel, or beside the package in a checkout."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from types import ModuleType

# Files of kernels whose blocks wait for each other: launched so that all of a grid exist at once.
COOPERATIVE = frozenset({"mlp_train.cu", "recurrent_grid.cu"})


@functools.cache
def kernels_folder() -> Path:
    """The folder of ``cuda/`` and ``numba/``: ``gpunn/_kernels`` if installed, else ``kernels``."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_kernels", package.parent / "kernels"):
        if (folder / "cuda" / "common.cuh").is_file():
            return folder
    raise FileNotFoundError(
        f"gpunn's kernel sources are missing (looked in {package / '_kernels'} and "
        f"{package.parent / 'kernels'}): reinstall gpunn"
    )


def cuda_source(name: str) -> str:
    """The text of ``kernels/cuda/<name>``."""
    return (kernels_folder() / "cuda" / name).read_text(encoding="utf-8")


@functools.cache
def source_digest(name: str) -> str:
    """A digest of a CUDA source and of every file of ours that it includes, however deep."""
    import hashlib

    digest, seen, todo = hashlib.sha256(), set(), [name]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        text = cuda_source(file)
        digest.update(file.encode() + b"\0" + text.encode() + b"\0")
        todo += sorted(re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE))
    return digest.hexdigest()


@functools.cache
def numba_module(name: str) -> ModuleType:
    """The module ``kernels/numba/<name>``, loaded by path."""
    path = kernels_folder() / "numba" / name
    spec = importlib.util.spec_from_file_location(f"gpunn_numba_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
