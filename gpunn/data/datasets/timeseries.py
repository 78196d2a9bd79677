"""Time series in the .ts files of the UEA archive; the Japanese vowels that ship with sktime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gpunn.data.datasets.packaged import package_file


def read_ts(path: str | os.PathLike[str]) -> tuple[list[np.ndarray], list[str]]:
    """Labelled time series from a .ts file, the format of the UEA and UCR archives.

    Lines that begin with ``#`` are comments; the header's lines begin with ``@`` and end with
    ``@data``. Each line after it is a series: its dimensions one after the other with ``:`` between
    them, the values of a dimension with commas, and behind the last ``:`` the class label, if the
    header says ``@classLabel true`` and the labels that there are. ``?`` is a missing value.

    Returns
    -------
    series : float32 (length, dimensions) each; missing values are NaN
    labels : the text of each label; empty without class labels

    FileNotFoundError; ValueError, with the number of the line, for what does not fit the format,
    and for values with time stamps, which are not read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    series: list[np.ndarray] = []
    labels: list[str] = []
    header: dict[str, str] = {}
    begun = False
    text = path.read_text("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        line, place = line.strip(), f"{path}, line {number}"
        if not line or line.startswith("#"):
            continue
        if not begun:
            if not line.startswith("@"):
                raise ValueError(f"{place}: expected a line of the header, which begins with @")
            name, _, value = line[1:].partition(" ")
            header[name.lower()] = value.strip()
            begun = name.lower() == "data"
            if begun and header.get("timestamps", "false").lower() == "true":
                raise ValueError(f"{place}: series with time stamps are not read")
            continue
        known = header.get("classlabel", "false").split()
        values = line.split(":")
        if known and known[0].lower() == "true":
            labels.append(values.pop().strip())
            if labels[-1] not in known[1:]:
                expected = ", ".join(known[1:])
                raise ValueError(f"{place}: the label is {labels[-1]!r}; expected {expected}")
        series.append(_series(values, header.get("dimensions"), place))
    if not series:
        problem = "holds no series" if begun else "has no line @data"
        raise ValueError(f"{path} {problem}; is it a .ts file, and whole?")
    return series, labels


def _series(texts: list[str], dimensions: str | None, place: str) -> np.ndarray:
    """The dimensions of one series, side by side."""
    if dimensions is not None and str(len(texts)) != dimensions:
        raise ValueError(f"{place}: {len(texts)} dimensions; the header says {dimensions}")
    columns: list[list[float]] = []
    for number, text in enumerate(texts, 1):
        try:
            column = [float("nan" if v.strip() == "?" else v) for v in text.split(",")]
        except ValueError as error:
            raise ValueError(f"{place}, dimension {number}: {error}") from None
        if columns and len(column) != len(columns[0]):
            raise ValueError(
                f"{place}: dimension {number} has {len(column)} values, the first "
                f"{len(columns[0])}; is the line cut off?"
            )
        columns.append(column)
    return np.array(columns, np.float32).T


def load_japanese_vowels() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Nine men say the vowels /ae/: 640 utterances, and who spoke, in the official split.

    Returns
    -------
    train, test : of 270 and 370 utterances, each (x, lengths, y). x, float32 (utterances, 29,
        12), has for every frame of 6.4 ms twelve LPC cepstrum coefficients, without unit;
        utterances have 7 to 29 frames, zeros fill the rest. lengths, int64 (utterances,), are their
        frames. y, int64 (utterances,), is the speaker, 0 to 8; 30 utterances of each in `train`, 24
        to 88 in `test`

    ImportError, saying what to install, without sktime (which is not imported). Source: M. Kudo, J.
    Toyama, M. Shimbo, Multidimensional curve classification using passing-through regions, Pattern
    Recognition Letters 20 (1999), as in the UCI Machine Learning Repository (CC BY 4.0) and the UEA
    archive; packaged by sktime (BSD-3).
    """
    return _vowels("TRAIN"), _vowels("TEST")


def _vowels(part: str) -> tuple[np.ndarray, ...]:
    name = "JapaneseVowels"
    series, labels = read_ts(package_file("sktime", f"datasets/data/{name}/{name}_{part}.ts"))
    lengths = np.array([len(one) for one in series])
    x = np.zeros((len(series), 29, 12), np.float32)
    for row, one in zip(x, series, strict=True):
        row[: len(one)] = one
    return x, lengths, np.array([int(label) - 1 for label in labels])
