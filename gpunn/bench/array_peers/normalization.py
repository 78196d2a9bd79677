"""Layer, RMS, batch and group norm by array functions; images are (N, places, C)."""

from __future__ import annotations

from gpunn.bench.array_peers.common import _FORWARD, peer, put, wide


def _deviation(xp, centred, axis, eps):
    """1 / sqrt(variance + eps), the axes kept."""
    return 1 / xp.sqrt((centred * centred).mean(axis, keepdims=True) + eps)


@peer
def layer_norm_forward(xp, x, weight, bias, *, out=None):
    mean = wide(x).mean(-1, keepdims=True)
    centred = wide(x) - mean
    reciprocal = _deviation(xp, centred, -1, 1e-5)
    y = centred * reciprocal * wide(weight) + wide(bias)
    return put(y, out), mean[..., 0], reciprocal[..., 0]


@peer
def rms_norm_forward(xp, x, weight, *, out=None):
    reciprocal = _deviation(xp, wide(x), -1, 1e-6)
    return put(wide(x) * reciprocal * wide(weight), out), reciprocal[..., 0]


@peer
def layer_norm_backward(xp, grad_output, x, mean, reciprocal, weight, *, out=None):
    scale, g = reciprocal[..., None], wide(grad_output)
    h, u = (wide(x) - mean[..., None]) * scale, g * wide(weight)
    dx = scale * (u - u.mean(-1, keepdims=True) - h * (u * h).mean(-1, keepdims=True))
    axes = tuple(range(x.ndim - 1))
    return put(dx, out), (g * h).sum(axes), g.sum(axes)


@peer
def rms_norm_backward(xp, grad_output, x, reciprocal, weight, *, out=None):
    scale, g = reciprocal[..., None], wide(grad_output)
    h, u = wide(x) * scale, g * wide(weight)
    dx = scale * (u - h * (u * h).mean(-1, keepdims=True))
    return put(dx, out), (g * h).sum(tuple(range(x.ndim - 1)))


@peer
def batch_norm_forward(
    xp, x, weight, bias, *, running_mean, running_var, activation, out=None
):  # fmt: skip
    mean = wide(x).mean((0, 1))
    centred = wide(x) - mean
    reciprocal = _deviation(xp, centred, (0, 1), 1e-5)[0, 0]
    count = x.shape[0] * x.shape[1]
    unbiased = (1 / reciprocal**2 - 1e-5) * (count / (count - 1))
    running_mean[...] = 0.9 * wide(running_mean) + 0.1 * mean
    running_var[...] = 0.9 * wide(running_var) + 0.1 * unbiased
    z = centred * reciprocal * wide(weight) + wide(bias)
    return put(_FORWARD[activation](xp, z), out), mean, reciprocal


def _through(xp, z, g, activation):
    if activation == "relu":
        return g * (z > 0)
    s = 1 / (1 + xp.exp(-z))  # silu
    return g * s * (1 + z * (1 - s))


@peer
def batch_norm_backward(
    xp, grad_output, x, mean, spread, weight, bias, *, activation, out=None
):  # fmt: skip
    h, w = (wide(x) - mean) * spread, wide(weight)
    g = _through(xp, h * w + wide(bias), wide(grad_output), activation)
    dx = w * spread * (g - g.mean((0, 1)) - h * (g * h).mean((0, 1)))
    return put(dx, out), (g * h).sum((0, 1)), g.sum((0, 1)), None


def _moments(x):
    mean = wide(x).mean((0, 1))
    count = 0 * mean + x.shape[0] * x.shape[1]
    return count, mean, ((wide(x) - mean) ** 2).sum((0, 1))


@peer
def sync_batch_norm_moments(xp, x, *, out=None):
    return put(xp.stack(_moments(x), -1), out)


@peer
def sync_batch_norm_forward(
    xp, x, moments, weight, bias, *, running_mean, running_var, activation, out=None
):  # fmt: skip
    counts, means, squares = (wide(moments)[..., k] for k in range(3))
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    squares = (squares + counts * (means - mean) ** 2).sum(0)
    running_mean[...] = 0.9 * wide(running_mean) + 0.1 * mean
    running_var[...] = 0.9 * wide(running_var) + 0.1 * squares / (count - 1)
    z = (wide(x) - mean) / xp.sqrt(squares / count + 1e-5) * wide(weight) + wide(bias)
    return put(_FORWARD[activation](xp, z), out), mean, squares / count, count


def _rank_parts(xp, grad_output, x, mean, variance, weight, bias, activation):
    reciprocal = 1 / xp.sqrt(variance + 1e-5)
    h = (wide(x) - mean) * reciprocal
    z = h * wide(weight) + wide(bias)
    return h, _through(xp, z, wide(grad_output), activation), reciprocal


@peer
def sync_batch_norm_sums(
    xp, grad_output, x, mean, variance, count, weight, bias, *, activation
):  # fmt: skip
    h, g, _ = _rank_parts(xp, grad_output, x, mean, variance, weight, bias, activation)
    dweight, dbias = (g * h).sum((0, 1)), g.sum((0, 1))
    means = xp.stack((dbias, dweight), -1) * (wide(weight) / count)[:, None]
    return means, dweight, dbias, None


@peer
def sync_batch_norm_backward(
    xp, grad_output, x, mean, variance, means, weight, bias, *, activation, out=None
):  # fmt: skip
    parts = _rank_parts(xp, grad_output, x, mean, variance, weight, bias, activation)
    h, g, reciprocal = parts
    return put((g * wide(weight) - means[:, 0] - h * means[:, 1]) * reciprocal, out)


def _groups(x, groups):
    return wide(x).reshape(*x.shape[:2], groups, -1)


@peer
def group_norm_forward(xp, x, num_groups, weight, bias, *, activation, out=None):
    value = _groups(x, num_groups)
    mean = value.mean((1, 3), keepdims=True)
    reciprocal = _deviation(xp, value - mean, (1, 3), 1e-5)
    z = ((value - mean) * reciprocal).reshape(x.shape) * wide(weight) + wide(bias)
    y = _FORWARD[activation](xp, z)
    return put(y, out), mean[:, 0, :, 0], reciprocal[:, 0, :, 0]


@peer
def group_norm_backward(
    xp, grad_output, x, mean, reciprocal, num_groups, weight, bias, *, activation, out=None
):
    scale = reciprocal[:, None, :, None]
    h = (_groups(x, num_groups) - mean[:, None, :, None]) * scale
    flat = h.reshape(x.shape)
    g = _through(xp, flat * wide(weight) + wide(bias), wide(grad_output), activation)
    u = _groups(g * wide(weight), num_groups)
    dx = u - u.mean((1, 3), keepdims=True) - h * (u * h).mean((1, 3), keepdims=True)
    return put((dx * scale).reshape(x.shape), out), (g * flat).sum((0, 1)), g.sum((0, 1)), None
