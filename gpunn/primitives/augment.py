"""Images as a network wants them, changed at random while they are read: `augment_images`.

One pass reads the bytes of a data set and writes normalised numbers: gathered by index, cropped out
of a padded image, mirrored, with a square cut out, jittered. What happens to image i of a batch
depends on the eight words 8 i … 8 i + 7 that `random_bits` gives for the same seed and offset:

======  ==========================================================================================
word    chooses
======  ==========================================================================================
0, 1    the first row and column of the crop, each alike: ``word * places >> 32``
2       whether it is mirrored: if (word >> 8) 2^-24 < flip
3, 4    the centre of the cutout: ``word * height >> 32``, ``word * width >> 32``
5, 6    contrast and brightness: ``r = 2 (word >> 8) 2^-24 - 1``, in [-1, 1)
======  ==========================================================================================

The bits are the same in NumPy, CUDA and Numba: integers are, and each operation on float32 is
rounded by itself (`gpunn.primitives.random_reference`).
"""

from __future__ import annotations

import math
import operator

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives import augment_implementation as implementation
from gpunn.primitives.augment_implementation import Augmentation
from gpunn.primitives.indices import check_range
from gpunn.primitives.matmul_checks import refuse_overlap
from gpunn.primitives.random_counter import check_counter, check_integer
from gpunn.primitives.registry import Cost, primitive
from gpunn.primitives.samples import BFLOAT16, FLOAT16, FLOAT32, Fixed, Sample

UINT8, INT64 = np.dtype(np.uint8), np.dtype(np.int64)
OUTPUTS = (FLOAT32, FLOAT16, BFLOAT16)
_MOST = 2**31 - 1
_CHANNELS = 2048  # whose constants fit into a block's shared memory
_NUMBERED = 64  # channels with constants of their own, which are arguments of the kernel

# ---- specification -------------------------------------------------------------------------------


@primitive(family="augment", cuda="augment.cu", numba="augment.py")
def augment_images(
    call,
    images,
    *,
    indices=None,
    seed: int = 0,
    offset: int = 0,
    counter=None,
    random: bool = True,
    size: tuple[int, int] | None = None,
    padding: int = 0,
    reflect: bool = False,
    flip: float = 0.0,
    cutout: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    scale: float = 1.0,
    mean=0.0,
    std=1.0,
    fill: float | None = 0.0,
    dtype=None,
    out=None,
):
    """Augmented and normalised images: ``out[i] = (scale v - mean) / std`` of a random crop v.

    With `random` each image is, in this order: padded on all sides, cropped at a random place,
    mirrored from left to right with probability `flip`, normalised, scaled by 1 + contrast r and
    shifted by brightness r', each r uniform in [-1, 1), and overwritten in a square of `cutout`
    pixels around a random pixel (smaller where it meets the edge). Without, the crop is from the
    middle and the rest is left out. Computed in float32 as ``v a + b`` with a = scale / std and
    b = -mean / std, each rounded once, and then rounded to `dtype`. NaN and inf travel.
    The square is that of DeVries and Taylor, "Improved Regularization of Convolutional Neural
    Networks with Cutout" (2017).

    Parameters
    ----------
    images : uint8 or float32 array (samples, H, W, C), strided as it may be: images that lie as
        (samples, C, H, W) are given as the transposed view, and nothing is copied. One image has
        fewer than 2^31 elements, C is 2048 at most.
    indices : int64 array (N,): which images; None for all of them in their order. A number outside
        is an error on the CPU; on a GPU, where looking would mean waiting, the image is NaN.
    seed, offset : integers in [0, 2^64)
    counter : None, or a uint64 array (2,), [seed, offset], on the device of `images`: then its seed
        counts and not `seed`, and `offset` is added to its offset, when the kernel runs
    size : (h, w) of the crop; None for (H, W)
    padding : pixels around the image before the crop, 0 or more
    reflect : pad with the mirrored image (padding < H, W), else with `fill`
    flip, cutout, brightness, contrast : as above; all at least 0, flip at most 1
    scale : factor of the values, such as 1 / 255
    mean, std : a number for all channels, or a sequence of one for each of at most 64 channels; std
        above 0. They are part of the launch, so nothing is copied to the device for them.
    fill : what stands around the image and in the square, in the units of `images`, normalised like
        them; None for 0 in `out`, which is the mean
    dtype : of the result: float32 (the default), float16 or bfloat16
    out : C-contiguous array (N, h, w, C) of one of these dtypes to write, not that of `images`

    Raises
    ------
    TypeError, ValueError : an array or a number that does not fit, a crop larger than the padded
        image, an index outside of `images`
    """
    images = call.array("images", images, dtypes=(UINT8, FLOAT32), ndim=4, strided=True)
    samples, height, width, channels = images.shape
    call.require(
        height > 0 and width > 0, "images", f"has shape {images.shape}", "expected pixels in them"
    )
    call.require(
        channels <= _CHANNELS and height * width * channels <= _MOST,
        "images", f"has {height} x {width} pixels of {channels} channels",
        f"expected fewer than 2^31 numbers for an image, in {_CHANNELS} channels at most",
    )  # fmt: skip
    images = _addressable(call, images)
    if indices is not None:
        indices = call.array("indices", indices, dtypes=(INT64,), ndim=1)
        check_range(call, "indices", indices, samples, f"for the {samples} images")
    plan = Augmentation(
        *_geometry(call, height, width, size, padding, reflect),
        reflect=bool(reflect),
        random=bool(random),
        flip=math.ceil(call.number("flip", flip, low=0.0, high=1.0) * 2**24),
        cutout=_count(call, "cutout", cutout),
        brightness=_finite(call, "brightness", brightness, 0.0),
        contrast=_finite(call, "contrast", contrast, 0.0),
        **_constants(call, channels, scale, mean, std),
        fill=None if fill is None else _finite(call, "fill", fill),
    )
    seed, offset = check_integer(call, "seed", seed), check_integer(call, "offset", offset)
    counter = check_counter(call, counter)
    count = samples if indices is None else len(indices)
    call.require(count <= _MOST, "images", f"gives {count} images", "expected fewer than 2^31")
    given, out = out, _output(call, out, dtype, (count, *plan.size, channels))
    if given is not None:  # pixels move: one that was overwritten may be read by another
        refuse_overlap(call, "out", out, images=images, indices=indices)
    call.run(images, indices, out, seed, offset, counter, plan)
    return out


