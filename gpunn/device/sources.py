"""Where the kernels' source files are: in the wheel, or beside the package in a checkout.

Those of extensions (`gpunn.extend`) are wherever their authors have them, and are noted here.
"""

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


# What extensions brought: CUDA sources, and modules of Numba kernels.
_cuda_brought: dict[str, Path] = {}
_numba_brought: dict[str, Path] = {}


def bring(name: str, cuda: Path, numba: Path | None = None) -> None:
    """Make the sources of an extension known under `name`, which no other has."""
    _cuda_brought[name] = cuda
    if numba is not None:
        _numba_brought[name] = numba


def cuda_path(name: str) -> Path:
    """The file of a CUDA source: ``kernels/cuda/<name>``, or what an extension brought."""
    return _cuda_brought.get(name) or kernels_folder() / "cuda" / name


def cuda_source(name: str) -> str:
    """The text of a CUDA source."""
    return cuda_path(name).read_text(encoding="utf-8")


def include_folders(name: str) -> list[Path]:
    """Where a CUDA source's own includes are."""
    own = [_cuda_brought[name].parent] if name in _cuda_brought else []
    return [*own, kernels_folder() / "cuda"]


@functools.cache
def source_digest(name: str) -> str:
    """A digest of a CUDA source and of every file of ours that it includes, however deep."""
    import hashlib

    digest, seen, todo = hashlib.sha256(), set(), [name]
    folders = include_folders(name)
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        places = [cuda_path(file), *(folder / file for folder in folders)]
        path = next((place for place in places if place.is_file()), places[0])
        text = path.read_text(encoding="utf-8")
        digest.update(file.encode() + b"\0" + text.encode() + b"\0")
        todo += sorted(re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE))
    return digest.hexdigest()


@functools.cache
def numba_module(name: str) -> ModuleType:
    """The module ``kernels/numba/<name>``, or what an extension brought, loaded by path."""
    path = _numba_brought.get(name) or kernels_folder() / "numba" / name
    spec = importlib.util.spec_from_file_location(f"gpunn_numba_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
