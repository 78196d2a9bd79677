"""Augmentation of images by array functions: the whole batch at once, gathered by index."""

from __future__ import annotations

import numpy as np

from gpunn.bench.array_peers.common import peer, put


@peer
def augment_images(xp, images, *, seed, padding, flip, cutout, scale, fill, out=None):
    n, h, w, _ = images.shape
    random = np.random.default_rng(seed) if xp is np else xp.random.RandomState(seed)
    edges = (padding, padding)
    padded = xp.pad(images, ((0, 0), edges, edges, (0, 0)), constant_values=fill)

    def somewhere(below):
        return xp.asarray(random.random_sample(n) if xp is not np else random.random(n)) * below

    y = somewhere(2 * padding + 1).astype("int64")[:, None, None] + xp.arange(h)[:, None]
    column = xp.arange(w)[None]
    column = xp.where(somewhere(1)[:, None] < flip, w - 1 - column, column)
    x = somewhere(2 * padding + 1).astype("int64")[:, None, None] + column[:, None]
    value = padded[xp.arange(n)[:, None, None], y, x].astype(np.float32) * np.float32(scale)
    rows, columns = (
        xp.abs(xp.arange(size) + 0.5 * (1 - cutout % 2) - xp.floor(somewhere(size))[:, None])
        <= cutout / 2
        for size in (h, w)
    )
    value[rows[:, :, None] & columns[:, None]] = fill * scale
    return put(value, out)
