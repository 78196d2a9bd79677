"""Convolutions by PyTorch, on channels-last memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gpunn.bench.torch_peers.common import peer


def _first(x):
    """(N, H, W, C) as PyTorch sees it: (N, C, H, W) in its channels_last format."""
    return x.permute(0, 3, 1, 2)


def _last(x):
    return x.permute(0, 2, 3, 1)


@peer
def convolution_forward(
    x, weight, *, stride, padding, groups, bias=None, activation="identity", out=None
):
    y = F.conv2d(_first(x), _first(weight), bias, stride, padding, 1, groups)
    return _last(F.relu_(y) if activation == "relu" else y)


def _backward(grad, x, weight, stride, padding, groups, wanted):
    """PyTorch's own function for all three gradients, of which `wanted` are made."""
    return torch.ops.aten.convolution_backward(
        _first(grad), _first(x), _first(weight), [grad.shape[-1]], [stride] * 2, [padding] * 2,
        [1, 1], False, [0, 0], groups, wanted,
    )  # fmt: skip


@peer
def convolution_input_gradient(
    grad_output, weight, *, input_shape, stride, padding, groups, out=None
):
    x = grad_output.new_empty(input_shape)  # only its shape is looked at
    wanted = [True, False, False]
    return _last(_backward(grad_output, x, weight, stride, padding, groups, wanted)[0])


@peer
def convolution_weight_gradient(
    grad_output, x, *, kernel_size, stride, padding, groups, keep_bias_gradient, out=None
):
    shape = (grad_output.shape[-1], kernel_size, kernel_size, x.shape[-1] // groups)
    wanted = [False, True, keep_bias_gradient]
    weight = grad_output.new_empty(shape)
    _, gradient, sums = _backward(grad_output, x, weight, stride, padding, groups, wanted)
    return (_last(gradient), sums) if keep_bias_gradient else _last(gradient)
