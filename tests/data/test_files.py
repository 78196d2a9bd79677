"""Reading samples from files: every accepted form, and a sentence for every other."""

import numpy as np
import pytest

from gpunn.data import read_samples

X = np.arange(12, dtype=np.float64).reshape(3, 4)


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X.reshape(3, 2, 2))
    np.save(tmp_path / "c.npy", X[1])
    np.save(tmp_path / "d.npy", X[1].reshape(2, 2).astype(np.uint8))
    for name, expected in (("a", X), ("b", X), ("c", X[1:2]), ("d", X[1:2])):
        samples = read_samples(tmp_path / f"{name}.npy", (2, 2))
        assert np.array_equal(samples.x, expected) and samples.x.dtype == np.float32
        assert samples.y is None


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, labels=[0, 1, 2])
    samples = read_samples(tmp_path / "a.npz", (4,), classes=3, need_labels=True)
    assert np.array_equal(samples.x, X) and samples.y.tolist() == [0, 1, 2]
    np.savez(tmp_path / "b.npz", anything=X)
    assert read_samples(tmp_path / "b.npz", (4,)).y is None
    np.savez(tmp_path / "c.npz", one=X, two=X)
    with pytest.raises(ValueError, match="one, two.*name the one"):
        read_samples(tmp_path / "c.npz", (4,))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_text(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    rows = [delimiter.join(map(str, row)) for row in X]
    path.write_text("\n".join(rows) + "\n\n")
    assert np.array_equal(read_samples(path, (4,)).x, X)
    path.write_text("﻿" + delimiter.join("abcd") + "\r\n" + "\r\n".join(rows), "utf-8")
    assert np.array_equal(read_samples(path, (4,)).x, X)


def test_text_with_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Label,a,b\n1,0.5,2\n0,1.5,3\n")
    samples = read_samples(path, (2,))
    assert samples.x.tolist() == [[0.5, 2.0], [1.5, 3.0]] and samples.y.tolist() == [1, 0]
    path.write_text("0.5,2,1\n1.5,3,0\n")
    assert read_samples(path, (2,), need_labels=True).y.tolist() == [1, 0]
    with pytest.raises(ValueError, match="2 samples of 3 features came.*expects 2"):
        read_samples(path, (2,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,b\n", "header and no rows"),
        ("1,2\n3\n", "line 2: 1 cells, the lines before have 2"),
        ("1,2\n3,x\n", "line 2, column 2: 'x' is not a number"),
        ("1,2\n3,nan\n", "sample 2, feature 2 is nan"),
        ("1,2,3\n", "1 samples of 3 features came"),
        ("label,a,b\n1.5,1,2\n", "label of sample 1 is 1.5; expected integers from 0 to 2"),
        ("label,a,b\n3,1,2\n", "label of sample 1 is 3"),
    ],
)
def test_text_refused(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_samples(path, (2,), classes=3)


def test_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_samples(tmp_path / "none.npy", (4,))
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match="'.xlsx' is not known"):
        read_samples(tmp_path / "a.xlsx", (4,))
    np.save(tmp_path / "o.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
        read_samples(tmp_path / "o.npy", (4,))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match="cannot be read"):
        read_samples(tmp_path / "broken.npz", (4,))
    (tmp_path / "half.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(ValueError, match="cannot be read"):
        read_samples(tmp_path / "half.npy", (4,))
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(ValueError, match="UTF-8"):
        read_samples(tmp_path / "latin.csv", (2,))
    np.save(tmp_path / "s.npy", np.array(["a", "b"]))
    with pytest.raises(ValueError, match="expected numbers"):
        read_samples(tmp_path / "s.npy", (2,))
    np.save(tmp_path / "e.npy", np.zeros((0, 4)))
    with pytest.raises(ValueError, match="at least one sample"):
        read_samples(tmp_path / "e.npy", (4,))
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match="has no labels"):
        read_samples(tmp_path / "x.npy", (4,), need_labels=True)
    np.savez(tmp_path / "y.npz", x=X, y=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="one class number for each of the 3"):
        read_samples(tmp_path / "y.npz", (4,), need_labels=True)
