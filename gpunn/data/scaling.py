"""`Normalizer`: shift and scale features by statistics of the training data."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.autograd.tensor import raw_array
from gpunn.device import device_of, to_device, to_numpy


class Normalizer:
    """Give features mean 0 and standard deviation 1: ``(x - mean) / scale``.

    Parameters
    ----------
    per_feature : one mean and one scale for each column (of the trailing shape of x); False takes
        one pair for all of x, which suits images, whose pixels share one unit

    Attributes
    ----------
    mean, scale : float64 arrays, of shape ``x.shape[1:]``, or () if not per_feature. `scale` is the
        population standard deviation; where a column is constant it is 1.

    Fit it on the training data only: statistics of the test data would leak into training.
    """

    def __init__(self, per_feature: bool = True):
        self.per_feature = bool(per_feature)
        self.mean: Any = None
        self.scale: Any = None

    def fit(self, x: Any) -> Normalizer:
        """Take the statistics of `x`, of shape (samples, …).

        ValueError if `x` is empty or holds NaN or infinity.
        """
        values = to_numpy(raw_array(x)).astype(np.float64)
        if values.ndim == 0 or values.size == 0:
            raise ValueError(f"Normalizer.fit: x has shape {values.shape}; give at least one row")
        if not np.isfinite(values).all():
            raise ValueError("Normalizer.fit: x holds NaN or infinity; remove or fill such rows")
        axis = 0 if self.per_feature else None
        self.mean, scale = values.mean(axis=axis), values.std(axis=axis)
        # A constant column's standard deviation can come out as rounding noise rather than 0.
        tiny = 10 * np.finfo(np.float64).eps * np.abs(self.mean)
        self.scale = np.where(scale > tiny, scale, 1.0)
        self.mean = np.asarray(self.mean)
        return self

    def transform(self, x: Any) -> Any:
        """``(x - mean) / scale`` where x lives: float32, or float64 for float64 input.

        RuntimeError before `fit`; ValueError if the trailing shape differs from the fitted one.
        """
        x, mean, scale = self._operands(x, "transform")
        return (x - mean) / scale

    def fit_transform(self, x: Any) -> Any:
        """`fit`, then `transform`."""
        return self.fit(x).transform(x)

    def inverse_transform(self, x: Any) -> Any:
        """``x * scale + mean``: back to the original units. Errors as in `transform`."""
        x, mean, scale = self._operands(x, "inverse_transform")
        return x * scale + mean

    def _operands(self, x: Any, method: str) -> Any:
        if self.mean is None or self.scale is None:
            raise RuntimeError(f"Normalizer.{method}: call fit first")
        x = raw_array(x)
        if self.mean.ndim and x.shape[1:] != self.mean.shape:
            raise ValueError(
                f"Normalizer.{method}: x has shape {x.shape}; it was fitted on samples of shape "
                f"{self.mean.shape}"
            )
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        place = device_of(x)
        mean = to_device(np.asarray(self.mean, dtype), place)
        return x.astype(dtype), mean, to_device(np.asarray(self.scale, dtype), place)

    def state_dict(self) -> dict[str, np.ndarray]:
        """``{"mean": …, "scale": …}``, for `gpunn.io.save`."""
        if self.mean is None or self.scale is None:
            raise RuntimeError("Normalizer.state_dict: call fit first")
        return {"mean": self.mean, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the statistics that `state_dict` gave. ValueError if they are not usable."""
        if set(state) != {"mean", "scale"}:
            raise ValueError(f"Normalizer: expected the arrays mean and scale, got {sorted(state)}")
        arrays = {
            name: np.array(to_numpy(raw_array(value)), np.float64) for name, value in state.items()
        }
        if arrays["mean"].shape != arrays["scale"].shape or not np.all(arrays["scale"] > 0):
            raise ValueError("Normalizer: mean and scale differ in shape, or a scale is not > 0")
        self.mean, self.scale = arrays["mean"], arrays["scale"]
        self.per_feature = arrays["mean"].ndim > 0
