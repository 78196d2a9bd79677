"""Layer, RMS, batch and group norm by PyTorch; images are (N, places, C), channels-last to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gpunn.bench.torch_peers.common import _BACKWARD, _FORWARD, peer, prepared, put


@peer
def layer_norm_forward(x, weight, bias, *, out=None):
    y, mean, reciprocal = torch.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
    return put(y, out), mean[..., 0], reciprocal[..., 0]


@peer
def layer_norm_backward(grad_output, x, mean, reciprocal, weight, *, out=None):
    statistics = (mean[..., None], reciprocal[..., None])
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        grad_output, x, x.shape[-1:], *statistics, weight, weight, [True, True, True]
    )
    return put(dx, out), dweight, dbias


@peer
def rms_norm_forward(x, weight, *, out=None):
    y, reciprocal = torch.ops.aten._fused_rms_norm(x, x.shape[-1:], weight, 1e-6)
    return put(y, out), reciprocal[..., 0]


@prepared
def rms_norm_backward(grad_output, x, reciprocal, weight, *, out=None):
    """By autograd, whose forward is run beforehand: the kernel alone exists on GPUs only."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight)]
    y = F.rms_norm(inputs[0], x.shape[-1:], inputs[1], 1e-5)
    return lambda: torch.autograd.grad(y, inputs, grad_output, retain_graph=True)


def _first(x):
    """(N, places, C) as PyTorch sees it: (N, C, 1, places) in its channels_last format."""
    return x.permute(0, 2, 1)[:, :, None]


def _last(x):
    return x[:, :, 0].permute(0, 2, 1)


@peer
def batch_norm_forward(
    x, weight, bias, *, running_mean, running_var, activation, out=None
):  # fmt: skip
    y, mean, reciprocal = torch.native_batch_norm(
        _first(x), weight, bias, running_mean, running_var, True, 0.1, 1e-5
    )
    return put(_last(_FORWARD[activation](y)), out), mean, reciprocal


def _normalised(x, mean, reciprocal, weight, bias):
    """What goes into the activation, from saved statistics."""
    return (x - mean) * reciprocal * weight + bias


@peer
def batch_norm_backward(grad_output, x, mean, spread, weight, bias, *, activation, out=None):
    z = _normalised(x, mean, spread, weight, bias).to(x.dtype)
    grad = _BACKWARD[activation](grad_output, z)
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        _first(grad), _first(x), weight, None, None, mean, spread, True, 1e-5, [True, True, True]
    )
    return put(_last(dx), out), dweight, dbias, None


# PyTorch's own functions for batch norm over ranks exist on GPUs only.


@peer
def sync_batch_norm_moments(x, *, out=None):
    variance, mean = torch.var_mean(x.float(), (0, 1), correction=0)
    count = torch.full_like(mean, x.shape[0] * x.shape[1])
    return put(torch.stack((count, mean, variance * count), -1), out)


@peer
def sync_batch_norm_forward(
    x, moments, weight, bias, *, running_mean, running_var, activation, out=None
):  # fmt: skip
    counts, means, squares = moments.unbind(-1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    squares = (squares + counts * (means - mean) ** 2).sum(0)
    running_mean.lerp_(mean.to(running_mean.dtype), 0.1)
    running_var.lerp_((squares / (count - 1)).to(running_var.dtype), 0.1)
    variance = squares / count
    y = F.batch_norm(_first(x), mean, variance, weight, bias, False, 0.1, 1e-5)
    return put(_last(_FORWARD[activation](y)), out), mean, variance, count


def _through(grad_output, x, mean, variance, weight, bias, activation):
    """The normalised input, and the gradient of what goes into the activation, in float32."""
    h = (x.float() - mean) * (variance + 1e-5).rsqrt()
    z = (h * weight + bias).to(x.dtype)
    return h, _BACKWARD[activation](grad_output, z).float()


@peer
def sync_batch_norm_sums(grad_output, x, mean, variance, count, weight, bias, *, activation):
    h, g = _through(grad_output, x, mean, variance, weight, bias, activation)
    dweight, dbias = (g * h).sum((0, 1)), g.sum((0, 1))
    means = torch.stack((dbias, dweight), -1) * (weight.float() / count)[:, None]
    return means, dweight, dbias, None


@peer
def sync_batch_norm_backward(
    grad_output, x, mean, variance, means, weight, bias, *, activation, out=None
):  # fmt: skip
    h, g = _through(grad_output, x, mean, variance, weight, bias, activation)
    dx = (g * weight - means[:, 0] - h * means[:, 1]) * (variance + 1e-5).rsqrt()
    return put(dx.to(x.dtype), out)


@peer
def group_norm_forward(x, num_groups, weight, bias, *, activation, out=None):
    n, places, c = x.shape
    y, mean, reciprocal = torch.native_group_norm(
        _first(x), weight, bias, n, c, places, num_groups, 1e-5
    )
    return put(_last(_FORWARD[activation](y)), out), mean, reciprocal


@peer
def group_norm_backward(
    grad_output, x, mean, reciprocal, num_groups, weight, bias, *, activation, out=None
):
    n, places, c = x.shape
    each = [s.repeat_interleave(c // num_groups, 1)[:, None] for s in (mean, reciprocal)]
    grad = _BACKWARD[activation](grad_output, _normalised(x, *each, weight, bias).to(x.dtype))
    dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
        _first(grad), _first(x), mean, reciprocal, weight, n, c, places, num_groups,
        [True, True, True],
    )  # fmt: skip
    return put(_last(dx), out), dweight, dbias, None
