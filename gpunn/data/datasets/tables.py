"""Tables of measurements: the breast cancer of Wisconsin."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from gpunn.data.datasets.packaged import package_file
from gpunn.data.files import csv_rows
from gpunn.errors import FileFormatError

_MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)
BREAST_CANCER_FEATURES = tuple(
    pattern.format(measure)
    for pattern in ("mean {}", "{} error", "worst {}")
    for measure in _MEASURES
)


def load_breast_cancer(path: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer of Wisconsin: 569 tumours, measured under the microscope, and the diagnosis.

    Parameters
    ----------
    path : the official file wdbc.data of the UCI repository; None takes the copy that ships with
        scikit-learn, without importing it

    Returns
    -------
    x : float32 (569, 30): of ten properties of the cells' nuclei in an image of a fine-needle
        aspirate the mean, the standard error and the mean of the three largest values ("worst"),
        named by ``gpunn.data.BREAST_CANCER_FEATURES``. Lengths are in pixels of that image; texture
        is the standard deviation of grey levels; the other properties have no unit
    y : int64 (569,): 1 malignant (212), 0 benign (357). scikit-learn has them the other way round;
        here the class 1 is what is looked for

    ImportError, saying what to install, if scikit-learn is missing; FileNotFoundError;
    FileFormatError, naming the line. Source: W. Wolberg, W. Street, O. Mangasarian, Breast Cancer
    Wisconsin (Diagnostic), UCI Machine Learning Repository, 1995, CC BY 4.0, as packaged by
    scikit-learn (BSD-3).
    """
    if path is None:
        packaged = package_file("sklearn", "datasets/data/breast_cancer.csv", "scikit-learn")
        return _read(packaged, header=True)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _read(path, header=False)


def _read(path: Path, header: bool) -> tuple[np.ndarray, np.ndarray]:
    """The copy of scikit-learn, with a `header` and the diagnosis (0, 1) last; or wdbc.data."""
    before = 0 if header else 2  # columns before the measurements: identity, diagnosis
    diagnosis, codes = (-1, {"0": 1, "1": 0}) if header else (1, {"M": 1, "B": 0})
    width = len(BREAST_CANCER_FEATURES) + (1 if header else 2)
    x, y = [], []
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}, byte {error.start}: this is not a text file") from None
    for number, row in csv_rows(path, text):
        if header and number == 1:
            continue
        if len(row) != width:
            raise FileFormatError(f"{path}, line {number}: {len(row)} cells; expected {width}")
        label = codes.get(row[diagnosis].strip())
        if label is None:
            raise FileFormatError(
                f"{path}, line {number}: the diagnosis is {row[diagnosis]!r}; expected one of "
                f"{', '.join(codes)}"
            )
        cells = row[before : before + len(BREAST_CANCER_FEATURES)]
        x.append([_number(path, number, before + at, cell) for at, cell in enumerate(cells, 1)])
        y.append(label)
    if not y:
        raise FileFormatError(f"{path} has no rows")
    return np.array(x, np.float32), np.array(y, np.int64)


def _number(path: Path, line: int, column: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FileFormatError(f"{path}, line {line}, column {column}: {cell!r} is not a number")
    return value
