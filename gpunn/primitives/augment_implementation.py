"""Augmented images: what is chosen for each image, the NumPy implementation and the launches.

The arguments are those of ``Call.run`` in `augment`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpunn.device.quiet import quiet
from gpunn.primitives.cpu_compiled import loops
from gpunn.primitives.cpu_threads import for_each
from gpunn.primitives.images import numba_grid, structure
from gpunn.primitives.random_counter import numba_arguments, origin
from gpunn.primitives.random_reference import philox_words

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Augmentation:
    """The settings of a call, checked; `flip` in units of 2^-24, `fill` None for 0 at the end.

    A value v becomes ``v factor + term``; these are tuples of one number or one for each channel.
    """

    size: tuple[int, int]
    padding: int
    reflect: bool
    random: bool
    flip: int
    cutout: int
    brightness: float
    contrast: float
    factor: tuple[float, ...]
    term: tuple[float, ...]
    fill: float | None


class Choices(NamedTuple):
    """What is done to each image: arrays of one number for each, the last two for each channel.

    The pixel at (y, x) of the result is that at (y + top, x + left) of the image, or at
    (y + top, width - 1 - x + left) if it is mirrored; pixels of the cutout begin at (cut_y, cut_x).
    """

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    cut_y: np.ndarray
    cut_x: np.ndarray
    factor: np.ndarray  # (N, C) float32: out = v * factor + term
    term: np.ndarray
    fill: np.ndarray


def _choose(images, count: int, seed: int, offset: int, plan: Augmentation) -> Choices:
    words = philox_words(0, 2 * count, seed, offset).reshape(count, 8)
    if not plan.random:
        words = np.zeros_like(words)
    (h, w), (height, width) = plan.size, images.shape[1:3]

    def below(word: int, places: int) -> np.ndarray:
        """A number from 0 to places - 1 for each image."""
        wide = words[:, word].astype(np.uint64) * np.uint64(places)
        return (wide >> np.uint64(32)).view(np.int64)

    def jitter(word: int, most: float) -> np.ndarray:
        r = (words[:, word] >> np.uint32(8)).astype(np.float32) * np.float32(2**-23)
        return ((r - np.float32(1)) * np.float32(most))[:, None]

    spare = height + 2 * plan.padding - h, width + 2 * plan.padding - w
    if plan.random:
        top, left = below(0, spare[0] + 1), below(1, spare[1] + 1)
        flip = words[:, 2] >> np.uint32(8) < plan.flip
    else:
        top, left = (np.full(count, space // 2) for space in spare)
        flip = np.zeros(count, np.bool_)
    factor, term = (
        np.broadcast_to(np.array(numbers, np.float32), (count, images.shape[3]))
        for numbers in (plan.factor, plan.term)
    )
    if plan.random:
        contrast = jitter(5, plan.contrast) + np.float32(1)
        factor, term = factor * contrast, term * contrast + jitter(6, plan.brightness)
    fill = np.zeros_like(term) if plan.fill is None else np.float32(plan.fill) * factor + term
    half = plan.cutout // 2
    return Choices(
        top - plan.padding, left - plan.padding, flip, below(3, h) - half, below(4, w) - half,
        factor, term, fill,
    )  # fmt: skip


# ---- NumPy ---------------------------------------------------------------------------------------

_AT_ONCE = 1 << 18  # elements of the result that a thread makes at a time


def reference(images, indices, out, seed, offset, counter, plan):
    if out.size == 0:
        return
    with quiet():
        chosen = _choose(images, len(out), *origin(seed, offset, counter), plan)
    if indices is None:
        indices = np.arange(len(out))
    # NumPy takes the images one by one, so the compiled loop is worth its time sooner than usual.
    compiled = loops("augment", FLOAT32, 8 * out.size)
    one_by_one = functools.partial(_some_images, images, indices, chosen, plan)
    each = max(1, _AT_ONCE // max(1, out[0].size))

    def work(start: int) -> None:
        some = slice(start, start + each)
        wide = out[some] if out.dtype == FLOAT32 else np.empty(out[some].shape, FLOAT32)
        if compiled:
            some_chosen = (part[some] for part in chosen)
            compiled.augment(images, indices[some], *some_chosen, plan.reflect, _cut(plan), wide)
        else:
            one_by_one(start, wide)
        if wide.dtype != out.dtype:
            out[some] = wide

    for_each(work, range(0, len(out), each))


def _cut(plan: Augmentation) -> int:
    """The edge of the square that is cut out."""
    return plan.cutout if plan.random else 0


def _some_images(images, indices, chosen: Choices, plan: Augmentation, first: int, out) -> None:
    """Make ``out[i]`` of choice first + i: a copy and whole rows of arithmetic for each image."""
    height, width = images.shape[1:3]
    h, w, channels = out.shape[1:]
    for number, target in enumerate(out, first):
        top, left, flip, cut_y, cut_x, factor, term, fill = (part[number] for part in chosen)
        source, placed = images[indices[number]], target[:, ::-1] if flip else target
        y0, x0 = min(h, max(0, -top)), min(w, max(0, -left))
        y1, x1 = max(y0, min(h, height - top)), max(x0, min(w, width - left))
        if plan.reflect:
            rows, columns = _mirrored(top, h, height), _mirrored(left, w, width)
            placed[...] = source[rows[:, None], columns]
            y0, y1, x0, x1 = 0, h, 0, w
        else:
            placed[y0:y1, x0:x1] = source[y0 + top : y1 + top, x0 + left : x1 + left]
        lines = target.reshape(h, w * channels)
        if channels > 1:
            factor, term = np.tile(factor, w), np.tile(term, w)
        lines *= factor
        lines += term
        for border in (placed[:y0], placed[y1:], placed[y0:y1, :x0], placed[y0:y1, x1:]):
            if border.size:
                border[...] = fill
        if _cut(plan):
            down, right = max(0, cut_y + plan.cutout), max(0, cut_x + plan.cutout)
            target[max(0, cut_y) : down, max(0, cut_x) : right] = fill


def _mirrored(first: int, count: int, size: int) -> np.ndarray:
    """The pixels first, …, first + count - 1 of an image of `size` that is mirrored at its ends."""
    place = np.abs(np.arange(first, first + count))
    return np.where(place < size, place, 2 * (size - 1) - place)


# ---- launches ------------------------------------------------------------------------------------

_BLOCK, _PACKS = 128, 4  # threads, and packs of 16 bytes a thread, at most


def launch_cuda(launch, images, indices, out, seed, offset, counter, plan):
    if out.size == 0:
        return
    count, size = len(out), math.prod(out.shape[1:])
    packs = -(-size // (16 // out.itemsize)) + 1  # one more where the image begins within a pack
    threads = min(_BLOCK, max(32, -(-packs // (32 * _PACKS)) * 32))
    pieces = -(-packs // (threads * _PACKS))
    channels = out.shape[3]
    # A step along a single pixel counts for nothing and may be any number.
    first, *steps = (
        step // images.itemsize if n > 1 else 0
        for step, n in zip(images.strides, images.shape, strict=True)
    )
    row, by_row = _division(out.shape[2] * channels)
    channel, by_channel = _division(channels)
    source = (len(images), first, row, channel)
    shape = (
        *images.shape[1:], *steps, *plan.size, plan.padding, plan.reflect, plan.random, plan.flip,
        plan.cutout, plan.fill is not None, pieces, by_row, by_channel,
        len(plan.factor) > 1,
    )  # fmt: skip
    numbers = (plan.fill or 0.0, plan.brightness, plan.contrast)
    launch(
        f"augment_images<{launch.ctype(images.dtype)}, {launch.ctype(out.dtype)}>",
        grid=(count * pieces,),
        block=(threads,),
        args=(
            images, indices, out, np.uint64(seed), np.uint64(offset), counter,
            *map(np.float32, numbers), _table(plan.factor, plan.term),
            structure("int64", source), structure("int32", shape),
        ),
        shared=16 * channels,
    )  # fmt: skip


@functools.lru_cache(1 << 8)
def _table(factor: tuple[float, ...], term: tuple[float, ...]) -> np.ndarray:
    """AugmentNumbers, as one argument by value."""
    made = np.zeros((2, 64), np.float32)
    made[0, : len(factor)], made[1, : len(term)] = factor, term
    return made.reshape(-1).view(np.dtype((np.void, made.nbytes)))


def _division(by: int) -> tuple[int, int]:
    """(factor, shift) with n // by == n * factor >> shift for all n below 2^31.

    The factor exceeds 2^shift / by by at most 1, which n < 2^31 turns into less than 1 / by.
    """
    shift = 31 + (by - 1).bit_length()
    return (1 << shift) // by + 1, shift


def launch_numba(launch, images, indices, out, seed, offset, counter, plan):
    if out.size == 0:
        return

    channels = out.shape[3]
    each = (
        tuple(map(np.float32, numbers if len(numbers) > 1 else numbers * channels))
        for numbers in (plan.factor, plan.term)
    )

    def given(array, shape, dtype):
        return (launch.empty(shape, dtype) if array is None else array), np.bool_(array is not None)

    args = (
        images, *given(indices, (1,), np.int64), out,
        *numba_arguments(launch, seed, offset, counter),
        np.int64(plan.padding), np.bool_(plan.reflect), np.bool_(plan.random),
        np.uint64(plan.flip), np.int64(plan.cutout), np.float32(plan.brightness),
        np.float32(plan.contrast), *each, np.float32(plan.fill or 0.0),
        np.bool_(plan.fill is not None),
    )  # fmt: skip
    launch("augment_images", numba_grid(out.size // out.shape[3]), (64,), args)
