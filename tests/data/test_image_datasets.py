"""IDX files and the binary version of CIFAR: read to the byte, and a sentence for what is wrong."""

import gzip
import struct

import numpy as np
import pytest

from gpunn.data import load_cifar10, load_cifar100, load_fashion_mnist, load_mnist, read_idx
from gpunn.errors import FileFormatError

CODES = {">u1": 8, ">i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx_bytes(array):
    """The array in the official format."""
    kind = array.dtype.newbyteorder(">").str.replace("|", ">")
    head = struct.pack(">BBBB", 0, 0, CODES[kind], array.ndim)
    lengths = struct.pack(f">{array.ndim}I", *array.shape)
    return head + lengths + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder, count, part, size=28, ending=""):
    """So many images and labels, and what they are."""
    rng = np.random.default_rng(count)
    x = rng.integers(0, 256, (count, size, size)).astype(np.uint8)
    y = (np.arange(count) % 10).astype(np.uint8)
    pack = gzip.compress if ending else bytes
    (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(idx_bytes(x)))
    (folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(idx_bytes(y)))
    return x, y


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_every_type_of_idx(tmp_path, dtype):
    array = (np.arange(-6, 18).reshape(2, 3, 4) * (1.5 if dtype[0] == "f" else 1)).astype(dtype)
    for data in (idx_bytes(array), gzip.compress(idx_bytes(array))):
        (tmp_path / "a").write_bytes(data)
        found = read_idx(tmp_path / "a")
        assert found.dtype == np.dtype(dtype) and np.array_equal(found, array)
        found[0] = 0  # it can be written to


def test_idx_against_bytes_written_by_hand(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 11, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 255, 254]))
    assert read_idx(tmp_path / "a").tolist() == [[256, -2]]


GOOD = idx_bytes(np.arange(6, dtype=np.int16).reshape(2, 3))


