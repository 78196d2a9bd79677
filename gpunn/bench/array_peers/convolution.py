"""Convolutions by array functions, on (N, H, W, C): one product for each tap of the kernel."""

from __future__ import annotations

from gpunn.bench.array_peers.common import peer, put, wide


def _taps(kernel: int, stride: int, out):
    """(row, column, what the tap sees of the padded image) of each tap."""
    _, height, width, _ = out
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            yield i, j, (slice(None), rows, slice(j, j + stride * (width - 1) + 1, stride))


def _grouped(x, groups: int):
    """(…, C) as (groups, rows, C / groups)"""
    return x.reshape(-1, groups, x.shape[-1] // groups).swapaxes(0, 1)


def _padded(xp, x, padding: int):
    around = (padding, padding)
    return xp.pad(wide(x), ((0, 0), around, around, (0, 0)))


@peer
def convolution_forward(
    xp, x, weight, *, stride, padding, groups, bias=None, activation="identity", out=None
):
    outputs, kernel, _, each = weight.shape
    x, weight = _padded(xp, x, padding), wide(weight).reshape(groups, -1, kernel, kernel, each)
    size = ((side - kernel) // stride + 1 for side in x.shape[1:3])
    shape = (x.shape[0], *size, outputs)
    total = 0
    for i, j, seen in _taps(kernel, stride, shape):
        total = total + _grouped(x[seen], groups) @ weight[:, :, i, j].swapaxes(1, 2)
    total = total.swapaxes(0, 1).reshape(shape)
    if bias is not None:
        total = total + wide(bias)
    return put(xp.maximum(total, 0) if activation == "relu" else total, out)


@peer
def convolution_input_gradient(
    xp, grad_output, weight, *, input_shape, stride, padding, groups, out=None
):
    kernel, each = weight.shape[1], weight.shape[-1]
    total = xp.zeros_like(_padded(xp, xp.zeros(input_shape, grad_output.dtype), padding))
    grad = _grouped(wide(grad_output), groups)
    weight = wide(weight).reshape(groups, -1, kernel, kernel, each)
    for i, j, seen in _taps(kernel, stride, grad_output.shape):
        part = (grad @ weight[:, :, i, j]).swapaxes(0, 1)
        total[seen] += part.reshape(*grad_output.shape[:3], input_shape[-1])
    _, height, width, _ = input_shape
    return put(total[:, padding : padding + height, padding : padding + width], out)


@peer
def convolution_weight_gradient(
    xp, grad_output, x, *, kernel_size, stride, padding, groups, keep_bias_gradient, out=None
):
    outputs, each = grad_output.shape[-1], x.shape[-1] // groups
    x, grad = _padded(xp, x, padding), wide(grad_output)
    total = xp.empty((outputs, kernel_size, kernel_size, each), grad.dtype)
    turned = _grouped(grad, groups).swapaxes(1, 2)
    for i, j, seen in _taps(kernel_size, stride, grad_output.shape):
        total[:, i, j] = (turned @ _grouped(x[seen], groups)).reshape(outputs, each)
    total = put(total, out)
    return (total, grad.sum((0, 1, 2))) if keep_bias_gradient else total
