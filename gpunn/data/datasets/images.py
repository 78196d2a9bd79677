"""The standard sets of small images, read from the user's own copy in their official formats.

- IDX, the format of MNIST: `read_idx`, `load_mnist`, `load_fashion_mnist`.
- The binary version of CIFAR: `load_cifar10`, `load_cifar100`.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpunn.errors import FileFormatError

Images = tuple[np.ndarray, np.ndarray]

# The third byte of an IDX file. Numbers of several bytes have the highest first.
_IDX_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 22


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an IDX file, the format of MNIST, plain or compressed by gzip.

    The format: two bytes 0, one for the type of the numbers (unsigned and signed bytes, 16- and
    32-bit integers, float32, float64), one for the number of axes, four bytes for the length of
    each axis, the numbers; highest bytes first. The array has the byte order of the machine.

    FileNotFoundError; FileFormatError, naming the byte, if the file is not of this format, is cut
    off, goes on after its last number, or if its compressed data are damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as plain:
        compressed = plain.read(2) == _GZIP
        plain.seek(0)
        if not compressed:
            return _read_idx(path, plain, "byte")
        try:
            with gzip.GzipFile(fileobj=plain) as file:
                return _read_idx(path, file, "uncompressed byte")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileFormatError(
                f"{path}: the compressed data are damaged or cut off near byte {plain.tell()} "
                f"({error}); copy the file again"
            ) from None


def _read_idx(path: Path, file: IO[bytes] | gzip.GzipFile, byte: str) -> np.ndarray:
    """See `read_idx`; `byte` is what a position in the opened file counts."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise FileFormatError(
            f"{path}: an IDX file begins with two bytes 0, a type and a number of axes; "
            f"{byte} 0 to 3 are {magic.hex(' ') or 'not there'}"
        )
    dtype, axes = _IDX_TYPES.get(magic[2]), magic[3]
    if dtype is None:
        known = ", ".join(f"0x{code:02x}" for code in _IDX_TYPES)
        raise FileFormatError(
            f"{path}: {byte} 2, the type of the numbers, is 0x{magic[2]:02x}; known are {known}"
        )
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise FileFormatError(
            f"{path} ends at {byte} {4 + len(header)}, within the lengths of its {axes} axes"
        )
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    begin, size = 4 + 4 * axes, math.prod(shape) * dtype.itemsize
    data = _read_at_most(file, size + 1)
    if len(data) < size:
        raise FileFormatError(
            f"{path} ends at {byte} {begin + len(data)}; an array of shape {shape} would go on to "
            f"{begin + size}: the file is cut off, copy it again"
        )
    if len(data) > size:
        raise FileFormatError(
            f"{path} goes on after {byte} {begin + size}, where its array of shape {shape} ends"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_at_most(file: IO[bytes] | gzip.GzipFile, count: int) -> bytearray:
    """Up to `count` bytes, in pieces: a damaged length reserves no memory that is not needed."""
    data = bytearray()
    while len(data) < count and (piece := file.read(min(_CHUNK, count - len(data)))):
        data += piece
    return data


def load_mnist(folder: str | os.PathLike[str], split: str = "train") -> Images:
    """MNIST from a folder with its official files: handwritten digits of 28 x 28 pixels.

    Parameters
    ----------
    folder : holds train-images-idx3-ubyte and train-labels-idx1-ubyte, for the test split
        t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte; plain or with .gz. A dot in place of the
        hyphen before idx, as some programs unpack it, is found as well.
    split : "train" (60,000 images) or "test" (10,000)

    Returns
    -------
    x : uint8 (samples, 1, 28, 28), from 0 (paper) to 255 (ink)
    y : int64 (samples,), 0 to 9

    Kuzushiji-MNIST has files of the same names and is read as well. FileNotFoundError, naming what
    was looked for; FileFormatError as of `read_idx`, and for images and labels that do not match.
    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits (1998); CC
    BY-SA 3.0. Nothing is downloaded.
    """
    part = {"train": "train", "test": "t10k"}[_split(split, "load_mnist")]
    image_path = _find(folder, (f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte"))
    label_path = _find(folder, (f"{part}-labels-idx1-ubyte", f"{part}-labels.idx1-ubyte"))
    x, y = read_idx(image_path), read_idx(label_path)
    if x.ndim != 3 or x.dtype != np.uint8 or not x.size:
        raise FileFormatError(
            f"{image_path} holds an array of {x.dtype} of shape {x.shape}; expected images, bytes "
            f"of shape (samples, height, width)"
        )
    if y.ndim != 1 or y.dtype != np.uint8:
        raise FileFormatError(
            f"{label_path} holds an array of {y.dtype} of shape {y.shape}; expected labels, bytes "
            f"of shape (samples,)"
        )
    if len(x) != len(y):
        raise FileFormatError(
            f"{image_path} holds {len(x)} images and {label_path} {len(y)} labels; they are not of "
            f"one dataset"
        )
    _check_classes(label_path, y, 10, 8, 1)
    return x[:, None], y.astype(np.int64)


def load_fashion_mnist(folder: str | os.PathLike[str], split: str = "train") -> Images:
    """Fashion-MNIST from a folder with its official files: clothes, 28 x 28 pixels.

    Files, splits, results and errors are those of `load_mnist`. The classes, in their order:
    T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot. Source:
    H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, github.com/zalandoresearch/fashion-mnist;
    MIT licence. Nothing is downloaded.
    """
    return load_mnist(folder, _split(split, "load_fashion_mnist"))


def load_cifar10(folder: str | os.PathLike[str], split: str = "train") -> Images:
    """CIFAR-10 from a folder with its official binary version: photographs, 32 x 32 pixels.

    Parameters
    ----------
    folder : holds data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the folder
        cifar-10-batches-bin with them
    split : "train" (50,000 images) or "test" (10,000)

    Returns
    -------
    x : uint8 (samples, 3, 32, 32), red, green and blue
    y : int64 (samples,), 0 to 9: airplane, automobile, bird, cat, deer, dog, frog, horse, ship,
        truck

    FileNotFoundError, naming what was looked for (and the pickled version, which is not read, if
    that is there); FileFormatError, naming the byte, for a file that is cut off or a label above 9.
    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009,
    www.cs.toronto.edu/~kriz/cifar.html, which states no licence. Nothing is downloaded.
    """
    names = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
    folder = _unpacked(folder, "cifar-10-batches-bin", "data_batch_1")
    parts = [
        _read_cifar(_find(folder, (name,)), 10) for name in names[_split(split, "load_cifar10")]
    ]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y[:, 0] for _, y in parts])


def load_cifar100(
    folder: str | os.PathLike[str], split: str = "train", coarse: bool = False
) -> Images:
    """CIFAR-100 from a folder with its official binary version: train.bin and test.bin.

    `folder` may also hold the folder cifar-100-binary with them. Results and errors are those of
    `load_cifar10`, the labels 0 to 99, or with `coarse` those of the 20 groups of classes. Nothing
    is downloaded.
    """
    folder = _unpacked(folder, "cifar-100-binary", "train")
    x, y = _read_cifar(_find(folder, (f"{_split(split, 'load_cifar100')}.bin",)), 20, 100)
    return x, np.ascontiguousarray(y[:, 0 if coarse else 1])


def _read_cifar(path: Path, *classes: int) -> Images:
    """Images and their labels (samples, kinds of labels), of so many `classes` of each kind."""
    labels = len(classes)
    record = labels + 3 * 32 * 32
    data = np.fromfile(path, np.uint8)
    if not data.size or data.size % record:
        raise FileFormatError(
            f"{path} ends at byte {data.size}; the binary version of CIFAR has records of {record} "
            f"bytes, the last of which would end at byte {-(-max(data.size, 1) // record) * record}"
        )
    rows = data.reshape(-1, record)
    for column, count in enumerate(classes):
        _check_classes(path, rows[:, column], count, column, record)
    x = rows[:, labels:].reshape(-1, 3, 32, 32)
    return x, rows[:, :labels].astype(np.int64)


def _check_classes(path: Path, labels: np.ndarray, classes: int, begin: int, step: int) -> None:
    """The label of sample i is at byte ``begin + i step``. FileFormatError if it is no class."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        first = int(wrong[0])
        raise FileFormatError(
            f"{path}, byte {begin + first * step}: the label of sample {first} is {labels[first]}; "
            f"expected 0 to {classes - 1}"
        )


def _split(split: str, function: str) -> str:
    if split not in ("train", "test"):
        raise ValueError(f"{function}: split is {split!r}; expected 'train' or 'test'")
    return split


def _unpacked(folder: str | os.PathLike[str], inside: str, pickled: str) -> Path:
    """`folder`, or the one `inside` it. FileNotFoundError if it has the pickled version."""
    folder = Path(folder)
    if (folder / inside).is_dir():
        folder = folder / inside
    if (folder / pickled).is_file() and not (folder / f"{pickled}.bin").is_file():
        raise FileNotFoundError(
            f"{folder} holds the pickled version of CIFAR ({pickled}), which could run any code; "
            f"take the binary version, whose files end with .bin"
        )
    return folder


def _find(folder: str | os.PathLike[str], names: tuple[str, ...]) -> Path:
    """The first of `names` that there is in `folder`, as it is or with .gz."""
    folder = Path(folder)
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    there = sorted(path.name for path in folder.iterdir())[:6]
    raise FileNotFoundError(
        f"{folder} has no file {names[0]}; it has {', '.join(there) or 'no files'}. Put the "
        f"official files there; nothing is downloaded"
    )
