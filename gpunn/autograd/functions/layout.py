"""Where the channels lie: images are (N, C, *spatial) to the user and (N, *spatial, C) to the kernels.

The kernels of images (convolution, pooling, resizing) take channels-last arrays alone. A user's
tensor keeps its shape (N, C, *spatial), but what comes out of such a kernel is a *view*: that shape
on memory where the channels are innermost. The next layer finds it so and copies nothing. Layers
with ``channels_last=True`` have the channels last in the shape, too.
"""

from __future__ import annotations


def channels_last_view(array):
    """(N, C, *spatial) seen as (N, *spatial, C); the same memory."""
    return array.transpose(0, *range(2, array.ndim), 1)


def channels_first_view(array):
    """(N, *spatial, C) seen as (N, C, *spatial); the same memory."""
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def is_channels_last(array) -> bool:
    """Whether an (N, C, *spatial) array has its channels innermost in memory, without gaps."""
    return channels_last_view(array).flags.c_contiguous