def _addressable(call, images):
    """The images, copied if elements of one lie further apart than 32 bits count."""
    steps = images.strides
    whole = all(step % images.itemsize == 0 for step in steps)
    reach = sum(abs(step) * (n - 1) for step, n in zip(steps[1:], images.shape[1:], strict=True))
    if whole and reach // images.itemsize <= _MOST:
        return images
    return call.xp.ascontiguousarray(images)


def _count(call, name: str, value, low: int = 0) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{call.primitive.name}: {name} is {value!r:.60}; expected an integer."
        ) from None
    call.require(low <= number <= _MOST, name, f"is {number}", f"expected {low} to 2^31 - 1")
    return number


def _finite(call, name: str, value, low: float | None = None) -> float:
    number = call.number(name, value, low=low)
    call.require(
        abs(number) <= float(np.finfo(np.float32).max), name, f"is {value!r}",
        "expected a number that is finite in float32",
    )  # fmt: skip
    return number


def _constants(call, channels: int, scale, mean, std) -> dict:
    """``factor`` and ``term``, tuples of one number, or of one for each channel."""
    found = []
    for name, value in (("scale", scale), ("mean", mean), ("std", std)):
        try:
            numbers = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            numbers = None
        if numbers is None or numbers.ndim > (name != "scale"):
            allowed = "a number" + (", or one for each channel" if name != "scale" else "")
            raise TypeError(f"{call.primitive.name}: {name} is {value!r:.60}; expected {allowed}.")
        call.require(
            numbers.size in (1, channels) and numbers.size <= _NUMBERED, name,
            f"has {numbers.size} numbers, and the images {channels} channels",
            f"give one number, or one for each of at most {_NUMBERED} channels",
        )  # fmt: skip
        found.append(numbers)
    scale, mean, std = found
    call.require(bool((std > 0).all()), "std", f"is {std.tolist()}", "expected numbers above 0")
    with quiet():
        made = [np.float32(part) for part in np.broadcast_arrays(scale / std, -mean / std)]
    named = f"is {scale.tolist()} with mean {mean.tolist()} and std {std.tolist()}"
    finite = all(np.isfinite(part).all() for part in made)
    call.require(finite, "scale", named, "expected what is finite in float32")
    return {
        name: tuple(part.reshape(-1).tolist())
        for name, part in zip(("factor", "term"), made, strict=True)
    }


def _geometry(call, height: int, width: int, size, padding, reflect):
    """(size of the crop, padding), checked against the image."""
    padding = _count(call, "padding", padding)
    limits = (height + 2 * padding, width + 2 * padding)
    call.require(max(limits) <= _MOST, "padding", f"is {padding}", "expected less than 2^30")
    call.require(
        not reflect or padding == 0 or padding < min(height, width),
        "padding", f"is {padding} for images of {height} x {width} pixels",
        "with reflect it must be smaller than both",
    )  # fmt: skip
    if size is None:
        return (height, width), padding
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(
            f"{call.primitive.name}: size is {size!r:.60}; expected (height, width) or None."
        )
    size = tuple(_count(call, "size", edge, low=1) for edge in size)
    call.require(
        size[0] <= limits[0] and size[1] <= limits[1],
        "size", f"is {size}, and the padded image has {limits[0]} x {limits[1]} pixels",
        "give a smaller crop or more padding",
    )  # fmt: skip
    return size, padding


