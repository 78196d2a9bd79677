"""Sparse matrices: made dense a batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.data import Dataset


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse matrix or array of SciPy."""
    return hasattr(x, "toarray")


def dense(x: Any) -> np.ndarray:
    """x as a NumPy array."""
    return x.toarray() if is_sparse(x) else x


class SparseRows(Dataset):
    """Samples that are rows of a sparse matrix in CSR form, with their targets."""

    def __init__(self, x: Any, target: np.ndarray):
        self.x, self.target = x, target

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self.x[[index]].toarray()[0], self.target[index]

    def take(self, indices: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """The samples at `indices`, dense."""
        return self.x[indices].toarray(), self.target[indices]
