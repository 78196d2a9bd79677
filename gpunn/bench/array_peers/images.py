"""Pooling, padding and resizing by array functions, on (N, H, W, C)."""

from __future__ import annotations

import math

from gpunn.bench.array_peers.common import peer, put, wide


def _padded(xp, x, padding, value):
    return xp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)),
                  constant_values=value)  # fmt: skip


def _taps(x, kernel_size, stride):
    """The padded image seen from each place of the window."""
    n, h, w, c = x.shape
    rows, columns = ((size - kernel_size) // stride + 1 for size in (h, w))
    for i in range(kernel_size):
        for j in range(kernel_size):
            yield i, j, x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]


@peer
def max_pool_forward(xp, x, *, kernel_size, stride, padding, out=None):
    taps = list(_taps(_padded(xp, x, padding, -math.inf), kernel_size, stride))
    largest = xp.stack([tap for _, _, tap in taps])
    place = largest.argmax(0)
    row = xp.arange(place.shape[1])[:, None, None] * stride + place // kernel_size - padding
    column = xp.arange(place.shape[2])[:, None] * stride + place % kernel_size - padding
    return put(largest.max(0), out), (row * x.shape[2] + column).astype("int32")


@peer
def max_pool_backward(xp, grad_output, indices, *, spatial, kernel_size, stride, padding, out=None):
    n, c = grad_output.shape[0], grad_output.shape[-1]
    total = xp.zeros((n, math.prod(spatial), c), wide(grad_output).dtype)
    place = (xp.arange(n)[:, None, None], indices.reshape(n, -1, c), xp.arange(c))
    xp.add.at(total, place, wide(grad_output).reshape(n, -1, c))
    return put(total.reshape(n, *spatial, c), out)


@peer
def avg_pool_forward(xp, x, *, kernel_size, stride, padding, out=None):
    total = sum(tap for *_, tap in _taps(_padded(xp, wide(x), padding, 0), kernel_size, stride))
    return put(total / kernel_size**2, out)


@peer
def avg_pool_backward(xp, grad_output, *, spatial, kernel_size, stride, padding, out=None):
    n, c = grad_output.shape[0], grad_output.shape[-1]
    sizes = (size + 2 * padding for size in spatial)
    total = xp.zeros((n, *sizes, c), wide(grad_output).dtype)
    for *_, tap in _taps(total, kernel_size, stride):
        tap += wide(grad_output) / kernel_size**2
    inside = (slice(padding, padding + size) for size in spatial)
    return put(total[(slice(None), *inside)], out)


@peer
def pad_forward(xp, x, *, padding, mode, out=None):
    return put(xp.pad(x, ((0, 0), *padding, (0, 0)), mode=mode), out)


@peer
def pad_backward(xp, grad_output, *, padding, mode, out=None):
    """Back through a mirror of one pixel at each side."""
    total = wide(grad_output)
    for axis in (1, 2):
        lines = xp.moveaxis(total, axis, 0)
        inside = lines[1:-1].copy()
        inside[1] += lines[0]
        inside[-2] += lines[-1]
        total = xp.moveaxis(inside, 0, axis)
    return put(total, out)


def _places(xp, size, count):
    """The pixels on both sides of each output, and the weight of the second."""
    place = xp.maximum((xp.arange(count) + 0.5) * (size / count) - 0.5, 0)
    first = place.astype("int64")
    return first, xp.minimum(first + 1, size - 1), (place - first).astype("float32")


@peer
def resize_forward(xp, x, *, output_size, mode, out=None):
    value = wide(x)
    for axis, count in enumerate(output_size, 1):
        first, second, weight = _places(xp, x.shape[axis], count)
        weight = weight.reshape(-1, *(1,) * (3 - axis))
        value = (1 - weight) * value.take(first, axis) + weight * value.take(second, axis)
    return put(value, out)


@peer
def resize_backward(xp, grad_output, *, spatial, mode, out=None):
    value = wide(grad_output)
    for axis, size in enumerate(spatial, 1):
        first, second, weight = _places(xp, size, grad_output.shape[axis])
        weight = weight.reshape(-1, *(1,) * (value.ndim - 1))
        lines = xp.moveaxis(value, axis, 0)
        total = xp.zeros((size, *lines.shape[1:]), value.dtype)
        xp.add.at(total, first, (1 - weight) * lines)
        xp.add.at(total, second, weight * lines)
        value = xp.moveaxis(total, 0, axis)
    return put(value, out)
