"""Images in another size: nearest pixel, linear interpolation, means of areas."""

from __future__ import annotations

import math
from typing import Any

from gpunn.autograd.aliases import Size
from gpunn.autograd.functions import pooling
from gpunn.autograd.functions.pooling import ImageFunction
from gpunn.autograd.tensor import Tensor
from gpunn.primitives.resize import resize_backward, resize_forward

_LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3}  # spatial dimensions of each
MODES = ("nearest", "nearest-exact", *_LINEAR, "area")


class Resize(ImageFunction):
    """By the nearest pixel or by linear interpolation"""

    single = False

    def forward(self, x, size, options, last):
        self.last, self.options = last, options
        images = self.images(x)
        self.spatial = images.shape[1:-1]
        return self.tensor(resize_forward(images, output_size=size, **options))

    def backward(self, grad):
        grad = resize_backward(self.images(grad), spatial=self.spatial, **self.options)
        return self.tensor(grad)


def interpolate(
    input: Tensor,
    size: Size | None = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Images (N, C, *spatial) in another size.

    Parameters
    ----------
    size, scale_factor : the new spatial size, or the factor that it is the old one times (rounded
        down); a number, or one for each dimension. One of the two.
    mode : "nearest" (PyTorch's, which takes the pixel at or before the place), "nearest-exact",
        "area" (the mean, as adaptive average pooling), or "linear", "bilinear" and "trilinear" for
        1, 2 and 3 spatial dimensions
    align_corners : for the linear modes, whether the outermost pixels of both images meet
    recompute_scale_factor : take the ratio of the sizes for the step, not the inverse of
        `scale_factor`
    antialias : there is none; True is an error
    channels_last : the images are (N, *spatial, C)

    Raises ValueError for an unknown mode, one for another number of dimensions, both or none of
    size and scale_factor, sizes below 1, and align_corners where the mode has none.
    """
    dimensions = input.ndim - 2
    if mode not in MODES:
        raise ValueError(f"interpolate: mode {mode!r} is not known; use one of {', '.join(MODES)}")
    if dimensions not in (1, 2, 3) or _LINEAR.get(mode, dimensions) != dimensions:
        wanted = _LINEAR.get(mode, "1, 2 or 3")
        raise ValueError(
            f"interpolate: mode {mode!r} with an input of shape {input.shape}; it needs a batch of "
            f"images with {wanted} spatial dimensions, and resizes {_mode_for(dimensions)}"
        )
    if antialias:
        raise NotImplementedError(
            "interpolate: antialias=True is not there; use mode='area' to make images smaller"
        )
    if align_corners is not None and mode not in _LINEAR:
        raise ValueError(
            f"interpolate: align_corners is {align_corners}, and mode {mode!r} takes none; leave "
            "it out, or use a linear mode"
        )
    old = pooling.spatial_of(input, dimensions, channels_last)
    size, factors = _sizes(old, size, scale_factor)
    if mode == "area":
        pool = getattr(pooling, f"adaptive_avg_pool{dimensions}d")
        return pool(input, size, channels_last=channels_last)
    options = {
        "mode": "linear" if mode in _LINEAR else mode,
        "align_corners": bool(align_corners),
        "scale_factor": None if recompute_scale_factor else factors,
    }
    return Resize.apply(input, size, options, bool(channels_last))


def _mode_for(dimensions: int) -> str:
    names = [name for name, count in _LINEAR.items() if count == dimensions]
    return f"this by {names[0]!r} or 'nearest'" if names else "(N, C, *spatial)"


def _each(name: str, value, dimensions: int) -> tuple[Any, ...]:
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dimensions
    if len(given) != dimensions:
        raise ValueError(
            f"interpolate: {name} is {value!r}; expected a number, or {dimensions}, one for each "
            "spatial dimension"
        )
    return given


def _sizes(old, size, scale_factor):
    """(the new spatial sizes, the factors if they were given)."""
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"interpolate: size is {size} and scale_factor {scale_factor}; give one of them"
        )
    if size is not None:
        return tuple(int(n) for n in _each("size", size, len(old))), None
    factors = tuple(map(float, _each("scale_factor", scale_factor, len(old))))
    new = tuple(math.floor(n * factor) for n, factor in zip(old, factors, strict=True))
    if min(new) < 1:
        raise ValueError(
            f"interpolate: scale_factor {scale_factor} makes {new} of the spatial sizes {old}; "
            "every size must be at least 1"
        )
    return new, factors
