"""Where the kernels' source files are: in the wheel, or beside the package in a checkout.

Those of extensions (`gpunn.extend`) are wherever their authors have them, and are noted here.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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


# What extensions brought: CUDA sources, where their includes are, and modules of Numba kernels.
_cuda_brought: dict[str, Path] = {}
_folders_brought: dict[str, list[Path]] = {}
_numba_brought: dict[str, Path] = {}


def bring(name: str, cuda: Path, numba: Path | None, home: Path) -> str:
    """Make the sources of an extension known, and return under which name.

    It is `name` with a digest of all that they hold, headers included, so that what was compiled of
    an earlier version is not taken for it.

    Parameters
    ----------
    home : the folder of the Python file that declares it
    """
    folders = list(dict.fromkeys((cuda.parent, home)))
    digest = _digest(cuda.name, cuda, [*folders, kernels_folder() / "cuda"])
    if numba is not None:
        digest.update(numba.read_bytes())
    name = f"{name}-{digest.hexdigest()[:8]}"
    _cuda_brought[name], _folders_brought[name] = cuda, folders
    if numba is not None:
        _numba_brought[name] = numba
    return name


def cuda_path(name: str) -> Path:
    """The file of a CUDA source: ``kernels/cuda/<name>``, or what an extension brought."""
    return _cuda_brought.get(name) or kernels_folder() / "cuda" / name


def cuda_source(name: str) -> str:
    """The text of a CUDA source."""
    return cuda_path(name).read_text(encoding="utf-8")


def include_folders(name: str) -> list[Path]:
    """Where a CUDA source's own includes are."""
    return [*_folders_brought.get(name, ()), kernels_folder() / "cuda"]


@functools.cache
def source_digest(name: str) -> str:
    """A digest of a CUDA source and of every file of ours that it includes, however deep."""
    return _digest(name, cuda_path(name), include_folders(name)).hexdigest()


def _digest(name: str, path: Path, folders: list[Path]) -> Any:
    import hashlib  # not on the path of `import gpunn`

    digest = hashlib.sha256()
    for file, text in _texts(name, path, folders):
        digest.update(file.encode() + b"\0" + text.encode() + b"\0")
    return digest


def texts(name: str) -> Iterator[tuple[str, str]]:
    """(name, text) of a CUDA source and of every file of ours that it includes, however deep."""
    return _texts(name, cuda_path(name), include_folders(name))


def _texts(name: str, path: Path, folders: list[Path]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    todo = [(name, path)]
    while todo:
        file, path = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        text = path.read_text(encoding="utf-8")
        yield file, text
        for inner in sorted(re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)):
            places = (folder / inner for folder in (path.parent, *folders))
            found = next((place for place in places if place.is_file()), None)
            if found is not None:  # else the compiler tells, if it comes to that line
                todo.append((inner, found))


def numba_path(name: str) -> Path:
    """The file of Numba kernels: ``kernels/numba/<name>``, or what an extension brought."""
    return _numba_brought.get(name) or kernels_folder() / "numba" / name


@functools.cache
def numba_module(name: str) -> ModuleType:
    """The module of Numba kernels of that name, loaded by path."""
    path = numba_path(name)
    spec = importlib.util.spec_from_file_location(f"gpunn_numba_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
