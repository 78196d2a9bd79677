"""Augmented images (N, h, w, C), the teaching version: one thread a pixel.

    augment_images(images, …, out, …)      out[i, y, x, c] = v a[c] + b[c]

v is the pixel of images[indices[i]] at (y + top, x + left), or at (y + top, w - 1 - x + left) where
the image is mirrored. What is chosen for image i comes of the Philox blocks 2 i and 2 i + 1, drawn
anew by each thread. The results are those of NumPy bit for bit; see gpunn/primitives/augment.py.
"""

import importlib.util
from pathlib import Path

import numpy as np
from numba import cuda, float32


def _neighbour(name):
    """A file beside this one as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


random = _neighbour("random")
philox, origin, add, multiply = random.philox, random.origin, random.add32, random.multiply32
ONE, TWO, EIGHT, WORD = np.uint64(1), np.uint64(2), np.uint64(8), np.uint64(32)
UNIT = np.float32(2.0**-23)


@cuda.jit(device=True)
def below(word, places):
    return np.int64((word * np.uint64(places)) >> WORD)


@cuda.jit(device=True)
def jitter(word, most):
    """most * r, r in [-1, 1)"""
    return multiply(add(multiply(float32(word >> EIGHT), UNIT), float32(-1)), most)


@cuda.jit(device=True)
def pixel_of(i, n, reflect):
    """Pixel i of an image of n that is mirrored at its ends; -1 for none."""
    if 0 <= i < n:
        return i
    if not reflect:
        return -1
    return -i if i < 0 else 2 * (n - 1) - i


@cuda.jit
def augment_images(
    images, indices, indexed, out, seed, offset, counter, given, padding, reflect, at_random, flip,
    cutout, brightness, contrast, factor, term, fill, filled,
):  # fmt: skip
    seed, offset = origin(seed, offset, counter, given)
    samples, height, width, channels = images.shape
    h, w = out.shape[1], out.shape[2]
    for pixel in range(cuda.grid(1), out.shape[0] * h * w, cuda.gridsize(1)):
        x = pixel % w
        y = pixel // w % h
        i = pixel // (h * w)
        mirrored, cut = False, False
        top, left = (height + 2 * padding - h) // 2, (width + 2 * padding - w) // 2
        stretch, shift = float32(1), float32(0)
        if at_random:
            one = philox(TWO * np.uint64(i), offset, seed)
            two = philox(TWO * np.uint64(i) + ONE, offset, seed)
            top = below(one[0], height + 2 * padding - h + 1)
            left = below(one[1], width + 2 * padding - w + 1)
            mirrored = one[2] >> EIGHT < flip
            cut_y = below(one[3], h) - cutout // 2
            cut_x = below(two[0], w) - cutout // 2
            cut = cut_y <= y < cut_y + cutout and cut_x <= x < cut_x + cutout
            stretch = add(jitter(two[1], contrast), float32(1))
            shift = jitter(two[2], brightness)
        from_y = pixel_of(y + top - padding, height, reflect)
        from_x = pixel_of((w - 1 - x if mirrored else x) + left - padding, width, reflect)
        sample = indices[i] if indexed else i
        known = 0 <= sample < samples
        for c in range(channels):
            a, b = factor[c], term[c]
            if at_random:
                a, b = multiply(a, stretch), add(multiply(b, stretch), shift)
            if not known:
                out[i, y, x, c] = float32(np.nan)
            elif cut or from_y < 0 or from_x < 0:
                out[i, y, x, c] = add(multiply(fill, a), b) if filled else float32(0)
            else:
                out[i, y, x, c] = add(multiply(float32(images[sample, from_y, from_x, c]), a), b)
