"""Random changes to training images that keep their meaning.

`RandomAffine` turns, scales and shifts; `ImageAugmentation` crops, mirrors and cuts out, and makes
normalised numbers of bytes in the same pass. Both are transforms of a `DataLoader`; the second also
works on Tensors within a training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.autograd.aliases import DTypeLike
from gpunn.autograd.dtypes import as_dtype
from gpunn.autograd.functions.layout import channels_first_view, channels_last_view
from gpunn.autograd.random import Generator, default_generator
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import array_module, device_of, to_device
from gpunn.primitives.augment import augment_images


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

    def __call__(self, fields: tuple[Any, ...], rng: np.random.Generator) -> tuple[Any, ...]:
        """The batch ``(images, …)`` with its images changed. ValueError for another image size."""
        return (self.images(fields[0], rng), *fields[1:])

    def part(
        self, fields: tuple[Any, ...], rng: np.random.Generator, start: int, count: int
    ) -> tuple[Any, ...]:
        """The rows from `start` on of a batch of `count`, changed as in the whole batch."""
        return (self._changed(fields[0], rng, start, count), *fields[1:])

    def images(self, images: Any, rng: np.random.Generator) -> Any:
        """The changed images, in the shape and dtype of `images`."""
        return self._changed(images, rng, 0, len(images))

    def _changed(self, images: Any, rng: np.random.Generator, start: int, whole: int) -> Any:
        height, width = self.shape
        count = len(images)
        if images.size != count * height * width:
            raise ValueError(
                f"RandomAffine: images of shape {images.shape[1:]} do not have "
                f"{height} x {width} pixels"
            )
        xp = array_module(device_of(images))
        draw = rng.standard_normal((4, whole, 1)).astype(np.float32)[:, start : start + count]
        rows, columns = (to_device(part, device_of(images)) for part in self._positions(draw))
        # One ring of background around the image makes every neighbour of a clipped position valid.
        padded = xp.full((count, height + 2, width + 2), self.fill, images.dtype)
        padded[:, 1:-1, 1:-1] = images.reshape(count, height, width)
        result = _bilinear(xp, padded.reshape(count, -1), width + 2, rows, columns)
        return result.astype(images.dtype).reshape(images.shape)

    def _positions(self, draw: np.ndarray) -> Any:
        """Where in the padded image each output pixel looks: rows and columns, (count, pixels).

        `draw` is (4, count, 1): standard normal numbers for angle, scale and the two shifts.
        """
        height, width = self.shape
        angle = draw[0] * np.float32(np.pi / 180 * self.degrees)
        inverse = 1 / np.maximum(1 + draw[1] * np.float32(self.scale), 0.1)
        across, up = np.cos(angle) * inverse, np.sin(angle) * inverse
        y, x = np.mgrid[:height, :width].astype(np.float32).reshape(2, 1, -1)
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        rows = across * y + up * x + (height + 1) / 2 - draw[2] * np.float32(self.shift)
        columns = across * x - up * y + (width + 1) / 2 - draw[3] * np.float32(self.shift)
        return np.clip(rows, 0, height + 1), np.clip(columns, 0, width + 1)


def _bilinear(xp: Any, flat: Any, width: int, rows: Any, columns: Any) -> Any:
    """Sample `flat` (images, height*width) at fractional rows and columns by linear weights."""
    top = xp.minimum(rows.astype(np.int32), flat.shape[1] // width - 2)
    left = xp.minimum(columns.astype(np.int32), width - 2)
    down, right = rows - top, columns - left
    corner = top * width + left

    def at(step: int) -> Any:
        return xp.take_along_axis(flat, corner + step, axis=1)

    upper = at(0) + (at(1) - at(0)) * right
    lower = at(width) + (at(width + 1) - at(width)) * right
    return upper + (lower - upper) * down


class ImageAugmentation:
    """Random crop, mirror image and cutout of each image, then ``(scale v - mean) / std``.

    One kernel does all of it while it reads the images (`gpunn.kernels.augment_images`): bytes go
    in, numbers of `dtype` come out. In evaluation only the middle is cropped and normalised.

    - ``DataLoader(..., transform=ImageAugmentation(...))`` changes the first field of a batch. It
      runs on the loader's device, so that only bytes are uploaded, and gathers from data that are
      there in the same pass. The random numbers come from the loader's seed, epoch and batch.
    - Called with a Tensor, in a training step or a compiled one, it draws from `generator`.

    Parameters
    ----------
    crop : pixels around the image before the crop, so that it moves by as many each way
    flip : mirror from left to right, for half of the images; or the probability
    cutout : edge of the square that is overwritten, in pixels; 0 for none
    mean, std : a number for each channel, or one for all, in units of ``scale v``
    dtype : of the result: float32, float16 or bfloat16
    size : (height, width) of the crop; None for that of the images
    reflect : surround the image with its mirror images and not with `fill`
    brightness, contrast : each image is scaled by 1 + contrast r and shifted by brightness r', r
        and r' uniform in [-1, 1), in units of the result
    scale : factor of the values; None for 1/255 of bytes and 1 of floating-point numbers
    fill : around the image and in the square, in units of the images; None for their mean
    channels_last : images are (N, H, W, C), and not (N, C, H, W), both before and after
    generator : for Tensors; None for gpunn's own

    The images are uint8 or float32. Results of shape (N, C, H, W) are views of memory where the
    channels are innermost, as the layers of images like it.

    Examples
    --------
    >>> import numpy as np
    >>> from gpunn.data import ImageAugmentation
    >>> augment = ImageAugmentation(crop=4, cutout=8, mean=(0.49, 0.48, 0.45), std=0.25)
    >>> images = np.zeros((10, 3, 32, 32), np.uint8)
    >>> (x,) = augment((images,), np.random.default_rng(0))
    >>> x.shape, x.dtype
    ((10, 3, 32, 32), dtype('float32'))
    """

    on_device = True  # for the DataLoader: to be run where the batch goes

    def __init__(
        self,
        crop: int = 4,
        flip: bool | float = True,
        cutout: int = 0,
        mean: Sequence[float] | float = 0.0,
        std: Sequence[float] | float = 1.0,
        dtype: Any = np.float32,
        *,
        size: tuple[int, int] | None = None,
        reflect: bool = False,
        brightness: float = 0.0,
        contrast: float = 0.0,
        scale: float | None = None,
        fill: float | None = 0.0,
        channels_last: bool = False,
        generator: Generator | None = None,
    ):
        self.crop, self.cutout = int(crop), int(cutout)
        self.flip = (0.5 if flip else 0.0) if isinstance(flip, bool) else float(flip)
        for name, value in (("crop", crop), ("cutout", cutout), ("brightness", brightness),
                            ("contrast", contrast)):  # fmt: skip
            if not value >= 0:
                raise ValueError(f"ImageAugmentation: {name} is {value}; expected 0 or more")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"ImageAugmentation: flip is {flip}; expected a share from 0 to 1")
        self.mean, self.std = (_numbers(n, v) for n, v in (("mean", mean), ("std", std)))
        if np.min(self.std) <= 0:
            raise ValueError(f"ImageAugmentation: std is {std!r}; expected numbers above 0")
        self.dtype, self.size, self.reflect = as_dtype(dtype), size, bool(reflect)
        self.brightness, self.contrast = float(brightness), float(contrast)
        self.scale, self.fill = scale, fill
        self.channels_last, self.generator = bool(channels_last), generator
        self.training = True

    def train(self, mode: bool = True) -> ImageAugmentation:
        """Change images at random from now on, or with False only normalise them; returns self."""
        self.training = bool(mode)
        return self

    def eval(self) -> ImageAugmentation:
        """Only normalise from now on; returns self."""
        return self.train(False)

    def evaluation(self) -> ImageAugmentation:
        """One with the same settings that only normalises: for the validation data."""
        other = ImageAugmentation.__new__(ImageAugmentation)
        other.__dict__ |= self.__dict__ | {"training": False}
        return other

    def __call__(self, images: Any, rng: np.random.Generator | None = None) -> Any:
        """A Tensor of images changed, or with `rng` the batch ``(images, …)`` of a DataLoader."""
        if rng is not None:
            if isinstance(images, dict):
                raise TypeError(
                    f"ImageAugmentation: the batch is a dict with the keys {[*images]}; expected "
                    "(images, …); give a transform that calls this one with the images and the "
                    "same rng, and puts the result back"
                )
            if not isinstance(images, (tuple, list)):
                return self.gather(images, None, rng)
            return (self.gather(images[0], None, rng), *images[1:])
        if not isinstance(images, Tensor):
            raise TypeError(
                f"ImageAugmentation: expected a Tensor, or a batch and a NumPy Generator, got "
                f"{type(images).__name__}"
            )
        if images.requires_grad:
            raise ValueError(
                "ImageAugmentation: the images require a gradient, and there is none through an "
                "augmentation; give images.detach()"
            )
        draw = {}
        if self.training:
            generator = default_generator if self.generator is None else self.generator
            draw = generator.draw(device_of(images.array))._asdict()
        return wrap(self._apply(images.array, None, draw))

    def part(self, fields: Any, rng: np.random.Generator, start: int, count: int) -> Any:
        """The rows from `start` on of a batch of `count`, changed as in the whole batch.

        What is chosen for an image depends on its place in the batch, so those before `start` are
        made too, of one image, and left out.
        """
        if isinstance(fields, (tuple, list)):
            return (self.gather_part(fields[0], None, rng, start), *fields[1:])
        if isinstance(fields, dict):
            return self(fields, rng)  # which says what to do
        return self.gather_part(fields, None, rng, start)

    def gather_part(self, images: Any, indices: Any, rng: np.random.Generator, start: int) -> Any:
        """As `gather`, for images that have the places from `start` on in their batch."""
        if not self.training or start == 0:
            return self.gather(images, indices, rng)
        if isinstance(indices, slice):
            images, indices = images[indices], None
        xp = array_module(device_of(images))
        places = xp.arange(len(images)) if indices is None else indices
        before = xp.zeros(start, np.int64) + places[:1]
        return self.gather(images, xp.concatenate([before, places]), rng)[start:]

    def gather(self, images: Any, indices: Any, rng: np.random.Generator) -> Any:
        """The changed images at `indices` (an int64 array, a slice, or None for all)."""
        if isinstance(indices, slice):
            images, indices = images[indices], None
        draw = {"seed": int(rng.integers(1 << 63))} if self.training else {}
        return self._apply(images, indices, draw)

    def _apply(self, images: Any, indices: Any, draw: dict[str, Any]) -> Any:
        if isinstance(images, Tensor):
            images = images.array
        if getattr(images, "ndim", None) != 4:
            expected = "(N, H, W, C)" if self.channels_last else "(N, C, H, W)"
            raise ValueError(
                f"ImageAugmentation: images have shape {getattr(images, 'shape', None)}; expected "
                f"{expected}"
            )
        if not self.channels_last:
            images = channels_last_view(images)
        for name in ("mean", "std"):
            count = np.size(getattr(self, name))
            if count not in (1, images.shape[3]):
                raise ValueError(
                    f"ImageAugmentation: {name} has {count} numbers for images of "
                    f"{images.shape[3]} channels"
                )
        result = augment_images(
            images, indices=indices, **draw, random=self.training, size=self.size,
            padding=self.crop, reflect=self.reflect, flip=self.flip, cutout=self.cutout,
            brightness=self.brightness, contrast=self.contrast,
            scale=self.scale if self.scale is not None else _usual_scale(images.dtype),
            mean=self.mean, std=self.std, fill=self.fill, dtype=self.dtype,
        )  # fmt: skip
        return result if self.channels_last else channels_first_view(result)

    def __repr__(self) -> str:
        shown = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name != "dtype" and value is not None
        }
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"ImageAugmentation({settings}, dtype={self.dtype})"


def _usual_scale(dtype: DTypeLike) -> float:
    return 1 / 255 if dtype == np.uint8 else 1.0


def _numbers(name: str, value: Any) -> float | tuple[float, ...]:
    """A number, or a tuple of one for each channel."""
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if found.ndim > 1 or found.size == 0 or not np.isfinite(found).all():
        raise ValueError(
            f"ImageAugmentation: {name} is {value!r:.60}; expected a number, or one for each "
            "channel"
        )
    return float(found) if found.ndim == 0 else tuple(found.tolist())
