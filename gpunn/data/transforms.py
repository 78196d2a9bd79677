"""Random changes to training images that keep their meaning: `RandomAffine`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.device import array_module, device_of, to_device


class RandomAffine:
    """Turn, scale and shift each image of a batch a little, anew each time, by bilinear sampling.

    For a sample with angle a, scale s and shift t (in pixels), the output pixel at position p
    (relative to the centre) is the input at ``R(a) p / s - t``; what lies outside has the value
    `fill`. All three are normal deviates, so that most changes are small.

    Parameters
    ----------
    shape : (height, width) of the images; batches may hold them flat, as (samples, height*width),
        or as (samples, height, width)
    degrees, scale, shift : standard deviations of the angle in degrees, of the scale around 1,
        and of the shift in pixels
    fill : the value of the background

    Use as ``DataLoader(..., transform=RandomAffine(...))``: it changes the first field of a batch,
    on the device where it is; the random numbers come from the loader's seed, epoch and batch.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        degrees: float = 5.0,
        scale: float = 0.05,
        shift: float = 0.3,
        fill: float = 0.0,
    ):
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"RandomAffine: shape must be (height, width), got {shape}")
        if min(degrees, scale, shift) < 0:
            raise ValueError("RandomAffine: degrees, scale and shift must be zero or more")
        self.shape = (int(shape[0]), int(shape[1]))
        self.degrees, self.scale, self.shift = float(degrees), float(scale), float(shift)
        self.fill = float(fill)

    def __call__(self, fields: tuple, rng: np.random.Generator) -> tuple:
        """The batch ``(images, …)`` with its images changed. ValueError for another image size."""
        return (self.images(fields[0], rng), *fields[1:])

    def images(self, images: Any, rng: np.random.Generator):
        """The changed images, in the shape and dtype of `images`."""
        height, width = self.shape
        count = len(images)
        if images.size != count * height * width:
            raise ValueError(
                f"RandomAffine: images of shape {images.shape[1:]} do not have "
                f"{height} x {width} pixels"
            )
        xp = array_module(device_of(images))
        rows, columns = (to_device(part, device_of(images)) for part in self._positions(count, rng))
        # One ring of background around the image makes every neighbour of a clipped position valid.
        padded = xp.full((count, height + 2, width + 2), self.fill, images.dtype)
        padded[:, 1:-1, 1:-1] = images.reshape(count, height, width)
        result = _bilinear(xp, padded.reshape(count, -1), width + 2, rows, columns)
        return result.astype(images.dtype).reshape(images.shape)

    def _positions(self, count: int, rng: np.random.Generator):
        """Where in the padded image each output pixel looks: rows and columns, (count, pixels)."""
        height, width = self.shape
        draw = rng.standard_normal((4, count, 1)).astype(np.float32)
        angle = draw[0] * np.float32(np.pi / 180 * self.degrees)
        inverse = 1 / np.maximum(1 + draw[1] * np.float32(self.scale), 0.1)
        across, up = np.cos(angle) * inverse, np.sin(angle) * inverse
        y, x = np.mgrid[:height, :width].astype(np.float32).reshape(2, 1, -1)
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        rows = across * y + up * x + (height + 1) / 2 - draw[2] * np.float32(self.shift)
        columns = across * x - up * y + (width + 1) / 2 - draw[3] * np.float32(self.shift)
        return np.clip(rows, 0, height + 1), np.clip(columns, 0, width + 1)


def _bilinear(xp, flat, width: int, rows, columns):
    """Sample `flat` (images, height*width) at fractional rows and columns by linear weights."""
    top = xp.minimum(rows.astype(np.int32), flat.shape[1] // width - 2)
    left = xp.minimum(columns.astype(np.int32), width - 2)
    down, right = rows - top, columns - left
    corner = top * width + left

    def at(step: int):
        return xp.take_along_axis(flat, corner + step, axis=1)

    upper = at(0) + (at(1) - at(0)) * right
    lower = at(width) + (at(width + 1) - at(width)) * right
    return upper + (lower - upper) * down
