"""Pooling, padding and resizing by PyTorch, on channels-last memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gpunn.bench.torch_peers.common import peer, prepared, put


def _first(x):
    """(N, H, W, C) as PyTorch sees it: (N, C, H, W) in its channels_last format."""
    return x.permute(0, 3, 1, 2)


def _last(x):
    return x.permute(0, 2, 3, 1)


@peer
def max_pool_forward(x, *, kernel_size, stride, padding, out=None):
    y, indices = F.max_pool2d(_first(x), kernel_size, stride, padding, return_indices=True)
    return _last(y), _last(indices)


@prepared
def max_pool_backward(grad_output, indices, *, spatial, kernel_size, stride, padding, out=None):
    """PyTorch's own function, from the int64 indices that its forward keeps."""
    n, c = grad_output.shape[0], grad_output.shape[-1]
    image, where = _first(grad_output.new_zeros(n, *spatial, c)), _first(indices.long())
    sizes = ([n] * 2 for n in (kernel_size, stride, padding, 1))
    arguments = (_first(grad_output), image, *sizes, False, where)
    return lambda: _last(torch.ops.aten.max_pool2d_with_indices_backward(*arguments))


@peer
def avg_pool_forward(x, *, kernel_size, stride, padding, out=None):
    return _last(F.avg_pool2d(_first(x), kernel_size, stride, padding))


@prepared
def avg_pool_backward(grad_output, *, spatial, kernel_size, stride, padding, out=None):
    n, c = grad_output.shape[0], grad_output.shape[-1]
    image = _first(grad_output.new_zeros(n, *spatial, c))
    sizes = ([n] * 2 for n in (kernel_size, stride, padding))
    arguments = (_first(grad_output), image, *sizes, False, True, None)
    return lambda: _last(torch.ops.aten.avg_pool2d_backward(*arguments))


@peer
def pad_forward(x, *, padding, mode, out=None):
    sides = [n for pair in reversed(padding) for n in pair]
    return put(_last(F.pad(_first(x), sides, mode=mode)), out)


@prepared
def pad_backward(grad_output, *, padding, mode, out=None):
    n, h, w, c = grad_output.shape
    (top, bottom), (left, right) = padding
    image = _first(grad_output.new_zeros(n, h - top - bottom, w - left - right, c))
    arguments = (_first(grad_output), image, [left, right, top, bottom])
    return lambda: _last(torch.ops.aten.reflection_pad2d_backward(*arguments))


@peer
def resize_forward(x, *, output_size, mode, out=None):
    return _last(F.interpolate(_first(x), output_size, mode="bilinear"))


@prepared
def resize_backward(grad_output, *, spatial, mode, out=None):
    n, *sizes, c = grad_output.shape
    arguments = (_first(grad_output), sizes, [n, c, *spatial], False)
    return lambda: _last(torch.ops.aten.upsample_bilinear2d_backward(*arguments))