def _output(call, out, dtype, shape):
    if math.prod(shape[1:]) > _MOST:
        call.require(False, "size", f"gives images of {shape[1:]}", "expected fewer than 2^31")
    if dtype is not None:
        dtype = np.dtype(dtype)
        listed = ", ".join(known.name for known in OUTPUTS)
        if dtype not in OUTPUTS:
            raise TypeError(f"{call.primitive.name}: dtype is {dtype}; expected one of {listed}.")
    if out is None:
        return call.empty(shape, dtype or FLOAT32)
    return call.inplace("out", out, dtypes=OUTPUTS if dtype is None else (dtype,), shape=shape)


# ---- implementations, cost -----------------------------------------------------------------------

augment_images.reference(implementation.reference)
augment_images.cuda(implementation.launch_cuda)
augment_images.numba(dtypes=(FLOAT32,))(implementation.launch_numba)


@augment_images.cost
def _(images, indices, out, seed, offset, counter, plan):
    source = min(out.size, len(out) * math.prod(images.shape[1:])) * images.itemsize
    numbers = 0 if indices is None else indices.nbytes
    return Cost(flops=2 * out.size, read=source + numbers, written=out.nbytes)


# ---- samples, benchmark inputs -------------------------------------------------------------------

_SEED = {"seed": 0x1234_5678_9ABC_DEF0, "offset": (1 << 40) + 7}


def _sample(name, images, shape, kwargs, dtypes=(FLOAT32,), **more):
    """A sample whose dtype is that of the result."""
    kwargs = {**_SEED, **kwargs, "out": np.zeros(shape)}
    images = Fixed(images) if images.dtype == FLOAT32 else images
    return Sample(name, (images,), kwargs, dtypes, exact=True, **more)


def _bytes(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


@augment_images.samples
def _(rng):
    usual = {
        "padding": 2, "flip": 0.5, "cutout": 3, "scale": 1 / 255,
        "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25),
    }  # fmt: skip
    yield _sample("7x6x3", _bytes(rng, 4, 7, 6, 3), (4, 7, 6, 3), usual, OUTPUTS)
    yield _sample("7x6x3 unaligned", _bytes(rng, 4, 7, 6, 3), (4, 7, 6, 3), usual, OUTPUTS,
                  numba=False, unaligned=True)  # fmt: skip
    jittered = usual | {
        "brightness": 0.3, "contrast": 0.4, "reflect": True, "fill": None, "size": (5, 9),
        "counter": np.array([77, (1 << 64) - 3], np.uint64),
        "indices": np.array([2, 0, 2], np.int64),
    }  # fmt: skip
    numbers = rng.normal(size=(3, 6, 7, 3)).astype(np.float32)
    numbers[0, 1, 1], numbers[2, 2, 3] = np.nan, -np.inf
    yield _sample("reflected and jittered", numbers, (3, 5, 9, 3), jittered, OUTPUTS)
    strided = np.asfortranarray(_bytes(rng, 3, 6, 7, 3))
    yield _sample("as they lie", strided, (3, 6, 7, 3), usual | {"flip": 1.0, "std": 1.0})
    whole = {"random": False, "size": (3, 2), "std": 0.5}
    yield _sample("the middle, 1 channel", _bytes(rng, 2, 6, 5, 1), (2, 3, 2, 1), whole)
    yield _sample("as they are", _bytes(rng, 1, 1, 1, 5), (1, 1, 1, 5), {})
    yield _sample("nothing", _bytes(rng, 0, 4, 4, 3), (0, 4, 4, 3), usual)
    wide = usual | {"flip": 1.0, "padding": 4, "fill": 17.0, "cutout": 9}
    many = _bytes(rng, 5, 33, 41, 3)
    yield _sample("many blocks", many, (5, 33, 41, 3), wide, OUTPUTS, numba=False)


@augment_images.inputs
def _(rng, shape):
    count, height, width, channels = shape
    images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    # The fill is the mean, so that where the squares lie hardly counts when distributions are held
    # against each other.
    more = {
        "fill": 127.0,
        "padding": min(4, height - 1, width - 1),
        "flip": 0.5,
        "cutout": max(1, width // 8),
    }
    return (images,), {"seed": 0, "scale": 1 / 255, **more}


augment_images.bench_shapes = (
    (512, 32, 32, 3), (64, 32, 32, 3), (128, 28, 28, 1), (1024, 28, 28, 1), (2048, 32, 32, 3),
    (8192, 32, 32, 3), (64, 224, 224, 3), (256, 224, 224, 3),
)  # fmt: skip
