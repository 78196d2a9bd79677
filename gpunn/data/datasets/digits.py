"""The handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Real handwritten digits: 1797 images of 8 x 8 pixels, and which digit each shows.

    Returns
    -------
    x : float32 (1797, 64), grey levels from 0 (paper) to 16 (ink), row by row
    y : int64 (1797,), 0 to 9

    ImportError, saying what to install, if scikit-learn is missing. Source: E. Alpaydin, C. Kaynak,
    Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998), test part,
    as packaged by scikit-learn (BSD-3).
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed; "
            "run: pip install scikit-learn"
        ) from error
    x, y = load(return_X_y=True)
    return x.astype(np.float32), y.astype(np.int64)
