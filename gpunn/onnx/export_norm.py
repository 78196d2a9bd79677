"""Norms: BatchNormalization, InstanceNormalization, GroupNormalization, LayerNormalization."""

from __future__ import annotations

import numpy as np

from gpunn.onnx.aligning import Varying
from gpunn.onnx.export_activation import activate
from gpunn.onnx.export_convolution import channels_back, channels_first
from gpunn.onnx.table import converts


def _vector(graph, value, count: int, fill: float, dtype) -> str:
    """A weight for each channel; `fill` where there is none."""
    if value is not None:
        return graph.operand(value, dtype)
    return graph.constant(np.full(count, fill), dtype)


def _begin(graph, x, last: bool):
    """(the edge as (N, C, …), number of channels, dimensions)"""
    ndim = len(x.shape)
    last = last and ndim > 2
    edge = channels_first(graph, graph.edge(x), ndim, last)
    return edge, x.shape[-1 if last else 1], ndim, last


def _finish(graph, edge, x, residual, last, how) -> str:
    ndim = len(x.shape)
    edge = channels_back(graph, edge, ndim, last)
    if residual is not None:
        edge = graph.op("Add", edge, graph.operand(residual, x.dtype))
    return activate(graph, edge, x.dtype, how["activation"], how["alpha"])


@converts("BatchNorm")
def _batch_norm(graph, call):
    x, weight, bias, residual, mean, variance, last, training, _, how = call.arguments
    edge, channels, ndim, last = _begin(graph, x, last)
    factors = (_vector(graph, weight, channels, 1, x.dtype),
               _vector(graph, bias, channels, 0, x.dtype))  # fmt: skip
    if not training:
        given = (graph.operand(mean, x.dtype), graph.operand(variance, x.dtype))
        edge = graph.op("BatchNormalization", edge, *factors, *given, epsilon=float(how["eps"]))
    else:  # without running statistics those of the batch are used in evaluation, too
        axes = [0, *range(2, ndim)]
        edge = _normalised(graph, edge, axes, how["eps"], x.dtype)
        edge = _scaled(graph, edge, factors, ndim)
    return _finish(graph, edge, x, residual, last, how)


def _normalised(graph, edge, axes, eps, dtype) -> str:
    """(x - mean) / sqrt(variance + eps) over axes."""
    axes = graph.ints(*axes)
    centred = graph.op("Sub", edge, graph.op("ReduceMean", edge, axes, keepdims=1))
    variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), axes, keepdims=1)
    spread = graph.op("Sqrt", graph.op("Add", variance, graph.constant(eps, dtype)))
    return graph.op("Div", centred, spread)


def _scaled(graph, edge, factors, ndim) -> str:
    """Times a weight and plus a bias for each channel, the second axis."""
    weight, bias = factors
    if ndim > 2:
        axes = graph.ints(*range(1, ndim - 1))
        weight, bias = (graph.op("Unsqueeze", factor, axes) for factor in factors)
    return graph.op("Add", graph.op("Mul", edge, weight), bias)


@converts("GroupNorm")
def _group_norm(graph, call):
    x, weight, bias, residual, _, _, groups, last, eps, _, how = call.arguments
    edge, channels, ndim, last = _begin(graph, x, last)
    factors = (_vector(graph, weight, channels, 1, x.dtype),
               _vector(graph, bias, channels, 0, x.dtype))  # fmt: skip
    if groups == channels and ndim > 2:
        edge = graph.op("InstanceNormalization", edge, *factors, epsilon=float(eps))
    elif graph.opset >= 21 and ndim > 2:
        edge = graph.op("GroupNormalization", edge, *factors, epsilon=float(eps),
                        num_groups=groups)  # fmt: skip
    else:
        rows = graph.reshape(edge, (0, groups, -1))
        rows = _normalised(graph, rows, [2], eps, x.dtype)
        shape = (x.shape[0], channels, *(x.shape[1:-1] if last else x.shape[2:]))
        if sum(isinstance(size, Varying) for size in shape) <= 1:
            back = graph.reshape(rows, [-1 if isinstance(n, Varying) else n for n in shape])
        else:
            back = graph.op("Reshape", rows, graph.op("Shape", edge))
        edge = _scaled(graph, back, factors, ndim)
    return _finish(graph, edge, x, residual, last, how)


@converts("LayerNorm")
def _layer_norm(graph, call):
    x, weight, bias, dims, eps, _ = call.arguments
    if weight is None:
        shape = x.shape[len(x.shape) - dims :]
        if any(isinstance(size, Varying) for size in shape):
            graph.refuse("layer norm over an axis whose size varies is not known here")
        scale = graph.constant(np.ones(shape), x.dtype)
    else:
        scale = graph.operand(weight, x.dtype)
    offset = None if bias is None else graph.operand(bias, x.dtype)
    return graph.op("LayerNormalization", graph.edge(x), scale, offset, axis=-dims,
                    epsilon=float(eps))  # fmt: skip


@converts("RMSNorm")
def _rms_norm(graph, call):
    x, weight, dims, eps, _ = call.arguments
    edge, dtype = graph.wide(x)
    axes = graph.ints(*range(-dims, 0))
    mean = graph.op("ReduceMean", graph.op("Mul", edge, edge), axes, keepdims=1)
    spread = graph.op("Sqrt", graph.op("Add", mean, graph.constant(eps, dtype)))
    edge = graph.op("Div", edge, spread)
    if weight is not None:
        edge = graph.op("Mul", edge, graph.operand(weight, dtype))
    return graph.cast(edge, x.dtype, dtype)


@converts("AddForNorm")
def _add_for_norm(graph, call):
    x, residual, *_ = call.arguments
    dtype = call.outputs[0].dtype
    return graph.op("Add", graph.operand(x, dtype), graph.operand(residual, dtype))
