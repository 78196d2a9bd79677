"""Reading samples from files: .npy, .npz and .csv, checked against what a model expects."""

from __future__ import annotations

import csv
import io
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpunn.errors import FileFormatError

_DATA_NAMES = ("x", "data", "images", "features")
_LABEL_NAMES = ("y", "label", "labels", "target", "targets", "class")


@dataclass
class Samples:
    """Samples from a file: `x` float32 (samples, features), and `y` int64 (samples,) or None."""

    x: np.ndarray
    y: np.ndarray | None


def read_samples(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    classes: int | None = None,
    need_labels: bool = False,
) -> Samples:
    """Read samples for a model that takes inputs of `shape`, such as (8, 8); returned flat.

    - .npy: one array (samples, features), (samples, *shape), or a single sample.
    - .npz: the array named x, data, images or features, or the only one; labels named y, label,
      labels, target, targets or class.
    - .csv, .tsv, .txt: one sample a row, split at commas, semicolons or tabs, with or without a
      header; a column with one of the names of labels is the labels. With `need_labels` and without
      a header, a surplus last column is the labels.

    Raises
    ------
    FileNotFoundError; ValueError, saying what came and what was expected, for another number of
    features, cells that are not finite numbers, missing or impossible labels, or another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = math.prod(shape)
    kind = path.suffix.lower()
    if kind == ".npy":
        x, y = _load_npy(path), None
    elif kind == ".npz":
        x, y = _load_npz(path)
    elif kind in (".csv", ".tsv", ".txt"):
        x, y = _load_text(path, size if need_labels else None)
    else:
        raise ValueError(f"{path}: the suffix {kind!r} is not known; use .npy, .npz or .csv")
    x = _as_rows(path, x, shape, size)
    if need_labels and y is None:
        raise ValueError(
            f"{path} has no labels; add an array y (.npz) or a column named label (.csv)"
        )
    return Samples(x, None if y is None else _as_labels(path, y, len(x), classes))


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an array of numbers: {error}") from None


def _load_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as arrays of numbers: {error}") from None
    labels = [name for name in arrays if name.lower() in _LABEL_NAMES]
    y = arrays.pop(labels[0]) if labels else None
    data = [name for name in arrays if name.lower() in _DATA_NAMES] or list(arrays)
    if len(data) != 1:
        raise ValueError(
            f"{path} holds the arrays {', '.join(arrays) or '(none)'}; "
            f"name the one with the samples x"
        )
    return arrays[data[0]], y


def _load_text(path: Path, features: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers of a text table and its labels, if a column is named so (or is one too many)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    first_line = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    rows = list(csv_rows(path, text, delimiter))
    if not rows:
        raise ValueError(f"{path} is empty")
    header = None if all(map(_is_number, rows[0][1])) else [c.strip() for c in rows.pop(0)[1]]
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    width = len(header) if header else len(rows[0][1])
    table = np.array([_numbers(path, line, row, width) for line, row in rows])
    column = None
    if header is not None:
        named = [i for i, name in enumerate(header) if name.lower() in _LABEL_NAMES]
        column = named[0] if named else None
    elif features is not None and width == features + 1:
        column = width - 1
    if column is None:
        return table, None
    return np.delete(table, column, axis=1), table[:, column]


def csv_rows(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, cells) of each row of a table that is not empty.

    FileFormatError, naming the line, where it is no table: a cell is too long to be one.
    """
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise FileFormatError(
            f"{path}, line {reader.line_num}: this is not a table: {error}"
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(path: Path, line: int, row: list[str], width: int) -> list[float]:
    if len(row) != width:
        raise ValueError(f"{path}, line {line}: {len(row)} cells, the lines before have {width}")
    try:
        return [float(cell) for cell in row]
    except ValueError:
        bad = next(number for number, cell in enumerate(row) if not _is_number(cell))
        raise ValueError(
            f"{path}, line {line}, column {bad + 1}: {row[bad]!r} is not a number"
        ) from None


def _as_rows(path: Path, x: np.ndarray, shape: tuple[int, ...], size: int) -> np.ndarray:
    expected = f"{size} ({' x '.join(map(str, shape))})" if len(shape) > 1 else str(size)
    if x.dtype.kind not in "iufb":
        raise ValueError(f"{path}: the samples have dtype {x.dtype}; expected numbers")
    if x.shape in (shape, (size,)):
        x = x.reshape(1, size)
    if x.ndim < 2 or len(x) == 0 or math.prod(x.shape[1:]) != size:
        got = math.prod(x.shape[1:]) if x.ndim > 1 else x.size
        raise ValueError(
            f"{path}: {len(x) if x.ndim else 1} samples of {got} features came (shape {x.shape}); "
            f"the model expects {expected} features a sample, and at least one sample"
        )
    with np.errstate(over="ignore"):  # a number too large for float32 is said below
        x = x.reshape(len(x), size).astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{path}: sample {row + 1}, feature {column + 1} is {x[row, column]}; "
            "fill or remove such samples"
        )
    return x


def _as_labels(path: Path, y: np.ndarray, count: int, classes: int | None) -> np.ndarray:
    if y.shape != (count,) or y.dtype.kind not in "iufb":
        raise ValueError(
            f"{path}: labels of shape {y.shape} and dtype {y.dtype} came; "
            f"expected one class number for each of the {count} samples"
        )
    labels = y.astype(np.int64)
    wrong = labels != y
    if classes is not None:
        wrong |= (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = "integers" if classes is None else f"integers from 0 to {classes - 1}"
        raise ValueError(
            f"{path}: the label of sample {row + 1} is {y[row]:g}; expected {expected}"
        )
    return labels
