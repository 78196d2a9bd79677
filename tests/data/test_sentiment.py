"""Tweets and film reviews: what ships, and files in the official formats, right and wrong."""

import numpy as np
import pytest

from gpunn.data import TWEET_CLASSES, load_imdb, load_tweets
from gpunn.data.datasets.sentiment import read_tweets
from gpunn.errors import FileFormatError

HEADER = b"sentiment,confidence,text\r\n"


def test_the_tweets_that_ship():
    texts, y = load_tweets()
    assert len(texts) == len(y) == 38_158 and y.dtype == np.int64
    assert np.bincount(y).tolist() == [16_186, 15_018, 6_954]
    assert texts[1] == "self-driving cars just seem lazy and a waste of money"
    assert TWEET_CLASSES[y[1]] == "negative"
    everything = "".join(texts)
    assert everything.count("’") > 800 and everything.count("“") > 1000
    assert sum("\ufffd" in text for text in texts) < 2500
    kept = set(everything) - set("’‘“”…\ufffd")
    assert max(map(ord, kept)) < 128


def test_a_table_of_tweets(tmp_path):
    path = tmp_path / "tweets.csv"
    path.write_bytes(
        HEADER
        + b"positive,1,can\xe4\xf3\xbbt wait_a bit\r\n"
        + b'neutral,,"\xd5\xa2_\x8a\xce\x81\xd0one, ""two""\rthree\x8a\x97\x9d"\r\n'
        + b"negative,0.5,so sad _\xf4\xd6\x89_\xf4\xd6_ now_\r\n"
    )
    texts, y = read_tweets(path)
    assert texts == ["can’t wait_a bit", '“one, "two"\rthree”', "so sad \ufffd now_"]
    assert y.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"tweets\.csv: the first line"),
        (b"text,label\r\n", r"tweets\.csv: the first line"),
        (HEADER, "no tweets"),
        (HEADER + b"positive,1,a\r\nhappy,1,b\r\n", r"tweets\.csv, line 3: .*'happy,1,b'"),
        (HEADER + b"positive,1\r\n", "line 2: .*got 2 cells"),
        (HEADER + b'positive,1,"a', r"tweets\.csv, line 2: unexpected end"),
    ],
)
def test_tables_that_are_none(tmp_path, content, said):
    path = tmp_path / "tweets.csv"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=said):
        read_tweets(path)


@pytest.fixture
def reviews(tmp_path):
    for split in ("train", "test"):
        for kind, stars in (("neg", (1, 4)), ("pos", (10, 7))):
            folder = tmp_path / "aclImdb" / split / kind
            folder.mkdir(parents=True)
            for number, given in zip((10, 9), stars, strict=True):
                text = f"{split} {kind} {number}<br />é"
                (folder / f"{number}_{given}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "aclImdb" / "train" / "urls_pos.txt").write_text("http://…")
    return tmp_path / "aclImdb"


def test_reviews(reviews):
    texts, y, stars = load_imdb(reviews)
    assert texts == [f"train {kind} {n}<br />é" for kind in ("neg", "pos") for n in (9, 10)]
    assert y.tolist() == [0, 0, 1, 1] and stars.tolist() == [4, 1, 7, 10]
    assert load_imdb(str(reviews), "test")[0][0] == "test neg 9<br />é"


def test_reviews_that_are_wrong(reviews):
    with pytest.raises(ValueError, match="'valid'"):
        load_imdb(reviews, "valid")
    with pytest.raises(FileNotFoundError, match=r"pos.train.neg; give the folder aclImdb"):
        load_imdb(reviews / "train" / "pos")
    folder = reviews / "train" / "pos"
    for name, content, said in (
        ("11_5.txt", b"so so", r"11_5\.txt: 5 stars; pos has 7 to 10"),
        ("notes.txt", b"mine", r"notes\.txt: expected a name like"),
        ("12_8.txt", b"ab\xff", r"12_8\.txt: byte 2 is not UTF-8"),
        ("12_8.txt", b" \n", r"12_8\.txt is empty"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=said):
            load_imdb(reviews)
        (folder / name).unlink()
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"pos has no reviews"):
        load_imdb(reviews)
