"""Normalizations and dropout."""

from __future__ import annotations

import math

import numpy as np

import gpunn
import gpunn.nn.functional as F
from gpunn.autograd.functions.elementwise import rsqrt, square
from gpunn.autograd.functions.shape import reshape
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.onnx.operators.common import as_dtype, axis_of, channel_shape, scalar
from gpunn.onnx.operators.registry import Node, operator

# ---- batches -------------------------------------------------------------------------------------


@operator("BatchNormalization", statistics=(3, 4), context=True, pure=False)
def batch_normalization(node: Node):
    eps, momentum = node.float("epsilon", 1e-5), node.float("momentum", 0.9)
    trains = node.flag("training_mode") or (node.version < 7 and not node.flag("is_test"))
    node.skip("is_test", "consumed_inputs")
    if not node.flag("spatial", True):
        raise node.refuse("attribute 'spatial' is 0: statistics of each pixel are not supported")

    def run(context, x, scale, bias, mean, variance):
        if trains and node.version >= 14:
            # By ONNX's rules, whose running variance is that of the batch itself.
            return _train(x, scale, bias, mean, variance, eps, momentum)
        # In fine-tuning, as a layer of gpunn would; the buffers of the model are updated.
        wide = [t if t.dtype == x.dtype else as_dtype(t, x.dtype) for t in (scale, bias)]
        if context.training:
            out = F.batch_norm(x, mean, variance, *wide, True, 1 - momentum, eps)
        else:
            out = _normalized(x, scale, bias, mean, variance, eps)
        return out, mean, variance, mean, variance  # more than one is wanted before version 14 only

    return run


def _normalized(x, scale, bias, mean, variance, eps) -> Tensor:
    if all(t.dtype == x.dtype for t in (scale, bias, mean, variance)) and x.ndim > 1:
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, eps)
    scale, bias, mean, variance = (
        channel_shape(as_dtype(t, np.float32), x.ndim) for t in (scale, bias, mean, variance)
    )
    out = (as_dtype(x, np.float32) - mean) * rsqrt(variance + eps) * scale + bias
    return as_dtype(out, x.dtype)


def _train(x, scale, bias, mean, variance, eps, momentum):
    axes = tuple(at for at in range(x.ndim) if at != 1)
    now = gpunn.mean(x, axes)
    spread = gpunn.var(x, axes, unbiased=False)
    wide = [channel_shape(t, x.ndim) for t in (now, spread, scale, bias)]
    out = (x - wide[0]) * rsqrt(wide[1] + eps) * wide[2] + wide[3]
    fresh = 1 - momentum
    return (
        out,
        as_dtype(mean * momentum + as_dtype(now, mean.dtype) * fresh, mean.dtype),
        as_dtype(variance * momentum + as_dtype(spread, variance.dtype) * fresh, variance.dtype),
    )


# ---- images --------------------------------------------------------------------------------------


@operator("InstanceNormalization")
def instance_normalization(node: Node):
    eps = node.float("epsilon", 1e-5)
    node.skip("consumed_inputs")
    return lambda x, scale, bias: F.instance_norm(x, None, None, scale, bias, eps=eps)


@operator("GroupNormalization", 18)
def group_normalization(node: Node):
    eps, groups = node.float("epsilon", 1e-5), node.int("num_groups")
    node.skip("stash_type")  # the kernels compute in float32 or better

    def run(x, scale, bias):
        if node.version < 21:  # one number a group then
            each = x.shape[1] // groups
            scale, bias = (
                reshape(reshape(t, groups, 1).expand(groups, each), -1) for t in (scale, bias)
            )
        return F.group_norm(x, groups, scale, bias, eps)

    return run


@operator("LRN")
def lrn(node: Node):
    size, alpha = node.int("size"), node.float("alpha", 1e-4)
    beta, bias = node.float("beta", 0.75), node.float("bias", 1.0)

    def run(x):
        # Windows of an even size reach one channel further up in ONNX, and down in gpunn.
        x = x if size % 2 else x.flip(1)
        out = F.local_response_norm(x, size, alpha, beta, bias)
        return out if size % 2 else out.flip(1)

    return run


@operator("MeanVarianceNormalization", 9)
def mean_variance_normalization(node: Node):
    axes = node.ints("axes", (0, 2, 3))

    def run(x):
        centred = x - gpunn.mean(x, axes, True)
        return centred / (gpunn.mean(square(centred), axes, True).sqrt() + 1e-9)

    return run


# ---- rows ----------------------------------------------------------------------------------------


@operator("LayerNormalization", 17)
def layer_normalization(node: Node):
    axis, eps = node.int("axis", -1), node.float("epsilon", 1e-5)
    node.skip("stash_type")
    statistics = node.wants(1) or node.wants(2)

    def run(x, scale, bias=None):
        at = axis_of(axis, x.ndim)
        shape = x.shape[at:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            out = F.layer_norm(x, shape, scale, bias, eps)
        else:  # they broadcast
            out = F.layer_norm(x, shape, None, None, eps) * scale
            out = out if bias is None else out + bias
        if not statistics:
            return out
        axes = tuple(range(at, x.ndim))
        wide = as_dtype(x, np.float32)
        mean = gpunn.mean(wide, axes, True)
        return out, mean, rsqrt(gpunn.var(wide, axes, unbiased=False, keepdim=True) + eps)

    return run


@operator("RMSNormalization", 23)
def rms_normalization(node: Node):
    axis, eps = node.int("axis", -1), node.float("epsilon", 1e-5)
    node.skip("stash_type")

    def run(x, scale):
        shape = x.shape[axis_of(axis, x.ndim) :]
        if scale.shape == shape:
            return F.rms_norm(x, shape, scale, eps)
        return F.rms_norm(x, shape, None, eps) * scale

    return run


# ---- dropout -------------------------------------------------------------------------------------


@operator("Dropout", 1, 11, context=True, pure=False)
def dropout_attribute(node: Node):
    ratio = node.float("ratio", 0.5)
    node.skip("is_test", "consumed_inputs")  # whether it trains is the model's business
    return lambda context, x: _dropped(x, ratio, context.training, node.wants(1), False)


@operator("Dropout", 12, arguments=(1, 2), context=True, pure=False)
def dropout(node: Node):
    seed = node.int("seed")

    def run(context, x, ratio=None, training=None):
        trains = context.training or bool(scalar(training, False))
        share = scalar(ratio, 0.5)
        if seed is not None and trains:
            return _seeded(x, share, seed)
        return _dropped(x, share, trains, node.wants(1), True)

    return run


def _dropped(x: Tensor, ratio: float, trains: bool, wants_mask: bool, as_bool: bool):
    if not wants_mask:
        return F.dropout(x, ratio, trains)
    ones = wrap(x._xp.ones(x.shape, np.float32 if x.dtype.itemsize < 4 else x.dtype))
    kept = F.dropout(ones, ratio, trains)._array != 0
    return _masked(x, kept, ratio, trains), wrap(kept if as_bool else kept.astype(x.dtype))


def _seeded(x: Tensor, ratio: float, seed: int):
    """A mask of the node's own, the same in every run."""
    drawn = gpunn.rand(*x.shape, device=x.device, generator=gpunn.Generator(seed))
    kept = drawn._array >= ratio
    return _masked(x, kept, ratio, True), wrap(kept)


def _masked(x: Tensor, kept, ratio: float, trains: bool) -> Tensor:
    if not trains or ratio == 0:
        return x
    factor = 0.0 if math.isclose(ratio, 1.0) else 1.0 / (1.0 - ratio)
    return x * wrap(kept.astype(x.dtype)) * factor
