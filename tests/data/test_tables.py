"""Breast cancer of Wisconsin: the packaged copy and the official file."""

import numpy as np
import pytest

from gpunn.data import BREAST_CANCER_FEATURES, load_breast_cancer
from gpunn.errors import FileFormatError


def test_the_packaged_copy_is_that_of_scikit_learn():
    from sklearn.datasets import load_breast_cancer as load

    x, y = load_breast_cancer()
    expected = load()
    assert x.dtype == np.float32 and y.dtype == np.int64
    assert np.array_equal(x, expected.data.astype(np.float32))
    assert np.array_equal(y == 1, expected.target_names[expected.target] == "malignant")
    assert list(BREAST_CANCER_FEATURES) == list(expected.feature_names)


def row(name, diagnosis, cells):
    return ",".join([name, diagnosis, *map(str, cells)])


def test_the_official_file(tmp_path):
    path = tmp_path / "wdbc.data"
    cells = np.arange(60).reshape(2, 30) / 4
    path.write_text(f"{row('842302', 'M', cells[0])}\n{row('9', 'B', cells[1])}\n\n")
    x, y = load_breast_cancer(path)
    assert np.array_equal(x, cells) and y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "wdbc.data has no rows"),
        ([row("1", "M", range(29))], "line 1: 31 cells; expected 32"),
        ([row("1", "M", range(30)), row("2", "X", range(30))], "line 2: the diagnosis is 'X'; exp"),
        ([row("1", "B", ["1", "?", *range(28)])], "line 1, column 4: '\\?' is not a number"),
        ([row("1", "B", [*range(29), "nan"])], "line 1, column 32: 'nan' is not a number"),
    ],
)
def test_wrong_files(tmp_path, lines, words):
    path = tmp_path / "wdbc.data"
    path.write_text("\n".join(lines))
    with pytest.raises(FileFormatError, match=words):
        load_breast_cancer(path)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_breast_cancer(tmp_path / "none")
    (tmp_path / "a").write_bytes(b"1,M,\xff")
    with pytest.raises(FileFormatError, match="byte 4: this is not a text file"):
        load_breast_cancer(tmp_path / "a")