def gzipped(data):
    """Without the time of day: the bytes are in the names of tests, which are collected twice."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "byte 0 to 3 are not there"),
        (b"\x89PNG\r\n", "begins with two bytes 0.*byte 0 to 3 are 89 50 4e 47"),
        (b"\0\0\x0a\x01", "byte 2, the type of the numbers, is 0x0a; known are 0x08, 0x09, 0x0b"),
        (GOOD[:9], "ends at byte 9, within the lengths of its 2 axes"),
        (GOOD[:-1], r"ends at byte 23; an array of shape \(2, 3\) would go on to 24.*cut off"),
        (GOOD + b"x", "goes on after byte 24"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"1", "ends at byte 17.*shape .4294967295, "),
        (gzipped(GOOD)[:-9], "compressed data are damaged or cut off near byte"),
        (gzipped(GOOD)[:-6] + b"abcdef", "compressed data are damaged"),
        (gzipped(GOOD[:-2]), "ends at uncompressed byte 22"),
        (gzipped(GOOD + b"x"), "goes on after uncompressed byte 24"),
    ],
)
def test_wrong_idx(tmp_path, data, words):
    (tmp_path / "wrong").write_bytes(data)
    with pytest.raises(FileFormatError, match=f"wrong.*{words}"):
        read_idx(tmp_path / "wrong")


@pytest.mark.parametrize("load", [load_mnist, load_fashion_mnist])
def test_mnist(tmp_path, load):
    x, y = write_mnist(tmp_path, 12, "train", ending=".gz")
    test_x, test_y = write_mnist(tmp_path, 11, "t10k")
    for split, images, labels in (("train", x, y), ("test", test_x, test_y)):
        found, classes = load(tmp_path, split)
        assert found.shape == (len(labels), 1, 28, 28) and found.dtype == np.uint8
        assert np.array_equal(found[:, 0], images)
        assert classes.dtype == np.int64 and np.array_equal(classes, labels)


def test_mnist_under_the_names_of_some_archives(tmp_path):
    x, _ = write_mnist(tmp_path, 10, "train", size=4)
    for kind in ("images", "labels"):
        (path,) = tmp_path.glob(f"*{kind}*")
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert np.array_equal(load_mnist(tmp_path)[0][:, 0], x)


def test_wrong_mnist(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_mnist(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no file train-images-idx3-ubyte; it has no files"):
        load_mnist(tmp_path)
    with pytest.raises(ValueError, match="load_mnist: split is 'valid'; expected 'train' or 'te"):
        load_mnist(tmp_path, "valid")
    write_mnist(tmp_path, 12, "train", 2)
    images, labels = (tmp_path / f"train-{k}-ubyte" for k in ("images-idx3", "labels-idx1"))
    good = labels.read_bytes()
    labels.write_bytes(idx_bytes(np.zeros(11, np.uint8)))
    with pytest.raises(FileFormatError, match="12 images.*11 labels"):
        load_mnist(tmp_path)
    labels.write_bytes(good[:8] + b"\1\2\x0a" + good[11:])
    with pytest.raises(FileFormatError, match="labels-idx1-ubyte, byte 10: the label of sample 2"):
        load_mnist(tmp_path)
    labels.write_bytes(idx_bytes(np.zeros((12, 1), np.uint8)))
    with pytest.raises(FileFormatError, match=r"shape \(12, 1\); expected labels"):
        load_mnist(tmp_path)
    images.write_bytes(idx_bytes(np.zeros((12, 4), np.uint8)))
    with pytest.raises(FileFormatError, match=r"shape \(12, 4\); expected images"):
        load_mnist(tmp_path)


def cifar_bytes(x, *labels):
    """Records of labels and pixels, the red plane first."""
    return b"".join(bytes([*ls]) + i.tobytes() for i, *ls in zip(x, *labels, strict=True))


def test_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (18, 3, 32, 32)).astype(np.uint8)
    y = np.arange(18) % 10
    for number in range(5):
        part = slice(3 * number, 3 * number + 3)
        (folder / f"data_batch_{number + 1}.bin").write_bytes(cifar_bytes(x[part], y[part]))
    (folder / "test_batch.bin").write_bytes(cifar_bytes(x[15:], y[15:]))
    for given in (folder, tmp_path, str(tmp_path)):
        found, labels = load_cifar10(given)
        assert np.array_equal(found, x[:15]) and found.dtype == np.uint8
        assert np.array_equal(labels, y[:15]) and labels.dtype == np.int64
    assert np.array_equal(load_cifar10(tmp_path, "test")[0], x[15:])


def test_cifar100(tmp_path):
    x = np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    coarse, fine = np.array([0, 19, 3, 4]), np.array([99, 0, 50, 7])
    (tmp_path / "test.bin").write_bytes(cifar_bytes(x, coarse, fine))
    found, labels = load_cifar100(tmp_path, "test")
    assert np.array_equal(found, x) and np.array_equal(labels, fine)
    assert np.array_equal(load_cifar100(tmp_path, "test", coarse=True)[1], coarse)
    (tmp_path / "test.bin").write_bytes(cifar_bytes(x, coarse, fine + 1))
    with pytest.raises(FileFormatError, match="byte 1: the label of sample 0 is 100; expected 0 t"):
        load_cifar100(tmp_path, "test")


def test_wrong_cifar(tmp_path):
    x = np.zeros((2, 3, 32, 32), np.uint8)
    path = tmp_path / "test_batch.bin"
    for data, words in (
        (b"", "ends at byte 0; .* records of 3073 bytes, .* at byte 3073"),
        (cifar_bytes(x, [1, 2])[:-5], "ends at byte 6141; .* at byte 6146"),
        (cifar_bytes(x, [1, 12]), "byte 3073: the label of sample 1 is 12; expected 0 to 9"),
    ):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=f"test_batch.bin.*{words}"):
            load_cifar10(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"no file data_batch_1.bin; it has test_batch.bin"):
        load_cifar10(tmp_path)
    path.unlink()
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(FileNotFoundError, match="pickled version.*take the binary version"):
        load_cifar10(tmp_path)
