"""Models in several files, as Hugging Face keeps large ones: shards, and an index that names them.

``model.safetensors.index.json`` holds ``{"metadata": {"total_size": …}, "weight_map": {name:
file}}``; the files lie beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpunn.errors import FileFormatError
from gpunn.io.atomic import check_target, write_text

INDEX = ".index.json"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Shards(NamedTuple):
    """The files of a model: for each the names that are read from it, None for all."""

    files: dict[Path, list[str] | None]
    metadata: dict[str, str]  # of the index


def find_files(path: Path) -> Shards:
    """The files that `path` stands for: a file, an index, or the folder that holds one of them.

    FileNotFoundError, IsADirectoryError or FileFormatError where there is none or a part is missing
    """
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "model.safetensors" + INDEX)]
        found = [file for file in found if file.is_file()] or [
            file for file in sorted(path.glob("*.safetensors")) if file.name[0] != "."
        ]  # with a dot: what an interrupted `atomic_path` left
        if len(found) != 1 and not (found and found[0].name.startswith("model.safetensors")):
            raise IsADirectoryError(
                f"{path} is a folder; give the name of a .safetensors file, or a folder that holds "
                "one, or a model.safetensors.index.json with its shards"
            )
        path = found[0]
    elif not path.is_file() and index_of(path).is_file():
        path = index_of(path)
    if path.name.endswith(INDEX):
        return _read_index(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return Shards({path: None}, {})


def index_of(path: Path) -> Path:
    """The index of the shards that are written in the place of one file."""
    return path.with_name(path.name + INDEX)


def _read_index(path: Path) -> Shards:
    places, texts = _parse_index(path)
    files: dict[Path, list[str] | None] = {}
    for name, file in places.items():
        names = files.setdefault(path.parent / file, [])
        assert names is not None
        names.append(name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(files)} files, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there"
        )
    return Shards(files, texts)


def _parse_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The file of each name, and the texts; FileFormatError for what is not to be followed."""
    try:
        index = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
        weight_map, metadata = index["weight_map"], index.get("metadata") or {}
        places = {str(name): str(file) for name, file in weight_map.items()}
        texts = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"{path} is damaged, or no index of a safetensors model ({type(error).__name__}: "
            f"{error})"
        ) from None
    if not places:
        raise FileFormatError(f"{path} is damaged: its weight_map names no file")
    for name, file in places.items():
        if file != os.path.basename(file) or file in ("", ".", "..") or "\\" in file:
            raise FileFormatError(
                f"{path}: {name!r} is said to be in {file!r}; only files beside the index are read"
            )
        if len(file) > 255:
            raise FileFormatError(f"{path}: {name!r} is said to be in a file of a longer name "
                                  "than there can be")  # fmt: skip
    return places, texts


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, count),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} is there {count} times")
    return found


def bytes_of(size: int | str) -> int:
    """A size in bytes from a number or a text such as "5GB" (10^9) or "512MiB" (2^20)."""
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", size.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError(f"shard_size is {size!r}; expected bytes, or a text such as '5GB'")
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < 1:
        raise ValueError(f"shard_size is {size}; expected 1 byte or more")
    return size


def save_shards(
    arrays: Mapping[str, np.ndarray],
    path: Path,
    texts: dict[str, str],
    limit: int,
    write: Callable[[dict[str, np.ndarray], Path], None],
) -> None:
    """Write files of at most `limit` bytes (a larger array has one to itself) and their index.

    The index takes its name last, and what was there before is removed after that: a crash leaves
    the old model, or the new one; after an error nothing of the new one stays.
    """
    check_target(path)
    index, groups = index_of(path), _groups(arrays, limit)
    old = _old_files(path, index)
    token = f"-{secrets.token_hex(4)}" if old or index.is_file() else ""
    weight_map: dict[str, str] = {}
    total = sum(array.nbytes for array in arrays.values())
    content: dict[str, Any] = {"metadata": {"total_size": total, **texts}, "weight_map": weight_map}
    try:
        for number, names in enumerate(groups, start=1):
            shard = f"{path.stem}{token}-{number:05}-of-{len(groups):05}{path.suffix}"
            write({name: arrays[name] for name in names}, path.with_name(shard))
            weight_map.update(dict.fromkeys(names, shard))
        write_text(index, json.dumps(content, indent=2) + "\n")
    except BaseException:
        for shard in set(weight_map.values()):
            path.with_name(shard).unlink(missing_ok=True)
        raise
    for file in old:
        file.unlink(missing_ok=True)


def remove_shards(path: Path) -> None:
    """Remove an index, and its shards, in whose place the file `path` was written."""
    index = index_of(path)
    if index.is_file():
        old = [file for file in _old_files(path, index) if file != path]
        index.unlink()
        for file in old:
            file.unlink(missing_ok=True)


def _groups(arrays: Mapping[str, np.ndarray], limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    size = 0
    for name, array in arrays.items():
        if not groups or size + array.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += array.nbytes
    return groups


def _old_files(path: Path, index: Path) -> list[Path]:
    """What the new model replaces; of what an index names only files that are called like shards"""
    old = [path] if path.is_file() else []
    if index.is_file():
        stem, suffix = re.escape(path.stem), re.escape(path.suffix)
        shard = re.compile(rf"{stem}(-[0-9a-f]{{8}})?-\d{{5}}-of-\d{{5}}{suffix}")
        with contextlib.suppress(FileFormatError):
            names = sorted(set(_parse_index(index)[0].values()))
            old += [path.with_name(name) for name in names if shard.fullmatch(name)]
    return old
