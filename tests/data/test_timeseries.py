"""The .ts format, and the Japanese vowels in it."""

import numpy as np
import pytest

from gpunn.data import load_japanese_vowels, read_ts

HEADER = (
    "# a comment\n@problemName T\n@timeStamps false\n@dimensions 2\n@classLabel true a b\n@data\n"
)


def ts(tmp_path, text):
    """A file of this text."""
    path = tmp_path / "t.ts"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def test_read_ts(tmp_path):
    series, labels = read_ts(ts(tmp_path, HEADER + "1,2.5,-3:4,?,6e1:b\n\n7:8:a\n"))
    assert labels == ["b", "a"] and series[0].dtype == np.float32
    expected = [[1, 4], [2.5, np.nan], [-3, 60]]
    np.testing.assert_array_equal(series[0], np.array(expected, np.float32))
    assert series[1].tolist() == [[7, 8]]
    unlabelled = "@univariate true\n@classLabel false\n@data\n1,2,3\n"
    series, labels = read_ts(ts(tmp_path, unlabelled))
    assert labels == [] and series[0].tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "1,2:3,4:c\n", r"t\.ts, line 7: the label is 'c'; expected a, b"),
        (HEADER + "1,2:3,4:5,6:a\n", "line 7: 3 dimensions; the header says 2"),
        (HEADER + "1,2:3,4:a\n1,2:3:a\n", "line 8: dimension 2 has 1 values, the first 2"),
        (HEADER + "1,x:3,4:a\n", "line 7, dimension 1: could not convert.*'x'"),
        (HEADER, "holds no series"),
        ("\ufeff@data\n1\udcff\n", "line 2, dimension 1: could not convert"),
        ("1,2,3\n", "line 1: expected a line of the header"),
        ("@problemName T\n", "has no line @data"),
        (HEADER.replace("Stamps false", "Stamps true"), "line 6: series with time stamps"),
    ],
)
def test_read_ts_refuses(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_ts(ts(tmp_path, text))


def test_japanese_vowels():
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_ts("nowhere.ts")
    train, test = load_japanese_vowels()
    for (x, lengths, y), counts in (
        (train, [30] * 9),
        (test, [31, 35, 88, 44, 29, 24, 40, 50, 29]),
    ):
        assert x.shape == (sum(counts), 29, 12) and x.dtype == np.float32
        assert np.bincount(y).tolist() == counts and y.dtype == np.int64
        past = np.arange(29) >= lengths[:, None]
        assert not x[past].any() and x[~past].any(1).all() and lengths.dtype == np.int64
        assert 7 <= lengths.min() and lengths.max() <= 29
    x, lengths, _ = train  # the first line of the file
    assert lengths[0] == 20
    assert x[0, 0, :3].tolist() == pytest.approx([1.860936, -0.207383, 0.261557])
